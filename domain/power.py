"""What the tests of ``domain.sequential`` can be expected to see, computed without chance."""

from __future__ import annotations

import math
from typing import Final

import numpy as np

from domain.sequential import (
    ASSUMED_CORRELATION,
    ASSUMED_FOR,
    BLOCK_REQUESTS,
    BLOCK_TIMED,
    BLOCKS_OF_PAST,
    QUANTILES,
    STAKES,
    Floats,
    log_mean,
    log_tilt,
)

SEEN: Final = 0.8
"""Chance of an alarm from which on a ratio counts as seen."""

UNSEEN: Final = 0.2
"""Chance of an alarm up to which a ratio counts as not seen."""

SPREAD: Final = 0.5
"""Log-normal sigma of the latencies that a slowdown is stated for: p95 is 2.3 medians."""

LOOK_REQUESTS: Final = 50
"""Requests of the smaller arm between two looks, for which a slowdown is stated."""

_NOISE: Final = np.array([-1.2, -0.4, 0.4, 1.2])[:, None]
_CELLS: Final = 120
_RATIOS: Final = np.geomspace(1.05, 2000.0, 160)


def error_ratios(
    requests: float, stable_requests: float, error_rate: float, log_alarm: float
) -> tuple[float | None, float | None]:
    """The least ratio of error rates that is seen, and the largest that is not.

    Of an ``error_rate`` of 0 both are error rates of the candidate instead of ratios. None:
    nothing that can be is seen, or everything is.
    """
    if min(requests, stable_requests) < BLOCK_REQUESTS:
        return None, None
    candidates = np.geomspace(1e-6, 1.0, 160) if error_rate == 0 else _RATIOS
    rates = candidates * (error_rate or 1.0)
    seen = unseen = None
    for value, rate in zip(candidates, rates, strict=True):
        if rate > 1:
            break
        chance = _alarms(requests, stable_requests, rate, error_rate, log_alarm)
        if chance <= UNSEEN:
            unseen = float(value)
        if chance >= SEEN:
            seen = float(value)
            break
    return seen, unseen


def _alarms(a: float, b: float, rate: float, stable_rate: float, log_alarm: float) -> float:
    """Chance that the evidence stands above the alarm after ``a`` and ``b`` requests."""
    hits, chance = _poisson(a * rate)
    others, other_chance = _poisson(b * stable_rate)
    x, y = np.meshgrid(hits, others, indexing="ij")
    over = log_mean(log_tilt(x, x + y, a / (a + b))) >= log_alarm
    return float(chance @ over @ other_chance)


def _poisson(mean: float) -> tuple[Floats, Floats]:
    """Values and their chances; a wide distribution is taken at every so many values."""
    reach = 6 * math.sqrt(mean) + 6
    low, high = max(0, math.floor(mean - reach)), math.ceil(mean + reach)
    step = max(1, (high - low) // _CELLS)
    values = np.arange(low, high + 1, step, dtype=np.float64)
    if mean == 0:
        return np.zeros(1), np.ones(1)
    steps = np.log(mean) - np.log(np.arange(low + 1, high + 1, dtype=np.float64))
    logs = np.concatenate([[0.0], np.cumsum(steps)])[::step]
    weights = np.exp(logs - logs.max())
    return values, weights / weights.sum()


def p95_ratio(requests: float, stable_requests: float, log_alarm: float) -> float | None:
    """The least ratio of 95th percentiles that is seen.

    For a tail that stretches while the median stays; independent requests.
    """
    blocks = int(min(requests, stable_requests) // LOOK_REQUESTS)
    if blocks < 2 or min(requests, stable_requests) < BLOCK_TIMED:
        return None
    share = np.array([requests, stable_requests]) / min(requests, stable_requests)
    sizes = _blocks(blocks)[:, None] * LOOK_REQUESTS * share
    for ratio in np.geomspace(1.02, 20.0, 400):
        if _expected(float(ratio), sizes) >= log_alarm:
            return float(ratio)
    return None


def _blocks(looks: int) -> Floats:
    """The lengths in looks of the blocks that bet: they grow with what came before."""
    past, lengths = 1, []
    while past < looks:
        lengths.append(max(1, math.ceil(past / BLOCKS_OF_PAST)))
        past += lengths[-1]
    return np.array(lengths, dtype=np.float64)


def _expected(ratio: float, sizes: Floats) -> float:
    """Log of the evidence when every block differs by the same.

    By what it differs by on average, less what the average of the blocks falls short of in one
    trial of five.

    Args:
        ratio: of the 95th percentiles.
        sizes: requests of candidate and stable in each block.
    """
    correlation = ASSUMED_CORRELATION * ASSUMED_FOR / (np.arange(len(sizes)) + ASSUMED_FOR)
    power = (1 - correlation) / (1 + correlation)
    stretch = 1 + math.log(ratio) / (SPREAD * _normal_quantile(0.95))
    wealth = np.zeros((len(QUANTILES), len(STAKES)))
    for row, quantile in enumerate(QUANTILES):
        usual = 1 - quantile
        now = 0.5 * math.erfc(_normal_quantile(quantile) / stretch / math.sqrt(2))
        z = (now - usual) / np.sqrt(usual * (1 - usual) * (1 / sizes).sum(axis=1))
        z -= _normal_quantile(SEEN) / math.sqrt(len(z))
        gain = math.log(2) - np.logaddexp(0.0, -2 * STAKES * (z[:, None, None] + _NOISE))
        wealth[row] = power @ gain.mean(axis=1)
    return float(log_mean(wealth.reshape(-1)))


def _normal_quantile(share: float) -> float:
    """Inverse of the normal distribution, by bisection."""
    low, high = -8.0, 8.0
    while high - low > 1e-9:
        middle = (low + high) / 2
        below = 0.5 * math.erfc(-middle / math.sqrt(2)) < share
        low, high = (middle, high) if below else (low, middle)
    return low
