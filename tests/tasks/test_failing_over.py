"""What one phase of a failover waits for, and what it never does."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from domain.errors import Failed
from domain.verdict import Check, Verdict
from tasks import failing_over
from tasks.failing_over import Failover


def failover(writable: Iterator[bool], smoke: Verdict = Verdict.PASS) -> Failover:
    """One whose new side shows these states, one a look."""
    move = object.__new__(Failover)
    fence = SimpleNamespace(state=lambda: SimpleNamespace(writable=next(writable)))
    check = Check(name="smoke", verdict=smoke, reason="/healthz: 200")
    move.standby = SimpleNamespace(name="gcp", fence=fence, smoke=lambda: check)  # type: ignore[assignment]
    return move


def test_a_keeper_that_starts_late_costs_no_failover() -> None:
    """On a full machine nobody had renewed a lease of 1.5 s after 1.6 s; one of 200 drills
    failed of it."""
    assert failover(iter([False, False, True]))._verify() == "/healthz: 200"


def test_a_database_that_stays_closed_gets_no_users(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failing_over, "_FIT_SECONDS", 0.1)
    looks = iter(lambda: False, True)
    with pytest.raises(Failed, match="the database of gcp refuses writes") as stopped:
        failover(looks)._verify()
    assert stopped.value.code == "SLP210" and "keeper" in (stopped.value.help or "")


def test_a_side_whose_smoke_checks_fail_gets_no_users(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failing_over, "_FIT_SECONDS", 0.1)
    with pytest.raises(Failed, match="not fit for users") as stopped:
        failover(iter([True]), Verdict.FAIL)._verify()
    assert stopped.value.code == "SLP210"
