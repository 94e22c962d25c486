"""The fence of a database: every table refuses writes unless its side holds a lease in force.

The lease is the value of a sequence, not a row: it is read outside of any snapshot, so that a long
transaction sees the newest, and renewing it leaves nothing to vacuum. The check compares it with
the server's own clock. A server that was frozen wakes up with its lease over, whoever was to take
it away: no process has to act for a write to be refused.

What a check cannot see is a transaction that passed it and commits later. ``close`` therefore ends
all sessions, and what a frozen server commits in its first moments is what
``blocks.divergence`` looks for.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import psycopg
from psycopg import sql

from blocks.postgres_programs import APPLICATION_NAME, Login
from domain.errors import Failed

TRIGGER = "slipway_fence"

_SCHEMA = """
CREATE SCHEMA IF NOT EXISTS slipway;
GRANT USAGE ON SCHEMA slipway TO PUBLIC;
CREATE SEQUENCE IF NOT EXISTS slipway.lease AS bigint MINVALUE 0 START 0;
CREATE SEQUENCE IF NOT EXISTS slipway.epoch AS bigint MINVALUE 0 START 0;
GRANT SELECT ON SEQUENCE slipway.lease, slipway.epoch TO PUBLIC;
CREATE TABLE IF NOT EXISTS slipway.heartbeat (
    sequence bigint NOT NULL,
    at timestamptz NOT NULL DEFAULT clock_timestamp(),
    source text NOT NULL
);
CREATE INDEX IF NOT EXISTS heartbeat_at ON slipway.heartbeat (at);
CREATE TABLE IF NOT EXISTS slipway.sequences (
    name text PRIMARY KEY,
    last_value bigint NOT NULL,
    increment_by bigint NOT NULL
);
"""
"""``slipway.sequences`` is a table so that it is replicated: sequences themselves are not."""

# The name of the database is part of the function: a copy that was restored elsewhere for a proof
# is nobody's side, and may be written to.
_FUNCTION = """
CREATE OR REPLACE FUNCTION slipway.fence() RETURNS trigger LANGUAGE plpgsql AS $body$
BEGIN
    IF current_database() = {database}
       AND (SELECT last_value FROM slipway.lease) < extract(epoch FROM clock_timestamp()) * 1e6
    THEN
        RAISE EXCEPTION 'this side is fenced: it holds no lease'
            USING ERRCODE = 'read_only_sql_transaction';
    END IF;
    RETURN NULL;
END $body$
"""

_UNFENCED = """
SELECT n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'p') AND c.relpersistence <> 't' AND NOT c.relispartition
  AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'slipway')
  AND n.nspname !~ '^pg_toast' AND NOT EXISTS (
    SELECT 1 FROM pg_trigger t WHERE t.tgrelid = c.oid AND t.tgname = %s AND t.tgenabled <> 'D')
ORDER BY 1, 2
"""

_NO_IDENTITY = """
SELECT n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind = 'r' AND c.relpersistence = 'p' AND c.relreplident = 'd'
  AND n.nspname NOT IN ('pg_catalog', 'information_schema')
  AND NOT EXISTS (SELECT 1 FROM pg_index i WHERE i.indrelid = c.oid AND i.indisprimary)
ORDER BY 1, 2
"""


@dataclass(frozen=True)
class FenceState:
    """What a database says of itself.

    Attributes:
        armed: it has the fence.
        until: end of the lease, by the server's clock.
        now: the server's clock.
        unfenced: tables that take writes whatever the lease says.
    """

    armed: bool
    epoch: int
    until: datetime
    now: datetime
    unfenced: tuple[str, ...] = ()

    @property
    def writable(self) -> bool:
        return (self.armed and self.until > self.now) or bool(self.unfenced)


class Fence:
    """The fence of one database.

    Args:
        url: as a role that may alter every table of it.

    Raises:
        Failed: SLP204, the database refuses; SLP128, it does not answer. Unauthorised: SLP129.
    """

    def __init__(self, url: str, *, connect_seconds: int = 2) -> None:
        self._login = Login(url)
        self._seconds = connect_seconds

    @property
    def place(self) -> str:
        return self._login.place

    @contextmanager
    def connection(self) -> Iterator[psycopg.Connection]:
        """A session of ours; several calls share one."""
        with (
            self._refusing(),
            psycopg.connect(
                self._login.url,
                autocommit=True,
                connect_timeout=self._seconds,
                application_name=APPLICATION_NAME,
                tcp_user_timeout=self._seconds * 1000,
                options="-c statement_timeout=5000 -c lock_timeout=3000 -c timezone=UTC",
            ) as connection,
        ):
            yield connection

    def arm(self) -> None:
        """Put the fence up; closed until a lease is granted. Rerunnable; keeps a lease in force.

        Every table without a primary key also gets its whole row as its identity, without which a
        published table refuses updates.
        """
        self.prepare()
        self.cover()

    def prepare(self) -> None:
        """All of the fence but what makes it refuse: a lease can be granted before that."""
        with self.connection() as connection, connection.transaction():
            connection.execute("SELECT pg_advisory_xact_lock(hashtext('slipway.fence'))")
            connection.execute(_SCHEMA)
            connection.execute(sql.SQL(_FUNCTION).format(database=self._login.database))

    def cover(self) -> tuple[str, ...]:
        """Fence tables that have come since; returns their names."""
        with self.connection() as connection:
            return cover(connection)

    def reset(self) -> None:
        """Forget the epochs of the database that this one is a copy of; without a fence nothing."""
        with self.connection() as connection:
            if state(connection).armed:
                connection.execute("SELECT setval('slipway.epoch', 0), setval('slipway.lease', 0)")

    def disarm(self) -> None:
        """Take the fence down: everybody who could write before may write."""
        with self.connection() as connection:
            tables = connection.execute(
                "SELECT tgrelid::regclass::text FROM pg_trigger WHERE tgname = %s", [TRIGGER]
            ).fetchall()
            for (table,) in tables:
                connection.execute(f'DROP TRIGGER IF EXISTS "{TRIGGER}" ON {table}')
            connection.execute("DROP FUNCTION IF EXISTS slipway.fence()")
            connection.execute("DROP SEQUENCE IF EXISTS slipway.lease, slipway.epoch")

    def open(self, epoch: int, lease: timedelta) -> None:
        """Grant a first lease under an epoch; never under an older one than the database knows."""
        with self.connection() as connection:
            renew(connection, epoch, clock(connection), lease)

    def close(self, epoch: int) -> int:
        """End the lease at once and all sessions but Slipway's; returns how many were ended."""
        with self.connection() as connection:
            return close(connection, epoch)

    def state(self) -> FenceState:
        with self.connection() as connection:
            return state(connection)

    def opened_under(self, number: int) -> bool:
        """Whether a lease was ever granted here under that epoch; not of a database that is no
        side yet."""
        with self.connection() as connection:
            seen = state(connection)
        return seen.armed and seen.epoch == number and seen.until > datetime.fromtimestamp(0, UTC)

    @contextmanager
    def _refusing(self) -> Iterator[None]:
        try:
            yield
        except psycopg.OperationalError as error:
            raise self._login.refused(error) from error
        except psycopg.Error as error:
            said = self._login.without_secrets(" ".join(str(error).split()))
            raise Failed(
                "SLP204",
                f"the fence of {self._login.place} could not be set or read: {said}",
                help="the login must own the tables; see `slipway readiness`",
            ) from error


def clock(connection: psycopg.Connection) -> datetime:
    row = connection.execute("SELECT clock_timestamp()").fetchone()
    assert row is not None
    return row[0]  # type: ignore[no-any-return]


def epoch(connection: psycopg.Connection) -> int:
    """Under which epoch the database was opened or closed last."""
    row = connection.execute("SELECT last_value FROM slipway.epoch").fetchone()
    assert row is not None
    return int(row[0])


def renew(connection: psycopg.Connection, number: int, begun: datetime, lease: timedelta) -> None:
    """Let this side write for one lease from ``begun``, the server's time before epochs were read.

    Raises:
        Failed: SLP203, the database has heard of a newer epoch.
    """
    if (known := epoch(connection)) > number:
        raise Failed("SLP203", f"the database is under epoch {known}, not {number}",
                     help="another side was promoted; see `slipway readiness`")  # fmt: skip
    connection.execute("SELECT setval('slipway.epoch', %s)", [number])
    until = round((begun + lease).timestamp() * 1_000_000)
    connection.execute("SELECT setval('slipway.lease', %s)", [until])


def close(connection: psycopg.Connection, number: int) -> int:
    """See ``Fence.close``."""
    connection.execute(
        "SELECT setval('slipway.epoch', greatest(%s, (SELECT last_value FROM slipway.epoch)))",
        [number],
    )
    connection.execute("SELECT setval('slipway.lease', 0)")
    row = connection.execute(
        "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity "
        "WHERE datname = current_database() AND pid <> pg_backend_pid() "
        "AND backend_type = 'client backend' AND application_name <> %s",
        [APPLICATION_NAME],
    ).fetchone()
    return int(row[0]) if row else 0


def state(connection: psycopg.Connection) -> FenceState:
    """See ``Fence.state``."""
    row = connection.execute(
        "SELECT to_regclass('slipway.lease') IS NOT NULL AND EXISTS (SELECT 1 FROM pg_proc p "
        "JOIN pg_namespace n ON n.oid = p.pronamespace WHERE n.nspname = 'slipway' "
        "AND p.proname = 'fence'), clock_timestamp()"
    ).fetchone()
    assert row is not None
    armed, now = bool(row[0]), row[1]
    unfenced = connection.execute(_UNFENCED, [TRIGGER]).fetchall()
    names = tuple(f"{schema}.{table}" for schema, table in unfenced)
    if not armed:
        return FenceState(False, 0, datetime.fromtimestamp(0, UTC), now, names)
    found = connection.execute(
        "SELECT (SELECT last_value FROM slipway.epoch), (SELECT last_value FROM slipway.lease), "
        "clock_timestamp()"
    ).fetchone()
    assert found is not None
    until = datetime.fromtimestamp(int(found[1]) / 1_000_000, UTC)
    return FenceState(True, int(found[0]), until, found[2], names)


def cover(connection: psycopg.Connection) -> tuple[str, ...]:
    """See ``Fence.cover``."""
    covered = []
    for schema, table in connection.execute(_UNFENCED, [TRIGGER]).fetchall():
        name = sql.Identifier(str(schema), str(table))
        connection.execute(
            sql.SQL(
                "CREATE OR REPLACE TRIGGER {} BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON {} "
                "FOR EACH STATEMENT EXECUTE FUNCTION slipway.fence()"
            ).format(sql.Identifier(TRIGGER), name)
        )
        covered.append(f"{schema}.{table}")
    for schema, table in connection.execute(_NO_IDENTITY).fetchall():
        name = sql.Identifier(str(schema), str(table))
        connection.execute(sql.SQL("ALTER TABLE {} REPLICA IDENTITY FULL").format(name))
    return tuple(covered)
