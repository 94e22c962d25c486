"""What a query API can do to us, and what our counts then say."""

from __future__ import annotations

import contextlib
import http.server
import json
import threading
from collections.abc import Iterator, Mapping
from datetime import timedelta
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from blocks import prometheus
from blocks.prometheus import Bearer, PrometheusMetrics
from domain.errors import Failed
from domain.observe import PRESETS, Templates
from domain.routing import Counts
from tests.blocks.conftest import Server, Traefik, free_port
from tests.blocks.observed import (
    APPLICATION,
    ENVIRONMENT,
    TEMPLATES,
    EdgeWorld,
    FakePrometheusWorld,
    open_meter,
)
from tests.blocks.prometheus_fake import SCRAPE, Exposed, FakePrometheus, json_answer, success

WORKLOAD = "api.1"
SECRET = "s3cr3t-t0ken-of-the-test"
NO_WITNESS = TEMPLATES.model_copy(update={"witness": None})
Answer = tuple[int, Mapping[str, str], bytes]


@pytest.fixture
def world() -> Iterator[FakePrometheusWorld]:
    built = FakePrometheusWorld()
    try:
        yield built
    finally:
        built.close()


def add_requests(
    world: FakePrometheusWorld, value: float | str, code: str = "200", **labels: str
) -> None:
    world.server.add("http_requests_total", value, service=WORKLOAD, code=code, **labels)


def only_counters(world: FakePrometheusWorld) -> PrometheusMetrics:
    return world.source(TEMPLATES.model_copy(update={"buckets": None}))


def read_one(meter: Any) -> Counts:
    counts: Counts = meter.read().counts[WORKLOAD]
    return counts


# Series


def test_all_series_are_added_up_and_not_the_last_one_taken(world: FakePrometheusWorld) -> None:
    """Flagger's provider keeps one series of a result, silently."""
    meter = only_counters(world).open(APPLICATION, ENVIRONMENT, [WORKLOAD])
    world.settle()
    for number, code in enumerate(("200", "404", "500", "503"), start=1):
        add_requests(world, number, code)
        add_requests(world, number, code, job="edge", instance="10.0.0.2:9100")
    counts = read_one(meter)
    assert (counts.requests, counts.errors) == (20, 14)


def test_one_replica_among_many_restarts(world: FakePrometheusWorld) -> None:
    """A difference of sums would be negative, or hide the errors in the fall of the other."""
    replicas = [{"job": "edge", "instance": f"10.0.0.{n}:9100"} for n in (1, 2)]
    for replica in replicas:
        add_requests(world, 1000, "500", **replica)
    meter = only_counters(world).open(APPLICATION, ENVIRONMENT, [WORKLOAD])
    world.settle()
    add_requests(world, 3, "500", **replicas[0])
    add_requests(world, 1010, "500", **replicas[1])
    assert read_one(meter).errors == 13


def test_a_restart_between_two_scrapes_of_one_reading_is_seen(world: FakePrometheusWorld) -> None:
    """Two looks that see only the ends would take 10, 2, 11 for one more request."""
    add_requests(world, 10)
    meter = only_counters(world).open(APPLICATION, ENVIRONMENT, [WORKLOAD])
    for value in (2, 11):
        world.settle()
        add_requests(world, value)
    assert read_one(meter).requests == 11


def test_the_last_requests_of_a_replica_that_ended_count(world: FakePrometheusWorld) -> None:
    """An instant query does not show a series that has ended."""
    add_requests(world, 10)
    meter = only_counters(world).open(APPLICATION, ENVIRONMENT, [WORKLOAD])
    world.settle()
    add_requests(world, 14)
    for _ in range(4):
        world.settle()
    assert read_one(meter).requests == 4


def test_a_scrape_that_is_entered_late_still_counts(world: FakePrometheusWorld) -> None:
    add_requests(world, 10)
    meter = only_counters(world).open(APPLICATION, ENVIRONMENT, [WORKLOAD])
    world.settle()
    late = world.clock.now
    world.settle()
    assert read_one(meter).requests == 0
    world.server.add("http_requests_total", 12, late, service=WORKLOAD, code="200")
    assert read_one(meter).requests == 2


def test_a_scrape_between_two_questions_gives_no_errors_without_requests(
    world: FakePrometheusWorld,
) -> None:
    meter = open_meter(world, WORKLOAD)
    world.settle()
    world.serve(WORKLOAD)
    world.settle()
    scrapes = iter([True])

    def scrape_before_errors(query: str) -> Answer | None:
        if "5.." in query and next(scrapes, False):
            for _ in range(7):
                world.serve(WORKLOAD, 500)
            world.server.scrape(world.exposed)  # of the very moment that is asked for
        return None

    world.server.fault = scrape_before_errors
    world.clock.advance(timedelta(seconds=1))
    first = read_one(meter)
    assert (first.requests, first.errors, first.buckets["+Inf"]) == (1, 0, 1)
    second = read_one(meter)
    assert (second.requests, second.errors, second.buckets["+Inf"]) == (8, 7, 8)


def test_bounds_that_not_every_replica_has_are_left_out(world: FakePrometheusWorld) -> None:
    meter = open_meter(world, WORKLOAD)
    world.settle()
    layouts = {"10.0.0.1:9100": ("0.1", "0.5", "+Inf"), "10.0.0.2:9100": ("0.2", "0.5", "+Inf")}
    for instance, bounds in layouts.items():
        target = {"job": "edge", "instance": instance}
        add_requests(world, 3, **target)
        for value, bound in enumerate(bounds, start=1):
            world.server.add("http_seconds_bucket", value, service=WORKLOAD, le=bound, **target)
    assert read_one(meter).buckets == {"0.5": 4, "+Inf": 6}


def test_bounds_in_milliseconds_become_seconds(world: FakePrometheusWorld) -> None:
    changed = TEMPLATES.model_copy(update={"bucket_unit": "milliseconds"})
    meter = world.source(changed).open(APPLICATION, ENVIRONMENT, [WORKLOAD])
    world.settle()
    add_requests(world, 2)
    for bound in ("50", "2500", "1e+06", "+Inf"):
        world.server.add("http_seconds_bucket", 2, service=WORKLOAD, le=bound)
    assert list(read_one(meter).buckets) == ["0.05", "2.5", "1000", "+Inf"]


# Nothing to see


def test_no_series_is_no_data_and_a_series_of_zero_is_zero(world: FakePrometheusWorld) -> None:
    meter = world.source(NO_WITNESS).open(APPLICATION, ENVIRONMENT, [WORKLOAD])
    world.settle()
    with pytest.raises(Failed, match=r"found no series of http_requests_total") as failed:
        meter.read()
    assert failed.value.code == "SLP090"
    add_requests(world, 0)
    assert read_one(meter) == Counts()


def test_a_witness_tells_no_requests_from_not_measured(world: FakePrometheusWorld) -> None:
    meter = open_meter(world, WORKLOAD)
    world.settle()
    assert read_one(meter) == Counts()
    world.clock.advance(timedelta(minutes=10))
    with pytest.raises(Failed, match="is 600 s old") as failed:
        meter.read()
    assert failed.value.code == "SLP090"


def test_a_witness_of_zero_is_none(world: FakePrometheusWorld) -> None:
    """``up`` and its like are fresh also while nothing is scraped."""
    templates = TEMPLATES.model_copy(update={"witness": "scraping"})
    world.server.add("scraping", 1)
    meter = world.source(templates).open(APPLICATION, ENVIRONMENT, [WORKLOAD])
    world.settle()
    world.server.add("scraping", 1)
    assert read_one(meter) == Counts()
    world.settle()
    world.server.add("scraping", 0)
    with pytest.raises(
        Failed, match=r"found no series of .*, and none above zero of scraping\{\}"
    ) as failed:
        meter.read()
    assert failed.value.code == "SLP090"


def test_old_samples_are_no_data(world: FakePrometheusWorld) -> None:
    """A frozen counter shows no new errors for ever."""
    meter = open_meter(world, WORKLOAD)
    world.serve(WORKLOAD)
    world.settle()
    world.clock.advance(timedelta(seconds=119))
    assert read_one(meter).requests == 1
    world.clock.advance(timedelta(seconds=2))
    with pytest.raises(Failed, match=r"api\.1 is 121 s old, of 2026-03-01 12:00:37 UTC") as failed:
        meter.read()
    assert failed.value.code == "SLP090"


def test_a_reading_is_of_the_newest_sample_and_not_of_the_question(
    world: FakePrometheusWorld,
) -> None:
    meter = open_meter(world, WORKLOAD)
    world.settle()
    scraped = world.clock.now
    world.clock.advance(timedelta(seconds=40))
    assert meter.read().at == scraped


def test_one_target_of_several_that_cannot_be_scraped_is_an_error(
    world: FakePrometheusWorld,
) -> None:
    """The others look healthy, and its errors are not among them."""
    other, exposed = {"job": "edge", "instance": "10.0.0.2:9100"}, Exposed()
    world.server.scrape(exposed, **other)
    meter = open_meter(world, WORKLOAD)
    world.settle()
    world.server.scrape(exposed, up=False, **other)
    with pytest.raises(Failed, match=r"cannot scrape 10\.0\.0\.2:9100 of job edge") as failed:
        meter.read()
    assert failed.value.code == "SLP014"
    world.settle()
    world.server.scrape(exposed, **other)
    assert read_one(meter) == Counts()


def test_a_target_that_was_taken_away_is_no_error(world: FakePrometheusWorld) -> None:
    """A replica that is scaled down often ends with a failed scrape before it is forgotten."""
    other, exposed = {"job": "edge", "instance": "10.0.0.2:9100"}, Exposed()
    world.server.scrape(exposed, **other)
    meter = open_meter(world, WORKLOAD)
    world.settle()
    exposed.serve(WORKLOAD)
    world.server.scrape(exposed, **other)
    world.settle()
    world.server.scrape(exposed, up=False, **other)
    with pytest.raises(Failed, match="cannot scrape"):
        meter.read()
    world.settle()
    world.server.end(**other)
    for _ in range(10):
        assert read_one(meter).requests == 1
        world.settle()


def test_a_target_of_another_cluster_does_not_matter(world: FakePrometheusWorld) -> None:
    """Private addresses repeat: only labels that agree make it the same target."""
    here = {"job": "edge", "instance": "10.0.0.2:9100", "cluster": "here"}
    world.server.add("http_build_info", 1, **here)
    meter = open_meter(world, WORKLOAD)
    world.settle()
    world.server.add("up", 0, **{**here, "cluster": "there"})
    assert read_one(meter) == Counts()
    world.server.add("up", 0, **here)
    with pytest.raises(Failed, match="cannot scrape"):
        meter.read()


def test_clocks_that_differ_are_an_error(world: FakePrometheusWorld) -> None:
    """By our clock the samples would be fresh or stale at random; a cached answer looks so too."""
    meter = open_meter(world, WORKLOAD)
    for skew in (timedelta(minutes=-5), timedelta(minutes=5)):
        world.server.skew = skew
        with pytest.raises(Failed, match="300 s from ours") as failed:
            meter.read()
        assert failed.value.code == "SLP014"
    world.server.skew = timedelta()
    world.settle()
    assert read_one(meter) == Counts()


# Answers that are none

BODY = json.dumps({"status": "success", "data": {"resultType": "matrix", "result": []}}).encode()
JSON = {"content-type": "application/json"}


def matrix(*values: object, **more: object) -> Answer:
    labels = {"__name__": "http_requests_total", "service": WORKLOAD, "code": "200"}
    return success("matrix", [{"metric": labels, "values": list(values), **more}])


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        ((200, {"content-type": "text/html"}, b"<html>Log in</html>"), "text/html .*Log in"),
        ((502, {"content-type": "text/html"}, b"<html>Bad gateway"), "answered 502 with text/html"),
        ((200, JSON, BODY[:-9]), "not an answer of the query API"),
        ((200, JSON, b""), "not an answer of the query API"),
        ((200, JSON, b"[" * 100_000), "not an answer of the query API"),
        ((200, JSON, b'{"status": "success"}'), "was refused"),
        ((200, JSON, b"\xff\xfe"), "not an answer"),
        ((503, JSON, BODY), "answered 503"),
        (json_answer({"status": "error", "errorType": "timeout", "error": "slow"}, 503), "slow"),
        (json_answer({"status": "error", "errorType": "bad_data", "error": "odd"}), "odd"),
        (success("matrix", [], warnings=["store-2: no answer"]), "store-2: no answer"),
        (success("matrix", [], isPartial=True), "marked as partial"),
        (success("vector", []), "gave a vector, not a matrix"),
        (success("scalar", [1.0, "1"]), "gave a scalar, not a matrix"),
        (success("matrix", {"a": 1}), "gave a matrix"),
        (success("matrix", ["text"]), "is not a matrix"),
        (success("matrix", [{"metric": {}, "values": [[1]]}]), "is not a matrix"),
        (matrix(), "without a sample"),
        (matrix([1.0, "1"], histograms=[[1.0, {}]]), "native histograms"),
        (matrix([1.0, "NaN"]), "'NaN', which is no count"),
        (matrix([1.0, "+Inf"]), r"'\+Inf', which is no count"),
        (matrix([1.0, "-3"]), "counts -3"),
        (matrix([1.0, 7]), "holds 7, which is no count"),
        (matrix(["now", "7"]), "has the time 'now'"),
        (matrix([2.0, "1"], [1.0, "2"]), "not in order of time"),
        (matrix([1.0, "1"], [1.0, "1"]), "not in order of time"),
        (
            success("matrix", [{"metric": {"a": "b"}, "values": [[1.0, "1"]]}] * 2),
            "two series .* have the same labels",
        ),
        ((302, {"location": "https://login.test/x?next=1"}, b""), "302 and points to login.test"),
    ],
)  # fmt: skip
def test_an_answer_that_is_none_counts_nothing(
    world: FakePrometheusWorld, answer: Answer, says: str
) -> None:
    meter = open_meter(world, WORKLOAD)
    world.serve(WORKLOAD, 500)
    world.settle()
    # The errors are asked for after the requests: a half that was taken in would show below.
    world.server.fault = lambda query: answer if "5.." in query else None
    with pytest.raises(Failed, match=says) as failed:
        meter.read()
    assert failed.value.code == "SLP014"
    assert failed.value.where == world.server.url
    world.server.fault = lambda query: None
    world.serve(WORKLOAD)
    world.settle()
    counts = read_one(meter)
    assert (counts.requests, counts.errors, counts.buckets["+Inf"]) == (2, 1, 2)


@pytest.mark.parametrize("row", ["text", {"metric": {}}, {"metric": {}, "value": [1.0, "NaN"]}])
def test_a_word_on_the_targets_that_is_none_is_an_error(
    world: FakePrometheusWorld, row: object
) -> None:
    world.server.fault = lambda query: success("vector", [row]) if query[:2] == "up" else None
    with pytest.raises(Failed, match="its answer to up") as failed:
        open_meter(world)
    assert failed.value.code == "SLP014"


def test_a_sample_from_the_future_is_an_error(world: FakePrometheusWorld) -> None:
    world.server.fault = lambda query: matrix([9e9, "1"]) if "http_req" in query else None
    with pytest.raises(Failed, match=r"a sample of api\.1 is from the future"):
        open_meter(world, WORKLOAD)


def test_a_redirect_is_not_followed(world: FakePrometheusWorld) -> None:
    """It would carry the token wherever the answer points to."""
    elsewhere = FakePrometheus(world.clock)
    try:
        location = {"location": f"{elsewhere.url}/api/v1/query"}
        world.server.fault = lambda query: (307, location, b"")
        with pytest.raises(Failed, match="answered 307"):
            open_meter(world)
        assert elsewhere.asked == []
    finally:
        elsewhere.close()


@pytest.mark.parametrize("status", [401, 403])
def test_refused_credentials_have_a_code_of_their_own(
    world: FakePrometheusWorld, status: int
) -> None:
    world.server.fault = lambda query: (status, {"content-type": "text/html"}, b"no")
    with pytest.raises(Failed, match=f"answered {status}") as failed:
        open_meter(world)
    assert failed.value.code == "SLP091"


@pytest.mark.parametrize(
    ("auth", "header"),
    [
        (Bearer(SECRET), f"Bearer {SECRET}"),
        (httpx.BasicAuth("ada", SECRET), "Basic YWRhOnMzY3IzdC10MGtlbi1vZi10aGUtdGVzdA=="),
    ],
)
def test_the_login_is_sent_and_never_shown(
    world: FakePrometheusWorld, auth: httpx.Auth, header: str
) -> None:
    """Proxies like to repeat what they were sent."""
    world.settle()
    source = world.source(auth=auth, secrets=[SECRET])
    source.open(APPLICATION, ENVIRONMENT, [WORKLOAD])
    assert {sent["Authorization"] for sent in world.server.headers} == {header}
    assert SECRET not in repr(auth) + repr(source) + repr(vars(source))
    for answer in (
        (500, {"content-type": "text/html"}, f"<p>{SECRET}".encode()),
        json_answer({"status": "error", "errorType": "internal", "error": SECRET}, 500),
    ):
        world.server.fault = lambda query, answer=answer: answer
        with pytest.raises(Failed) as failed:
            source.open(APPLICATION, ENVIRONMENT, [WORKLOAD])
        assert SECRET not in f"{failed.value}{failed.value.detail}{failed.value.to_dict()}"


def test_no_server_is_an_error() -> None:
    source = PrometheusMetrics(
        f"http://127.0.0.1:{free_port()}", TEMPLATES, stale_after=timedelta(minutes=2)
    )
    with pytest.raises(Failed, match="ConnectError") as failed:
        source.open(APPLICATION, ENVIRONMENT, [WORKLOAD])
    assert failed.value.code == "SLP014"


def test_an_answer_that_is_too_long_is_cut_off(
    world: FakePrometheusWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prometheus, "LONGEST_ANSWER_BYTES", 1000)
    world.server.fault = lambda query: (200, JSON, b" " * 5000)
    with pytest.raises(Failed, match="longer than 1000 bytes"):
        open_meter(world)


def test_an_answer_that_never_ends_is_given_up(world: FakePrometheusWorld) -> None:
    """A byte now and then keeps every timeout of a connection quiet."""
    stop = threading.Event()

    class Dripping(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.send_response(200)
            self.end_headers()
            with contextlib.suppress(OSError):  # the other side has had enough
                while not stop.wait(0.01):
                    self.wfile.write(b" ")

        def log_message(self, *_: object) -> None:
            """Quiet."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Dripping)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        source = PrometheusMetrics(
            f"http://127.0.0.1:{server.server_address[1]}",
            TEMPLATES,
            stale_after=timedelta(minutes=2),
            deadline=timedelta(milliseconds=200),
        )
        with pytest.raises(Failed, match="did not end in time"):
            source.open(APPLICATION, ENVIRONMENT, [WORKLOAD])
    finally:
        stop.set()
        server.shutdown()
        thread.join()
        server.server_close()


def test_thanos_is_told_to_fail_rather_than_leave_out_a_store(world: FakePrometheusWorld) -> None:
    open_meter(world)
    assert {form["partial_response"] for form in world.server.asked} == {"false"}
    assert {form["dedup"] for form in world.server.asked} == {"true"}


# Templates that do not fit


def counting(change: Mapping[str, str]) -> Templates:
    return TEMPLATES.model_copy(update=change)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"errors": 'http_seconds_bucket{service="$workload"}'}, "4 errors in 1 requests"),
        ({"buckets": 'other_bucket{service="$workload"}'}, "no bucket of their latency"),
        ({"buckets": 'http_requests_total{service="$workload"}'}, "label le=None"),
        ({"buckets": 'http_seconds_bucket{service="$workload",le="1"}'}, "no bucket le="),
    ],
)
def test_templates_that_do_not_fit_are_an_error(
    world: FakePrometheusWorld, change: Mapping[str, str], says: str
) -> None:
    meter = world.source(counting(change)).open(APPLICATION, ENVIRONMENT, [WORKLOAD])
    world.serve(WORKLOAD)
    world.settle()
    with pytest.raises(Failed, match=says) as failed:
        meter.read()
    assert failed.value.code == "SLP014"


def test_buckets_that_do_not_add_up_are_an_error(world: FakePrometheusWorld) -> None:
    meter = open_meter(world, WORKLOAD)
    world.settle()
    add_requests(world, 5)
    for bound, value in (("0.1", 5), ("0.5", 3), ("+Inf", 5)):
        world.server.add("http_seconds_bucket", value, service=WORKLOAD, le=bound)
    with pytest.raises(Failed, match="do not add up"):
        meter.read()


# Presets


def test_the_traefik_preset_reads_what_our_edge_counts(
    world: FakePrometheusWorld, own_traefik: Traefik, servers: Mapping[str, Server]
) -> None:
    """Scraped from a real Traefik, with the names that our edge gives."""
    edge = EdgeWorld(own_traefik, servers["blue"])

    def scrape() -> None:
        world.clock.advance(SCRAPE)
        text = httpx.get(own_traefik.metrics, trust_env=False).text
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                world.server.add(sample.name, sample.value, **sample.labels)

    scrape()
    meter = world.source(PRESETS["traefik"]).open(
        APPLICATION, ENVIRONMENT, ["api.1", "api-1", "api.10"]
    )
    for workload, status in (("api.1", 200), ("api.1", 503), ("api-1", 200)):
        edge.serve(workload, status)
    scrape()
    counts = meter.read().counts
    assert {w: (c.requests, c.errors) for w, c in counts.items()} == {
        "api.1": (2, 1),
        "api-1": (1, 0),
        "api.10": (0, 0),
    }
    assert counts == edge.edge.counts(APPLICATION, ENVIRONMENT)


ISTIO = {"reporter": "source", "destination_workload": WORKLOAD}
NGINX = {"service": WORKLOAD}


@pytest.mark.parametrize(
    ("preset", "requests", "code", "buckets", "witness", "labels"),
    [
        ("istio", "istio_requests_total", "response_code",
         "istio_request_duration_milliseconds_bucket", "istio_build", ISTIO),
        ("nginx-ingress", "nginx_ingress_controller_requests", "status",
         "nginx_ingress_controller_request_duration_seconds_bucket",
         "nginx_ingress_controller_build_info", NGINX),
    ],
)  # fmt: skip
def test_the_other_presets_read_what_their_documentation_names(
    world: FakePrometheusWorld,
    preset: str,
    requests: str,
    code: str,
    buckets: str,
    witness: str,
    labels: Mapping[str, str],
) -> None:
    def scrape(ok: int, failed: int) -> None:
        world.clock.advance(SCRAPE)
        world.server.add(witness, 1, component="proxy")
        if not ok:
            return
        for status, value in (("200", ok), ("503", failed)):
            both = {**labels, code: status}
            world.server.add(requests, value, **both)
            for bound in ("1000", "+Inf"):
                world.server.add(buckets, value, le=bound, **both)

    scrape(0, 0)
    meter = world.source(PRESETS[preset]).open(APPLICATION, ENVIRONMENT, [WORKLOAD])
    scrape(8, 2)
    counts = read_one(meter)
    bound = "1" if preset == "istio" else "1000"
    assert counts == Counts(requests=10, errors=2, buckets={bound: 10, "+Inf": 10})


def test_the_address_shows_no_login() -> None:
    source = PrometheusMetrics(
        f"http://ada:{SECRET}@127.0.0.1:1", TEMPLATES, stale_after=timedelta(minutes=2)
    )
    with pytest.raises(Failed) as failed:
        source.open(APPLICATION, ENVIRONMENT, [WORKLOAD])
    assert SECRET not in str(failed.value)
