"""PrometheusMetrics: the ``Metrics`` of any server that speaks Prometheus' query API.

What is asked for are raw samples: ``selector[300s]``, which Prometheus answers with every sample
and the time of its scrape. Each series is then followed by itself. The alternatives lose what a
rollout needs:

- ``increase()`` extrapolates to the edges of its window, so it is never exact, and looks at
  differences only, so that the first error of a new series (0 to 1) does not count;
- ``sum()`` before the difference hides the restart of one replica among many;
- an instant query tells the time it was asked, not the time of the sample, so that a frozen
  counter looks as new as a live one, and a replica that ends takes its last requests with it.

All queries of one reading are asked at one moment of the server's clock. Requests are asked for
first; of each target, errors and buckets are then cut at the scrape at which its requests end, so
that a scrape that comes in between cannot give more errors than requests.
"""

from __future__ import annotations

import ipaddress
import itertools
import json
import math
import re
import time
from collections import defaultdict
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any
from urllib.parse import urlsplit

import httpx
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from blocks.metrics import Clock, Meter, Reading, utc_now
from domain.counting import TOP, Series, by_bound
from domain.errors import Failed
from domain.observe import Templates, quoted
from domain.routing import Counts

LOOKBACK = timedelta(minutes=5)
"""How far each question reaches back behind the last one. A scrape is entered when it ends and
bears the time it began, so it can appear behind newer ones."""

DEADLINE = timedelta(seconds=15)
REQUEST_TIMEOUT_SECONDS = 5.0
LONGEST_ANSWER_BYTES = 64 * 1024 * 1024
_EXCERPT_CHARACTERS = 160

Labels = frozenset[tuple[str, str]]
Target = tuple[str, str]  # job and instance


class PrometheusMetrics:
    """Counts by PromQL selectors.

    Args:
        url: base address of the server, without ``/api/v1``.
        templates: the selectors.
        stale_after: age at which the newest sample is no data.
        auth: how to log in; a header that it sets never shows in an error.
        secrets: texts to take out of errors, should the server repeat them.
        deadline: for one reading as a whole.

    A redirect is refused: it leads to a login page, and could carry the credentials elsewhere.
    """

    def __init__(
        self,
        url: str,
        templates: Templates,
        *,
        stale_after: timedelta,
        auth: httpx.Auth | None = None,
        secrets: Sequence[str] = (),
        deadline: timedelta = DEADLINE,
        clock: Clock = utc_now,
    ) -> None:
        self._api = _Api(url, auth, tuple(s for s in secrets if s), deadline)
        self._templates, self._stale_after, self._clock = templates, stale_after, clock

    def open(self, application: str, environment: str, workloads: Sequence[str]) -> Meter:
        return _PrometheusMeter(
            self._api,
            self._templates,
            self._stale_after,
            self._clock,
            {
                w: {"workload": w, "application": application, "environment": environment}
                for w in workloads
            },
        )


# --- the meter ------------------------------------------------------------------------------


@dataclass
class _Family:
    """All series of one selector."""

    series: dict[Labels, Series] = field(default_factory=lambda: defaultdict(Series))

    def take(self, found: Sequence[_Found], cut: Mapping[Target, float]) -> None:
        for one in found:
            until = cut.get(one.target, math.inf)
            samples = [sample for sample in one.samples if sample[0] <= until]
            if samples:
                self.series[one.labels].take(samples)

    @property
    def total(self) -> int:
        return math.floor(math.fsum(series.total for series in self.series.values()))


@dataclass
class _Workload:
    """What is known of one workload."""

    values: Mapping[str, str]
    requests: _Family = field(default_factory=_Family)
    errors: _Family = field(default_factory=_Family)
    buckets: _Family = field(default_factory=_Family)
    newest: float | None = None

    @property
    def families(self) -> tuple[_Family, ...]:
        return self.requests, self.errors, self.buckets


class _PrometheusMeter:
    """Follows the series of some workloads.

    A series that appears after the meter was opened counts from zero, its first sample included.
    That is right for a counter that was born since, and for one whose process is older but was
    never scraped before, it counts all that the process had served.
    """

    def __init__(
        self,
        api: _Api,
        templates: Templates,
        stale_after: timedelta,
        clock: Clock,
        workloads: Mapping[str, Mapping[str, str]],
    ) -> None:
        self._api, self._templates, self._clock = api, templates, clock
        self._stale_seconds = stale_after.total_seconds()
        self._workloads = {name: _Workload(values) for name, values in workloads.items()}
        self._targets: set[Labels] = set()
        self._read_until: float | None = None
        self._look(opening=True)
        for workload in self._workloads.values():
            for family in workload.families:
                for series in family.series.values():
                    series.base()

    def read(self) -> Reading:
        self._look(opening=False)
        counts = {name: self._counts(name, w) for name, w in self._workloads.items()}
        newest = min((w.newest or 0.0 for w in self._workloads.values()), default=0.0)
        return Reading(at=datetime.fromtimestamp(newest, UTC), counts=counts)

    def _look(self, *, opening: bool) -> None:
        """Ask for what is new and take it in; nothing is taken when a part cannot be had."""
        session = self._api.session()
        now = self._agreed_time(session.server_time())
        window = LOOKBACK.total_seconds() + (now - (self._read_until or now))
        window = max(window, self._stale_seconds)
        answers = {
            name: {
                part: session.samples(selector.render(workload.values), window, now)
                for part, selector in self._templates.selectors.items()
            }
            for name, workload in self._workloads.items()
        }
        self._refuse_failing_scrapes(session, answers, now)
        newest = {
            name: self._newest(name, answer, now, opening=opening)
            for name, answer in answers.items()
        }
        for name, answer in answers.items():
            self._take(self._workloads[name], answer, newest[name])
        self._read_until = now

    def _agreed_time(self, server: float) -> float:
        """The server's time, if it is near to ours: a cached answer is old, and says so here."""
        apart = abs(server - self._clock().timestamp())
        if apart > self._stale_seconds:
            raise self._api.failed(
                f"its clock says {_shown_time(server)}, {apart:.0f} s from ours; more than "
                f"{self._stale_seconds:.0f} s (`stale_after`) cannot be told from an old answer",
                help="synchronise the clocks, and ask the server itself, not a cache before it",
            )
        return server

    def _take(
        self, workload: _Workload, answer: Mapping[str, Sequence[_Found]], newest: float | None
    ) -> None:
        cut: dict[Target, float] = {}
        for one in answer["requests"]:
            cut[one.target] = max(cut.get(one.target, 0.0), one.samples[-1][0])
        workload.requests.take(answer["requests"], {})
        workload.errors.take(answer["errors"], cut)
        workload.buckets.take(answer.get("buckets", ()), cut)
        workload.newest = newest

    def _newest(
        self, name: str, answer: Mapping[str, Sequence[_Found]], now: float, *, opening: bool
    ) -> float | None:
        """Time of the newest sample that shows that the workload is being watched."""
        seen = [one.samples[-1][0] for one in answer["requests"]]
        seen += [one.samples[-1][0] for one in answer.get("witness", ()) if one.samples[-1][1] > 0]
        if not seen:
            if opening and not self._templates.witness:
                return None  # a version without a request has no series yet
            raise self._no_data(name)
        if max(seen) > now + 1:
            raise self._api.failed(
                f"a sample of {name} is from the future: {max(seen) - now:.0f} s"
            )
        if (age := now - max(seen)) > self._stale_seconds:
            raise Failed(
                "SLP090",
                f"the newest sample of {name} is {age:.0f} s old, of {_shown_time(max(seen))}; "
                f"older than {self._stale_seconds:.0f} s is no data",
                help="look at the targets of the Prometheus server; if they are scraped more "
                "seldom than that, raise `observe.stale_after`",
                where=self._api.shown,
            )
        return max(seen)

    def _no_data(self, name: str) -> Failed:
        selectors = self._templates.selectors
        values = self._workloads[name].values
        shown = selectors["requests"].render(values)
        if "witness" in selectors:
            shown += f", and none above zero of {selectors['witness'].render(values)}"
        return Failed(
            "SLP090",
            f"asked for the requests of {name} and found no series of {shown}",
            help="check the templates of `observe` against the labels that the server has"
            + ("" if "witness" in selectors else "; a `witness` tells no requests from no data"),
            where=self._api.shown,
        )

    # Prometheus' own word on each target: `up` is 0 when a scrape failed

    def _refuse_failing_scrapes(
        self,
        session: _Session,
        answers: Mapping[str, Mapping[str, Sequence[_Found]]],
        now: float,
    ) -> None:
        """A target that is there and cannot be scraped hides its errors.

        One that was taken away, which often ends with a failed scrape, is no fault: its ``up`` is
        marked as ended, and an instant query leaves it out. Where there is no ``up`` at all
        (federation, remote write), the age of the samples is all there is to go by.
        """
        for answer in answers.values():
            for found in answer.values():
                self._targets |= {one.identity for one in found}
        jobs = sorted({job for target in self._targets if (job := dict(target).get("job"))})
        if not jobs:
            return
        choice = quoted("|".join(map(re.escape, jobs)))
        for up in session.current(f"up{{job=~{choice}}}", now):
            watched = any(_same_target(up.labels, target) for target in self._targets)
            if watched and not up.samples[-1][1]:
                job, instance = up.target
                raise self._api.failed(
                    f"it cannot scrape {instance} of job {job} (up is 0), so what that target "
                    "counts is not known"
                )

    # From series to counts

    def _counts(self, name: str, workload: _Workload) -> Counts:
        requests, errors = workload.requests.total, workload.errors.total
        if errors > requests:
            raise self._api.failed(
                f"it counts {errors} errors in {requests} requests of {name}",
                help="`errors` of the templates must select a part of what `requests` selects",
            )
        buckets = self._buckets(workload)
        if self._templates.buckets and requests and not buckets:
            raise self._api.failed(
                f"it counts {requests} requests of {name}, and has no bucket of their latency",
                help="correct `buckets` of the templates, or leave it out",
            )
        return Counts(requests=requests, errors=errors, buckets=buckets)

    def _buckets(self, workload: _Workload) -> dict[str, int]:
        """Sums by upper bound in seconds, of the bounds that every histogram with a count has."""
        histograms: dict[Labels, dict[str, float]] = defaultdict(dict)
        for labels, series in workload.buckets.series.items():
            others = frozenset(pair for pair in labels if pair[0] != "le")
            bound = self._bound(dict(labels))  # le="1" and le="1.0" are one
            histograms[others][bound] = histograms[others].get(bound, 0.0) + series.total
        counted = [h for h in histograms.values() if any(h.values())]
        if any(TOP not in h for h in counted):
            raise self._api.failed(
                'a histogram has no bucket le="+Inf"',
                help="`buckets` of the templates must select the buckets of a histogram, all of "
                "them; native histograms have none",
            )
        bounds = set.intersection(*map(set, counted)) if counted else set()
        sums = {b: math.floor(math.fsum(h[b] for h in counted)) for b in bounds}
        ordered = by_bound(sums)
        if list(ordered.values()) != sorted(ordered.values()):
            raise self._api.failed(
                "a histogram's buckets do not add up: one is below the one before"
            )
        return ordered

    def _bound(self, labels: Mapping[str, str]) -> str:
        try:
            bound = float(labels["le"])
        except (KeyError, ValueError):
            raise self._api.failed(
                f"a series of `buckets` has the label le={labels.get('le')!r}, which is no bound",
                help="`buckets` of the templates must select the buckets of a histogram",
            ) from None
        if math.isinf(bound):
            return TOP
        return f"{bound / 1000 if self._templates.bucket_unit == 'milliseconds' else bound:.12g}"


def _same_target(up: Labels, target: Labels) -> bool:
    """Whether ``up`` is of the target: job and instance agree, and nothing else differs."""
    ours, theirs = dict(target), dict(up)
    if any(ours.get(label) != theirs.get(label) for label in ("job", "instance")):
        return False
    return all(ours.get(k, v) == v for k, v in theirs.items() if k != "__name__")


def _shown_time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


# --- the query API --------------------------------------------------------------------------


@dataclass(frozen=True)
class _Found:
    """One series of an answer: its labels, and (time, value) in order of time, at least one."""

    labels: Labels
    samples: tuple[tuple[float, float], ...]

    @property
    def target(self) -> Target:
        known = dict(self.labels)
        return known.get("job", ""), known.get("instance", "")

    @property
    def identity(self) -> Labels:
        """Without what tells one series of a target from another, as far as can be known."""
        return frozenset(pair for pair in self.labels if pair[0] not in ("__name__", "le"))


class _Loose(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)


class _Row(_Loose):
    metric: dict[str, str]
    values: list[Annotated[list[Any], Field(min_length=2, max_length=2)]] = []
    histograms: list[Any] = []


class _Data(_Loose):
    resultType: str
    result: Any


class _Answer(_Loose):
    """``/api/v1/query``; ``isPartial`` is VictoriaMetrics'."""

    status: str
    data: _Data | None = None
    error: str = ""
    errorType: str = ""
    warnings: list[str] = []
    isPartial: bool = False


class _Api:
    def __init__(
        self, url: str, auth: httpx.Auth | None, secrets: tuple[str, ...], deadline: timedelta
    ) -> None:
        parts = urlsplit(url)
        self.shown = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}".rstrip("/")
        self._url, self._secrets, self.deadline = url.rstrip("/"), secrets, deadline
        self._http = httpx.Client(
            auth=auth,
            follow_redirects=False,
            # Proxy variables must not come between us and a server on this machine.
            trust_env=not _is_loopback(parts.hostname or ""),
        )

    def session(self) -> _Session:
        return _Session(self, time.monotonic() + self.deadline.total_seconds())

    def post(self, form: Mapping[str, str], end: float) -> tuple[httpx.Response, bytes]:
        """A POST, because caches do not answer these. Raises httpx.HTTPError."""
        if (left := end - time.monotonic()) <= 0:
            raise httpx.ReadTimeout("the time for one reading is over")
        body = bytearray()
        address, limit = f"{self._url}/api/v1/query", min(REQUEST_TIMEOUT_SECONDS, left)
        with self._http.stream("POST", address, data=dict(form), timeout=limit) as response:
            for chunk in response.iter_bytes():
                body += chunk
                if time.monotonic() > end:
                    raise httpx.ReadTimeout("the answer did not end in time")
                if len(body) > LONGEST_ANSWER_BYTES:
                    raise httpx.ReadError(f"the answer is longer than {LONGEST_ANSWER_BYTES} bytes")
        return response, bytes(body)

    def failed(self, cause: str, help: str = "", code: str = "SLP014") -> Failed:
        return Failed(
            code,
            self.clean(f"asked Prometheus for the requests of users: {cause}"),
            help=help or "nothing was counted; repair the server or its targets, then try again",
            where=self.shown,
        )

    def clean(self, text: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, "[Filtered]")
        return text


class _Session:
    """The questions of one reading, which share a deadline."""

    def __init__(self, api: _Api, end: float) -> None:
        self._api, self._end = api, end

    def server_time(self) -> float:
        """Seconds since the epoch by the server's clock."""
        result = self._ask("time()", "scalar")
        if not isinstance(result, list) or len(result) != 2:
            raise self._api.failed("`time()` was not answered with a scalar")
        return self._number(result[1], "time()")

    def samples(self, selector: str, window: float, at: float) -> list[_Found]:
        """All samples of ``window`` seconds up to ``at``, series by series."""
        query = f"{selector}[{math.ceil(window)}s]"
        rows = self._ask(query, "matrix", {"time": f"{at:.3f}"})
        found = [self._found(row, query) for row in rows]
        if len({one.labels for one in found}) != len(found):
            raise self._api.failed(f"two series of its answer to {query} have the same labels")
        return found

    def current(self, selector: str, at: float) -> list[_Found]:
        """The series that have not ended, each with its value; the time is that of the question."""
        rows = self._ask(selector, "vector", {"time": f"{at:.3f}"})
        try:
            ranges = [{"metric": row["metric"], "values": [row["value"]]} for row in rows]
        except (KeyError, TypeError):
            raise self._api.failed(f"its answer to {selector} is not a vector") from None
        return [self._found(row, selector) for row in ranges]

    def _found(self, row: Any, query: str) -> _Found:
        try:
            parsed = _Row.model_validate(row)
        except ValidationError:
            raise self._api.failed(f"its answer to {query} is not a matrix") from None
        if parsed.histograms or not parsed.values:
            raise self._api.failed(
                f"its answer to {query} holds native histograms, or a series without a sample",
                help="select classic buckets (label `le`)",
            )
        samples = tuple((self._time(at, query), self._count(n, query)) for at, n in parsed.values)
        if any(later[0] <= earlier[0] for earlier, later in itertools.pairwise(samples)):
            raise self._api.failed(f"the samples of its answer to {query} are not in order of time")
        return _Found(frozenset(parsed.metric.items()), samples)

    def _time(self, at: Any, query: str) -> float:
        if isinstance(at, bool) or not isinstance(at, int | float) or not math.isfinite(at):
            raise self._api.failed(f"a sample of its answer to {query} has the time {at!r}")
        return float(at)

    def _count(self, text: Any, query: str) -> float:
        value = self._number(text, query)
        if value < 0:
            raise self._api.failed(
                f"its answer to {query} counts {value:g}, and no count is negative"
            )
        return value

    def _number(self, text: Any, query: str) -> float:
        try:
            value = float(text) if isinstance(text, str) else math.nan
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise self._api.failed(f"its answer to {query} holds {text!r}, which is no count")
        return value

    def _ask(self, query: str, kind: str, more: Mapping[str, str] | None = None) -> Any:
        # Thanos would leave out stores that do not answer, and count the twins of a pair twice.
        form = {"query": query, "partial_response": "false", "dedup": "true", **(more or {})}
        try:
            response, body = self._api.post(form, self._end)
        except httpx.HTTPError as error:
            seen = str(error) or type(error).__name__
            raise self._api.failed(f"no answer: {type(error).__name__}: {seen}") from None
        answer = self._parsed(response, body)
        if answer.status != "success" or answer.data is None:
            raise self._api.failed(f"{query} was refused: {answer.errorType}: {answer.error}")
        if answer.warnings or answer.isPartial:
            told = "; ".join(answer.warnings)[:_EXCERPT_CHARACTERS] or "marked as partial"
            raise self._api.failed(f"the answer to {query} may be incomplete: {told}")
        if answer.data.resultType != kind or not isinstance(answer.data.result, list):
            raise self._api.failed(f"{query} gave a {answer.data.resultType}, not a {kind}")
        return answer.data.result

    def _parsed(self, response: httpx.Response, body: bytes) -> _Answer:
        status = response.status_code
        if status in (401, 403):
            raise self._api.failed(
                f"the server answered {status}",
                help="correct the login in the Prefect block that `observe.block` names",
                code="SLP091",
            )
        if response.is_redirect:
            to = urlsplit(response.headers.get("location", ""))
            raise self._api.failed(
                f"the server answered {status} and points to {to.hostname or to.path or 'nowhere'}",
                help="give the block the final address; a login page needs credentials instead",
            )
        try:
            answer = _Answer.model_validate(json.loads(body))
        except (ValueError, RecursionError):
            raise self._api.failed(self._strange(response, body)) from None
        if status != 200 and answer.status == "success":
            raise self._api.failed(f"the server answered {status}")
        return answer

    def _strange(self, response: httpx.Response, body: bytes) -> str:
        kind = response.headers.get("content-type", "no content type")
        text = " ".join(self._api.clean(body.decode("utf-8", "replace")).split())
        return (
            f"the server answered {response.status_code} with {kind} that is not an answer of "
            f"the query API: {text[:_EXCERPT_CHARACTERS]!r}"
        )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


class Bearer(httpx.Auth):
    """The header ``Authorization: Bearer``, for a token that must not show in a repr."""

    def __init__(self, token: str) -> None:
        self._token = token

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        request.headers["Authorization"] = f"Bearer {self._token}"
        yield request
