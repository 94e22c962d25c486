"""Counts by the edge's own counters, where these restart, leave and return."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import pytest

from blocks.edge import Edge
from blocks.metrics import EdgeMetrics
from domain.errors import Failed
from domain.routing import Counts
from tests.blocks.conftest import Server, Traefik
from tests.blocks.observed import APPLICATION, ENVIRONMENT, WORKLOADS, EdgeWorld, open_meter

OTHERS = tuple(workload for workload in WORKLOADS if workload != "api.1")


@pytest.fixture
def world(own_traefik: Traefik, servers: Mapping[str, Server]) -> Iterator[EdgeWorld]:
    built = EdgeWorld(own_traefik, servers["blue"])
    try:
        yield built
    finally:
        built.close()


@pytest.mark.parametrize("looks_while_away", [0, 1, 2])
def test_a_workload_that_leaves_and_returns_is_counted_once(
    world: EdgeWorld, looks_while_away: int
) -> None:
    """Traefik drops the counters of a workload that left at the first look without it.

    After no look it goes on from the old value, after one it starts from zero: what comes then
    may be more than what was there before, and the counter never seems to go back.
    """
    meter = open_meter(world)
    for _ in range(2):
        world.serve("api.1", 500)
    assert meter.read().counts["api.1"].errors == 2
    world.route(OTHERS[0], OTHERS)
    for _ in range(looks_while_away):
        assert meter.read().counts["api.1"].errors == 2
    for _ in range(3):
        world.serve("api.1", 500)
    counts = meter.read().counts["api.1"]
    assert (counts.requests, counts.errors, counts.buckets["+Inf"]) == (5, 5, 5)


def test_a_workload_that_comes_after_the_meter_was_opened_is_counted(world: EdgeWorld) -> None:
    world.route(OTHERS[0], OTHERS)
    meter = open_meter(world)
    world.serve("api.1")
    assert meter.read().counts["api.1"].requests == 1


def test_a_workload_that_the_edge_never_had_is_an_error_and_not_zero(world: EdgeWorld) -> None:
    meter = open_meter(world, "api.1", "api.2")
    with pytest.raises(Failed, match=r"requests of api\.2 in shop/production; the edge has") as bad:
        meter.read()
    assert bad.value.code == "SLP014"


class Scripted:
    """An edge that counts by a script; an exception in it is raised."""

    def __init__(self, *answers: Mapping[str, Counts] | Exception) -> None:
        self._answers = list(answers)

    def counts(self, application: str, environment: str) -> Mapping[str, Counts]:
        answer = self._answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


def one(requests: int, errors: int = 0) -> dict[str, Counts]:
    return {"api.1": Counts(requests=requests, errors=errors)}


def scripted(*answers: Any) -> EdgeMetrics:
    return EdgeMetrics(cast(Edge, Scripted(*answers)))


def test_a_look_that_failed_loses_nothing() -> None:
    failure = Failed("SLP014", "tried to count and saw nothing", help="again")
    meter = scripted(one(10), one(12), failure, one(15)).open(APPLICATION, ENVIRONMENT, ["api.1"])
    assert meter.read().counts["api.1"].requests == 2
    with pytest.raises(Failed):
        meter.read()
    assert meter.read().counts["api.1"].requests == 5


def test_a_restart_that_only_the_errors_tell_is_seen() -> None:
    meter = scripted(one(10, 8), one(20, 3)).open(APPLICATION, ENVIRONMENT, ["api.1"])
    assert meter.read().counts["api.1"] == Counts(requests=20, errors=3)


def test_the_time_of_a_reading_is_from_before_the_look() -> None:
    """Afterwards it would claim to know of requests that came while Traefik was answering."""
    start = datetime(2026, 3, 1, tzinfo=UTC)
    times = iter(start + timedelta(seconds=n) for n in range(9))

    class Slow(Scripted):
        def counts(self, application: str, environment: str) -> Mapping[str, Counts]:
            next(times)
            return super().counts(application, environment)

    edge = cast(Edge, Slow(one(0), one(1)))
    meter = EdgeMetrics(edge, clock=lambda: next(times)).open(APPLICATION, ENVIRONMENT, ["api.1"])
    assert meter.read().at == start + timedelta(seconds=1)
