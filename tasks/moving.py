"""A failover or a failback on the real names: what it would lose, who said yes, and doing it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE
from psycopg import sql

from blocks.divergence import Unshipped, unshipped
from blocks.drill_clients import ClientsPlan, DrillClients
from blocks.fence import Fence
from blocks.postgres_programs import Login
from blocks.records import Records
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
from tasks.failing_over import Failover
from tasks.locks import environment_lock
from tasks.readiness import last_readiness
from tasks.recovery_copies import candidates, choose, restore_copy
from tasks.releasing import run_id
from tasks.restoring import first_whole
from tasks.sides import Side, replicas_for
from tasks.standing_by import Pair, forget_follower, set_aside

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
    source, target = pair.ends()
    resumes = pair.begun() is not None
    copy, losing = _losing(pair, source, target, planned=planned)
    return MovePlan(
        application=pair.application,
        environment=pair.policy.environment,
        source=source.name,
        target=target.name,
        tier=pair.policy.tier,
        version=pair.record.version,
        epoch=newest.number - resumes,
        planned=planned,
        copy=copy,
        losing=losing,
        waiting=_waiting(pair, source),
        ready=last_readiness(pair.home.platform, pair.application, pair.policy.environment).reason,
        resumes=resumes,
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
def exclusively(pair: Pair, plan: MovePlan) -> Iterator[None]:
    """One move at a time.

    The lock is a session's, at the server that is moved to: a run that dies gives it up at once,
    where a slot of Prefect's would be taken for a minute more. Nor does an unplanned move wait for
    a release: that may hang in the cloud that is lost. A planned one does.

    Raises:
        Failed: SLP205, another run moves it now. SLP128: the server is not there.
    """
    name = f"slipway move {pair.application} {pair.policy.environment}"
    with ExitStack() as stack:
        if plan.planned:
            stack.enter_context(environment_lock(pair.application, pair.policy.environment))
        server = pair.side(plan.target).platform.database
        connection = stack.enter_context(Login(server.admin_url("postgres")).connect())
        row = connection.execute("SELECT pg_try_advisory_lock(hashtext(%s))", [name]).fetchone()
        if row is None or not row[0]:
            raise Failed("SLP205", f"another run moves {pair.application} now",
                         help="follow it: `slipway status`")  # fmt: skip
        yield


@contextmanager
def watching(pair: Pair) -> Iterator[DrillClients]:
    """Clients that only read, through the public name, from before the move until after it."""
    check = pair.record.application.smoke_checks()[0]
    plan = ClientsPlan(
        url=pair.home.public_url(),
        nameserver=pair.away.platform.nameserver,
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
    source, target = pair.side(plan.source), pair.side(plan.target)
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
        set_aside(target)
        url = target.platform.database.ensure(Login(target.admin_url).database)
        _, told = first_whole(
            candidates(source.platform, target.platform, pair.record, pair.policy.environment),
            lambda chosen: restore_copy(target.platform, chosen, url),
        )
        # No lineage of its own: under the epochs one side writes, and backups follow it.
        return told

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
        nameserver=target.platform.nameserver,
        replicas=replicas_for(pair.record, pair.policy.environment),
        actor=reason,
        reason=reason,
        logs=_logs(pair),
        first_transaction=first,
        log=log.info,
        restore=bring_back,
        replication=pair.replication(source, target),
        planned=plan.planned,
        resumed=plan.resumes,
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
    if pair.ends()[0] is pair.home:
        raise UsageError(
            "SLP205",
            f"{pair.application} in {pair.policy.environment} is served by {pair.home.name}, where "
            "it belongs",
            help="there is nothing to bring back",
        )


def require_no_divergence(pair: Pair, plan: MovePlan, accept: str) -> list[str]:
    """Before failing back: nothing that only the fenced side has is thrown away unseen.

    Raises:
        NeedsPerson: SLP209 with the list.
    """
    serving, fenced = pair.side(plan.source), pair.side(plan.target)
    if plan.resumes or follows(pair, serving, fenced):
        return [f"{fenced.name} was copied from {serving.name} before"]
    if holds_nothing(fenced):
        return [f"what {fenced.name} held was set aside before"]
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
def reverse(pair: Pair, plan: MovePlan) -> list[str]:
    """Make the fenced side's database anew from the side that serves, and let it follow.

    What it held is kept under another name. Run again, it goes on.
    """
    source, target = pair.side(plan.source), pair.side(plan.target)
    if plan.resumes:
        return []
    told = [f"{target.name} follows {source.name}"]
    replication = pair.replication(source, target)
    if not follows(pair, source, target):
        if kept := set_aside(target):
            told.append(f"what {target.name} held before is kept as database {kept}")
        target.platform.database.ensure(Login(target.admin_url).database)
        replication.forget_at_primary()
        replication.begin()
    replication.await_copied(3600)
    Fence(target.admin_url).arm()
    return told + forget_follower(pair, target, source)


def follows(pair: Pair, source: Side, target: Side) -> bool:
    """Whether the target's database is a copy of the source's, and so holds nothing of its own."""
    there = Login(target.admin_url).database in target.platform.database.databases()
    return there and pair.replication(source, target).is_set_up()


def holds_nothing(side: Side) -> bool:
    """Whether a side has no database, or one without a row: what there was is set aside.

    A run that dies while it copies the schema leaves tables behind, and nothing in them.
    """
    if Login(side.admin_url).database not in side.platform.database.databases():
        return True
    with side.fence.connection() as connection:
        tables = connection.execute(
            "SELECT schemaname, tablename FROM pg_tables WHERE schemaname NOT IN "
            "('pg_catalog', 'information_schema', 'slipway')"
        ).fetchall()
        return not any(
            connection.execute(
                sql.SQL("SELECT 1 FROM {} LIMIT 1").format(sql.Identifier(*map(str, table)))
            ).fetchone()
            for table in tables
        )


@task(name="clear away", cache_policy=NO_CACHE)
def clear_away(pair: Pair, left: Side) -> str:
    """Replicas of the side that serves no more end; its database stays."""
    if left is pair.away:
        left.stop()
        return f"replicas at {left.name} were ended"
    return f"replicas at {left.name} stay: they belong to its release"


def _logs(pair: Pair) -> Path:
    return Path(pair.home.platform.store_root).parent / "logs" / "recovery"
