"""Carrying out what domain.retention has decided. Every delete of a backup passes here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE

from blocks.object_store import Locked
from blocks.vault import Vault
from domain.application import Backups
from domain.backup_report import CopyReport
from domain.errors import Failed, SlipwayError
from domain.recovery import Copy, CopyState, Rung, Tombstone, sequence_of
from domain.retention import (
    ALL,
    Act,
    Location,
    Plan,
    Point,
    Policy,
    Refusal,
    gate,
    plan,
)
from domain.verdict import Verdict


def policy_of(declared: Backups) -> Policy:
    return Policy(
        retention=declared.retention,
        grace=declared.grace,
        keep_proved=declared.keep_proved,
        weekly=declared.weekly,
        monthly=declared.monthly,
    )


def snapshot(
    vault: Vault, needed: Rung, is_running: Callable[[str], bool], now: datetime
) -> Location:
    """What one location has; a listing that failed is a snapshot with a problem."""
    try:
        points = [_point(copy, needed, is_running) for copy in vault.copies()]
        return Location(
            name=vault.location,
            points=points,
            clock=vault.store.clock(),
            frozen=vault.held(ALL),
        )
    except SlipwayError as error:
        return Location(vault.location, (), now, problem=error.cause)


def _point(copy: Copy, needed: Rung, is_running: Callable[[str], bool]) -> Point:
    manifest, partial = copy.manifest, copy.state is CopyState.PARTIAL
    assert copy.stored_at is not None
    return Point(
        point=copy.point,
        sequence=sequence_of(copy.point),
        state=copy.state,
        data_time=manifest.data_time if manifest else None,
        stored_at=copy.stored_at,
        proved=copy.proved(needed) is not None,
        held=copy.held,
        running=partial and bool(copy.run) and is_running(copy.run),
        tombstoned_at=copy.tombstoned_at,
        bytes=manifest.stored_bytes if manifest else 0,
    )


@dataclass(frozen=True)
class Decided:
    """One location's plan and, where it may not be carried out, why."""

    plan: Plan
    refusal: Refusal | None


@task(name="plan expiry", task_run_name="plan expiry at {vault.location}", cache_policy=NO_CACHE)
def decide(
    vault: Vault,
    policy: Policy,
    needed: Rung,
    is_running: Callable[[str], bool],
    now: datetime,
    approved: str = "",
) -> Decided:
    """What would go, with a reason for everything, and whether it may."""
    location = snapshot(vault, needed, is_running, now)
    planned = plan(location, policy, now)
    refusal = gate(location, planned, policy, now, approved=approved)
    log = get_run_logger()
    for line in planned.lines(now):
        log.info("%s", line)
    return Decided(planned, refusal)


@task(name="expire", task_run_name="expire at {vault.location}", cache_policy=NO_CACHE)
def carry_out(vault: Vault, decided: Decided, now: datetime) -> CopyReport:
    """Do what was decided; what was refused is not done."""
    if decided.refusal is not None:
        return CopyReport(
            location=vault.location, verdict=Verdict.ERROR, reason=decided.refusal.reason
        )
    left = apply(vault, decided.plan, now, warn=get_run_logger().warning)
    reason = decided.plan.summary()
    if left:
        reason += f"; {len(left)} stay for now: {left[0]}"
    return CopyReport(location=vault.location, verdict=Verdict.PASS, reason=reason)


def apply(vault: Vault, planned: Plan, now: datetime, warn: Callable[..., None]) -> Sequence[str]:
    """Carry out a plan; killed anywhere, the next plan finds what is left to do.

    A hold that came after the plan wins: it is read again before every point.

    Returns:
        What could not go, a sentence each.
    """
    left: list[str] = []
    for step in planned.deletes:
        point = step.point.point
        try:
            if why := vault.held(ALL) or vault.held(point):
                raise Failed("SLP112", f"point {int(point)} is held: {why}", help="it stays")
            stone = Tombstone(point=point, at=now, plan=planned.digest, reason=step.reason)
            vault.bury(stone)
            if step.act is Act.SWEEP and vault.store.stat(vault.lineage.manifest(point)):
                vault.unbury(point)  # finished between our look and our tombstone
                raise Failed("SLP112", f"point {int(point)} was finished", help="it stays")
            if step.act is not Act.TOMBSTONE:
                vault.purge(point)
        except Locked as error:
            left.append(f"point {int(point)} is locked by the store: {error}")
        except SlipwayError as error:
            if error.code != "SLP112":
                raise
            left.append(error.cause)
    for line in left:
        warn("%s", line)
    return left
