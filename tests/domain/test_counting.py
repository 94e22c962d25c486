"""Counters that restart, and what was gained between two looks."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from domain.counting import Series, added
from domain.routing import Counts

# Steps of one counter: how many events, and whether its process restarted before them.
STEPS = st.lists(st.tuples(st.integers(0, 50), st.booleans()), min_size=1, max_size=30)


def seen_at_scrapes(steps: list[tuple[int, bool]]) -> list[tuple[float, float]]:
    value, samples = 0, []
    for number, (events, restarted) in enumerate(steps):
        value = events if restarted else value + events
        samples.append((float(number), float(value)))
    return samples


@given(STEPS)
def test_a_series_adds_up_all_events_whose_restart_can_be_seen(
    steps: list[tuple[int, bool]],
) -> None:
    samples = seen_at_scrapes(steps)
    series = Series()
    series.take(samples)
    expected = samples[0][1]
    for (_, before), (_, after) in pairwise(samples):
        expected += after - before if after >= before else after
    assert series.total == expected <= sum(events for events, _ in steps)
    if not any(restarted for _, restarted in steps[1:]):
        assert series.total == sum(events for events, _ in steps)


@given(STEPS, st.lists(st.integers(0, 30), max_size=6))
def test_how_often_and_how_far_back_one_looks_does_not_matter(
    steps: list[tuple[int, bool]], cuts: list[int]
) -> None:
    """Each look gets a window that overlaps the one before."""
    samples = seen_at_scrapes(steps)
    whole, piecewise = Series(), Series()
    whole.take(samples)
    for last, cut in pairwise([0, *sorted(cuts), len(samples)]):
        piecewise.take(samples[max(0, last - 3) : cut])
    piecewise.take(samples)
    assert piecewise == whole


def test_the_first_sample_of_a_series_counts_and_that_before_the_base_does_not() -> None:
    born = Series()
    born.take([(1.0, 1.0)])
    assert born.total == 1
    born.base()
    born.take([(1.0, 1.0), (2.0, 1.0)])
    assert born.total == 0
    born.take([(3.0, 2.0)])
    assert born.total == 1


COUNTS = st.builds(
    lambda slow, fast, errors: Counts(
        requests=slow + fast, errors=min(errors, slow + fast),
        buckets={"0.1": fast, "+Inf": slow + fast},
    ),
    st.integers(0, 100), st.integers(0, 100), st.integers(0, 100),
)  # fmt: skip


@given(COUNTS, COUNTS)
def test_what_is_gained_is_what_was_added(before: Counts, step: Counts) -> None:
    assert added(before, step).since(before) == (
        step if before.requests or step.requests else Counts(buckets=step.buckets)
    )


@given(COUNTS, COUNTS)
def test_nothing_that_is_gained_is_ever_negative(earlier: Counts, later: Counts) -> None:
    step = later.since(earlier)
    assert step.requests >= 0 and 0 <= step.errors <= later.errors
    assert all(n >= 0 for n in step.buckets.values())


def test_errors_or_a_bucket_that_went_back_are_a_restart_too() -> None:
    """More requests than before the restart: only the smaller counters still tell."""
    before = Counts(requests=10, errors=4, buckets={"0.1": 9, "+Inf": 10})
    fewer_errors = Counts(requests=12, errors=1, buckets={"0.1": 11, "+Inf": 12})
    assert fewer_errors.since(before) == fewer_errors
    fewer_fast = Counts(requests=12, errors=5, buckets={"0.1": 2, "+Inf": 12})
    assert fewer_fast.since(before) == fewer_fast
    other_bounds = Counts(requests=12, errors=5, buckets={"0.2": 12, "+Inf": 12})
    assert other_bounds.since(before) == other_bounds


def test_a_bound_that_only_one_has_is_left_out_of_a_sum() -> None:
    one = Counts(requests=2, buckets={"0.1": 1, "0.5": 2, "+Inf": 2})
    other = Counts(requests=3, buckets={"0.5": 1, "1": 2, "+Inf": 3})
    assert added(one, other).buckets == {"0.5": 3, "+Inf": 5}
    assert added(Counts(), one) == added(one, Counts()) == one
