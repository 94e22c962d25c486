"""A drill's world: a twin of the primary, a standby, and clients, all under names of its own."""

from __future__ import annotations

import secrets
import tempfile
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from prefect import task
from prefect.cache_policies import NO_CACHE
from psycopg.conninfo import make_conninfo

from blocks.disposable_postgres import DisposableServer
from blocks.drill_clients import ClientsPlan, DrillClients
from blocks.names import Names, open_names
from blocks.platform import Platform
from blocks.replication import Replication
from domain.drill import DrillRecord, Fault
from domain.errors import Failed, UsageError
from domain.failover import Epoch, Tier, first_good
from domain.recovery import MemberKind
from tasks import drill_backups
from tasks.drill_watch import Watch
from tasks.drill_world import Wanted, World, key_of
from tasks.failing_over import Failover
from tasks.recovery_copies import restore_copy
from tasks.restoring import first_whole, set_lineage
from tasks.sides import Side, replicas_for

LIFETIME = timedelta(minutes=20)
"""After this the reaper removes whatever is left, whoever made it; a large copy gets more."""
_SLOW_BYTES_PER_SECOND = 5_000_000
_COPY_SECONDS = 120.0
_SETTLE_SECONDS = 1.0
_BEFORE_SECONDS = 2.0
_FIRST_SECONDS = 60.0
_WATCH_PAUSE_SECONDS = 0.1


@task(name="begin drill", cache_policy=NO_CACHE)
def begin(wanted: Wanted) -> DrillRecord:
    """Write down what will be made, before any of it is."""
    identity = secrets.token_hex(4)
    now = datetime.now(UTC)
    application = wanted.record.application.name
    record = DrillRecord(
        id=identity,
        application=application,
        environment=wanted.policy.environment,
        tier=wanted.tier,
        fault=wanted.fault,
        run=wanted.run,
        created_at=now,
        expires_at=now + LIFETIME + timedelta(seconds=_copy_bytes(wanted) / _SLOW_BYTES_PER_SECOND),
        host=f"{application}.drill-{identity}.{wanted.names.zone}",
        database=f"drill_{identity}",
        folder=str(Path(tempfile.gettempdir()) / f"slipway-drill-{identity}"),
        platforms=wanted.platforms,
    )
    wanted.primary.store.create(key_of(record), record.model_dump_json().encode())
    return record


def _copy_bytes(wanted: Wanted) -> int:
    manifest = wanted.chosen.copy.manifest
    member = manifest.member(MemberKind.POSTGRES) if manifest else None
    return member.plain_bytes if member else 0


@task(name="build twin", cache_policy=NO_CACHE)
def build_twin(world: World) -> None:
    """A primary to lose: production's newest proved copy, with users' own application on it."""
    wanted, record = world.wanted, world.record
    world.server = world.stack.enter_context(
        DisposableServer(
            major=wanted.primary.database.major(),
            lifetime_seconds=(record.expires_at - datetime.now(UTC)).total_seconds(),
            tcp=True,
            folder=Path(record.folder),
            publishes=True,
            environ=world.marks,
        )
    )
    url = world.server.database(record.database)
    seconds = restore_copy(wanted.primary, wanted.chosen, url)
    set_lineage(url, record.side_environment)
    world.tell("twin restored", point=wanted.chosen.sentence(), seconds=round(seconds, 2))
    if wanted.fault is Fault.CORRUPT:
        drill_backups.begin_line(wanted, record)
    prepare_flags(wanted, record)
    world.primary = side = _side(world, wanted.primary, url, url)
    side.fence.reset()
    side.fence.arm()
    epoch = Epoch(number=1, side=side.name, claimed_at=datetime.now(UTC), actor=wanted.actor,
                  reason="the twin begins")  # fmt: skip
    world.epochs.claim(epoch)
    side.fence.open(1, wanted.policy.lease)
    world.keeper = side.keeper(
        wanted.standby.epoch_location(),
        wanted.policy.lease,
        record.side_environment,
        world.logs / "keeper-primary.log",
    )
    world.stack.callback(world.keeper.close)
    side.start(replicas_for(wanted.record, wanted.policy.environment))
    side.route()
    wanted.names.point(side.record_for(wanted.policy.ttl))
    world.tell("twin serves", name=record.host, address=side.address)


@task(name="build standby", cache_policy=NO_CACHE)
def build_standby(world: World) -> None:
    """As much of the standby as its tier has before it is needed."""
    wanted, record = world.wanted, world.record
    assert world.primary is not None
    server = wanted.standby.database
    url, admin = server.ensure(record.database), server.admin_url(record.database)
    world.standby = side = _side(world, wanted.standby, url, admin)
    if wanted.tier is Tier.BACKUP:
        return
    world.replication = replication = Replication(
        world.primary.admin_url, admin, url, record.replication
    )
    replication.begin()
    replication.await_copied(_COPY_SECONDS)
    side.fence.arm()
    world.tell("standby follows", database=replication.standby.place)
    if wanted.tier is Tier.HOT:
        side.start(replicas_for(wanted.record, wanted.policy.environment))
        world.tell("standby runs", replicas=side.ready_replicas())
    if wanted.scenario is not None and wanted.scenario.standby_full:
        server.limit_connections(record.database, 0)
        world.tell("standby has no connection left", role=record.database)


@task(name="send clients", cache_policy=NO_CACHE)
def send_clients(world: World) -> None:
    """Users of the twin, who find it by its name; some seconds of them before anything breaks."""
    wanted, record = world.wanted, world.record
    assert world.primary is not None and world.standby is not None
    watched = wanted.record.application.smoke_checks()[0]
    plan = ClientsPlan(
        url=world.primary.public_url(),
        nameserver=wanted.standby.nameserver,
        transactions=transactions_file(wanted),
        prefix=f"drill-{record.id}-",
        path=watched.path,
        status=watched.status,
    )
    world.clients = DrillClients(plan, world.logs / "clients.log", world.marks)
    world.stack.callback(world.clients.close)
    address = world.primary.address
    first = world.clients.await_attempt(
        lambda a: a.acknowledged and a.read_back and a.address == address, 15
    )
    if first is None:
        seen = {a.error for a in world.clients.attempts()}
        raise Failed(
            "SLP213",
            f"no client could work with the twin: {'; '.join(sorted(seen)[:3]) or 'no answer'}",
            help="read the replicas' logs and the file of `recovery.transactions`",
        )
    world.watch = Watch({"primary": world.primary.fence, "standby": world.standby.fence})
    world.stack.callback(world.watch.close)
    time.sleep(_BEFORE_SECONDS)  # what is measured needs a before
    world.tell("clients work", transactions=len(world.clients.attempts()))


def failover_of(world: World) -> Failover:
    """The same steps as on the real day, on the drill's names."""
    wanted, record = world.wanted, world.record
    assert world.primary is not None and world.standby is not None
    assert world.clients is not None
    clients, standby = world.clients, world.standby

    def first() -> str:
        found = clients.await_attempt(
            lambda a: first_good([a], standby.address, world.fault_at) is not None, _FIRST_SECONDS
        )
        if found is None:
            raise Failed("SLP210", f"no client was served by {standby.name} within "
                         f"{_FIRST_SECONDS:g} s",
                         help="look at the timeline for what they met")  # fmt: skip
        return f"transaction {found.sequence} was written and read back at {standby.name}"

    def bring_back() -> list[str]:
        _, told = first_whole(
            drill_backups.copies(wanted, record),
            lambda chosen: restore_copy(wanted.standby, chosen, standby.database_url),
        )
        set_lineage(standby.admin_url, record.side_environment)
        standby.fence.reset()
        return told

    return Failover(
        tier=wanted.tier,
        primary=_as_seen(world, world.primary),
        standby=standby,
        names=_names(wanted),
        epoch_location=wanted.standby.epoch_location(),
        epochs=world.epochs,
        epochs_name=record.side_environment,
        lease=wanted.policy.lease,
        ttl=wanted.policy.ttl,
        nameserver=wanted.standby.nameserver,
        replicas=replicas_for(wanted.record, wanted.policy.environment),
        actor=wanted.actor,
        reason=f"drill {record.id}: nobody needs to be asked",
        logs=world.logs,
        first_transaction=first,
        log=lambda line: world.tell(line),
        restore=bring_back,
        replication=world.replication,
        patience=min(wanted.policy.rto, timedelta(seconds=10 if _is_stopped(wanted) else 60)),
    )


def _as_seen(world: World, side: Side) -> Side:
    """The old side as whoever fails over finds it: behind a cut, its database is nowhere."""
    if world.wanted.fault is not Fault.CUT:
        return side
    nowhere = make_conninfo(side.admin_url, host="127.0.0.1", port=9)
    return replace(side, admin_url=nowhere)


def _is_stopped(wanted: Wanted) -> bool:
    return wanted.scenario is not None and wanted.scenario.stops_at is not None


def _names(wanted: Wanted) -> Names:
    """The name service, or one that answers nobody."""
    if wanted.scenario is None or not wanted.scenario.names_down:
        return wanted.names
    assert wanted.standby.names is not None
    return open_names(wanted.standby.names.model_copy(update={"endpoint": "http://127.0.0.1:9"}))


def transactions_file(wanted: Wanted) -> str:
    """The application's own file in the bundle that is live; empty when it declares none.

    Raises:
        UsageError: SLP213, the bundle does not have it.
    """
    declared = wanted.policy.transactions
    if declared is None:
        return ""
    service = wanted.policy.service or wanted.record.application.first_service
    digest = wanted.record.artifact.services[service].digest
    file = wanted.standby.bundles.materialize(digest) / "app" / declared
    if not file.is_file():
        raise UsageError(
            "SLP213",
            f"version {wanted.record.version} has no file {declared}, which its application.yaml "
            "names under `recovery.transactions`",
            help="correct the name, relative to the folder of the service, and release again",
        )
    return str(file)


def prepare_flags(wanted: Wanted, record: DrillRecord) -> None:
    """The flags as they are in production, under the drill's name."""
    application = wanted.record.application
    if application.flags is None:
        return
    for platform in (wanted.primary, wanted.standby):
        now = platform.flags.read(application.name, wanted.policy.environment)
        if now is not None:
            platform.flags.change(application.name, record.side_environment, lambda _, n=now: n)  # type: ignore[misc]


def _side(world: World, platform: Platform, url: str, admin: str) -> Side:
    record, wanted = world.record, world.wanted
    redis = ""
    if wanted.record.application.cache:
        redis = platform.redis.ensure(
            f"{record.application}/{record.side_environment}-{platform.side}"
        )
    return Side(
        platform=platform,
        record=wanted.record,
        environment=record.side_environment,
        host=record.host,
        database_url=url,
        admin_url=admin,
        redis_url=redis,
        marker=record.id,
        expires_at=record.expires_at,
    )
