"""What a drill, a failover or a failback did: one document for people, ``--json`` and the page."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from typing import Any

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from domain.evidence_chain import Event
from domain.failover import Achieved, Attempt, Phase, Tier, spans
from domain.verdict import Check, Verdict, worst


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class RecoveryOutcome(StrEnum):
    """How it ended."""

    PASSED = "PASSED"
    """As was asked for, within the objectives."""
    MISSED = "MISSED"
    """It came up, and something that was promised was not kept."""
    FAILED = "FAILED"
    """It did not come up."""
    REFUSED = "REFUSED"
    """Nothing was changed."""


class PhaseReport(_Model):
    """One phase."""

    name: Phase
    seconds: float
    verdict: Verdict
    note: str


class Moment(_Model):
    """A tenth part of a second or more of clients' transactions, for the picture."""

    at: float = Field(description="Seconds since the first transaction.")
    good: Mapping[str, int]
    failed: int


class RecoveryReport(_Model):
    """The whole account of one run.

    Attributes:
        drill: its id; empty for the real thing.
        checks: what had to hold, each with the numbers that say so: objectives, production left
            alone, one writable side, every loss listed, nothing left over.
        lost_transactions: acknowledged and not at the side that took over, by number.
        fault_at: seconds since the first transaction.
    """

    kind: str
    application: str
    environment: str
    run: str
    drill: str = ""
    tier: Tier | None = None
    fault: str = ""
    scenario: str = ""
    started_at: AwareDatetime
    outcome: RecoveryOutcome
    reason: str
    phases: tuple[PhaseReport, ...] = ()
    rta_seconds: float | None = None
    rpa_seconds: float | None = None
    rto_seconds: float | None = None
    rpo_seconds: float | None = None
    acknowledged: int = 0
    lost_transactions: tuple[int, ...] = ()
    readiness: tuple[Check, ...] = ()
    isolation: tuple[Check, ...] = ()
    checks: tuple[Check, ...] = ()
    leftovers: tuple[str, ...] = ()
    timeline: tuple[Moment, ...] = ()
    fault_at: float | None = None
    earlier: tuple[float, ...] = Field((), description="RTA of earlier drills of this tier.")
    lines: tuple[str, ...] = ()
    events: tuple[Event, ...] = ()
    seconds: float = 0.0
    error: Mapping[str, Any] | None = None

    @property
    def exit_code(self) -> int:
        if self.outcome is RecoveryOutcome.PASSED:
            return 0
        return int(self.error["exit_code"]) if self.error else 1

    def sentence(self) -> str:
        what = f"{self.kind} of {self.application} in {self.environment}"
        return f"{what}: {self.reason}"

    def markdown(self) -> str:
        """Verdict first, then the numbers."""
        lines = [f"**{self.outcome}**: {self.sentence()}", ""]
        if self.phases:
            lines += ["| phase | seconds | | |", "|---|---|---|---|"]
            lines += [f"| {p.name} | {p.seconds:.2f} | {p.verdict.symbol} | {p.note} |"
                      for p in self.phases]  # fmt: skip
            lines.append("")
        for title, checks in (
            ("readiness", self.readiness), ("isolation", self.isolation), ("checks", self.checks),
        ):  # fmt: skip
            if checks:
                lines += [f"| {title} | | |", "|---|---|---|"]
                lines += [f"| {c.name} | {c.verdict.symbol} {c.verdict} | {c.reason} |"
                          for c in checks]  # fmt: skip
                lines.append("")
        lines += [f"- {line}" for line in self.lines]
        return "\n".join(lines)


def judged(
    done: Achieved, rto: float, rpo: float, phases: Iterable[PhaseReport], others: Iterable[Check]
) -> tuple[RecoveryOutcome, str, tuple[Check, ...]]:
    """The outcome of a run in which users were served again, or were not.

    Args:
        rto: objective in seconds, as ``rpo``.
        others: what else had to hold.
    """
    checks = (
        _within("RTA", done.rta_seconds, rto, "no client had a good transaction"),
        _within("RPA", done.rpa_seconds, rpo, "no heartbeat was recovered"),
        *others,
    )
    bad = [c for c in checks if c.verdict is not Verdict.PASS]
    came_up = done.rta_seconds is not None and all(p.verdict is Verdict.PASS for p in phases)
    figures = (
        f"back after {done.rta_seconds:.1f} s, " if done.rta_seconds is not None else "not back, "
    ) + (
        f"{len(done.lost)} of {done.acknowledged} acknowledged transactions lost"
        + (f" ({_short(spans(done.lost))})" if done.lost else "")
    )
    if not came_up:
        return RecoveryOutcome.FAILED, figures, checks
    if worst(c.verdict for c in checks) is Verdict.PASS:
        return RecoveryOutcome.PASSED, figures, checks
    return RecoveryOutcome.MISSED, f"{figures}; {bad[0].name}: {bad[0].reason}", checks


def of_checks(checks: Sequence[Check]) -> tuple[RecoveryOutcome, str]:
    """The outcome of a scenario in which the failover must stop: every check says so."""
    bad = [c for c in checks if c.verdict is not Verdict.PASS]
    if bad:
        return RecoveryOutcome.MISSED, f"{bad[0].name}: {bad[0].reason}"
    return RecoveryOutcome.PASSED, checks[0].reason


def _within(name: str, value: float | None, limit: float, nothing: str) -> Check:
    if value is None:
        return Check(name=name, verdict=Verdict.NO_DATA, reason=nothing, limit=limit)
    verdict = Verdict.PASS if value <= limit else Verdict.FAIL
    reason = f"{value:.2f} s, the objective is {limit:g} s"
    return Check(name=name, verdict=verdict, reason=reason, value=value, limit=limit)


def _short(text: str) -> str:
    return text if len(text) <= 80 else text[:77] + "..."


def timeline(attempts: Iterable[Attempt], step: float = 0.25) -> tuple[Moment, ...]:
    """Good transactions by address, and failed ones, in steps of so many seconds."""
    found = sorted(attempts, key=lambda a: a.done)
    if not found:
        return ()
    begin = min(a.sent for a in found)
    rows: dict[int, tuple[dict[str, int], list[int]]] = {}
    for attempt in found:
        index = int((attempt.done - begin) / step)
        good, failed = rows.setdefault(index, ({}, []))
        if attempt.acknowledged:
            good[attempt.address] = good.get(attempt.address, 0) + 1
        else:
            failed.append(1)
    return tuple(
        Moment(at=round(index * step, 3), good=good, failed=len(failed))
        for index, (good, failed) in sorted(rows.items())
    )
