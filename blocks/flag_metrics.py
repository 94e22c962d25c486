"""What users met with a flag on and off, from the replicas' own Prometheus counters.

The two arms are variants inside one version, so no edge can tell them apart: each replica counts
them. The convention, on the path ``/metrics`` of every replica of a service that has flags:

- ``feature_flag_requests_total{flag, variant, code}``: a counter; ``variant`` is ``on`` or
  ``off``, ``code`` the status that the request was answered with;
- ``feature_flag_request_duration_seconds{flag, variant}``: a histogram.

A replica that cannot be asked is an error, never a zero. A family that is there without a series
of the flag has counted nothing, which is a zero. A service of which no replica has the families
does not follow the convention and is left out; one of which only some do is an error.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

import httpx
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from domain.counting import added
from domain.errors import Failed
from domain.flags import OFF, ON
from domain.routing import Counts

REQUESTS = "feature_flag_requests"
SECONDS = "feature_flag_request_duration_seconds"
STARTED = "process_start_time_seconds"
PATH = "/metrics"
_TEXT = {"Accept": "text/plain;version=0.0.4"}
"""OpenMetrics names counters in another way, and would be read as having none."""
TIMEOUT_SECONDS = 2.0
LARGEST_BYTES = 8_000_000


@dataclass(frozen=True)
class Source:
    """One replica: ``name`` stays the same when its process is started again."""

    name: str
    service: str
    address: str


@dataclass(frozen=True)
class Arms:
    """Requests with the flag on and with it off."""

    on: Counts = field(default_factory=Counts)
    off: Counts = field(default_factory=Counts)

    def since(self, earlier: Arms) -> Arms:
        return Arms(self.on.since(earlier.on), self.off.since(earlier.off))

    def __add__(self, other: Arms) -> Arms:
        return Arms(added(self.on, other.on), added(self.off, other.off))


@dataclass(frozen=True)
class FlagReading:
    at: datetime
    arms: Arms


@dataclass(frozen=True)
class _Scrape:
    """One replica's counters; ``started``: when its process did, None if it does not say."""

    started: float | None
    arms: Arms | None


@dataclass
class FlagMeter:
    """What was gained since it was opened, over all replicas and their restarts.

    Args:
        flag: key of the flag.
        sources: the replicas that serve now; asked anew at each reading.

    Raises:
        Failed: SLP014, as ``read`` does.
    """

    flag: str
    sources: Callable[[], Sequence[Source]]
    now: Callable[[], datetime] = lambda: datetime.now(UTC)
    _known: dict[str, _Scrape] = field(default_factory=dict)
    _gained: Arms = field(default_factory=Arms)

    def __post_init__(self) -> None:
        self._http = httpx.Client(trust_env=False, timeout=TIMEOUT_SECONDS)
        self._opened = self.now().timestamp()
        self._known = self._scrape()

    def read(self) -> FlagReading:
        """Arms gained since the meter was opened; either all replicas were read, or none counts.

        Raises:
            Failed: SLP014, a replica could not be asked, none serves, or none counts the flag.
        """
        at, found = self.now(), self._scrape()
        for name, scrape in found.items():
            self._gained += _gain(self._before(name, scrape), scrape)
        self._known |= found
        return FlagReading(at, self._gained)

    def _before(self, name: str, scrape: _Scrape) -> _Scrape | None:
        """What a replica had counted already; None: its process is younger than this meter.

        One that was not asked at the opening and is older (it was not ready then), or does not
        say how old it is, begins here: what it counted before is no evidence of this step.
        """
        known = self._known.get(name)
        if known is None and (scrape.started is None or scrape.started < self._opened):
            return scrape
        return known

    def close(self) -> None:
        self._http.close()

    def _scrape(self) -> dict[str, _Scrape]:
        sources = list(self.sources())
        if not sources:
            raise _failed(self.flag, "no replica serves")
        found = {source.name: self._ask(source) for source in sources}
        counting = {s.service for s in sources if found[s.name].arms is not None}
        if not counting:
            raise _failed(self.flag, f"no replica has {REQUESTS}_total and {SECONDS}")
        for source in sources:
            if source.service in counting and found[source.name].arms is None:
                raise _failed(
                    self.flag, f"{source.name} lacks {REQUESTS}_total or {SECONDS}, others have it"
                )
        return {s.name: found[s.name] for s in sources if s.service in counting}

    def _ask(self, source: Source) -> _Scrape:
        url = f"http://{source.address}{PATH}"
        try:
            with self._http.stream("GET", url, headers=_TEXT) as answer:
                body = b""
                for chunk in answer.iter_bytes():
                    body += chunk
                    if len(body) > LARGEST_BYTES:
                        raise _failed(self.flag, f"{url} answered over {LARGEST_BYTES} bytes")
        except httpx.HTTPError as error:
            raise _failed(self.flag, f"{url}: {error or type(error).__name__}") from error
        if answer.status_code == 404:
            return _Scrape(None, None)
        kind = answer.headers.get("content-type", "")
        if answer.status_code != 200 or not kind.startswith("text/plain"):
            raise _failed(
                self.flag, f"{url} answered {answer.status_code} with {kind or 'no content type'}"
            )
        try:
            return parse_scrape(body.decode("utf-8"), self.flag)
        except (ValueError, KeyError) as error:
            raise _failed(self.flag, f"{url} did not answer in Prometheus' format: {error}") from (
                error
            )


def parse_scrape(text: str, flag: str) -> _Scrape:
    """One replica's answer.

    Raises:
        ValueError: it breaks off, is not in Prometheus' format, or has numbers no counter has.
        KeyError: a series lacks a label of the convention.
    """
    if not text.endswith("\n"):
        raise ValueError("it breaks off")
    families = {f.name: f for f in text_string_to_metric_families(text)}
    started = next((s.value for s in getattr(families.get(STARTED), "samples", ())), None)
    if REQUESTS not in families or SECONDS not in families:
        return _Scrape(started, None)
    samples = [*families[REQUESTS].samples, *families[SECONDS].samples]
    return _Scrape(started, _arms([s for s in samples if s.labels["flag"] == flag]))


def _arms(samples: Iterable[Sample]) -> Arms:
    requests: dict[str, int] = defaultdict(int)
    errors: dict[str, int] = defaultdict(int)
    buckets: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for sample in samples:
        variant = sample.labels["variant"]
        if sample.name == f"{REQUESTS}_total":
            count = _whole(sample)
            requests[variant] += count
            if sample.labels["code"].startswith("5"):
                errors[variant] += count
        elif sample.name == f"{SECONDS}_bucket":
            buckets[variant][sample.labels["le"]] += _whole(sample)
    counts: Mapping[str, Counts] = {
        v: Counts(requests=requests[v], errors=errors[v], buckets=dict(buckets[v]))
        for v in (ON, OFF)
    }
    return Arms(counts[ON], counts[OFF])


def _whole(sample: Sample) -> int:
    if not math.isfinite(sample.value) or sample.value < 0 or sample.value % 1:
        raise ValueError(f"{sample.name} is {sample.value}, which no counter can be")
    return int(sample.value)


def _gain(before: _Scrape | None, now: _Scrape) -> Arms:
    """What one replica counted in between; another process has counted all it has anew."""
    if now.arms is None:
        return Arms()
    if before is None or before.arms is None or before.started != now.started:
        return now.arms
    return now.arms.since(before.arms)


def _failed(flag: str, seen: str) -> Failed:
    return Failed(
        "SLP014",
        f"tried to count the requests that met the flag {flag!r} and saw: {seen}",
        help="see docs/flags.md, section `what an application counts`",
    )
