"""``slipway status``: one screen of 24 lines at 80 columns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from blocks.file_store import FileStore
from blocks.journal import Journal
from blocks.records import Records
from deployments.console import Console, table
from deployments.releasing import known_applications
from domain.contract import Contraction, contraction_of
from domain.errors import SlipwayError
from domain.journal import Release, live, unfinished
from domain.release import age
from domain.steering import paused_by
from domain.verdict import Verdict
from sandbox import control
from sandbox.control import PartStatus, State, Status
from sandbox.home import Home

LINES = 24
_STATES = {
    State.READY: ("✔", "green"),
    State.STARTING: ("…", "yellow"),
    State.UNHEALTHY: ("✖", "red"),
    State.BACKOFF: ("✖", "red"),
    State.STOPPED: ("■", "red"),
}


@dataclass(frozen=True)
class Live:
    """One application in one environment."""

    application: str
    environment: str
    version: str = ""
    last: Release | None = None
    held: Release | None = None
    problem: str = ""
    progress: Mapping[str, Any] | None = None
    paused: str | None = None
    contraction: Contraction = Contraction.NOT_ASKED

    def to_dict(self) -> dict[str, Any]:
        last, held = self.last, self.held
        return {
            "application": self.application,
            "environment": self.environment,
            "live_version": self.version or None,
            "last_release": last.number if last else None,
            "last_version": last.version if last else None,
            "last_outcome": last.outcome if last else None,
            "last_reason": last.reason if last else None,
            "lock": {"holder": held.actor, "since": held.started_at.isoformat(), "run": held.run}
            if held
            else None,
            "progress": self.progress,
            "paused": self.paused,
            "contraction": self.contraction.value,
            "problem": self.problem or None,
        }


def show(home: Home, console: Console) -> int:
    """Print everything; returns 0 only when every part is ready."""
    status = control.status(home)
    found = read_all(home)
    healthy = status is not None and status.ready
    document = {
        "home": str(home.root),
        "running": status is not None,
        "healthy": healthy,
        "parts": status.public()["parts"] if status else [],
        "addresses": status.public()["addresses"] if status else {},
        "notes": list(status.notes) if status else [],
        "applications": [one.to_dict() for one in found],
    }
    lines = [*_sandbox(home, status, console), *_applications(found, console)]
    console.finish("\n".join(_fit(lines)), document, next=_next(status, found))
    return 0 if healthy else 1


def read_all(home: Home) -> list[Live]:
    """What every journal says, unfinished releases first."""
    names = known_applications(home.store)
    found = [_read(home, a, e) for a in sorted(names) for e in sorted(names[a])]
    return sorted(found, key=lambda one: (not one.problem, one.held is None))


def _read(home: Home, application: str, environment: str) -> Live:
    store = FileStore(home.store)
    try:
        journal = Journal(store, application, environment)
    except SlipwayError as error:
        return Live(application, environment, problem=f"error[{error.code}]: {error.cause}")
    history = journal.history()
    current, held = live(history), unfinished(history)
    return Live(
        application,
        environment,
        version=current.version if current else "",
        last=history[-1] if history else None,
        held=held,
        progress=_progress(store, held, application, environment),
        paused=paused_by(e for e in journal.entries if e.release == held.number) if held else None,
        contraction=contraction_of(journal.entries, current.number)
        if current
        else Contraction.NOT_ASKED,
    )


def _progress(
    store: FileStore, held: Release | None, application: str, environment: str
) -> dict[str, Any] | None:
    """How far the release under way is with its evidence; None when it collects none."""
    found = Records(store).progress(application, environment) if held else None
    return found if found and held and found["release"] == held.number else None


def _sandbox(home: Home, status: Status | None, console: Console) -> list[str]:
    if status is None:
        return [f"sandbox: {console.paint('■ not running', 'red')}  ({home.root})"]
    broken = sum(part.state is not State.READY for part in status.parts)
    state = f"✖ {broken} of {len(status.parts)} parts not ready" if broken else "✔ healthy"
    head = console.paint(state, "red" if broken else "green")
    rows = [_row(part) for part in status.parts]
    lines = table(("part", "state", "pid", "address"), rows).splitlines()
    reasons = [
        f"  {part.name}: {part.reason}; log {part.log}"
        for part in status.parts
        if part.state is not State.READY and part.reason
    ]
    logs = f"logs: {home.logs}/PART.log"
    return [f"sandbox: {head}  pid {status.pid}", *lines, *reasons, logs]


def _row(part: PartStatus) -> tuple[str, str, str, str]:
    symbol, _ = _STATES[part.state]
    again = f" (restarted {part.restarts}×)" if part.restarts else ""
    return part.name, f"{symbol} {part.state}{again}", str(part.pid or ""), part.address


def _applications(found: list[Live], console: Console) -> list[str]:
    if not found:
        return ["applications: none was released yet"]
    rows = [
        (one.application, one.environment, one.version or "nothing", _last(one, console))
        for one in found
    ]
    lines = table(("application", "environment", "live", "last release"), rows).splitlines()
    held = [line for one in found if one.held for line in _held(one)]
    owed = [line for one in found for line in _owed(one)]
    return [*lines, *held, *owed]


def _last(one: Live, console: Console) -> str:
    if one.problem:
        return f"✖ {one.problem}"
    if one.last is None:
        return ""
    when = age(one.last.started_at, datetime.now(UTC))
    word = console.outcome(one.last.outcome) if one.last.outcome else "… under way"
    return f"{one.last.number}: {one.last.version} {word}, {when} ago"


def _held(one: Live) -> Iterator[str]:
    assert one.held is not None
    since = f"{one.held.started_at:%H:%M} UTC"
    where = f"  {one.application} {one.environment}"
    yield f"{where}: held by {one.held.actor} since {since}, run {one.held.run}"
    if one.paused:
        yield f"{where}: paused by {one.paused}"
    if step := one.progress:
        symbol = Verdict(step["verdict"]).symbol
        yield (
            f"{where}: step {step['step']} of {step['steps']}, {step['weight']}% to "
            f"{one.held.version}: {symbol} {step['verdict']}: {step['reason']}"
        )


def _owed(one: Live) -> Iterator[str]:
    if one.contraction in (Contraction.DUE, Contraction.BEGUN):
        yield (
            f"  {one.application} {one.environment}: contraction of {one.version} is "
            f"{one.contraction}; once no older version is kept: slipway recover {one.application} "
            f"--environment {one.environment}"
        )


def _fit(lines: list[str]) -> list[str]:
    if len(lines) <= LINES:
        return lines
    return [*lines[: LINES - 1], f"... and {len(lines) - LINES + 1} more lines: status --json"]


def _next(status: Status | None, found: list[Live]) -> list[str]:
    held = [
        f"slipway watch {one.held.run}; when that run is dead: slipway recover "
        f"{one.application} --environment {one.environment}"
        for one in found
        if one.held
    ]
    if status is None:
        return ["slipway up"]
    if not status.ready:
        return ["slipway doctor", *held]
    if held:
        return held
    return [f"open {status.addresses['prefect_ui']}"]
