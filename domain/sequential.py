"""Tests that may be looked at after every request: e-processes for counts.

An e-process starts at 1, is never negative, and under the null hypothesis its mean is at most 1
at every stopping time. By Ville's inequality it then *ever* reaches ``1 / alpha`` with a chance of
at most ``alpha``, however often and for whatever reason one looks (Ramdas, Gruenwald, Vovk and
Shafer 2023, "Game-theoretic statistics and safe anytime-valid inference").

Everything here is vectorised over ``shape``, one trial for each cell, so that a benchmark of
thousands of trials runs the very code that judges one release. Wealth is kept as a natural
logarithm.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

RATIOS: Final[Floats] = np.array([1.5, 2.0, 3.0, 5.0, 10.0, 30.0, 100.0])
"""Odds ratios that are betted on; each holds an equal part of the wealth."""

BLOCK_REQUESTS: Final = 5
"""Requests of each arm before errors are compared; see ``Shares``."""

QUANTILES: Final = (0.5, 0.9, 0.95, 0.99)
"""Where the latency distributions are compared: at these quantiles of stable's own past."""

STAKES: Final[Floats] = np.array([0.25, 0.5, 1.0, 2.0])
"""Stakes of the latency bet, for each standard error of difference."""

BLOCK_TIMED: Final = 10
"""Requests of each arm before latencies are compared."""

BLOCKS_OF_PAST: Final = 32
"""A latency block is at least this part of what came before it."""

FAINT_SHARE: Final = 10.0


def log_tilt(hits: npt.ArrayLike, trials: npt.ArrayLike, share: npt.ArrayLike) -> Floats:
    """Log likelihood ratio of ``hits`` out of ``trials``: odds of ``RATIOS`` times those of ``share``.

    ``x log(theta) - n log(1 + (theta - 1) share)``. Under a binomial with a chance of at most
    ``share`` its exponential has a mean of at most 1 for each theta > 1 (monotone likelihood
    ratio); under a hypergeometric with the same mean too, because the exponential is convex in
    the hits (Hoeffding 1963, theorem 4).

    Returns:
        One axis more than the arguments, for ``RATIOS``.
    """
    x, n, p = (np.asarray(value, dtype=np.float64)[..., None] for value in (hits, trials, share))
    return np.asarray(x * np.log(RATIOS) - n * np.log1p((RATIOS - 1) * p))


def log_mean(log_wealth: Floats, axes: int = 1) -> Floats:
    """Log of the mean of the wealths on the last ``axes`` axes: a mean of e-processes is one."""
    flat = log_wealth.reshape(*log_wealth.shape[: log_wealth.ndim - axes], -1)
    top = flat.max(axis=-1)
    return np.asarray(top + np.log(np.exp(flat - top[..., None]).mean(axis=-1)))


class Shares:
    """Of the errors seen, does the candidate own more than its share of the requests?

    In a block of ``a`` requests to the candidate and ``b`` to stable with ``n`` errors in all, the
    candidate's errors are hypergeometric with share ``a / (a + b)`` when both err equally often.
    The share is the block's own, so traffic may move during a trial; what is compared is always
    of the same minutes (Lindon and Malek 2022, "Anytime-valid inference for multinomial count
    data", with the allocation as it was counted).

    A block closes with a look at which both have ``BLOCK_REQUESTS`` requests. Without that, looks
    with a single request would teach nothing: the share of one request is 0 or 1. The rule knows
    only requests, never errors, so it cannot pick its moment.
    """

    def __init__(self, shape: tuple[int, ...] = ()) -> None:
        self.log_ratios: Floats = np.zeros((*shape, len(RATIOS)))
        self.open: Ints = np.zeros((4, *shape), dtype=np.int64)

    def add(
        self, errors: npt.ArrayLike, requests: npt.ArrayLike,
        stable_errors: npt.ArrayLike, stable_requests: npt.ArrayLike,
    ) -> None:  # fmt: skip
        """Take the gain of one look."""
        self.open += np.stack(
            np.broadcast_arrays(errors, requests, stable_errors, stable_requests)
        ).astype(np.int64)
        closes = (self.open[1] >= BLOCK_REQUESTS) & (self.open[3] >= BLOCK_REQUESTS)
        told = closes & (self.open[0] + self.open[2] > 0)
        if told.any():
            self.log_ratios[told] += self._tilt(self.open[:, told])
        self.open[:, closes] = 0

    @property
    def log_e(self) -> Floats:
        """Log of the e-process over the closed blocks; this may alarm."""
        return log_mean(self.log_ratios)

    @property
    def log_suspicion(self) -> Floats:
        """The same with the open block; not an e-process, good enough to hold a pass."""
        return log_mean(self.log_ratios + self._tilt(self.open))

    @staticmethod
    def _tilt(block: Ints) -> Floats:
        x, a, y, b = block
        return log_tilt(x, x + y, a / np.maximum(a + b, 1))


class Signs:
    """Wealth from differences that are as likely negative as positive when nothing is wrong.

    For a ``z`` that is symmetric about 0 given the past, ``2 / (1 + exp(-2 stake z))`` has a mean
    of exactly 1; it grows in ``z``, so for a smaller ``z`` the mean is smaller. Nothing is asked
    of the variance, so requests inside a block may depend on one another in any way (de la Pena
    1999, "A general class of exponential inequalities for martingales and ratios"; the factor
    here is ``exp(s z) / cosh(s z)``, which is never less than his ``exp(s z - s^2 z^2 / 2)``).
    """

    def __init__(self, shape: tuple[int, ...] = ()) -> None:
        self.log_wealth: Floats = np.zeros((*shape, len(STAKES)))

    def add(self, z: Floats) -> None:
        self.log_wealth += np.log(2.0) - np.logaddexp(0.0, -2.0 * STAKES * z[..., None])


class Slowness:
    """Are the candidate's requests slower than stable's of the same time?

    Args:
        bounds: the number of finite bucket bounds.
        shape: of the trials.
    """

    def __init__(self, bounds: int, shape: tuple[int, ...] = ()) -> None:
        self.signs = Signs((*shape, len(QUANTILES)))
        self.blocks: Ints = np.zeros(shape, dtype=np.int64)
        self.open: Ints = np.zeros((2, *shape), dtype=np.int64)
        self.past: Ints = np.zeros((2, *shape), dtype=np.int64)
        self.open_slower: Ints = np.zeros((2, *shape, bounds), dtype=np.int64)
        self.past_slower: Ints = np.zeros((2, *shape, bounds), dtype=np.int64)

    def add(self, requests: Ints, slower: Ints, stable_requests: Ints, stable_slower: Ints) -> None:
        self.open += np.stack([requests, stable_requests])
        self.open_slower += np.stack([slower, stable_slower])
        least = np.maximum(BLOCK_TIMED, self.past // BLOCKS_OF_PAST)
        closes = (self.open >= least).all(axis=0)
        if not closes.any():
            return
        z = np.where((closes & (self.blocks > 0))[..., None], self._z(), 0.0)
        self.signs.add(z)
        self.blocks += closes
        self.past += np.where(closes, self.open, 0)
        self.past_slower += np.where(closes[..., None], self.open_slower, 0)
        self.open[:, closes] = 0
        self.open_slower[:, closes] = 0

    @property
    def log_e(self) -> Floats:
        return log_mean(self.signs.log_wealth, axes=2)

    def _z(self) -> Floats:
        a, b = np.maximum(self.open, 1).astype(np.float64)
        past = np.maximum(self.past[1], 1)[..., None]
        usual = self.past_slower[1] / past
        zs = []
        for quantile in QUANTILES:
            rare = usual <= 1 - quantile + 1e-12
            at = rare.argmax(axis=-1)[..., None]
            here = rare.any(axis=-1)
            x, y, f = (
                np.take_along_axis(v, at, axis=-1)[..., 0]
                for v in (self.open_slower[0], self.open_slower[1], self.past_slower[1])
            )
            f = (f + 1) / (past[..., 0] + 2)
            error = np.sqrt(f * (1 - f) * (1 / a + 1 / b))
            faint = (b < a) & (b * f < FAINT_SHARE)
            zs.append(np.where(here & ~faint, (x / a - y / b) / error, 0.0))
        return np.stack(zs, axis=-1)
