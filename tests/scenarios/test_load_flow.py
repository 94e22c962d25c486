"""Load tests as flows on the real sandbox, and the gate that asks for them."""

from __future__ import annotations

from typing import Any

import psutil
import pytest

from domain.journal import live
from domain.load_report import LoadOutcome, LoadReport
from flows.load_test import load_test
from flows.release import release
from tests.scenarios.apps import App
from tests.scenarios.world import World

pytestmark = [pytest.mark.sandbox, pytest.mark.slow]
ATTEMPTS = 3


def load_tested(world: World, app: App, **more: Any) -> LoadReport:
    """The account of a run; one that a hiccup of this machine made unsound is made again."""
    for _ in range(ATTEMPTS):
        state = load_test("staging", app.name, return_state=True, **more)
        report = world.records.load_report(str(state.state_details.flow_run_id))
        assert report is not None, state.message
        assert state.is_completed() == (report.exit_code == 0)
        if report.outcome is not LoadOutcome.UNSOUND:
            break
    return report


def workers() -> list[psutil.Process]:
    return [p for p in psutil.process_iter() if "load.worker" in _command(p)]


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def test_a_release_waits_for_the_load_test_of_the_same_build(world: World, app: App) -> None:
    source = app.write(
        {
            "version": "1.0.0",
            "environments": {
                "staging": {},
                "production": {"require_load": {"environment": "staging", "profile": "smoke"}},
            },
        }
    )
    staged = release("staging", source, return_state=True)
    assert staged.is_completed(), staged.message
    refused = release("production", source, return_state=True)
    assert refused.is_failed() and "was never tested with smoke in staging" in str(refused.message)
    assert live(world.journal(app.name).history()) is None

    report = load_tested(world, app, profile="smoke")
    assert report.outcome is LoadOutcome.PASSED, report.reason
    assert report.total is not None and report.total.failed == 0 and report.total.requests > 3700
    assert report.profile is not None and report.profile.peak == 50
    assert {demand.tier for demand in report.demands} >= {"application", "edge"}
    page = world.platform.store.read(f"reports/load/{report.run}.html")
    assert page is not None and b"passed" in page
    assert workers() == []

    shipped = release("production", source, return_state=True)
    assert shipped.is_completed(), shipped.message


def test_a_target_of_somebody_else_is_refused_and_told(world: World, app: App) -> None:
    world.ship(app.write({"version": "1.0.0", "environments": {"staging": {}}}), "staging")
    report = load_tested(world, app, target="http://example.com")
    assert (report.outcome, report.exit_code) == (LoadOutcome.REFUSED, 2)
    assert report.error is not None and report.error["code"] == "SLP183"
    assert report.total is None
