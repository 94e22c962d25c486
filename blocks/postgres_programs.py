"""PostgreSQL's client programs: found, new enough, and given a login that no argument shows."""

from __future__ import annotations

import contextlib
import fcntl
import os
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import psycopg
from psycopg import conninfo, pq

from blocks.postgres_server_process import folders_with, version_of
from domain.errors import Failed, SlipwayError, Unauthorised, UsageError
from domain.redaction import Redactor, secrets_in

_KEPT = ("HOME", "LANG", "LC_ALL", "PATH", "TMPDIR", "LD_LIBRARY_PATH", "USER", "LOGNAME")
_STDERR_BYTES = 16_384
PIPE_BYTES = 1 << 20

# What is written must not depend on the settings of a server or a database: the text of times
# and bytes is hashed, and another copy of the data gives the same only under the same settings.
_SAME_TEXT = {"PGTZ": "UTC", "PGOPTIONS": "-c bytea_output=hex -c xmlbinary=base64"}

APPLICATION_NAME = "slipway"
"""Of our sessions: who closes a side spares them."""

# A cut of a minute is waited through; after that the dump or restore fails, and does not hang for
# the two hours that systems wait by themselves.
_NOTICE_A_DEAD_NETWORK = {
    "keepalives_idle": "30",
    "keepalives_interval": "10",
    "keepalives_count": "6",
    "tcp_user_timeout": "90000",
}
_OPTIONS = pq.Conninfo.get_defaults()
_VARIABLES = {o.keyword.decode(): o.envvar.decode() for o in _OPTIONS if o.envvar}


def _secret_options() -> set[str]:
    """libpq itself marks what a form must show as stars."""
    return {option.keyword.decode() for option in _OPTIONS if option.dispchar == b"*"}


@dataclass(frozen=True)
class Login:
    """Where a database is and who asks, for a client program's environment.

    Args:
        url: ``postgresql://user:password@host:port/database``, or any connection string of libpq.

    Raises:
        Failed: SLP128, the string cannot be read.
    """

    url: str = field(repr=False)
    _parts: dict[str, str] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        try:
            parts = {k: str(v) for k, v in conninfo.conninfo_to_dict(self.url).items()}
        except psycopg.ProgrammingError as error:
            raise Failed(
                "SLP128",
                "the address of the database cannot be read",
                help="write it as postgresql://USER:PASSWORD@HOST:PORT/DATABASE",
            ) from error
        object.__setattr__(self, "_parts", parts)

    @property
    def database(self) -> str:
        return self._parts.get("dbname") or self._parts.get("user", "")

    @property
    def place(self) -> str:
        """For messages: the address without a login."""
        host, port = self._parts.get("host", "localhost"), self._parts.get("port", "5432")
        return f"{host}:{port}/{self.database}"

    @property
    def environ(self) -> dict[str, str]:
        """Environment of a program that connects there; other users cannot read it.

        Raises:
            Failed: SLP128, a secret part of the string has no variable.
        """
        homeless = sorted(self._homeless() & _secret_options())
        if homeless:
            raise Failed(
                "SLP128",
                f"the address of the database has {', '.join(homeless)}, which could only be "
                "passed on where every user of the machine reads it",
                help="leave it out of the address",
            )
        environ = {key: os.environ[key] for key in _KEPT if key in os.environ}
        environ |= {**_SAME_TEXT, "PGAPPNAME": APPLICATION_NAME}
        environ |= {_VARIABLES[k]: v for k, v in self._parts.items() if k in _VARIABLES}
        if asked := self._parts.get("options"):
            environ["PGOPTIONS"] = f"{asked} {_SAME_TEXT['PGOPTIONS']}"
        return environ

    @property
    def argument(self) -> str:
        """``--dbname=...`` with what is no secret and has no variable."""
        rest = {key: self._parts[key] for key in self._homeless()}
        # Quoted by libpq's rules, should the name of the database look like an address.
        return "--dbname=" + conninfo.make_conninfo(
            dbname=self.database, **{**_NOTICE_A_DEAD_NETWORK, **rest}
        )

    def _homeless(self) -> set[str]:
        return self._parts.keys() - _VARIABLES.keys()

    def to(self, database: str) -> Login:
        return Login(conninfo.make_conninfo(self.url, dbname=database))

    def without_secrets(self, text: str) -> str:
        return Redactor(secrets_in(self._parts)).text(text)

    @contextmanager
    def connect(self) -> Iterator[psycopg.Connection]:
        """A connection in autocommit, whose times and texts can be read in any database.

        Raises:
            Unauthorised: SLP129, the login is refused.
            Failed: SLP128, the server or the database is not there.
        """
        try:
            connection = psycopg.connect(
                conninfo.make_conninfo(
                    self.url,
                    **{
                        "application_name": APPLICATION_NAME,
                        **_NOTICE_A_DEAD_NETWORK,
                        **self._parts,
                    },
                ),
                autocommit=True,
                connect_timeout=10,
            )
            connection.execute(
                "SET datestyle = 'ISO'; SET timezone = 'UTC'; SET client_encoding = 'UTF8'"
            )
        except psycopg.Error as error:
            raise self.refused(error) from error
        with contextlib.closing(connection):
            yield connection

    def refused(self, error: psycopg.Error) -> SlipwayError:
        """The typed error for a connection that was not made, or was lost."""
        said = self.without_secrets(" ".join(str(error).split()))
        login = ("28P01", "28000", "42501")
        # A refusal while connecting carries no code, only libpq's text.
        words = ("authentication failed", "no pg_hba.conf entry", 'role "', "permission denied")
        if error.sqlstate in login or any(word in said for word in words):
            return Unauthorised(
                "SLP129",
                f"PostgreSQL at {self.place} refuses the login: {said}",
                help="correct the login in the block that names this database",
            )
        return Failed(
            "SLP128",
            f"PostgreSQL at {self.place} does not answer: {said}",
            help="check that the server runs and the database exists; then run it again",
        )


@dataclass(frozen=True)
class Program:
    """One of PostgreSQL's programs on this machine."""

    path: Path
    major: int
    version: str

    def start(
        self,
        *arguments: str,
        environ: Mapping[str, str],
        errors: IO[bytes],
        stdin: int = subprocess.DEVNULL,
        stdout: int = subprocess.DEVNULL,
    ) -> subprocess.Popen[bytes]:
        """Start it in a session of its own, so that a Ctrl-C meant for us does not end it."""
        process = subprocess.Popen(
            [self.path, *arguments],
            env=dict(environ), stdin=stdin, stdout=stdout, stderr=errors, start_new_session=True,
        )  # fmt: skip
        widen(process.stdin)
        widen(process.stdout)
        return process


def widen(pipe: IO[bytes] | None) -> None:
    """Let a pipe hold more than the usual 64 KiB, where the system lets us (Linux).

    A thread of ours may wait some milliseconds for the interpreter; the program goes on meanwhile.
    """
    if pipe is not None and hasattr(fcntl, "F_SETPIPE_SZ"):
        with contextlib.suppress(OSError):
            fcntl.fcntl(pipe.fileno(), fcntl.F_SETPIPE_SZ, PIPE_BYTES)


def find(name: str, *, server: int, folder: Path | None = None, same: bool = False) -> Program:
    """A program that is not older than the server.

    Args:
        name: ``pg_dump``, ``pg_restore``, ...
        server: the server's major version.
        folder: look only here; without it on PATH, in the package and the usual installations.
        same: prefer one of exactly the server's version over one that is newer.

    Raises:
        UsageError: SLP120, there is none, or all are older. An old pg_dump refuses, and a backup
            that did not look at that wrote nothing for months (GitLab, 2017).
    """
    folders = [folder] if folder else list(folders_with(name))
    found = [
        Program(path / name, *version_of(path / name))
        for path in folders
        if os.access(path / name, os.X_OK)
    ]
    fitting = [program for program in found if program.major >= server]
    if not fitting:
        seen = ", ".join(f"{p.version or '?'} in {p.path.parent}" for p in found) or "none"
        raise UsageError(
            "SLP120",
            f"the server is PostgreSQL {server}, and no {name} of that version or a newer one "
            f"is here; seen: {seen}",
            help=f"install the client programs of PostgreSQL {server}, or `pip install "
            "slipway[sandbox]`, which brings those of 18",
        )
    return min(fitting, key=lambda program: program.major) if same else fitting[0]


def server_version(connection: psycopg.Connection) -> tuple[int, str]:
    """``(18, "18.4")`` of a server."""
    number = connection.info.server_version
    said = connection.info.parameter_status("server_version") or str(number)
    return number // 10_000, said


@contextmanager
def error_file() -> Iterator[IO[bytes]]:
    """Where a program writes its errors: a file, which cannot fill up and stop it as a pipe can."""
    with tempfile.TemporaryFile() as file:
        yield file


def last_words(file: IO[bytes], login: Login, lines: int = 6) -> str:
    """The end of what a program said, without credentials."""
    file.seek(0, os.SEEK_END)
    file.seek(max(0, file.tell() - _STDERR_BYTES))
    said = file.read().decode(errors="replace").strip().splitlines()[-lines:]
    return login.without_secrets("\n".join(said))


def telling_line(said: str) -> str:
    """Of a program's last words the one that says what was wrong; hints and queries follow it."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    errors = (line for line in lines if "ERROR:" in line or "error:" in line)
    return next(errors, lines[-1] if lines else "it said nothing")


def end(process: subprocess.Popen[bytes], *, patience_seconds: float = 5) -> None:
    """End a program that we started and do not need any more; harmless when it has ended.

    Its pipes are closed after that: the end of its input might mean to it that all is well.
    """
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(patience_seconds)
        except subprocess.TimeoutExpired:
            process.kill()
    process.wait()
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            with contextlib.suppress(OSError):
                stream.close()
