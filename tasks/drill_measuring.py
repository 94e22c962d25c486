"""The failover of a drill, and what it achieved and lost."""

from __future__ import annotations

import time
from datetime import datetime

from prefect import task
from prefect.cache_policies import NO_CACHE

from blocks import drill_processes
from blocks.divergence import unshipped
from domain.drill import Fault
from domain.errors import SlipwayError
from domain.failover import Achieved, achieved, spans
from domain.verdict import Check, Verdict
from tasks.drill_faults import region
from tasks.drill_world import World
from tasks.failing_over import Failover

_SETTLE_SECONDS = 1.0


def rehearse(world: World, failover: Failover) -> Check | None:
    """Run the failover; of a scenario in which a phase must stop it, say whether that one did.

    Raises:
        SlipwayError: what stopped a failover that should have come about.
    """
    scenario = world.wanted.scenario
    if scenario is None or scenario.stops_at is None:
        failover.run()
        return None
    try:
        failover.run()
    except SlipwayError as error:
        stopped = failover.reports[-1].name
        assert world.clients is not None and world.standby is not None
        led = [a for a in world.clients.attempts() if a.address == world.standby.address]
        good = stopped is scenario.stops_at and not led
        return Check(
            name="stopped where it must",
            verdict=Verdict.PASS if good else Verdict.FAIL,
            reason=f"at `{stopped}`, {len(led)} requests of users had reached the new side: "
            f"{error.cause}",
        )
    return Check(name="stopped where it must", verdict=Verdict.FAIL,
                 reason=f"it went on after `{scenario.stops_at}`")  # fmt: skip


@task(name="measure", cache_policy=NO_CACHE)
def measure(world: World, stopped: Check | None) -> tuple[Achieved, list[Check]]:
    """What was achieved, from what clients met and what the data of the new side says.

    Args:
        stopped: the failover was not to come about, so nobody needs to have been served.
    """
    assert world.clients is not None and world.standby is not None and world.watch is not None
    time.sleep(_SETTLE_SECONDS)  # of users on the new side
    if world.wanted.fault is Fault.FREEZE:
        drill_processes.thaw(region(world))
        world.tell("the old side goes on again")
        time.sleep(_SETTLE_SECONDS)
    attempts = world.clients.close()
    before = [a for a in attempts if a.sent <= world.fault_at]
    recovered = recovered_keys(world)
    beat = _beat_before(world)
    checks = [world.watch.verdict(), _listed(recovered), *_old_side(world)]
    after = [a.sequence for a in attempts if a not in before and a.acknowledged]
    done = achieved(attempts, world.fault_at, world.standby.address, recovered, beat)
    world.tell("measured", before=len(before), after=spans(after), lost=spans(done.lost))
    return done, checks


def recovered_keys(world: World) -> frozenset[int] | None:
    """Numbers of the transactions that the standby's database has; None when it does not say.

    Without a file of transactions the clients only read, so there is nothing to lose.
    """
    assert world.clients is not None and world.standby is not None
    if not world.clients.ledger:
        return frozenset(a.sequence for a in world.clients.attempts())
    prefix = world.clients.plan.prefix
    try:
        with world.standby.fence.connection() as connection:
            rows = connection.execute(world.clients.ledger.encode()).fetchall()
    except SlipwayError as error:
        world.tell("the ledger could not be read", why=error.cause)
        return None
    keys = (str(row[0]) for row in rows)
    return frozenset(
        int(key.removeprefix(prefix))
        for key in keys
        if key.startswith(prefix) and key.removeprefix(prefix).isdigit()
    )


def _listed(recovered: frozenset[int] | None) -> Check:
    if recovered is None:
        return Check(name="losses listed", verdict=Verdict.ERROR,
                     reason="the ledger could not be read, so all count as lost")  # fmt: skip
    return Check(
        name="losses listed",
        verdict=Verdict.PASS,
        reason=f"{len(recovered)} transactions were found in the standby's database",
        samples=len(recovered),
    )


def _old_side(world: World) -> list[Check]:
    """What the old side committed and the new one never got, where it can still be asked."""
    if world.replication is None or world.primary is None:
        return []
    name = world.record.replication
    try:
        found = unshipped(world.primary.admin_url, name, name)
    except SlipwayError as error:
        world.tell("the old side cannot be asked what it holds", why=error.cause)
        return []
    if found is None:
        return [Check(name="old side", verdict=Verdict.ERROR, reason="its slot is gone")]
    world.tell("the old side alone holds", changes=found.sentence(), rows=found.rows)
    return [
        Check(
            name="old side",
            verdict=Verdict.PASS,
            samples=found.total,
            reason=f"it alone holds {found.sentence()}; each row is in the evidence",
        )
    ]


def _beat_before(world: World) -> datetime | None:
    """The newest heartbeat of the old side that the new side has."""
    assert world.standby is not None and world.primary is not None
    with world.standby.fence.connection() as connection:
        row = connection.execute(
            "SELECT max(at) FROM slipway.heartbeat WHERE source <> %s",
            [f"keeper-{world.standby.name}"],
        ).fetchone()
    return row[0] if row else None
