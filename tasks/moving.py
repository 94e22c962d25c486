"""A failover or a failback on the real names: what it would lose, who said yes, and doing it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE

from blocks.divergence import Unshipped, unshipped
from blocks.drill_clients import ClientsPlan, DrillClients
from blocks.fence import Fence
from blocks.postgres_programs import Login
from blocks.records import Records
from blocks.replication import Replication
from domain.errors import AwaitingApproval, Failed, NeedsPerson, SlipwayError, UsageError
from domain.failover import (
    Achieved,
    Approval,
    Tier,
    achieved,
    approval_problem,
    approvals_of,
    first_good,
)
from domain.move_plan import MovePlan
from domain.units import format_duration
from tasks.drilling import choose, nameserver_of, restore_copy
from tasks.failing_over import Failover
from tasks.releasing import run_id
from tasks.restoring import set_lineage
from tasks.sides import Side, replicas_for
from tasks.standing_by import Pair, set_aside

_FIRST_SECONDS = 120.0
_SETTLE_SECONDS = 1.0


@task(name="plan move", cache_policy=NO_CACHE)
def plan_move(pair: Pair, *, planned: bool) -> MovePlan:
    """The decision aid.

    Raises:
        UsageError: SLP205, there is nothing to move from: no side was ever armed.
    """
    newest = pair.epochs.newest()
    if newest is None:
        raise UsageError(
            "SLP205",
            f"no side of {pair.application} in {pair.policy.environment} holds an epoch",
            help=f"arm it first: slipway standby {pair.application} -e {pair.policy.environment}",
        )
    source, target = pair.primary(), pair.standby()
    copy, losing = _losing(pair, source, target, planned=planned)
    return MovePlan(
        application=pair.application,
        environment=pair.policy.environment,
        source=source.name,
        target=target.name,
        tier=pair.policy.tier,
        version=pair.record.version,
        epoch=newest.number,
        planned=planned,
        copy=copy,
        losing=losing,
        waiting=_waiting(pair, source),
    )


def _losing(pair: Pair, source: Side, target: Side, *, planned: bool) -> tuple[str, str]:
    now = datetime.now(UTC)
    if planned:
        return "", "nothing is lost; users wait while the last rows arrive"
    if pair.policy.tier is Tier.BACKUP:
        manifest = choose(source.platform, pair.record, pair.policy).copy.manifest
        assert manifest is not None
        age = timedelta(seconds=round((now - manifest.data_time).total_seconds()))
        return (
            f"copy of point {manifest.sequence}",
            f"loses what was committed after {manifest.data_time:%Y-%m-%d %H:%M:%S} UTC, "
            f"{format_duration(age)} ago",
        )
    beat = pair.replication(source, target).following().newest_beat
    if beat is None:
        return "", "nobody can say: no heartbeat ever arrived at the standby"
    age = timedelta(seconds=max(0, round((now - beat).total_seconds())))
    return "", (
        f"loses what was committed after {beat:%H:%M:%S} UTC, {format_duration(age)} ago, "
        "as far as the old side accepted any"
    )


def _waiting(pair: Pair, source: Side) -> str:
    took = sorted(
        report.rta_seconds
        for report in Records(pair.home.platform.store).recovery_reports()
        if report.kind == "drill"
        and (report.application, report.tier) == (pair.application, pair.policy.tier)
        and report.rta_seconds is not None
    )
    check = source.answers()
    now = "users are served" if check.verdict.advances else "users are not served"
    known = (
        f"{len(took)} drills of this tier took {took[len(took) // 2]:.1f} s, at most "
        f"{took[-1]:.1f} s"
        if took
        else "no drill of this tier was ever made, so nobody knows how long it takes"
    )
    return f"loses nothing more while {source.name} takes no writes; {now} there; {known}"


# Approvals


def require_approval(pair: Pair, plan: MovePlan, digest: str) -> str:
    """Who said yes.

    Raises:
        UsageError: SLP206, another plan was meant.
        AwaitingApproval: SLP206, too few did, or too long ago.
    """
    if digest and digest != plan.digest:
        raise UsageError(
            "SLP206",
            f"plan {digest} was asked for, and as things are now it is plan {plan.digest}",
            help=f"look at it: slipway failover {plan.application} -e {plan.environment}",
        )
    store = pair.home.platform.store
    given = [
        Approval.model_validate_json(content)
        for key in store.list(approvals_of(plan.application, plan.environment, plan.digest))
        if (content := store.read(key))
    ]
    now = datetime.now(UTC)
    if why := approval_problem(given, plan.digest, now, pair.policy.approval_max_age):
        raise AwaitingApproval(
            "SLP206",
            f"plan {plan.digest} may not be carried out: {why}",
            help=f"as each of two people: slipway failover {plan.application} -e "
            f"{plan.environment} --approve {plan.digest}",
        )
    broken = [a for a in given if a.break_glass]
    if broken:
        return f"approved by {broken[0].person} alone: {broken[0].break_glass}"
    return f"approved by {' and '.join(sorted({a.person for a in given}))}"


# Moving


@contextmanager
def watching(pair: Pair) -> Iterator[DrillClients]:
    """Clients that only read, through the public name, from before the move until after it."""
    check = pair.record.application.smoke_checks()[0]
    plan = ClientsPlan(
        url=pair.home.public_url(),
        nameserver=nameserver_of(pair.away.platform),
        transactions="",
        prefix="",
        path=check.path,
        status=check.status,
        lanes=2,
    )
    clients = DrillClients(plan, _logs(pair) / f"clients-{run_id()}.log")
    try:
        yield clients
    finally:
        clients.close()


def move_of(pair: Pair, plan: MovePlan, clients: DrillClients, reason: str) -> Failover:
    """The steps, on the real names."""
    source, target = pair.primary(), pair.standby()
    log = get_run_logger()
    began = time.time()

    def first() -> str:
        found = clients.await_attempt(
            lambda a: first_good([a], target.address, began) is not None, _FIRST_SECONDS
        )
        if found is None:
            raise Failed("SLP210", f"no client was served by {target.name} within "
                         f"{_FIRST_SECONDS:g} s", help="look at its edge and replicas")  # fmt: skip
        return f"a client was served by {target.name}"

    def bring_back() -> list[str]:
        chosen = choose(source.platform, pair.record, pair.policy)
        set_aside(target)
        url = target.platform.database.ensure(Login(target.admin_url).database)
        seconds = restore_copy(target.platform, chosen, url)
        set_lineage(target.admin_url, f"failover-{plan.epoch + 1}")
        return [f"restored {chosen.sentence()} in {seconds:.1f} s"]

    return Failover(
        tier=pair.policy.tier if not plan.planned else Tier.WARM,
        primary=source,
        standby=target,
        names=target.platform.name_service(),
        epoch_location=target.platform.epoch_location(),
        epochs=pair.epochs,
        epochs_name=pair.policy.environment,
        lease=pair.policy.lease,
        ttl=pair.policy.ttl,
        nameserver=nameserver_of(target.platform),
        replicas=replicas_for(pair.record, pair.policy.environment),
        actor=reason,
        reason=reason,
        logs=_logs(pair),
        first_transaction=first,
        log=log.info,
        restore=bring_back,
        replication=pair.replication(source, target),
        planned=plan.planned,
        starts_keeper=False,
        patience=min(pair.policy.rto, timedelta(seconds=60)),
    )


def measure_move(
    pair: Pair, clients: DrillClients, target: Side, began: float
) -> tuple[Achieved, float]:
    """What readers met; lost transactions are told by ``divergence``, not by readers.

    Returns:
        What was achieved, and the moment of the first failure that a reader met.
    """
    time.sleep(_SETTLE_SECONDS)
    attempts = clients.close()
    failed = [a.sent for a in attempts if not a.acknowledged and a.sent >= began]
    fault_at = min(failed, default=began)
    beat = None
    with target.fence.connection() as connection:
        row = connection.execute(
            "SELECT max(at) FROM slipway.heartbeat WHERE source <> %s",
            [f"keeper-{target.name}"],
        ).fetchone()
        beat = row[0] if row else None
    seen = frozenset(a.sequence for a in attempts)
    return achieved(attempts, fault_at, target.address, seen, beat), fault_at


def divergence(pair: Pair, fenced: Side, serving: Side) -> Unshipped | None:
    """What the fenced side has and the other one never got; None when nobody can say.

    Raises:
        SlipwayError: the fenced side does not answer.
    """
    name = pair.replication(fenced, serving).name
    return unshipped(fenced.admin_url, name, name)


def told_loss(pair: Pair, plan: MovePlan, left: Side, serving: Side) -> str:
    """What a move lost, as far as anybody can say now."""
    if plan.planned:
        return "nothing was lost: all tables were the same"
    if pair.policy.tier is Tier.BACKUP:
        return "what was committed after the copy is lost, unless the old side comes back"
    try:
        found = divergence(pair, left, serving)
    except SlipwayError:
        found = None
    if found is None:
        return (
            f"{left.name} cannot be asked what it had not sent; `slipway failback` lists it when "
            "it answers again"
        )
    return f"{left.name} alone holds {found.sentence()}"


def require_away(pair: Pair) -> None:
    """Raises UsageError SLP205: the application is at home already."""
    if pair.primary() is pair.home:
        raise UsageError(
            "SLP205",
            f"{pair.application} in {pair.policy.environment} is served by {pair.home.name}, where "
            "it belongs",
            help="there is nothing to bring back",
        )


def require_no_divergence(pair: Pair, fenced: Side, serving: Side, accept: str) -> list[str]:
    """Before failing back: nothing that only the fenced side has is thrown away unseen.

    Raises:
        NeedsPerson: SLP209 with the list.
    """
    found = divergence(pair, fenced, serving)
    if found is not None and found.total == 0:
        return [f"{fenced.name} holds nothing that {serving.name} lacks"]
    told = found.sentence() if found else "nobody can say what, since nothing followed it"
    if accept.strip():
        return [f"accepted ({accept.strip()}): {fenced.name} alone holds {told}; it is kept in "
                "a database set aside"]  # fmt: skip
    raise NeedsPerson(
        "SLP209",
        f"{fenced.name} holds writes that {serving.name} lacks: {told}",
        help="bring them over by hand, then: slipway failback --accept-loss REASON",
        detail="\n".join(found.rows) if found else "",
    )


@task(name="reverse synchronisation", cache_policy=NO_CACHE)
def reverse(pair: Pair) -> list[str]:
    """Make the fenced side's database anew from the side that serves, and let it follow.

    What it held is kept under another name.
    """
    source, target = pair.primary(), pair.standby()
    old = pair.replication(target, source)
    kept = set_aside(target)
    target.platform.database.ensure(Login(target.admin_url).database)
    replication = pair.replication(source, target)
    replication.forget_at_primary()
    replication.begin()
    replication.await_copied(3600)
    Fence(target.admin_url).arm()
    told = [f"{target.name} was copied from {source.name} and follows it"]
    if kept:
        told.append(f"what {target.name} held before is kept as database {kept}")
        try:
            Replicated(target, kept, old.name).forget()
        except SlipwayError as error:
            told.append(f"its old slot could not be removed: {error.cause}")
    return told


@dataclass(frozen=True)
class Replicated:
    """A database that was set aside with the slot of a standby that is gone."""

    side: Side
    database: str
    slot: str

    def forget(self) -> None:
        url = self.side.platform.database.admin_url(self.database)
        Replication(url, url, url, self.slot).forget_at_primary()


@task(name="clear away", cache_policy=NO_CACHE)
def clear_away(pair: Pair, left: Side) -> str:
    """Replicas of the side that serves no more end; its database stays."""
    if left is pair.away:
        left.stop()
        return f"replicas at {left.name} were ended"
    return f"replicas at {left.name} stay: they belong to its release"


def _logs(pair: Pair) -> Path:
    return Path(pair.home.platform.store_root).parent / "logs" / "recovery"
