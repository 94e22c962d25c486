"""A strict stand-in for Prometheus' query API: real HTTP, its own clock, faults on demand.

It knows what our source asks for (``time()``, selectors and their ranges) and refuses the rest, so
that a question that a real server would refuse does not pass here.
"""

from __future__ import annotations

import http.server
import json
import re
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from urllib.parse import parse_qs

SCRAPE = timedelta(seconds=15)
JOB = {"job": "edge", "instance": "10.0.0.1:9100"}
_QUERY = re.compile(r"([A-Za-z_:][\w:]*)?(?:\{(.*)\})?(?:\[(\d+)s\])?", re.S)
_LOOKBACK_SECONDS = 300  # of an instant query
_ENDED = "ended"  # the marker that a target that was taken away leaves
_MATCHER = re.compile(r'\s*(\w+)(=~|!~|!=|=)("(?:[^"\\]|\\.)*")\s*,?')
_PARAMETERS = {"query", "time", "partial_response", "dedup"}

Fault = Callable[[str], tuple[int, Mapping[str, str], bytes] | None]


class FakeClock:
    """Time that only passes when it is told to."""

    def __init__(self) -> None:
        self.now = datetime(2026, 3, 1, 12, 0, 7, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now

    def monotonic(self) -> float:
        return self.now.timestamp()

    def advance(self, by: timedelta) -> None:
        self.now += by


BOUNDS = ("0.05", "0.1", "1", "+Inf")


class Exposed:
    """The counters of one process that serves some workloads."""

    def __init__(self, prefix: str = "http") -> None:
        self.prefix = prefix
        self.requests: dict[tuple[str, str], int] = defaultdict(int)
        self.buckets: dict[tuple[str, str], int] = defaultdict(int)
        self.marker = 0

    def serve(self, workload: str, status: int = 200, seconds: float = 0.0) -> None:
        self.requests[workload, str(status)] += 1
        for bound in BOUNDS:
            self.buckets[workload, bound] += seconds <= float(bound)

    def restart(self) -> None:
        self.requests.clear()
        self.buckets.clear()

    def series(self) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
        """Value by metric and labels."""
        found: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {
            (f"{self.prefix}_build_info", ()): 1,
            (f"{self.prefix}_marker", ()): self.marker,
        }
        for (workload, code), n in self.requests.items():
            found[f"{self.prefix}_requests_total", (("service", workload), ("code", code))] = n
        for (workload, bound), n in self.buckets.items():
            found[f"{self.prefix}_seconds_bucket", (("service", workload), ("le", bound))] = n
        return found

    def text(self) -> str:
        return "".join(
            f"{name}{{{','.join(f'{k}={json.dumps(v)}' for k, v in labels)}}} {value}\n"
            for (name, labels), value in self.series().items()
        )


@dataclass
class FakePrometheus:
    """The server and its database; ``fault`` may answer instead, and gets the query."""

    clock: FakeClock
    samples: dict[frozenset[tuple[str, str]], list[tuple[float, str]]] = field(
        default_factory=lambda: defaultdict(list)
    )
    fault: Fault = lambda query: None
    skew: timedelta = timedelta()
    asked: list[dict[str, str]] = field(default_factory=list)
    headers: list[Mapping[str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        fake = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"])).decode()
                fake.headers.append(dict(self.headers))
                form = {k: v[0] for k, v in parse_qs(body, keep_blank_values=True).items()}
                fake.asked.append(form)
                status, headers, content = fake.answer(self.path, form)
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("content-length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: object) -> None:
                """Quiet."""

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    # Filling it

    def add(
        self, metric: str, value: float | str, at: datetime | None = None, **labels: str
    ) -> None:
        """One sample; of the scrape target of the tests unless ``job`` says otherwise."""
        target = {} if "job" in labels else JOB
        key = frozenset({"__name__": metric, **target, **labels}.items())
        self.samples[key].append(((at or self.clock.now).timestamp(), f"{value}"))

    def scrape(self, exposed: Exposed, *, up: bool = True, **target: str) -> None:
        """What a scrape at this moment enters."""
        self.add("up", int(up), **target)
        for (name, labels), value in exposed.series().items() if up else ():
            self.add(name, value, **target, **dict(labels))

    def end(self, **target: str) -> None:
        """The target is taken away."""
        for key, samples in self.samples.items():
            if set(target.items()) <= key:
                samples.append((self.clock.now.timestamp(), _ENDED))

    # Answering

    def answer(self, path: str, form: dict[str, str]) -> tuple[int, Mapping[str, str], bytes]:
        if given := self.fault(form.get("query", "")):
            return given
        if path != "/api/v1/query" or not set(form) <= _PARAMETERS:
            return json_answer({"status": "error", "errorType": "bad_data", "error": path}, 400)
        if form["query"] == "time()":
            now = (self.clock.now + self.skew).timestamp()
            return success("scalar", [now, f"{now}"])
        parsed = _QUERY.fullmatch(form["query"])
        if not parsed or "time" not in form:
            text = {"status": "error", "errorType": "bad_data", "error": f"parse {form['query']}"}
            return json_answer(text, 400)
        at, seconds = float(form["time"]), float(parsed[3] or _LOOKBACK_SECONDS)
        found = list(self._select(parsed, at - seconds, at))
        if parsed[3]:
            ranges = [(key, [[t, v] for t, v in got if v != _ENDED]) for key, got in found]
            rows = [{"metric": dict(key), "values": got} for key, got in ranges if got]
            return success("matrix", rows)
        last = [(key, got[-1][1]) for key, got in found]
        rows = [{"metric": dict(key), "value": [at, v]} for key, v in last if v != _ENDED]
        return success("vector", rows)

    def _select(
        self, parsed: re.Match[str], after: float, until: float
    ) -> Iterator[tuple[frozenset[tuple[str, str]], list[tuple[float, str]]]]:
        wanted = [(m[1], m[2], json.loads(m[3])) for m in _MATCHER.finditer(parsed[2] or "")]
        if parsed[1]:
            wanted.append(("__name__", "=", parsed[1]))
        for key, samples in self.samples.items():
            inside = [(t, v) for t, v in samples if after < t <= until]
            if inside and all(_matches(dict(key).get(label, ""), op, v) for label, op, v in wanted):
                yield key, inside


def _matches(actual: str, operator: str, value: str) -> bool:
    hit = bool(re.fullmatch(value, actual)) if "~" in operator else actual == value
    return hit != operator.startswith("!")


def json_answer(content: object, status: int = 200) -> tuple[int, Mapping[str, str], bytes]:
    return status, {"content-type": "application/json"}, json.dumps(content).encode()


def success(kind: str, result: object, **more: object) -> tuple[int, Mapping[str, str], bytes]:
    data = {"resultType": kind, "result": result}
    return json_answer({"status": "success", "data": data, **more})
