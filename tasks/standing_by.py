"""The standby of the real names: brought to its tier, kept there, and told of."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE

from blocks.epochs import Epochs
from blocks.fence import Fence
from blocks.platform import Platform, load_platform
from blocks.postgres import database_name
from blocks.postgres_programs import Login
from blocks.replication import Replication, forget_subscriptions
from domain.application import Recovery
from domain.errors import Failed, SlipwayError
from domain.failover import Epoch, Tier
from domain.protection import Protection
from domain.release import BuildRecord
from tasks.recovery_plans import protected
from tasks.saving import live_release
from tasks.sides import Side, replicas_for

_COPY_SECONDS = 3600.0
_FIRST_LEASE = timedelta(seconds=30)
_KEEPER_SECONDS = 15.0


@dataclass
class Pair:
    """Both sides of one protected environment, under its real names.

    Attributes:
        home: the side that application.yaml names; ``away``: the other cloud.
    """

    record: BuildRecord
    policy: Recovery
    home: Side
    away: Side

    @property
    def application(self) -> str:
        return self.record.application.name

    @property
    def epochs(self) -> Epochs:
        return Epochs(self.away.platform.epoch_store(), self.application, self.policy.environment)

    def sides(self) -> Iterator[Side]:
        yield self.home
        yield self.away

    def primary(self) -> Side:
        """The side that holds the epoch; home before there was one."""
        newest = self.epochs.newest()
        return next((s for s in self.sides() if newest and s.name == newest.side), self.home)

    def standby(self) -> Side:
        return self.away if self.primary() is self.home else self.home

    def side(self, name: str) -> Side:
        return next(s for s in self.sides() if s.name == name)

    def begun(self) -> Side | None:
        """The side that a move which died was leading users to: it holds the epoch, and the name
        leads elsewhere still. None when there is none, or when nobody says where the name leads.
        """
        holder = self.primary()
        try:
            return None if self.names_lead_to(holder) else holder
        except Failed:
            return None

    def names_lead_to(self, side: Side) -> bool:
        """Or nowhere yet.

        Raises:
            Failed: SLP208, the name service does not say.
        """
        record = self.away.platform.name_service().read(self.policy.name)
        return record is None or record.addresses == (side.address,)

    def ends(self) -> tuple[Side, Side]:
        """From where and to where a move would go, or goes on."""
        if (target := self.begun()) is not None:
            return next(s for s in self.sides() if s is not target), target
        return self.primary(), self.standby()

    def replication(self, source: Side, target: Side) -> Replication:
        name = f"slipway_{self.application}_{self.policy.environment}_{source.name}"
        return Replication(
            source.admin_url, target.admin_url, target.database_url, name.replace("-", "_")[:63]
        )

    def protection(self) -> Protection:
        return Protection(
            application=self.application,
            environment=self.policy.environment,
            tier=self.policy.tier,
            databases={side.name: Login(side.admin_url).database for side in self.sides()},
            lease_seconds=self.policy.lease.total_seconds(),
            since=datetime.now(UTC),
        )


def pair_of(platform_name: str, application: str, environment: str) -> Pair:
    """Both sides, by what is live.

    Raises:
        UsageError: SLP006, SLP010, SLP200.
    """
    here = load_platform(platform_name)
    record, policy = protected(here, application, environment)
    release, _ = live_release(here, application, environment)
    there = load_platform(record.application.environment(policy.standby).platform)
    sides = [
        _side(platform, record, policy, name, release.number)
        for platform, name in ((here, policy.environment), (there, policy.standby))
    ]
    return Pair(record, policy, sides[0], sides[1])


def require_settled(pair: Pair) -> None:
    """Raises Failed SLP205: a move was begun and died; whoever acts now would act on half of it."""
    if (target := pair.begun()) is not None:
        raise Failed(
            "SLP205",
            f"a move of {pair.application} to {target.name} was begun and not finished: it holds "
            f"the epoch, and {pair.policy.name} leads elsewhere",
            help="finish it: run the same `slipway failover` or `slipway failback` again",
        )


def _side(
    platform: Platform, record: BuildRecord, policy: Recovery, environment: str, release: int
) -> Side:
    name = database_name(record.application.name, environment)
    return Side(
        platform=platform,
        record=record,
        environment=environment,
        host=record.application.host_in(environment),
        database_url=platform.database.url(name),
        admin_url=platform.database.admin_url(name),
        release=release,
        public=policy.name,
    )


@task(name="arm", cache_policy=NO_CACHE)
def arm(pair: Pair) -> str:
    """Put the side that serves under a lease, without a moment in which it may not write.

    A first, long lease is granted, keepers are told and seen to work, then tables are fenced.

    Raises:
        Failed: SLP204, no keeper keeps it; nothing was fenced.
    """
    side, epochs = pair.primary(), pair.epochs
    newest = epochs.newest()
    if newest is None:
        newest = Epoch(number=1, side=side.name, claimed_at=datetime.now(UTC),
                       actor="standby", reason="it serves already")  # fmt: skip
        epochs.claim(newest)
    names = side.platform.name_service()
    if names.read(pair.policy.name) is None:
        names.point(side.record_for(pair.policy.ttl))
    if side.fence.state().armed and _kept(pair, side):
        side.fence.cover()
        return f"{side.name} holds epoch {newest.number}"
    side.fence.prepare()
    side.fence.open(newest.number, _FIRST_LEASE)
    _tell_keepers(pair)
    if not _await_keeper(pair, side):
        raise Failed(
            "SLP204",
            f"no keeper renews the lease of {side.name}, so its tables were not fenced",
            help="see that the keeper of that side runs; in the sandbox: `slipway status`",
        )
    covered = side.fence.cover()
    return f"{side.name} holds epoch {newest.number}; {len(covered)} tables were fenced"


def _tell_keepers(pair: Pair) -> None:
    fresh, store = pair.protection(), pair.home.platform.store
    kept = store.read(fresh.key)
    known = Protection.model_validate_json(kept) if kept else None
    if known is None or known.model_copy(update={"since": fresh.since}) != fresh:
        store.replace(fresh.key, fresh.model_dump_json().encode())


def _kept(pair: Pair, side: Side) -> bool:
    with side.fence.connection() as connection:
        row = connection.execute(
            "SELECT max(at) > clock_timestamp() - %s FROM slipway.heartbeat WHERE source = %s",
            [max(pair.policy.lease, timedelta(seconds=2)), f"keeper-{side.name}"],
        ).fetchone()
    return bool(row and row[0])


def _await_keeper(pair: Pair, side: Side) -> bool:
    deadline = time.monotonic() + _KEEPER_SECONDS
    while time.monotonic() < deadline:
        if _kept(pair, side):
            return True
        time.sleep(0.1)
    return False


@task(name="follow", cache_policy=NO_CACHE)
def follow(pair: Pair) -> str:
    """Let the standby's database follow, or go on following; made anew when the schema drifted.

    Rows are replicated and changes of the schema are not, so a release with a migration makes
    the standby's copy useless until it is made again.
    """
    source, target = pair.primary(), pair.standby()
    if target is pair.home:
        return (
            f"users are served by {source.name}; nothing of {target.name} is replaced before "
            f"`slipway failback {pair.application} -e {pair.policy.environment}`"
        )
    server, name = target.platform.database, Login(target.admin_url).database
    server.ensure(name)
    replication = pair.replication(source, target)
    if replication.is_set_up() and not (drift := schema_drift(source, target)):
        replication.await_copied(_COPY_SECONDS)
        return "; ".join([f"{target.name} follows {source.name}",
                          *forget_follower(pair, target, source)])  # fmt: skip
    why = f": the schema differs ({', '.join(drift[:3])})" if replication.is_set_up() else ""
    get_run_logger().info("the standby's database is made anew%s", why)
    if replication.is_set_up():
        forget_subscriptions(target.admin_url)
        server.drop(name)  # it followed, so it holds nothing of its own
    else:
        set_aside(target)
    replication.forget_at_primary()
    server.ensure(name)
    replication.begin()
    replication.await_copied(_COPY_SECONDS)
    Fence(target.admin_url).arm()
    return "; ".join([f"{target.name} was copied from {source.name} and follows it",
                      *forget_follower(pair, target, source)])  # fmt: skip


def forget_follower(pair: Pair, target: Side, source: Side) -> list[str]:
    """Once the target follows the source: remove the slot through which it was followed before.

    It belongs to a database that was set aside, by this run or by one that died, and would keep
    that server's log for ever. Returns a sentence when it could not be removed.
    """
    name = pair.replication(target, source).name
    server = target.platform.database
    try:
        with Login(server.admin_url("postgres")).connect() as connection:
            row = connection.execute(
                "SELECT database FROM pg_replication_slots WHERE slot_name = %s", [name]
            ).fetchone()
        if row is not None:
            url = server.admin_url(str(row[0]))
            Replication(url, url, url, name).forget_at_primary()
    except SlipwayError as error:
        return [f"the old slot {name} could not be removed: {error.cause}"]
    return []


def set_aside(side: Side) -> str:
    """Give a database that is not empty another name: nothing that it holds is lost."""
    server, name = side.platform.database, Login(side.admin_url).database
    if name in server.databases():
        forget_subscriptions(side.admin_url)
    return server.set_aside(name)


def schema_drift(one: Side, other: Side) -> list[str]:
    """Tables and columns that only one of two databases has, or has otherwise."""
    seen = [_columns(side) for side in (one, other)]
    return sorted({f"{a[0]}.{a[1]}" for a in seen[0] ^ seen[1]})


def _columns(side: Side) -> set[tuple[str, str, str]]:
    with side.fence.connection() as connection:
        rows = connection.execute(
            "SELECT n.nspname || '.' || c.relname, a.attname, "
            "format_type(a.atttypid, a.atttypmod) || (CASE WHEN a.attnotnull THEN ' not null' "
            "ELSE '' END) FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid "
            "JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.relkind IN ('r', 'p') "
            "AND a.attnum > 0 AND NOT a.attisdropped AND n.nspname NOT IN "
            "('pg_catalog', 'information_schema', 'slipway') AND n.nspname !~ '^pg_toast'"
        ).fetchall()
    return {(str(t), str(c), str(k)) for t, c, k in rows}


@task(name="warm up", cache_policy=NO_CACHE)
def run_standby(pair: Pair) -> str:
    """Replicas of the live version at the standby, for the tier ``hot``."""
    side = pair.standby()
    wanted = replicas_for(pair.record, pair.policy.environment)
    if pair.policy.tier is Tier.HOT:
        side.start(wanted)
        return f"{sum(wanted.values())} replicas run at {side.name}"
    return "no replicas run at the standby: its tier is not `hot`"
