"""PostgreSQL as a source of a recovery point: the data, the roles, and the heartbeat."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import IO, Any

import psycopg

from blocks.postgres_programs import (
    Login,
    Program,
    end,
    error_file,
    find,
    last_words,
    server_version,
    telling_line,
)
from domain.errors import Failed
from domain.pg_archive import ArchiveReader, Sample
from domain.pg_inventory import Inventory
from domain.recovery import Facts, MemberKind

_READ_BYTES = 1 << 18  # asking for more than a pipe gives only makes room that stays empty


class PostgresSource:
    """One database, by ``pg_dump -Fc -Z0``: uncompressed, so that it can be hashed as it passes.

    Args:
        url: of the database. It holds the password, which no argument and no message shows.
        folder: where pg_dump is; without it, the first that is not older than the server.
        rows: look at each row as it passes; see ``ArchiveReader``.
        sample_rows: rows of each table that ``PostgresStream.sample`` keeps.
        lock_wait: how long a table may be locked by a migration before the dump fails; without a
            limit both would wait for as long as it runs, and everything else behind them.
    """

    kind = MemberKind.POSTGRES

    def __init__(
        self,
        url: str,
        *,
        folder: Path | None = None,
        rows: bool = True,
        sample_rows: int = 0,
        lock_wait: timedelta = timedelta(minutes=5),
    ) -> None:
        self._login, self._folder = Login(url), folder
        self._rows, self._sample_rows = rows, sample_rows
        self._lock_wait = lock_wait

    @contextmanager
    def open(self) -> Iterator[PostgresStream]:
        """Start a dump of one snapshot.

        The moment of the data is read from the server's clock *before* the snapshot is taken:
        whatever was committed by then is in the dump. The snapshot is then given to pg_dump.

        Raises:
            UsageError: SLP120, pg_dump is missing or older than the server.
            Unauthorised: SLP129. Failed: SLP128.
        """
        with self._login.connect() as connection, error_file() as errors:
            major, version = server_version(connection)
            program = find("pg_dump", server=major, folder=self._folder)
            with self._snapshot(connection) as (snapshot, data_time, extensions):
                process = program.start(
                    "--format=custom", "--compress=0", "--no-password", f"--snapshot={snapshot}",
                    # A copy that was restored elsewhere follows nobody, and nobody follows it.
                    "--no-publications", "--no-subscriptions",
                    f"--lock-wait-timeout={int(self._lock_wait.total_seconds() * 1000)}",
                    self._login.argument,
                    environ=self._login.environ, errors=errors, stdout=subprocess.PIPE,
                )  # fmt: skip
                try:
                    yield PostgresStream(
                        process, errors, self._login,
                        ArchiveReader(rows=self._rows, sample_rows=self._sample_rows),
                        _Known(data_time, extensions, program, version),
                    )  # fmt: skip
                finally:
                    end(process)

    @contextmanager
    def _snapshot(
        self, connection: psycopg.Connection
    ) -> Iterator[tuple[str, datetime, dict[str, str]]]:
        try:
            connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY")
            # It waits for pg_dump, which may wait for a lock: not idle because forgotten.
            connection.execute("SET LOCAL idle_in_transaction_session_timeout = 0")
            row = connection.execute(
                "SELECT pg_export_snapshot(), transaction_timestamp()"
            ).fetchone()
            extensions = connection.execute(
                "SELECT extname, extversion FROM pg_extension"
            ).fetchall()
        except psycopg.Error as error:
            raise self._login.refused(error) from error
        assert row is not None
        yield str(row[0]), row[1], {str(name): str(version) for name, version in extensions}
        with contextlib.suppress(psycopg.Error):  # the database may have been dropped meanwhile
            connection.execute("ROLLBACK")


@dataclass(frozen=True)
class _Known:
    """What is known of a dump before its first byte."""

    data_time: datetime
    extensions: dict[str, str]
    program: Program
    server: str


@dataclass
class PostgresStream:
    """The bytes of one pg_dump, hashed table by table as they pass."""

    _process: subprocess.Popen[bytes] = field(repr=False)
    _errors: IO[bytes] = field(repr=False)
    _login: Login
    _reader: ArchiveReader
    _known: _Known
    _inventory: Inventory | None = None

    def read(self, size: int) -> bytes:
        """Raises: Failed: SLP121, pg_dump failed, also after its last byte; SLP122."""
        if self._inventory is not None:
            return b""
        assert self._process.stdout is not None
        data = os.read(self._process.stdout.fileno(), min(size, _READ_BYTES))
        if data:
            self._reader.feed(data)
            return data
        code = self._process.wait()
        if code != 0:
            raise self._failed(code)
        self._inventory = self._with_versions(self._reader.close())
        return b""

    def inventory(self) -> Inventory:
        """Of what was read.

        Raises:
            RuntimeError: the stream has not ended.
        """
        if self._inventory is None:
            raise RuntimeError("the dump has not ended, so what is in it is not known")
        return self._inventory

    def facts(self) -> Facts:
        inventory = self.inventory()
        return Facts(
            data_time=self._known.data_time,
            tools={"pg_dump": self._known.program.version, "postgresql": self._known.server},
            inventory=inventory.model_dump(mode="json"),
        )

    def sample(self) -> Sample:
        """The small copy of the archive, for damaged twins; after the end."""
        self.inventory()
        return self._reader.sample()

    def _with_versions(self, inventory: Inventory) -> Inventory:
        versions: dict[str, Any] = {
            name: self._known.extensions.get(name) for name in inventory.extensions
        }
        return inventory.model_copy(update={"extensions": versions})

    def _failed(self, code: int) -> Failed:
        said = last_words(self._errors, self._login)
        locked = "LOCK TABLE" in said and "timeout" in said
        what = (
            "wait for what holds the lock of a table, a migration or a forgotten session,"
            if locked
            else "correct what it names"
        )
        how = f"was ended by signal {-code}" if code < 0 else f"ended with {code}"
        return Failed(
            "SLP121",
            f"pg_dump of {self._login.place} {how}: {telling_line(said)}",
            help=f"{what} and run the backup again; nothing of this one is kept",
            detail=said,
        )


class GlobalsSource:
    """Roles, memberships and tablespaces of the server, as SQL.

    Without passwords: these are never saved, so a restored role has none until somebody sets
    one. That also makes it work where nobody is superuser (RDS, Cloud SQL).
    """

    kind = MemberKind.GLOBALS

    def __init__(self, url: str, *, folder: Path | None = None) -> None:
        self._login, self._folder = Login(url), folder

    @contextmanager
    def open(self) -> Iterator[GlobalsStream]:
        """Start reading the roles.

        Raises:
            UsageError: SLP120. Unauthorised: SLP129. Failed: SLP128.
        """
        with self._login.connect() as connection, error_file() as errors:
            major, version = server_version(connection)
            program = find("pg_dumpall", server=major, folder=self._folder)
            row = connection.execute("SELECT clock_timestamp()").fetchone()
            assert row is not None
            process = program.start(
                "--globals-only", "--no-role-passwords", "--no-password",
                self._login.argument,
                environ=self._login.environ, errors=errors, stdout=subprocess.PIPE,
            )  # fmt: skip
            try:
                yield GlobalsStream(
                    process, errors, self._login, _Known(row[0], {}, program, version)
                )
            finally:
                end(process)


@dataclass
class GlobalsStream:
    """The text of one ``pg_dumpall --globals-only``."""

    _process: subprocess.Popen[bytes] = field(repr=False)
    _errors: IO[bytes] = field(repr=False)
    _login: Login
    _known: _Known
    _roles: int = 0
    _last: bytes = b""
    _ended: bool = False

    def read(self, size: int) -> bytes:
        """Raises: Failed: SLP126, pg_dumpall failed, also after its last byte."""
        if self._ended:
            return b""
        assert self._process.stdout is not None
        data = os.read(self._process.stdout.fileno(), min(size, _READ_BYTES))
        if data:
            text = self._last + data
            self._roles += text.count(b"\nCREATE ROLE ")
            self._last = text[-len(b"\nCREATE ROLE ") + 1 :]
            return data
        code = self._process.wait()
        if code != 0 or not self._roles:
            said = last_words(self._errors, self._login)
            raise Failed(
                "SLP126",
                f"pg_dumpall of {self._login.place} ended with {code} and {self._roles} roles: "
                f"{telling_line(said)}",
                help="give the login of the backup the right to read pg_roles",
                detail=said,
            )
        self._ended = True
        return b""

    def facts(self) -> Facts:
        if not self._ended:
            raise RuntimeError("the roles have not been read to their end")
        return Facts(
            data_time=self._known.data_time,
            tools={"pg_dumpall": self._known.program.version, "postgresql": self._known.server},
            inventory={"roles": self._roles, "passwords": "never saved"},
        )


# Heartbeat

_HEARTBEAT = """
CREATE SCHEMA IF NOT EXISTS slipway;
CREATE TABLE IF NOT EXISTS slipway.heartbeat (
    sequence bigint NOT NULL,
    at timestamptz NOT NULL DEFAULT clock_timestamp(),
    source text NOT NULL
);
CREATE INDEX IF NOT EXISTS heartbeat_at ON slipway.heartbeat (at);
"""


@dataclass(frozen=True)
class Beat:
    """One heartbeat: how far the data goes, by the clock of the server that wrote it."""

    sequence: int
    at: datetime
    source: str


def beat(url: str, sequence: int, *, source: str = "backup") -> Beat:
    """Write a row, and make its table where it is missing.

    Raises:
        Failed: SLP127, the server refuses. Unauthorised: SLP129. Failed: SLP128.
    """
    login = Login(url)
    with login.connect() as connection:
        try:
            there = connection.execute("SELECT to_regclass('slipway.heartbeat')").fetchone()
            if there is None or there[0] is None:
                with connection.transaction():
                    # Two that make it at once would make PostgreSQL fail the second.
                    connection.execute(
                        "SELECT pg_advisory_xact_lock(hashtext('slipway.heartbeat'))"
                    )
                    connection.execute(_HEARTBEAT)
            row = connection.execute(
                "INSERT INTO slipway.heartbeat (sequence, source) VALUES (%s, %s) RETURNING at",
                [sequence, source],
            ).fetchone()
        except psycopg.Error as error:
            raise _no_heartbeat(login, error) from error
    assert row is not None
    return Beat(sequence, row[0], source)


def newest_beat(url: str) -> Beat | None:
    """The last row written, or None when there is none or no table.

    Raises:
        Failed: SLP127, the table cannot be read. Unauthorised: SLP129. Failed: SLP128.
    """
    login = Login(url)
    with login.connect() as connection:
        try:
            there = connection.execute("SELECT to_regclass('slipway.heartbeat')").fetchone()
            if there is None or there[0] is None:
                return None
            row = connection.execute(
                "SELECT sequence, at, source FROM slipway.heartbeat ORDER BY at DESC LIMIT 1"
            ).fetchone()
        except psycopg.Error as error:
            raise _no_heartbeat(login, error) from error
    return None if row is None else Beat(int(row[0]), row[1], str(row[2]))


def _no_heartbeat(login: Login, error: psycopg.Error) -> Failed:
    said = login.without_secrets(" ".join(str(error).split()))
    return Failed(
        "SLP127",
        f"the heartbeat in {login.place} could not be written or read: {said}",
        help="let this login create the schema slipway, or create it and grant usage on it",
    )
