"""Load tests over time: a watch for changes of level, on which no verdict hangs."""

from __future__ import annotations

from collections.abc import Iterable

from domain.load_report import LoadOutcome, LoadReport
from domain.regression import change_points

_MEASURED = (LoadOutcome.PASSED, LoadOutcome.FAILED, LoadOutcome.TOO_FEW)


def watch(reports: Iterable[LoadReport], latest: LoadReport) -> str:
    """The last change of level of the p95 in tests like the latest one; empty when there is none.

    Only runs that were measured right and to their end count, of the same users.
    """
    like = sorted(
        (report for report in (*reports, latest) if _key(report) == _key(latest)),
        key=lambda report: report.started_at,
    )
    measured = [(report, p95) for report in like if (p95 := judged_p95(report)) is not None]
    points = change_points([p95 for _, p95 in measured])
    if not points:
        return ""
    last = points[-1]
    since = measured[last.at][0]
    return (
        f"since {since.started_at:%Y-%m-%d %H:%M} UTC ({since.version}) the p95 is "
        f"{last.after:.3g} ms, where it was {last.before:.3g} ms, in {len(measured)} such tests; "
        "a watch, no verdict"
    )


def judged_p95(report: LoadReport) -> float | None:
    """Milliseconds, of its last judged phase; None of a run that says nothing."""
    if report.outcome not in _MEASURED or report.partial:
        return None
    judged = [phase.figures.p95 for phase in report.phases if phase.judged]
    return judged[-1] if judged else None


def _key(report: LoadReport) -> tuple[str, str, str, float]:
    profile = report.profile
    name, peak = (profile.name, profile.peak) if profile else ("", 0.0)
    return report.application, report.environment, name, peak
