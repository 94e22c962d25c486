"""Releases against a world in memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from blocks import journal as journals
from domain.verdict import Check, Verdict
from tasks import candidates, releasing, rollout
from tests.tasks.world import World


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    world = World()

    def smoke(targets: list[tuple[str, Any, Any]], what: str) -> list[Check]:
        world.users()
        asked = [
            world.weights() or [base] if base == "public" else [base] for base, _, _ in targets
        ]
        return [
            Check(
                name="GET /",
                verdict=Verdict.FAIL if set(names) & world.sick else Verdict.PASS,
                reason=f"{names} was asked",
                samples=1,
            )
            for names in asked
        ]

    for step in ("_scale", "_route", "_stop", "_retire"):
        monkeypatch.setattr(rollout, step, getattr(rollout, step).fn)
    monkeypatch.setattr(rollout, "_smoke", smoke)
    monkeypatch.setattr(rollout, "publish_moves", lambda journal, number: None)
    monkeypatch.setattr(rollout, "time", world)
    monkeypatch.setattr(candidates, "time", world)
    monkeypatch.setattr(journals, "_steady_clock", lambda: world.now)
    monkeypatch.setattr(releasing, "run_id", lambda: world.run)
    monkeypatch.setattr(releasing, "_logger", lambda: world.log.append)
    yield world
    world.hit_at = -1
    journal = world.journal()  # raises when its chain is broken
    assert all(b"hunter2" not in entry.to_bytes() for entry in journal.entries)
