"""One side of a failover: a cloud, the application's database there, and its replicas there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

from blocks.backup_locations import BackupLocation
from blocks.drill_processes import MARKER
from blocks.fence import Fence
from blocks.http_probe import probe
from blocks.keeper import Assignment, KeeperProcess
from blocks.names import Record
from blocks.platform import Platform
from domain.release import BuildRecord, routing_for, targets, workload_name, workload_spec
from domain.verdict import Check, Verdict, worst
from tasks.candidates import wait_until_ready
from tasks.environs import peer_environ, service_environ

_PROBE_SECONDS = 0.4


@dataclass
class Side:
    """Where an application may serve.

    Attributes:
        environment: under which cluster and edge know it there.
        host: name that its edge answers to.
        public: the DNS name above both sides; empty: ``host``.
        release: number in the names of its workloads.
        database_url: as the application's own role; a secret.
        admin_url: the same database as a role that may alter every table; a secret.
        marker: id of the drill that all its processes carry; empty on the real day.
        expires_at: when the cluster stops its replicas by itself; None: never.
    """

    platform: Platform
    record: BuildRecord
    environment: str
    host: str
    database_url: str = field(repr=False)
    admin_url: str = field(repr=False)
    redis_url: str = field(default="", repr=False)
    release: int = 1
    public: str = ""
    marker: str = ""
    expires_at: datetime | None = None

    @property
    def name(self) -> str:
        return self.platform.side

    @property
    def address(self) -> str:
        return self.platform.public_address

    @property
    def fence(self) -> Fence:
        return Fence(self.admin_url)

    @property
    def marks(self) -> dict[str, str]:
        return {MARKER: self.marker} if self.marker else {}

    def workloads(self) -> dict[str, str]:
        """Name of the workload by service."""
        application = self.record.application
        return {
            service: workload_name(application.name, self.environment, service, self.release)
            for service in application.services
        }

    def start(self, replicas: Mapping[str, int]) -> None:
        """Run every service, in dependency order, until it is ready.

        Raises:
            Failed: SLP050, SLP051: a replica does not come up.
        """
        application, names = self.record.application, self.workloads()
        for target in targets(self.record, self.environment, names):
            spec = workload_spec(
                self.record,
                target,
                self.environment,
                replicas[target.service],
                self._environ(target.service, names),
            ).model_copy(update={"expires_at": self.expires_at, **self._hurry()})
            self.platform.cluster.apply(spec)
            wait_until_ready(self.platform, target, spec.start_seconds)
            if len(application.services) > 1:
                self.route()

    def route(self) -> None:
        """Let the edge of this side answer for the host, with all that is ready."""
        application, names = self.record.application, self.workloads()
        parts = [
            (target, application.services[target.service],
             self.platform.cluster.get(target.workload))
            for target in targets(self.record, self.environment, names)
        ]  # fmt: skip
        weights = {
            target.service: {target.workload: 100}
            for target, _, workload in parts
            if workload is not None and workload.addresses
        }
        self.platform.edge.write(
            routing_for(
                self.host,
                application.name,
                self.environment,
                parts,
                weights,
                also=(self.public,) if self.public else (),
            )
        )

    def ready_replicas(self) -> dict[str, int]:
        """How many of each service are ready."""
        found = {}
        for service, name in self.workloads().items():
            workload = self.platform.cluster.get(name)
            found[service] = len(workload.ready) if workload else 0
        return found

    def stop(self) -> None:
        """Take it off the edge, and end its replicas."""
        application = self.record.application
        self.platform.edge.remove(application.name, self.environment)
        for workload in self.platform.cluster.workloads(application.name, self.environment):
            self.platform.cluster.stop(workload.name)

    def pids(self) -> list[int]:
        """Of all replicas."""
        application = self.record.application
        workloads = self.platform.cluster.workloads(application.name, self.environment)
        return [r.pid for workload in workloads for r in workload.replicas if r.pid]

    def answers(self, seconds: float = _PROBE_SECONDS) -> Check:
        """Whether users who are led to this side are served."""
        path, status = self._watched()
        return probe(self._edge_url(), {"Host": self._host_header()}, path, status,
                     timeout_seconds=seconds)  # fmt: skip

    def smoke(self) -> Check:
        """Every smoke check of the application, at this side's edge."""
        checks = [
            probe(self._edge_url(), {"Host": self._host_header()}, c.path, c.status, c.contains, 5)
            for c in self.record.application.smoke_checks()
        ]
        bad = [c for c in checks if c.verdict is not Verdict.PASS]
        return Check(
            name="smoke checks",
            verdict=worst(c.verdict for c in checks),
            reason="; ".join(c.reason for c in bad) or f"{len(checks)} passed at {self.name}",
            samples=len(checks),
        )

    def record_for(self, ttl: timedelta) -> Record:
        """The DNS record that leads users here."""
        name = self.public or self.host
        return Record(name, (self.address,), max(1, round(ttl.total_seconds())))

    def keeper(self, epochs: BackupLocation, lease: timedelta, environment: str, log: Path
               ) -> KeeperProcess:  # fmt: skip
        """Start keeping this side's lease for as long as the epoch is its own."""
        assignment = Assignment(
            database_url=self.admin_url,
            epochs=epochs,
            credentials={},
            application=self.record.application.name,
            environment=environment,
            side=self.name,
            lease_seconds=lease.total_seconds(),
        )
        return KeeperProcess(assignment, log, self.marks)

    def public_url(self) -> str:
        """With the name, as users type it; both sides listen on the same port."""
        return f"http://{self._host_header()}"

    def _host_header(self) -> str:
        port = self.platform.edge_web.rpartition(":")[2].rstrip("/")
        name = self.public or self.host
        return f"{name}:{port}" if port.isdigit() else name

    def _edge_url(self) -> str:
        return self.platform.edge_web

    def _watched(self) -> tuple[str, int]:
        """A request that succeeds only when the application can work, database and all."""
        application = self.record.application
        for service in application.services.values():
            if service.is_public and service.ready:
                return service.ready, 200
        check = next(iter(application.smoke_checks()), None)
        return (check.path, check.status) if check else ("/", 200)

    def _environ(self, service: str, names: Mapping[str, str]) -> dict[str, str]:
        if not self.marker:
            return service_environ(self.platform, self.record, self.environment, service, names)
        backing = {"DATABASE_URL": self.database_url}
        if self.redis_url:
            backing["REDIS_URL"] = self.redis_url
        if self.record.application.flags:
            backing |= self.platform.flags.environ(self.record.application.name, self.environment)
        return {
            **backing,
            **peer_environ(self.platform, self.record, self.environment, service, names),
            **self.record.application.services[service].environ,
            **self.marks,
        }

    def _hurry(self) -> dict[str, float]:
        return {"drain_seconds": 0.0} if self.marker else {}


def replicas_for(record: BuildRecord, environment: str) -> dict[str, int]:
    """How many the environment asks for, by service."""
    return {
        name: service.replicas_in(environment)
        for name, service in record.application.services.items()
    }
