"""Talk to the sandbox: start it, look at it, stop it.

This module is what the command line imports; it stays light (no Prefect, nothing of the parts
until they are needed). The supervisor answers HTTP on a unix socket that only its owner can open.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from domain.errors import Failed, NeedsPerson, SlipwayError, UsageError
from sandbox.home import MARKER, PART, SIDES, Home, Memory, inherited, writing

UP_SECONDS = 150.0
"""Deadline of a start; the usual one takes ten to twenty seconds."""

DOWN_SECONDS = 90.0
_ATTEMPTS = 3  # of one part in a row, before `up` gives up
_LOW_DISK_BYTES = 64 * 1024 * 1024
_POLL_SECONDS = 0.1

Progress = Callable[[str], None]


class State(StrEnum):
    """Where a part is in its life."""

    STARTING = "starting"
    READY = "ready"
    UNHEALTHY = "unhealthy"  # runs, but fails its readiness check
    BACKOFF = "backoff"  # ended, waits for its next start
    STOPPED = "stopped"


@dataclass(frozen=True)
class PartStatus:
    """One part as the supervisor sees it.

    Attributes:
        restarts: how often it was started again after it ended by itself.
        failures: how often in a row it ended or missed its deadline before it was ready.
        since: when it entered this state, ISO 8601 in UTC.
        reason: why it is not ready, in one sentence.
        tail: the last lines of its log at its last failure.
    """

    name: str
    address: str
    state: State
    pid: int | None
    restarts: int
    failures: int
    since: str
    log: str
    reason: str = ""
    tail: str = ""


@dataclass(frozen=True)
class Status:
    """The whole sandbox at one moment.

    Attributes:
        addresses: where everything is; see ``sandbox.parts.addresses``. Holds secrets.
        notes: what a person should know, such as a port that had to change.
    """

    home: str
    pid: int
    parts: tuple[PartStatus, ...]
    addresses: Mapping[str, str] = field(repr=False)
    notes: tuple[str, ...] = ()

    @property
    def ready(self) -> bool:
        return all(part.state is State.READY for part in self.parts)

    def part(self, name: str) -> PartStatus | None:
        return next((part for part in self.parts if part.name == name), None)

    def to_dict(self) -> dict[str, Any]:
        """Everything, passwords too."""
        return asdict(self)

    def public(self) -> dict[str, Any]:
        """What may be shown: the same without passwords."""
        shown = {name: _without_password(value) for name, value in self.addresses.items()}
        return {**self.to_dict(), "addresses": shown}

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> Status:
        parts = (PartStatus(**{**part, "state": State(part["state"])}) for part in raw["parts"])
        return cls(
            home=raw["home"],
            pid=raw["pid"],
            parts=tuple(parts),
            addresses=dict(raw["addresses"]),
            notes=tuple(raw["notes"]),
        )


def status(home: Home) -> Status | None:
    """What runs now; None when no supervisor answers."""
    try:
        return Status.from_dict(_ask(home, "GET", "/status"))
    except (OSError, LookupError, TypeError, ValueError):
        return None  # also when a supervisor of another version speaks differently


def up(home: Home, *, progress: Progress = lambda line: None) -> Status:
    """Start the sandbox, or find it started; returns when every part is ready.

    Idempotent. When a start that this call began fails, everything is stopped again.

    Raises:
        UsageError: SLP012 a program is missing, SLP016 the state directory cannot be used.
        Failed: SLP011 a part did not become ready, SLP015 the disk is full.
    """
    running = status(home)
    if running is not None and running.ready:
        return running
    daemon = None
    if running is None:
        _check(home)
        daemon = _spawn(home)
    try:
        return _await_ready(home, daemon, progress)
    except SlipwayError:
        if daemon is not None:
            with suppress(SlipwayError):  # the cause of the failed start matters more
                down(home, progress=progress)
        raise


def restart(home: Home, part: str) -> None:
    """Stop one part and start it again; returns at once.

    Raises:
        UsageError: SLP010 nothing runs, SLP017 there is no such part.
    """
    try:
        _ask(home, "POST", f"/restart/{part}")
    except FileNotFoundError as error:
        running = status(home)
        if running is None:
            raise _not_running(home) from error
        names = ", ".join(known.name for known in running.parts)
        raise UsageError(
            "SLP017", f"the sandbox has no part `{part}`", help=f"use one of: {names}"
        ) from error
    except OSError as error:
        raise _not_running(home) from error


def require(home: Home) -> Status:
    """The status of a running sandbox.

    Raises:
        UsageError: SLP010, nothing runs.
    """
    running = status(home)
    if running is None:
        raise _not_running(home)
    return running


def down(home: Home, *, progress: Progress = lambda line: None) -> None:
    """Stop everything and make sure of it: no process, port, socket or lock is left.

    Idempotent; works when the supervisor was killed too.

    Raises:
        NeedsPerson: SLP013, something of ours is still there.
    """
    if not home.root.is_dir() and not home.run.is_dir():
        return
    with writing(home.root):
        home.root.mkdir(parents=True, exist_ok=True)  # somebody may have removed it under us
    _stop_supervisor(home, progress)
    with home.locked() as held:
        if not held:
            raise NeedsPerson(
                "SLP013",
                f"the supervisor (pid {_holder(home)}) did not end within {DOWN_SECONDS:.0f} s",
                help=f"end it: kill -9 {_holder(home)}; then run `slipway down` again",
                where=str(home.log("supervisor")),
            )
        _sweep(home, progress)
        shutil.rmtree(home.run, ignore_errors=True)
        home.lock_file.unlink(missing_ok=True)


# Starting


def _check(home: Home) -> None:
    from sandbox import parts

    parts.check_installed()
    home.make()
    Memory.load(home)
    free = shutil.disk_usage(home.root).free
    if free < _LOW_DISK_BYTES:
        raise Failed(
            "SLP015",
            f"only {free // 2**20} MiB are free; the sandbox needs {_LOW_DISK_BYTES // 2**20}",
            help="free some space, then run `slipway up` again",
            where=str(home.root),
        )


def _spawn(home: Home) -> subprocess.Popen[bytes]:
    """Start the supervisor so that it outlives us, our terminal and our process group."""
    with open(home.log("supervisor"), "ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "sandbox.supervisor", "--home", str(home.root)],
            cwd=home.project,
            env={**inherited(), MARKER: str(home.root), PART: "supervisor"},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def _await_ready(home: Home, daemon: subprocess.Popen[bytes] | None, progress: Progress) -> Status:
    start = time.monotonic()
    told: dict[str, str] = {}
    seen: Status | None = None
    while time.monotonic() - start < UP_SECONDS:
        seen = status(home)
        if seen is not None:
            _tell(seen, told, progress, time.monotonic() - start)
            if seen.ready:
                return seen
            if broken := _given_up(seen):
                raise _part_failed(home, broken)
        elif daemon is not None and daemon.poll() is not None:
            raise _supervisor_failed(home, f"ended with {daemon.returncode}")
        time.sleep(_POLL_SECONDS)
    late = [part for part in seen.parts if part.state is not State.READY] if seen else []
    if late:
        raise _part_failed(home, late[0])
    raise _supervisor_failed(home, f"does not answer after {UP_SECONDS:.0f} s")


def _given_up(seen: Status) -> PartStatus | None:
    return next((part for part in seen.parts if part.failures >= _ATTEMPTS), None)


def _tell(seen: Status, told: dict[str, str], progress: Progress, seconds: float) -> None:
    for note in seen.notes:
        if note not in told:
            told[note] = note
            progress(note)
    for part in seen.parts:
        news = part.state + part.reason
        if told.get(part.name) == news:
            continue
        told[part.name] = news
        if part.state is State.READY:
            progress(f"{part.name} ready at {part.address} ({seconds:.1f} s)")
        elif part.state is State.BACKOFF:
            progress(f"{part.name}: {part.reason}; trying again")


def _part_failed(home: Home, part: PartStatus) -> Failed:
    if shutil.disk_usage(home.root).free < _LOW_DISK_BYTES:
        return Failed(
            "SLP015",
            f"`{part.name}` could not start and the disk is full: {part.reason}",
            help="free some space, then run `slipway up` again",
            where=str(home.root),
            detail=part.tail,
        )
    return Failed(
        "SLP011",
        f"`{part.name}` did not become ready: {part.reason or 'its check was not answered'}",
        help=f"read {part.log}; `slipway doctor` checks the usual causes",
        where=part.address,
        detail=part.tail,
    )


def _supervisor_failed(home: Home, seen: str) -> Failed:
    log = home.log("supervisor")
    return Failed(
        "SLP011",
        f"the supervisor {seen}",
        help=f"read {log}; run `slipway down`, then `slipway up` again",
        where=str(home.root),
        detail=log_tail(log),
    )


def _not_running(home: Home) -> UsageError:
    return UsageError(
        "SLP010",
        "no supervisor answers: the sandbox is not running",
        help="start it with `slipway up`",
        where=str(home.root),
    )


def log_tail(path: Path, lines: int = 20, start: int = 0) -> str:
    """The last lines of a log file, none from before byte ``start``."""
    try:
        with open(path, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(start, size - 16_384))
            text = file.read().decode(errors="replace")
    except OSError:
        return ""
    return "\n".join(text.splitlines()[-lines:])


# Stopping


def _stop_supervisor(home: Home, progress: Progress) -> None:
    """Ask, then signal, then kill; returns when the lock is free or nothing helped."""
    with suppress(OSError):
        _ask(home, "POST", "/down")
        progress("stopping")
        if _await_unlocked(home, DOWN_SECONDS, progress):
            return
    for number, seconds in ((signal.SIGTERM, DOWN_SECONDS), (signal.SIGKILL, 5.0)):
        pid = _holder(home)
        if pid is None:
            return
        # Another `slipway down` may hold it for a moment: that one is only waited for.
        if _is_supervisor(pid, home):
            with suppress(ProcessLookupError):
                os.kill(pid, number)
        if _await_unlocked(home, seconds, progress):
            return


def _await_unlocked(home: Home, seconds: float, progress: Progress) -> bool:
    deadline = time.monotonic() + seconds
    told: set[str] = set()
    while time.monotonic() < deadline:
        if _holder(home) is None:
            return True
        seen = status(home)
        for part in seen.parts if seen else ():
            if part.state is State.STOPPED and part.name not in told:
                told.add(part.name)
                progress(f"{part.name} stopped")
        time.sleep(_POLL_SECONDS)
    return False


def _holder(home: Home) -> int | None:
    """The pid of the supervisor that holds the lock, None when it is free."""
    with home.locked() as held:
        if held:
            return None
    with suppress(OSError, ValueError):
        return int(home.lock_file.read_text())
    return None


def _is_supervisor(pid: int, home: Home) -> bool:
    import psutil

    try:
        line = psutil.Process(pid).cmdline()
    except psutil.Error:
        return False
    return "sandbox.supervisor" in line and str(home.root) in line


def _sweep(home: Home, progress: Progress) -> None:
    """End what a killed supervisor left, and look whether anything is still there."""
    from sandbox import ports, processes

    memory = _memory(home)
    # The supervisor lets go of the lock with its last step, an instant before it is gone.
    if left := processes.wait_gone(processes.ours(home, memory), 2.0):
        progress(f"ending {len(left)} processes that were left behind")
        for side in SIDES:
            stop_cluster(home.cluster_socket(side))
        end_all(home, memory)
    survivors = processes.ours(home, memory)
    stuck = [processes.describe(process) for process in survivors]
    for name, port in memory.ports.items():
        owner = processes.listener(port) if ports.answers(port) else None
        if owner is not None and any(owner.pid == ours.pid for ours in survivors):
            stuck.append(f"port {port} ({name}): {processes.describe(owner)}")
    if stuck:
        raise NeedsPerson(
            "SLP013",
            f"{len(stuck)} processes or ports of the sandbox are still there",
            help="end the listed processes yourself, then run `slipway down` again",
            where=str(home.root),
            detail="\n".join(stuck),
        )
    memory.processes = {}
    memory.save(home)


def _memory(home: Home) -> Memory:
    """A damaged memory must not keep `down` from working: the marker finds the processes."""
    try:
        return Memory.load(home)
    except UsageError:
        return Memory()


def end_all(home: Home, memory: Memory, *, for_restart: bool = False) -> None:
    """End every process of this sandbox; what they start meanwhile too."""
    from sandbox import processes

    for _ in range(3):
        left = processes.ours(home, memory, for_restart=for_restart)
        if not left:
            return
        processes.end(left, grace_seconds=15)


def stop_cluster(socket: Path) -> bool:
    """Tell the cluster to stop all replicas; True when it did."""
    connection = _UnixConnection(socket, timeout=60)
    try:
        connection.request("POST", "/shutdown")
        return connection.getresponse().status < 400
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


# The wire


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


def _ask(home: Home, method: str, path: str) -> Any:
    """One request to the supervisor.

    Raises:
        FileNotFoundError: there is no such thing; also when there is no socket.
        OSError: no answer.
    """
    connection = _UnixConnection(home.control_socket, timeout=10)
    try:
        connection.request(method, path)
        answer = connection.getresponse()
        body = answer.read()
    except http.client.HTTPException as error:
        raise ConnectionError(f"no whole answer: {error!r}") from error
    finally:
        connection.close()
    if answer.status == 404:
        raise FileNotFoundError(path)
    if answer.status != 200:
        raise ConnectionError(f"answered {answer.status}")
    return json.loads(body)


def _without_password(address: str) -> str:
    return re.sub(r"(://[^:/@]+):[^@/]+@", r"\1:***@", address)
