"""Restores an archive into a database, and checks it against what was saved *before* it commits.

The archive is read once. Each piece is hashed before pg_restore gets it, and the last piece is
held back until everything is known to be what was recorded at dump time: pg_restore cannot end
its one transaction without it, so a damaged archive leaves the target as it was.
"""

from __future__ import annotations

import contextlib
import re
import subprocess
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from queue import Queue
from typing import IO, Protocol

import psycopg
from psycopg import sql

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
from domain.errors import Failed, UsageError
from domain.pg_archive import ArchiveReader
from domain.pg_inventory import Inventory, archive_differences, told

PIECE_BYTES = 1 << 20
_PIECES_AHEAD = 4
_SHOWN = 5

# pg_restore from 17 on sends this, and servers before 17 refuse it.
_UNKNOWN_BEFORE_17 = b"SET transaction_timeout = 0;\n"


class Reader(Protocol):
    """Where an archive comes from: a file, or a member on its way from the store."""

    def read(self, size: int, /) -> bytes:
        """Up to ``size`` bytes; ``b""`` at the end."""
        ...


@dataclass(frozen=True)
class Restored:
    """What a restore did.

    Attributes:
        inventory: of the archive, as it was read; the restored copy may still be otherwise.
        seconds: all of it; ``parse_seconds`` of that was spent hashing.
        kept: the database that was replaced, under its new name.
    """

    inventory: Inventory
    program: str
    seconds: float
    parse_seconds: float
    kept: str | None = None


def restore(
    archive: Reader,
    url: str,
    *,
    expected: Inventory | None = None,
    owners: bool = True,
    replace: bool = False,
    admin_url: str | None = None,
    folder: Path | None = None,
) -> Restored:
    """Restore from a stream, in one transaction.

    Args:
        url: of the target database, which is there and empty.
        expected: recorded at dump time; where the archive holds anything else, nothing is
            committed.
        owners: give objects to their owners and keep grants; the roles must be there.
        replace: allow a target that is not empty. It is not touched until the restore is done,
            into a new database beside it; then that takes its name, and it keeps all its data
            under another one.
        admin_url: of a role that may create databases, for ``replace``; by default ``url``.
        folder: where pg_restore is.

    Raises:
        UsageError: SLP123, the target is not empty; SLP120.
        Failed: SLP122, the archive is damaged or not what was recorded; SLP124, pg_restore
            failed. The target is as it was.
    """
    login = Login(url)
    began = time.monotonic()
    with _target(login, replace, Login(admin_url or url)) as target:
        feed = _Checked(archive, expected)
        with login_version(target.login) as major:
            program = find(
                "pg_restore", server=max(major, feed.dump_major), folder=folder, same=True
            )
            if program.major >= 17 > major:
                _restore_as_script(feed, target.login, program, owners)
            else:
                _restore(feed, target.login, program, owners)
        inventory = feed.inventory()
    return Restored(inventory, program.version, time.monotonic() - began, feed.seconds, target.kept)


def restore_file(
    archive: Path,
    url: str,
    *,
    jobs: int = 1,
    expected: Inventory | None = None,
    owners: bool = True,
    folder: Path | None = None,
) -> Restored:
    """Restore from a file, in several jobs at once: faster, and not one transaction.

    The whole file is checked before the first row is written. When pg_restore fails later, the
    target holds a part and must be dropped; that is why it must be empty, and cannot replace.

    Raises:
        As ``restore``.
    """
    if jobs < 2:
        with archive.open("rb") as file:
            return restore(file, url, expected=expected, owners=owners, folder=folder)
    login = Login(url)
    began = time.monotonic()
    with _target(login, False, login), login_version(login) as major:
        with archive.open("rb") as file:
            feed = _Checked(file, expected)
            for _ in feed.pieces():
                pass
        program = find("pg_restore", server=max(major, feed.dump_major), folder=folder, same=True)
        if program.major >= 17 > major:
            raise UsageError(
                "SLP120",
                f"pg_restore {program.version} cannot run several jobs against PostgreSQL {major}",
                help="restore with one job",
            )
        with error_file() as errors:
            process = program.start(
                *_arguments(login, owners), f"--jobs={jobs}", str(archive),
                environ=login.environ, errors=errors,
            )  # fmt: skip
            try:
                _await(process, errors, login)
            finally:
                end(process)
    return Restored(feed.inventory(), program.version, time.monotonic() - began, feed.seconds)


def contents(connection: psycopg.Connection, most: int = _SHOWN) -> tuple[str, ...]:
    """Names of what a database holds beyond what every new one has; empty for a new one."""
    rows = connection.execute(_CONTENTS, [most]).fetchall()
    return tuple(str(row[0]) for row in rows)


_CONTENTS = """
WITH ours AS (
    SELECT oid, nspname FROM pg_namespace
    WHERE nspname NOT LIKE 'pg\\_%%' AND nspname <> 'information_schema'
), extended AS (
    SELECT classid, objid FROM pg_depend WHERE deptype = 'e'
)
SELECT what FROM (
    SELECT 'table ' || nspname || '.' || relname AS what, 1 AS rank FROM pg_class c
    JOIN ours ON ours.oid = relnamespace
    WHERE relkind IN ('r', 'p', 'v', 'm', 'S', 'f')
      AND ('pg_class'::regclass, c.oid) NOT IN (SELECT classid, objid FROM extended)
    UNION ALL
    SELECT 'function ' || nspname || '.' || proname, 2 FROM pg_proc p
    JOIN ours ON ours.oid = pronamespace
    WHERE ('pg_proc'::regclass, p.oid) NOT IN (SELECT classid, objid FROM extended)
    UNION ALL
    SELECT 'type ' || nspname || '.' || typname, 3 FROM pg_type t
    JOIN ours ON ours.oid = typnamespace
    WHERE typtype IN ('e', 'd', 'r')
      AND ('pg_type'::regclass, t.oid) NOT IN (SELECT classid, objid FROM extended)
    UNION ALL
    SELECT 'schema ' || nspname, 4 FROM ours
    WHERE nspname <> 'public'
      AND ('pg_namespace'::regclass, ours.oid) NOT IN (SELECT classid, objid FROM extended)
    UNION ALL
    SELECT 'large object ' || oid, 5 FROM pg_largeobject_metadata
) AS found ORDER BY rank, what LIMIT %s
"""


@contextmanager
def login_version(login: Login) -> Iterator[int]:
    """The server's major version."""
    with login.connect() as connection:
        major = server_version(connection)[0]
    yield major


# The archive on its way


class _Checked:
    """Pieces of an archive, each hashed first, the last given out only when all is well."""

    def __init__(self, archive: Reader, expected: Inventory | None) -> None:
        self._archive, self._expected = archive, expected
        self._reader = ArchiveReader()
        self._inventory: Inventory | None = None
        self.seconds = 0.0
        self._first = archive.read(PIECE_BYTES)
        self._hash(self._first)

    @property
    def dump_major(self) -> int:
        """Of the pg_dump that wrote it: an older pg_restore cannot read it."""
        return self._reader.dump_major

    def pieces(self) -> Iterator[bytes]:
        held = self._first
        while piece := self._archive.read(PIECE_BYTES):
            self._hash(piece)
            if held:
                yield held
            held = piece
        inventory = self._reader.close()
        if self._expected is not None:
            differences = archive_differences(self._expected, inventory)
            if differences:
                raise Failed(
                    "SLP122",
                    f"the archive is not what was recorded when it was made: {told(differences)}",
                    help="use another copy of this recovery point, or another point",
                    detail="\n".join(map(str, differences[:50])),
                )
        self._inventory = inventory
        yield held

    def inventory(self) -> Inventory:
        assert self._inventory is not None
        return self._inventory

    def _hash(self, piece: bytes) -> None:
        began = time.monotonic()
        self._reader.feed(piece)
        self.seconds += time.monotonic() - began


# Programs


def _arguments(login: Login, owners: bool) -> list[str]:
    """Tablespaces are folders of another machine: everything goes into the target's own."""
    kept = [] if owners else ["--no-owner", "--no-privileges"]
    return ["--exit-on-error", "--no-tablespaces", "--no-password", login.argument, *kept]


def _restore(feed: _Checked, login: Login, program: Program, owners: bool) -> None:
    with error_file() as errors:
        process = program.start(
            "--format=custom", "--single-transaction", *_arguments(login, owners),
            environ=login.environ, errors=errors, stdin=subprocess.PIPE,
        )  # fmt: skip
        try:
            _pump(feed, process)
            _await(process, errors, login)
        finally:
            end(process)


def _restore_as_script(feed: _Checked, login: Login, program: Program, owners: bool) -> None:
    """For a server before 17: pg_restore writes SQL, from which psql gets all it can take.

    A pg_restore of 17 or newer has to read what a pg_dump of that version wrote, and begins with
    a setting that older servers refuse. The transaction is begun and committed by the SQL itself:
    psql's own would be committed at the end of its input, and so also when we are killed.
    """
    psql = find("psql", server=program.major, folder=program.path.parent)
    kept = [] if owners else ["--no-owner", "--no-privileges"]
    with error_file() as errors:
        writer = program.start(
            "--format=custom", "--single-transaction", "--file=-", "--no-tablespaces", *kept,
            environ=login.environ, errors=errors, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        taker = psql.start(
            "--no-psqlrc", "--quiet", "--set=ON_ERROR_STOP=1",
            "--no-password", login.argument,
            environ=login.environ, errors=errors, stdin=subprocess.PIPE,
        )  # fmt: skip
        lines = threading.Thread(target=_pass_on, args=(writer, taker), daemon=True)
        lines.start()
        try:
            _pump(feed, writer)
            _await(writer, errors, login)
            lines.join()
            assert taker.stdin is not None
            with contextlib.suppress(BrokenPipeError):
                taker.stdin.close()
            _await(taker, errors, login)
        finally:
            taker.kill()
            end(writer)
            lines.join()
            end(taker)


def _pass_on(writer: subprocess.Popen[bytes], taker: subprocess.Popen[bytes]) -> None:
    assert writer.stdout is not None and taker.stdin is not None
    # When psql has stopped, closing this pipe stops pg_restore, which stops the one who feeds it.
    with contextlib.suppress(OSError), writer.stdout:
        head = b""
        while b"\nSET row_security" not in head and (line := writer.stdout.readline()):
            head += line
        taker.stdin.write(head.replace(_UNKNOWN_BEFORE_17, b""))
        while piece := writer.stdout.read1(PIECE_BYTES):  # type: ignore[attr-defined]
            taker.stdin.write(piece)
        taker.stdin.flush()


def _pump(feed: _Checked, process: subprocess.Popen[bytes]) -> None:
    """Give the archive to a program, which takes one piece while the next ones are hashed.

    It may stop listening: why, its exit says. When the archive fails, the program is killed before
    it sees the end of its input.
    """
    assert process.stdin is not None
    pieces: Queue[bytes | None] = Queue(_PIECES_AHEAD)
    deaf = threading.Event()
    writer = threading.Thread(target=_write, args=(process.stdin, pieces, deaf), daemon=True)
    writer.start()
    try:
        for piece in feed.pieces():
            if deaf.is_set():
                break
            pieces.put(piece)
    except BaseException:
        process.kill()  # which also ends a write that waits
        raise
    finally:
        pieces.put(None)
        writer.join()
    with contextlib.suppress(BrokenPipeError):
        process.stdin.close()


def _write(stdin: IO[bytes], pieces: Queue[bytes | None], deaf: threading.Event) -> None:
    """Take every piece, also when nobody listens any more, so that no ``put`` waits for ever."""
    while (piece := pieces.get()) is not None:
        if not deaf.is_set():
            try:
                stdin.write(piece)
            except OSError:
                deaf.set()


def _await(process: subprocess.Popen[bytes], errors: IO[bytes], login: Login) -> None:
    code = process.wait()
    if code == 0:
        return
    said = last_words(errors, login, lines=12)
    raise Failed(
        "SLP124",
        f"the restore into {login.place} ended with {code}: {telling_line(said)}",
        help="correct what it names and restore again into an empty database",
        detail=said,
    )


# The target


@dataclass
class _Target:
    login: Login
    kept: str | None = None


@contextmanager
def _target(login: Login, replace: bool, admin: Login) -> Iterator[_Target]:
    with login.connect() as connection:
        try:
            there = contents(connection)
        except psycopg.Error as error:
            raise login.refused(error) from error
    if not there:
        yield _Target(login)
    elif not replace:
        raise UsageError(
            "SLP123",
            f"{login.place} is not empty; it holds {', '.join(there)}"
            f"{' and more' if len(there) == _SHOWN else ''}",
            help="restore into a new database, or ask for --replace, which keeps this one under "
            "another name",
        )
    else:
        with _exchanged(login, admin) as target:
            yield target


@contextmanager
def _exchanged(login: Login, admin: Login) -> Iterator[_Target]:
    """A new database beside the old one, which takes its name when the block ends well."""
    name = login.database
    fresh = f"{name[:40]}__restoring_{uuid.uuid4().hex[:8]}"
    place = admin.to("postgres")
    try:
        with place.connect() as connection:
            _create_like(connection, name, fresh)
        target = _Target(login.to(fresh))
        try:
            yield target
            with place.connect() as connection:
                target.kept = _exchange(connection, name, fresh)
        finally:
            with place.connect() as connection:  # gone already when it has taken the name
                connection.execute(
                    sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(fresh))
                )
    except psycopg.Error as error:
        said = login.without_secrets(" ".join(str(error).split()))
        raise Failed(
            "SLP124",
            f"{login.place} could not be replaced: {said}",
            help="it is as it was; give a login that may create and rename databases, or restore "
            "into a new database",
        ) from error


def _create_like(connection: psycopg.Connection, old: str, new: str) -> None:
    """Encoding, locale, owner, limits, settings and grants are of the database, not in it."""
    row = connection.execute(
        "SELECT pg_encoding_to_char(encoding), datcollate, datctype, pg_get_userbyid(datdba),"
        " datconnlimit, datacl IS NOT NULL FROM pg_database WHERE datname = %s",
        [old],
    ).fetchone()
    if row is None:
        raise psycopg.OperationalError(f"there is no database {old}")
    encoding, collate, ctype, owner, limit, granted = row
    fresh = sql.Identifier(new)
    connection.execute(
        sql.SQL(
            "CREATE DATABASE {} TEMPLATE template0 ENCODING {} LC_COLLATE {} LC_CTYPE {}{}"
            " OWNER {} CONNECTION LIMIT {}"
        ).format(
            fresh, sql.Literal(encoding), sql.Literal(collate), sql.Literal(ctype),
            _provider(connection, old), sql.Identifier(owner), sql.Literal(limit),
        )
    )  # fmt: skip
    if granted:
        connection.execute(sql.SQL("REVOKE ALL ON DATABASE {} FROM PUBLIC").format(fresh))
        grants = connection.execute(
            "SELECT CASE WHEN grantee = 0 THEN NULL ELSE pg_get_userbyid(grantee) END,"
            " privilege_type, is_grantable"
            " FROM pg_database, aclexplode(datacl) WHERE datname = %s",
            [old],
        ).fetchall()
        for grantee, privilege, grantable in grants:
            connection.execute(
                sql.SQL("GRANT {} ON DATABASE {} TO {}{}").format(
                    sql.SQL(privilege),
                    fresh,
                    sql.Identifier(grantee) if grantee else sql.SQL("PUBLIC"),
                    sql.SQL(" WITH GRANT OPTION" if grantable else ""),
                )
            )
    _copy_settings(connection, old, fresh)


def _provider(connection: psycopg.Connection, old: str) -> sql.Composable:
    """ICU and builtin locales have columns of their own, under other names in each version."""
    major = server_version(connection)[0]
    if major < 15:
        return sql.SQL("")
    column = "datlocale" if major >= 17 else "daticulocale"
    row = connection.execute(
        sql.SQL("SELECT datlocprovider, {} FROM pg_database WHERE datname = %s").format(
            sql.Identifier(column)
        ),
        [old],
    ).fetchone()
    assert row is not None
    words = {
        "i": " LOCALE_PROVIDER icu ICU_LOCALE {}",
        "b": " LOCALE_PROVIDER builtin BUILTIN_LOCALE {}",
    }.get(str(row[0]), "")
    return sql.SQL(words).format(sql.Literal(row[1])) if words else sql.SQL("")


def _copy_settings(connection: psycopg.Connection, old: str, fresh: sql.Identifier) -> None:
    rows = connection.execute(
        "SELECT CASE WHEN setrole = 0 THEN NULL ELSE pg_get_userbyid(setrole) END,"
        " unnest(setconfig)"
        " FROM pg_db_role_setting WHERE setdatabase ="
        " (SELECT oid FROM pg_database WHERE datname = %s)",
        [old],
    ).fetchall()
    for role, setting in rows:
        key, _, value = str(setting).partition("=")
        whom = (
            sql.SQL("ROLE {} IN DATABASE {}").format(sql.Identifier(role), fresh)
            if role
            else sql.SQL("DATABASE {}").format(fresh)
        )
        # Lists are kept as SQL writes them, and anything else as one text.
        shown = sql.SQL(value) if key in _LISTS else sql.Literal(value)
        connection.execute(sql.SQL("ALTER {} SET {} TO {}").format(whom, _setting_name(key), shown))


_LISTS = frozenset({"search_path", "session_preload_libraries", "local_preload_libraries"})


def _setting_name(key: str) -> sql.Composable:
    return sql.SQL(".").join(sql.Identifier(part) for part in key.split("."))


def _exchange(connection: psycopg.Connection, name: str, fresh: str) -> str:
    """Both names change in one transaction, so that there is always one database of the name."""
    row = connection.execute("SELECT to_char(clock_timestamp(), 'YYYYMMDDHH24MISSMS')").fetchone()
    assert row is not None
    kept = f"{name[:34]}__replaced_{row[0]}"
    old, new, aside = map(sql.Identifier, (name, fresh, kept))
    connection.execute(sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS false").format(old))
    try:
        connection.execute(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
            " WHERE datname = %s AND pid <> pg_backend_pid()",
            [name],
        )
        with connection.transaction():
            connection.execute(sql.SQL("ALTER DATABASE {} RENAME TO {}").format(old, aside))
            connection.execute(sql.SQL("ALTER DATABASE {} RENAME TO {}").format(new, old))
    except BaseException:
        connection.execute(sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS true").format(old))
        raise
    connection.execute(sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS true").format(aside))
    return kept


# Roles

_STATEMENT = re.compile(r"(?:[^;'\"]|'(?:[^']|'')*'|\"(?:[^\"]|\"\")*\")+;")
_SKIPPED = re.compile(r"(?:SET |CREATE TABLESPACE|ALTER TABLESPACE|GRANT .* ON TABLESPACE|COMMENT)")
_GRANTED_BY = re.compile(r"\s+GRANTED BY (?:\"(?:[^\"]|\"\")*\"|[\w$]+)\s*;$")


def restore_globals(text: str, url: str) -> tuple[str, ...]:
    """Make the roles and memberships of a saved server in another one.

    Tablespaces are left out: they are folders of the machine that was saved. So is who granted a
    membership, since that must be somebody who may do so here. A role that is there stays, and
    gets the saved attributes.

    Args:
        text: as ``GlobalsSource`` gave it.
        url: of a role that may make roles; for a proof, of a disposable server.

    Returns:
        What the server refused beyond that: a setting of an extension that it lacks, an
        attribute that its provider reserves.

    Raises:
        Failed: SLP126, there is no role in the text, or one could not be made.
    """
    login = Login(url)
    lines = (line for line in text.splitlines() if not line.startswith(("--", "\\")))
    statements = [found.strip() for found in _STATEMENT.findall("\n".join(lines))]
    if not any(statement.startswith("CREATE ROLE") for statement in statements):
        raise Failed(
            "SLP126",
            "the saved roles hold no role at all",
            help="use another copy of this recovery point, or another point",
        )
    refused = []
    with login.connect() as connection:
        for statement in statements:
            if _SKIPPED.match(statement):
                continue
            try:
                connection.execute(_GRANTED_BY.sub(";", statement).encode())
            except psycopg.errors.DuplicateObject:
                continue
            except psycopg.Error as error:
                said = login.without_secrets(" ".join(str(error).split()))
                if statement.startswith("CREATE ROLE"):
                    raise Failed(
                        "SLP126",
                        f"{statement} was refused by {login.place}: {said}",
                        help="give a login that may create roles",
                    ) from error
                refused.append(f"{statement.splitlines()[0][:80]}: {said}")
    return tuple(refused)
