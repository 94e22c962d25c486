"""A cluster, an edge, a store and users in memory, around the real journal and rules.

The clock jumps instead of waiting, and every call to the outside can be the one that is hit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any

from blocks.journal import Journal
from blocks.object_store import AlreadyExists
from blocks.records import Records
from domain.application import Application, Strategy, parse
from domain.artifact import Artifact, ServiceBundle, digest_of
from domain.counting import added
from domain.errors import Failed
from domain.journal import Outcome
from domain.release import BuildRecord
from domain.routing import Counts, Routing
from domain.workload import Phase, Replica, Workload, WorkloadSpec
from tasks.releasing import begin, open_journal

WEB = (
    "services: {web: {command: run, replicas: {default: 2}}}\n"
    "canary: {steps: [25%], requests: 20, mirror: 20}"
)
START = datetime(2026, 1, 1, tzinfo=UTC)


@lru_cache
def _parsed(text: str) -> Application:
    places = "" if "environments:" in text else "environments: {test: {}}"
    return parse(f"name: shop\n{text}\n{places}\n")


class Killed(BaseException):
    """SIGKILL or a cancellation, depending on who catches it."""


class Store:
    """An object store in memory, with the world's faults around each write."""

    def __init__(self) -> None:
        self.world: World
        self.objects: dict[str, bytes] = {}

    def create(self, key: str, content: bytes) -> None:
        self.world.outside()
        if self.world.full:
            raise Failed("SLP015", "no space is left", help="free some")
        if key in self.objects:
            raise AlreadyExists(key)
        self.objects[key] = content
        self.world.outside()

    def replace(self, key: str, content: bytes) -> None:
        self.objects[key] = content

    def read(self, key: str) -> bytes | None:
        return self.objects.get(key)

    def list(self, prefix: str) -> tuple[str, ...]:
        return tuple(sorted(key for key in self.objects if key.startswith(f"{prefix}/")))


@dataclass
class World:
    """Everything outside, with a point at which it is hit."""

    store: Any = field(default_factory=Store)  # any object store
    seconds: float = 0.0
    calls: int = 0
    hit_at: int = -1
    hit: Callable[[], None] = lambda: None
    specs: dict[str, WorkloadSpec] = field(default_factory=dict)
    reads: dict[str, int] = field(default_factory=dict)
    routing: Routing | None = None
    counted: dict[str, Counts] = field(default_factory=dict)
    sick: set[str] = field(default_factory=set)
    faulty: set[str] = field(default_factory=set)  # users meet errors, and no smoke check does
    restarts: dict[str, int] = field(default_factory=dict)
    never_ready: set[str] = field(default_factory=set)
    rate: int = 200
    copies: int = 0
    silent: bool = False
    full: bool = False
    writes: int = 0
    vanished: bool = False
    run: str = "run-1"
    log: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if isinstance(self.store, Store):
            self.store.world = self

    def start_over(self, begin: Callable[[World], object]) -> Callable[[], None]:
        """Begin anew with ``begin``; what is returned leads back to the end of that."""
        self.__init__(log=self.log)  # type: ignore[misc]
        begin(self)
        fields = vars(self).copy()
        copied = {n: v.copy() for n, v in fields.items() if isinstance(v, dict | set)}
        objects = self.store.objects.copy()

        def back() -> None:
            vars(self).clear()
            vars(self).update(fields, **{name: value.copy() for name, value in copied.items()})
            self.store.objects = objects.copy()

        return back

    @property
    def cluster(self) -> World:
        return self

    @property
    def edge(self) -> World:
        return self

    @property
    def database(self) -> World:
        return self

    def ensure(self, database: str) -> str:
        return f"postgresql://localhost/{database}"

    def outside(self) -> None:
        self.calls += 1
        if self.calls == self.hit_at:
            self.hit()

    def kill_at(self, call: int) -> None:
        def hit() -> None:
            raise Killed

        self.calls, self.hit_at, self.hit = 0, call, hit

    # a clock that never waits

    def sleep(self, seconds: float) -> None:
        """Users go on while somebody waits; only a canary waits for them."""
        self.seconds += seconds
        if self.proving():
            self.users(int(seconds * self.rate))

    def proving(self) -> bool:
        routes = self.routing.routes if self.routing else ()
        return any(route.mirror or 0 < min(route.weights.values(), default=0) < 100
                   for route in routes)  # fmt: skip

    def monotonic(self) -> float:
        self.seconds += 0.01
        return self.seconds

    def now(self) -> datetime:
        return START + timedelta(seconds=self.monotonic())

    # Cluster

    def _talk(self) -> None:
        self.outside()
        if self.silent:
            raise Failed("SLP014", "nobody answers", help="wait")

    def apply(self, spec: WorkloadSpec) -> Workload:
        self._talk()
        self.specs[spec.name] = spec
        self.reads.setdefault(spec.name, 0)
        return self._view(spec.name)

    def get(self, name: str) -> Workload | None:
        return self._view(name) if name in self.specs else None

    def workloads(self, application: str, environment: str) -> tuple[Workload, ...]:
        self._talk()
        mine = [n for n, s in self.specs.items() if s.environment == environment]
        for name in mine:
            self.reads[name] += 1
        return tuple(self._view(name) for name in mine)

    def expire(self, name: str, at: datetime | None) -> bool:
        self._talk()
        if name in self.specs:
            self.specs[name] = self.specs[name].model_copy(update={"expires_at": at})
        return name in self.specs

    def stop(self, name: str) -> None:
        self._talk()
        self.specs.pop(name, None)
        self.check()

    def log_tail(self, name: str, lines: int = 20) -> str:
        return "postgresql://shop:hunter2@db/shop is not there"

    def _view(self, name: str) -> Workload:
        spec = self.specs[name]
        ready = self.reads[name] > 2 and name not in self.never_ready
        replicas = tuple(
            Replica(
                index=index,
                phase=Phase.READY if ready else Phase.STARTING,
                address=f"{name}:{index + 1}" if spec.port else None,
                restarts=self.restarts.get(name, 0),
            )
            for index in range(spec.replicas)
        )
        return Workload(
            name=name, application=spec.application, environment=spec.environment,
            service=spec.service, version=spec.version, digest=spec.digest,
            desired=spec.replicas, replicas=replicas, expires_at=spec.expires_at,
        )  # fmt: skip

    # Edge

    def read(self, application: str, environment: str) -> Routing | None:
        self._talk()
        return self.routing

    def write(self, routing: Routing) -> None:
        self._talk()
        self.routing, self.writes = routing, self.writes + 1
        for route in routing.routes:
            for backend in route.backends:
                self.counted.setdefault(backend.workload, Counts())
        self.check()

    def remove(self, application: str, environment: str) -> None:
        self._talk()
        self.routing = None

    def counts(self, application: str, environment: str) -> dict[str, Counts]:
        self._talk()
        listed = self.routing.routes if self.routing else ()
        names = {b.workload for route in listed for b in route.backends}
        return {name: self.counted[name] for name in names}

    def public_url(self, routing: Routing) -> str:
        return f"http://{routing.host}"

    def request_target(self, routing: Routing) -> tuple[str, dict[str, str]]:
        return "public", {"Host": routing.host}

    def private_url(self, application: str, environment: str, workload: str) -> str:
        return workload

    # what users see

    def users(self, requests: int = 10) -> None:
        for workload, weight in self.weights().items():
            share = requests * weight // 100
            failing = workload in self.sick | self.faulty
            self.count(workload, share, share if failing else 0)
        for route in self.routing.routes if self.routing else ():
            for workload, percent in route.mirror.items():
                copies = requests * percent // 100
                self.copies += copies
                self.count(workload, copies)

    def count(self, workload: str, requests: int, failed: int = 0) -> None:
        """As the edge does: every request is quick."""
        quick = {"0.1": requests, "0.5": requests, "+Inf": requests}
        met = Counts(requests=requests, errors=failed, buckets=quick)
        self.counted[workload] = added(self.counted[workload], met)

    def weights(self) -> dict[str, int]:
        routes = self.routing.routes if self.routing else ()
        return {w: n for route in routes for w, n in route.weights.items() if n}

    def check(self) -> None:
        """Whoever has weight runs, at every moment."""
        weights = self.weights()
        if weights and not self.vanished:
            assert self.routing is not None
            assert {sum(r.weights.values()) for r in self.routing.routes} <= {0, 100}
            lost = [w for w in weights if w not in self.specs or not self.specs[w].replicas]
            assert not lost, f"users are sent to {lost}, which do not run"

    # releases

    def record(self, version: str, text: str = WEB) -> BuildRecord:
        application = _parsed(text)
        bundle = digest_of({"version": version})
        artifact = Artifact(
            application="shop",
            version=version,
            services={
                name: ServiceBundle(digest=bundle, size_bytes=1, built_from=bundle)
                for name in application.services
            },
        )
        record = BuildRecord.of(application, artifact, "unversioned")
        Records(self.store).keep(record)
        return record

    def begin(self, version: str, strategy: Strategy = Strategy.BLUE_GREEN, text: str = WEB) -> Any:
        return begin(self.platform, self.record(version, text), "test", strategy=strategy)

    def ship(self, version: str, strategy: Strategy = Strategy.BLUE_GREEN, text: str = WEB) -> Any:
        return self.begin(version, strategy, text).drive()

    @property
    def platform(self) -> Any:
        return self

    def journal(self) -> Journal:
        return open_journal(self.platform, "shop", "test")

    def outcomes(self) -> list[Outcome | None]:
        return [release.outcome for release in self.journal().history()]
