"""The Cluster protocol: what every system that runs versions must do.

Each implementation passes the contract suite in tests/blocks/test_cluster_contract.py.
"""

from __future__ import annotations

from datetime import datetime
from typing import Protocol, runtime_checkable

from domain.workload import Workload, WorkloadSpec


@runtime_checkable
class Cluster(Protocol):
    """Runs workloads; every call is idempotent and bounded in time.

    Errors: ``domain.errors.Failed`` SLP014 when the cluster cannot be reached.
    """

    def apply(self, spec: WorkloadSpec) -> Workload:
        """Make it so: start what is missing, scale to ``replicas``, never restart what runs.

        Scaling down ends the replicas with the highest indexes: the edge forgets those first.

        Returns at once with what is there now; readiness is read with ``get``. An apply clears
        or sets ``expires_at`` as the spec says.
        """
        ...

    def get(self, name: str) -> Workload | None: ...

    def workloads(self, application: str, environment: str) -> tuple[Workload, ...]: ...

    def expire(self, name: str, at: datetime | None) -> bool:
        """Set or clear the moment at which the cluster stops the workload by itself.

        True when the workload exists: from then on it will not expire before ``at``.
        """
        ...

    def stop(self, name: str) -> None:
        """SIGTERM, wait for the drain, SIGKILL; returns when nothing of it is left."""
        ...

    def log_tail(self, name: str, lines: int = 20) -> str:
        """The last lines of the replica that failed last, else of the newest one.

        Works after the workload has gone, as long as its log is kept.
        """
        ...
