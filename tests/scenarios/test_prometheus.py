"""Canaries on the real edge, judged by what a Prometheus server has scraped from it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from blocks.observing import PrometheusServer
from domain.journal import Outcome
from tests.blocks.prometheus_fake import Exposed, FakeClock, FakePrometheus
from tests.scenarios.apps import App
from tests.scenarios.test_canary import version
from tests.scenarios.world import World

pytestmark = pytest.mark.sandbox

SCRAPE_SECONDS = 0.5


class _Now(FakeClock):
    """The real time."""

    def __getattribute__(self, name: str) -> Any:
        return datetime.now(UTC) if name == "now" else super().__getattribute__(name)


class _Traefik(Exposed):
    """What the sandbox's Traefik tells of one application."""

    def __init__(self, url: str, application: str) -> None:
        super().__init__("traefik")
        self.url, self.application = url, application

    def series(self) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
        answer = httpx.get(self.url, trust_env=False, timeout=5).raise_for_status()
        return {
            (sample.name, tuple(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(answer.text)
            for sample in family.samples
            if sample.labels.get("service", self.application).startswith(self.application)
        }


@contextmanager
def prometheus(world: World, application: str) -> Iterator[str]:
    """A server that scrapes the edge; yields the name of its block."""
    server = FakePrometheus(_Now())
    traefik, ended = _Traefik(world.addresses["edge_metrics"], application), threading.Event()

    def scrape() -> None:
        while not ended.wait(SCRAPE_SECONDS):
            server.scrape(traefik)

    thread = threading.Thread(target=scrape, daemon=True)
    thread.start()
    saved: Any = PrometheusServer(url=server.url)
    saved.save(application, overwrite=True)
    try:
        yield application
    finally:
        ended.set()
        thread.join(10)
        server.close()


@pytest.mark.slow
def test_scraped_counters_promote_a_good_version_and_send_a_bad_one_back(
    world: World, app: App
) -> None:
    observe = {"source": "prometheus", "preset": "traefik", "stale_after": "10s"}
    with prometheus(world, app.name) as block, world.users(app.name, rate=200) as users:
        more = {
            "canary": {"steps": ["20%"], "requests": 40},
            "observe": {**observe, "block": block},
        }
        world.ship(version(app, "1.0.0", more))
        good = world.deployed(version(app, "1.1.0", more), strategy="canary")
        assert good.is_completed(), good.message
        bad = world.deployed(version(app, "1.2.0", more, flaky=0.5), strategy="canary")
        users.wait_for(20)
    assert bad.is_failed()
    promoted, taken_back = world.journal(app.name).history()[1:]
    assert (promoted.outcome, taken_back.outcome) == (Outcome.PROMOTED, Outcome.ROLLED_BACK)
    judged = [
        judgement
        for entry in world.journal(app.name).entries
        for judgement in entry.data.get("judgements", ())
    ]
    assert [j["verdict"] for j in judged] == ["pass", "fail"]
    assert all(j["numbers"]["candidate_requests"] > 0 for j in judged)
    world.assert_serves(app.name, "1.1.0")
