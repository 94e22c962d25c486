"""Find and end the processes of one sandbox, whoever started them and whoever is gone.

A process is ours when it carries the marker of this state root in its environment, when it is
recorded in ``sandbox.json`` with the same start time, or when one of those is its ancestor.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

import psutil

from sandbox.home import MARKER, PART, SIDES, Home, Memory, Started

_CLUSTERS = frozenset(side.part("cluster") for side in SIDES)


def remember(pid: int) -> Started:
    """What identifies a process that was just started."""
    try:
        return Started(pid, psutil.Process(pid).create_time())
    except psutil.NoSuchProcess:
        return Started(pid, 0.0)


def ours(home: Home, memory: Memory, *, for_restart: bool = False) -> list[psutil.Process]:
    """All living processes of this sandbox except the caller and its ancestors.

    Args:
        for_restart: leave out what may go on: the replicas that the cluster's supervisor
            started, and supervisors (one without the lock ends by itself).
    """
    found: dict[int, psutil.Process] = {}
    recorded = {p.pid: (name, p) for name, p in memory.processes.items()}
    for process in psutil.process_iter():
        part = _part_of(process, home, recorded)
        if part is None or (part == "supervisor" and for_restart):
            continue
        if part in _CLUSTERS and for_restart:
            if _is_cluster_supervisor(process, home):
                found[process.pid] = process
            continue
        found[process.pid] = process
        for child in _descendants(process):
            found[child.pid] = child
    for spared in _self_and_ancestors():
        found.pop(spared, None)
    return [process for process in found.values() if is_alive(process)]


def _part_of(
    process: psutil.Process, home: Home, recorded: dict[int, tuple[str, Started]]
) -> str | None:
    try:
        if process.pid in recorded:
            name, started = recorded[process.pid]
            # Not equal: the system derives the time from its clock, which may be corrected.
            if abs(process.create_time() - started.created) < 1:
                return name
        environ = process.environ()
    except (psutil.Error, OSError):
        # PostgreSQL under another user hides its environment, but not its command line.
        return "postgres" if _serves_data_of(process, home) else None
    return environ.get(PART, "?") if environ.get(MARKER) == str(home.root) else None


def _serves_data_of(process: psutil.Process, home: Home) -> bool:
    try:
        program, _, data = process.cmdline()[:3]
    except (psutil.Error, OSError, ValueError):
        return False
    return program.endswith("/postgres") and data.startswith(f"{home.root}/postgres/")


def _is_cluster_supervisor(process: psutil.Process, home: Home) -> bool:
    try:
        line = process.cmdline()
    except psutil.Error:
        return False
    sockets = {str(home.cluster_socket(side)) for side in SIDES}
    return "sandbox.cluster_supervisor" in line and not sockets.isdisjoint(line)


def _descendants(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.Error:
        return []


def _self_and_ancestors() -> set[int]:
    me = psutil.Process()
    return {me.pid, *(parent.pid for parent in me.parents())}


def is_alive(process: psutil.Process) -> bool:
    """Runs still; a zombie does not."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def end(processes: Iterable[psutil.Process], grace_seconds: float) -> list[psutil.Process]:
    """Ask them to end, then kill what stays; returns those that are still there."""
    left = list(processes)
    for process in left:
        # A PostgreSQL server waits for its clients after SIGTERM, but ends them after SIGINT.
        _signal(process, signal.SIGINT if _is_postgres(process) else signal.SIGTERM)
    left = wait_gone(left, grace_seconds)
    for process in left:
        _signal(process, signal.SIGKILL)
    return wait_gone(left, 10)


def wait_gone(
    processes: Iterable[psutil.Process],
    seconds: float,
    *,
    clock: Callable[[], float] = time.monotonic,
) -> list[psutil.Process]:
    """Wait until they are gone or the time is over; returns those that are left."""
    deadline = clock() + seconds
    left = [process for process in processes if is_alive(process)]
    while left and clock() < deadline:
        # Not psutil.wait_procs: it takes a zombie, which somebody else must reap, for alive.
        time.sleep(0.02)
        left = [process for process in left if is_alive(process)]
    return left


def _is_postgres(process: psutil.Process) -> bool:
    try:
        return process.name() == "postgres"
    except psutil.Error:
        return False


def _signal(process: psutil.Process, number: signal.Signals) -> None:
    with suppress(psutil.Error):
        process.send_signal(number)


def describe(process: psutil.Process) -> str:
    try:
        return f"pid {process.pid}: {' '.join(process.cmdline())[:160] or process.name()}"
    except psutil.Error:
        return f"pid {process.pid}"


def listener(port: int) -> psutil.Process | None:
    """The process that listens on this loopback port, where the system lets us see it."""
    with suppress(psutil.Error, OSError):
        for connection in psutil.net_connections("tcp"):
            if _is_listening(connection, port) and connection.pid:
                return psutil.Process(connection.pid)
    return None


def listens(pid: int, port: int) -> bool | None:
    """Whether this process or a child of it listens on the port; None when we may not look."""
    try:
        process = psutil.Process(pid)
        family = [process, *process.children(recursive=True)]
        seen = [c for member in family for c in member.net_connections("tcp")]
    except (psutil.Error, OSError):
        return None
    return any(_is_listening(connection, port) for connection in seen)


def _is_listening(connection: Any, port: int) -> bool:
    return bool(connection.status == psutil.CONN_LISTEN and connection.laddr[1] == port)


def flow_runs(home: Home) -> list[psutil.Process]:
    """The process of every flow run that the worker started, not what a run itself started."""
    found = [p for p in psutil.process_iter() if _part_of(p, home, {}) == "worker"]
    return [p for p in found if is_alive(p) and "prefect.engine" in _command(p)]


def _command(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""
