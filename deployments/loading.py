"""What the commands about load do; ``deployments.cli`` only names their arguments."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deployments import releasing
from deployments.commands import place_of, tags
from deployments.console import Console, table
from deployments.releasing import Place, Started
from domain.errors import SlipwayError, UsageError
from domain.load_profile import PROFILES
from domain.load_report import Figures, LoadOutcome, LoadReport
from domain.verdict import Verdict
from sandbox.home import Home

_STYLES = {LoadOutcome.PASSED: "green", LoadOutcome.TOO_FEW: "yellow"}


@dataclass(frozen=True)
class Asked:
    """The arguments of ``slipway load``."""

    application: str
    environment: str
    profile: str
    users: int
    target: str
    against: int | None = None
    runs: int = 5


def start(home: Home, console: Console, asked: Asked, *, detach: bool) -> int:
    """Start a load test and follow it to its verdict."""
    if asked.profile not in PROFILES:
        raise UsageError(
            "SLP186",
            f"there is no load profile {asked.profile!r}; there are {', '.join(PROFILES)}",
            help="choose one of these; --users changes how many users it has",
        )
    platform, place = place_of(home, console, asked.application, asked.environment)
    flow, what, given = _wanted(asked)
    started = Started(
        f"{flow}/slipway",
        f"load {asked.application} {what} {asked.environment}",
        tags(asked.application, asked.environment, "load", ""),
        {
            "environment": asked.environment,
            "application": asked.application,
            "actor": releasing.who(),
            "platform": platform,
            **given,
        },
    )
    return releasing.start(place, started, console, detach=detach)


def _wanted(asked: Asked) -> tuple[str, str, dict[str, Any]]:
    """The flow, what it is called here, and what it is given besides."""
    if asked.against is not None:
        return "compare", "comparison", {"against": asked.against, "runs": asked.runs}
    given = {"users": asked.users, "target": asked.target}
    if asked.profile == "breakpoint":
        return "find-limit", "breakpoint", given
    return "load-test", asked.profile, {"profile": asked.profile, **given}


def conclude(
    place: Place, report: LoadReport, error: SlipwayError | None, url: str, console: Console
) -> int:
    """Print the report of an ended run; returns its exit code."""
    page = str(Path(place.store) / "reports" / "load" / f"{report.run}.html")
    document: Mapping[str, Any] = {
        **report.model_dump(mode="json"),
        "exit_code": report.exit_code,
        "run_url": url,
        "page": page,
    }
    _tell(report, console)
    where = f"{report.application} -e {report.environment}"
    if error is not None:
        console.error(error, document=document, next=[f"slipway load {where} --profile smoke"])
        return report.exit_code
    console.say(f"the page: {page}")
    console.finish(page, document, next=[f"slipway load {where} --profile baseline"])
    return report.exit_code


def _tell(report: LoadReport, console: Console) -> None:
    console.say("")
    if report.limit:
        steps = [[s.kind, str(s.load), s.verdict, f"{s.per_second:.0f}", _ms(s.p95), s.reason]
                 for s in report.limit.steps]  # fmt: skip
        console.say(table(("STEP", "USERS", "VERDICT", "A SECOND", "P95", "SEEN"), steps))
        for sentence in (report.limit.bottleneck, report.limit.scalability, report.limit.replicas):
            if sentence:
                console.say(f"  {sentence}")
        console.say("")
    rows = [_row(p.figures, "judged" if p.judged else "") for p in report.phases]
    rows += [_row(figures, "") for figures in report.endpoints]
    if rows:
        heads = ("", "REQUESTS", "FAILED", "A SECOND", "P50", "P95", "P99", "LONGEST", "")
        console.say(table(heads, rows))
        console.say("")
    if report.watch:
        console.say(f"watch: {report.watch}")
    for check in (*report.soundness, *report.limits):
        if check.verdict is not Verdict.PASS:
            console.warn(f"{check.name}: {check.reason}")
    word = console.paint(report.outcome, _STYLES.get(report.outcome, "red"))
    console.say(f"{word} {report.sentence()}")


def _row(figures: Figures, note: str) -> list[str]:
    return [
        figures.name,
        str(figures.requests),
        str(figures.failed),
        f"{figures.per_second:.1f}",
        *(_ms(value) for value in (figures.p50, figures.p95, figures.p99, figures.longest)),
        note,
    ]


def _ms(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value / 1000:.2f} s" if value >= 1000 else f"{value:.3g} ms"
