"""A database that follows another in a second cloud, by PostgreSQL's logical replication.

Rows are replicated, in the order of their commits. What is not, and what stands in for it:

- sequences: the keeper of the primary writes them into ``slipway.sequences``, which is replicated;
- the schema: copied when following begins; ``tasks.standing_by`` tells when it has drifted;
- large objects and unlogged tables: not at all.
"""

from __future__ import annotations

import contextlib
import subprocess
import time
from dataclasses import dataclass
from datetime import datetime

import psycopg
from psycopg import sql

from blocks import keeper
from blocks.postgres_programs import Login, error_file, find, last_words, server_version
from domain.errors import Failed

SEQUENCE_MARGIN = 10_000
"""Values that may have been drawn since the last record, which is at most a lease old."""
_POLL_SECONDS = 0.05
# What a newer pg_dump writes, and servers before 17 refuse.
_UNKNOWN_BEFORE_17 = b"SET transaction_timeout = 0;\n"


@dataclass(frozen=True)
class Following:
    """How a standby follows, as it says itself.

    Attributes:
        copied: every table has its first copy.
        alive: the worker that applies changes runs.
        newest_beat: commit time, by the primary's clock, of the newest heartbeat that is here.
        waiting: tables that are not copied yet.
    """

    copied: bool
    alive: bool
    newest_beat: datetime | None
    waiting: tuple[str, ...] = ()


class Replication:
    """One primary and one standby.

    Args:
        primary_url: as a role that may publish; the standby's server connects with it too.
        standby_url: of the standby's database, as a role that may subscribe.
        owner_url: the same database as the role that is to own its tables.
        name: of publication, subscription and slot; ``[a-z0-9_]``.

    Raises:
        Failed: SLP207, the servers do not do what is asked. SLP128. Unauthorised: SLP129.
    """

    def __init__(self, primary_url: str, standby_url: str, owner_url: str, name: str) -> None:
        self.primary, self.standby, self._owner = (
            Login(primary_url),
            Login(standby_url),
            Login(owner_url),
        )
        self.name = name

    def begin(self) -> None:
        """Publish all tables, make them at the standby, and subscribe to them."""
        with self.primary.connect() as connection:
            row = connection.execute("SHOW wal_level").fetchone()
            if row is None or row[0] != "logical":
                raise Failed("SLP207", f"{self.primary.place} has wal_level {row and row[0]}",
                             help="set wal_level = logical and start the server again")  # fmt: skip
            with self._asking(self.primary):
                connection.execute(
                    sql.SQL("CREATE PUBLICATION {} FOR ALL TABLES").format(self._identifier)
                )
        self.copy_schema()
        with self.standby.connect() as connection, self._asking(self.standby):
            connection.execute(
                sql.SQL(
                    "CREATE SUBSCRIPTION {} CONNECTION {} PUBLICATION {} "
                    "WITH (copy_data = true, streaming = on, disable_on_error = false)"
                ).format(
                    self._identifier,
                    sql.Literal(self._connection_string()),
                    self._identifier,
                )
            )

    def is_set_up(self) -> bool:
        """Whether the standby subscribes; not whether it gets anything."""
        with self.standby.connect() as connection, self._asking(self.standby):
            row = connection.execute(
                "SELECT 1 FROM pg_subscription s JOIN pg_database d ON d.oid = s.subdbid "
                "WHERE s.subname = %s AND d.datname = current_database()",
                [self.name],
            ).fetchone()
        return row is not None

    def copy_schema(self) -> None:
        """Make the primary's schema in the standby's empty database."""
        with self.primary.connect() as connection:
            major, _ = server_version(connection)
        text = _program_output(
            "pg_dump", major, self.primary,
            "--schema-only", "--no-owner", "--no-privileges", "--no-publications",
            "--no-subscriptions", "--no-password",
        )  # fmt: skip
        if major < 17:
            text = text.replace(_UNKNOWN_BEFORE_17, b"")
        _program_output(
            "psql", major, self._owner,
            "--no-psqlrc", "--quiet", "--single-transaction", "--set=ON_ERROR_STOP=1",
            "--no-password", feed=text,
        )  # fmt: skip

    def await_copied(self, seconds: float) -> None:
        """Until every table has its first copy.

        Raises:
            Failed: SLP207 with the tables that are still waiting.
        """
        deadline = time.monotonic() + seconds
        with self.standby.connect() as connection:
            while True:
                seen = self._look(connection)
                if seen.copied:
                    return
                if time.monotonic() > deadline:
                    raise Failed(
                        "SLP207",
                        f"{self.standby.place} had not copied {', '.join(seen.waiting) or 'all'} "
                        f"after {seconds:g} s",
                        help="see the log of that PostgreSQL server for why",
                    )
                time.sleep(_POLL_SECONDS)

    def following(self) -> Following:
        """How far the standby is."""
        with self.standby.connect() as connection, self._asking(self.standby):
            return self._look(connection)

    def await_beat(self, after: datetime, seconds: float) -> bool:
        """Until a heartbeat of that moment or later has arrived: all that was committed before
        it is here. False when the time was not enough."""
        deadline = time.monotonic() + seconds
        with self.standby.connect() as connection, self._asking(self.standby):
            while time.monotonic() < deadline:
                beat = self._look(connection).newest_beat
                if beat is not None and beat >= after:
                    return True
                time.sleep(_POLL_SECONDS)
        return False

    def promote(self) -> list[str]:
        """Stop following for good, and move the sequences past what the primary may have drawn.

        What has been received is applied. The primary is not asked: it may be gone.

        Returns:
            What was done, a sentence each.
        """
        with self.standby.connect() as connection, self._asking(self.standby):
            self._detach(connection)
            moved = keeper.advance_sequences(connection, SEQUENCE_MARGIN)
        return [f"stopped following {self.primary.place}", f"{len(moved)} sequences moved on"]

    def forget_at_standby(self) -> None:
        """Remove the subscription without asking the primary; harmless when it is gone."""
        with self.standby.connect() as connection, self._asking(self.standby):
            self._detach(connection)

    def forget_at_primary(self) -> None:
        """Remove publication and slot, which would keep the primary's log for ever."""
        with self.primary.connect() as connection, self._asking(self.primary):
            connection.execute(sql.SQL("DROP PUBLICATION IF EXISTS {}").format(self._identifier))
            connection.execute(
                "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots "
                "WHERE slot_name = %s AND active_pid IS NOT NULL",
                [self.name],
            )
            deadline = time.monotonic() + 5
            while True:
                try:
                    connection.execute(
                        "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots "
                        "WHERE slot_name = %s",
                        [self.name],
                    )
                    return
                except psycopg.errors.ObjectInUse:
                    if time.monotonic() > deadline:
                        raise
                    time.sleep(_POLL_SECONDS)

    def _look(self, connection: psycopg.Connection) -> Following:
        rows = connection.execute(
            "SELECT r.srrelid::regclass::text FROM pg_subscription s "
            "JOIN pg_subscription_rel r ON r.srsubid = s.oid "
            "WHERE s.subname = %s AND r.srsubstate <> 'r' ORDER BY 1",
            [self.name],
        ).fetchall()
        known = connection.execute(
            "SELECT (SELECT count(*) FROM pg_subscription s JOIN pg_subscription_rel r "
            "ON r.srsubid = s.oid WHERE s.subname = %s), "
            "EXISTS (SELECT 1 FROM pg_stat_subscription WHERE subname = %s AND pid IS NOT NULL), "
            "(SELECT max(at) FROM slipway.heartbeat)",
            [self.name, self.name],
        ).fetchone()
        assert known is not None
        waiting = tuple(str(row[0]) for row in rows)
        return Following(int(known[0]) > 0 and not waiting, bool(known[1]), known[2], waiting)

    def _detach(self, connection: psycopg.Connection) -> None:
        there = connection.execute(
            "SELECT 1 FROM pg_subscription WHERE subname = %s", [self.name]
        ).fetchone()
        if there is None:
            return
        for words in (
            "ALTER SUBSCRIPTION {} DISABLE",
            "ALTER SUBSCRIPTION {} SET (slot_name = NONE)",
            "DROP SUBSCRIPTION {}",
        ):
            connection.execute(sql.SQL(words).format(self._identifier))

    @property
    def _identifier(self) -> sql.Identifier:
        return sql.Identifier(self.name)

    def _connection_string(self) -> str:
        """With limits, so that the standby notices a dead primary and forgets it."""
        return psycopg.conninfo.make_conninfo(
            self.primary.url, connect_timeout=5, keepalives_idle=5, keepalives_interval=2,
            keepalives_count=3,
        )  # fmt: skip

    @contextlib.contextmanager
    def _asking(self, login: Login):  # type: ignore[no-untyped-def]
        try:
            yield
        except psycopg.OperationalError as error:
            raise login.refused(error) from error
        except psycopg.Error as error:
            said = login.without_secrets(" ".join(str(error).split()))
            raise Failed(
                "SLP207",
                f"{login.place} does not follow or publish: {said}",
                help="see `slipway readiness APP`",
            ) from error


def differences(one_url: str, other_url: str) -> list[str]:
    """Tables that two databases do not hold the same rows of, each in a clause; ours left out.

    Rows are compared by their number and the sum of 64-bit hashes of their text: an accident does
    not pass, and no order matters.
    """
    one, other = _digests(one_url), _digests(other_url)
    return [
        f"{table}: {_rows_of(one.get(table))} and {_rows_of(other.get(table))}"
        for table in sorted({*one, *other})
        if one.get(table) != other.get(table)
    ]


def _rows_of(seen: tuple[int, str] | None) -> str:
    return "no such table" if seen is None else f"{seen[0]} rows ({seen[1]})"


def _digests(url: str) -> dict[str, tuple[int, str]]:
    login = Login(url)
    with login.connect() as connection:
        try:
            tables = connection.execute(
                "SELECT n.nspname, c.relname FROM pg_class c "
                "JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.relkind = 'r' "
                "AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'slipway')"
            ).fetchall()
            found = {}
            for schema, table in tables:
                row = connection.execute(
                    sql.SQL(
                        "SELECT count(*), coalesce(sum(hashtextextended(t::text, 0)), 0)::text "
                        "FROM {} t"
                    ).format(sql.Identifier(str(schema), str(table)))
                ).fetchone()
                assert row is not None
                found[f"{schema}.{table}"] = (int(row[0]), str(row[1])[-12:])
        except psycopg.Error as error:
            raise login.refused(error) from error
    return found


def forget_subscriptions(url: str) -> None:
    """Remove every subscription of a database, asking nobody: it cannot be dropped with one."""
    login = Login(url)
    with login.connect() as connection:
        rows = connection.execute(
            "SELECT subname FROM pg_subscription s JOIN pg_database d ON d.oid = s.subdbid "
            "WHERE d.datname = current_database()"
        ).fetchall()
    for (name,) in rows:
        Replication(url, url, url, str(name)).forget_at_standby()


def _program_output(
    name: str, major: int, login: Login, *arguments: str, feed: bytes | None = None
) -> bytes:
    program = find(name, server=major, same=True)
    with error_file() as errors:
        done = subprocess.run(
            [program.path, *arguments, login.argument],
            env=login.environ,
            input=feed,
            stdin=subprocess.DEVNULL if feed is None else None,
            stdout=subprocess.PIPE,
            stderr=errors,
        )
        if done.returncode != 0:
            raise Failed(
                "SLP207",
                f"{name} on {login.place} ended with {done.returncode}",
                help="its last words follow",
                detail=last_words(errors, login),
            )
    return done.stdout
