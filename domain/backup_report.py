"""What one run about backups did: the same document for a person, ``--json`` and the artifact."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import timedelta
from enum import StrEnum
from typing import Any

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from domain.recovery import Manifest, Member, Proof, Rung
from domain.units import format_bytes, format_duration
from domain.verdict import Verdict, worst


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class BackupOutcome(StrEnum):
    """How a run ended; only the first of each pair is what was asked for."""

    PROVED = "PROVED"
    UNPROVED = "UNPROVED"
    """Saved, but a copy is missing or did not climb as high as it must."""
    RESTORED = "RESTORED"
    EXPIRED = "EXPIRED"
    PLANNED = "PLANNED"
    REFUSED = "REFUSED"
    FAILED = "FAILED"
    """Nothing new can be relied on; what there was before is as it was."""


class CopyReport(_Model):
    """What happened to a point at one location."""

    location: str
    verdict: Verdict
    reason: str
    rung: str | None = None
    bytes: int = 0
    seconds: float = 0.0
    restore_seconds: float | None = None
    lost_seconds: float | None = None
    twins_caught: int | None = None
    twins: int | None = None


class KeyReport(_Model):
    """Whether the private key of a recipient can be used from here."""

    name: str
    verdict: Verdict
    reason: str


class BackupReport(_Model):
    """The whole account.

    Attributes:
        lines: what was planned or done, one sentence each, for plans and restores.
    """

    kind: str
    application: str
    environment: str
    run: str
    outcome: BackupOutcome
    reason: str
    point: str | None = None
    data_time: AwareDatetime | None = None
    skew_seconds: float | None = None
    seconds: float = 0.0
    members: tuple[Member, ...] = ()
    copies: tuple[CopyReport, ...] = ()
    keys: tuple[KeyReport, ...] = ()
    lines: tuple[str, ...] = ()
    facts: Mapping[str, Any] = Field(default_factory=dict)
    error: Mapping[str, Any] | None = None

    @property
    def exit_code(self) -> int:
        """0 only for what was asked for."""
        if self.outcome in (
            BackupOutcome.PROVED, BackupOutcome.RESTORED, BackupOutcome.EXPIRED,
            BackupOutcome.PLANNED,
        ):  # fmt: skip
            return 0
        return int(self.error["exit_code"]) if self.error else 1

    def sentence(self) -> str:
        where = f"{self.application} in {self.environment}"
        point = f" point {int(self.point)}" if self.point else ""
        return f"{self.kind} of {where}{point}: {self.reason}"

    def markdown(self) -> str:
        """Verdict first, then the numbers."""
        lines = [f"**{self.outcome}**: {self.sentence()}", ""]
        if self.members:
            lines += ["| member | saved | stored | data time |", "|---|---|---|---|"]
            lines += [_member_row(m) for m in self.members]
            lines.append("")
        if self.copies:
            lines += ["| location | verdict | rung | restored in | note |", "|---|---|---|---|---|"]
            lines += [_copy_row(c) for c in self.copies]
            lines.append("")
        if self.keys:
            lines += ["| key | verdict | note |", "|---|---|---|"]
            lines += [f"| {k.name} | {k.verdict.symbol} {k.verdict} | {k.reason} |"
                      for k in self.keys]  # fmt: skip
            lines.append("")
        lines += [f"- {line}" for line in self.lines]
        return "\n".join(lines)


def _member_row(member: Member) -> str:
    if member.facts is None:
        return f"| {member.kind} | - | - | skipped: {member.skipped} |"
    at = f"{member.facts.data_time:%Y-%m-%d %H:%M:%S}"
    if member.part is None:
        return f"| {member.kind} | - | in its own service | {at} |"
    plain, stored = format_bytes(member.plain_bytes), format_bytes(member.part.bytes)
    return f"| {member.kind} | {plain} | {stored} | {at} |"


def _copy_row(copy: CopyReport) -> str:
    took = f"{copy.restore_seconds:.1f} s" if copy.restore_seconds is not None else "-"
    return (
        f"| {copy.location} | {copy.verdict.symbol} {copy.verdict} | {copy.rung or '-'} | {took} "
        f"| {copy.reason} |"
    )


def copy_of_proof(proof: Proof, needed: Rung, stored_bytes: int, seconds: float) -> CopyReport:
    """The result of a climb at one location."""
    missed = [twin.name for twin in proof.twins if not twin.caught]
    bad = next((r for r in proof.rungs if r.verdict is not Verdict.PASS), None)
    if missed:
        verdict = Verdict.ERROR
        reason = f"the verifier passed a damaged twin ({', '.join(missed)}): do not believe it"
    elif proof.proves(needed):
        verdict, reason = Verdict.PASS, proof.rungs[-1].reason
        if bad is not None:
            reason = f"proved up to {needed.label}; {bad.rung.label}: {bad.reason}"
    else:
        verdict = bad.verdict if bad else Verdict.NOT_RUN
        reason = f"{bad.rung.label}: {bad.reason}" if bad else "the ladder was not climbed"
    return CopyReport(
        location=proof.location,
        verdict=verdict,
        reason=reason,
        rung=proof.reached.label if proof.reached else None,
        bytes=stored_bytes,
        seconds=round(seconds, 3),
        restore_seconds=proof.restore_seconds,
        lost_seconds=proof.lost_seconds,
        twins_caught=sum(t.caught for t in proof.twins) if proof.twins else None,
        twins=len(proof.twins) or None,
    )


def verdict_on(copies: Iterable[CopyReport], keys: Iterable[KeyReport]) -> tuple[Verdict, str]:
    """Of a whole backup, with the reason; a red copy is never hidden behind a green one."""
    copies, keys = tuple(copies), tuple(keys)
    verdict = worst([*(c.verdict for c in copies), *(k.verdict for k in keys)])
    bad = [f"{c.location}: {c.reason}" for c in copies if c.verdict is not Verdict.PASS]
    bad += [f"key {k.name}: {k.reason}" for k in keys if k.verdict is not Verdict.PASS]
    if not copies:
        return Verdict.NOT_RUN, "there is no location"
    if bad:
        return verdict, "; ".join(bad)
    return verdict, f"proved at {', '.join(c.location for c in copies)}"


def described(manifest: Manifest) -> str:
    """One line about what a point holds."""
    held = ", ".join(m.kind for m in manifest.stored)
    skew = format_duration(timedelta(seconds=round(manifest.skew.total_seconds())))
    return (
        f"{held}; {format_bytes(manifest.stored_bytes)} stored, data of "
        f"{manifest.data_time:%Y-%m-%d %H:%M:%S} UTC, {skew} between the members"
    )
