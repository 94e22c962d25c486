"""Latencies in full: a histogram that merges exactly, and how sure its percentiles are.

The histogram is log-linear, as HdrHistogram (Tene): 128 steps an octave, so that the middle of a
step is within 0.39 % of every value in it. Counts are integers, and merging adds them: the
percentile of any number of merged parts is that of the pooled samples. (A mean of percentiles is
the percentile of nothing.)
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from random import Random
from statistics import stdev
from typing import Any, Final

from domain.distributions import binomial_at_most, crossing, first_true, student_quantile

STEPS: Final = 128
"""Steps an octave."""

LONGEST_US: Final = 2**27 - 1
"""134 s. What is longer is counted in the last step."""

_EXACT: Final = 2 * STEPS  # below this each microsecond has a step of its own
_BITS: Final = _EXACT.bit_length() - 1
_SHIFT: Final = STEPS.bit_length() - 1
_LAST: Final = ((LONGEST_US.bit_length() - _BITS) << _SHIFT) + _EXACT - 1
_FAR: Final = 2**62

LEAST_BLOCKS: Final = 10
"""Blocks below which their spread says too little to draw them again."""


def _lower(step: int) -> int:
    """The least value of a step, in microseconds."""
    if step < _EXACT:
        return step
    shift = (step >> _SHIFT) - 1
    return (step - (shift << _SHIFT)) << shift


def _upper(step: int) -> int:
    """The greatest value of a step, in microseconds."""
    return _lower(step + 1) - 1


def _step(us: int) -> int:
    if us < _EXACT:
        return max(us, 0)
    shift = us.bit_length() - _BITS
    return min((shift << _SHIFT) + (us >> shift), _LAST)


class Histogram:
    """How many took how long, in whole microseconds.

    Values above ``LONGEST_US`` are counted in the last step and values below 0 (a timer that
    fired early) in the first; the least, the greatest and the mean are of the values themselves.

    Attributes:
        count: samples so far.
    """

    __slots__ = ("_counters", "_max", "_min", "_sum", "count")

    def __init__(self) -> None:
        self._counters = [0] * (_LAST + 1)
        self.count = 0
        self._sum = 0
        self._min, self._max = _FAR, -_FAR

    def record(self, us: int, count: int = 1) -> None:
        """Add ``count`` samples of ``us`` microseconds.

        Written out flat: it runs once for each request in the generator.
        """
        if us < _EXACT:
            self._counters[us if us > 0 else 0] += count
        else:
            shift = us.bit_length() - _BITS
            step = (shift << _SHIFT) + (us >> shift)
            self._counters[step if step < _LAST else _LAST] += count
        self.count += count
        self._sum += us * count
        if us > self._max:
            self._max = us
        if us < self._min:
            self._min = us

    def merge(self, other: Histogram) -> None:
        """Add the samples of another, which stays as it is."""
        if not other.count:
            return
        self._counters = [a + b for a, b in zip(self._counters, other._counters, strict=True)]
        self.count += other.count
        self._sum += other._sum
        self._min, self._max = min(self._min, other._min), max(self._max, other._max)

    @property
    def min_us(self) -> int | None:
        return self._min if self.count else None

    @property
    def max_us(self) -> int | None:
        return self._max if self.count else None

    @property
    def mean_us(self) -> float | None:
        return self._sum / self.count if self.count else None

    def percentile(self, p: float) -> float | None:
        """The nearest rank: the sample of rank ``ceil(p n)`` when sorted, in microseconds.

        The middle of that sample's step; the first and the last rank exactly. None when empty.

        Args:
            p: above 0, at most 1.
        """
        _check_share(p)
        if not self.count:
            return None
        rank = nearest_rank(p, self.count)
        if rank in (1, self.count):
            return float(self._min if rank == 1 else self._max)
        low, high = self.at_rank(rank)
        return (low + high) / 2

    def at_rank(self, rank: int) -> tuple[int, int]:
        """The bounds in microseconds, both included, of the sample of a rank from 1 to count."""
        if not 1 <= rank <= self.count:
            raise ValueError(f"no rank {rank} among {self.count} samples")
        return self._bounds(bisect_left(list(accumulate(self._counters)), rank))

    def share_above(self, us: float) -> float | None:
        """The share of samples above ``us`` microseconds; None when empty.

        Samples are taken to lie evenly in the one step that ``us`` cuts.
        """
        if not self.count:
            return None
        if us >= self._max or us < self._min:
            return 0.0 if us >= self._max else 1.0
        step = _step(math.floor(us))
        low, high = self._bounds(step)
        within = max(0.0, high - us) / (high - low + 1)
        above = sum(self._counters[step + 1 :]) + self._counters[step] * within
        return above / self.count

    def counts(self) -> Iterator[tuple[int, int, int]]:
        """Ascending (least, greatest, count) of each step that has samples, in microseconds."""
        for step, count in enumerate(self._counters):
            if count:
                yield *self._bounds(step), count

    def _bounds(self, step: int) -> tuple[int, int]:
        low, high = _lower(step), _upper(step)
        if step == 0 or low < self._min:
            low = self._min
        if step == _LAST or high > self._max:
            high = self._max
        return low, high

    def to_dict(self) -> dict[str, Any]:
        """For JSON. ``steps`` is flat: steps passed over since the last one, count, and again."""
        flat: list[int] = []
        expected = 0
        for step, count in enumerate(self._counters):
            if count:
                flat += (step - expected, count)
                expected = step + 1
        return {"min": self.min_us, "max": self.max_us, "sum": self._sum, "steps": flat}

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> Histogram:
        """The histogram that ``to_dict`` wrote.

        Raises:
            ValueError: it is not one: half a file must not read as fewer samples.
        """
        try:
            flat, low, high = list(raw["steps"]), raw["min"], raw["max"]
            whole = all(type(n) is int for n in (*flat, raw["sum"]))
            if not whole or len(flat) % 2 or any(n < 0 for n in flat) or 0 in flat[1::2]:
                raise ValueError("its counts are not whole numbers in pairs")
            self = cls()
            step = -1
            for gap, count in zip(flat[::2], flat[1::2], strict=True):
                step += gap + 1
                self._counters[step] = count
            self.count, self._sum = sum(flat[1::2]), raw["sum"]
            if self.count:
                self._min, self._max = low, high
                if _step(low) != flat[0] or _step(high) != step:
                    raise ValueError(f"{low} and {high} us are not in its first and last step")
        except (KeyError, TypeError, AttributeError, IndexError) as error:
            raise ValueError(f"this is no latency histogram: {error!r}") from error
        return self

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Histogram):
            return NotImplemented
        return self.to_dict() == other.to_dict()

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"<Histogram of {self.count}, {self.min_us} to {self.max_us} us>"


def _check_share(p: float) -> None:
    if not 0 < p <= 1:
        raise ValueError(f"a percentile is above 0 and at most 1, not {p}")


def nearest_rank(p: float, n: int) -> int:
    """``ceil(p n)``, with 0.07 x 100 being 7 and not what a float makes of it (above 7)."""
    return min(n, max(1, math.ceil(p * n * (1 - 1e-15))))


@dataclass(frozen=True)
class Interval:
    """A range, both ends included, that holds the truth with a stated confidence."""

    low: float
    high: float

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high

    def including(self, other: Interval) -> Interval:
        """The smallest range that holds both: as careful as either."""
        return Interval(min(self.low, other.low), max(self.high, other.high))


def least_samples(p: float, confidence: float = 0.95) -> int:
    """Samples below which ``percentile_interval`` is None: 59 for p95, 299 for p99."""
    _check_share(p)
    if p == 1:
        raise ValueError("no number of samples bounds the greatest value there can be")
    alpha = 1 - confidence
    start = math.ceil(math.log(alpha) / math.log(max(p, 1 - p)) * (1 - 1e-12))
    return next(n for n in range(start, 2 * start + 9) if p**n + (1 - p) ** n <= alpha)


def percentile_interval(
    histogram: Histogram, p: float, confidence: float = 0.95
) -> Interval | None:
    """Where the percentile of the distribution lies, in microseconds, if samples are independent.

    From order statistics: the number of samples below it is binomial, whatever the distribution
    (Le Boudec 2010, "Performance Evaluation of Computer and Communication Systems", theorem 2.1).
    Each end misses in half of the doubt. Where there are too few samples for that on one side,
    that side gets as much of the doubt as it needs, and the other the rest. The ends are the
    outer bounds of their steps, so that the histogram's own error is within.

    Returns:
        None when no such interval exists: fewer than ``least_samples``.
    """
    _check_share(p)
    n, alpha = histogram.count, 1 - confidence
    above, below = p**n, (1 - p) ** n
    if not n or above + below > alpha:
        return None
    doubt_low = min(max(alpha / 2, below), alpha - above)
    doubt_high = min(max(alpha / 2, above), alpha - below)
    # The rounding of the chances themselves must not cost the last rank there is.
    doubt_low, doubt_high = doubt_low * (1 + 1e-9), doubt_high * (1 + 1e-9)
    low = first_true(0, n, lambda k: binomial_at_most(k, n, p) > doubt_low)
    high = first_true(0, n, lambda k: 1 - binomial_at_most(k, n, p) <= doubt_high) + 1
    return Interval(histogram.at_rank(low)[0], histogram.at_rank(high)[1])


def block_bootstrap_interval(
    blocks: Sequence[Histogram],
    p: float,
    confidence: float = 0.95,
    rounds: int = 1000,
    *,
    random: Random,
) -> Interval | None:
    """Where the percentile lies when neighbouring requests are alike, in microseconds.

    A request in a slow second is slow like its neighbours, so a thousand of them are not a
    thousand facts. Whole blocks of time are drawn again instead (Carlstein 1986), and what is
    looked at is the share of requests at or below the percentile that was seen. The share, give or
    take its standard error by Student's t, is turned back into two percentiles (Woodruff 1952).
    Percentiles of the draws themselves would end too low: with 12 to 40 seconds of unlike speed
    the true p95 was above such intervals in 11 to 28 of 100 runs, and above these in 3 to 6.

    Args:
        blocks: consecutive histograms, each much longer than what keeps requests alike: 1 to 5 s.
        rounds: how often as many blocks are drawn as there are.

    Returns:
        None with fewer than ``LEAST_BLOCKS`` blocks that have samples, with fewer samples than
        ``least_samples``, and when the blocks differ so much that an end is beyond all samples.
    """
    _check_share(p)
    filled = [block for block in blocks if block.count]
    pooled = Histogram()
    for block in filled:
        pooled.merge(block)
    if len(filled) < LEAST_BLOCKS or p == 1 or pooled.count < least_samples(p, confidence):
        return None
    below, at = pooled.at_rank(nearest_rank(p, pooled.count))
    # Equal samples make the share leap at the percentile: the more doubtful side counts.
    error = max(_share_error(filled, us, rounds, random) for us in (below - 1, at))
    # Drawing from b blocks shows (b - 1) / b of the variance.
    error *= math.sqrt(len(filled) / (len(filled) - 1))
    reach = error * student_quantile(confidence, len(filled) - 1) * pooled.count
    low, high = math.floor(p * pooled.count - reach), math.ceil(p * pooled.count + reach)
    if low < 1 or high > pooled.count:
        return None
    return Interval(pooled.at_rank(low)[0], pooled.at_rank(high)[1])


def _share_error(blocks: Sequence[Histogram], us: int, rounds: int, random: Random) -> float:
    """Standard error of the share at or below ``us``, among blocks drawn again."""
    within = [((1 - (block.share_above(us) or 0.0)) * block.count, block.count) for block in blocks]
    shares = []
    for _ in range(rounds):
        drawn = random.choices(within, k=len(within))
        shares.append(sum(few for few, _ in drawn) / sum(count for _, count in drawn))
    return stdev(shares)


def proportion_interval(failures: int, total: int, confidence: float = 0.95) -> Interval | None:
    """Where the chance to fail lies, after ``failures`` in ``total`` independent requests.

    The exact interval of Clopper and Pearson (1934): failures are few when all is well, and just
    there it still holds the truth at least as often as it says, where Wilson's does so only on
    average. No failure in ``n`` gives at most ``1 - (alpha / 2)^(1 / n)``, about ``3.7 / n``.

    Returns:
        None for none at all: nothing sent is not "no failures".
    """
    if not 0 <= failures <= total:
        raise ValueError(f"{failures} failures in {total}")
    if not total:
        return None
    doubt = (1 - confidence) / 2
    low = high = failures / total
    if failures:
        low = crossing(0, low, lambda at: 1 - binomial_at_most(failures - 1, total, at) > doubt)
    if failures < total:
        high = crossing(high, 1, lambda at: binomial_at_most(failures, total, at) < doubt)
    return Interval(0.0 if not failures else low, 1.0 if failures == total else high)
