"""What the commands about recovery in another cloud do; ``deployments.cli`` names arguments."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deployments import backing
from deployments.console import Console, table
from deployments.releasing import Place
from domain.drill import SCENARIOS
from domain.drill_report import RecoveryReport
from domain.errors import SlipwayError
from domain.failover import spans
from domain.verdict import Check, Verdict
from sandbox.home import Home


def drill(
    home: Home,
    console: Console,
    application: str,
    environment: str,
    given: Mapping[str, Any],
    *,
    detach: bool,
) -> int:
    """Start a drill and follow it to its report."""
    return backing.start(home, console, "drill", application, environment, given, detach=detach)


def scenarios(console: Console) -> int:
    """The library of game days."""
    rows = [[s.name, s.fault, s.story, s.expected] for s in SCENARIOS.values()]
    text = table(("SCENARIO", "FAULT", "WHAT HAPPENS", "WHAT MUST COME OF IT"), rows)
    document = {"scenarios": [s.model_dump(mode="json") for s in SCENARIOS.values()]}
    console.finish(text, document, next=["slipway drill APP -e production --scenario NAME"])
    return 0


def conclude(
    place: Place, report: RecoveryReport, error: SlipwayError | None, url: str, console: Console
) -> int:
    """Print the report of an ended run; returns its exit code."""
    page = str(Path(place.store) / "reports" / "recovery" / f"{report.run}.html")
    document: Mapping[str, Any] = {
        **report.model_dump(mode="json", exclude={"timeline", "events"}),
        "exit_code": report.exit_code,
        "run_url": url,
        "page": page,
    }
    _tell(report, console)
    where = f"{report.application} -e {report.environment}"
    if error is not None:
        console.error(error, document=document, next=[f"slipway readiness {where}"])
        return report.exit_code
    console.say(f"the page: {page}")
    console.finish(page, document, next=[f"slipway drill {where}"])
    return report.exit_code


def _tell(report: RecoveryReport, console: Console) -> None:
    console.say("")
    if report.phases:
        rows = [[p.name, f"{p.seconds:.2f} s", p.verdict.symbol, p.note] for p in report.phases]
        console.say(table(("PHASE", "TIME", "", "SEEN"), rows))
        console.say("")
    for checks in (report.readiness, report.isolation, report.checks):
        for check in checks:
            _say(check, console)
    for line in report.lines:
        console.say(f"  {line}")
    console.say("")
    console.say(f"{report.outcome}: {report.sentence()}")
    if report.lost_transactions:
        console.say(f"  lost: {spans(report.lost_transactions)}")


def _say(check: Check, console: Console) -> None:
    line = f"{check.verdict.symbol} {check.name}: {check.reason}"
    console.say(line) if check.verdict is Verdict.PASS else console.warn(line)
