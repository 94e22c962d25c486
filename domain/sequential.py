"""Tests that may be looked at after every request: evidence that is valid at any time.

Each test keeps an e-process: a quantity that is 1 at the start and, when the candidate is no
worse than the stable version, never grows on average (a non-negative supermartingale). By Ville's
inequality it then *ever* exceeds 1/alpha with a chance of at most alpha, however often and
whenever somebody looks, so an alarm needs no correction for looking (Lindon & Malek, "Anytime-
valid inference for multinomial count data", 2022; Ramdas et al., "Game-theoretic statistics and
safe anytime-valid inference", 2023).

All states are numpy arrays of one shape, that of what they are fed: one trial in a release,
thousands side by side in a benchmark.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[Any]

RATIOS = 1.25 * 2.0 ** (np.arange(14) / 2)
"""Rate ratios that are considered, 1.25 to 113 in steps of the square root of two."""
_PRIOR = RATIOS**-0.5 / (RATIOS**-0.5).sum()
_LOG_PRIOR, _LOG_RATIOS = np.log(_PRIOR), np.log(RATIOS)

QUANTILES = (0.75, 0.9, 0.95, 0.99)
"""Where the tails are compared; the evidence is the average of the four."""
_BATCHES = 32
_MIN_BATCHES = 24
_SPREAD = 0.5
"""Of the effects that the latency test expects: standard deviation of the log odds ratio."""


def _mixed(log_evidence: Floats) -> Floats:
    """The logarithm of the mixture over ``RATIOS``, which is the last axis."""
    terms = log_evidence + _LOG_PRIOR
    top = terms.max(axis=-1)
    return cast(Floats, top + np.log(np.exp(terms - top[..., None]).sum(axis=-1)))


class OwnsMore:
    """Of all errors seen, does the candidate own more than its share of the traffic?

    Given that an error happened among ``a`` requests of the candidate and ``b`` of the stable
    version, it is the candidate's with probability ``r a / (r a + b)`` at a rate ratio of ``r``.
    Against ``r = 1`` an increment with ``k`` errors, ``x`` of them the candidate's, therefore has
    the likelihood ratio ``r^x / (1 + (r - 1) a / (a + b))^k``; the evidence is the mixture of
    their products over ``RATIOS``, all above 1. For every true ratio of at most 1 it is a
    supermartingale, since the likelihood ratio rises with ``x``. Requests are drawn without
    replacement rather than with, which only makes it smaller (Hoeffding 1963, theorem 4). The
    overall rate of errors cancels out, so a bad hour that both share says nothing.
    """

    def __init__(self, shape: tuple[int, ...] = ()) -> None:
        self._log = np.zeros((*shape, len(RATIOS)))

    def add(
        self, requests: ArrayLike, errors: ArrayLike, other: ArrayLike, other_errors: ArrayLike
    ) -> None:
        """What one increment brought: the candidate's first, then the stable version's."""
        self._log += ownership(requests, errors, other, other_errors)

    @property
    def log_evidence(self) -> Floats:
        return _mixed(self._log)


def ownership(
    requests: ArrayLike, errors: ArrayLike, other: ArrayLike, other_errors: ArrayLike
) -> Floats:
    """Log likelihood ratio of increments for each of ``RATIOS`` (last axis); see OwnsMore."""
    a, b = np.asarray(requests, float), np.asarray(other, float)
    x = np.asarray(errors, float)
    k, total = x + np.asarray(other_errors, float), a + b
    share = np.divide(a, total, out=np.zeros_like(total), where=total > 0)
    return cast(
        Floats,
        x[..., None] * _LOG_RATIOS - k[..., None] * np.log1p((RATIOS - 1) * share[..., None]),
    )


def evidence_of_series(
    requests: Floats, errors: Floats, other: Floats, other_errors: Floats
) -> Floats:
    """The log evidence of whole series at their ends; the last axis is time.

    The same sum as ``OwnsMore.add`` makes step by step, ratio by ratio and in single precision,
    so that a thousand series of ten thousand points fit the caches.
    """
    x = errors.astype(np.float32)
    k = x + other_errors.astype(np.float32)
    total = requests + other
    share = np.divide(requests, total, out=np.zeros(total.shape, np.float32), where=total > 0)
    owned = x.sum(axis=-1, dtype=float)
    logs = np.empty((*owned.shape, len(RATIOS)))
    for index, ratio in enumerate(RATIOS):
        spread = np.log(np.float32(1) + np.float32(ratio - 1) * share)
        logs[..., index] = owned * math.log(ratio) - np.einsum(
            "...t,...t->...", k, spread, dtype=np.float32
        )
    return _mixed(logs)


class Over:
    """Is a rate above its limit? For errors against an objective, or slow requests against 5 %.

    At a true rate of at most ``limit``, ``r^x exp(-(r - 1) limit n)`` does not grow on average
    for any ``r > 1``, since ``1 + (r - 1) p <= exp((r - 1) p)``; the evidence is the mixture.
    """

    def __init__(self, limit: float, shape: tuple[int, ...] = ()) -> None:
        self.limit = limit
        self._log = np.zeros((*shape, len(RATIOS)))

    def add(self, requests: ArrayLike, hits: ArrayLike) -> None:
        n, x = np.asarray(requests, float), np.asarray(hits, float)
        self._log += x[..., None] * _LOG_RATIOS - n[..., None] * (RATIOS - 1) * self.limit

    @property
    def log_evidence(self) -> Floats:
        return _mixed(self._log)


class Slower:
    """Do more of the candidate's requests than its share lie in the tail?

    For each of ``QUANTILES`` the bound of the tail is what all requests *before* this increment
    say; with ``k`` requests beyond it, ``x`` of them the candidate's and ``p`` its share of the
    traffic, ``x - k p`` has mean zero when both versions are alike. Latencies of neighbouring
    moments are alike, so the variance of the sum is not the binomial one: it is estimated from
    batches that grow with the series (at most 32, pairs are joined), and never taken as less
    than binomial. The evidence is the mixture over effects of the log likelihood ratio of a
    normal score with that variance: an asymptotic e-process (Waudby-Smith, Arbour, Sinha,
    Kennedy & Ramdas, "Time-uniform central limit theory and asymptotic confidence sequences",
    2021). It says nothing before ``_MIN_BATCHES`` batches. Bounds are compared by their order
    alone, so the unit of time does not matter.
    """

    def __init__(self, shape: tuple[int, ...] = ()) -> None:
        self._shape = (*shape, len(QUANTILES))
        self._score, self._variance = np.zeros(self._shape), np.zeros(self._shape)
        self._seen: Floats | None = None
        self._batches = np.zeros((_BATCHES, *self._shape))
        self._sizes = np.zeros((_BATCHES, *self._shape))
        self._filled, self._length, self._in_batch = 0, 1, 0

    def add(self, slow: Floats, slow_other: Floats) -> None:
        """One increment: requests slower than each bound, in rising order of the bounds (last
        axis; the first counts all requests), of the candidate and of the stable version."""
        both = slow + slow_other
        if self._seen is None:
            self._seen = both.astype(float)
            return
        index = self._bounds()
        x = np.take_along_axis(slow, index, axis=-1)
        k = np.take_along_axis(both, index, axis=-1)
        total = both[..., :1]
        share = np.divide(slow[..., :1], total, out=np.zeros(total.shape), where=total > 0)
        fresh = x - k * share
        # Of k requests beyond the bound, drawn without replacement from all of them.
        rest = np.divide(total - k, total - 1, out=np.zeros(k.shape), where=total > 1)
        spread = k * share * (1 - share) * rest
        self._score += fresh
        self._variance += spread
        self._batch(fresh, spread)
        self._seen += both

    def _bounds(self) -> NDArray[np.intp]:
        """For each quantile, the first bound beyond which lies at most that tail so far."""
        assert self._seen is not None
        beyond = self._seen / np.maximum(self._seen[..., :1], 1)
        tails = 1 - np.asarray(QUANTILES)
        within = beyond[..., None, :] <= tails[:, None]
        return cast("NDArray[np.intp]", within.argmax(axis=-1))

    def _batch(self, fresh: Floats, spread: Floats) -> None:
        if self._in_batch == 0:
            if self._filled == _BATCHES:
                for kept in (self._batches, self._sizes):
                    kept[: _BATCHES // 2] = kept[0::2] + kept[1::2]
                    kept[_BATCHES // 2 :] = 0
                self._filled, self._length = _BATCHES // 2, self._length * 2
            self._filled += 1
        self._batches[self._filled - 1] += fresh
        self._sizes[self._filled - 1] += spread
        self._in_batch = (self._in_batch + 1) % self._length

    def _inflation(self) -> Floats:
        """How much more the score varies than binomially: batches over expectation, at least 1."""
        whole = self._filled - (self._in_batch > 0)
        batches, sizes = self._batches[:whole], self._sizes[:whole]
        expected = sizes.sum(axis=0)
        drift = np.divide(batches.sum(axis=0), expected, out=np.zeros(self._shape),
                          where=expected > 0)  # fmt: skip
        left = batches - drift * sizes  # what remains when a lasting effect is taken out
        squares = (left**2).sum(axis=0)
        found = squares * whole / max(whole - 1, 1)
        # An estimate from few batches is often too small: the upper end of where it may lie.
        doubt = 1 / math.sqrt(max(whole - 1, 1))
        found *= 1 + 2 * math.sqrt(2) * doubt
        # Batches that are still shorter than the memory of the series resemble their neighbours;
        # of a first-order autoregression the long-run variance is (1 + r) / (1 - r) as large.
        alike = (left[1:] * left[:-1]).sum(axis=0)
        r = np.divide(alike, squares, out=np.zeros(self._shape), where=squares > 0) + 1.5 * doubt
        r = np.clip(r, 0.0, 0.95)
        found *= (1 + r) / (1 - r)
        ratio = np.divide(found, expected, out=np.ones(self._shape), where=expected > 0)
        return cast(Floats, np.maximum(ratio, 1.0))

    @property
    def log_evidence(self) -> Floats:
        whole = self._filled - (self._in_batch > 0)
        if whole < _MIN_BATCHES:
            return np.zeros(self._shape[:-1])
        inflation = self._inflation()
        score, variance = self._score / inflation, self._variance / inflation
        grown = 1 + _SPREAD**2 * variance
        reach = _SPREAD * score / np.sqrt(grown)
        terms = math.log(2) - 0.5 * np.log(grown) + reach**2 / 2 + _log_phi(reach)
        top = terms.max(axis=-1)
        return cast(Floats, top + np.log(np.exp(terms - top[..., None]).mean(axis=-1)))


def _log_phi(x: Floats) -> Floats:
    """Logarithm of the normal distribution function."""
    return cast(Floats, np.vectorize(_log_phi_of, otypes=[float])(x))


def _log_phi_of(x: float) -> float:
    if x > -30:
        return math.log(0.5 * math.erfc(-x / math.sqrt(2)))
    return -x * x / 2 - math.log(-x) - 0.5 * math.log(2 * math.pi)  # erfc would be 0


def slower_than(buckets: Mapping[float, int]) -> Floats:
    """Requests beyond each bound, rising; the first value counts them all.

    Args:
        buckets: cumulative counts by upper bound in seconds, with infinity.
    """
    total = buckets[math.inf]
    return np.array([total, *(total - buckets[b] for b in sorted(buckets))], float)
