"""A PostgreSQL server that holds applications' databases.

Each database has a role of its own that owns nothing else. The role's password is derived from
the server's (HMAC), so that it need not be stored, and a rerun finds the same one.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from urllib.parse import quote, urlsplit, urlunsplit

import psycopg
from psycopg import sql
from tenacity import retry, retry_if_exception_type, stop_after_delay, wait_random_exponential

from domain.errors import Failed
from domain.redaction import Redactor

_DISPOSABLE = "disposable-"  # with a dash, so that no environment's database is called that
_TURN = 0x511B3A7  # any number, the same for everybody who uses this server


class PostgresServer:
    """Creates and drops databases.

    Args:
        admin_url: ``postgresql://user:password@host:port/database`` of a role that may create
            databases and roles.
    """

    def __init__(self, admin_url: str) -> None:
        self._url = urlsplit(admin_url)

    def ensure(self, database: str) -> str:
        """The URL of ``database``, which is created when it is not there."""
        with self._admin() as connection:
            self._ensure_role(connection, database)
            row = connection.execute(
                "SELECT 1 FROM pg_database WHERE datname = %s", [database]
            ).fetchone()
            if row is None:
                self._create(connection, database)
            self._close_to_others(connection, database)
        return self.url(database)

    @contextmanager
    def disposable(self, purpose: str, lifetime: timedelta = timedelta(hours=1)) -> Iterator[str]:
        """The URL of an empty database that is gone afterwards.

        Its expiry is part of its name, so ``sweep`` finds what a killed run left behind, at
        whatever moment it was killed.
        """
        until = int((datetime.now(UTC) + lifetime).timestamp())
        name = f"{_DISPOSABLE}{until}-{purpose[:30]}-{uuid.uuid4().hex[:8]}"
        with self._admin() as connection:
            self._sweep(connection)
            self._ensure_role(connection, name)
            self._create(connection, name)
        try:
            yield self.url(name)
        finally:
            with contextlib.suppress(Failed):  # the next one sweeps it when its time is over
                self.drop(name)

    def drop(self, database: str) -> None:
        with self._admin() as connection:
            self._drop(connection, database)

    def set_aside(self, database: str) -> str:
        """Give a database that holds anything another name, and end its sessions.

        Its subscriptions are left to the caller. Returns the new name; empty when there was
        nothing to keep: then it was dropped.
        """
        with self._admin() as connection:
            found = connection.execute(
                "SELECT 1 FROM pg_database WHERE datname = %s", [database]
            ).fetchone()
            if found is None:
                return ""
            if self._is_empty(database):
                connection.execute(
                    sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(database))
                )
                return ""
            kept = f"{database[:40]}_{datetime.now(UTC):%Y%m%d%H%M%S}"
            connection.execute(
                sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS false").format(
                    sql.Identifier(database)
                )
            )
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s",
                [database],
            )
            connection.execute(
                sql.SQL("ALTER DATABASE {} RENAME TO {}").format(
                    sql.Identifier(database), sql.Identifier(kept)
                )
            )
            connection.execute(
                sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS true").format(sql.Identifier(kept))
            )
        return kept

    def _is_empty(self, database: str) -> bool:
        with _connect(self.admin_url(database)) as connection:
            row = connection.execute(
                "SELECT count(*) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace "
                "WHERE c.relkind IN ('r', 'p') AND n.nspname NOT IN "
                "('pg_catalog', 'information_schema')"
            ).fetchone()
        return row is not None and row[0] == 0

    def databases(self) -> tuple[str, ...]:
        with self._admin() as connection:
            rows = connection.execute(
                "SELECT datname FROM pg_database WHERE NOT datistemplate ORDER BY datname"
            )
            return tuple(str(row[0]) for row in rows)

    def url(self, database: str) -> str:
        """What an application is given; it holds the password, so it is a secret."""
        host = self._url.hostname or "127.0.0.1"
        port = f":{self._url.port}" if self._url.port else ""
        login = f"{quote(database)}:{quote(self._password(database))}"
        return urlunsplit(("postgresql", f"{login}@{host}{port}", f"/{database}", "", ""))

    def admin_url(self, database: str) -> str:
        """``database`` as the role that may read all of it, for whoever saves it."""
        return urlunsplit(self._url._replace(path=f"/{quote(database)}"))

    def major(self) -> int:
        """Of the server's version."""
        with self._admin() as connection:
            return connection.info.server_version // 10_000

    def _ensure_role(self, connection: psycopg.Connection, name: str) -> None:
        row = connection.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", [name]).fetchone()
        verb = "ALTER" if row else "CREATE"
        connection.execute(
            sql.SQL(verb + " ROLE {} LOGIN PASSWORD {}").format(
                sql.Identifier(name), sql.Literal(self._password(name))
            )
        )

    def _create(self, connection: psycopg.Connection, name: str) -> None:
        connection.execute(
            sql.SQL("CREATE DATABASE {} OWNER {}").format(
                sql.Identifier(name), sql.Identifier(name)
            )
        )
        self._close_to_others(connection, name)

    def _drop(self, connection: psycopg.Connection, name: str) -> None:
        who = sql.Identifier(name)
        connection.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(who))
        connection.execute(sql.SQL("DROP ROLE IF EXISTS {}").format(who))

    def _close_to_others(self, connection: psycopg.Connection, name: str) -> None:
        """PostgreSQL lets every role connect to every database unless it is told not to."""
        connection.execute(
            sql.SQL("REVOKE ALL ON DATABASE {} FROM PUBLIC").format(sql.Identifier(name))
        )

    def _sweep(self, connection: psycopg.Connection) -> None:
        """Drop the disposable databases, and roles without one, whose time is over."""
        rows = connection.execute(
            "SELECT datname FROM pg_database UNION SELECT rolname FROM pg_roles"
        ).fetchall()
        now = datetime.now(UTC).timestamp()
        for (name,) in rows:
            found = re.match(rf"{_DISPOSABLE}(\d+)-", str(name))
            if found and int(found[1]) < now:
                self._drop(connection, str(name))

    def _password(self, database: str) -> str:
        key = (self._url.password or "").encode()
        return hmac.new(key, database.encode(), hashlib.sha256).hexdigest()[:32]

    @contextmanager
    def _admin(self) -> Iterator[psycopg.Connection]:
        """A connection in autocommit; a server that is being restarted gets ten seconds.

        One caller at a time, since two that change one role or database at once make
        PostgreSQL fail the second.

        Raises:
            Failed: SLP014 when the server does not answer or refuses, SLP015 on a full disk.
        """
        try:
            with _connect(urlunsplit(self._url)) as connection:
                connection.execute("SET lock_timeout = '30s'")
                connection.execute("SELECT pg_advisory_lock(%s)", [_TURN])
                yield connection
        except psycopg.errors.DiskFull as error:
            raise Failed(
                "SLP015",
                f"PostgreSQL at {self._place} has no space left: {self._said(error)}",
                help="free some space on its disk and run it again",
            ) from error
        except psycopg.Error as error:
            raise Failed(
                "SLP014",
                f"PostgreSQL at {self._place} did not do what it was asked: {self._said(error)}",
                help="see `slipway status`; run it again when the server is back",
            ) from error

    def _said(self, error: psycopg.Error) -> str:
        """The first line, since others may quote statements, and not our password.

        libpq quotes a part of the URL that it cannot read.
        """
        line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        return Redactor([self._url.password or ""]).text(line)

    def limit_connections(self, name: str, most: int) -> None:
        """How many sessions the owner of a database may have; -1 for any number."""
        with self._admin() as connection:
            connection.execute(
                sql.SQL("ALTER ROLE {} CONNECTION LIMIT {}").format(
                    sql.Identifier(name), sql.Literal(most)
                )
            )

    @property
    def _place(self) -> str:
        return f"{self._url.hostname}:{self._url.port}"


@retry(
    retry=retry_if_exception_type(psycopg.OperationalError),
    stop=stop_after_delay(10),
    wait=wait_random_exponential(multiplier=0.2, max=2),
    reraise=True,
)
def _connect(url: str) -> psycopg.Connection:
    return psycopg.connect(url, autocommit=True, connect_timeout=5)


def database_name(application: str, environment: str) -> str:
    """``diet-game`` in ``production`` -> ``diet_game__production``; never two for one.

    PostgreSQL cuts names at 63 bytes, so a long one ends in a hash of the whole.
    """
    name = f"{application}__{environment}".replace("-", "_")
    if len(name) <= 63:
        return name
    return f"{name[:50]}_{hashlib.sha256(name.encode()).hexdigest()[:12]}"
