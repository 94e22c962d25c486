"""Whether a build may be released, by the load tests that it passed elsewhere."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

from domain.application import LoadGate
from domain.load_profile import PROFILES
from domain.load_report import LoadOutcome, LoadReport
from domain.units import format_duration


def refusal(
    reports: Iterable[LoadReport], application: str, digest: str, gate: LoadGate, now: datetime
) -> str:
    """Why not, in one clause; empty when the newest such test of this build has passed.

    Only a whole test with the profile's own number of users counts, and only the newest: a
    failure after a pass is not outvoted by it.

    Args:
        digest: of the build record; another build's verdict says nothing of this one.
    """
    wanted = f"{gate.profile} in {gate.environment}"
    ours = [
        report
        for report in reports
        if (report.application, report.environment, report.digest)
        == (application, gate.environment, digest)
        and report.profile is not None
        and report.profile.name == gate.profile
        and report.profile.peak >= PROFILES[gate.profile].peak
        and not report.partial
    ]
    if not ours:
        return f"this build was never tested with {wanted}"
    newest = max(ours, key=lambda report: report.started_at)
    if newest.outcome is not LoadOutcome.PASSED:
        return f"its last test with {wanted} ended {newest.outcome}: {newest.reason}"
    if now - newest.started_at > gate.max_age:
        return (
            f"its last test with {wanted} is of {newest.started_at:%Y-%m-%d %H:%M} UTC, older "
            f"than {format_duration(gate.max_age)}"
        )
    return ""
