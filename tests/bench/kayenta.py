"""Kayenta's published rule (NetflixACAJudge-v1.0), written anew from its description.

One metric that may not rise, with the tolerance of 0.25 and the confidence of 0.98 that are fixed
in its code: the lower end of the Mann-Whitney confidence interval of the shift, tie-corrected and
continuity-corrected, against a quarter of the Hodges-Lehmann estimate. Its root finder (Brent's)
stops within an absolute 1e-4; that is kept here, because it makes the rule depend on the unit.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

TOLERANCE = 0.25
Z = 2.3263478740408408
"""Normal quantile of 0.99: a two-sided confidence of 0.98."""

ROOT_TOLERANCE = 1e-4
"""Absolute, as in the original."""

EPSILON = 2.220446049250313e-16


def high(experiment: Floats, control: Floats) -> bool:
    """Whether the experiment is classified as High. NaN points are removed, as by default."""
    experiment, control = experiment[~np.isnan(experiment)], control[~np.isnan(control)]
    if not len(experiment) or not len(control):
        return False
    experiment, control = np.sort(experiment), np.sort(control)
    if np.array_equal(experiment, control):
        return False
    if experiment[0] == experiment[-1] and control[0] == control[-1]:
        # The original adds a relative noise of 1e-5 to two constants: the larger one is larger.
        return bool(experiment[0] > control[0])
    lower = _root(experiment, control, Z)
    return lower > 0 and lower > TOLERANCE * abs(_root(experiment, control, 0.0))


def _root(experiment: Floats, control: Floats, target: float) -> float:
    """The shift at which the statistic falls to ``target``, clipped to the extremes."""
    low, high = float(experiment[0] - control[-1]), float(experiment[-1] - control[0])
    at_low = _statistic(experiment, control, low, target) - target
    at_high = _statistic(experiment, control, high, target) - target
    if at_low <= 0:
        return low
    if at_high >= 0:
        return high
    return _brent(
        lambda shift: _statistic(experiment, control, shift, target) - target,
        (low, at_low),
        (high, at_high),
    )


def _brent(
    f: Callable[[float], float], first: tuple[float, float], second: tuple[float, float]
) -> float:
    """A root between two points of opposite sign (Brent 1973, chapter 4)."""
    (a, fa), (b, fb) = first, second
    c, fc = a, fa
    for _ in range(1000):
        previous = b - a
        if abs(fc) < abs(fb):
            a, fa, b, fb, c, fc = b, fb, c, fc, b, fb
        near = 2 * EPSILON * abs(b) + ROOT_TOLERANCE / 2
        step = (c - b) / 2
        if abs(step) <= near or fb == 0:
            return b
        if abs(previous) >= near and abs(fa) > abs(fb):
            step = _interpolated(step, previous, (a, fa), (b, fb), (c, fc), near)
        a, fa = b, fb
        b += step if abs(step) >= near else math.copysign(near, step)
        fb = f(b)
        if (fb > 0) == (fc > 0):
            c, fc = a, fa
    return b


def _interpolated(
    half: float, previous: float, a: tuple[float, float], b: tuple[float, float],
    c: tuple[float, float], near: float,
) -> float:  # fmt: skip
    """A secant or inverse quadratic step where it is safe, else half of the bracket."""
    width = c[0] - b[0]
    t = b[1] / a[1]
    if a[0] == c[0]:
        p, q = width * t, 1.0 - t
    else:
        u, v = a[1] / c[1], b[1] / c[1]
        p = t * (width * u * (u - v) - (b[0] - a[0]) * (v - 1))
        q = (u - 1) * (v - 1) * (t - 1)
    p, q = (p, -q) if p > 0 else (-p, q)
    safe = p < 0.75 * width * q - abs(near * q) / 2 and p < abs(previous * q / 2)
    return p / q if safe else half


def _statistic(experiment: Floats, control: Floats, shift: float, target: float) -> float:
    m, n = len(experiment), len(control)
    moved = experiment - shift
    below = np.searchsorted(control, moved, "left").sum()
    same = np.searchsorted(control, moved, "right").sum() - below
    u = below + same / 2 - m * n / 2
    both = np.sort(np.concatenate([moved, control]))
    edges = np.flatnonzero(np.diff(both)) + 1
    ties = np.diff(edges, prepend=0, append=m + n).astype(np.float64)
    tied = float((ties**3 - ties).sum()) / ((m + n) * (m + n - 1))
    spread = math.sqrt(m * n / 12 * (m + n + 1 - tied))
    correction = math.copysign(0.5, u) if target == 0 else math.copysign(0.5, target)
    return float((u - correction) / spread) if spread else 0.0
