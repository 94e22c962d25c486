"""Whether the standby could take over now."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import psycopg
from prefect import task
from prefect.cache_policies import NO_CACHE

from blocks import sealing
from blocks.epochs import Epochs
from blocks.fence import clock
from blocks.platform import Platform
from blocks.postgres import database_name
from blocks.postgres_programs import Login
from blocks.records import Records
from domain import readiness as rules
from domain.application import Recovery
from domain.errors import SlipwayError
from domain.failover import Tier
from domain.recovery import Copy, Rung, newest_proved
from domain.release import BuildRecord
from domain.units import format_bytes
from domain.verdict import Check, Verdict
from tasks.proving import needed_rung
from tasks.saving import vaults_of
from tasks.sides import replicas_for

if TYPE_CHECKING:
    from tasks.standing_by import Pair

CLOCKS_APART = timedelta(seconds=30)

_USED = "SELECT extname, extversion FROM pg_extension"
_AVAILABLE = "SELECT name, version FROM pg_available_extension_versions"
_COLLATION = (
    "SELECT datlocprovider::text, coalesce(to_jsonb(d) ->> 'datlocale', datcollate), "
    "coalesce(pg_database_collation_actual_version(oid), ''), pg_encoding_to_char(encoding) "
    "FROM pg_database d WHERE datname = current_database()"
)
_FREE = (
    "SELECT current_setting('max_connections')::int - current_setting("
    "'superuser_reserved_connections')::int - (SELECT count(*) FROM pg_stat_activity "
    "WHERE backend_type = 'client backend')"
)
_UNFOLLOWED = (
    "SELECT (SELECT count(*) FROM pg_largeobject_metadata), coalesce((SELECT array_agg("
    "oid::regclass::text) FROM pg_class WHERE relpersistence = 'u' AND relkind = 'r'), '{}')"
)
_IN_USE = (
    "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() "
    "AND backend_type = 'client backend'"
)


class Readiness:
    """Looks at both sides of one application.

    Args:
        tier: what is asked of the standby.
    """

    def __init__(
        self, primary: Platform, standby: Platform, record: BuildRecord, policy: Recovery,
        tier: Tier, pair: Pair | None = None,
    ) -> None:  # fmt: skip
        self.pair = pair
        self.primary, self.standby = primary, standby
        self.record, self.policy, self.tier = record, policy, tier

    def checks(self) -> list[Check]:
        """Every check, whatever another says; one that could not be made is an ``error``."""
        looks: dict[str, Callable[[], Check]] = {
            "database version": self.versions,
            "extensions": self.extensions,
            "collation": self.collations,
            "connections": self.connections,
            "bundle": self.bundle,
            "key": self.key,
            "proved copy": self.proved_copy,
            "time": self.time,
            "name": self.name,
            "epochs": self.epochs,
            "clocks": self.clocks,
            "cluster and edge": self.cluster_and_edge,
        }
        if self.standby.cloud_sql is not None:
            looks |= {"instance": self.instance, "room": self.room}
        if self.tier is not Tier.BACKUP:
            looks |= {"replication": self.replication, "what follows": self.unfollowed}
        if self.pair is not None:
            looks["lease"] = lambda pair=self.pair: lease(pair)  # type: ignore[misc]
            if self.tier is not Tier.BACKUP:
                looks["following"] = lambda pair=self.pair: following(pair)  # type: ignore[misc]
                looks["schema"] = lambda pair=self.pair: schema(pair)  # type: ignore[misc]
                looks["fence of the standby"] = lambda pair=self.pair: closed(pair)  # type: ignore[misc]
            if self.tier is Tier.HOT:
                looks["replicas"] = lambda pair=self.pair: replicas(pair)  # type: ignore[misc]
        return [_made(name, look) for name, look in looks.items()]

    def versions(self) -> Check:
        return rules.versions(self.primary.database.major(), self.standby.database.major())

    def extensions(self) -> Check:
        used = {str(n): str(v) for n, v in _rows(self._here, _USED)}
        available: dict[str, list[str]] = {}
        for name, version in _rows(self._there, _AVAILABLE):
            available.setdefault(str(name), []).append(str(version))
        return rules.extensions(used, available)

    def collations(self) -> Check:
        """Of the primary's database and of the one from whose template the standby's is made."""
        return rules.collations(_collation(self._here), _collation(self._there))

    def connections(self) -> Check:
        free, needed = _rows(self._there, _FREE)[0][0], _rows(self._here, _IN_USE)[0][0]
        return rules.connections(int(free), int(needed))  # type: ignore[call-overload]

    def bundle(self) -> Check:
        """Raises Failed: a bundle is damaged."""
        missing = []
        for service, bundle in self.record.artifact.services.items():
            if self.standby.bundles.has(bundle.digest):
                self.standby.bundles.verify(bundle.digest)
            else:
                missing.append(f"{service} {bundle.digest[:19]}")
        return rules.bundles(missing)

    def key(self) -> Check:
        """One key that is at hand opens what was saved; it must be at the standby's."""
        secrets = self.standby.backup_keys.get_secret_value()
        tried = []
        for name, recipient in self.standby.backup_recipients.items():
            if name in secrets:
                try:
                    sealing.try_key(recipient, str(secrets[name]), name)
                except SlipwayError as error:
                    tried.append(f"{name}: {error.cause}")
                    continue
                return rules.check("key", True, f"{name} opens a canary")
        return rules.check("key", False, "; ".join(tried) or "no private key is at hand")

    def proved_copy(self) -> Check:
        """Outside of the primary's cloud: what lies in it is lost with it."""
        best, where = self._newest()
        if best is None or best.manifest is None:
            return rules.copy_age(None, self.policy.rpo, where)
        limit = self.policy.rpo if self.tier is Tier.BACKUP else timedelta(hours=26)
        return rules.copy_age(datetime.now(UTC) - best.manifest.data_time, limit, where)

    def time(self) -> Check:
        best, _ = self._newest()
        proof = best.proved(self._needed) if best else None
        seconds = proof.restore_seconds if proof else None
        restore = None if seconds is None else timedelta(seconds=seconds)
        policy = self.policy
        return rules.time_needed(self.tier, policy.lease, policy.ttl, restore, policy.rto)

    def name(self) -> Check:
        names = self.standby.name_service()
        found = names.read(self.policy.name)
        return rules.name_ttl(self.policy.name, found.ttl_seconds if found else None,
                              self.policy.ttl)  # fmt: skip

    def epochs(self) -> Check:
        name, environment = self.record.application.name, self.policy.environment
        newest = Epochs(self.standby.epoch_store(), name, environment).newest()
        said = f"epoch {newest.number} is {newest.side}'s" if newest else "none was claimed yet"
        good = newest is None or newest.side == self.primary.side
        return rules.check("epochs", good, said)

    def clocks(self) -> Check:
        now = {
            side: _rows(url, "SELECT clock_timestamp()")[0][0]
            for side, url in ((self.primary.side, self._here), (self.standby.side, self._there))
        }
        apart = {s: abs(t - datetime.now(UTC)) for s, t in now.items()}  # type: ignore[operator]
        side = max(apart, key=lambda s: apart[s])
        return rules.clocks(side, apart[side], CLOCKS_APART)

    def cluster_and_edge(self) -> Check:
        name, environment = self.record.application.name, self.policy.standby
        running = self.standby.cluster.workloads(name, environment)
        self.standby.edge.read(name, environment)
        return rules.check("cluster and edge", True, f"answer; {len(running)} workloads run there")

    def replication(self) -> Check:
        """Of both: what can be followed, and what can be brought back."""
        levels = {
            side: str(_rows(url, "SHOW wal_level")[0][0])
            for side, url in ((self.primary.side, self._here), (self.standby.side, self._there))
        }
        said = ", ".join(f"wal_level of {side} is {level}" for side, level in levels.items())
        return rules.check("replication", set(levels.values()) == {"logical"}, said)

    def unfollowed(self) -> Check:
        large, unlogged = _rows(self._here, _UNFOLLOWED)[0]
        return rules.unfollowed(int(large), [str(t) for t in unlogged])  # type: ignore[call-overload,attr-defined]

    def instance(self) -> Check:
        """Raises Failed: SLP215."""
        found = self.standby.sql_instance()
        assert found is not None
        said = f"{found.machine}, {format_bytes(found.disk_bytes)}"
        return rules.instance(found.name, found.state, found.stopped, found.major,
                              self.standby.database.major(), said)  # fmt: skip

    def room(self) -> Check:
        """Raises Failed: SLP215."""
        found = self.standby.sql_instance()
        assert found is not None
        needed = _rows(self._here, "SELECT pg_database_size(current_database())")[0][0]
        return rules.room(int(needed), found.most_bytes)  # type: ignore[call-overload]

    @property
    def _needed(self) -> Rung:
        return needed_rung(self.record.application.backups)

    @property
    def _here(self) -> str:
        if self.pair is not None:
            return self.pair.primary().admin_url
        name = database_name(self.record.application.name, self.policy.environment)
        return self.primary.database.admin_url(name)

    @property
    def _there(self) -> str:
        return self.standby.database.admin_url("postgres")

    def _newest(self) -> tuple[Copy | None, str]:
        vaults = vaults_of(self.standby, self.record.application.name, self.policy.environment)
        outside = [v for v in vaults if not v.location.startswith(self.primary.side)]
        copies = [copy for vault in outside for copy in vault.copies()]
        where = ", ".join(v.location for v in outside) or "any place outside"
        return newest_proved(copies, self._needed), where


def lease(pair: Pair) -> Check:
    """Whether the side that serves is under a lease that somebody renews."""
    side = pair.primary()
    state = side.fence.state()
    if not state.armed:
        return rules.check("lease", False, f"{side.name} is not armed: run `slipway standby`")
    if state.unfenced:
        said = f"{side.name} has tables without a fence: {', '.join(state.unfenced[:5])}"
        return rules.check("lease", False, said)
    left = (state.until - state.now).total_seconds()
    said = (
        f"{side.name} may write for {left:.1f} s more, renewed as long as epoch {state.epoch} is "
        "its own"
        if left > 0
        else f"the lease of {side.name} is over since {-left:.1f} s"
    )
    return rules.check("lease", left > 0, said, value=round(left, 3), limit=0)


def following(pair: Pair) -> Check:
    """How far the standby is behind."""
    source, target = pair.primary(), pair.standby()
    seen = pair.replication(source, target).following()
    behind = None
    if seen.newest_beat is not None:
        with source.fence.connection() as connection:
            behind = (clock(connection) - seen.newest_beat).total_seconds()
    limit = max(pair.policy.lease, timedelta(seconds=5))
    return rules.lag(behind, seen.alive, seen.waiting, limit)


def schema(pair: Pair) -> Check:
    from tasks.standing_by import schema_drift

    return rules.schema(schema_drift(pair.primary(), pair.standby()))


def closed(pair: Pair) -> Check:
    """A standby that may be written to holds rows that nobody else has."""
    side = pair.standby()
    state = side.fence.state()
    if state.unfenced or not state.armed:
        missing = ", ".join(state.unfenced[:5]) or "all of it"
        return rules.check("fence of the standby", False, f"open: {missing}")
    said = "open: it holds a lease" if state.until > state.now else "closed"
    return rules.check("fence of the standby", state.until <= state.now, said)


def replicas(pair: Pair) -> Check:
    side = pair.standby()
    wanted, seen = replicas_for(pair.record, pair.policy.environment), side.ready_replicas()
    missing = {s: f"{seen[s]} of {n}" for s, n in wanted.items() if seen[s] < n}
    said = ", ".join(f"{n} of {s}" for s, n in missing.items()) or "all are ready"
    return rules.check("replicas", not missing, said)


@task(name="check readiness", cache_policy=NO_CACHE)
def readiness(looks: Readiness) -> list[Check]:
    """See ``Readiness.checks``."""
    return looks.checks()


def last_readiness(platform: Platform, application: str, environment: str) -> Check:
    """What the last look at a standby found, as far as it still counts."""
    found = [
        report
        for report in Records(platform.store).recovery_reports()
        if (report.kind, report.application, report.environment)
        == ("standby", application, environment)
        and report.readiness
    ]
    newest = max(found, key=lambda report: report.started_at, default=None)
    at, said = (newest.started_at, newest.reason) if newest else (None, "")
    return rules.last_look(at, said, datetime.now(UTC))


def _made(name: str, look: Callable[[], Check]) -> Check:
    try:
        return look()
    except SlipwayError as error:
        return Check(name=name, verdict=Verdict.ERROR, reason=f"could not look: {error.cause}")


def _rows(url: str, query: str) -> list[tuple[object, ...]]:
    login = Login(url)
    with login.connect() as connection:
        try:
            return connection.execute(query.encode()).fetchall()
        except psycopg.Error as error:
            raise login.refused(error) from error


def _collation(url: str) -> dict[str, str]:
    row = _rows(url, _COLLATION)[0]
    keys = ("provider", "locale", "collation version", "encoding")
    return {key: str(value) for key, value in zip(keys, row, strict=True)}
