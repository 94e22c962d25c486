"""What a load test saw, put together from all workers: the input of every verdict on it."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from domain.arrivals import Dispersion
from domain.latency import Histogram
from domain.load_profile import Profile


@dataclass(slots=True)
class Series:
    """Requests of one kind.

    Attributes:
        response: from when each was due; what a user waits, and what limits hold for.
        service: from when it was sent; what the server took.
    """

    response: Histogram = field(default_factory=Histogram)
    service: Histogram = field(default_factory=Histogram)
    failures: Counter[str] = field(default_factory=Counter)
    bytes: int = 0

    @property
    def requests(self) -> int:
        return self.response.count

    @property
    def failed(self) -> int:
        return self.failures.total()

    def merge(self, other: Series) -> None:
        self.response.merge(other.response)
        self.service.merge(other.service)
        self.failures.update(other.failures)
        self.bytes += other.bytes

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> Series:
        return cls(
            Histogram.from_dict(document["response"]),
            Histogram.from_dict(document["service"]),
            Counter(document["failures"]),
            int(document["bytes"]),
        )


@dataclass(slots=True)
class Second:
    """All workers' ticks of one second.

    Attributes:
        cpu: CPU seconds of each worker.
        host_cpu: share of all processors that were busy, 0 to 1; None when it was not measured.
        stolen: share of all processors that a virtual machine's host gave to others, 0 to 1.
        tiers: CPU seconds by what used them: the edge, the application, …
        answered: connections that got their first answer.
        repeated: requests that were dropped without an answer and sent once more.
        workers: how many told of this second.
    """

    at: int
    series: Series = field(default_factory=Series)
    phases: dict[str, Series] = field(default_factory=dict)
    lag: Histogram = field(default_factory=Histogram)
    loop: Histogram = field(default_factory=Histogram)
    users: int = 0
    in_flight: int = 0
    done: int = 0
    busy_seconds: float = 0.0
    connections: int = 0
    reconnections: int = 0
    answered: int = 0
    repeated: int = 0
    pause_us: int = 0
    cpu: dict[int, float] = field(default_factory=dict)
    host_cpu: float | None = None
    stolen: float = 0.0
    tiers: dict[str, float] = field(default_factory=dict)
    workers: int = 0


@dataclass(slots=True)
class Lost:
    """A worker that is no more.

    Attributes:
        at: seconds from the start at which it was missed.
        share: of the load that went with it, 0 to 1.
    """

    worker: int
    at: float
    how: str
    share: float


class Run:
    """Grows with each tick; everything else is read off it.

    Args:
        workers: how many there should be.
    """

    def __init__(self, profile: Profile, workers: int) -> None:
        self.profile, self.workers = profile, workers
        self.seconds: dict[int, Second] = {}
        self.endpoints: dict[tuple[str, str], Series] = defaultdict(Series)
        self.sends: dict[str, Dispersion] = defaultdict(Dispersion)
        self.scripts: Counter[str] = Counter()
        self.lost: list[Lost] = []
        self.ended: dict[int, Mapping[str, Any]] = {}
        self.memory: dict[int, int] = {}
        self.stopped = ""
        """Why it was ended before its time: somebody, or something of ours; empty: it was not."""
        self.hopeless = ""
        """Why it was ended before its time: the server was so bad that it only did harm."""
        self._sequences: dict[int, int] = defaultdict(int)
        self._counted: Counter[int] = Counter()

    # growing

    def add(self, worker: int, tick: Mapping[str, Any]) -> None:
        """Take one tick of a worker.

        Raises:
            ValueError: it does not follow the one before, or cannot be read.
        """
        if tick["sequence"] != self._sequences[worker] + 1:
            raise ValueError(
                f"worker {worker} went from tick {self._sequences[worker]} to {tick['sequence']}"
            )
        self._sequences[worker] += 1
        second = self._second(max(0, round(tick["second"]) - 1))
        for phase, by_name in tick["phases"].items():
            for name, document in by_name.items():
                found = Series.from_dict(document)
                self.endpoints[phase, name].merge(found)
                second.phases.setdefault(phase, Series()).merge(found)
                second.series.merge(found)
                self._counted[worker] += found.requests
        second.lag.merge(Histogram.from_dict(tick["lag"]))
        second.loop.merge(Histogram.from_dict(tick["loop"]))
        second.users += tick["users"]
        second.in_flight += tick["in_flight"]
        second.done += tick["done"]
        second.busy_seconds += tick["busy_seconds"]
        second.connections += tick["connections"]
        second.reconnections += tick["reconnections"]
        second.answered += tick["answered"]
        second.repeated += tick["repeated"]
        second.pause_us = max(second.pause_us, tick["pause_us"])
        second.cpu[worker] = second.cpu.get(worker, 0.0) + tick["cpu_seconds"]
        second.workers += 1
        for phase, sends in tick["sends"].items():
            self.sends[phase].merge(Dispersion.from_dict(sends))
        self.scripts.update(tick["scripts"])
        self.memory[worker] = max(self.memory.get(worker, 0), tick["memory_bytes"])

    def measured(
        self, at: int, host_cpu: float, tiers: Mapping[str, float], stolen: float = 0.0
    ) -> None:
        """What the coordinator saw of the machine in a second."""
        second = self._second(at)
        second.host_cpu, second.tiers, second.stolen = host_cpu, dict(tiers), stolen

    def end(self, worker: int, document: Mapping[str, Any]) -> None:
        self.ended[worker] = document

    def lose(self, worker: int, at: float, how: str) -> None:
        share = 1 / self.workers
        self.lost.append(Lost(worker, at, how, share))

    # reading

    def timeline(self) -> list[Second]:
        return [self.seconds[at] for at in sorted(self.seconds)]

    def within(self, begin: float, end: float) -> list[Second]:
        """The seconds that lie wholly between two moments."""
        return [s for s in self.timeline() if s.at >= begin and s.at + 1 <= end]

    def phase(self, name: str) -> Series:
        """Everything that was due in a phase."""
        whole = Series()
        for (phase, _), series in self.endpoints.items():
            if phase == name:
                whole.merge(series)
        return whole

    def judged(self) -> Iterator[tuple[str, float, float]]:
        """Name, begin and end of each phase that limits hold in."""
        for phase, begin, end in self.profile.spans():
            if phase.judged:
                yield phase.name, begin, end

    def cost_seconds(self) -> float | None:
        """CPU of the generator for one thing that a user does; None when nothing was done."""
        seconds = [second for _, begin, end in self.judged() for second in self.within(begin, end)]
        things = sum(second.lag.count for second in seconds)
        cpu = sum(sum(second.cpu.values()) for second in seconds)
        return max(cpu, 1e-6) / things if things else None

    def real_time(self) -> bool | None:
        """Whether every worker ran before all else; None when one did not come to tell."""
        if len(self.ended) < self.workers:
            return None
        return all(document.get("real_time", False) for document in self.ended.values())

    def names(self) -> list[str]:
        """Endpoints, those with the most requests first."""
        counts: Counter[str] = Counter()
        for (_, name), series in self.endpoints.items():
            counts[name] += series.requests
        return [name for name, _ in counts.most_common()]

    @property
    def requests(self) -> int:
        return sum(series.requests for series in self.endpoints.values())

    @property
    def failed(self) -> int:
        return sum(series.failed for series in self.endpoints.values())

    def missing_samples(self) -> int:
        """Requests that workers say they made and whose ticks never came."""
        return sum(
            max(0, int(document["requests"]) - self._counted[worker])
            for worker, document in self.ended.items()
        )

    def _second(self, at: int) -> Second:
        return self.seconds.setdefault(at, Second(at))
