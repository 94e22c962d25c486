"""Capacity from what was measured: how throughput scales, which tier ends it, how many replicas.

Nothing here goes beyond its data: a peak that no level was past, or a load between none of the
measured ones, is refused in words.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Final

from domain.distributions import student_quantile
from domain.latency import Interval

LEAST_LEVELS: Final = 5
"""Different loads below which three parameters fit anything."""

_CLOSE: Final = 1e-12


class NotMeasured(ValueError):
    """The answer lies beyond what was measured. The message says what is missing."""


@dataclass(frozen=True)
class Level:
    """One measured load: users (or replicas, or clients), and requests a second.

    Only levels at which the generator and its schedule were sound belong in a fit.
    """

    users: float
    throughput: float

    def __post_init__(self) -> None:
        if not (1 <= self.users < math.inf and 0 < self.throughput < math.inf):
            raise ValueError(f"a level has at least one user and some throughput: {self}")


@dataclass(frozen=True)
class Peak:
    """Where throughput is greatest, with the range that leaving out one level at a time gives."""

    users: float
    range: Interval
    throughput: float


@dataclass(frozen=True)
class Scalability:
    """The Universal Scalability Law (Gunther 2007, "Guerrilla Capacity Planning", chapter 6).

    ``X(N) = gamma N / (1 + alpha (N - 1) + beta N (N - 1))``

    Attributes:
        gamma: requests a second of one user alone.
        alpha: contention, the share of work that waits its turn; 0 to 1.
        beta: coherence, the cost of each pair's agreeing; at least 0. With 0 there is no peak.
        levels: what it was fitted to, ascending.
        error: relative standard error of the levels about the curve.
    """

    gamma: float
    alpha: float
    beta: float
    levels: tuple[Level, ...]
    error: float

    def predict(self, users: float) -> float:
        """Requests a second at a number of users.

        Raises:
            NotMeasured: below the least or above the greatest measured level.
        """
        low, high = self.levels[0].users, self.levels[-1].users
        if not low <= users <= high:
            raise NotMeasured(f"{users:g} users is outside the measured {low:g} to {high:g}")
        return self.gamma * users / _slowdown(users, self.alpha, self.beta)

    def peak(self) -> Peak:
        """The number of users with the greatest throughput.

        Raises:
            NotMeasured: the range of the peak, not only its best value, is not all below the
                greatest level. A fit to levels up to half of the peak misses it by -38 to +134 %.
        """
        users, most = self._peak_users(), self.levels[-1].users
        more = f"with {most:g} users the peak was not clearly passed: measure more than that"
        if users is None or users >= most:
            raise NotMeasured(more)
        left_out = [self.levels[:k] + self.levels[k + 1 :] for k in range(len(self.levels))]
        without = [_fitted(rest)._peak_users() or math.inf for rest in left_out]
        if math.inf in without:
            raise NotMeasured(more)
        reach = student_quantile(0.95, len(without) - 1) * _jackknife_error(
            [math.log(peak) for peak in without]
        )
        range_ = Interval(users * math.exp(-reach), users * math.exp(reach))
        if range_.high >= most:
            raise NotMeasured(more)
        return Peak(users, range_, self.predict(max(users, self.levels[0].users)))

    def _peak_users(self) -> float | None:
        if not self.beta:
            return None
        return math.sqrt(max(0.0, 1 - self.alpha) / self.beta) or 1.0


def _jackknife_error(without_one: Sequence[float]) -> float:
    """Standard error from the estimates that each leave one out (Tukey 1958)."""
    n = len(without_one)
    return stdev(without_one) * (n - 1) / math.sqrt(n)


def _slowdown(users: float, alpha: float, beta: float) -> float:
    return 1 + alpha * (users - 1) + beta * users * (users - 1)


def fit(levels: Sequence[Level]) -> Scalability:
    """The law that fits best: least squares of the relative errors, alpha from 0 to 1, beta >= 0.

    Raises:
        NotMeasured: fewer than ``LEAST_LEVELS`` different numbers of users.
    """
    distinct = len({level.users for level in levels})
    if distinct < LEAST_LEVELS:
        raise NotMeasured(f"{distinct} different loads were measured, {LEAST_LEVELS} are needed")
    return _fitted(tuple(sorted(levels, key=lambda level: level.users)))


def _fitted(levels: tuple[Level, ...]) -> Scalability:
    """Levenberg and Marquardt on alpha and beta, from several starts; gamma follows from them.

    For given alpha and beta the best ``log gamma`` is a mean, so it is taken out of the problem
    (variable projection: Golub and Pereyra 1973), and two parameters are left. A parameter at 0
    that wants to go below stays there (and alpha at 1 that wants to go above).
    """
    most = levels[-1].users
    starts = [(0.0, 0.0), (0.1 / most, 0.0), (1 / most, 1 / most**2), (0.5, 0.1 / most)]
    alpha, beta = min((_descend(levels, *start) for start in starts),
                      key=lambda ends: _squares(levels, *ends))  # fmt: skip
    log_gamma = fmean(_log_gammas(levels, alpha, beta))
    error = math.sqrt(_squares(levels, alpha, beta) / (len(levels) - 3))
    return Scalability(math.exp(log_gamma), alpha, beta, levels, error)


def _log_gammas(levels: Sequence[Level], alpha: float, beta: float) -> list[float]:
    """What gamma would have to be for each level to lie on the curve, as a logarithm."""
    return [
        math.log(level.throughput / level.users * _slowdown(level.users, alpha, beta))
        for level in levels
    ]


def _squares(levels: Sequence[Level], alpha: float, beta: float) -> float:
    found = _log_gammas(levels, alpha, beta)
    mean = fmean(found)
    return sum((value - mean) ** 2 for value in found)


def _descend(levels: Sequence[Level], alpha: float, beta: float) -> tuple[float, float]:
    damping, squares = 1e-3, _squares(levels, alpha, beta)
    for _ in range(200):
        step = _step(levels, alpha, beta, damping)
        nearer = min(1.0, max(0.0, alpha + step[0])), max(0.0, beta + step[1])
        less = _squares(levels, *nearer)
        if less >= squares:
            damping *= 8
            if damping > 1e12:
                break
            continue
        settled = squares - less <= _CLOSE * squares
        (alpha, beta), squares, damping = nearer, less, damping / 4
        if settled:
            break
    return alpha, beta


def _step(
    levels: Sequence[Level], alpha: float, beta: float, damping: float
) -> tuple[float, float]:
    """The damped Gauss-Newton step, of the parameters that are free to move."""
    found, slopes = _log_gammas(levels, alpha, beta), _slopes(levels, alpha, beta)
    mean = fmean(found)
    rises = [sum(s * (f - mean) for s, f in zip(slope, found, strict=True)) for slope in slopes]
    aa, bb = (sum(s * s for s in slope) * (1 + damping) for slope in slopes)
    ab = sum(s * t for s, t in zip(*slopes, strict=True))
    moves_alpha = aa > 0 and (alpha > 0 if rises[0] > 0 else alpha < 1)
    moves_beta = bb > 0 and (beta > 0 or rises[1] < 0)
    det = aa * bb - ab * ab
    if moves_alpha and moves_beta and det > 0:
        return (ab * rises[1] - bb * rises[0]) / det, (ab * rises[0] - aa * rises[1]) / det
    return -rises[0] / aa if moves_alpha else 0.0, -rises[1] / bb if moves_beta else 0.0


def _slopes(levels: Sequence[Level], alpha: float, beta: float) -> tuple[list[float], list[float]]:
    """How each level's ``log gamma`` less their mean changes with alpha, and with beta."""
    by_alpha, by_beta = [], []
    for level in levels:
        n, slowdown = level.users, _slowdown(level.users, alpha, beta)
        by_alpha.append((n - 1) / slowdown)
        by_beta.append(n * (n - 1) / slowdown)
    mean_alpha, mean_beta = fmean(by_alpha), fmean(by_beta)
    return [v - mean_alpha for v in by_alpha], [v - mean_beta for v in by_beta]


@dataclass(frozen=True)
class Tier:
    """What one part of the system used while a number of requests was served.

    Attributes:
        cpu_seconds: used, less what it uses when idle.
        requests: served by the whole system in that time, not by this tier alone.
        cores: the most that it can use at once, its processes or its limit.
        host: where it runs; tiers of one host share its cores.
    """

    name: str
    cpu_seconds: float
    requests: int
    cores: float
    host: str

    @property
    def demand(self) -> float:
        """Service demand: CPU-seconds for each request that the system serves."""
        return self.cpu_seconds / self.requests


@dataclass(frozen=True)
class Bottleneck:
    """What ends the growth first.

    Attributes:
        name: the tier that is full, or that has the most of the host that is.
        host: the host that is full; None when the tier's own limit is reached before.
        ceiling: requests a second at which it is full. Latency is bad well before.
        demands: CPU-seconds a request of each tier.
    """

    name: str
    host: str | None
    ceiling: float
    demands: Mapping[str, float]

    @property
    def sentence(self) -> str:
        full = f"the cores of {self.host} are full, most of them by" if self.host else "full is"
        cost = f"{1000 * self.demands[self.name]:.2g} ms of CPU a request"
        return f"at {_figures(self.ceiling)} requests a second {full} {self.name} ({cost})"


def bottleneck(tiers: Sequence[Tier], host_cores: Mapping[str, float]) -> Bottleneck:
    """Which tier or host is full first, by the utilisation law: ``U = X D`` is at most its cores.

    Denning and Buzen 1978, "The operational analysis of queueing network models"; Lazowska and
    others 1984, "Quantitative System Performance", chapter 5. The generator is a tier too where
    it shares a host.

    Args:
        host_cores: cores of each host.

    Raises:
        NotMeasured: no tier, no request, or no CPU time was seen.
        KeyError: a tier runs on a host that has no cores here.
    """
    if not tiers or any(tier.requests <= 0 for tier in tiers):
        raise NotMeasured("no service demand without tiers and requests")
    demands = {tier.name: tier.demand for tier in tiers}
    if any(demand < 0 for demand in demands.values()) or not any(demands.values()):
        raise NotMeasured("no CPU time was measured, so nothing can be said to be full")
    limits: list[tuple[float, str, str | None]] = [
        (tier.cores / tier.demand, tier.name, None) for tier in tiers if tier.demand
    ]
    limits += [_host_limit(host, tiers, host_cores[host]) for host in {t.host for t in tiers}]
    # On a draw the host: that is what a bigger limit of the tier would not help.
    ceiling, name, host = min(limits, key=lambda limit: (limit[0], limit[2] is None))
    return Bottleneck(name, host, ceiling, demands)


def _host_limit(host: str, tiers: Sequence[Tier], cores: float) -> tuple[float, str, str | None]:
    here = [tier for tier in tiers if tier.host == host]
    demand = sum(tier.demand for tier in here)
    heaviest = max(here, key=lambda tier: tier.demand).name
    return cores / demand if demand else math.inf, heaviest, host


def throughput_bound(
    users: float, pause_seconds: float, response_seconds: float, ceiling: float
) -> float:
    """The most requests a second that so many users can cause: ``min(N / (Z + R), ceiling)``.

    The asymptotic bounds of a closed system (Lazowska and others 1984, section 5.2).

    Args:
        pause_seconds: mean between an answer and the next request (Z).
        response_seconds: of an idle system (R), which no load makes shorter.
        ceiling: of ``bottleneck``.
    """
    cycle = pause_seconds + response_seconds
    if users < 0 or cycle <= 0:
        raise ValueError("users are not negative, and take some time for a request")
    return min(users / cycle, ceiling)


@dataclass(frozen=True)
class Replicas:
    """How many replicas a load needs.

    Attributes:
        low, high: by the greatest and the least that one replica may hold. Run ``high``.
        extrapolated: more than were measured at once.
        reason: one sentence with the numbers.
    """

    low: int
    high: int
    extrapolated: bool
    reason: str


def replicas_for(
    users: float,
    *,
    pause_seconds: float,
    response: Interval,
    per_replica: Interval,
    measured_replicas: int = 1,
    utilisation: float = 0.7,
) -> Replicas:
    """Replicas for so many users.

    Args:
        pause_seconds: mean between an answer and the next request.
        response: seconds that an answer takes, as an interval.
        per_replica: requests a second that one replica was seen to hold within its objective
            (the interval of a breakpoint search), not its ceiling.
        measured_replicas: how many ran at once when that was measured. That more of them add up
            is an assumption: what they share (database, proxy) may end first.
        utilisation: the share of that which is to be used, the rest being for a lost replica, a
            busy minute and growth.

    Raises:
        NotMeasured: the least that a replica may hold is nothing.
    """
    if not 0 < utilisation <= 1 or measured_replicas < 1:
        raise ValueError("utilisation is above 0 and at most 1, and one replica or more ran")
    if not per_replica.low > 0:
        raise NotMeasured("a replica may hold nothing at all: measure what one holds first")
    least = throughput_bound(users, pause_seconds, response.high, math.inf)
    most = throughput_bound(users, pause_seconds, response.low, math.inf)
    low = max(1, math.ceil(least / (per_replica.high * utilisation)))
    high = max(1, math.ceil(most / (per_replica.low * utilisation)))
    held = f"{_figures(per_replica.low)} to {_figures(per_replica.high)} that one holds"
    reason = (
        f"{users:g} users make up to {_figures(most)} requests a second; at {utilisation:.0%} of "
        f"the {held}, that is {low} to {high} replicas"
    )
    beyond = high > measured_replicas
    if beyond:
        reason += f", if they add up: only {measured_replicas} at once was measured"
    return Replicas(low, high, beyond, reason)


def _figures(value: float) -> str:
    """A rate in three significant figures: 2,150 and not 2.15e+03."""
    return f"{float(f'{value:.3g}'):,.15g}"
