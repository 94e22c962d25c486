"""Whole canaries on what others count: a Prometheus server, asked over HTTP, and CloudWatch.

Both are fed with what the edge counts, on the world's clock. A source that fails in the middle of a
canary holds it or sends it back by the policy of application.yaml; it never promotes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Protocol

import pytest

from blocks import observing
from blocks.cloudwatch import CloudWatchMetrics
from blocks.observing import CloudWatchAccount, PrometheusServer
from blocks.prometheus import PrometheusMetrics
from domain.application import Strategy
from domain.journal import Entry, Kind, Outcome
from domain.routing import Counts
from tasks import rollout
from tests.blocks.cloudwatch_fake import FakeCloudWatch, group_of
from tests.blocks.observed import TEMPLATES
from tests.blocks.prometheus_fake import SCRAPE, Exposed, FakeClock, FakePrometheus
from tests.tasks.world import START, World

STABLE, CANDIDATE = "shop.test.web.r1", "shop.test.web.r2"
CANARY = """
services: {web: {command: run, replicas: {default: 2}}}
canary: {steps: [25%, 50%], requests: 20, patience: PATIENCE}
observe: OBSERVE
"""


class Source(Protocol):
    """What counts for somebody else, and how it fails."""

    observe: dict[str, Any]
    patience: str

    def feed(self, now: datetime) -> None:
        """It takes in what the edge has counted by now."""

    def go_silent(self) -> None:
        """Nothing new comes in any more."""

    def fail(self) -> None:
        """It answers, and not what was asked for."""

    def mend(self) -> None: ...


class CountedByPrometheus:
    """A server that scrapes the edge."""

    def __init__(self, world: World, patch: pytest.MonkeyPatch) -> None:
        self.world, self.clock, self.exposed = world, FakeClock(), Exposed()
        self.server = FakePrometheus(self.clock)
        self.observe = {
            "source": "prometheus",
            "block": "counts",
            "templates": TEMPLATES.model_dump(exclude_none=True),
        }
        self.patience, self.silent = "5m", False
        self.scraped = START - SCRAPE
        patch.setattr(observing, "PrometheusMetrics", partial(PrometheusMetrics, clock=self.clock))
        patch.setattr(observing, "_load", lambda kind, name: PrometheusServer(url=self.server.url))

    def feed(self, now: datetime) -> None:
        self.clock.now = now
        if self.silent or now - self.scraped < SCRAPE:
            return
        self.scraped = now
        for workload, counts in self.world.counted.items():
            self.exposed.requests[workload, "200"] = counts.requests - counts.errors
            self.exposed.requests[workload, "502"] = counts.errors
            for bound, count in counts.buckets.items():
                self.exposed.buckets[workload, bound] = count
        self.server.scrape(self.exposed)

    def go_silent(self) -> None:
        self.silent = True

    def fail(self) -> None:
        page = b"<!doctype html><title>Please log in</title>"
        self.server.fault = lambda query: (200, {"content-type": "text/html"}, page)

    def mend(self) -> None:
        self.silent, self.server.fault = False, lambda query: None


class CountedByCloudWatch:
    """A load balancer that reports minute by minute."""

    def __init__(self, world: World, patch: pytest.MonkeyPatch) -> None:
        self.world, self.clock, self.server = world, FakeClock(), FakeCloudWatch()
        self.observe: dict[str, Any] = {"source": "cloudwatch", "block": "counts"}
        self.patience, self.silent = "15m", False
        self.reported: dict[str, Counts] = {}
        metrics = partial(
            CloudWatchMetrics,
            clock=self.clock,
            monotonic=self.clock.monotonic,
            bounds_seconds=(0.1, 0.5),
        )
        patch.setattr(observing, "CloudWatchMetrics", metrics)
        patch.setattr(observing, "Balancers", lambda *clients: self)
        patch.setattr(CloudWatchAccount, "client", lambda account, service: self.server)
        account = CloudWatchAccount(region="eu-central-1")
        patch.setattr(observing, "_load", lambda kind, name: account)

    def find(self, application: str, environment: str, workload: str) -> Any:
        return group_of(workload)

    def feed(self, now: datetime) -> None:
        self.clock.now = now
        if self.silent:
            return
        for workload, counts in self.world.counted.items():
            new = counts.since(self.reported.get(workload, Counts()))
            self.reported[workload] = counts
            self.server.put("HealthyHostCount", workload, now, 2)
            self.server.put("RequestCount", workload, now, *[1] * new.requests)
            self.server.put("TargetResponseTime", workload, now, *[0.05] * new.requests)
            self.server.put("HTTPCode_Target_5XX_Count", workload, now, *[1] * new.errors)

    def go_silent(self) -> None:
        self.silent = True

    def fail(self) -> None:
        self.server.error = "InternalServiceFault"

    def mend(self) -> None:
        self.silent, self.server.error = False, None


@pytest.fixture(params=["prometheus", "cloudwatch"])
def source(
    request: pytest.FixtureRequest, world: World, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Source]:
    world.rate = 20
    monkeypatch.setattr(rollout, "LOOK_SECONDS", 5.0)  # minutes pass, and nothing happens in most
    if request.param == "cloudwatch":
        yield CountedByCloudWatch(world, monkeypatch)
        return
    found = CountedByPrometheus(world, monkeypatch)
    yield found
    found.server.close()


def ship(world: World, source: Source, at: Callable[[float], None] = lambda seconds: None) -> Any:
    """Release 2 as a canary over release 1; ``at`` is called at each moment of its second step,
    with the seconds since that began."""
    observe = json.dumps(source.observe)
    text = CANARY.replace("OBSERVE", observe).replace("PATIENCE", source.patience)
    sleep, began = world.sleep, 0.0

    def fed(seconds: float) -> None:
        nonlocal began
        sleep(seconds)
        if world.weights().get(CANDIDATE) == 50:
            began = began or world.seconds
            at(world.seconds - began)
        source.feed(START + timedelta(seconds=world.seconds))

    world.ship("1", text=text)
    source.feed(START + timedelta(seconds=world.seconds))
    world.sleep = fed  # type: ignore[method-assign]
    return world.ship("2", Strategy.CANARY, text)


def entries(world: World, kind: Kind) -> list[Entry]:
    return [e for e in world.journal().entries if e.release == 2 and e.kind is kind]


def test_a_good_version_is_promoted_on_it_alone(world: World, source: Source) -> None:
    assert ship(world, source).outcome is Outcome.PROMOTED
    assert world.weights() == {CANDIDATE: 100}
    judged = [j for e in entries(world, Kind.STEP_PASSED) for j in e.data.get("judgements", ())]
    assert [(j["weight"], j["verdict"]) for j in judged] == [(25, "pass"), (50, "pass")]
    assert all(j["numbers"]["candidate_requests"] >= 20 for j in judged)


def test_a_bad_version_is_rolled_back_on_it_alone(world: World, source: Source) -> None:
    """No smoke check sees what users meet."""
    world.faulty = {CANDIDATE}
    assert ship(world, source).outcome is Outcome.ROLLED_BACK
    assert world.weights() == {STABLE: 100}
    assert not entries(world, Kind.STEP_PASSED)
    (aborting,) = entries(world, Kind.ABORTING)
    assert aborting.data["code"] == "SLP059"
    (judged,) = aborting.data["judgements"]
    assert judged["verdict"] == "fail" and judged["numbers"]["candidate_errors"] > 0


@pytest.mark.parametrize(
    ("fault", "reason"),
    [("go_silent", "has not got its evidence within"), ("fail", "could not be seen for 1m")],
)
def test_one_that_fails_in_the_middle_holds_the_step_and_then_sends_it_back(
    world: World, source: Source, fault: str, reason: str
) -> None:
    """Flagger #1011: there a canary goes on to advance when its numbers stop coming."""

    def break_it(seconds: float) -> None:
        getattr(source, fault)()

    assert ship(world, source, break_it).outcome is Outcome.ROLLED_BACK
    assert world.weights() == {STABLE: 100}
    assert len(entries(world, Kind.STEP_PASSED)) == 1
    (aborting,) = entries(world, Kind.ABORTING)
    assert aborting.data["code"] == "SLP059" and reason in aborting.data["reason"]


@pytest.mark.parametrize("fault", ["go_silent", "fail"])
def test_one_that_comes_back_in_time_costs_only_time(
    world: World, source: Source, fault: str
) -> None:
    def break_it_for_a_while(seconds: float) -> None:
        getattr(source, fault)() if seconds < 40 else source.mend()

    assert ship(world, source, break_it_for_a_while).outcome is Outcome.PROMOTED
    assert world.weights() == {CANDIDATE: 100}
