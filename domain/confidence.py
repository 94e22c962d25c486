"""How far a percentile or a share can be believed: intervals, and what they say of a limit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, log, sqrt
from statistics import NormalDist

from domain.latency import Histogram
from domain.verdict import Verdict


@dataclass(frozen=True, slots=True)
class Interval:
    low: float
    high: float

    def against(self, limit: float) -> Verdict:
        """The whole of it must lie on one side of an upper limit; across it is too little data."""
        if self.high <= limit:
            return Verdict.PASS
        return Verdict.FAIL if self.low > limit else Verdict.TOO_FEW


def fewest(share: float, confidence: float = 0.95) -> int:
    """Samples below which no upper bound of that percentile exists: 59 for the 95th.

    The greatest of n is above the percentile with probability 1 - share^n (order statistics;
    Wilks, "Determination of sample sizes for setting tolerance limits", 1941).
    """
    return ceil(log(1 - confidence) / log(share))


def percentile_interval(
    blocks: Sequence[Histogram], share: float, confidence: float = 0.95
) -> Interval | None:
    """Of a percentile in microseconds; None when there are too few samples.

    Requests that follow each other resemble each other, so a sample is a block of consecutive
    seconds, not a request. The share of requests at or below the percentile has a variance over
    blocks (a ratio estimate; Cochran, "Sampling Techniques", 1977, 6.3); the percentiles at both
    ends of its interval are the ends of ours (Woodruff, "Confidence intervals for medians and
    other position measures", 1952). It is never narrower than independent requests would make it.

    Args:
        blocks: of equal length in time, in their order.
        share: 0.95 for the 95th percentile.
    """
    whole = Histogram()
    for block in blocks:
        whole.merge(block)
    if whole.count < fewest(share, confidence):
        return None
    at = whole.percentile(share)
    assert at is not None
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    spread = sqrt(max(share * (1 - share) / whole.count, _variance(blocks, at, whole.count)))
    low, high = share - z * spread, share + z * spread
    first, last = max(1, int(low * whole.count)), ceil(high * whole.count)
    return Interval(whole.at_rank(first), whole.at_rank(min(last, whole.count)))


def proportion_interval(hits: int, total: int, confidence: float = 0.95) -> Interval | None:
    """Of a share, from counts; None of nothing.

    Wilson's with continuity correction, which also holds for few hits or none (Newcombe,
    "Two-sided confidence intervals for the single proportion", 1998, method 4).
    """
    if not total:
        return None
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share, scale = hits / total, 2 * (total + z * z)
    middle = 2 * hits + z * z
    left = z * z - 2 - 1 / total + 4 * share * (total * (1 - share) + 1)
    right = z * z + 2 - 1 / total + 4 * share * (total * (1 - share) - 1)
    low = (middle - 1 - z * sqrt(max(0.0, left))) / scale if hits else 0.0
    high = (middle + 1 + z * sqrt(max(0.0, right))) / scale if hits < total else 1.0
    return Interval(max(0.0, low), min(1.0, high))


def _variance(blocks: Sequence[Histogram], at: float, total: int) -> float:
    """Of the share at or below ``at``, from block to block."""
    filled = [block for block in blocks if block.count]
    if len(filled) < 2:
        return 0.0
    below = [sum(n for low, _, n in block.counts() if low <= at) for block in filled]
    ratio = sum(below) / total
    squares = sum((y - ratio * b.count) ** 2 for y, b in zip(below, filled, strict=True))
    return squares * len(filled) / (len(filled) - 1) / total**2
