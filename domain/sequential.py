"""Tests that may be looked at after every request: e-processes for counts.

An e-process starts at 1, is never negative, and under the null hypothesis its mean is at most 1
at every stopping time. By Ville's inequality it then *ever* reaches ``1 / alpha`` with a chance of
at most ``alpha``, however often and for whatever reason one looks (Ramdas, Gruenwald, Vovk and
Shafer 2023, "Game-theoretic statistics and safe anytime-valid inference").

Every test here runs ``trials`` of them side by side, so that a benchmark of thousands of trials
runs the very code that judges one release. Wealth is kept as a natural logarithm.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

RATIOS: Final[Floats] = np.array([1.5, 2.0, 3.0, 5.0, 10.0, 30.0, 100.0])
"""Odds ratios that are betted on; each begins with an equal part of the wealth."""

BLOCK_REQUESTS: Final = 5
"""Requests of each arm that a block needs before its errors are compared."""

QUANTILES: Final = (0.5, 0.9, 0.95, 0.99)
"""Latencies are compared at the bounds nearest to these quantiles of stable's own past."""

STAKES: Final[Floats] = np.array([0.25, 0.5, 1.0, 2.0])
"""Stakes of a latency bet, for each standard error of difference."""

BLOCK_TIMED: Final = 10
"""Requests of each arm that a block needs before its latencies are compared."""

BLOCKS_OF_PAST: Final = 32
"""A latency block is at least one such part of what came before it, so that blocks grow longer
than whatever keeps neighbouring requests alike."""

LEAST_SLOW: Final = 10.0
"""Slow requests expected of stable before it is compared with a candidate that has more traffic:
fractions of a few requests are skewed, and from that side the skew looks like slowness."""

ASSUMED_CORRELATION: Final = 0.7
"""Correlation of neighbouring blocks that is assumed until blocks have shown their own."""

ASSUMED_FOR: Final = 30
"""What the assumption weighs, in blocks."""

_LOG_RATIOS: Final = np.log(RATIOS)
_EXCESS: Final = RATIOS - 1
_LOG_2: Final = float(np.log(2.0))


def log_tilt(hits: npt.ArrayLike, of: npt.ArrayLike, share: npt.ArrayLike) -> Floats:
    """Log likelihood ratio of ``hits`` in ``of``: odds ``RATIOS`` times those of ``share``.

    ``x log(theta) - n log(1 + (theta - 1) share)``. Under a binomial with a chance of at most
    ``share``, its exponential has a mean of at most 1 for every theta > 1 (monotone likelihood
    ratio); under a hypergeometric of the same mean too, since the exponential is convex in the
    hits (Hoeffding 1963, theorem 4).

    Returns:
        One axis more than the arguments have, along ``RATIOS``.
    """
    x, n, p = (np.asarray(value, dtype=np.float64)[..., None] for value in (hits, of, share))
    return np.asarray(x * _LOG_RATIOS - n * np.log1p(_EXCESS * p))


def log_mean(log_wealth: Floats) -> Floats:
    """Log of the mean wealth on the last axis: a mean of e-processes is one."""
    top = log_wealth.max(axis=-1)
    return np.asarray(top + np.log(np.exp(log_wealth - top[..., None]).mean(axis=-1)))


class Tilted:
    """Wealth from betting that hits have ``RATIOS`` times their odds; one row a trial.

    Attributes:
        log_peak: log of the highest e-value so far, by trial. An alarm is for ever.
    """

    def __init__(self, trials: int = 1) -> None:
        self.log_ratios: Floats = np.zeros((trials, len(RATIOS)))
        self.log_peak: Floats = np.zeros(trials)

    @property
    def log_e(self) -> Floats:
        """Log of the e-value now, by trial."""
        return log_mean(self.log_ratios)

    def _bet(self, rows: npt.NDArray[np.intp], hits: Ints, of: Ints, share: Floats) -> None:
        grown = self.log_ratios[rows] + log_tilt(hits, of, share)
        self.log_ratios[rows] = grown
        self.log_peak[rows] = np.maximum(self.log_peak[rows], log_mean(grown))


class Shares(Tilted):
    """Of the errors seen, does the candidate own more than its share of the requests?

    In a block of ``a`` requests to the candidate, ``b`` to stable and ``n`` errors in all, the
    candidate's errors are hypergeometric with share ``a / (a + b)`` when both err equally often,
    whatever that rate is and even if it changes from block to block. The share is the block's
    own, so traffic may move (Lindon and Malek 2022, "Anytime-valid inference for multinomial
    count data", with the allocation as it was counted).

    A block closes at the first look with ``BLOCK_REQUESTS`` requests on either side. Looks with a
    single request would teach nothing by themselves: the share of one request is 0 or 1. Only
    requests close a block, never errors, so it cannot pick its moment.
    """

    def __init__(self, trials: int = 1) -> None:
        super().__init__(trials)
        self.open: Ints = np.zeros((4, trials), dtype=np.int64)

    def add(self, gained: Ints) -> None:
        """Take one look.

        Args:
            gained: by row, for each trial: the candidate's errors and requests, stable's errors
                and requests since the look before.
        """
        self.open += gained
        closes = (self.open[1] >= BLOCK_REQUESTS) & (self.open[3] >= BLOCK_REQUESTS)
        told = np.flatnonzero(closes & (self.open[0] + self.open[2] > 0))
        if told.size:
            x, a, y, b = self.open[:, told]
            self._bet(told, x, x + y, a / (a + b))
        self.open *= ~closes

    @property
    def log_suspicion(self) -> Floats:
        """Log of the e-value with the open block in it. No e-process: it may hold, not alarm."""
        x, a, y, b = self.open
        return log_mean(self.log_ratios + log_tilt(x, x + y, a / np.maximum(a + b, 1)))


class Rate(Tilted):
    """Is the share of errors above ``limit``? The same bet, against a number."""

    def __init__(self, limit: float, trials: int = 1) -> None:
        super().__init__(trials)
        self.limit = limit

    def add(self, errors: Ints, requests: Ints) -> None:
        """Take one look: what each trial gained since the look before."""
        told = np.flatnonzero(requests)
        if told.size:
            share = np.full(told.size, self.limit)
            self._bet(told, errors[told], requests[told], share)


class Signs:
    """Wealth from differences that are as often below 0 as above when nothing is wrong.

    For a ``z`` that is symmetric about 0 given the past, ``2 / (1 + exp(-2 s z))`` has a mean of
    exactly 1 for every stake ``s``; it grows in ``z``, so for a smaller ``z`` the mean is less.
    Nothing is asked of the variance: requests inside a block may depend on one another in any way.
    The factor is ``exp(s z) / cosh(s z)``, never less than the ``exp(s z - (s z)^2 / 2)`` of
    de la Pena 1999, "A general class of exponential inequalities for martingales and ratios".

    Neighbouring blocks may be alike too (a slow minute is followed by a slow minute). The wealth
    is therefore raised to the power ``(1 - r) / (1 + r)``, the inverse of what a lag-one
    correlation ``r`` does to the variance of a sum. ``r`` is known before the bet: from the
    blocks so far, with ``ASSUMED_CORRELATION`` in place of ``ASSUMED_FOR`` blocks. A power
    below 1 never hurts validity (Jensen).

    Attributes:
        log_wealth: what alarms; the last axis is along ``STAKES``.
        log_bold: the same without the power; it only holds a pass.
    """

    def __init__(self, *shape: int) -> None:
        self.log_wealth: Floats = np.zeros((*shape, len(STAKES)))
        self.log_bold: Floats = np.zeros((*shape, len(STAKES)))
        self._count, self._sum, self._square, self._product, self._last = np.zeros((5, *shape))

    def add(self, z: Floats, told: Mask) -> None:
        """Bet on ``z`` where ``told``; elsewhere nothing was seen."""
        z = np.where(told, z, 0.0)
        gain = (_LOG_2 - np.logaddexp(0.0, -2.0 * STAKES * z[..., None])) * told[..., None]
        correlation = self._correlation()
        self.log_bold += gain
        self.log_wealth += gain * ((1 - correlation) / (1 + correlation))[..., None]
        self._count += told
        self._sum += z
        self._square += z * z
        self._product += z * self._last
        self._last = np.where(told, z, self._last)

    def _correlation(self) -> Floats:
        centre = self._sum**2 / np.maximum(self._count, 1)
        spread = self._square - centre
        own = (self._product - centre) / np.where(spread > 1e-9, spread, np.inf)
        weighed = own * self._count + ASSUMED_CORRELATION * ASSUMED_FOR
        return np.asarray(np.clip(weighed / (self._count + ASSUMED_FOR), 0.0, 0.9))


class Slowness:
    """Are the candidate's requests slower than stable's of the same time?

    Null hypothesis: at every bound, the candidate's chance to be slower is at most stable's. A
    block gives the difference between the fractions slower than a bound, in standard errors; the
    bounds are those at ``QUANTILES`` of stable's earlier blocks, so the first block only teaches.
    Without a margin bounds are never used as numbers: a microsecond is judged as ten seconds are.

    With a margin (non-inferiority instead of no difference) stable's share above a bound is
    compared with the candidate's share above the first bound that is a margin further up; where
    none is, at the bound itself. A candidate whose every quantile is at most the margin above
    stable's then has no more above that bound than stable above its own, so the bet is as fair.

    The difference is symmetric when both arms get the same number of requests. With fewer on the
    candidate it is skewed to the right, and the bet loses a little (it caps what a rare large
    ``z`` can win); with more, ``LEAST_SLOW`` keeps the skew small.

    Args:
        bounds: the finite bucket bounds, ascending, in seconds.
        trials: how many trials run side by side.
        margin: how much slower the candidate may be, in seconds.
    """

    def __init__(self, bounds: Sequence[float], trials: int = 1, *, margin: float = 0.0) -> None:
        self.signs = Signs(trials, len(QUANTILES))
        self._compared: Ints = _further_up(bounds, margin)
        self.blocks: Ints = np.zeros(trials, dtype=np.int64)
        self.log_peak: Floats = np.zeros(trials)
        self._open, self._past = np.zeros((2, 2, trials), dtype=np.int64)
        shape = (2, 2, trials, len(bounds))
        self._open_slower, self._past_slower = np.zeros(shape, dtype=np.int64)

    def add(self, requests: Ints, slower: Ints) -> None:
        """Take one look.

        Args:
            requests: gained by the candidate (row 0) and stable (row 1), for each trial.
            slower: of these, how many took longer than each bound; one axis more.
        """
        self._open += requests
        self._open_slower += slower
        least = np.maximum(BLOCK_TIMED, self._past // BLOCKS_OF_PAST)
        closes: Mask = np.all(self._open >= least, axis=0)
        if not closes.any():
            return
        z, comparable = self._differences()
        self.signs.add(z, comparable & (closes & (self.blocks > 0))[:, None])
        self.log_peak = np.maximum(self.log_peak, self.log_e)
        self.blocks += closes
        self._past += self._open * closes
        self._past_slower += self._open_slower * closes[:, None]
        self._open *= ~closes
        self._open_slower *= ~closes[:, None]

    @property
    def log_e(self) -> Floats:
        """Log of the e-value now, by trial."""
        return log_mean(self.signs.log_wealth.reshape(len(self.blocks), -1))

    @property
    def log_suspicion(self) -> Floats:
        """Log of the wealth that takes blocks for independent. It may hold, not alarm."""
        return log_mean(self.signs.log_bold.reshape(len(self.blocks), -1))

    def _differences(self) -> tuple[Floats, Mask]:
        a, b = np.maximum(self._open, 1).astype(np.float64)
        past = np.maximum(self._past[1], 1).astype(np.float64)
        beyond = self._past_slower[1] / past[:, None]
        z, comparable = np.zeros((2, len(a), len(QUANTILES)))
        for column, quantile in enumerate(QUANTILES):
            rare = beyond <= 1 - quantile + 1e-12
            at = rare.argmax(axis=-1)[:, None]
            slow = np.take_along_axis(self._open_slower[0], self._compared[at], axis=-1)[:, 0]
            stable_slow = np.take_along_axis(self._open_slower[1], at, axis=-1)[:, 0]
            known = np.take_along_axis(self._past_slower[1], at, axis=-1)[:, 0]
            chance = (known + 1) / (past + 2)
            error = np.sqrt(chance * (1 - chance) * (1 / a + 1 / b))
            z[:, column] = (slow / a - stable_slow / b) / error
            faint = (b < a) & (b * chance < LEAST_SLOW)
            comparable[:, column] = rare.any(axis=-1) & ~faint
        return z, comparable.astype(np.bool_)


def _further_up(bounds: Sequence[float], margin: float) -> Ints:
    """For each bound the place of the first that is ``margin`` above it, or else its own.

    Bounds are decimal fractions: 0.003 + 0.001 is a hair above 0.004.
    """
    places = np.searchsorted(bounds, np.asarray(bounds) + margin - 1e-9 * margin)
    return np.where(places < len(bounds), places, np.arange(len(bounds)))


class SlowShare:
    """Is the share of requests that are slower than a limit above ``share``?

    The bet of ``Signs`` against a number: a fraction of rare events is skewed to the right, so
    the bet loses a little when the share is exactly at the limit.
    """

    def __init__(self, share: float, trials: int = 1) -> None:
        self.share = share
        self.signs = Signs(trials)
        self.log_peak: Floats = np.zeros(trials)
        self._open, self._past = np.zeros((2, trials), dtype=np.int64)
        self._open_slow: Ints = np.zeros(trials, dtype=np.int64)

    def add(self, slow: Ints, requests: Ints) -> None:
        """Take one look: what each trial gained since the look before."""
        self._open += requests
        self._open_slow += slow
        closes = self._open >= np.maximum(BLOCK_TIMED, self._past // BLOCKS_OF_PAST)
        count = np.maximum(self._open, 1)
        error = np.sqrt(self.share * (1 - self.share) / count)
        self.signs.add((self._open_slow / count - self.share) / error, closes)
        self.log_peak = np.maximum(self.log_peak, self.log_e)
        self._past += self._open * closes
        self._open *= ~closes
        self._open_slow *= ~closes

    @property
    def log_e(self) -> Floats:
        """Log of the e-value now, by trial."""
        return log_mean(self.signs.log_wealth)
