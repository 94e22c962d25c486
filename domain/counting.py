"""Counters that only grow until they start again from zero, and what was gained in between.

A counter lives in a process. The process restarts, and the counter with it; a sum of counters
hides that, so each is followed on its own and only the gains are added up.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from domain.routing import Counts

TOP = "+Inf"


def added(one: Counts, other: Counts) -> Counts:
    """Both together. Of the buckets, the bounds that both have: a missing one is not a zero."""
    return Counts(
        requests=one.requests + other.requests,
        errors=one.errors + other.errors,
        buckets=_added_buckets(one, other),
    )


def _added_buckets(one: Counts, other: Counts) -> dict[str, int]:
    if not one.requests:
        return dict(other.buckets)
    if not other.requests:
        return dict(one.buckets)
    return {b: n + other.buckets[b] for b, n in one.buckets.items() if b in other.buckets}


def by_bound(buckets: dict[str, int]) -> dict[str, int]:
    """The same, in the order of the bounds."""
    return dict(sorted(buckets.items(), key=lambda item: float(item[0])))


@dataclass
class Series:
    """One counter of one process, sample by sample.

    Attributes:
        seen: time of the newest sample taken in, in seconds since the epoch.
        value: its value.
        total: gained since ``base`` was called, or since zero if it never was.
    """

    seen: float | None = None
    value: float = 0.0
    total: float = 0.0

    def take(self, samples: Iterable[tuple[float, float]]) -> None:
        """Add (time, value) samples in order of time; those taken before are passed over.

        The first sample counts from zero: a counter is born with its first event, and PromQL's
        ``increase``, which looks at differences only, never sees that event.
        """
        for time, value in samples:
            if self.seen is not None and time <= self.seen:
                continue
            self.total += value - self.value if value >= self.value else value
            self.seen, self.value = time, value

    def base(self) -> None:
        """From here on, only what comes next is a gain."""
        self.total = 0.0
