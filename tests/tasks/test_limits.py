"""The search for the most users, with runs that are made up in place of load."""

from __future__ import annotations

import logging
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from domain.application import Objectives, Service
from domain.load_plan import LoadPlan, Target
from domain.load_profile import PROFILES
from domain.load_run import Run
from domain.load_verdict import LoadVerdict
from domain.units import parse_duration
from domain.verdict import Verdict
from tasks import limits
from tests.domain.test_load_verdict import tick

HOLDS, HOPELESS = 2500, 3500


def made_up(plan: LoadPlan) -> Run:
    """A tenth of the users ask each second; beyond ``HOPELESS`` it is ended in the ramp."""
    users = plan.profile.peak
    run, chance = Run(plan.profile, 1), random.Random(3)
    ends = plan.profile.seconds
    if users >= HOPELESS:
        run.hopeless = "p95 was 5.13 s for 10 s, the limit is 200ms"
        ends = plan.profile.phases[0].seconds
    slow = 0.05 if users <= HOLDS else 0.5
    for second in range(int(ends)):
        phase = plan.profile.phase_at(second).name
        run.add(0, tick(second + 1, phase, chance, slow=slow, rate=max(1, int(users / 10))))
    return run


def by_users(run: Run, objectives: Objectives) -> LoadVerdict:
    good = run.profile.peak <= HOLDS
    return LoadVerdict(Verdict.PASS if good else Verdict.FAIL, "by the number of users", (), ())


def test_a_step_that_ended_early_costs_the_search_nothing_but_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After twenty minutes it ended in "a level has at least one user and some throughput"."""
    stopped: list[float] = []

    def put_load(_: Any, __: Any, ___: str, plan: LoadPlan, folder: Path) -> Run:
        run = made_up(plan)
        stopped.extend([run.profile.peak] if run.hopeless else [])
        return run

    monkeypatch.setattr(limits, "put_load", put_load)
    monkeypatch.setattr(limits, "judge", by_users)
    monkeypatch.setattr(limits, "get_run_logger", lambda: logging.getLogger("test"))
    service = Service.model_validate({"command": "x", "port": 1})
    record: Any = SimpleNamespace(
        application=SimpleNamespace(
            objectives=Objectives(p95=parse_duration("200ms")),
            services={"web": service}, first_service="web",
        )
    )  # fmt: skip
    profile = PROFILES["breakpoint"].scaled(2000)
    plan = LoadPlan(profile=profile, target=Target("http", "127.0.0.1", 1, "127.0.0.1"),
                    workers=1, seed=1)  # fmt: skip
    found, _, _ = limits.find_limit(None, record, "production", plan, 9e9, tmp_path)  # type: ignore[arg-type]
    assert stopped
    assert found.passed is not None and 0.8 * HOLDS < found.passed <= HOLDS
    assert "scalability law" in found.scalability
    assert found.replicas
