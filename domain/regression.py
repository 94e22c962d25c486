"""Did this version get slower? Two versions compared by runs, and change points as a watch.

The unit is the run, not the request. Requests of one run share its luck (which core, which
cache, which neighbour), so pooling them finds a difference between equal versions in 63 of 100
comparisons when runs differ by 3 %; a rank test on one number a run does so in 4.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, islice
from statistics import fmean, median
from typing import Final, Literal

from domain.distributions import normal_two_sided, student_quantile, student_two_sided
from domain.latency import Interval, nearest_rank
from domain.verdict import Verdict

MOST_EXACT: Final = 40
"""Runs in all up to which the chance is counted exactly."""

LEAST_NOISE_RUNS: Final = 6
"""Runs of one version below which its noise floor is unknown."""

_MOST_SPLITS: Final = 500
_NORMAL_95: Final = 1.96
_DEFAULT_ALPHA: Final = 0.1
"""Two-sided; only one side is worse, so a version that is alike is called worse in 5 % at most. The
least effect and the noise floor take that below 1 %, and 10 % more at 3 % noise shows in 5 runs."""


def interleaved(runs: int) -> Iterator[Literal["A", "B"]]:
    """The order in which to make ``runs`` of each of two versions: A B B A A B B A ...

    A machine that slowly warms up, or fills up, is then equally unfair to both.
    """
    for pair in range(runs):
        yield from ("B", "A") if pair % 2 else ("A", "B")


def _midranks(values: Sequence[float]) -> list[int]:
    """Twice the rank of each; equal values share the mean of theirs."""
    ordered = sorted(values)
    twice = {v: 2 * ordered.index(v) + ordered.count(v) + 1 for v in set(values)}
    return [twice[value] for value in values]


def _rank_sums(ranks: Sequence[int], size: int) -> Mapping[int, int]:
    """In how many of the choices of ``size`` of these ranks they have which sum."""
    ways: list[dict[int, int]] = [{0: 1}, *({} for _ in range(size))]
    for rank in ranks:
        for chosen in range(size, 0, -1):
            for total, count in ways[chosen - 1].items():
                ways[chosen][total + rank] = ways[chosen].get(total + rank, 0) + count
    return ways[size]


def mann_whitney(before: Sequence[float], after: Sequence[float]) -> float:
    """The chance, if both were alike, of ranks at least this far apart, to either side.

    Exact for up to ``MOST_EXACT`` values, with ties: every assignment of the midranks is counted
    (Mann and Whitney 1947; Lehmann 1975, "Nonparametrics", section 1.4). Above, the normal
    approximation, corrected for ties and continuity.

    Raises:
        ValueError: one side has no values.
    """
    if not before or not after:
        raise ValueError("two groups cannot be compared when one is empty")
    m, n = len(before), len(after)
    ranks = _midranks([*before, *after])
    twice_sum, expected = sum(ranks[m:]), n * (m + n + 1)
    apart = abs(twice_sum - expected)
    if m + n <= MOST_EXACT:
        ways = _rank_sums(ranks, n)
        extreme = sum(count for total, count in ways.items() if abs(total - expected) >= apart)
        return extreme / math.comb(m + n, n)
    spread = sum((rank - (m + n + 1)) ** 2 for rank in ranks) / 4  # of single ranks
    variance = m * n * spread / ((m + n) * (m + n - 1))
    if not variance:
        return 1.0
    return normal_two_sided(max(0.0, apart / 2 - 0.5) / math.sqrt(variance))


def least_p(before: int, after: int) -> float:
    """The smallest two-sided p that so many runs can reach: 0.1 for 3 and 3, 0.008 for 5 and 5."""
    return min(1.0, 2 / math.comb(before + after, after))


def hodges_lehmann(before: Sequence[float], after: Sequence[float]) -> float:
    """How many times as large the later values are: the median of all pairwise ratios.

    Hodges and Lehmann 1963, on the logarithm: one wild run moves it little.

    Raises:
        ValueError: a value is not positive and finite.
    """
    return median(_ratios(before, after))


def hodges_lehmann_interval(
    before: Sequence[float], after: Sequence[float], confidence: float = 0.95
) -> Interval | None:
    """Where the ratio of the two versions lies: the ratios that the rank test would not refuse.

    Moses 1965 (Hollander and Wolfe, "Nonparametric Statistical Methods", section 4.3), by the
    exact distribution of the rank sum up to ``MOST_EXACT`` runs, else by its normal approximation.

    Returns:
        None when there are too few runs: 3 and 3 have none at 95 %.
    """
    ratios = sorted(_ratios(before, after))
    cut = _critical(len(before), len(after), 1 - confidence)
    if cut < 0:
        return None
    return Interval(ratios[cut], ratios[len(ratios) - 1 - cut])


def _critical(m: int, n: int, alpha: float) -> int:
    """The greatest U that is improbably small, -1 when none is."""
    if m + n > MOST_EXACT:
        z = math.sqrt(m * n * (m + n + 1) / 12)
        far = next(k for k in range(m * n) if normal_two_sided((m * n / 2 - k) / z) > alpha)
        return far - 1
    ways = _rank_sums([2 * rank for rank in range(1, m + n + 1)], n)
    smallest, allowed, seen = n * (n + 1), alpha / 2 * math.comb(m + n, n), 0
    for u in range(m * n + 1):
        seen += ways.get(smallest + 2 * u, 0)
        if seen > allowed:
            return u - 1
    return m * n


def _ratios(before: Sequence[float], after: Sequence[float]) -> list[float]:
    for value in (*before, *after):
        if not 0 < value < math.inf:
            raise ValueError(f"only positive numbers have ratios, not {value}")
    return [b / a for a in before for b in after]


def noise_floor(runs: Sequence[float]) -> float | None:
    """What one version differs by from itself: 0.04 for 4 %.

    A against A: the runs of one version are split in halves in every way (in ``_MOST_SPLITS`` ways,
    evenly taken, when there are more), and 95 % of the halves differ by no more. That is widened
    as Student's t is against the normal: few runs do not know their own spread. It is the floor for
    comparisons with about as many runs a side as a half has.

    Returns:
        None with fewer than ``LEAST_NOISE_RUNS`` runs.
    """
    if len(runs) < LEAST_NOISE_RUNS:
        return None
    everyone, half = range(len(runs)), len(runs) // 2
    every = max(1, math.comb(len(runs), half) // _MOST_SPLITS)
    gaps = []
    for chosen in islice(combinations(everyone, half), 0, None, every):
        one = [runs[k] for k in chosen]
        other = [runs[k] for k in everyone if k not in chosen]
        gaps.append(abs(math.log(hodges_lehmann(one, other))))
    widened = student_quantile(0.95, len(runs) - 1) / _NORMAL_95
    return math.expm1(sorted(gaps)[nearest_rank(0.95, len(gaps)) - 1] * widened)


@dataclass(frozen=True)
class Comparison:
    """What the runs of two versions say.

    Attributes:
        ratio: how many times worse the later version is (Hodges-Lehmann); None without runs.
        interval: where that lies with 95 %; None with too few runs.
        p: two-sided, of the rank test; None without runs.
        noise_floor: what equal versions differ by; None when it was not measured.
        reason: one sentence for a person.
    """

    verdict: Verdict
    reason: str
    ratio: float | None
    interval: Interval | None
    p: float | None
    noise_floor: float | None
    runs: tuple[int, int]


def compare(
    before: Sequence[float],
    after: Sequence[float],
    *,
    noise_floor: float | None,
    least_effect: float = 0.05,
    alpha: float = _DEFAULT_ALPHA,
    higher_is_better: bool = False,
) -> Comparison:
    """Is the later version worse, in one number a run (a p95, a throughput)?

    ``fail`` needs all of: p below ``alpha``, a ratio of at least ``1 + least_effect``, and one
    beyond the noise floor. Else ``pass``, if it could have failed: with too few runs, with an
    unknown noise floor, or with noise of twice the least effect it is ``too_few``.

    Args:
        noise_floor: of ``noise_floor`` on runs of one version; None: not measured.
        least_effect: what matters, 0.05 for 5 %. What is smaller is never reported.
        higher_is_better: for a throughput; the ratio is turned over, so above 1 is worse.
    """
    runs = (len(before), len(after))
    ratio = interval = p = None
    if before and after:
        worse = (after, before) if higher_is_better else (before, after)
        ratio, interval = hodges_lehmann(*worse), hodges_lehmann_interval(*worse)
        p = mann_whitney(before, after)
    verdict, reason = _judged(ratio, p, runs, noise_floor, least_effect, alpha)
    return Comparison(verdict, reason, ratio, interval, p, noise_floor, runs)


def _judged(
    ratio: float | None,
    p: float | None,
    runs: tuple[int, int],
    floor: float | None,
    least_effect: float,
    alpha: float,
) -> tuple[Verdict, str]:
    versus = f"{runs[0]} runs against {runs[1]}"
    if ratio is None or p is None:
        return Verdict.NO_DATA, f"{versus}: nothing to compare"
    if least_p(*runs) >= alpha:
        least = f"p is never below {least_p(*runs):.2g}, and {alpha:g} is asked for"
        return Verdict.TOO_FEW, f"{versus} can show nothing: {least}"
    if floor is None:
        runs_needed = f"run the same version {LEAST_NOISE_RUNS} times or more"
        return Verdict.TOO_FEW, f"the noise between runs of one version is unknown: {runs_needed}"
    seen = f"{_change(ratio)} (p {p:.2g}, {versus}, noise ±{floor:.1%})"
    if p < alpha and ratio - 1 >= least_effect and ratio - 1 > floor:
        return Verdict.FAIL, seen
    if floor >= 2 * least_effect:
        return Verdict.TOO_FEW, f"{seen}: too noisy to see {least_effect:.0%}; make more runs"
    return Verdict.PASS, f"no worsening of {least_effect:.0%} or more: {seen}"


def _change(ratio: float) -> str:
    return f"{abs(ratio - 1):.1%} {'worse' if ratio >= 1 else 'better'}"


@dataclass(frozen=True)
class ChangePoint:
    """Where a history changed its level.

    Attributes:
        at: index of the first run of the new level.
        before, after: means of the levels.
        p: of Student's t between the two levels. The split was chosen for it, so it is too small
            by the choice; ``strict`` allows for that.
    """

    at: int
    before: float
    after: float
    p: float

    @property
    def ratio(self) -> float:
        return self.after / self.before if self.before else math.inf


def change_points(
    series: Sequence[float],
    *,
    strict: float = 0.001,
    least_effect: float = 0.05,
    least_segment: int = 3,
    window: int = 30,
) -> tuple[ChangePoint, ...]:
    """Where a history of runs changed its level: a watch only, never a verdict.

    After e-divisive (Matteson and James 2014) with Student's t for the permutation test, as Hunter
    does (Fleming and others 2023): split where t is greatest, in windows that overlap by half, at a
    weak limit; then drop the weakest point and judge again, until all that are left are strict.
    In pure noise a t-test at the chosen split fires in 38 of 100 histories at 0.05 and in about
    one at 0.001; noise that carries over from run to run fires far more often. No verdict hangs
    on this.

    Args:
        strict: p that a point must have.
        least_effect: change of the mean that matters, 0.05 for 5 %.
        least_segment: runs a level must last; a single spike is no change.
        window: runs that are searched together.
    """
    found: set[int] = set()
    for begin in range(0, max(1, len(series) - window // 2), window // 2):
        found |= _weak_splits(series, begin, min(begin + window, len(series)), least_segment)
    points = sorted(found)
    while points:
        judged = _between(series, points)
        weakest = max(judged, key=lambda point: _weakness(point, strict, least_effect))
        if _weakness(weakest, strict, least_effect) == (False, False, weakest.p):
            return tuple(judged)
        points.remove(weakest.at)
        points = _relocated(series, points, least_segment)
    return ()


_WEAK_P: Final = 0.05


def _weakness(point: ChangePoint, strict: float, least_effect: float) -> tuple[bool, bool, float]:
    return point.p > strict, abs(point.ratio - 1) < least_effect, point.p


def _weak_splits(series: Sequence[float], begin: int, end: int, least: int) -> set[int]:
    best = _best_split(series, begin, end, least)
    if best is None or _t_test(series, begin, best, end) > _WEAK_P:
        return set()
    left, right = (_weak_splits(series, *part, least) for part in ((begin, best), (best, end)))
    return {best} | left | right


def _best_split(series: Sequence[float], begin: int, end: int, least: int) -> int | None:
    places = range(begin + least, end - least + 1)
    return min(places, key=lambda at: _t_test(series, begin, at, end), default=None)


def _between(series: Sequence[float], points: Sequence[int]) -> list[ChangePoint]:
    """Each point, judged by the levels to its two sides."""
    edges = [0, *points, len(series)]
    return [
        ChangePoint(at, fmean(series[a:at]), fmean(series[at:b]), _t_test(series, a, at, b))
        for a, at, b in zip(edges, edges[1:], edges[2:], strict=False)
    ]


def _relocated(series: Sequence[float], points: Sequence[int], least: int) -> list[int]:
    """Each point put where its levels, now longer, differ most; gone when they are too short."""
    edges = [0, *points, len(series)]
    moved = (
        _best_split(series, a, b, least) for a, b in zip(edges, edges[2:], strict=False)
    )  # fmt: skip
    return sorted({at for at in moved if at is not None})


def _t_test(series: Sequence[float], begin: int, at: int, end: int) -> float:
    """p of Student's t between two stretches, with one variance for both."""
    one, other = series[begin:at], series[at:end]
    freedom = len(one) + len(other) - 2
    if freedom < 1:
        return 1.0
    mean_one, mean_other = fmean(one), fmean(other)
    squares = sum((x - mean_one) ** 2 for x in one) + sum((x - mean_other) ** 2 for x in other)
    gap = abs(mean_one - mean_other)
    error = math.sqrt(squares / freedom * (1 / len(one) + 1 / len(other)))
    if error <= 1e-12 * max(abs(mean_one), abs(mean_other)):
        return 1.0 if gap <= 1e-9 * abs(mean_one) else 0.0
    return student_two_sided(gap / error, freedom)
