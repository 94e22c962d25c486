"""What every source of counts must do. A new source joins with one more world."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from datetime import timedelta

import pytest
from moto import mock_aws

from blocks.metrics import Meter, Metrics
from domain.errors import Failed
from tests.blocks.observed import (
    APPLICATION,
    ENVIRONMENT,
    WORKLOADS,
    EdgeWorld,
    FakeCloudWatchWorld,
    FakePrometheusWorld,
    MotoCloudWatchWorld,
    RealPrometheus,
    RealPrometheusWorld,
    World,
    open_meter,
)

PROMETHEUS = shutil.which("prometheus")
SOURCES = ["edge", "prometheus_fake", "cloudwatch_fake", "cloudwatch_moto"]
SOURCES += ["prometheus_real"] if PROMETHEUS else []


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealPrometheus]:
    assert PROMETHEUS
    part = RealPrometheus(PROMETHEUS, tmp_path_factory.mktemp("prometheus"))
    try:
        yield part
    finally:
        part.close()


@pytest.fixture(params=SOURCES)
def world(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    built: World
    match request.param:
        case "edge":
            servers = request.getfixturevalue("servers")
            built = EdgeWorld(request.getfixturevalue("own_traefik"), servers["blue"])
        case "prometheus_fake":
            built = FakePrometheusWorld()
        case "prometheus_real":
            built = RealPrometheusWorld(request.getfixturevalue("prometheus"))
        case "cloudwatch_fake":
            built = FakeCloudWatchWorld()
        case "cloudwatch_moto":
            for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
                monkeypatch.setenv(name, "testing")
            with mock_aws():
                yield MotoCloudWatchWorld()
            return
        case other:
            raise AssertionError(f"no world called {other}")
    try:
        yield built
    finally:
        built.close()


def counted(meter: Meter) -> dict[str, tuple[int, int]]:
    """Requests and errors by workload."""
    return {w: (c.requests, c.errors) for w, c in meter.read().counts.items()}


def test_it_is_a_source_of_counts(world: World) -> None:
    assert isinstance(world.metrics, Metrics)
    assert isinstance(open_meter(world), Meter)


def test_what_came_before_the_meter_does_not_count(world: World) -> None:
    for workload in WORKLOADS:
        world.serve(workload, 500)
    world.settle()
    meter = open_meter(world)
    for _ in range(2):
        counts = meter.read().counts
        assert list(counts) == list(WORKLOADS)
        for gained in counts.values():
            assert (gained.requests, gained.errors) == (0, 0)
            assert not any(gained.buckets.values())
        world.settle()


def test_requests_and_errors_are_told_apart_by_workload(world: World) -> None:
    meter = open_meter(world)
    for status in (200, 404, 500, 503):
        world.serve("api.1", status)
    world.serve("api-1")
    world.settle()
    assert counted(meter) == {"api.1": (4, 2), "api-1": (1, 0), "api.10": (0, 0)}


def test_the_first_error_of_a_version_counts(world: World) -> None:
    """PromQL's ``increase`` does not see it: the series begins at 1 and then does not change."""
    meter = open_meter(world)
    world.serve("api-1", 500)
    world.settle()
    assert counted(meter)["api-1"] == (1, 1)


def test_names_that_look_alike_are_not_added_up(world: World) -> None:
    """``api.1`` as a regular expression takes in ``api-1``."""
    meter = open_meter(world, "api.1")
    world.serve("api-1", 500)
    world.serve("api.10", 500)
    world.serve("api.1")
    world.settle()
    assert counted(meter) == {"api.1": (1, 0)}


def test_latency_is_in_buckets_that_end_with_all_requests(world: World) -> None:
    meter = open_meter(world)
    for seconds in (0.0, 0.0, 0.2):
        world.serve("api.1", seconds=seconds)
    world.settle()
    buckets = meter.read().counts["api.1"].buckets
    assert buckets["+Inf"] == 3
    assert list(buckets) == sorted(buckets, key=float)
    assert list(buckets.values()) == sorted(buckets.values())
    if world.has_buckets:
        assert (buckets["0.1"], buckets["1"]) == (2, 3)


def test_reading_changes_nothing(world: World) -> None:
    meter = open_meter(world)
    for expected in (2, 4):
        world.serve("api.1")
        world.serve("api.1", 500)
        world.settle()
        first, second = meter.read(), meter.read()
        assert first.counts == second.counts
        assert first.counts["api.1"].requests == expected
        assert first.counts["api.1"].errors == expected // 2


def test_each_meter_counts_from_its_own_beginning(world: World) -> None:
    early = open_meter(world)
    world.serve("api.1", 500)
    world.settle()
    late = open_meter(world)
    world.serve("api.1")
    world.settle()
    assert counted(early)["api.1"] == (2, 1)
    assert counted(late)["api.1"] == (1, 0)


def test_counters_that_restart_lose_nothing_and_count_nothing_twice(world: World) -> None:
    meter = open_meter(world)
    for _ in range(3):
        world.serve("api.1", 500)
    world.settle()
    assert counted(meter)["api.1"] == (3, 3)
    world.restart()
    world.settle()
    assert counted(meter)["api.1"] == (3, 3)
    for status in (200, 500):
        world.serve("api.1", status)
    world.settle()
    assert counted(meter)["api.1"] == (5, 4)


def test_what_cannot_be_seen_is_an_error_and_never_zero(world: World) -> None:
    """Rivals promote on "no values found", or take a failed query for no errors."""
    meter = open_meter(world)
    world.serve("api.1", 500)
    world.settle()
    assert counted(meter)["api.1"] == (1, 1)
    world.blind()
    for _ in range(2):
        with pytest.raises(Failed) as failed:
            meter.read()
        assert failed.value.code in ("SLP014", "SLP090")
    with pytest.raises(Failed):
        world.metrics.open(APPLICATION, ENVIRONMENT, WORKLOADS)
    world.see()
    world.serve("api.1")
    world.settle()
    assert counted(meter)["api.1"] == (2, 1)


def test_a_reading_says_up_to_when_it_counts(world: World) -> None:
    meter = open_meter(world)
    world.settle()
    first = meter.read()
    world.settle()
    second = meter.read()
    assert first.at.utcoffset() == timedelta()
    assert first.at <= second.at
