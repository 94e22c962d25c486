"""The cluster of the sandbox: keeps replicas of applications running, and outlives the flows.

``python -m sandbox.cluster_supervisor --socket PATH --home DIR``

Replicas belong to nobody but this program: they run on while it is away (SIGTERM, SIGKILL, an
upgrade), and it takes them over when it comes back. Only ``POST /shutdown`` ends them; what was
declared stays declared, so the next start brings it back, unless the call says to forget it.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import fcntl
import hashlib
import logging
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from domain.errors import SlipwayError, UsageError
from domain.workload import Workload, WorkloadSpec
from sandbox import cluster_process as processes
from sandbox.cluster_log import Logs
from sandbox.cluster_probe import Prober
from sandbox.cluster_replica import LiveReplica, Surroundings
from sandbox.cluster_state import ReplicaRecord, StateFolder, WorkloadRecord, explain

log = logging.getLogger(__name__)

_TICK_SECONDS = 0.2
_HOUSEKEEPING_SECONDS = 1.0
_LOCK_SECONDS = 10.0
_IDENTITY = ("application", "environment", "service", "version", "digest", "command", "port")


@dataclass
class Unit:
    """One workload: what is wanted, what runs, and what is on its way out."""

    spec: WorkloadSpec
    directory: Path
    removed: bool = False
    replicas: dict[int, LiveReplica] = field(default_factory=dict)
    leaving: dict[LiveReplica, asyncio.Task[None] | None] = field(default_factory=dict)
    unwritten: bool = False

    def record(self) -> WorkloadRecord:
        return WorkloadRecord(
            spec=self.spec,
            directory=self.directory,
            removed=self.removed,
            replicas=[replica.record for _, replica in sorted(self.replicas.items())],
            leaving=[replica.record for replica in self.leaving],
        )

    def view(self) -> Workload:
        spec = self.spec
        shown = [*(replica for _, replica in sorted(self.replicas.items())), *self.leaving]
        return Workload(
            name=spec.name,
            application=spec.application,
            environment=spec.environment,
            service=spec.service,
            version=spec.version,
            digest=spec.digest,
            desired=0 if self.removed else spec.replicas,
            replicas=tuple(replica.view() for replica in shown),
            expires_at=spec.expires_at,
        )


class Supervisor:
    """All workloads of one home. Its methods run in one event loop and are atomic to callers.

    Args:
        home: the cluster's own folder: ``workloads/``, ``logs/``, ``lock``.
        period_seconds: between two looks at a replica that is ready.
        health_period_seconds: between two health checks.
    """

    def __init__(
        self, home: Path, *, period_seconds: float = 1.0, health_period_seconds: float = 5.0
    ) -> None:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._state = StateFolder(home / "workloads")
        self._logs = Logs(home / "logs")
        self._prober = Prober()
        self._reaper = processes.Reaper()
        self._units: dict[str, Unit] = {}
        self._closing = False
        self._prefix = marker_prefix(home)
        self._around = Surroundings(
            logs=self._logs,
            prober=self._prober,
            reaper=self._reaper,
            marker_prefix=self._prefix,
            taken_ports=lambda: [r.record.port for r in self._everyone() if r.record.port],
            period_seconds=period_seconds,
            health_period_seconds=health_period_seconds,
        )

    # -- coming and going --------------------------------------------------------------------

    async def start(self) -> None:
        """Take over what runs, end what nobody remembers, start what is missing."""
        self._reaper.install()
        for record in self._state.read_all():
            self._restore(record)
        await asyncio.gather(*(replica.adopt() for replica in self._everyone()))
        await self._end_strangers()
        for unit in list(self._units.values()):
            for replica in list(unit.leaving):
                self._let_leave(unit, replica)
            if unit.removed:
                self._remove(unit)
        self._expire_due(datetime.now(UTC))
        for unit in self._units.values():
            self._fill(unit)

    def _restore(self, record: WorkloadRecord) -> None:
        unit = Unit(record.spec, record.directory, record.removed)
        self._units[record.spec.name] = unit
        for entry in record.replicas:
            unit.replicas[entry.index] = self._replica(unit, entry)
        for entry in record.leaving:
            unit.leaving[self._replica(unit, entry)] = None

    def _fill(self, unit: Unit) -> None:
        """Set every wanted replica going, those that a full disk kept off the record too."""
        if not unit.removed:
            self._grow(unit, unit.spec)
            for replica in unit.replicas.values():
                replica.live()

    async def _end_strangers(self) -> None:
        """Processes of this home that no record names: started, and never written down."""
        known = {replica.record.marker for replica in self._everyone()}
        for marker in await asyncio.to_thread(processes.marked, self._prefix):
            if marker not in known:
                log.warning("ends processes that no record names: %s", marker)
                await processes.kill(marker)

    async def run(self) -> None:
        """Expiry and housekeeping, for as long as the supervisor lives."""
        swept = 0.0
        while True:
            self._expire_due(datetime.now(UTC))
            if time.monotonic() - swept > _HOUSEKEEPING_SECONDS:
                swept = time.monotonic()
                await self._keep_house()
            await asyncio.sleep(_TICK_SECONDS)

    async def shutdown(self, *, forget: bool) -> None:
        """End all replicas at once, each with its drain."""
        self._closing = True
        units = list(self._units.values())
        for unit in units:
            unit.removed = unit.removed or forget
        stopping = [replica.stop() for unit in units for replica in unit.replicas.values()]
        leaving = [task for unit in units for task in unit.leaving.values() if task]
        await asyncio.gather(*stopping, *leaving)
        for unit in units:
            if unit.removed:
                unit.replicas.clear()
                self._forget_if_gone(unit)
            else:
                self._write_soon(unit)

    async def let_go(self) -> None:
        """Stop watching; every replica goes on."""
        await asyncio.gather(*(replica.let_go() for replica in self._everyone()))
        await self._prober.close()

    # -- calls -------------------------------------------------------------------------------

    def declare(self, spec: WorkloadSpec, directory: Path) -> Workload:
        """Start what is missing, let go what is too many, never touch what runs."""
        self._check(spec, directory)
        unit = self._units.get(spec.name)
        before = unit.record() if unit else None
        if unit is None:
            unit = Unit(spec, directory)
        self._check_identity(unit, spec)
        added = self._grow(unit, spec)
        unit.spec, unit.directory, unit.removed = spec, directory, False
        try:
            self._start_together(unit, added)
        except (OSError, ValueError) as error:
            self._undo(unit, added, before)
            tried = f"tried to start {len(added)} replicas of {spec.name}"
            raise _as_error(error, tried) from error
        self._shrink(unit)
        return unit.view()

    def get(self, name: str) -> Workload | None:
        unit = self._units.get(name)
        return unit.view() if unit else None

    def workloads(self, application: str | None, environment: str | None) -> list[Workload]:
        return [
            unit.view()
            for _, unit in sorted(self._units.items())
            if application in (None, unit.spec.application)
            and environment in (None, unit.spec.environment)
        ]

    def expire(self, name: str, at: datetime | None) -> bool:
        """True when the workload is there and will not expire before ``at``."""
        unit = self._units.get(name)
        if unit is None or unit.removed or self._closing:
            return False
        before, unit.spec = unit.spec, unit.spec.model_copy(update={"expires_at": at})
        try:
            self._write(unit)
        except OSError as error:
            unit.spec = before
            raise explain(error, f"tried to note when {name} expires") from error
        return True

    async def remove(self, name: str, wait_seconds: float) -> str | None:
        """Let everything of it go. None when it has gone; else why it is still there."""
        unit = self._units.get(name)
        if unit is None:
            return None
        self._remove(unit)
        if tasks := {task for task in unit.leaving.values() if task}:
            await asyncio.wait(tasks, timeout=wait_seconds)
        if not unit.leaving or not unit.removed:
            return None
        return next((r.overdue for r in unit.leaving if r.overdue), "drains")

    def log_tail(self, name: str, lines: int) -> str:
        return self._logs.tail(name, lines)

    # -- growing and shrinking ---------------------------------------------------------------

    def _check(self, spec: WorkloadSpec, directory: Path) -> None:
        if self._closing:
            raise UsageError(
                "SLP010",
                f"asked to run {spec.name} while the cluster is shutting down",
                help="start the sandbox again with `slipway up`",
            )
        if spec.expires_at is not None and spec.expires_at.tzinfo is None:
            raise _bad_spec(spec, "expires_at has no time zone", "give it in UTC")
        for name, value in spec.environ.items():
            if not name or "=" in name or "\0" in name + value:
                raise _bad_spec(
                    spec, f"{name!r} cannot be an environment variable", "rename it, or drop NULs"
                )
        if "\0" in spec.command or not spec.command.strip():
            raise _bad_spec(spec, "the command is empty or holds a NUL", "correct `command`")
        if spec.replicas and not (directory / "app").is_dir():
            raise _bad_spec(spec, f"{directory / 'app'} is not a folder", "build the bundle again")

    def _check_identity(self, unit: Unit, spec: WorkloadSpec) -> None:
        changed = [name for name in _IDENTITY if getattr(unit.spec, name) != getattr(spec, name)]
        if changed and (unit.replicas or unit.leaving):
            raise UsageError(
                "SLP005",
                f"workload {spec.name} runs already with another {' and '.join(changed)}; "
                "what runs is never changed in place",
                help="release the change under a new version",
            )

    def _grow(self, unit: Unit, spec: WorkloadSpec) -> list[LiveReplica]:
        missing = [index for index in range(spec.replicas) if index not in unit.replicas]
        added = [self._replica(unit, ReplicaRecord(index=index)) for index in missing]
        unit.replicas.update({replica.record.index: replica for replica in added})
        return added

    def _start_together(self, unit: Unit, added: list[LiveReplica]) -> None:
        if unit.spec.name not in self._units:
            self._logs.forget_failure(unit.spec.name)
        self._units[unit.spec.name] = unit  # so that no port is chosen twice
        for replica in added:
            replica.prepare()
        self._write(unit)
        for replica in added:
            replica.launch()
        if added:
            self._write(unit)
        for replica in added:
            replica.live()

    def _undo(self, unit: Unit, added: list[LiveReplica], before: WorkloadRecord | None) -> None:
        for replica in added:
            replica.abandon()
            del unit.replicas[replica.record.index]
        if before is None:
            self._units.pop(unit.spec.name, None)
            with contextlib.suppress(OSError):
                self._state.remove(unit.spec.name)
            return
        unit.spec, unit.directory, unit.removed = before.spec, before.directory, before.removed
        self._write_soon(unit)

    def _shrink(self, unit: Unit) -> None:
        surplus = [index for index in unit.replicas if index >= unit.spec.replicas]
        for index in surplus:
            self._let_leave(unit, unit.replicas.pop(index))
        if surplus:
            self._write_soon(unit)

    def _remove(self, unit: Unit) -> None:
        unit.removed = True
        # On a full disk this cannot be noted, but going on is what frees space.
        self._let_all_leave(unit)
        self._write_soon(unit)
        self._forget_if_gone(unit)

    def _let_all_leave(self, unit: Unit) -> None:
        for index in list(unit.replicas):
            self._let_leave(unit, unit.replicas.pop(index))

    def _let_leave(self, unit: Unit, replica: LiveReplica) -> None:
        replica.leave()
        unit.leaving[replica] = asyncio.create_task(self._see_off(unit, replica))

    async def _see_off(self, unit: Unit, replica: LiveReplica) -> None:
        await replica.stop()
        del unit.leaving[replica]
        if not self._forget_if_gone(unit):
            self._write_soon(unit)

    def _forget_if_gone(self, unit: Unit) -> bool:
        if not unit.removed or unit.replicas or unit.leaving:
            return False
        if self._units.get(unit.spec.name) is unit:
            del self._units[unit.spec.name]
            try:
                self._state.remove(unit.spec.name)
            except OSError as error:
                log.error("the record of %s could not be removed: %s", unit.spec.name, error)
        return True

    # -- in the background -------------------------------------------------------------------

    def _expire_due(self, now: datetime) -> None:
        for unit in list(self._units.values()):
            at = unit.spec.expires_at
            if at is not None and at <= now and not unit.removed and not self._closing:
                log.info("%s has expired", unit.spec.name)
                self._remove(unit)

    async def _keep_house(self) -> None:
        for unit in self._units.values():
            if unit.unwritten:
                self._write_soon(unit)
        names = set(self._units)
        try:
            await asyncio.to_thread(self._logs.rotate)
            await asyncio.to_thread(self._logs.prune, names)
        except OSError as error:
            log.warning("housekeeping: %s", error)

    # -- small things ------------------------------------------------------------------------

    def _replica(self, unit: Unit, record: ReplicaRecord) -> LiveReplica:
        return LiveReplica(
            record,
            wanted=lambda: (unit.spec, unit.directory),
            persist=lambda: self._write(unit),
            around=self._around,
        )

    def _everyone(self) -> Iterator[LiveReplica]:
        for unit in self._units.values():
            yield from unit.replicas.values()
            yield from unit.leaving

    def _write(self, unit: Unit) -> None:
        unit.unwritten = True
        self._state.write(unit.record())
        unit.unwritten = False

    def _write_soon(self, unit: Unit) -> None:
        """Write now, or as soon as it can be done."""
        try:
            self._write(unit)
        except OSError as error:
            log.error("%s could not be written, will be tried again: %s", unit.spec.name, error)


def marker_prefix(home: Path) -> str:
    """What the markers of this home's replicas begin with; another checkout's are not ours."""
    return hashlib.sha256(str(home.resolve()).encode()).hexdigest()[:12] + "-"


def _bad_spec(spec: WorkloadSpec, seen: str, fix: str) -> UsageError:
    return UsageError("SLP002", f"asked to run {spec.name}, but {seen}", help=fix)


def _as_error(error: OSError | ValueError, tried: str) -> Exception:
    if isinstance(error, OSError):
        return explain(error, tried)
    return UsageError("SLP002", f"{tried}, but {error}", help="correct the service's definition")


# -- the program -------------------------------------------------------------------------------


async def serve(arguments: argparse.Namespace) -> int:
    """Run until SIGTERM (replicas go on) or POST /shutdown (they are ended)."""
    from sandbox import cluster_api

    supervisor = Supervisor(
        arguments.home,
        period_seconds=arguments.probe_seconds,
        health_period_seconds=arguments.health_seconds,
    )
    loop = asyncio.get_running_loop()
    await supervisor.start()
    server = cluster_api.server(supervisor)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, server.stop)
    background = asyncio.create_task(supervisor.run())
    try:
        with cluster_api.owner_only_socket(arguments.socket) as listener:
            await server.serve(sockets=[listener])
    finally:
        background.cancel()
        await supervisor.let_go()
    return 0


@contextlib.contextmanager
def only_one(home: Path) -> Iterator[bool]:
    """Hold the home's lock; False when another supervisor kept it for ten seconds."""
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    deadline = time.monotonic() + _LOCK_SECONDS
    with (home / "lock").open("w") as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    yield False
                    return
            time.sleep(0.05)
        yield True


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="sandbox.cluster_supervisor", description=__doc__)
    parser.add_argument("--socket", type=Path, required=True, help="control socket to listen on")
    parser.add_argument("--home", type=Path, required=True, help="the cluster's own folder")
    parser.add_argument("--probe-seconds", type=float, default=1.0, help=argparse.SUPPRESS)
    parser.add_argument("--health-seconds", type=float, default=5.0, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    os.umask(0o077)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    arguments.home = arguments.home.resolve()
    with only_one(arguments.home) as alone:
        if not alone:
            print(f"another cluster supervisor runs on {arguments.home}", file=sys.stderr)
            return 1
        try:
            return asyncio.run(serve(arguments))
        except SlipwayError as error:
            print(error, file=sys.stderr)
            return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
