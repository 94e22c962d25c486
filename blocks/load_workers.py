"""Locust in processes of its own: starts the workers, holds their lease, collects what they saw.

Prefect and Locust never share a process. A worker is told its share through its stdin and tells
what it saw through its stdout, so a dead coordinator ends all load by the closing of a pipe.
"""

from __future__ import annotations

import json
import os
import queue
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

import psutil

from domain.errors import Failed, UsageError
from domain.load_plan import LoadPlan
from domain.load_run import Run

BEAT_SECONDS = 0.5
SILENCE_SECONDS = 4.0
"""A worker tells something every second; one that does not is frozen."""
READY_SECONDS = 60.0
END_SECONDS = 20.0
SPARE_DESCRIPTORS = 200
_PORTS = Path("/proc/sys/net/ipv4/ip_local_port_range")

OnSecond = Callable[[Run, int], None]
"""Called about once a second; it may set ``run.hopeless`` or ``run.stopped`` to end the run."""


@dataclass(slots=True)
class _Worker:
    index: int
    process: subprocess.Popen[bytes]
    log: Path
    heard: float = 0.0
    ended: bool = False
    lost: bool = False

    @property
    def done(self) -> bool:
        return self.ended or self.lost


@dataclass
class LocalWorkers:
    """Workers on this machine.

    Attributes:
        folder: where their logs go.
        tiers: what else to measure: root process ids by what they are.
        on_started: told the process ids of the workers.
    """

    folder: Path
    tiers: Mapping[str, Sequence[int]] = field(default_factory=dict)
    on_started: Callable[[Sequence[int]], None] = lambda pids: None

    def run(self, plan: LoadPlan, on_second: OnSecond) -> Run:
        """Put the plan's load on its target and return what was seen of it.

        However it ends, no worker is left.

        Raises:
            Failed: SLP181, a worker did not start.
            UsageError: SLP182, the behaviours cannot be run.
        """
        check_limits(plan)
        self.folder.mkdir(parents=True, exist_ok=True)
        workers: list[_Worker] = []
        try:
            workers += [self._start(plan, index) for index in range(plan.workers)]
            self.on_started([worker.process.pid for worker in workers])
            return _Conversation(plan, workers, self.tiers).hold(on_second)
        finally:
            for worker in workers:
                _end(worker)

    def _start(self, plan: LoadPlan, index: int) -> _Worker:
        log = self.folder / f"worker-{index + 1}.log"
        with log.open("wb") as errors:
            process = subprocess.Popen(
                [sys.executable, "-m", "load.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                start_new_session=True,  # Ctrl-C is for the coordinator, which ends them in order
                cwd=Path(__file__).resolve().parents[1],
                env={**os.environ, "PYTHONUNBUFFERED": "1"},
            )
        worker = _Worker(index, process, log)
        _tell(worker, {**assignment(plan), "index": index})
        return worker


def assignment(plan: LoadPlan) -> dict[str, Any]:
    """What every worker is told; ``load.worker`` reads it."""
    return {
        "profile": plan.profile.model_dump(mode="json"),
        "workers": plan.workers,
        "seed": plan.seed,
        "behaviours": plan.behaviours,
        "operations": [asdict(operation) for operation in plan.operations],
        "most_in_flight": plan.most_in_flight,
        "target": asdict(plan.target),
    }


def check_limits(plan: LoadPlan) -> None:
    """Descriptors and ports suffice for the profile.

    Raises:
        UsageError: SLP184 with how many are needed and how many there are.
    """
    each = -(-plan.connections // plan.workers) + SPARE_DESCRIPTORS
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and each > hard:
        raise UsageError(
            "SLP184",
            f"each of {plan.workers} workers needs {each} file descriptors, the limit is {hard}",
            help=f"raise it (`ulimit -Hn {each}`), or use more workers or fewer users",
        )
    ports = local_ports() * max(1, len(plan.target.source))
    if plan.connections > 0.9 * ports:
        raise UsageError(
            "SLP184",
            f"{plan.connections} connections to one address need as many local ports, and there "
            f"are {ports}",
            help="widen net.ipv4.ip_local_port_range, or use fewer users",
        )


def most_connections(plan: LoadPlan) -> int:
    """As many users as ``check_limits`` lets through."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    open_files = hard if hard != resource.RLIM_INFINITY else 1 << 20
    by_files = plan.workers * (open_files - SPARE_DESCRIPTORS)
    return min(by_files, int(0.9 * local_ports() * max(1, len(plan.target.source))))


def local_ports() -> int:
    """How many connections one local address can have to one remote one."""
    try:
        low, high = map(int, _PORTS.read_text().split())
    except (OSError, ValueError):
        return 28_232  # the default of Linux
    return high - low + 1


class _Conversation:
    """One run, from the start signal to the last line of the last worker."""

    def __init__(
        self, plan: LoadPlan, workers: Sequence[_Worker], tiers: Mapping[str, Sequence[int]]
    ) -> None:
        self._plan, self._workers = plan, workers
        self._lines: queue.Queue[tuple[_Worker, bytes]] = queue.Queue()
        self._machine = _Machine(tiers)
        self._run = Run(plan.profile, plan.workers)
        self._start = 0.0

    def hold(self, on_second: OnSecond) -> Run:
        for worker in self._workers:
            threading.Thread(target=self._listen, args=(worker,), daemon=True).start()
        self._wait_until_ready()
        # Making the users takes its time, and must be over when the first of them is due.
        self._start = time.monotonic() + 1.0 + 0.0003 * self._plan.connections
        for worker in self._workers:
            worker.heard = self._start
            _tell(worker, self._start)
        second = 0
        latest = self._start + self._plan.profile.seconds + END_SECONDS
        while not all(worker.done for worker in self._workers):
            self._beat()
            self._take(BEAT_SECONDS)
            now = time.monotonic() - self._start
            if now >= second + 1:
                host, tiers, stolen = self._machine.measure()
                for at in range(second, int(now)):
                    self._run.measured(
                        at, host, {k: v / (int(now) - second) for k, v in tiers.items()}, stolen
                    )
                second = int(now)
                on_second(self._run, second)
            self._look_after_them(now)
            if time.monotonic() > latest:
                self._run.stopped = self._run.stopped or "a worker did not come to its end"
                break
        return self._run

    def _wait_until_ready(self) -> None:
        waiting = {worker.index for worker in self._workers}
        deadline = time.monotonic() + READY_SECONDS
        while waiting:
            try:
                worker, line = self._lines.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                raise self._not_started(self._workers[min(waiting)], "said nothing") from None
            if not line:
                raise self._not_started(worker, f"ended with code {worker.process.wait()}")
            document = json.loads(line)
            if document["kind"] == "unusable":
                raise UsageError(
                    "SLP182",
                    f"the behaviours cannot be run: {document['reason']}",
                    help="correct the file that `load.behaviours` in application.yaml names",
                    where=self._plan.behaviours or None,
                )
            waiting.discard(worker.index)

    def _not_started(self, worker: _Worker, how: str) -> Failed:
        return Failed(
            "SLP181",
            f"worker {worker.index + 1} of the load test did not start: it {how}",
            help="read the last lines of its log",
            where=str(worker.log),
            detail=worker.log.read_text(errors="replace")[-2000:],
        )

    def _listen(self, worker: _Worker) -> None:
        assert worker.process.stdout is not None
        for line in worker.process.stdout:
            worker.heard = time.monotonic()  # now: what waits in the queue is not silence
            self._lines.put((worker, line))
        self._lines.put((worker, b""))

    def _take(self, seconds: float) -> None:
        """Everything that comes within that time."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            try:
                worker, line = self._lines.get(timeout=left)
            except queue.Empty:
                return
            self._hear(worker, line)
            if all(worker.done for worker in self._workers):
                return

    def _hear(self, worker: _Worker, line: bytes) -> None:
        now = time.monotonic() - self._start
        if worker.done:
            return
        if not line:
            code = worker.process.wait()
            self._lose(worker, now, f"died ({_how(code)})")
            return
        try:
            document = json.loads(line)
            if document["kind"] == "tick":
                self._run.add(worker.index, document)
            elif document["kind"] == "end":
                worker.ended = True
                self._run.end(worker.index, document)
        except (ValueError, KeyError, TypeError) as error:
            self._lose(worker, now, f"said what cannot be understood ({error})")

    def _lose(self, worker: _Worker, at: float, how: str) -> None:
        """The others are ended too: a test with half of its load is no test (locust#2008)."""
        worker.lost = True
        self._run.lose(worker.index, max(0.0, at), how)
        self._run.stopped = self._run.stopped or f"worker {worker.index + 1} {how}"

    def _look_after_them(self, now: float) -> None:
        for worker in self._workers:
            silent = time.monotonic() - worker.heard
            if not worker.done and now > 0 and silent > SILENCE_SECONDS:
                self._lose(worker, now - silent, "fell silent")
                worker.process.kill()

    def _beat(self) -> None:
        ending = bool(self._run.stopped or self._run.hopeless)
        for worker in self._workers:
            if not worker.done:
                _write(worker.process.stdin, b"stop\n" if ending else b"\n")


class _Machine:
    """CPU of the whole machine, and of what the application consists of."""

    def __init__(self, tiers: Mapping[str, Sequence[int]]) -> None:
        self._tiers = tiers
        self._before = self._times()
        psutil.cpu_times_percent()

    def measure(self) -> tuple[float, dict[str, float], float]:
        """The busy share since the last call, CPU seconds by tier, and what the host took."""
        now, before = self._times(), self._before
        self._before = now
        used = {tier: max(0.0, now[tier] - before.get(tier, 0.0)) for tier in now}
        shares = psutil.cpu_times_percent()
        idle = shares.idle + getattr(shares, "iowait", 0.0)
        return 1 - idle / 100, used, getattr(shares, "steal", 0.0) / 100

    def _times(self) -> dict[str, float]:
        found: dict[str, float] = {}
        for tier, roots in self._tiers.items():
            total = 0.0
            for root in roots:
                try:
                    family = [psutil.Process(root)]
                    family += family[0].children(recursive=True)
                except psutil.Error:
                    continue
                for process in family:
                    try:
                        times = process.cpu_times()
                    except psutil.Error:
                        continue
                    total += times.user + times.system
            found[tier] = total
        return found


def _tell(worker: _Worker, document: Any) -> None:
    _write(worker.process.stdin, json.dumps(document).encode() + b"\n")


def _write(pipe: IO[bytes] | None, line: bytes) -> None:
    assert pipe is not None
    try:
        pipe.write(line)
        pipe.flush()
    except (BrokenPipeError, ValueError):
        return  # its end is read from its stdout


def _end(worker: _Worker) -> None:
    """Close the lease; who does not go is killed."""
    process = worker.process
    try:
        if process.stdin is not None:
            process.stdin.close()
    except BrokenPipeError:
        pass
    try:
        process.wait(8)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _how(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"code {code}"
