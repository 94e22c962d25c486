"""Chances under the binomial and Student's distributions, both by the incomplete beta function."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

_TINY: Final = 1e-300
_CLOSE: Final = 1e-14
_MOST_TERMS: Final = 100_000


def beta_share(a: float, b: float, x: float) -> float:
    """The regularised incomplete beta function ``I_x(a, b)``.

    By its continued fraction (DLMF 8.17.22, evaluated as Lentz 1976), which needs about the
    square root of the larger of ``a`` and ``b`` terms; at a million, less than a millisecond.

    Args:
        a, b: positive.
        x: from 0 to 1.
    """
    if x <= 0.0 or x >= 1.0:
        return 0.0 if x <= 0.0 else 1.0
    if x > (a + 1) / (a + b + 2):
        return 1.0 - beta_share(b, a, 1.0 - x)
    log_front = (
        math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)
        + a * math.log(x) + b * math.log1p(-x)
    )  # fmt: skip
    return min(1.0, math.exp(log_front) * _beta_fraction(a, b, x) / a)


def _beta_fraction(a: float, b: float, x: float) -> float:
    c, d = 1.0, 1.0 / _not_zero(1.0 - (a + b) * x / (a + 1))
    fraction = d
    for m in range(1, _MOST_TERMS):
        for term in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            d = 1.0 / _not_zero(1.0 + term * d)
            c = _not_zero(1.0 + term / c)
            fraction *= c * d
        if abs(c * d - 1.0) < _CLOSE:
            return fraction
    raise ArithmeticError(f"the incomplete beta function of {a}, {b} at {x} does not converge")


def _not_zero(value: float) -> float:
    return value if abs(value) > _TINY else _TINY


def binomial_at_most(hits: int, of: int, chance: float) -> float:
    """The chance of ``hits`` or fewer in ``of`` trials."""
    if hits < 0 or hits >= of:
        return 0.0 if hits < 0 else 1.0
    return beta_share(of - hits, hits + 1, 1.0 - chance)


def student_two_sided(t: float, freedom: float) -> float:
    """The chance that Student's t is at least this far from 0, to either side."""
    return beta_share(freedom / 2, 0.5, freedom / (freedom + t * t))


def student_quantile(confidence: float, freedom: float) -> float:
    """How far from 0 Student's t is at most with that confidence, to either side."""
    # t = tan(angle) brings all of its values within reach of halving.
    angle = crossing(
        0, math.pi / 2, lambda a: student_two_sided(math.tan(a), freedom) <= 1 - confidence
    )
    return math.tan(angle)


def normal_two_sided(z: float) -> float:
    """The chance that a standard normal is at least this far from 0, to either side."""
    return math.erfc(abs(z) / math.sqrt(2))


def first_true(low: int, high: int, holds: Callable[[int], bool]) -> int:
    """The first integer of ``low .. high - 1`` for which it holds, ``high`` if for none.

    ``holds`` must not become false again once it was true.
    """
    while low < high:
        middle = (low + high) // 2
        if holds(middle):
            high = middle
        else:
            low = middle + 1
    return low


def crossing(low: float, high: float, holds: Callable[[float], bool]) -> float:
    """Where, between ``low`` and ``high``, it begins to hold; to the last bit or two."""
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high
