"""What the commands about recovery in another cloud do; ``deployments.cli`` names arguments."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from blocks.file_store import FileStore
from deployments import backing, releasing
from deployments.commands import place_of, tags
from deployments.console import Console, table
from deployments.releasing import Place, Started
from domain.drill import SCENARIOS
from domain.drill_report import RecoveryReport
from domain.errors import SlipwayError, UsageError
from domain.failover import Approval, spans
from domain.verdict import Check, Verdict
from sandbox.home import Home


def reap(home: Home, console: Console, application: str, environment: str, *, detach: bool) -> int:
    """End every drill of the platform, and remove what is left of any."""
    platform, place = place_of(home, console, application, environment)
    given = {"all_drills": True, "platform": platform}
    started = Started("reap/slipway", "reap drills", tags(application, environment, "reap", ""),
                      given)  # fmt: skip
    return releasing.start(place, started, console, detach=detach)


def move(
    home: Home,
    console: Console,
    flow: str,
    application: str,
    environment: str,
    given: Mapping[str, Any],
    *,
    detach: bool,
) -> int:
    """Start a drill, a failover, a failback, or a look at the standby, and follow it."""
    return backing.start(home, console, flow, application, environment, given, detach=detach)


def approve(
    home: Home,
    console: Console,
    application: str,
    environment: str,
    digest: str,
    person: str,
    break_glass: str,
) -> int:
    """Record one person's yes to a plan.

    Raises:
        UsageError: SLP206, the digest is none.
    """
    if not re.fullmatch(r"[0-9a-f]{16}", digest):
        raise UsageError("SLP206", f"{digest!r} is no digest of a plan",
                         help=f"`slipway failover {application}` shows it")  # fmt: skip
    _, place = place_of(home, console, application, environment)
    yes = Approval(person=person or releasing.who(), plan=digest, at=datetime.now(UTC),
                   break_glass=break_glass)  # fmt: skip
    key = yes.key(application, environment)
    FileStore(place.store).create(key, yes.model_dump_json().encode())
    document = {"plan": digest, "person": yes.person, "break_glass": break_glass or None}
    console.finish(
        f"{yes.person} approved plan {digest}", document,
        next=[f"slipway failover {application} -e {environment} --apply {digest}"],
    )  # fmt: skip
    return 0


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
