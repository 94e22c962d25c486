"""Latency histograms as counters give them: cumulative counts by upper bound in seconds."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from domain.routing import Counts


def bounds(buckets: Mapping[str, int]) -> tuple[float, ...]:
    """The upper bounds in seconds, ascending, infinity among them.

    Raises:
        ValueError: a bound is no positive number, or is there twice.
    """
    values = sorted(float(bound) for bound in buckets)
    if any(not value > 0 for value in values):
        raise ValueError(f"a bucket bound is not positive: {', '.join(buckets)}")
    if len(set(values)) < len(values):
        raise ValueError(f"a bucket bound is there twice: {', '.join(buckets)}")
    return tuple(values)


def cumulative(buckets: Mapping[str, int]) -> dict[float, int]:
    """Counts by bound in seconds, ascending."""
    return dict(sorted((float(bound), count) for bound, count in buckets.items()))


def timed(counts: Counts) -> int:
    """How many requests the histogram has seen."""
    by_bound = cumulative(counts.buckets)
    return by_bound.get(math.inf, max(counts.requests, *by_bound.values()) if by_bound else 0)


def quantile(counts: Counts, share: float) -> float | None:
    """The latency in seconds that ``share`` of the requests do not exceed.

    Linear inside a bucket, as PromQL's ``histogram_quantile``, except beyond the last finite
    bound: infinity there, not that bound. None when nothing was timed.
    """
    total = timed(counts)
    if not total:
        return None
    rank, low, below = share * total, 0.0, 0
    for bound, count in cumulative(counts.buckets).items():
        if count >= rank and math.isfinite(bound):
            return low + (bound - low) * (rank - below) / max(count - below, 1)
        low, below = bound, count
    return math.inf


def fault(counts: Counts) -> str | None:
    """Why these cannot be counts of requests; None when they can.

    Types are looked at too: a model made without validation may hold anything.
    """
    plain = {"requests": counts.requests, "errors": counts.errors}
    named: dict[str, Any] = {**plain, **{f"bucket {b}": n for b, n in counts.buckets.items()}}
    for name, count in named.items():
        if not isinstance(count, int) or isinstance(count, bool) or count < 0:
            return f"{name} is {count!r}, not a count"
    if counts.errors > counts.requests:
        return f"{counts.errors} errors among {counts.requests} requests"
    try:
        bounds(counts.buckets)
    except ValueError as error:
        return str(error)
    by_bound = cumulative(counts.buckets)
    for (low, few), (high, many) in zip(by_bound.items(), list(by_bound.items())[1:], strict=False):
        if many < few:
            return f"{few} requests within {low:g} s, but only {many} within {high:g} s"
    return None
