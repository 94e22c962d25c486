"""A planted slowdown is found, an unchanged version is left alone, and too few runs say so."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import combinations
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from domain.regression import (
    LEAST_NOISE_RUNS,
    Comparison,
    change_points,
    compare,
    hodges_lehmann,
    hodges_lehmann_interval,
    interleaved,
    least_p,
    mann_whitney,
    noise_floor,
)
from domain.verdict import Verdict

RUNS = st.lists(st.integers(1, 12).map(float), min_size=1, max_size=5)


def runs(random: Random, count: int, spread: float, times: float = 1.0) -> list[float]:
    """p95 in milliseconds of that many runs, which differ by chance."""
    return [30 * times * random.lognormvariate(0, spread) for _ in range(count)]


def compared(random: Random, slower: float, spread: float = 0.03, count: int = 5) -> Comparison:
    """A against A first, then A against B."""
    floor = noise_floor(runs(random, 2 * count, spread))
    before, after = runs(random, count, spread), runs(random, count, spread, 1 + slower)
    return compare(before, after, noise_floor=floor)


@given(RUNS, RUNS)
@settings(max_examples=50)
def test_p_is_the_share_of_all_assignments_that_are_as_far_apart(
    before: list[float], after: list[float]
) -> None:
    """Counted another way: by wins, over every choice of who came after."""
    everyone = [*before, *after]

    def wins(chosen: tuple[int, ...]) -> float:
        others = [v for k, v in enumerate(everyone) if k not in chosen]
        return sum((everyone[k] > v) + (everyone[k] == v) / 2 for k in chosen for v in others)

    middle = len(before) * len(after) / 2
    seen = abs(wins(tuple(range(len(before), len(everyone)))) - middle)
    choices = list(combinations(range(len(everyone)), len(after)))
    extreme = sum(abs(wins(chosen) - middle) >= seen for chosen in choices)
    assert mann_whitney(before, after) == pytest.approx(extreme / len(choices))


@pytest.mark.parametrize(("each", "p"), [(3, 0.1), (4, 1 / 35), (5, 1 / 126)])
def test_the_smallest_p_is_that_of_runs_wholly_apart(each: int, p: float) -> None:
    assert least_p(each, each) == pytest.approx(p)
    assert mann_whitney(range(each), range(100, 100 + each)) == pytest.approx(p)


def test_the_approximation_goes_on_where_counting_ends() -> None:
    random = Random("normal")
    before, after = runs(random, 20, 0.1), runs(random, 20, 0.1, 1.05)
    exact = mann_whitney(before, after)
    assert 0.01 < exact < 0.5
    assert mann_whitney([*before, 31.7], after) == pytest.approx(exact, rel=0.25)
    assert mann_whitney([5.0] * 30, [5.0] * 30) == 1
    assert mann_whitney(range(30), range(100, 130)) < 1e-9


@given(RUNS, RUNS, st.floats(0.1, 10))
def test_the_estimate_scales_with_the_runs_and_turns_over(
    before: list[float], after: list[float], times: float
) -> None:
    ratio = hodges_lehmann(before, after)
    assert hodges_lehmann(before, [times * v for v in after]) == pytest.approx(times * ratio)
    middle = sorted(a / b for a in after for b in before)
    assert middle[0] <= ratio <= middle[-1]


def test_one_wild_run_hardly_moves_the_estimate() -> None:
    assert hodges_lehmann([30, 31, 30.5, 29.9, 30.2], [30.1, 31, 30.4, 29.8, 250]) < 1.03


@pytest.mark.parametrize("count", [4, 5, 8, 25])
def test_the_interval_of_the_ratio_holds_it_as_often_as_it_says(count: int) -> None:
    random, held, times = Random(f"ratio {count}"), 0, 300 if count < 20 else 60
    for _ in range(times):
        interval = hodges_lehmann_interval(runs(random, count, 0.1), runs(random, count, 0.1, 1.2))
        assert interval is not None
        held += 1.2 in interval
    assert held >= times * (0.95 - 0.035)
    assert hodges_lehmann_interval([1.0, 2, 3], [1.0, 2, 3]) is None


def test_ten_percent_slower_at_three_percent_noise_is_reported() -> None:
    random = Random("slower")
    verdicts = [compared(random, 0.10).verdict for _ in range(400)]
    assert min(verdicts[k : k + 100].count(Verdict.FAIL) for k in range(0, 400, 100)) >= 95


def test_the_same_version_is_not_reported() -> None:
    random = Random("same")
    verdicts = [compared(random, 0.0).verdict for _ in range(400)]
    assert verdicts.count(Verdict.FAIL) <= 8
    assert verdicts.count(Verdict.PASS) >= 380


def test_what_is_faster_or_slower_by_less_than_matters_passes() -> None:
    random = Random("faster")
    for change in (-0.3, 0.01):
        verdicts = [compared(random, change, 0.005).verdict for _ in range(50)]
        assert verdicts == [Verdict.PASS] * 50


def test_a_throughput_is_worse_when_it_is_lower() -> None:
    high, low = [100.0, 101, 99, 100.5, 98.7], [80.0, 81, 79, 80.5, 79.9]
    assert compare(high, low, noise_floor=0.02).verdict is Verdict.PASS
    turned = compare(high, low, noise_floor=0.02, higher_is_better=True)
    assert turned.verdict is Verdict.FAIL
    assert turned.ratio == pytest.approx(1.25, abs=0.02)
    assert "worse" in turned.reason


APART = ([30.0, 30.1, 30.2, 30.3, 30.4], [40.0, 40.1, 40.2, 40.3, 40.4])


@pytest.mark.parametrize(
    ("change", "verdict", "says"),
    [
        (lambda a, b: compare(a[:3], b[:3], noise_floor=0.01), Verdict.TOO_FEW, "3 runs against 3"),
        (lambda a, b: compare(a, b, noise_floor=0.01, alpha=0.005), Verdict.TOO_FEW, "0.005"),
        (lambda a, b: compare([], b, noise_floor=0.01), Verdict.NO_DATA, "nothing"),
        (lambda a, b: compare(a, [], noise_floor=0.01), Verdict.NO_DATA, "nothing"),
        (lambda a, b: compare(a, b, noise_floor=None), Verdict.TOO_FEW, "6 times"),
        (lambda a, b: compare(a, b, noise_floor=0.5), Verdict.TOO_FEW, "too noisy"),
        (lambda a, b: compare(a, a, noise_floor=0.1), Verdict.TOO_FEW, "too noisy"),
        (lambda a, b: compare(a, b, noise_floor=0.2), Verdict.FAIL, "33.1% worse"),
        (lambda a, b: compare(a, b, noise_floor=0.01, least_effect=0.4), Verdict.PASS, "40%"),
        (lambda a, b: compare(a, a, noise_floor=0.01), Verdict.PASS, "no worsening of 5%"),
    ],
)  # fmt: skip
def test_what_could_not_have_failed_does_not_pass(
    change: Callable[[list[float], list[float]], Comparison], verdict: Verdict, says: str
) -> None:
    comparison = change(*APART)
    assert comparison.verdict is verdict
    assert says in comparison.reason


@pytest.mark.parametrize("wrong", [0.0, -1.0, math.inf, math.nan])
def test_a_run_that_has_no_ratio_is_refused(wrong: float) -> None:
    with pytest.raises(ValueError):
        compare([1.0, wrong], [1.0, 2.0], noise_floor=0.1)


def test_the_noise_floor_is_what_equal_versions_differ_by() -> None:
    random, above = Random("floor"), 0
    floors = [noise_floor(runs(random, 10, 0.03)) or 0.0 for _ in range(300)]
    for floor in floors:
        gap = hodges_lehmann(runs(random, 5, 0.03), runs(random, 5, 0.03))
        above += abs(math.log(gap)) > math.log1p(floor)
    assert 0.03 < sum(floors) / len(floors) < 0.05
    assert above / 300 < 0.12
    assert noise_floor(runs(random, LEAST_NOISE_RUNS - 1, 0.03)) is None
    assert noise_floor([30.0] * LEAST_NOISE_RUNS) == 0
    assert noise_floor(runs(random, 25, 0.03)) is not None


def test_runs_are_interleaved_so_that_drift_is_fair() -> None:
    order = list(interleaved(4))
    assert order == ["A", "B", "B", "A", "A", "B", "B", "A"]
    places = {side: sum(k for k, s in enumerate(order) if s == side) for side in "AB"}
    assert places["A"] == places["B"]
    assert list(interleaved(0)) == []


def test_noise_alone_is_seldom_a_change() -> None:
    random = Random("watch")
    found = [change_points([100 * random.gauss(1, 0.03) for _ in range(50)]) for _ in range(200)]
    assert sum(map(bool, found)) <= 6


def test_a_step_is_found_where_it_is() -> None:
    random, near = Random("step"), 0
    for _ in range(40):
        series = [(100 if k < 60 else 110) * random.gauss(1, 0.03) for k in range(72)]
        points = change_points(series)
        near += len(points) == 1 and abs(points[0].at - 60) <= 1
    assert near >= 36


def test_a_level_that_comes_and_goes_is_two_changes() -> None:
    random = Random("bump")
    series = [(120 if 30 <= k < 42 else 100) * random.gauss(1, 0.02) for k in range(80)]
    points = change_points(series)
    assert [point.at for point in points] == [30, 42]
    assert points[0].ratio == pytest.approx(1.2, abs=0.03)
    assert points[1].after == pytest.approx(100, rel=0.02)


@pytest.mark.parametrize(
    "series",
    [[], [5.0], [5.0, 5, 5, 9, 9], [5.0] * 40, [5.0] * 20 + [50.0] + [5.1, 5.0] * 10],
    ids=["nothing", "one", "too short", "constant", "single spike"],
)
def test_what_is_no_change_of_level_is_none(series: list[float]) -> None:
    assert change_points(series) == ()


def test_a_small_change_is_only_found_when_it_matters() -> None:
    random = Random("small")
    series = [(100 if k < 40 else 102) * random.gauss(1, 0.002) for k in range(80)]
    assert change_points(series) == ()
    assert [point.at for point in change_points(series, least_effect=0.01)] == [40]


def test_an_exact_step_is_found() -> None:
    assert [point.at for point in change_points([5.0] * 10 + [8.0] * 10)] == [10]
