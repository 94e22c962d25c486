"""Latencies as counts in log-linear buckets: exact to merge, and fine enough to judge by.

128 buckets an octave, as HdrHistogram has them (Gil Tene): a value is known to 0.4 %. Counts
of workers, seconds and endpoints are added; percentiles never are (docs/load.md).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

_BITS = 7
_HALF = 1 << _BITS
LONGEST_US = (1 << 27) - 1
"""134 seconds; what is longer counts as this long, and the greatest stays known."""
_SIZE = ((27 - _BITS - 1) << _BITS) + 2 * _HALF


class Histogram:
    """Counts of durations in microseconds."""

    __slots__ = ("_counts", "_sum", "count", "max_us", "min_us")

    def __init__(self) -> None:
        self._counts: list[int] = []
        self.count = 0
        self._sum = 0
        self.max_us = 0
        self.min_us = LONGEST_US

    def record(self, us: int, count: int = 1) -> None:
        if not self._counts:
            self._counts = [0] * _SIZE
        self._counts[_index(us if us < LONGEST_US else LONGEST_US)] += count
        self.count += count
        self._sum += us * count
        if us > self.max_us:
            self.max_us = us
        if us < self.min_us:
            self.min_us = us

    def merge(self, other: Histogram) -> None:
        """Add the counts of another one."""
        if not other.count:
            return
        if not self._counts:
            self._counts = [0] * _SIZE
        for index, count in enumerate(other._counts):
            if count:
                self._counts[index] += count
        self.count += other.count
        self._sum += other._sum
        self.max_us = max(self.max_us, other.max_us)
        self.min_us = min(self.min_us, other.min_us)

    @property
    def mean_us(self) -> float | None:
        return self._sum / self.count if self.count else None

    def percentile(self, share: float) -> float | None:
        """In microseconds, by nearest rank ``ceil(share · n)``; None of nothing.

        Args:
            share: above 0, up to 1.
        """
        return self.at_rank(math.ceil(round(share * self.count, 9))) if self.count else None

    def at_rank(self, rank: int) -> float:
        """The value of that rank, from 1; the middle of its bucket, within what was seen."""
        seen = 0
        for index, count in enumerate(self._counts):
            seen += count
            if count and seen >= rank:
                low, high = _edges(index)
                return float(min(max((low + high - 1) / 2, self.min_us), self.max_us))
        return float(self.max_us)

    def share_above(self, us: float) -> float:
        """The share of values in buckets that begin above ``us``; 0 of nothing."""
        above = sum(count for low, _, count in self.counts() if low > us)
        return above / self.count if self.count else 0.0

    def counts(self) -> Iterator[tuple[int, int, int]]:
        """Lower edge, upper edge (exclusive) and count of each bucket that has any."""
        for index, count in enumerate(self._counts):
            if count:
                yield *_edges(index), count

    def to_dict(self) -> dict[str, Any]:
        if not self.count:
            return {}
        buckets = {str(index): count for index, count in enumerate(self._counts) if count}
        return {"sum": self._sum, "min": self.min_us, "max": self.max_us, "buckets": buckets}

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> Histogram:
        """What ``to_dict`` gave.

        Raises:
            ValueError: it is not that.
        """
        found = cls()
        if not document:
            return found
        try:
            found._counts = [0] * _SIZE
            for index, count in document["buckets"].items():
                if int(index) < 0 or count < 0:
                    raise ValueError("a count is negative")
                found._counts[int(index)] = int(count)
            found.count = sum(found._counts)
            found._sum = int(document["sum"])
            found.min_us, found.max_us = int(document["min"]), int(document["max"])
        except (KeyError, IndexError, TypeError, AttributeError) as error:
            raise ValueError(f"this is no histogram: {error!r}") from error
        return found


def _index(us: int) -> int:
    """Of the bucket; whole microseconds up to 255, then 128 buckets an octave."""
    shift = us.bit_length() - _BITS - 1
    return us if shift <= 0 else (shift << _BITS) + (us >> shift)


def _edges(index: int) -> tuple[int, int]:
    if index < 2 * _HALF:
        return index, index + 1
    shift = (index >> _BITS) - 1
    low = ((index & (_HALF - 1)) + _HALF) << shift
    return low, low + (1 << shift)
