"""When load should arrive, and whether it did so independently."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import sqrt


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch in which the rate, in arrivals a second, goes evenly from one to another."""

    seconds: float
    from_rate: float
    to_rate: float


class PoissonSchedule:
    """Due times in seconds from the start: a Poisson process of a rate that changes in time.

    Points of a process of rate 1 are put where the integral of the rate reaches them (Çinlar,
    "Introduction to Stochastic Processes", 1975, p. 96). The sum of N such processes of a rate
    λ/N is one of rate λ, so workers need not talk to each other.
    """

    def __init__(self, segments: Sequence[Segment], chance: random.Random) -> None:
        self._segments, self._chance = tuple(segments), chance

    def __iter__(self) -> Iterator[float]:
        point, area, begin = self._chance.expovariate(1.0), 0.0, 0.0
        for segment in self._segments:
            whole = segment.seconds * (segment.from_rate + segment.to_rate) / 2
            while point <= area + whole:
                yield begin + _time_of(segment, point - area)
                point += self._chance.expovariate(1.0)
            area, begin = area + whole, begin + segment.seconds


def _time_of(segment: Segment, area: float) -> float:
    """Seconds into a segment at which the integral of its rate is ``area``: r·t + k·t²/2."""
    slope = (segment.to_rate - segment.from_rate) / segment.seconds
    if abs(slope) < 1e-12:
        return area / segment.from_rate
    root = sqrt(max(0.0, segment.from_rate**2 + 2 * slope * area))
    return min(segment.seconds, 2 * area / (segment.from_rate + root))


class Dispersion:
    """Counts of sends in bins of 10 ms, to be added over workers and then looked at.

    The index of dispersion, variance over mean, is 1 for independent arrivals and tens for
    users that were started in batches (locust#1281). The variance is taken from differences of
    neighbouring bins (von Neumann 1941), so a ramp does not look like bunching.
    """

    __slots__ = ("bins",)

    BIN_SECONDS = 0.01

    def __init__(self, bins: Mapping[int, int] | None = None) -> None:
        self.bins: dict[int, int] = dict(bins or {})

    def add(self, seconds: float) -> None:
        index = int(seconds * 100)
        self.bins[index] = self.bins.get(index, 0) + 1

    def merge(self, other: Dispersion) -> None:
        for index, count in other.bins.items():
            self.bins[index] = self.bins.get(index, 0) + count

    def index(self, width_bins: int, begin: float, end: float) -> float | None:
        """Between two moments in seconds, in bins of ``width_bins`` · 10 ms; None of too little."""
        first, last = int(begin * 100), int(end * 100)
        size = (last - first) // width_bins
        counts = [0] * size
        for at, count in self.bins.items():
            if first <= at < first + size * width_bins:
                counts[(at - first) // width_bins] += count
        total = sum(counts)
        if size < 10 or total < 30:
            return None
        squares = sum((b - a) ** 2 for a, b in pairwise(counts))
        return squares / (2 * (size - 1)) / (total / size)

    def to_dict(self) -> dict[str, int]:
        return {str(index): count for index, count in self.bins.items()}

    @classmethod
    def from_dict(cls, document: Mapping[str, int]) -> Dispersion:
        return cls({int(index): count for index, count in document.items()})
