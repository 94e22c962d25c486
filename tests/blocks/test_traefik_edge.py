"""What TraefikEdge promises beyond the contract: no lost request, and no blind answer."""

from __future__ import annotations

import asyncio
import dataclasses
import http.server
import json
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blocks.traefik_edge import TraefikEdge, private_host, rebuild, render
from domain.errors import Failed
from domain.routing import Backend, Counts, Route, Routing

REQUEST = "{method} {path} HTTP/1.1\r\nHost: {host}\r\nContent-Length: {length}\r\n\r\n{body}"


class Load:
    """Users on keep-alive connections at a given rate, on a thread of its own.

    Every answer that is not 200, and every connection that breaks, is a failure.
    """

    def __init__(self, web: str, host: str, rate: float = 400, users: int = 20) -> None:
        self.results: Counter[str] = Counter()
        self._port, self._host = urlsplit(web).port, host
        self._rate, self._users = rate, users
        self._stop = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))

    def __enter__(self) -> Load:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(30)
        assert not self._thread.is_alive()

    @property
    def failures(self) -> dict[str, int]:
        return {r: n for r, n in self.results.items() if not r.endswith(" 200")}

    @property
    def total(self) -> int:
        return self.results.total()

    def reach(self, total: int) -> None:
        end = time.monotonic() + 20
        while self.total < total:
            assert time.monotonic() < end, f"only {self.total} of {total} requests"
            time.sleep(0.005)

    async def _run(self) -> None:
        await asyncio.gather(*(self._user(n) for n in range(self._users)))

    async def _user(self, number: int) -> None:
        loop, pause = asyncio.get_running_loop(), self._users / self._rate
        due = loop.time() + pause * number / self._users
        streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        method = "POST" if number % 4 == 0 else "GET"
        while not self._stop.is_set():
            await asyncio.sleep(max(0.0, due - loop.time()))
            due += pause
            try:
                streams = streams or await asyncio.open_connection("127.0.0.1", self._port)
                status = await asyncio.wait_for(self._ask(method, *streams), 10)
            except (OSError, EOFError, TimeoutError, ValueError) as error:
                status, streams = type(error).__name__, None
            self.results[f"{method} {status}"] += 1
        if streams:
            streams[1].close()

    async def _ask(
        self, method: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> str:
        body = "hello" if method == "POST" else ""
        text = REQUEST.format(method=method, path="/", host=self._host, length=len(body), body=body)
        writer.write(text.encode())
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        length = re.search(r"content-length: *(\d+)", head, re.IGNORECASE)
        await reader.readexactly(int(length[1]) if length else 0)
        return head.split()[1]


def routing(
    name: str,
    backends: Mapping[str, tuple[str, ...]],
    weights: Mapping[str, int],
    ready: str | None = "/readyz",
) -> Routing:
    found = tuple(Backend(workload=w, addresses=a, ready=ready) for w, a in backends.items())
    return Routing(
        application=name,
        environment="production",
        host=f"{name}.production.localhost",
        routes=(Route(service="api", paths=("/",), backends=found, weights=weights),),
    )


def answers_until(
    client: httpx.Client, web: str, host: str, names: set[str]
) -> list[httpx.Response]:
    """Ask until ten answers in a row come from exactly ``names``; all answers seen."""
    answers: list[httpx.Response] = []
    end = time.monotonic() + 10
    while not answers or {answer.text.split()[0] for answer in answers[-10:]} != names:
        assert time.monotonic() < end, answers[-1].text
        answers += [client.get(web + "/", headers={"Host": host}) for _ in range(10)]
    return answers


def wait_until_in_hand(server: Any) -> None:
    end = time.monotonic() + 10
    while not server.requests_seen:
        assert time.monotonic() < end, f"{server.name} never got the request"
        time.sleep(0.01)


def ready_addresses(servers: list[Any]) -> tuple[str, ...]:
    return tuple(server.wait().address for server in servers)


@pytest.fixture(scope="module")
def client() -> Iterator[httpx.Client]:
    with httpx.Client(trust_env=False, timeout=20) as opened:
        yield opened


# Nothing is lost


def test_twenty_switches_under_load_with_the_old_version_stopped_lose_no_request(
    traefik: Any, start_server: Any
) -> None:
    edge, host = traefik.edge(), "load.production.localhost"
    live = [start_server("v0"), start_server("v0")]
    edge.write(routing("load", {"v0": ready_addresses(live)}, {"v0": 100}))
    with Load(traefik.web, host) as load:
        for number in range(1, 21):
            old, new = f"v{number - 1}", f"v{number}"
            # Every fourth time the old processes really stop; starting new ones costs CPU.
            fresh = [start_server(new) for _ in live] if number % 4 == 0 else live
            both = {old: ready_addresses(live), new: ready_addresses(fresh)}
            edge.write(routing("load", both, {new: 100}))
            edge.write(routing("load", {new: both[new]}, {new: 100}))
            if fresh is not live:
                for server in live:
                    server.stop()
            live = fresh
            load.reach(load.total + 20)
    assert load.failures == {}
    assert load.total > 1000
    edge.remove("load", "production")


def test_a_long_request_in_hand_at_a_switch_is_finished_by_the_old_version(
    traefik: Any, start_server: Any, client: httpx.Client
) -> None:
    edge = traefik.edge()
    old, new = start_server("old"), start_server("new")
    both = {"old": (old.wait().address,), "new": (new.wait().address,)}
    before = routing("long", both, {"old": 100})
    edge.write(before)
    answer: list[str] = []

    def ask() -> None:
        answer.append(client.get(traefik.web + "/slow/1.5", headers=headers).text)

    headers = {"Host": before.host}
    asking = threading.Thread(target=ask)
    asking.start()
    wait_until_in_hand(old)
    edge.write(routing("long", {"new": both["new"]}, {"new": 100}))
    old.stop()
    asking.join(20)
    assert answer == ["old /slow/1.5 "]
    assert client.get(traefik.web + "/", headers=headers).text.startswith("new")
    edge.remove("long", "production")


def test_a_killed_replica_costs_no_request_that_may_be_repeated(
    traefik: Any, start_server: Any
) -> None:
    edge = traefik.edge()
    one, two = start_server("one"), start_server("two")
    addresses = (one.wait().address, two.wait().address)
    edge.write(routing("kill", {"w": addresses}, {"w": 100}))
    with Load(traefik.web, "kill.production.localhost", rate=300) as load:
        load.reach(200)
        one.kill()
        load.reach(load.total + 600)
    # A POST that the dead replica had in its hands cannot be saved: it may have been processed.
    failures = load.failures
    assert failures.pop("POST 502", 0) <= 5
    assert failures == {}
    edge.remove("kill", "production")


def test_a_post_that_may_have_been_processed_is_never_sent_twice(
    traefik: Any, start_server: Any, client: httpx.Client
) -> None:
    edge = traefik.edge()
    doomed, other = start_server("doomed"), start_server("other")
    to = routing("twice", {"w": (doomed.wait().address, other.wait().address)}, {"w": 100}, None)
    edge.write(to)
    answer = client.post(f"{traefik.web}/die", headers={"Host": to.host}, content=b"order 1")
    assert answer.status_code == 502
    assert sorted(doomed.requests_seen + other.requests_seen) == ["POST"]
    edge.remove("twice", "production")


def test_a_request_without_a_body_costs_no_memory_for_one(
    traefik: Any, start_server: Any, client: httpx.Client
) -> None:
    """Traefik made room for 64 KiB of a body to replay, for each GET: 88 KB a request."""
    edge = traefik.edge()
    to = routing("lean", {"w": (start_server("lean").wait().address,)}, {"w": 100}, None)
    edge.write(to)
    before = _allocated(client, traefik.metrics)
    for _ in range(500):
        assert client.get(traefik.web, headers={"Host": to.host}).status_code == 200
    taken = (_allocated(client, traefik.metrics) - before) / 500
    assert taken < 40_000
    edge.remove("lean", "production")


def _allocated(client: httpx.Client, metrics: str) -> float:
    found = re.search(r"^go_memstats_alloc_bytes_total (\S+)$", client.get(metrics).text, re.M)
    assert found is not None
    return float(found[1])


def test_requests_that_reached_no_replica_are_sent_to_another_whatever_their_method(
    traefik: Any, start_server: Any, client: httpx.Client
) -> None:
    edge = traefik.edge()
    dead, alive = start_server("dead"), start_server("alive")
    to = routing("refused", {"w": (dead.wait().address, alive.wait().address)}, {"w": 100}, None)
    dead.kill()
    edge.write(to)
    for _ in range(40):
        answer = client.post(f"{traefik.web}/alive", headers={"Host": to.host}, content=b"order")
        assert (answer.status_code, answer.text) == (200, "alive /alive order")
    assert alive.requests_seen == ["POST"] * 40
    edge.remove("refused", "production")


def test_a_replica_that_says_it_is_not_ready_gets_no_more_requests(
    traefik: Any, start_server: Any, client: httpx.Client
) -> None:
    edge = traefik.edge()
    sick, well = start_server("sick"), start_server("well")
    to = routing("sick", {"w": (sick.wait().address, well.wait().address)}, {"w": 100})
    edge.write(to)
    sick.be_sick(True)
    answers_until(client, traefik.web, to.host, {"well"})
    edge.remove("sick", "production")


@pytest.mark.parametrize("end", ["dies", "is not ready"])
def test_users_of_a_version_that_died_are_given_the_other_one(
    traefik: Any, start_server: Any, client: httpx.Client, end: str
) -> None:
    edge = traefik.edge()
    stable, canary = start_server("stable"), start_server("canary")
    both = {"s": (stable.wait().address,), "c": (canary.wait().address,)}
    to = routing("died", both, {"s": 50, "c": 50})
    edge.write(to)
    if end == "dies":
        canary.kill()
    else:
        canary.be_sick(True)
    answers = answers_until(client, traefik.web, to.host, {"stable"})
    assert {answer.status_code for answer in answers} == {200}
    edge.remove("died", "production")


def test_a_version_that_gets_nothing_does_not_hang_the_edge_by_recovering_first(
    own_traefik: Any, start_server: Any
) -> None:
    """Two versions fail their checks on a machine that 10,000 users keep full, and the one without
    users recovers first: from then on every request hung, until Traefik was started again.

    Traefik 3.7 looks for one that is up and has a weight, for ever and with its lock in its hand,
    where all that came up is a child whose weight is 0 (traefik#13749 is the same loop in TCP).
    """
    edge = own_traefik.edge()
    live, before = start_server("live"), start_server("before")
    to = routing("hung", {"l": (live.wait().address,), "b": (before.wait().address,)}, {"l": 100})
    edge.write(to)
    web, host = own_traefik.web, to.host
    private = edge.private_url("hung", "production", "b")
    with httpx.Client(trust_env=False, timeout=5) as client:
        live.be_sick(True)
        before.be_sick(True)
        _until(client, web + "/", host, 503)
        _until(client, private, host, 503)
        before.be_sick(False)
        _until(client, private, host, 200)
        for _ in range(20):  # the two checks of a replica are two clocks, a second apart at most
            assert client.get(web + "/", headers={"Host": host}).status_code == 503
            time.sleep(0.1)
        live.be_sick(False)
        _until(client, web + "/", host, 200)
    edge.remove("hung", "production")


def _until(client: httpx.Client, url: str, host: str, status: int) -> None:
    end = time.monotonic() + 15
    while (seen := client.get(url, headers={"Host": host}).status_code) != status:
        assert time.monotonic() < end, seen


def test_a_replica_that_tears_its_answer_does_not_spoil_the_counts(
    traefik: Any, servers: Mapping[str, Any], client: httpx.Client
) -> None:
    edge = traefik.edge()
    to = routing("torn", {"w": (servers["blue"].address,)}, {"w": 100})
    edge.write(to)
    with pytest.raises(httpx.RemoteProtocolError):
        client.get(f"{traefik.web}/torn", headers={"Host": to.host})
    client.get(f"{traefik.web}/", headers={"Host": to.host})
    assert edge.counts("torn", "production")["w"].requests >= 1
    edge.remove("torn", "production")


def test_answers_of_500_do_not_take_a_replica_out(
    traefik: Any, servers: Mapping[str, Any], client: httpx.Client
) -> None:
    edge = traefik.edge()
    to = routing("faulty", {"w": (servers["blue"].address,)}, {"w": 100})
    edge.write(to)
    headers = {"Host": to.host}
    statuses = [client.get(f"{traefik.web}/status/500", headers=headers) for _ in range(30)]
    assert {s.status_code for s in statuses} == {500}
    assert client.get(f"{traefik.web}/", headers=headers).status_code == 200
    assert edge.counts("faulty", "production")["w"].errors == 30
    edge.remove("faulty", "production")


def test_a_user_who_hangs_up_does_not_spoil_the_counts(
    traefik: Any, servers: Mapping[str, Any], client: httpx.Client
) -> None:
    edge = traefik.edge(deadline_seconds=3)
    to = routing("hangup", {"w": (servers["blue"].address,)}, {"w": 100})
    edge.write(to)
    for _ in range(5):
        with pytest.raises(httpx.TimeoutException):
            client.get(f"{traefik.web}/slow/1", headers={"Host": to.host}, timeout=0.1)
    end = time.monotonic() + 10
    while (counts := edge.counts("hangup", "production")["w"]).requests < 5:
        assert time.monotonic() < end
    assert (counts.requests, counts.errors) == (5, 0)
    edge.remove("hangup", "production")


def test_a_tester_reaches_each_version_by_a_host_name_of_its_own(
    traefik: Any, servers: Mapping[str, Any], client: httpx.Client
) -> None:
    edge = traefik.edge()
    both = {"api-1.0": (servers["blue"].address,), "api-1-0": (servers["green"].address,)}
    to = routing("tester", both, {"api-1.0": 100})
    edge.write(to)
    seen = {
        client.get(traefik.web + "/", headers={"Host": private_host(w, to.host)}).text.split()[0]
        for w in both
    }
    assert seen == {"blue", "green"}
    assert edge.counts("tester", "production")["api-1.0"].requests == 0
    edge.remove("tester", "production")


def test_addresses_for_people_and_programs(traefik: Any) -> None:
    edge = traefik.edge()
    to = routing("address", {}, {})
    assert edge.public_url(to) == f"http://{to.host}:{urlsplit(traefik.web).port}"
    assert edge.request_target(to) == (traefik.web, {"Host": to.host})


# Traefik is restarted, or its directory holds rubbish


def test_a_write_while_traefik_is_down_fails_and_the_file_takes_effect_later(
    own_traefik: Any, servers: Mapping[str, Any], client: httpx.Client
) -> None:
    edge = own_traefik.edge(deadline_seconds=0.5)
    to = routing("down", {"w": (servers["blue"].address,)}, {"w": 100})
    own_traefik.kill()
    with pytest.raises(Failed, match=r"tried to switch down/production for 0\.5 s") as raised:
        edge.write(to)
    assert raised.value.code == "SLP014"
    assert "takes effect once Traefik accepts it" in raised.value.help
    with pytest.raises(Failed):
        edge.read("down", "production")
    own_traefik.start()
    assert own_traefik.edge().read("down", "production") == to.canonical()


def test_a_write_during_a_restart_waits_for_traefik(
    own_traefik: Any, servers: Mapping[str, Any]
) -> None:
    edge = own_traefik.edge(deadline_seconds=15)
    own_traefik.kill()
    own_traefik.launch()
    edge.write(routing("restart", {"w": (servers["blue"].address,)}, {"w": 100}))


def test_a_traefik_that_has_not_loaded_its_files_is_not_taken_for_an_empty_one(
    own_traefik: Any, servers: Mapping[str, Any]
) -> None:
    edge = own_traefik.edge(deadline_seconds=15)
    to = routing("loading", {"w": (servers["blue"].address,)}, {"w": 100})
    edge.write(to)
    for _ in range(3):
        own_traefik.kill()
        own_traefik.launch()
        assert edge.read("loading", "production") == to.canonical()


def test_counts_after_a_restart_are_a_seen_zero(
    own_traefik: Any, servers: Mapping[str, Any], client: httpx.Client
) -> None:
    edge = own_traefik.edge(deadline_seconds=15)
    to = routing("zero", {"w": (servers["blue"].address,)}, {"w": 100})
    edge.write(to)
    for _ in range(3):
        client.get(own_traefik.web + "/", headers={"Host": to.host})
    before = edge.counts("zero", "production")["w"]
    own_traefik.kill()
    own_traefik.launch()
    after = edge.counts("zero", "production")["w"]
    assert (before.requests, after) == (3, Counts())
    assert after.since(before) == Counts()


def test_a_broken_file_of_somebody_else_stops_a_switch_loudly_and_the_old_routing_stays(
    own_traefik: Any, servers: Mapping[str, Any]
) -> None:
    edge = own_traefik.edge(deadline_seconds=1)
    both = {"v1": (servers["blue"].address,), "v2": (servers["green"].address,)}
    edge.write(routing("broken", both, {"v1": 100}))
    rubbish = own_traefik.dynamic / "rubbish.yml"
    rubbish.write_text("http: {routers: [")
    with pytest.raises(Failed) as raised:
        edge.write(routing("broken", both, {"v2": 100}))
    assert "100% v1 (1 replicas)" in raised.value.cause
    assert "cannot parse" in raised.value.cause
    seen = edge.read("broken", "production")
    assert seen is not None and seen.weight("v1") == 100
    rubbish.unlink()
    edge.write(routing("broken", both, {"v2": 100}))


def test_a_file_changed_behind_our_back_is_read_as_traefik_serves_it(
    own_traefik: Any, servers: Mapping[str, Any]
) -> None:
    edge = own_traefik.edge()
    both = {"v1": (servers["blue"].address,), "v2": (servers["green"].address,)}
    edge.write(routing("edited", both, {"v1": 100}))
    path = own_traefik.dynamic / "edited~production.yml"
    config = json.loads(path.read_text())
    config["http"]["services"]["edited~production~api"]["weighted"]["services"] = [
        {"name": f"edited~production~api~{version}", "weight": 50} for version in both
    ]
    path.write_text(json.dumps(config, indent=1))
    end = time.monotonic() + 10
    while (seen := edge.read("edited", "production")) is None or seen.weight("v2") != 50:
        assert time.monotonic() < end


def test_drafts_of_killed_writers_are_swept_and_never_served(
    own_traefik: Any, servers: Mapping[str, Any]
) -> None:
    drafts = own_traefik.dynamic.with_name("dynamic.drafts")
    drafts.mkdir()
    (drafts / "swept~production.yml.abc").write_text('{"http": ')
    own_traefik.edge().write(routing("swept", {"w": (servers["blue"].address,)}, {"w": 100}))
    assert list(drafts.iterdir()) == []
    assert [p.name for p in own_traefik.dynamic.iterdir()] == ["swept~production.yml"]


# Counting is never blind


@dataclasses.dataclass
class Impostor:
    """Answers in place of Traefik's metrics."""

    body: bytes = b""
    status: int = 200
    kind: str = "text/plain; version=0.0.4"
    length: int | None = None


@pytest.fixture
def impostor() -> Iterator[tuple[Impostor, str]]:
    told = Impostor()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(told.status)
            self.send_header("Content-Type", told.kind)
            self.send_header("Content-Length", str(told.length or len(told.body)))
            self.end_headers()
            self.wfile.write(told.body)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield told, f"http://127.0.0.1:{server.server_address[1]}/metrics"
        server.shutdown()


@pytest.mark.parametrize(
    ("fault", "seen"),
    [
        (lambda text: Impostor(b"<html>sign in</html>", kind="text/html"), "text/html"),
        (lambda text: Impostor(b"<html>sign in</html>\n"), "format|lacks"),
        (lambda text: Impostor(text, status=503), "answered 503"),
        (lambda text: Impostor(text[: len(text) // 2], length=len(text)), "incomplete|without"),
        (lambda text: Impostor(text[:-20]), "breaks off"),
        (lambda text: Impostor(_without(text, b"traefik_service_requests_total")), "incomplete"),
        (lambda text: Impostor(_without(text, b"traefik_service_")), "lacks"),
        (lambda text: Impostor(_without(text, b'code="500"', b"_requests_total")), "code 500"),
        (lambda text: Impostor(b""), "breaks off"),
    ],
)
def test_counts_raise_rather_than_answer_zero(
    traefik: Any,
    servers: Mapping[str, Any],
    client: httpx.Client,
    impostor: tuple[Impostor, str],
    fault: Callable[[bytes], Impostor],
    seen: str,
) -> None:
    to = routing("blind", {"w": (servers["blue"].address,)}, {"w": 100})
    edge = traefik.edge()
    edge.write(to)
    client.get(f"{traefik.web}/status/500", headers={"Host": to.host})
    edge.counts("blind", "production")
    told, url = impostor
    true = client.get(traefik.metrics).content
    vars(told).update(vars(fault(true)))
    blind = TraefikEdge(
        traefik.dynamic, traefik.web, traefik.internal, traefik.api, url, deadline_seconds=0.2
    )
    with pytest.raises(Failed, match=seen) as raised:
        blind.counts("blind", "production")
    assert raised.value.code == "SLP014"
    vars(told).update(vars(Impostor(true)))
    assert blind.counts("blind", "production")["w"].errors >= 1


def _without(text: bytes, *marks: bytes) -> bytes:
    return b"".join(
        line for line in text.splitlines(keepends=True) if not all(m in line for m in marks)
    )


def test_an_api_that_is_not_traefiks_is_not_believed(
    traefik: Any, impostor: tuple[Impostor, str]
) -> None:
    told, url = impostor
    told.body, told.kind = b'{"hello": 1}', "application/json"
    api = url.removesuffix("/metrics")
    edge = TraefikEdge(
        traefik.dynamic, traefik.web, traefik.internal, api, url, deadline_seconds=0.1
    )
    with pytest.raises(Failed, match="not Traefik's API"):
        edge.read("any", "thing")


# Rendering is reversible

NAMES = st.from_regex(r"[a-z0-9][a-z0-9.-]{0,12}", fullmatch=True)
PATHS = st.text(st.characters(codec="utf-8", exclude_characters=" \t\r\n?#"), max_size=9).map(
    lambda text: "/" + text
)


@st.composite
def routings(draw: st.DrawFn) -> Routing:
    routes: list[Route] = []
    for service in draw(st.lists(NAMES, max_size=3, unique=True)):
        workloads: list[str] = draw(st.lists(NAMES, max_size=3, unique=True))
        share = draw(st.none() | st.integers(0, 100))
        weights: dict[str, int] = {}
        if workloads and share is not None:
            weights[workloads[0]] = share
            weights[workloads[-1]] = weights.get(workloads[-1], 0) + 100 - share
        ready = draw(st.none() | PATHS)
        routes.append(
            Route(
                service=service,
                paths=draw(st.lists(PATHS, max_size=3, unique=True).map(tuple)),
                backends=tuple(
                    Backend(workload=w, addresses=("127.0.0.1:1", "[::1]:2"), ready=ready)
                    for w in workloads
                ),
                weights=weights,
            )
        )
    return Routing(
        application=draw(NAMES), environment=draw(NAMES), host="h.localhost", routes=tuple(routes)
    )


@settings(max_examples=60)
@given(routings())
def test_what_is_rendered_can_be_read_back(to: Routing) -> None:
    config, _ = render(to, "http://127.0.0.1:1")
    raw = {
        kind: {f"{name}@file": thing for name, thing in config["http"][kind].items()}
        for kind in ("routers", "services")
    }
    assert rebuild(raw, to.application, to.environment) == to.canonical()


@given(st.text("abc.-", min_size=1, max_size=121).filter(lambda t: t[0].isalnum()))
def test_a_testers_host_name_starts_with_a_valid_label(workload: str) -> None:
    label = private_host(workload, "h.localhost").removesuffix(".h.localhost")
    assert re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", label)


def test_the_directory_is_made_when_it_is_missing_and_an_unwritable_one_is_named(
    traefik: Any, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    edge = TraefikEdge(
        tmp_path / "file" / "dynamic", traefik.web, traefik.internal, traefik.api, traefik.metrics
    )
    with pytest.raises(Failed, match="tried to change the edge's file") as raised:
        edge.write(routing("disk", {}, {}))
    assert str(tmp_path) in (raised.value.where or "")
