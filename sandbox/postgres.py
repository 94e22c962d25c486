"""Start one PostgreSQL server of the sandbox: ``python -m sandbox.postgres``.

Makes the data directory on first use, then *becomes* the server (exec), so the supervisor has
one process to watch. How root runs it is in ``blocks.postgres_server_process``.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from urllib.parse import quote

from blocks.postgres_server_process import leave_root, packaged_binaries
from sandbox.home import Home, Memory
from sandbox.ports import LOOPBACK

USER = "slipway"
binaries = packaged_binaries

SETTINGS: dict[str, str] = {
    "listen_addresses": "127.0.0.1",
    "max_connections": "200",
    "shared_buffers": "64MB",
    "max_wal_size": "512MB",
    "wal_level": "logical",  # a standby in the other cloud may follow
    "fsync": "on",
    "log_min_messages": "warning",
    "timezone": "UTC",
    "log_timezone": "UTC",
    # Two servers idle on a laptop: wake up seldom.
    "bgwriter_delay": "1s",
    "wal_writer_delay": "200ms",
    "autovacuum_naptime": "60s",
}


def major() -> int:
    """Of both servers, as their program says."""
    said = subprocess.run(
        [binaries() / "postgres", "--version"], capture_output=True, text=True, check=True
    ).stdout
    return int(said.split()[-1].partition(".")[0])


def url(port: int, password: str) -> str:
    """Of a server's own database, as its superuser; a secret."""
    return f"postgresql://{USER}:{quote(password, safe='')}@{LOOPBACK}:{port}/postgres"


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m sandbox.postgres", description=__doc__)
    parser.add_argument("--home", required=True)
    parser.add_argument("--name", required=True, help="which server: aws or gcp")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--no-user-namespace", action="store_true", help="as root: use nobody")
    wanted = parser.parse_args(argv)

    signal.signal(signal.SIGINT, signal.SIG_DFL)  # how the supervisor stops us, at any moment
    home = Home.at(wanted.home)
    password = Memory.load(home).secrets["database"]
    place, sockets = home.postgres(wanted.name), home.run / f"postgres-{wanted.name}"
    for folder in (place, sockets):
        folder.mkdir(mode=0o700, exist_ok=True)
    if os.geteuid() == 0:
        leave_root(place, sockets, try_namespace=not wanted.no_user_namespace)
    data = place / "data"
    if not (data / "PG_VERSION").exists():
        _initialise(data, password)
    elif _password_mark(data) != _digest(password):
        _set_password(data, password)
    command = _server_command(data, sockets, wanted.port)
    os.execv(command[0], command)


def _server_command(data: Path, sockets: Path, port: int) -> list[str]:
    settings = {**SETTINGS, "port": str(port), "unix_socket_directories": str(sockets)}
    flags = [flag for key, value in settings.items() for flag in ("-c", f"{key}={value}")]
    return [str(binaries() / "postgres"), "-D", str(data), *flags]


def _initialise(data: Path, password: str) -> None:
    """The data directory appears under its name only when it is complete."""
    fresh = data.parent / "new"
    shutil.rmtree(fresh, ignore_errors=True)
    with tempfile.NamedTemporaryFile("w", dir=data.parent) as secret:
        secret.write(password)
        secret.flush()
        _run(
            "initdb", "-D", str(fresh), "-U", USER, "--encoding=UTF8", "--locale=C",
            "--locale-provider=builtin", "--builtin-locale=C.UTF-8",
            "--auth=scram-sha-256", f"--pwfile={secret.name}",
        )  # fmt: skip
    _mark_password(fresh, password)
    fresh.rename(data)


def _set_password(data: Path, password: str) -> None:
    """The remembered password is another one: somebody removed ``sandbox.json``."""
    quoted = password.replace("'", "''")
    statement = f"alter role {USER} password '{quoted}'\n"
    _run("postgres", "--single", "-D", str(data), "postgres", feed=statement)
    _mark_password(data, password)


def _run(program: str, *arguments: str, feed: str | None = None) -> None:
    done = subprocess.run(
        [binaries() / program, *arguments], input=feed, text=True, capture_output=True
    )
    # A single-user server reports a failed statement and still ends with 0.
    if done.returncode != 0 or "ERROR:" in done.stderr:
        print(done.stdout, done.stderr, sep="", file=sys.stderr)
        sys.exit(f"{program} ended with {done.returncode}")


def _digest(password: str) -> str:
    return hashlib.sha256(password.encode()).hexdigest()


def _password_mark(data: Path) -> str | None:
    try:
        return (data / "slipway.password").read_text()
    except FileNotFoundError:
        return None


def _mark_password(data: Path, password: str) -> None:
    (data / "slipway.password").write_text(_digest(password))


if __name__ == "__main__":
    main()
