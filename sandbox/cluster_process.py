"""The processes of a replica: starting them, finding all of them again, ending them.

A replica is more than the pid that was started: programs fork workers, and shells start
programs. Everything that belongs to a replica is in the session of its first process, bears
its marker in the environment, or descends from something that does. A process can leave any
one of these behind; hardly one leaves all three.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import random
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

from domain.workload import WorkloadSpec
from sandbox import home

MARKER = "SLIPWAY_REPLICA"
_KEPT = ("HOME", "LANG", "LC_ALL", "LC_CTYPE", "TMPDIR", "TZ", "USER", "LOGNAME", "SHELL")
_CONTROL = set(";&|()\n")
_KILL_SECONDS = 5.0


# -- what is started -------------------------------------------------------------------------


def search_path(directory: Path) -> str:
    """PATH of a bundle's commands: its own environment, ours, then the system's."""
    own = [str(directory / "venv" / "bin")] if (directory / "venv").is_dir() else []
    return os.pathsep.join(
        [*own, str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]
    )


def is_program(command: str, path: str, directory: Path) -> bool:
    """Whether the command is one program with arguments, so that the shell can become it.

    Then signals reach the program and not a shell that would not pass them on. Assignments,
    shell words and compound commands are left to the shell.
    """
    try:
        words = list(shlex.shlex(command, posix=True, punctuation_chars=True))
        first = shlex.split(command)[0]
    except (ValueError, IndexError):
        return False
    if "\n" in command or any(set(word) <= _CONTROL for word in words if word):
        return False
    if os.sep in first:
        return os.access(directory / "app" / first, os.X_OK)
    return shutil.which(first, path=path) is not None


def environment(
    spec: WorkloadSpec, directory: Path, *, marker: str, port: int | None
) -> dict[str, str]:
    """Everything a replica sees; nothing of ours leaks in, and no application can unset it."""
    venv = directory / "venv"
    fixed = {
        "PATH": search_path(directory),
        "HOST": "127.0.0.1",
        "SLIPWAY_APPLICATION": spec.application,
        "SLIPWAY_ENVIRONMENT": spec.environment,
        "SLIPWAY_SERVICE": spec.service,
        "SLIPWAY_VERSION": spec.version,
        "SLIPWAY_DIGEST": spec.digest,
        MARKER: marker,
    }
    if port is not None:
        fixed["PORT"] = str(port)
    if venv.is_dir():
        fixed["VIRTUAL_ENV"] = str(venv)
    kept = {name: os.environ[name] for name in _KEPT if name in os.environ}
    # By these `slipway down` finds replicas even when no supervisor is left to end them.
    found_by = {name: os.environ[name] for name in (home.MARKER, home.PART) if name in os.environ}
    return {**kept, "PYTHONUNBUFFERED": "1", **spec.environ, **fixed, **found_by}


@dataclass(frozen=True)
class Started:
    pid: int
    born: float
    direct: bool


def start(spec: WorkloadSpec, directory: Path, environ: Mapping[str, str], output: int) -> Started:
    """Start the command in a session of its own. OSError when the machine refuses."""
    direct = is_program(spec.command, environ["PATH"], directory)
    script = f"exec {spec.command}" if direct else spec.command
    process = subprocess.Popen(
        ["/bin/sh", "-c", script],
        cwd=directory / "app",
        env=dict(environ),
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        start_new_session=True,
        umask=0o022,
    )
    # The Reaper collects exits, Popen must not: its own bookkeeping would steal the status.
    process.returncode = 0
    # Not reaped before this turn of the loop ends, so it is there even if it has exited.
    return Started(process.pid, birth(process.pid), direct)


# -- who is there ----------------------------------------------------------------------------


def birth(pid: int) -> float:
    """When the process was made, in units of this system's own; psutil.Error when it has gone.

    On Linux these are ticks since boot, for the time of day that psutil makes of them jumps
    when somebody sets the clock, and every replica would look like a stranger.
    """
    if sys.platform != "linux":
        return psutil.Process(pid).create_time()
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError as error:
        raise psutil.NoSuchProcess(pid) from error
    return float(fields[19])


def is_alive(pid: int, born: float, marker: str) -> bool:
    """Whether that very process runs: same pid, same birth, and not another's marker."""
    try:
        process = psutil.Process(pid)
        if birth(pid) != born:
            return False
        if process.status() in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD):
            return False
        # A program may have overwritten its environment with a title; then it shows no marker.
        return process.environ().get(MARKER, marker) == marker
    except psutil.AccessDenied:
        return True
    except psutil.Error:
        return False


def members(marker: str, pid: int | None = None, born: float | None = None) -> list[int]:
    """Every living process of a replica, in no order."""
    session = pid if pid is not None and _session_is_ours(pid, born) else None
    found: set[int] = set()
    children: dict[int, list[int]] = defaultdict(list)
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.pid == os.getpid() or process.status() == psutil.STATUS_ZOMBIE:
                continue
            children[process.ppid()].append(process.pid)
            if _belongs(process, marker, session):
                found.add(process.pid)
    return sorted(_with_descendants(found, children))


def marked(prefix: str) -> dict[str, list[int]]:
    """Living processes by marker, for all markers that begin so."""
    found: dict[str, list[int]] = defaultdict(list)
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            marker = process.environ().get(MARKER, "")
            if marker.startswith(prefix) and process.status() != psutil.STATUS_ZOMBIE:
                found[marker].append(process.pid)
    return dict(found)


def _session_is_ours(pid: int, born: float | None) -> bool:
    """False once the pid leads another session; while ours has members it cannot be reused."""
    try:
        return born is None or birth(pid) == born
    except psutil.NoSuchProcess:
        return True


def _belongs(process: psutil.Process, marker: str, session: int | None) -> bool:
    with contextlib.suppress(psutil.AccessDenied):
        carried = process.environ().get(MARKER)
        if carried is not None:
            return carried == marker
    return session is not None and os.getsid(process.pid) == session


def _with_descendants(found: set[int], children: Mapping[int, list[int]]) -> set[int]:
    frontier = list(found)
    while frontier:
        fresh = set(children.get(frontier.pop(), ())) - found
        found |= fresh
        frontier.extend(fresh)
    return found


# -- ending ----------------------------------------------------------------------------------


def send(pids: Iterable[int], number: signal.Signals) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, number)


async def kill(marker: str, pid: int | None = None, born: float | None = None) -> list[int]:
    """SIGKILL until nothing is left; returns what would not go within five seconds."""
    deadline = time.monotonic() + _KILL_SECONDS
    while left := await asyncio.to_thread(members, marker, pid, born):
        if time.monotonic() > deadline:
            return left
        send(left, signal.SIGKILL)
        await asyncio.sleep(0.02)
    return []


class Reaper:
    """Collects the exits of our children, and of orphans that the kernel hands to us."""

    def __init__(self) -> None:
        self._waiting: dict[int, asyncio.Future[int | None]] = {}

    def install(self) -> None:
        _adopt_orphans()
        asyncio.get_running_loop().add_signal_handler(signal.SIGCHLD, self.reap)

    def expect(self, pid: int) -> asyncio.Future[int | None]:
        """The exit code of a child that was started in this turn of the loop."""
        return self._waiting.setdefault(pid, asyncio.get_running_loop().create_future())

    def reap(self) -> None:
        with contextlib.suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                pid, status = ended
                future = self._waiting.pop(pid, None)
                if future is not None and not future.done():
                    future.set_result(os.waitstatus_to_exitcode(status))


def _adopt_orphans() -> None:
    """Become the parent of our children's orphans, so that they never stay as zombies."""
    if sys.platform == "linux":
        set_child_subreaper = 36
        ctypes.CDLL(None).prctl(set_child_subreaper, 1, 0, 0, 0)


# -- ports -----------------------------------------------------------------------------------


def free_port(taken: Collection[int]) -> int:
    """A port nobody listens on, outside the range that the kernel gives to outgoing connections.

    A replica keeps its port over restarts; inside that range any client on this machine could
    be sitting on it when the replica comes back.
    """
    low = _first_ephemeral_port()
    for _ in range(200):
        port = random.randint(max(10_000, low - 16_000), low - 1)
        if port not in taken and is_free(port):
            return port
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def is_free(port: int) -> bool:
    """Whether a server could bind the port now, on loopback and on all addresses."""
    return all(_can_bind(address, port) for address in ("127.0.0.1", "0.0.0.0"))


def _can_bind(address: str, port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
        except OSError:
            return False
    return True


def _first_ephemeral_port() -> int:
    try:
        low = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    except (OSError, ValueError, IndexError):
        low = 32_768
    return low if low > 12_000 else 32_768


@dataclass(frozen=True)
class Listener:
    address: str
    port: int
    pid: int | None


def listeners() -> list[Listener] | None:
    """Every TCP listener of this machine; None where the system does not tell."""
    try:
        connections = psutil.net_connections("tcp")
    except (psutil.Error, OSError):
        return None
    return [
        Listener(c.laddr.ip, c.laddr.port, c.pid)
        for c in connections
        if c.status == psutil.CONN_LISTEN and c.laddr
    ]


def program_name(pid: int) -> str:
    try:
        return psutil.Process(pid).name()
    except psutil.Error:
        return "a process that has gone"
