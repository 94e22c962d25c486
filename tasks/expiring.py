"""Carrying out what domain.retention has decided. Every delete of a backup passes here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE

from blocks.object_store import Locked
from blocks.objects_pool import Pool
from blocks.vault import Vault
from domain.backup_report import CopyReport
from domain.errors import Failed, SlipwayError
from domain.recovery import Copy, CopyState, MemberKind, Rung, Tombstone, sequence_of
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


def snapshot(
    vault: Vault, needed: Rung, is_running: Callable[[str], bool], now: datetime
) -> Location:
    """What one location has; a listing that failed is a snapshot with a problem."""
    try:
        pool = Pool(vault)
        copies = vault.copies()
        needs = {copy.point: _needs(pool, copy) for copy in copies}
        points = [_point(copy, needed, is_running, needs[copy.point]) for copy in copies]
        return Location(
            name=vault.location,
            points=points,
            clock=vault.store.clock(),
            # Where one point does not say what it needs, every content may be it.
            pool=() if None in needs.values() else tuple(sorted(pool.contents().items())),
            frozen=vault.held(ALL),
        )
    except SlipwayError as error:
        return Location(vault.location, (), now, problem=error.cause)


def _needs(pool: Pool, copy: Copy) -> frozenset[str] | None:
    """What a point needs of the pool; None when it does not say so and may need anything."""
    if copy.manifest is None:
        return frozenset() if copy.state is CopyState.PARTIAL else None
    if copy.manifest.member(MemberKind.OBJECTS) is None:
        return frozenset()
    return pool.needs(copy.point)


def _point(
    copy: Copy,
    needed: Rung,
    is_running: Callable[[str], bool],
    needs: frozenset[str] | None,
) -> Point:
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
        needs=needs or frozenset(),
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
    if not left:  # what stays against the plan may need any of them
        left += _remove_contents(vault, planned)
    for line in left:
        warn("%s", line)
    return left


def _remove_contents(vault: Vault, planned: Plan) -> list[str]:
    """Contents that no point needs any more."""
    pool = Pool(vault)
    left: list[str] = []
    for content in planned.pool:
        if vault.held(ALL):
            return [*left, "everything is held: contents of the pool stay"]
        try:
            pool.remove(content)
        except Locked as error:
            left.append(f"content {content[:12]} is locked by the store: {error}")
    return left
