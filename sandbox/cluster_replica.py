"""One replica: its life from start over readiness and restarts to its end.

What is decided here, and why:

- Only a 2xx is ready. A redirect is not, because following it would probe another path.
- A crash is said at once and restarted with back-off: quickly the first time, since that heals
  what is passing; then slower and slower up to half a minute.
- An exit because the port was taken is not the program's fault: it moves to another port.
- A port that answers is only believed when the replica's own processes listen on it; otherwise
  a stranger would be given its traffic.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import signal
import time
import uuid
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from domain.workload import Phase, Replica, WorkloadSpec
from sandbox import cluster_process as processes
from sandbox.cluster_log import Logs
from sandbox.cluster_probe import Prober
from sandbox.cluster_state import ReplicaRecord

log = logging.getLogger(__name__)

_ADDRESS_IN_USE = re.compile(
    r"EADDRINUSE|address (is )?(already )?in use|port \d+ (is )?(already )?(in use|taken)"
    r"|os error 98\b|errno 98\b|errno 48\b|WSAEADDRINUSE",
    re.IGNORECASE,
)
_STARTING_PERIOD_SECONDS = 0.1
_READY_PERIOD_SECONDS = 1.0
_HEALTH_PERIOD_SECONDS = 5.0
_HEALTH_STRIKES = 3
_BUSY_STRIKES = 3
_ALIVE_SECONDS = 1.0
_EXPLAIN_PERIOD_SECONDS = 1.0
_PORT_MOVES = 3
_FIRST_BACKOFF_SECONDS = 0.2
_BACKOFF_SECONDS = 0.5
_BACKOFF_LIMIT_SECONDS = 30.0
_STEADY_SECONDS = 60.0
_LEFTOVER_SECONDS = 1.0
_GONE_PERIOD_SECONDS = 0.05
_ADOPTED_PERIOD_SECONDS = 0.2


@dataclass(frozen=True)
class Surroundings:
    """What all replicas of one cluster share."""

    logs: Logs
    prober: Prober
    reaper: processes.Reaper
    marker_prefix: str
    taken_ports: Callable[[], Collection[int]]
    period_seconds: float = _READY_PERIOD_SECONDS
    health_period_seconds: float = _HEALTH_PERIOD_SECONDS


class LiveReplica:
    """A replica with its process.

    Args:
        record: what is remembered of it; kept up to date here.
        wanted: the workload's spec and directory as they are now.
        persist: writes the workload's records; raises OSError when it cannot.
        around: what all replicas share.
    """

    def __init__(
        self,
        record: ReplicaRecord,
        wanted: Callable[[], tuple[WorkloadSpec, Path]],
        persist: Callable[[], None],
        around: Surroundings,
    ) -> None:
        self.record = record
        self._wanted, self._persist, self._around = wanted, persist, around
        self._phase, self._reason = Phase.STARTING, "not started yet"
        self._exit: asyncio.Future[int | None] | None = None
        self._started_at = self._ready_at = time.monotonic()
        self._ready_now = False
        self._failures = self._port_moves = 0
        self._leaving = False
        self._task: asyncio.Task[None] | None = None
        self.overdue = ""

    # -- what is seen of it ------------------------------------------------------------------

    def view(self) -> Replica:
        spec, _ = self._wanted()
        record = self.record
        return Replica(
            index=record.index,
            phase=self._phase,
            address=f"127.0.0.1:{record.port}" if record.port is not None else None,
            pid=record.pid,
            restarts=record.restarts,
            exit_code=record.exit_code,
            reason=self._reason,
            log=str(self._around.logs.path(spec.name, record.index)),
        )

    # -- start: intent on disk, process, pid on disk -----------------------------------------

    def prepare(self) -> None:
        """Choose what the next process will bear; to be persisted before ``launch``."""
        spec, _ = self._wanted()
        record = self.record
        record.marker = f"{self._around.marker_prefix}{uuid.uuid4().hex}"
        record.pid = record.born = None
        if spec.port is None:
            record.port = None
        elif record.port is None or not processes.is_free(record.port):
            record.port = processes.free_port(self._around.taken_ports())

    def launch(self) -> None:
        """Start the prepared process; to be persisted after. OSError when it cannot be."""
        spec, directory = self._wanted()
        record = self.record
        assert record.marker is not None
        environ = processes.environment(
            spec,
            directory,
            marker=record.marker,
            port=record.port,
        )
        note = f"start {record.restarts} on port {record.port}: {spec.command}"
        output, record.log_start = self._around.logs.open(
            spec.name, record.index, note.replace("\n", " ")
        )
        try:
            started = processes.start(spec, directory, environ, output)
        finally:
            os.close(output)
        record.pid, record.born, record.direct = started.pid, started.born, started.direct
        self._exit = self._around.reaper.expect(started.pid)
        self._started_at, self._ready_now = time.monotonic(), False
        self._say(Phase.STARTING, "started just now")

    def abandon(self) -> None:
        """Undo a ``launch`` of this very turn of the loop, whose record could not be written."""
        if self.record.pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.record.pid, signal.SIGKILL)
            self.record.pid = self.record.born = None

    async def adopt(self) -> None:
        """Take over what an earlier supervisor left: a running process, or one half-started."""
        record = self.record
        if self._is_alive():
            self._exit = asyncio.ensure_future(self._watch_adopted())
            await self._look_once()
            return
        if record.marker is not None:
            await processes.kill(record.marker, record.pid, record.born)
        if record.pid is not None:
            log.warning("replica %s ended while no supervisor ran", record.index)
            record.restarts += 1
        record.pid = record.born = None

    def live(self) -> None:
        """Keep it running from now on, in the background."""
        self._task = asyncio.create_task(self._live())

    # -- life --------------------------------------------------------------------------------

    async def _live(self) -> None:
        while True:
            try:
                if self.record.pid is not None or self._restart():
                    await self._bury(await self._watch())
            except Exception:
                # A defect of ours must not leave a replica that nobody watches.
                log.exception("replica %s: looks again", self.record.index)
            await asyncio.sleep(self._backoff())

    def _restart(self) -> bool:
        try:
            self.prepare()
            self._persist()
            self.launch()
        except (OSError, ValueError) as error:
            self._could_not_start(error)
            return False
        try:
            self._persist()
        except OSError as error:
            self.abandon()
            self._could_not_start(error)
            return False
        return True

    def _could_not_start(self, error: OSError | ValueError) -> None:
        self._failures += 1
        self._say(Phase.BACKOFF, f"could not be started: {error}; {self._next_start()}")
        log.error("replica %s: %s", self.record.index, self._reason)

    async def _watch(self) -> str:
        """Until the process ends, or should; returns why it should, empty when it did."""
        assert self._exit is not None
        observing = asyncio.create_task(self._observe())
        try:
            either: set[asyncio.Future[Any]] = {self._exit, observing}
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            return "" if self._exit.done() else observing.result()
        finally:
            observing.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await observing

    async def _bury(self, why: str) -> None:
        """End what is left of the process, and remember how it went."""
        spec, _ = self._wanted()
        assert self._exit is not None
        self._say(Phase.STOPPING if why else Phase.BACKOFF, why or "exited")
        await self._end(spec.drain_seconds if why else _LEFTOVER_SECONDS)
        await self._kill_rest()
        code = self._exit.result() if self._exit.done() else None
        output = self._around.logs.since(spec.name, self.record.index, self.record.log_start)
        lasted = time.monotonic() - self._started_at
        self.record.pid = self.record.born = None
        self.record.restarts += 1
        if self._ready_now and time.monotonic() - self._ready_at > _STEADY_SECONDS:
            self._failures = 0
        if self._lost_its_port(why, output):
            self._move_port()
            self._write()
            return
        self._failures += 1
        self.record.exit_code = code if code is not None else self.record.exit_code
        said = why or _describe_exit(code, lasted, served=spec.port is not None)
        if not why and not self._ready_now and _ADDRESS_IN_USE.search(output):
            said += (
                f"; its log says that an address is in use, yet $PORT={self.record.port} was free:"
                " make the command use $PORT"
            )
        self._say(Phase.BACKOFF, f"{said}; {self._next_start()}")
        with contextlib.suppress(OSError):
            self._around.logs.keep_failure(spec.name, output)
        self._write()
        log.warning("%s replica %s: %s", spec.name, self.record.index, self._reason)

    def _lost_its_port(self, why: str, output: str) -> bool:
        """Whether the exit is owed to the port and not to the program, as often as is credible."""
        port = self.record.port
        if port is None or self._ready_now or self._port_moves >= _PORT_MOVES:
            return False
        return bool(why or _ADDRESS_IN_USE.search(output)) or not processes.is_free(port)

    def _move_port(self) -> None:
        old = self.record.port
        self._port_moves += 1
        taken = {*self._around.taken_ports(), *([old] if old is not None else [])}
        self.record.port = processes.free_port(taken)
        self._say(
            Phase.BACKOFF, f"port {old} was taken by another process; moves to {self.record.port}"
        )

    def _backoff(self) -> float:
        if self._failures <= 1 and not self.record.was_ready:
            return _FIRST_BACKOFF_SECONDS
        return float(
            min(_BACKOFF_LIMIT_SECONDS, _BACKOFF_SECONDS * 2 ** min(10, max(0, self._failures - 1)))
        )

    def _next_start(self) -> str:
        return f"starts again in {self._backoff():g} s"

    # -- readiness and health ----------------------------------------------------------------

    async def _observe(self) -> str:
        """Look at it for as long as it runs; returns when it should be restarted, with why."""
        if not self._ready_now and (why := await self._until_ready()):
            return why
        return await self._while_ready()

    async def _until_ready(self) -> str:
        explained, seen_from_inside = time.monotonic(), ""
        while True:
            spec, _ = self._wanted()
            if self.record.port is None:
                await asyncio.sleep(_ALIVE_SECONDS)
                self._became_ready()
                return ""
            seen = await self._around.prober.look(self.record.port, spec.ready)
            if seen.ok and (stranger := await self._stranger(self.record.port)):
                return f"port {self.record.port} is served by {stranger}, not by this replica"
            if seen.ok:
                self._became_ready()
                return ""
            # The longer it takes, the less often it is worth looking.
            lasts = time.monotonic() - self._started_at
            if not seen.refused:
                seen_from_inside = ""
            elif time.monotonic() - explained >= max(_EXPLAIN_PERIOD_SECONDS, lasts / 5):
                seen_from_inside = await self._what_it_listens_on(self.record.port)
                explained = time.monotonic()
            self._say(Phase.STARTING, self._late(spec) + seen.text + seen_from_inside)
            await asyncio.sleep(min(1.0, max(_STARTING_PERIOD_SECONDS, lasts / 50)))

    async def _while_ready(self) -> str:
        busy = sick = 0
        health_due = time.monotonic() + self._around.health_period_seconds
        while True:
            await asyncio.sleep(self._around.period_seconds)
            spec, _ = self._wanted()
            if self.record.port is None:
                continue
            seen = await self._around.prober.look(self.record.port, spec.ready)
            busy = busy + 1 if seen.busy else 0
            if seen.ok:
                self._say(Phase.READY, "")
            elif not seen.busy or busy >= _BUSY_STRIKES:
                self._say(Phase.UNREADY, seen.text)
            if spec.health is None or time.monotonic() < health_due:
                continue
            health_due = time.monotonic() + self._around.health_period_seconds
            seen = await self._around.prober.look(self.record.port, spec.health)
            sick = 0 if seen.ok else sick + 1
            if sick >= _HEALTH_STRIKES:
                return f"failed its health check {sick} times in a row: {seen.text}"

    async def _look_once(self) -> None:
        """Give an adopted replica its phase back before anybody asks for it."""
        spec, _ = self._wanted()
        port = self.record.port
        if not self.record.was_ready:
            self._say(Phase.STARTING, "taken over from an earlier supervisor")
            return
        self._became_ready()
        if port is not None:
            seen = await self._around.prober.look(port, spec.ready)
            if not seen.ok and not seen.busy:
                self._say(Phase.UNREADY, seen.text)

    def _became_ready(self) -> None:
        self._ready_now, self._ready_at = True, time.monotonic()
        self._port_moves = 0
        self._say(Phase.READY, "")
        if not self.record.was_ready:
            self.record.was_ready = True
            self._write()

    def _late(self, spec: WorkloadSpec) -> str:
        late = time.monotonic() - self._started_at > spec.start_seconds
        return f"not ready after {spec.start_seconds:g} s: " if late else ""

    async def _stranger(self, port: int) -> str:
        """Who else listens on our port; empty when it is us, or when the system does not tell."""
        ours, found = await self._listeners()
        there = [item for item in found if item.port == port and item.address != "::1"]
        others = [item.pid for item in there if item.pid not in ours]
        pids = [pid for pid in others if pid is not None]
        if pids:
            return f"process {pids[0]} ({processes.program_name(pids[0])})"
        return "a process of another user" if there and len(others) == len(there) else ""

    async def _what_it_listens_on(self, port: int) -> str:
        ours, found = await self._listeners()
        mine = sorted({(item.address, item.port) for item in found if item.pid in ours})
        if any(number == port for _, number in mine):
            where = ", ".join(_join(*item) for item in mine if item[1] == port)
            return f" (it listens on {where}, not on 127.0.0.1)"
        if not mine:
            return f" (it listens on no port yet; $PORT is {port})"
        where = ", ".join(_join(*item) for item in mine)
        return f" (it listens on {where}, not on $PORT={port}: make the command use $PORT)"

    async def _listeners(self) -> tuple[set[int], list[processes.Listener]]:
        found = await asyncio.to_thread(processes.listeners) or []
        return set(await self._members()), found

    # -- end ---------------------------------------------------------------------------------

    def leave(self) -> None:
        """From now on it is stopping, whatever its probes say."""
        self._leaving = True
        self._phase, self._reason = Phase.STOPPING, "drains"

    async def stop(self) -> None:
        """Drain and end it for good; returns when no process of it is left."""
        self.leave()
        await self.let_go()
        spec, _ = self._wanted()
        await self._end(spec.drain_seconds)
        await self._kill_rest()
        self.record.pid = self.record.born = self.record.marker = None

    async def let_go(self) -> None:
        """Stop watching; the process goes on."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def _end(self, drain_seconds: float) -> None:
        """SIGTERM to the program, or to everything when a shell is in front of it; then wait.

        What the program leaves behind when it ends is asked as well, and has the rest of the
        time.
        """
        if self.record.pid is None or self._exit is None:
            return
        deadline = time.monotonic() + drain_seconds
        asked: set[int] = set()
        if not self._exit.done():
            if self._is_alive():
                asked = {self.record.pid} if self.record.direct else set(await self._members())
            processes.send(asked, signal.SIGTERM)
            await asyncio.wait({self._exit}, timeout=drain_seconds)
        while self._exit.done() and (left := set(await self._members())):
            processes.send(left - asked, signal.SIGTERM)
            asked |= left
            if time.monotonic() >= deadline:
                return
            await asyncio.sleep(_GONE_PERIOD_SECONDS)

    async def _kill_rest(self) -> None:
        """Nothing outlives this; what cannot be killed is said, and tried again for ever."""
        record = self.record
        if record.marker is None:
            return
        while left := await processes.kill(record.marker, record.pid, record.born):
            self.overdue = f"process {left[0]} does not end on SIGKILL"
            self._say(self._phase, self.overdue)
            log.error("replica %s: %s", record.index, self.overdue)
        self.overdue = ""
        if self._exit is not None:
            await asyncio.wait({self._exit}, timeout=1)

    async def _members(self) -> list[int]:
        record = self.record
        return await asyncio.to_thread(
            processes.members, record.marker or "", record.pid, record.born
        )

    # -- small things ------------------------------------------------------------------------

    def _is_alive(self) -> bool:
        record = self.record
        if record.pid is None or record.born is None or record.marker is None:
            return False
        return processes.is_alive(record.pid, record.born, record.marker)

    async def _watch_adopted(self) -> int | None:
        """Not our child, so there is no exit code to be had: only that it has gone."""
        while self._is_alive():
            await asyncio.sleep(_ADOPTED_PERIOD_SECONDS)
        return None

    def _say(self, phase: Phase, reason: str) -> None:
        self._phase = Phase.STOPPING if self._leaving else phase
        self._reason = reason

    def _write(self) -> None:
        try:
            self._persist()
        except OSError as error:
            log.error("the record could not be written, will be tried again: %s", error)


def _describe_exit(code: int | None, lasted: float, *, served: bool) -> str:
    if code is None:
        return "ended (its exit code is not known: it was started by an earlier supervisor)"
    if code < 0:
        return f"ended by {_signal_name(-code)} after {lasted:.1f} s"
    hint = " (a server must stay in the foreground)" if code == 0 and served else ""
    return f"exited with code {code} after {lasted:.1f} s{hint}"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _join(address: str, port: int) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
