"""Percentiles are those of the samples, however these were split, and the doubt about them is
as large as is said."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from random import Random
from statistics import NormalDist

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain.latency import (
    LEAST_BLOCKS,
    LONGEST_US,
    Histogram,
    Interval,
    block_bootstrap_interval,
    least_samples,
    nearest_rank,
    percentile_interval,
    proportion_interval,
)

LATENCIES_US = st.integers(0, 2 * LONGEST_US)


def of(samples: Sequence[int]) -> Histogram:
    histogram = Histogram()
    for us in samples:
        histogram.record(us)
    return histogram


def pooled(parts: Sequence[Histogram]) -> Histogram:
    whole = Histogram()
    for part in parts:
        whole.merge(part)
    return whole


@pytest.mark.parametrize("median_ms", [0.4, 1.5, 104.9, 1060, 10490])
@pytest.mark.parametrize("p", [0.5, 0.95, 0.99])
def test_a_known_lognormal_is_read_within_half_a_percent(median_ms: float, p: float) -> None:
    """Evenly spaced quantiles stand for the samples, so the truth is known without chance."""
    law, n = NormalDist(math.log(median_ms * 1000), 0.4), 20_000
    samples = [round(math.exp(law.inv_cdf((k + 0.5) / n))) for k in range(n)]
    exact = sorted(samples)[math.ceil(p * n) - 1]
    assert of(samples).percentile(p) == pytest.approx(exact, rel=0.005)
    assert of(samples).percentile(p) == pytest.approx(math.exp(law.inv_cdf(p)), rel=0.005)


@given(st.lists(st.integers(0, LONGEST_US), min_size=1), st.floats(0.001, 1))
def test_a_percentile_is_the_sample_of_the_nearest_rank(samples: list[int], p: float) -> None:
    exact = sorted(samples)[nearest_rank(p, len(samples)) - 1]
    assert of(samples).percentile(p) == pytest.approx(exact, rel=0.004)


@pytest.mark.parametrize(
    ("n", "p", "rank"),
    [
        (1, 0.01, 1), (1, 0.5, 1), (1, 1.0, 1),
        (20, 0.05, 1), (20, 0.051, 2), (20, 0.5, 10), (20, 0.95, 19), (20, 0.951, 20),
        (100, 0.07, 7), (100, 0.29, 29), (100, 0.95, 95), (100, 0.99, 99), (100, 0.991, 100),
    ],
)  # fmt: skip
def test_the_nearest_rank_rounds_up_and_is_not_moved_by_what_floats_make_of_it(
    n: int, p: float, rank: int
) -> None:
    assert of(range(1, n + 1)).percentile(p) == rank


@given(st.lists(st.lists(LATENCIES_US), max_size=6), st.randoms())
def test_merged_parts_are_the_pooled_samples_in_any_order(
    parts: list[list[int]], random: Random
) -> None:
    histograms = [of(part) for part in parts]
    random.shuffle(histograms)
    whole = of([us for part in parts for us in part])
    assert pooled(histograms) == whole
    assert pooled(histograms).percentile(0.95) == whole.percentile(0.95)


def test_a_percentile_of_two_unlike_workers_is_no_mean_of_theirs() -> None:
    fast, slow = Histogram(), Histogram()
    fast.record(30_000, count=900)
    slow.record(200_000, count=60)
    slow.record(450_000, count=40)
    assert pooled([fast, slow]).percentile(0.95) == pytest.approx(200_000, rel=0.004)


@given(st.lists(LATENCIES_US))
def test_a_histogram_comes_back_from_json_as_it_was(samples: list[int]) -> None:
    histogram = of(samples)
    back = Histogram.from_dict(json.loads(json.dumps(histogram.to_dict())))
    assert back == histogram
    assert (back.count, back.mean_us) == (histogram.count, histogram.mean_us)


@pytest.mark.parametrize(
    "change",
    [
        {"steps": [3]}, {"steps": [3, -1]}, {"steps": [3, 0]}, {"steps": [-1, 2]},
        {"steps": [1_000_000, 2]}, {"steps": [0.5, 2]}, {"steps": None}, {"max": 7_000},
        {"min": None}, {"sum": "9"}, {"steps": [3, 1, 4, 1]},
    ],
)  # fmt: skip
def test_what_is_no_histogram_is_refused(change: dict[str, object]) -> None:
    whole = of([5, 5]).to_dict()
    with pytest.raises(ValueError):
        Histogram.from_dict({**whole, **change})
    with pytest.raises(ValueError):
        Histogram.from_dict({key: whole[key] for key in whole if key not in change})


@given(st.lists(LATENCIES_US, min_size=1))
def test_steps_cover_their_samples_and_are_narrow(samples: list[int]) -> None:
    histogram = of(samples)
    rows = list(histogram.counts())
    assert sum(count for _, _, count in rows) == len(samples)
    assert (rows[0][0], rows[-1][1]) == (min(samples), max(samples))
    for low, high, count in rows:
        assert sum(low <= us <= high for us in samples) == count
        assert high - low <= low / 128 or high > LONGEST_US


def test_what_is_beyond_the_range_keeps_its_extremes() -> None:
    histogram = of([-3, 0, 10, 500_000_000])
    assert (histogram.min_us, histogram.max_us) == (-3, 500_000_000)
    assert (histogram.percentile(0.01), histogram.percentile(1)) == (-3, 500_000_000)
    assert histogram.percentile(0.75) == 10


def test_nothing_recorded_says_nothing() -> None:
    empty = Histogram()
    assert empty.percentile(0.95) is None
    assert (empty.min_us, empty.max_us, empty.mean_us, empty.share_above(1)) == (None,) * 4
    assert percentile_interval(empty, 0.95) is None
    assert list(empty.counts()) == []
    empty.merge(Histogram())
    assert empty == Histogram()


@pytest.mark.parametrize("p", [0, -0.1, 1.01, 95])
def test_a_percentile_that_is_none_is_refused(p: float) -> None:
    with pytest.raises(ValueError):
        of([1]).percentile(p)


@given(st.lists(st.integers(0, 5_000_000), min_size=1), st.integers(-5, 6_000_000))
def test_the_share_above_a_limit_is_off_by_no_more_than_the_step_it_cuts(
    samples: list[int], limit: int
) -> None:
    share = of(samples).share_above(limit)
    cut = sum(abs(us - limit) <= limit / 128 for us in samples)
    assert share == pytest.approx(sum(us > limit for us in samples) / len(samples),
                                  abs=cut / len(samples) + 1e-12)  # fmt: skip


@pytest.mark.parametrize(("p", "least"), [(0.95, 59), (0.99, 299), (0.999, 2995), (0.5, 6)])
def test_with_fewer_samples_there_is_no_interval(p: float, least: int) -> None:
    assert least_samples(p) == least
    assert percentile_interval(of(range(1, least)), p) is None
    interval = percentile_interval(of(range(1, least + 1)), p)
    assert interval is not None and interval.high == least


def test_the_interval_has_the_ranks_of_the_binomial() -> None:
    """Those of the tables: 936 and 964 of a thousand (their steps are 936 .. 939, 964 .. 967)."""
    assert percentile_interval(of(range(1, 1001)), 0.95) == Interval(936, 967)


@pytest.mark.parametrize("n", [59, 65, 80, 400])
def test_the_interval_holds_the_truth_as_often_as_it_says(n: int) -> None:
    random, truth = Random(f"order statistics {n}"), 100_000 * -math.log(0.05)
    held = 0
    for _ in range(800):
        histogram = of([round(random.expovariate(1e-5)) for _ in range(n)])
        interval = percentile_interval(histogram, 0.95)
        assert interval is not None
        held += truth in interval
    assert held >= 800 * (0.95 - 0.02)


def in_slow_and_fast_seconds(random: Random, blocks: int) -> list[Histogram]:
    """Each second has a speed of its own; 100 requests share it."""
    result = []
    for _ in range(blocks):
        speed = 50_000 * random.lognormvariate(0, 0.4)
        result.append(of([round(speed * random.lognormvariate(0, 0.3)) for _ in range(100)]))
    return result


def test_blocks_hold_the_truth_where_taking_requests_for_independent_does_not() -> None:
    random = Random("blocks")
    truth = 50_000 * math.exp(0.5 * NormalDist().inv_cdf(0.9))  # 0.4 and 0.3 make 0.5
    blocked = naive = 0
    for _ in range(60):
        blocks = in_slow_and_fast_seconds(random, 40)
        interval = block_bootstrap_interval(blocks, 0.9, rounds=200, random=random)
        requests = percentile_interval(pooled(blocks), 0.9)
        assert interval is not None and requests is not None
        blocked += truth in interval
        naive += truth in requests
    assert blocked >= 54 > 40 > naive


def test_blocks_too_unlike_to_bound_a_percentile_give_no_interval() -> None:
    """One second of twelve is slow: that says little of how often it will be."""
    blocks = [of([10_000] * 100) for _ in range(11)] + [of([900_000] * 100)]
    assert block_bootstrap_interval(blocks, 0.95, random=Random(2)) is None
    median = block_bootstrap_interval(blocks, 0.5, random=Random(2))
    assert median is not None and 10_000 in median and 900_000 not in median


def test_few_blocks_or_samples_give_no_interval() -> None:
    random = Random(1)
    blocks = in_slow_and_fast_seconds(random, LEAST_BLOCKS)
    assert block_bootstrap_interval(blocks, 0.95, random=random)
    assert block_bootstrap_interval([*blocks[1:], Histogram()], 0.95, random=random) is None
    assert block_bootstrap_interval([of([5])] * 58, 0.95, random=random) is None
    assert block_bootstrap_interval(blocks, 0.9999, random=random) is None


def test_the_same_randomness_gives_the_same_interval() -> None:
    blocks = in_slow_and_fast_seconds(Random(3), 12)
    one, other = (block_bootstrap_interval(blocks, 0.9, random=Random(7)) for _ in range(2))
    assert one == other


@pytest.mark.parametrize(
    ("failures", "total", "low", "high"),
    [
        (0, 1000, 0.0, 0.003682), (1000, 1000, 0.996318, 1.0), (1, 10, 0.002529, 0.445016),
        (3, 100_000, 6.18676e-6, 8.76702e-5), (10, 100, 0.049005, 0.176223),
    ],
)  # fmt: skip
def test_the_interval_of_a_share_is_that_of_clopper_and_pearson(
    failures: int, total: int, low: float, high: float
) -> None:
    interval = proportion_interval(failures, total)
    assert interval is not None
    assert (interval.low, interval.high) == pytest.approx((low, high), rel=1e-3)


@pytest.mark.parametrize("chance", [0.0005, 0.01, 0.3])
def test_the_interval_of_a_share_holds_it_in_no_less_than_was_said(chance: float) -> None:
    """Over every outcome, not over drawn ones."""
    total, coverage = 300, 0.0
    for failures in range(total + 1):
        interval = proportion_interval(failures, total)
        assert interval is not None
        weight = math.comb(total, failures) * chance**failures * (1 - chance) ** (total - failures)
        coverage += weight * (chance in interval)
    assert coverage >= 0.95


def test_nothing_sent_is_not_no_failures() -> None:
    assert proportion_interval(0, 0) is None
    with pytest.raises(ValueError):
        proportion_interval(3, 2)
