"""What a cluster runs: one workload is one version of one service, in some replicas."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum

from pydantic import BaseModel, ConfigDict, Field


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Phase(StrEnum):
    """Where a replica is in its life; only ``ready`` may receive traffic."""

    STARTING = "starting"
    READY = "ready"
    UNREADY = "unready"  # was ready once, fails its readiness check now
    BACKOFF = "backoff"  # exited, waits for its next start
    EXITED = "exited"  # exited and will not be started again
    STOPPING = "stopping"


class WorkloadSpec(_Frozen):
    """The wanted state of one version of one service.

    ``name`` is the identity: applying a spec twice changes nothing, and applying it with
    another number of replicas scales it.
    """

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9.-]{0,120}$")
    application: str
    environment: str
    service: str
    version: str
    digest: str = Field(description="Digest of the service's bundle: sha256:<64 hex>.")
    command: str
    replicas: int = Field(ge=0, le=1000)
    environ: dict[str, str] = Field(default_factory=dict, repr=False)
    port: int | None = Field(None, description="Port inside the replica; None: no listener.")
    ready: str | None = Field(None, description="HTTP path; None: ready once the port accepts.")
    health: str | None = None
    start_seconds: float = Field(60, gt=0, description="Deadline for the first readiness.")
    drain_seconds: float = Field(10, ge=0, description="From SIGTERM to SIGKILL.")
    expires_at: datetime | None = Field(
        None, description="The cluster stops the workload then; None: runs until it is stopped."
    )


class Replica(_Frozen):
    """What is really there, read at one moment."""

    index: int
    phase: Phase
    address: str | None = Field(None, description="host:port, None without a listener.")
    pid: int | None = None
    restarts: int = 0
    exit_code: int | None = Field(None, description="Of the last exit; negative: signal.")
    reason: str = ""
    log: str | None = Field(None, description="Where its output is kept.")


class Workload(_Frozen):
    """One workload as the cluster sees it."""

    name: str
    application: str
    environment: str
    service: str
    version: str
    digest: str
    desired: int
    replicas: tuple[Replica, ...] = ()
    expires_at: datetime | None = None

    @property
    def ready(self) -> tuple[Replica, ...]:
        return tuple(r for r in self.replicas if r.phase is Phase.READY)

    @property
    def is_ready(self) -> bool:
        return self.desired > 0 and len(self.ready) >= self.desired

    @property
    def addresses(self) -> tuple[str, ...]:
        """host:port of each ready replica."""
        return tuple(r.address for r in self.ready if r.address)

    @property
    def failure(self) -> Replica | None:
        """The first replica that has exited at least once, if any."""
        return next((r for r in self.replicas if r.exit_code is not None), None)
