"""The gate: the newest whole test of the same build, in the right place, not too old."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from domain.application import LoadGate, parse
from domain.errors import UsageError
from domain.load_gate import refusal
from domain.load_profile import PROFILES
from domain.load_report import LoadOutcome, LoadReport

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
GATE = LoadGate()


def report(**more: object) -> LoadReport:
    given = {
        "application": "shop", "environment": "staging", "version": "1.0", "digest": "sha256:a",
        "run": "1", "actor": "", "started_at": NOW - timedelta(days=1), "seconds": 120,
        "target": "", "behaviours": "", "profile": PROFILES["10k"], "outcome": LoadOutcome.PASSED,
        "reason": "p95 in steady: 20 ms",
    }  # fmt: skip
    return LoadReport.model_validate({**given, **more})


def why(*reports: LoadReport) -> str:
    return refusal(reports, "shop", "sha256:a", GATE, NOW)


def test_a_build_that_passed_may_go_on() -> None:
    assert why(report()) == ""


@pytest.mark.parametrize(
    "more",
    [
        {"digest": "sha256:b"},
        {"environment": "production"},
        {"application": "other"},
        {"profile": PROFILES["smoke"]},
        {"profile": PROFILES["10k"].scaled(100)},
        {"partial": True},
        {"profile": None},
    ],
    ids=["build", "environment", "application", "profile", "fewer users", "partial", "none"],
)
def test_a_test_of_something_else_does_not_count(more: dict[str, object]) -> None:
    assert why(report(**more)) == "this build was never tested with 10k in staging"


def test_no_test_at_all_is_no_pass() -> None:
    assert "never tested" in why()


@pytest.mark.parametrize("outcome", [o for o in LoadOutcome if o is not LoadOutcome.PASSED])
def test_only_a_pass_opens_the_gate(outcome: LoadOutcome) -> None:
    assert f"ended {outcome}" in why(report(outcome=outcome))


def test_a_newer_failure_is_not_outvoted_by_an_older_pass() -> None:
    newer = report(outcome=LoadOutcome.FAILED, started_at=NOW - timedelta(hours=1))
    assert "ended FAILED" in why(report(), newer)
    assert why(report(outcome=LoadOutcome.FAILED), report(started_at=NOW)) == ""


def test_an_old_pass_is_too_old() -> None:
    assert "older than 7d" in why(report(started_at=NOW - timedelta(days=8)))


def test_the_environment_of_a_gate_must_exist() -> None:
    text = """\
name: shop
services: {web: {command: run, port: 8000}}
environments: {production: {require_load: {environment: stagin}}, staging: {}}
"""
    with pytest.raises(UsageError, match="stagin"):
        parse(text, "application.yaml")
