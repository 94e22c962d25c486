"""How a run about backups is told at the command line."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from deployments.console import Console, table
from domain.backup_report import BackupOutcome, BackupReport
from domain.errors import SlipwayError
from domain.units import format_bytes
from domain.verdict import Verdict

_GOOD = {
    BackupOutcome.PROVED, BackupOutcome.RESTORED, BackupOutcome.EXPIRED, BackupOutcome.PLANNED,
}  # fmt: skip


def conclude(report: BackupReport, error: SlipwayError | None, url: str, console: Console) -> int:
    """Print the report of an ended run; returns its exit code."""
    document: Mapping[str, Any] = {
        **report.model_dump(mode="json"),
        "exit_code": report.exit_code,
        "run_url": url,
    }
    _tell(report, console)
    if error is not None:
        console.error(error, document=document, next=_next(report))
        return error.exit_code
    console.finish(url, document, next=_next(report))
    return report.exit_code


def _tell(report: BackupReport, console: Console) -> None:
    console.say("")
    for line in report.lines:
        console.say(f"  {line}")
    if report.members:
        rows = [
            [m.kind, format_bytes(m.plain_bytes), format_bytes(m.part.bytes),
             f"{m.facts.data_time:%Y-%m-%d %H:%M:%S}"]
            if m.part and m.facts
            else [m.kind, "-", "own service", f"{m.facts.data_time:%Y-%m-%d %H:%M:%S}"]
            if m.facts
            else [m.kind, "-", "-", f"skipped: {m.skipped}"]
            for m in report.members
        ]  # fmt: skip
        console.say(table(("MEMBER", "SAVED", "STORED", "DATA TIME (UTC)"), rows))
        console.say("")
    if report.copies:
        rows = [
            [c.location, f"{c.verdict.symbol} {c.verdict}", c.rung or "-", _took(c.restore_seconds),
             f"{c.twins_caught} of {c.twins}" if c.twins else "-", c.reason]
            for c in report.copies
        ]  # fmt: skip
        heads = ("LOCATION", "VERDICT", "PROVED UP TO", "RESTORED IN", "TWINS CAUGHT", "NOTE")
        console.say(table(heads, rows))
    for key in report.keys:
        if key.verdict is not Verdict.PASS:
            console.warn(f"key {key.name}: {key.reason}")
    style = "green" if report.outcome in _GOOD else "red"
    console.say(f"{console.paint(report.outcome, style)} {report.sentence()}")


def _took(seconds: float | None) -> str:
    return f"{seconds:.1f} s" if seconds is not None else "-"


def _next(report: BackupReport) -> list[str]:
    where = f"{report.application} -e {report.environment}"
    if report.point and report.outcome is BackupOutcome.UNPROVED:
        return [f"slipway verify {where} --point {int(report.point)}", f"slipway backups {where}"]
    return [f"slipway backups {where}"]
