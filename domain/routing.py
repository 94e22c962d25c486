"""What an edge does: which versions get which share of an environment's public traffic."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

# Edges build host names, paths and object names from these, so no other sign may get in.
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9.-]*$", max_length=100)]
WorkloadName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9.-]*$", max_length=121)]


_R10 = (1, 1.25, 1.6, 2, 2.5, 3.15, 4, 5, 6.3, 8)
LATENCY_BOUNDS_SECONDS = (
    *(round(step * 10**power, 6) for power in (-3, -2, -1, 0) for step in _R10),
    10.0,
)
"""Steps of a quarter (Renard's series R10) from 1 ms to 10 s: a change of the same ratio shows at
every scale, and 200 ms, the usual objective, is one of the bounds."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Backend(_Frozen):
    """One workload behind the edge."""

    workload: WorkloadName
    addresses: tuple[str, ...] = Field(description="host:port of each ready replica.")
    ready: str | None = Field(None, description="Path the edge probes to leave out sick replicas.")


class Testing(_Frozen):
    """Requests with this header, or this cookie, go to this workload, whatever its weight is."""

    carrier: Literal["header", "cookie"]
    name: str = Field(pattern=r"^[A-Za-z0-9_-]+$")
    value: str = Field(pattern=r"^[A-Za-z0-9_-]+$")
    workload: WorkloadName


class Route(_Frozen):
    """One service: its public paths, and its share by workload.

    ``paths`` empty means internal: other services reach it, the public does not. ``mirror`` is
    the percentage, by workload, of GET requests of which a copy goes there; the answers to
    copies are thrown away, and what changes data is never copied.
    """

    service: Name
    paths: tuple[str, ...] = ()
    backends: tuple[Backend, ...]
    weights: Mapping[str, int] = Field(description="Percent by workload; sums to 100, or empty.")
    mirror: Mapping[str, int] = Field(default_factory=dict)
    testing: Testing | None = None

    @model_validator(mode="after")
    def _whole(self) -> Route:
        known = {backend.workload for backend in self.backends}
        named = {*self.weights, *self.mirror, *([self.testing.workload] if self.testing else [])}
        if unknown := named - known:
            raise ValueError(f"weight for a workload that is not a backend: {sorted(unknown)}")
        if any(not 0 <= percent <= 100 for percent in self.mirror.values()):
            raise ValueError(f"a mirror of more than everything: {dict(self.mirror)}")
        if any(weight < 0 for weight in self.weights.values()):
            raise ValueError(f"negative weight in {dict(self.weights)}")
        if self.weights and sum(self.weights.values()) != 100:
            raise ValueError(f"weights must sum to 100, not {sum(self.weights.values())}")
        return self

    def canonical(self) -> Route:
        """The same route, sorted and without zero weights."""
        backends = (
            backend.model_copy(update={"addresses": tuple(sorted(backend.addresses))})
            for backend in self.backends
        )
        return self.model_copy(
            update={
                "paths": tuple(sorted(self.paths)),
                "backends": tuple(sorted(backends, key=lambda b: b.workload)),
                "weights": {w: n for w, n in sorted(self.weights.items()) if n},
                "mirror": {w: n for w, n in sorted(self.mirror.items()) if n},
            }
        )


class Routing(_Frozen):
    """All routes of one application in one environment, switched as one.

    Every backend has a private address from the moment it is listed, whether or not it has
    weight, so a candidate can be looked at before a user is.
    """

    application: Name
    environment: Name
    host: str = Field(description="Public host name of the environment.")
    also: tuple[str, ...] = Field((), description="Other public names that lead here.")
    routes: tuple[Route, ...]

    def weight(self, workload: str) -> int:
        return sum(route.weights.get(workload, 0) for route in self.routes)

    def canonical(self) -> Routing:
        """The same routing in the one form that two readers compare: sorted, without zeros."""
        routes = sorted((route.canonical() for route in self.routes), key=lambda r: r.service)
        also = tuple(sorted({*self.also} - {self.host}))
        return self.model_copy(update={"routes": tuple(routes), "also": also})


class Counts(_Frozen):
    """Requests the edge has handed to one workload since the workload first appeared."""

    requests: int = 0
    errors: int = Field(0, description="Answers with status 500 to 599.")
    buckets: Mapping[str, int] = Field(
        default_factory=dict, description="Cumulative count by upper bound in seconds ('+Inf')."
    )

    def since(self, earlier: Counts) -> Counts:
        """What was counted between two looks at the same counters.

        A counter never goes back, and its bounds stay. Where one did, be it one bucket, or the
        bounds are others, all of them have started again from zero: then everything here is new.
        What was counted after ``earlier`` and before the restart is lost, and so is a restart
        after which every counter has overtaken its earlier value.
        """
        other_bounds = bool(earlier.buckets) and self.buckets.keys() != earlier.buckets.keys()
        if other_bounds or self.went_back(earlier):
            return self
        return Counts(
            requests=self.requests - earlier.requests,
            errors=self.errors - earlier.errors,
            buckets={b: n - earlier.buckets.get(b, 0) for b, n in self.buckets.items()},
        )

    def went_back(self, earlier: Counts) -> bool:
        """Whether any counter is lower than it was."""
        return (
            self.requests < earlier.requests
            or self.errors < earlier.errors
            or any(self.buckets.get(bound, 0) < n for bound, n in earlier.buckets.items())
        )
