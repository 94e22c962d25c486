"""A drill's world: a twin of the primary, a standby, and clients, all under names of its own."""

from __future__ import annotations

import contextlib
import random
import secrets
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE
from psycopg.conninfo import make_conninfo

from blocks import disposable_postgres, drill_processes, fence, sealing
from blocks.disposable_postgres import DisposableServer
from blocks.divergence import unshipped
from blocks.drill_clients import ClientsPlan, DrillClients
from blocks.epochs import Epochs
from blocks.fence import Fence
from blocks.keeper import KeeperProcess
from blocks.names import Names
from blocks.platform import Platform
from blocks.postgres_restore import restore
from blocks.replication import Replication
from domain.application import Recovery
from domain.drill import DrillRecord, Fault, Scenario
from domain.errors import Failed, SlipwayError, UsageError
from domain.evidence_chain import Event, chained
from domain.failover import Achieved, Epoch, Tier, achieved, first_good, spans
from domain.recovery import MemberKind
from domain.release import BuildRecord
from domain.verdict import Check, Verdict
from tasks.failing_over import Failover
from tasks.proving import needed_rung
from tasks.restoring import Chosen, choose_copy, recorded_inventory, set_lineage
from tasks.saving import vaults_of
from tasks.sides import Side, replicas_for

LIFETIME = timedelta(minutes=20)
"""After this the reaper removes whatever is left, whoever made it; a large copy gets more."""
_SLOW_BYTES_PER_SECOND = 5_000_000
_COPY_SECONDS = 120.0
_SETTLE_SECONDS = 1.0
_BEFORE_SECONDS = 2.0
_FIRST_SECONDS = 60.0
_WATCH_PAUSE_SECONDS = 0.1


@dataclass
class Wanted:
    """What was asked for, resolved: nothing has been made yet.

    Attributes:
        primary: platform of the protected environment; ``standby``: of the other cloud.
    """

    record: BuildRecord
    policy: Recovery
    tier: Tier
    fault: Fault
    primary: Platform
    standby: Platform
    chosen: Chosen
    seed: int
    run: str
    platforms: tuple[str, str]
    actor: str
    scenario: Scenario | None = None

    @property
    def names(self) -> Names:
        return self.standby.name_service()


@dataclass
class World:
    """What a drill has made so far; ``record`` says what there may be of it."""

    wanted: Wanted
    record: DrillRecord
    logs: Path
    stack: ExitStack
    events: list[Event] = field(default_factory=list)
    server: DisposableServer | None = None
    primary: Side | None = None
    standby: Side | None = None
    replication: Replication | None = None
    keeper: KeeperProcess | None = None
    clients: DrillClients | None = None
    watch: Watch | None = None
    fault_at: float = 0.0
    production: dict[str, Any] = field(default_factory=dict)

    def tell(self, what: str, **data: Any) -> None:
        """One line of the evidence."""
        self.events.append(chained(self.events, datetime.now(UTC), what, data))
        said = ", ".join(f"{key} {value}" for key, value in data.items())
        get_run_logger().info("%s%s", what, f": {said}" if said else "")

    @property
    def marks(self) -> dict[str, str]:
        return {drill_processes.MARKER: self.record.id}

    @property
    def epochs(self) -> Epochs:
        store = self.wanted.standby.epoch_store()
        return Epochs(store, self.record.application, self.record.side_environment)


def key_of(record: DrillRecord) -> str:
    return f"drills/{record.application}/{record.id}.json"


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


@contextmanager
def world(wanted: Wanted, record: DrillRecord) -> Iterator[World]:
    """The drill's world; whatever ends it, its processes end with it.

    What they leave in servers and services is ``reap``'s to remove, which needs no world.
    """
    logs = Path(wanted.primary.store_root).parent / "logs" / f"drill-{record.id}"
    with ExitStack() as stack:
        yield World(wanted, record, logs, stack)


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


@task(name="send clients", cache_policy=NO_CACHE)
def send_clients(world: World) -> None:
    """Users of the twin, who find it by its name; some seconds of them before anything breaks."""
    wanted, record = world.wanted, world.record
    assert world.primary is not None and world.standby is not None
    watched = wanted.record.application.smoke_checks()[0]
    plan = ClientsPlan(
        url=world.primary.public_url(),
        nameserver=nameserver_of(wanted.standby),
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


@task(name="inject fault", cache_policy=NO_CACHE)
def inject(world: World) -> None:
    """Break the twin, at a moment of the seed's choosing."""
    time.sleep(random.Random(world.wanted.seed).uniform(0, 1))
    world.fault_at = time.time()
    FAULTS[world.wanted.fault](world)
    world.tell("fault", fault=world.wanted.fault, at=world.fault_at)


def _kill(world: World) -> None:
    drill_processes.kill(_region(world))


def _freeze(world: World) -> None:
    drill_processes.freeze(_region(world))


def _cut(world: World) -> None:
    """The keeper cannot reach the epochs, nor users the edge; the database does not know."""
    assert world.keeper is not None and world.primary is not None
    world.keeper.process.kill()
    platform, record = world.wanted.primary, world.record
    platform.edge.remove(record.application, record.side_environment)


def _revoke(world: World) -> None:
    assert world.server is not None
    with psycopg.connect(world.server.url, autocommit=True) as connection:
        connection.execute(f'ALTER ROLE "{disposable_postgres.USER}" NOLOGIN')
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE pid <> pg_backend_pid() AND backend_type IN ('client backend', 'walsender')"
        )


def _migrate_badly(world: World) -> None:
    assert world.server is not None
    with psycopg.connect(world.server.url_of(world.record.database), autocommit=True) as connection:
        tables = connection.execute(
            "SELECT quote_ident(schemaname) || '.' || quote_ident(tablename) FROM pg_tables "
            "WHERE schemaname NOT IN ('pg_catalog', 'information_schema', 'slipway')"
        ).fetchall()
        for (table,) in tables:
            connection.execute(f"DROP TABLE IF EXISTS {table} CASCADE".encode())


FAULTS = {
    Fault.MIGRATION: _migrate_badly,
    Fault.KILL: _kill,
    Fault.FREEZE: _freeze,
    Fault.CUT: _cut,
    Fault.CREDENTIALS: _revoke,
}


def _region(world: World) -> list[Any]:
    """Everything that runs on the twin's side: database, keeper, replicas."""
    assert world.server is not None and world.keeper is not None and world.primary is not None
    roots = [world.server.pid, world.keeper.pid, *world.primary.pids()]
    return [process for root in roots for process in drill_processes.family(root)]


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
        seconds = restore_copy(wanted.standby, wanted.chosen, standby.database_url)
        set_lineage(standby.admin_url, record.side_environment)
        standby.fence.reset()
        return [f"restored {wanted.chosen.sentence()} in {seconds:.1f} s"]

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
        nameserver=nameserver_of(wanted.standby),
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
    return Names(wanted.standby.names.model_copy(update={"endpoint": "http://127.0.0.1:9"}))


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
        drill_processes.thaw(_region(world))
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


class Watch:
    """Looks ten times a second which sides may write; a look that fails says nothing."""

    def __init__(self, fences: dict[str, Fence]) -> None:
        self._over = threading.Event()
        self.seen: dict[str, list[tuple[float, float, bool]]] = {name: [] for name in fences}
        self._threads = [
            threading.Thread(target=self._look, args=(name, fences[name]), daemon=True)
            for name in fences
        ]
        for thread in self._threads:
            thread.start()

    def _look(self, name: str, watched: Fence) -> None:
        while not self._over.is_set():
            with contextlib.suppress(SlipwayError), watched.connection() as connection:
                while not self._over.wait(_WATCH_PAUSE_SECONDS):
                    began = time.monotonic()
                    state = fence.state(connection)
                    self.seen[name].append((began, time.monotonic(), state.writable))
            self._over.wait(_WATCH_PAUSE_SECONDS)

    def close(self) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(1.0)  # one that asks a frozen server stays behind

    def verdict(self) -> Check:
        """Never two: no look at the old side that began after the new side's first finds it open.

        The two looks' own times are compared, so a slow answer accuses nobody.
        """
        standby = [look for look in self.seen["standby"] if look[2]]
        primary = [look for look in self.seen["primary"] if look[2]]
        samples = sum(len(looks) for looks in self.seen.values())
        name = "one writable side"
        if not standby:
            return Check(name=name, verdict=Verdict.NO_DATA, samples=samples,
                         reason="the standby was never seen writable")  # fmt: skip
        opened = min(look[1] for look in standby)
        both = [look for look in primary if look[0] > opened]
        if both:
            return Check(name=name, verdict=Verdict.FAIL, samples=samples,
                         reason=f"the old side could be written {both[0][0] - opened:.2f} s after "
                         "the new one")  # fmt: skip
        return Check(name=name, verdict=Verdict.PASS, samples=samples,
                     reason=f"{samples} looks, never both")  # fmt: skip


def restore_copy(platform: Platform, chosen: Chosen, url: str) -> float:
    """The database of a point into an empty one; returns how many seconds it took."""
    manifest = chosen.copy.manifest
    assert manifest is not None
    member = manifest.member(MemberKind.POSTGRES)
    if member is None or member.facts is None:
        raise Failed("SLP148", f"point {manifest.sequence} holds no database",
                     help="see `slipway backups APP` for what each point holds")  # fmt: skip
    secrets = platform.backup_keys.get_secret_value()
    keys = [sealing.identity(str(s), n) for n, s in secrets.items() if n in manifest.recipients]
    expected = recorded_inventory(member, f"{chosen.vault.location}: point {manifest.sequence}")
    began = time.monotonic()
    with chosen.vault.plain(member, keys) as plain:
        restore(plain, url, expected=expected, owners=False)
    return time.monotonic() - began


def choose(platform: Platform, record: BuildRecord, policy: Recovery) -> Chosen:
    """The newest proved copy, from outside of the cloud that is lost where there is one.

    Raises:
        Failed: SLP149, nothing is proved.
    """
    vaults = vaults_of(platform, record.application.name, policy.environment)
    outside = [v for v in vaults if not v.location.startswith(platform.side)]
    needed = needed_rung(record.application.backups)
    try:
        return choose_copy(outside or vaults, "newest", needed)
    except Failed:
        return choose_copy(vaults, "newest", needed)


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


def nameserver_of(platform: Platform) -> str:
    assert platform.names is not None
    return platform.names.resolver


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
