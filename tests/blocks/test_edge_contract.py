"""What every edge must do. A new edge joins with one more parameter of the ``edge`` fixture."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import httpx
import pytest

from blocks.edge import Edge
from domain.routing import Backend, Counts, Route, Routing

_numbers = itertools.count(1)


@pytest.fixture(params=["traefik"])
def edge(request: pytest.FixtureRequest) -> Edge:
    match request.param:
        case "traefik":
            built: Edge = request.getfixturevalue("traefik").edge()
            return built
        case other:
            raise AssertionError(f"no edge called {other}")


@pytest.fixture(scope="module")
def client() -> Iterator[httpx.Client]:
    with httpx.Client(trust_env=False, timeout=10) as opened:
        yield opened


@pytest.fixture
def application(edge: Edge) -> Iterator[str]:
    """A name that no other test uses; its routing is gone afterwards."""
    name = f"app-{next(_numbers)}"
    yield name
    edge.remove(name, "production")


def routing(
    application: str,
    backends: Mapping[str, str],
    weights: Mapping[str, int],
    *,
    environment: str = "production",
    paths: tuple[str, ...] = ("/",),
    service: str = "api",
    ready: str | None = "/readyz",
) -> Routing:
    route = Route(
        service=service,
        paths=paths,
        backends=tuple(
            Backend(workload=w, addresses=(a,), ready=ready) for w, a in backends.items()
        ),
        weights=weights,
    )
    host = f"{application}.{environment}.localhost"
    return Routing(application=application, environment=environment, host=host, routes=(route,))


def ask(client: httpx.Client, edge: Edge, to: Routing, path: str = "/") -> httpx.Response:
    base, headers = edge.request_target(to)
    return client.get(base + path, headers=headers)


def blue_and_green(servers: Mapping[str, Any]) -> dict[str, str]:
    return {"api-1": servers["blue"].address, "api-2": servers["green"].address}


def test_it_is_an_edge(edge: Edge) -> None:
    assert isinstance(edge, Edge)


def test_an_environment_never_written_reads_as_none_and_counts_nothing(edge: Edge) -> None:
    assert edge.read("never", "written") is None
    assert edge.counts("never", "written") == {}


def test_what_was_written_is_read_back_whole(
    edge: Edge, servers: Mapping[str, Any], application: str
) -> None:
    blue, green = servers["blue"].address, servers["green"].address
    written = Routing(
        application=application,
        environment="production",
        host=f"{application}.production.localhost",
        routes=(
            Route(
                service="web",
                paths=("/", "/api/", "/static"),
                backends=(
                    Backend(workload="web-2", addresses=(green, blue), ready="/readyz"),
                    Backend(workload="web-1", addresses=(blue,), ready=None),
                ),
                weights={"web-1": 90, "web-2": 10},
            ),
            Route(service="mail", backends=(Backend(workload="mail-1", addresses=(green,)),),
                  weights={"mail-1": 100}),
            Route(service="new", paths=("/new",), weights={},
                  backends=(Backend(workload="new-1", addresses=(green,)),)),
        ),
    )  # fmt: skip
    edge.write(written)
    assert edge.read(application, "production") == written.canonical()


def test_the_first_request_after_a_switch_meets_the_new_version(
    edge: Edge, servers: Mapping[str, Any], client: httpx.Client, application: str
) -> None:
    both = blue_and_green(servers)
    for workload, expected in [("api-1", "blue"), ("api-2", "green")] * 5:
        to = routing(application, both, {workload: 100})
        edge.write(to)
        assert ask(client, edge, to).text.split()[0] == expected


def test_a_split_follows_the_weights(
    edge: Edge, servers: Mapping[str, Any], client: httpx.Client, application: str
) -> None:
    to = routing(application, blue_and_green(servers), {"api-1": 80, "api-2": 20})
    edge.write(to)
    seen = Counter(ask(client, edge, to).text.split()[0] for _ in range(200))
    assert 20 <= seen["green"] <= 60
    assert seen["blue"] + seen["green"] == 200


def test_every_backend_has_a_private_address_before_it_has_weight(
    edge: Edge, servers: Mapping[str, Any], client: httpx.Client, application: str
) -> None:
    # One name begins with the other, which a mere string prefix would mix up.
    both = {"api-1": servers["blue"].address, "api-10": servers["green"].address}
    edge.write(routing(application, both, {"api-1": 100}))
    for workload, name in (("api-1", "blue"), ("api-10", "green")):
        base = edge.private_url(application, "production", workload)
        assert not base.endswith("/")
        assert client.get(f"{base}/some/path").text.split() == [name, "/some/path"]
        assert client.get(base).text.split() == [name, "/"]


def test_a_version_without_weight_gets_no_public_request(
    edge: Edge, servers: Mapping[str, Any], client: httpx.Client, application: str
) -> None:
    to = routing(application, blue_and_green(servers), {"api-1": 100})
    edge.write(to)
    assert {ask(client, edge, to).text.split()[0] for _ in range(30)} == {"blue"}


def test_before_the_first_version_is_live_the_public_address_serves_none(
    edge: Edge, servers: Mapping[str, Any], client: httpx.Client, application: str
) -> None:
    to = routing(application, {"api-1": servers["blue"].address}, {})
    edge.write(to)
    assert ask(client, edge, to).status_code in (404, 503)
    private = edge.private_url(application, "production", "api-1")
    assert client.get(private).status_code == 200


def test_counts_tell_requests_errors_and_latency_by_workload(
    edge: Edge, servers: Mapping[str, Any], client: httpx.Client, application: str
) -> None:
    both = blue_and_green(servers)
    to = routing(application, both, {"api-1": 100})
    edge.write(to)
    assert edge.counts(application, "production") == {"api-1": Counts(), "api-2": Counts()}
    for path in ("/", "/", "/slow/0.12", "/status/404", "/status/500", "/status/503"):
        ask(client, edge, to, path)
    counts = edge.counts(application, "production")
    assert (counts["api-1"].requests, counts["api-1"].errors) == (6, 2)
    buckets = counts["api-1"].buckets
    assert buckets["+Inf"] == 6
    assert buckets["0.1"] == 5
    assert list(buckets.values()) == sorted(buckets.values())
    assert counts["api-2"] == Counts()


def test_counts_survive_a_switch_and_follow_the_traffic(
    edge: Edge, servers: Mapping[str, Any], client: httpx.Client, application: str
) -> None:
    both = blue_and_green(servers)
    for workload, requests in (("api-1", 3), ("api-2", 4), ("api-1", 2)):
        to = routing(application, both, {workload: 100})
        edge.write(to)
        for _ in range(requests):
            ask(client, edge, to)
    counts = edge.counts(application, "production")
    assert {w: c.requests for w, c in counts.items()} == {"api-1": 5, "api-2": 4}


def test_looking_at_a_candidate_is_not_counted_as_its_users(
    edge: Edge, servers: Mapping[str, Any], client: httpx.Client, application: str
) -> None:
    edge.write(routing(application, blue_and_green(servers), {"api-1": 100}))
    client.get(edge.private_url(application, "production", "api-2") + "/status/500")
    assert edge.counts(application, "production")["api-2"] == Counts()


def test_a_service_without_public_paths_is_private_and_still_counted(
    edge: Edge, servers: Mapping[str, Any], client: httpx.Client, application: str
) -> None:
    to = routing(application, blue_and_green(servers), {"api-1": 100}, paths=(), service="mail")
    edge.write(to)
    assert ask(client, edge, to).status_code == 404
    assert client.get(edge.private_url(application, "production", "api-1")).status_code == 200
    assert edge.counts(application, "production")["api-1"].requests == 1


def test_the_longest_path_wins_and_only_whole_segments_match(
    edge: Edge, servers: Mapping[str, Any], client: httpx.Client, application: str
) -> None:
    routes = tuple(
        Route(
            service=service,
            paths=paths,
            backends=(Backend(workload=service, addresses=(servers[name].address,)),),
            weights={service: 100},
        )
        for service, paths, name in (("web", ("/",), "blue"), ("api", ("/api",), "green"))
    )
    to = Routing(
        application=application,
        environment="production",
        host=f"{application}.production.localhost",
        routes=routes,
    )
    edge.write(to)
    seen = {p: ask(client, edge, to, p).text.split()[0] for p in ("/", "/api", "/api/x", "/apix")}
    assert seen == {"/": "blue", "/api": "green", "/api/x": "green", "/apix": "blue"}


def test_a_path_full_of_signs_is_taken_literally(
    edge: Edge, servers: Mapping[str, Any], client: httpx.Client, application: str
) -> None:
    odd = '/a"`) || PathPrefix(`/{{ env "HOME" }}\\'
    to = routing(
        application, {"api-1": servers["blue"].address}, {"api-1": 100}, paths=(odd,), ready=None
    )
    edge.write(to)
    assert edge.read(application, "production") == to.canonical()
    assert ask(client, edge, to, "/").status_code == 404


def test_writing_the_same_again_changes_nothing(
    edge: Edge, servers: Mapping[str, Any], client: httpx.Client, application: str
) -> None:
    to = routing(application, blue_and_green(servers), {"api-2": 100})
    for _ in range(3):
        edge.write(to)
    assert edge.read(application, "production") == to.canonical()
    assert ask(client, edge, to).text.split()[0] == "green"


def test_removing_ends_the_routing_and_can_be_repeated(
    edge: Edge, servers: Mapping[str, Any], client: httpx.Client, application: str
) -> None:
    to = routing(application, blue_and_green(servers), {"api-1": 100})
    edge.write(to)
    edge.remove(application, "production")
    assert edge.read(application, "production") is None
    assert ask(client, edge, to).status_code == 404
    edge.remove(application, "production")


def test_names_that_read_alike_when_joined_stay_apart(
    edge: Edge, servers: Mapping[str, Any], client: httpx.Client
) -> None:
    blue = routing("a", {"w": servers["blue"].address}, {"w": 100}, environment="b-c")
    green = routing("a-b", {"w": servers["green"].address}, {"w": 100}, environment="c")
    try:
        edge.write(blue)
        edge.write(green)
        assert edge.read("a", "b-c") == blue.canonical()
        assert edge.read("a-b", "c") == green.canonical()
        assert edge.read("a", "b") is None
        assert ask(client, edge, blue).text.split()[0] == "blue"
        assert ask(client, edge, green).text.split()[0] == "green"
        edge.remove("a", "b-c")
        assert ask(client, edge, green).text.split()[0] == "green"
    finally:
        edge.remove("a", "b-c")
        edge.remove("a-b", "c")


def test_the_longest_names_work(
    edge: Edge, servers: Mapping[str, Any], client: httpx.Client
) -> None:
    application, environment, workload = "a" * 100, "preview-" + "b" * 92, "w" * 121
    to = routing(
        application, {workload: servers["blue"].address}, {workload: 100}, environment=environment
    ).model_copy(update={"host": "long.localhost"})
    try:
        edge.write(to)
        assert edge.read(application, environment) == to.canonical()
        assert client.get(edge.private_url(application, environment, workload)).status_code == 200
    finally:
        edge.remove(application, environment)
