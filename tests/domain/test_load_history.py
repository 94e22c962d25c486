"""The watch over earlier load tests."""

from __future__ import annotations

from datetime import timedelta

import pytest

from domain.load_history import judged_p95, watch
from domain.load_profile import PROFILES
from domain.load_report import Figures, LoadOutcome, LoadReport, PhaseFigures
from tests.domain.test_load_gate import NOW, report


def test_of(day: int, p95: float, **more: object) -> LoadReport:
    figures = Figures(
        name="steady", requests=1000, failed=0, per_second=10, p50=1, p90=2, p95=p95, p99=9,
        longest=9, service_p95=p95, bytes=0,
    )  # fmt: skip
    phase = PhaseFigures(begin=0, end=60, judged=True, start_level=1, end_level=1, figures=figures)
    given = {"started_at": NOW + timedelta(days=day), "version": f"1.{day}", "phases": (phase,)}
    return report(**{**given, **more})


test_of.__test__ = False  # type: ignore[attr-defined]
NOISE = (0.0, 0.3, -0.2, 0.1, -0.3, 0.2, -0.1, 0.25)


def history(*levels: float) -> list[LoadReport]:
    return [
        test_of(8 * number + at, level + noise)
        for number, level in enumerate(levels)
        for at, noise in enumerate(NOISE)
    ]


def test_a_level_that_changed_is_told_with_its_version() -> None:
    *before, latest = history(20, 30)
    said = watch(before, latest)
    assert "(1.8) the p95 is 30 ms, where it was 20 ms, in 16 such tests" in said
    assert "no verdict" in said
    assert watch(reversed(before), latest) == said


def test_a_steady_level_says_nothing() -> None:
    *before, latest = history(20, 20)
    assert watch(before, latest) == ""
    assert watch([], latest) == ""


@pytest.mark.parametrize(
    "more",
    [
        {"outcome": LoadOutcome.UNSOUND},
        {"partial": True},
        {"profile": PROFILES["smoke"]},
        {"environment": "production"},
        {"application": "other"},
    ],
    ids=["unsound", "partial", "profile", "environment", "application"],
)
def test_a_run_of_something_else_does_not_count(
    more: dict[str, object],
) -> None:
    *before, latest = history(20)
    strange = [test_of(-day, 90, **more) for day in range(1, 9)]
    assert watch([*before, *strange], latest) == ""


def test_a_run_without_a_judged_phase_has_no_number() -> None:
    assert judged_p95(report()) is None
    assert judged_p95(test_of(1, 5.5)) == 5.5
