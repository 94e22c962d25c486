"""A PostgreSQL server to throw away: made for one proof, and gone when its user is.

``DisposableServer`` starts this module as a process of its own, which makes the server and waits
at a pipe whose other end its user holds. When the user leaves, or dies of anything, the pipe is
closed, and the process ends the server and removes its folder. When that process itself is
killed, the kernel ends the server (Linux), and the next ``sweep`` removes the folder. Its expiry
is part of the folder's name, and no server outlives that.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import secrets
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from urllib.parse import quote

import psutil
import psycopg
from psycopg import sql

from blocks.postgres_programs import end, find
from blocks.postgres_server_process import end_with_parent, leave_root
from domain.errors import Failed

USER = "slipway_disposable"
_START_SECONDS = 60.0
_END_SECONDS = 10.0
_POLL_SECONDS = 0.02
_YOUNG_SECONDS = 120.0  # a folder that its process may not have signed yet
_LONGEST_SOCKET = 90  # bytes of the folder; the system takes 107 with the socket's name

# Nothing in it is worth a write that waits for the disk.
_SETTINGS = {
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "max_wal_size": "4GB",
    "checkpoint_timeout": "1h",
    "shared_buffers": "128MB",
    "maintenance_work_mem": "256MB",
    "max_connections": "50",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "autovacuum": "off",
}

# Only what has been flushed is sent to followers: without waiting for that they lag by a second.
_PUBLISHING = {
    "wal_level": "logical",
    "max_wal_senders": "10",
    "max_replication_slots": "10",
    "synchronous_commit": "on",
}


class DisposableServer:
    """An empty server for as long as the ``with`` block lasts.

    Its superuser has a name that no application's server has, so that all roles of that one can
    be made in it. Without ``tcp`` it listens on a unix socket alone.

    Args:
        major: the least version of PostgreSQL; the one closest to it on this machine is used.
        lifetime_seconds: after which it ends, whatever its user does.
        tcp: listen on a free loopback port too, with a password that is part of ``url``: for a
            probe of the application, which may know no sockets.
        folder: where such servers live; by default below the system's folder for temporary files.
        binaries: the folder with ``postgres``; without it whichever fits ``major``.
        publishes: others may follow it by logical replication.
        environ: added to that of its processes.
    """

    def __init__(
        self,
        *,
        major: int = 0,
        lifetime_seconds: float = 3600,
        tcp: bool = False,
        folder: Path | None = None,
        binaries: Path | None = None,
        publishes: bool = False,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        self._major, self._lifetime, self._tcp = major, lifetime_seconds, tcp
        self._publishes, self._environ = publishes, dict(environ or {})
        self._base, self._binaries = folder, binaries
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> DisposableServer:
        """Start it.

        Raises:
            UsageError: SLP120, no PostgreSQL of that version or newer is here.
            Failed: SLP125, it did not come up; the detail has its log.
        """
        program = find("postgres", server=self._major, folder=self._binaries, same=self._major > 0)
        base = _base(self._base)
        sweep(self._base)
        until = int(time.time() + self._lifetime)
        self.folder = base / f"{until}-{secrets.token_hex(4)}"
        self.version = program.version
        self._port = _free_port() if self._tcp else 0
        self._password = secrets.token_hex(16)
        self.folder.mkdir(mode=0o700)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "blocks.disposable_postgres", "--folder", str(self.folder),
             "--binaries", str(program.path.parent), "--port", str(self._port),
             "--until", str(until), *(["--publishes"] if self._publishes else [])],
            env={**os.environ, **self._environ},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            start_new_session=True, cwd=Path(__file__).parents[1],
        )  # fmt: skip
        try:
            self._await_ready()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the server and remove its folder; harmless when that is done."""
        if self._process is not None:
            end_of_life = self._process
            self._process = None
            assert end_of_life.stdin is not None
            with contextlib.suppress(OSError):
                end_of_life.stdin.close()  # what the process waits for
            with contextlib.suppress(subprocess.TimeoutExpired):
                end_of_life.wait(30)
            end(end_of_life)
        _remove(self.folder)

    @property
    def pid(self) -> int:
        """Of the server itself."""
        return int((self.folder / "data" / "postmaster.pid").read_text().splitlines()[0])

    @property
    def url(self) -> str:
        return self.url_of("postgres")

    def url_of(self, database: str) -> str:
        name = quote(database, safe="")
        if self._tcp:
            return f"postgresql://{USER}:{self._password}@127.0.0.1:{self._port}/{name}"
        return f"postgresql://{USER}@/{name}?host={quote(str(self.folder), safe='')}"

    def database(self, name: str, *, encoding: str = "UTF8") -> str:
        """The URL of a new, empty database in the encoding of the one that it stands for."""
        words = "CREATE DATABASE {} TEMPLATE template0 ENCODING {} LOCALE 'C'"
        if encoding == "UTF8" and int(self.version.split(".")[0]) >= 17:
            words += " LOCALE_PROVIDER builtin BUILTIN_LOCALE 'C.UTF-8'"
        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute(sql.SQL(words).format(sql.Identifier(name), sql.Literal(encoding)))
        return self.url_of(name)

    def drop(self, name: str) -> None:
        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute(
                sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name))
            )

    def _await_ready(self) -> None:
        assert self._process is not None and self._process.stdin and self._process.stdout
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(self._password.encode() + b"\n")
            self._process.stdin.flush()
        said, deadline = b"", time.monotonic() + _START_SECONDS
        while not said.endswith(b"ready\n"):
            left = deadline - time.monotonic()
            readable, _, _ = select.select([self._process.stdout], [], [], max(0.0, left))
            piece = os.read(self._process.stdout.fileno(), 65_536) if readable else b""
            said += piece
            if not piece:
                raise Failed(
                    "SLP125",
                    f"the disposable PostgreSQL server in {self.folder} did not start within "
                    f"{_START_SECONDS:.0f} seconds",
                    help="free space there, and look at the detail for what it said",
                    detail=(said.decode(errors="replace") + _log(self.folder))[-4000:],
                )


def sweep(folder: Path | None = None) -> tuple[Path, ...]:
    """End and remove what killed users left: servers whose time is over or whose user is gone.

    Returns:
        The folders that were removed.
    """
    removed = []
    for place in sorted(_base(folder).iterdir()):
        if _is_left_over(place):
            _end_server(place)
            _remove(place)
            removed.append(place)
    return tuple(removed)


def remove_all(folder: Path) -> tuple[Path, ...]:
    """End and remove every server in a folder, whoever uses it, and the folder."""
    if not folder.is_dir():
        return ()
    places = tuple(place for place in sorted(folder.iterdir()) if place.is_dir())
    for place in places:
        _end_server(place)
        _remove(place)
    _remove(folder)
    return places


def _is_left_over(place: Path) -> bool:
    until = place.name.partition("-")[0]
    if not until.isdigit() or not place.is_dir() or place.is_symlink():
        return False
    if int(until) < time.time():
        return True
    try:
        signed = json.loads((place / "process.json").read_text())
        return not _lives(signed["pid"], signed["started"])
    except (OSError, ValueError, KeyError):
        with contextlib.suppress(OSError):
            return time.time() - place.stat().st_mtime > _YOUNG_SECONDS
        return False


def _lives(pid: int, started: float) -> bool:
    try:
        process = psutil.Process(pid)
        return process.create_time() == started and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def _end_server(place: Path) -> None:
    """Kill the server of this folder, and its keeper; never a process that only has its number."""
    numbers = []
    with contextlib.suppress(OSError, ValueError, IndexError):
        numbers.append(int((place / "data" / "postmaster.pid").read_text().splitlines()[0]))
    with contextlib.suppress(OSError, ValueError, KeyError):
        numbers.append(int(json.loads((place / "process.json").read_text())["pid"]))
    for number in numbers:
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(number)
            if any(str(place) in word for word in process.cmdline()):
                family = [process, *process.children(recursive=True)]
                for member in family:
                    with contextlib.suppress(psutil.Error):
                        member.kill()
                _await_end(family)


def _await_end(family: list[psutil.Process]) -> None:
    """Until none runs any more. A dead one may stay in the list for as long as its parent likes."""
    deadline = time.monotonic() + _END_SECONDS
    while time.monotonic() < deadline and any(
        _lives(member.pid, member.create_time()) for member in family if member.is_running()
    ):
        time.sleep(_POLL_SECONDS)


def _base(folder: Path | None) -> Path:
    """A folder of ours that others may pass, as the server's own user must, and not write to."""
    base = folder or Path(tempfile.gettempdir()) / f"slipway-postgres-{os.geteuid()}"
    base.mkdir(mode=0o711, exist_ok=True, parents=True)
    about = base.lstat()
    if about.st_uid != os.geteuid() or base.is_symlink() or about.st_mode & 0o022:
        raise Failed(
            "SLP125",
            f"{base} belongs to somebody else or may be written by others",
            help="remove it, or name another folder for temporary files in TMPDIR",
        )
    if len(str(base)) > _LONGEST_SOCKET - 20:
        raise Failed(
            "SLP125",
            f"{base} is too long a path for a unix socket",
            help="name a shorter folder for temporary files in TMPDIR",
        )
    return base


def _remove(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _log(folder: Path) -> str:
    with contextlib.suppress(OSError):
        return (folder / "log").read_text(errors="replace")[-4000:]
    return ""


# The process that keeps the server


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m blocks.disposable_postgres")
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--binaries", type=Path, required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--until", type=int, required=True)
    parser.add_argument("--publishes", action="store_true")
    wanted = parser.parse_args(argv)
    folder: Path = wanted.folder
    _sign(folder)
    password = sys.stdin.buffer.readline().decode().strip()
    if os.geteuid() == 0:
        leave_root(folder, binaries=wanted.binaries)
    try:
        _initialise(folder, wanted.binaries, password)
        server = _start(folder, wanted.binaries, wanted.port, publishes=wanted.publishes)
        try:
            if _came_up(server, folder):
                sys.stdout.write("ready\n")
                sys.stdout.flush()
                _keep(server, wanted.until)
        finally:
            server.send_signal(signal.SIGQUIT)  # at once: nothing of it is kept
            server.wait()
    finally:
        with contextlib.suppress(OSError):
            _remove(folder / "data")
            # The log stays for whoever waits; the folder goes with its user, or with a sweep.
            if not _user_is_there():
                _remove(folder)


def _sign(folder: Path) -> None:
    process = psutil.Process()
    text = json.dumps({"pid": process.pid, "started": process.create_time()})
    (folder / "process.json").write_text(text)


def _initialise(folder: Path, binaries: Path, password: str) -> None:
    secret = folder / "password"
    secret.touch(mode=0o600)
    secret.write_text(password)
    done = subprocess.run(
        [binaries / "initdb", "-D", folder / "data", "-U", USER, "--encoding=UTF8", "--locale=C",
         "--auth-local=trust", "--auth-host=scram-sha-256", f"--pwfile={secret}", "--no-sync"],
        stdin=subprocess.DEVNULL, capture_output=True, text=True,
    )  # fmt: skip
    secret.unlink()
    if done.returncode != 0:
        sys.exit(f"initdb ended with {done.returncode}: {done.stdout}{done.stderr}")


def _start(folder: Path, binaries: Path, port: int, *, publishes: bool) -> subprocess.Popen[bytes]:
    settings = {
        **_SETTINGS,
        **(_PUBLISHING if publishes else {}),
        "unix_socket_directories": str(folder),
        "listen_addresses": "127.0.0.1" if port else "",
    }
    flags = [flag for key, value in settings.items() for flag in ("-c", f"{key}={value}")]
    if port:
        flags += ["-p", str(port)]

    def end_with_us() -> None:
        if sys.platform == "linux":
            end_with_parent(signal.SIGQUIT)

    with (folder / "log").open("wb") as log:
        return subprocess.Popen(
            [binaries / "postgres", "-D", folder / "data", *flags],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, preexec_fn=end_with_us,
        )  # fmt: skip


def _came_up(server: subprocess.Popen[bytes], folder: Path) -> bool:
    """Whether it takes connections; its eighth line says so, long before a client would guess."""
    state = folder / "data" / "postmaster.pid"
    while server.poll() is None and _user_is_there():
        with contextlib.suppress(OSError, IndexError):
            if state.read_text().splitlines()[7].strip() == "ready":
                return True
        time.sleep(_POLL_SECONDS)
    return False


def _user_is_there() -> bool:
    """The user writes nothing more, so a pipe that can be read is one that was closed."""
    return not select.select([sys.stdin.buffer], [], [], 0)[0]


def _keep(server: subprocess.Popen[bytes], until: int) -> None:
    while server.poll() is None and time.time() < until:
        if select.select([sys.stdin.buffer], [], [], 1.0)[0]:
            return


if __name__ == "__main__":
    main()
