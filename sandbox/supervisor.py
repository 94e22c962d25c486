"""The supervisor of the sandbox: ``python -m sandbox.supervisor --home DIR``.

One process for each state root. It starts the parts in the order of their needs, watches them,
starts again what ends, and answers on the control socket until it is told to stop. It has one
thread: parts are forked from it, and forking from a process with threads is a gamble.
"""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import json
import os
import random
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

from domain.errors import SlipwayError
from sandbox import control, parts, ports, processes
from sandbox.control import PartStatus, State, Status
from sandbox.home import SIDES, Home, Memory, Side
from sandbox.probes import NotReady

BACKOFF_FIRST_SECONDS = 0.5
BACKOFF_CAP_SECONDS = 30.0
HEALTHY_SECONDS = 60.0  # ready for so long: the next death is a new story
PROBE_SECONDS = 10.0
PROBE_TIMEOUT_SECONDS = 5.0
UNHEALTHY_AFTER = 2  # failed checks in a row
LOCK_SECONDS = 5.0
RUN_SECONDS = 30.0  # for a flow run to undo what it holds
LOG_BYTES = 8 * 1024 * 1024
_PR_SET_PDEATHSIG = 1

CLUSTERS = {side.part("cluster"): side for side in SIDES}
STOP_ORDER: tuple[tuple[str, ...], ...] = (("worker",), tuple(CLUSTERS))
"""Runs first, while what they need to undo their work is there; then what they deployed. The
others follow together."""


def backoff_seconds(failures: int, chance: float) -> float:
    """Wait before start number ``failures`` + 1: doubles, capped, with jitter down to a half.

    Args:
        failures: deaths in a row, at least 1.
        chance: a random number in [0, 1).
    """
    whole = min(BACKOFF_CAP_SECONDS, BACKOFF_FIRST_SECONDS * 2.0 ** min(failures - 1, 16))
    return whole * (0.5 + 0.5 * chance)


class Lost(Exception):
    """The part's process ended, or had to be ended."""


@dataclass
class Unit:
    """What the supervisor knows of one part."""

    name: str
    state: State = State.STOPPED
    process: subprocess.Popen[bytes] | None = None
    started: datetime = field(default_factory=lambda: datetime.now(UTC))
    since: datetime = field(default_factory=lambda: datetime.now(UTC))
    log_start: int = 0
    restarts: int = 0
    failures: int = 0
    reason: str = ""
    tail: str = ""
    wanted_restart: bool = False
    exited: asyncio.Event = field(default_factory=asyncio.Event)

    def enter(self, state: State, reason: str = "") -> None:
        if state is not self.state:
            self.since = datetime.now(UTC)
        self.state, self.reason = state, reason

    @property
    def pid(self) -> int | None:
        alive = self.process is not None and self.process.returncode is None
        return self.process.pid if alive and self.process else None


class Supervisor:
    """Keeps every part of one sandbox running until ``stop`` is set."""

    def __init__(self, home: Home) -> None:
        self.home = home
        self.memory = Memory.load(home)
        self.notes: list[str] = []
        self.stop = asyncio.Event()
        self._changed = asyncio.Condition()
        self._settle_ports()
        self.units = {name: Unit(name) for name in self._catalogue()}

    async def run(self) -> None:
        """Serve until stopped, then end every part in order."""
        self._handle_signals()
        server = await self._listen()
        keepers = [asyncio.create_task(self._keep(unit)) for unit in self.units.values()]
        crash = asyncio.create_task(_first_crash(keepers))
        stopped = asyncio.create_task(self.stop.wait())
        await asyncio.wait((crash, stopped), return_when=asyncio.FIRST_COMPLETED)
        crash.cancel()
        for keeper in keepers:
            keeper.cancel()
        await asyncio.gather(*keepers, return_exceptions=True)
        await self._stop_all()
        server.close()
        self.home.control_socket.unlink(missing_ok=True)
        if not self.stop.is_set():
            crash.result()  # a defect of ours: show it in the log

    def status(self) -> Status:
        catalogue = self._catalogue()
        return Status(
            home=str(self.home.root),
            pid=os.getpid(),
            parts=tuple(_status(unit, catalogue[unit.name]) for unit in self.units.values()),
            addresses=parts.addresses(self.home, self.memory.ports, self._password),
            notes=tuple(self.notes),
        )

    # One part

    async def _keep(self, unit: Unit) -> None:
        """Start, watch, start again; for ever."""
        while True:
            await self._wait_for_needs(unit)
            part = self._catalogue()[unit.name]
            ready_at: float | None = None
            try:
                self._launch(unit, part)
                await self._become_ready(unit, part)
                ready_at = time.monotonic()
                await self._watch(unit, part)
            except Lost as lost:
                reason = str(lost)
                unit.enter(State.STARTING, reason)
                await self._end(unit, part)
            if unit.wanted_restart:
                unit.wanted_restart, unit.failures = False, 0
                continue
            unit.tail = control.log_tail(part.log, start=unit.log_start)
            if ready_at is None and self._replace_lost_ports(part):
                continue
            steady = ready_at is not None and time.monotonic() - ready_at >= HEALTHY_SECONDS
            unit.failures = 1 if steady else unit.failures + 1
            unit.restarts += 1
            unit.enter(State.BACKOFF, reason)
            _say(f"{unit.name}: {reason}")
            await asyncio.sleep(backoff_seconds(unit.failures, random.random()))

    async def _wait_for_needs(self, unit: Unit) -> None:
        needs = self._catalogue()[unit.name].needs
        if waiting := [name for name in needs if self.units[name].state is not State.READY]:
            unit.enter(State.STARTING, f"waits for {', '.join(waiting)}")
        async with self._changed:
            await self._changed.wait_for(
                lambda: all(self.units[name].state is State.READY for name in needs)
            )

    def _launch(self, unit: Unit, part: parts.Part) -> None:
        unit.enter(State.STARTING)
        unit.exited.clear()
        unit.started = datetime.now(UTC)
        try:
            for path, text in part.files.items():
                path.write_text(text)
            unit.log_start = _make_room(part.log)
            with open(part.log, "ab") as log:
                unit.process = subprocess.Popen(
                    part.command,
                    cwd=self.home.project,
                    env=parts.environment(self.home, part),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                    preexec_fn=_die_with(os.getpid()) if part.dies_with_supervisor else None,
                )
            self.memory.processes[unit.name] = processes.remember(unit.process.pid)
            self.memory.save(self.home)
        except (OSError, SlipwayError) as error:
            raise Lost(f"could not be started: {error}") from error

    async def _become_ready(self, unit: Unit, part: parts.Part) -> None:
        deadline = time.monotonic() + part.start_seconds
        pause = 0.05
        while time.monotonic() < deadline:
            try:
                await self._check(unit, part)
                for name in part.ports:
                    _check_listens(unit, self.memory.ports[name])
            except NotReady as not_yet:
                unit.reason = str(not_yet)
            else:
                await self._set_ready(unit)
                return
            await self._pause(unit, pause)
            pause = min(pause * 1.5, 0.5)
        raise Lost(f"was not ready within {part.start_seconds:.0f} s: {unit.reason}")

    async def _watch(self, unit: Unit, part: parts.Part) -> None:
        """Check a running part now and then; raises ``Lost`` when its process ends."""
        failed = 0
        while True:
            await self._pause(unit, PROBE_SECONDS)
            if unit.state is State.READY and time.time() - unit.since.timestamp() > HEALTHY_SECONDS:
                unit.failures = 0
            try:
                await self._check(unit, part)
            except NotReady as seen:
                failed += 1
                if failed >= UNHEALTHY_AFTER:
                    unit.enter(State.UNHEALTHY, str(seen))
            else:
                failed = 0
                if unit.state is not State.READY:
                    await self._set_ready(unit)

    async def _check(self, unit: Unit, part: parts.Part) -> None:
        """One readiness check; a process that ended meanwhile has no answer to give."""
        check = asyncio.create_task(part.ready.check(unit.started))
        ended = asyncio.create_task(unit.exited.wait())
        try:
            done, _ = await asyncio.wait(
                (check, ended),
                timeout=PROBE_TIMEOUT_SECONDS,
                return_when=asyncio.FIRST_COMPLETED,
            )
        finally:
            ended.cancel()
            check.cancel()
        failure = check.exception() if check in done else None
        self._reap()
        if unit.exited.is_set():
            raise Lost(_how_it_ended(unit))
        if check not in done:
            raise NotReady(f"no answer within {PROBE_TIMEOUT_SECONDS:.0f} s")
        if isinstance(failure, Exception) and not isinstance(failure, NotReady):
            # Whatever answers there does not speak as the part does.
            raise NotReady(f"{type(failure).__name__}: {failure}") from failure
        if failure is not None:
            raise failure

    async def _pause(self, unit: Unit, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await unit.exited.wait()
        except TimeoutError:
            return
        raise Lost(_how_it_ended(unit))

    async def _set_ready(self, unit: Unit) -> None:
        unit.enter(State.READY)
        async with self._changed:
            self._changed.notify_all()

    async def _end(self, unit: Unit, part: parts.Part) -> None:
        """SIGTERM, time to end, SIGKILL; with everything of its session that stays behind."""
        if unit.process is None:
            return
        unit.process.poll()
        if unit.process.returncode is None:
            with suppress(ProcessLookupError):
                unit.process.send_signal(part.stop_signal)
            try:
                async with asyncio.timeout(part.stop_seconds):
                    await unit.exited.wait()
            except TimeoutError:
                _say(f"{unit.name}: did not end within {part.stop_seconds:.0f} s, is killed")
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(unit.process.pid, signal.SIGKILL)
        await unit.exited.wait()
        self.memory.processes.pop(unit.name, None)

    # Ports

    @property
    def _password(self) -> str:
        return self.memory.secret("database")

    def _catalogue(self) -> dict[str, parts.Part]:
        return parts.catalogue(self.home, self.memory.ports, self._password)

    def _settle_ports(self) -> None:
        self.memory.ports, lost = ports.settle(parts.PORTS, self.memory.ports)
        self.memory.secret("database")
        self.memory.save(self.home)
        for sentence in lost:
            self._note(sentence)

    def _replace_lost_ports(self, part: parts.Part) -> bool:
        """Whether the part failed because somebody else was quicker to take its port."""
        lost = [name for name in part.ports if not ports.is_free(self.memory.ports[name])]
        for name in lost:
            known = self.memory.ports[name]
            self.memory.ports[name] = ports.choose(name, self.memory.ports.values())
            self._note(ports.lost_port(name, known, self.memory.ports[name]))
        if lost:
            with suppress(SlipwayError):  # told again when the next start cannot write either
                self.memory.save(self.home)
            self._restart_dependents(part.name)
        return bool(lost)

    def _restart_dependents(self, name: str) -> None:
        """They were given the old address."""
        for part in self._catalogue().values():
            if name in part.needs and self.units[part.name].pid is not None:
                self._ask_to_restart(part)

    def _ask_to_restart(self, part: parts.Part) -> None:
        unit = self.units[part.name]
        if unit.process is not None and unit.pid is not None:
            unit.wanted_restart = True
            unit.process.send_signal(part.stop_signal)

    def _note(self, sentence: str) -> None:
        self.notes.append(sentence)
        _say(sentence)

    # Stopping

    async def _stop_all(self) -> None:
        catalogue = self._catalogue()
        rest = tuple(name for name in catalogue if all(name not in group for group in STOP_ORDER))
        for group in (*STOP_ORDER, rest):
            await asyncio.gather(*(self._stop_part(catalogue[name]) for name in group))
        with suppress(SlipwayError):
            self.memory.save(self.home)

    async def _stop_part(self, part: parts.Part) -> None:
        unit = self.units[part.name]
        if part.name == "worker":
            await self._end_runs()
        if part.name in CLUSTERS and unit.pid is not None:
            await self._stop_replicas(CLUSTERS[part.name])
        await self._end(unit, part)
        unit.enter(State.STOPPED)

    async def _end_runs(self) -> None:
        """Flow runs get their SIGTERM while the edge and the cluster are still there."""
        runs = processes.flow_runs(self.home)
        for run in runs:
            with suppress(psutil.Error):
                run.terminate()
        deadline = time.monotonic() + RUN_SECONDS
        while any(processes.is_alive(run) for run in runs) and time.monotonic() < deadline:
            await asyncio.sleep(0.1)

    async def _stop_replicas(self, side: Side) -> None:
        where = str(self.home.cluster_socket(side))
        command = [sys.executable, "-c", _STOP_CLUSTER, where]
        helper = subprocess.Popen(command, cwd=self.home.project, stdin=subprocess.DEVNULL)
        while helper.poll() is None:
            await asyncio.sleep(0.05)
        if helper.returncode != 0:
            _say(f"{side.part('cluster')}: did not stop its replicas when it was asked to")

    # Signals and the control socket

    def _handle_signals(self) -> None:
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGCHLD, self._reap)
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stop.set)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    def _reap(self) -> None:
        for unit in self.units.values():
            if unit.process is not None and unit.process.poll() is not None:
                unit.exited.set()

    async def _listen(self) -> asyncio.AbstractServer:
        self.home.control_socket.unlink(missing_ok=True)
        old = os.umask(0o177)
        try:
            return await asyncio.start_unix_server(self._serve, self.home.control_socket)
        finally:
            os.umask(old)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            if not _is_same_user(writer):
                return
            async with asyncio.timeout(10):
                head = await reader.readuntil(b"\r\n\r\n")
            code, body = self._answer(*head.split(b" ", 2)[:2])
            text = json.dumps(body).encode()
            writer.write(
                b"HTTP/1.1 %d %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n"
                b"Connection: close\r\n\r\n" % (code, b"-", len(text))
            )
            writer.write(text)
            await writer.drain()
        except (OSError, ValueError, EOFError, TimeoutError, asyncio.LimitOverrunError):
            pass  # a client that went away or talks nonsense is its own problem
        finally:
            writer.close()

    def _answer(self, method: bytes, target: bytes) -> tuple[int, Any]:
        path = target.decode()
        if (method, path) == (b"GET", "/status"):
            return 200, self.status().to_dict()
        if (method, path) == (b"POST", "/down"):
            self.stop.set()
            return 200, {}
        name = path.removeprefix("/restart/")
        if method == b"POST" and name in self.units:
            self._ask_to_restart(self._catalogue()[name])
            return 200, {}
        return 404, {"error": f"no {path}"}


_STOP_CLUSTER = (
    "import sys; from pathlib import Path; from sandbox.control import stop_cluster; "
    "sys.exit(not stop_cluster(Path(sys.argv[1])))"
)


async def _first_crash(keepers: list[asyncio.Task[None]]) -> None:
    for finished in asyncio.as_completed(keepers):
        await finished


def _status(unit: Unit, part: parts.Part) -> PartStatus:
    return PartStatus(
        name=unit.name,
        address=part.address,
        state=unit.state,
        pid=unit.pid,
        restarts=unit.restarts,
        failures=unit.failures,
        since=unit.since.isoformat(timespec="seconds"),
        log=str(part.log),
        reason="" if unit.state is State.READY else unit.reason,
        tail="" if unit.state is State.READY else unit.tail,
    )


def _how_it_ended(unit: Unit) -> str:
    code = unit.process.returncode if unit.process is not None else None
    if code is not None and code < 0:
        return f"was ended by {signal.Signals(-code).name}"
    return f"exited with {code}"


def _check_listens(unit: Unit, port: int) -> None:
    """Another process may answer on our port for a moment before ours fails to take it."""
    if unit.process is not None and processes.listens(unit.process.pid, port) is False:
        raise NotReady(f"port {port} is answered by another process")


def _make_room(log: Path) -> int:
    """Set a large log aside; returns where the next start begins to write."""
    try:
        size = log.stat().st_size
    except FileNotFoundError:
        return 0
    if size < LOG_BYTES:
        return size
    log.replace(log.with_suffix(".log.1"))
    return 0


def _die_with(supervisor: int) -> Callable[[], None] | None:
    """For the child between fork and exec: be killed when the supervisor is gone (Linux)."""
    if not sys.platform.startswith("linux"):
        return None
    prctl = ctypes.CDLL(None).prctl

    def arm() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != supervisor:
            os._exit(1)

    return arm


def _is_same_user(writer: asyncio.StreamWriter) -> bool:
    """The socket is private to its owner; root may open it all the same and is refused."""
    if not hasattr(socket, "SO_PEERCRED"):
        return True
    peer: socket.socket = writer.get_extra_info("socket")
    raw = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return bool(struct.unpack("3i", raw)[1] == os.getuid())


def _say(sentence: str) -> None:
    print(f"{datetime.now(UTC).isoformat(timespec='seconds')} {sentence}", flush=True)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m sandbox.supervisor", description=__doc__)
    parser.add_argument("--home", required=True)
    home = Home.at(parser.parse_args(argv).home)
    home.make()
    run_in_batches()
    deadline = time.monotonic() + LOCK_SECONDS
    while time.monotonic() < deadline:
        with home.locked() as held:
            if held:
                control.end_all(home, Memory.load(home), for_restart=True)
                asyncio.run(_run(home))
                return 0
        time.sleep(0.05)  # a `down` looks at the lock now and then
    _say("another supervisor holds the lock")
    return 3


def run_in_batches() -> None:
    """Let whatever starts here finish its turn on a processor when another of us wakes up.

    A request goes through eight processes, and each wake-up would end the turn of the one that
    runs, with all it has in the caches. With 12,000 users on two cores that made 21,000 switches a
    second; as batches (sched(7)) they are 16,000, and proxy and application need a tenth less time.
    """
    with suppress(AttributeError, OSError):  # not Linux; or a container that forbids it
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))


async def _run(home: Home) -> None:
    await Supervisor(home).run()


if __name__ == "__main__":
    sys.exit(main())
