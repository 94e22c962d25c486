"""The flag meter against real HTTP servers that expose real Prometheus clients."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from blocks.flag_metrics import Arms, FlagMeter, Source
from domain.errors import Failed

FLAG = "basket"


class Process:
    """What an application keeps while it lives; a restart is a new one."""

    def __init__(self, started: float | None = 1.0) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "feature_flag_requests_total", "n", ("flag", "variant", "code"), registry=self.registry
        )
        self.seconds = Histogram(
            "feature_flag_request_duration_seconds", "s", ("flag", "variant"),
            buckets=(0.1, 1.0), registry=self.registry,
        )  # fmt: skip
        if started is not None:
            Gauge("process_start_time_seconds", "t", registry=self.registry).set(started)

    def meet(self, variant: str, code: int = 200, times: int = 1, flag: str = FLAG) -> None:
        for _ in range(times):
            self.requests.labels(flag, variant, str(code)).inc()
            self.seconds.labels(flag, variant).observe(0.05)


@dataclass
class Replica:
    name: str
    service: str = "api"
    process: Process = field(default_factory=Process)
    answer: tuple[int, str, bytes] | None = None
    server: Any = None

    @property
    def source(self) -> Source:
        host, port = self.server.server_address
        return Source(self.name, self.service, f"{host}:{port}")

    def respond(self) -> tuple[int, str, bytes]:
        whole = 200, "text/plain; version=0.0.4", generate_latest(self.process.registry)
        return self.answer or whole


@pytest.fixture
def replicas() -> Iterator[list[Replica]]:
    made = [serving(Replica("r/0")), serving(Replica("r/1"))]
    yield made
    for replica in made:
        replica.server.shutdown()
        replica.server.server_close()


def serving(replica: Replica) -> Replica:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, kind, body = replica.respond()
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None: ...

    replica.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=replica.server.serve_forever, args=(0.01,), daemon=True).start()
    return replica


def meter(replicas: list[Replica]) -> FlagMeter:
    return FlagMeter(FLAG, lambda: [replica.source for replica in replicas])


def counted(arms: Arms) -> tuple[int, int, int, int]:
    return arms.on.requests, arms.on.errors, arms.off.requests, arms.off.errors


def test_arms_are_summed_over_replicas_from_the_opening_on(replicas: list[Replica]) -> None:
    one, two = replicas
    one.process.meet("on", times=7)
    opened = meter(replicas)
    assert counted(opened.read().arms) == (0, 0, 0, 0)
    one.process.meet("on", times=2)
    two.process.meet("on", 500)
    two.process.meet("off", times=5)
    two.process.meet("off", 404)
    two.process.meet("on", times=100, flag="another")
    arms = opened.read().arms
    assert counted(arms) == (3, 1, 6, 0)
    assert dict(arms.on.buckets) == {"0.1": 3, "1.0": 3, "+Inf": 3}
    assert opened.read().arms == arms


@pytest.mark.parametrize("later", [3, 10, 30])
def test_a_restart_loses_nothing_that_was_read_also_when_the_counter_overtakes(
    replicas: list[Replica], later: int
) -> None:
    replicas[0].process.meet("on", times=5)
    opened = meter(replicas)
    replicas[0].process.meet("on", times=5)
    assert opened.read().arms.on.requests == 5
    replicas[0].process = Process(started=2.0)
    replicas[0].process.meet("on", times=later)
    assert opened.read().arms.on.requests == 5 + later


def test_a_restart_without_a_start_time_shows_in_a_counter_that_went_back(
    replicas: list[Replica],
) -> None:
    replicas[0].process = Process(started=None)
    replicas[0].process.meet("on", times=5)
    opened = meter(replicas)
    replicas[0].process = Process(started=None)
    replicas[0].process.meet("on", times=2)
    assert opened.read().arms.on.requests == 2


def test_a_replica_that_comes_later_counts_whole_and_one_that_goes_is_kept(
    replicas: list[Replica],
) -> None:
    first, second = replicas
    here = [first]
    opened = meter(here)
    second.process = Process(started=4e9)
    second.process.meet("on", times=4)
    here.append(second)
    assert opened.read().arms.on.requests == 4
    here.remove(second)
    assert opened.read().arms.on.requests == 4


@pytest.mark.parametrize("started", [1.0, None])
def test_what_an_older_replica_counted_before_is_no_evidence(
    replicas: list[Replica], started: float | None
) -> None:
    """It was not ready when the meter was opened; 90,000 old requests must not judge anything."""
    first, second = replicas
    here = [first]
    opened = meter(here)
    second.process = Process(started=started)
    second.process.meet("on", times=90)
    here.append(second)
    assert opened.read().arms.on.requests == 0
    second.process.meet("on", times=3)
    assert opened.read().arms.on.requests == 3


def test_an_answer_in_openmetrics_is_refused_and_not_read_as_nothing(
    replicas: list[Replica],
) -> None:
    replicas[0].answer = (200, "application/openmetrics-text; version=1.0.0", b"# EOF\n")
    with pytest.raises(Failed) as caught:
        meter(replicas)
    assert caught.value.code == "SLP014"


PLAIN = "text/plain; version=0.0.4"


@pytest.mark.parametrize(
    "answer",
    [
        (500, PLAIN, b"\n"),
        (200, "text/html", b"<html></html>\n"),
        (200, PLAIN, b"feature_flag_requests_total{flag="),
        (200, PLAIN, b"not prometheus at all {{{\n"),
        (200, PLAIN, b"\xff\xfe\n"),
        (404, PLAIN, b""),
        (200, PLAIN, b"up 1\n"),
    ],
)
def test_one_replica_that_cannot_be_read_is_an_error_and_never_a_zero(
    replicas: list[Replica], answer: tuple[int, str, bytes]
) -> None:
    """Argo Rollouts and Flagger read an empty answer as no errors."""
    opened = meter(replicas)
    replicas[1].answer = answer
    with pytest.raises(Failed) as failed:
        opened.read()
    assert failed.value.code == "SLP014"
    replicas[1].answer = None
    replicas[1].process.meet("on")
    assert opened.read().arms.on.requests == 1, "after an error nothing is lost"


@pytest.mark.parametrize("value", ["NaN", "-1", "+Inf", "0.5"])
def test_numbers_that_no_counter_has_are_an_error(replicas: list[Replica], value: str) -> None:
    text = generate_latest(replicas[0].process.registry).decode()
    series = 'feature_flag_requests_total{flag="basket",variant="on",code="200"}'
    head = "# TYPE feature_flag_requests_total counter\n"
    replicas[0].answer = (200, PLAIN, text.replace(head, f"{head}{series} {value}\n").encode())
    with pytest.raises(Failed, match="SLP014"):
        meter(replicas)


def test_nobody_to_ask_is_an_error() -> None:
    with pytest.raises(Failed, match="no replica serves"):
        meter([])


def test_a_replica_that_is_gone_is_an_error(replicas: list[Replica]) -> None:
    sources = [replica.source for replica in replicas]
    opened = FlagMeter(FLAG, lambda: sources)
    replicas[0].server.shutdown()
    replicas[0].server.server_close()
    with pytest.raises(Failed) as failed:
        opened.read()
    assert failed.value.code == "SLP014"


def test_a_service_without_the_convention_is_left_out(replicas: list[Replica]) -> None:
    replicas[1].service, replicas[1].answer = "worker", (404, PLAIN, b"")
    opened = meter(replicas)
    replicas[0].process.meet("off")
    assert opened.read().arms.off.requests == 1


def test_an_application_without_the_convention_is_an_error(replicas: list[Replica]) -> None:
    for replica in replicas:
        replica.answer = (200, PLAIN, b"up 1\n")
    with pytest.raises(Failed, match="no replica has feature_flag_requests_total"):
        meter(replicas)
