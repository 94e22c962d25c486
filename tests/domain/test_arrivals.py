"""The schedule is Poisson at the rate asked for, and what is in step is told from what is not."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from random import Random
from statistics import fmean, variance

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain.arrivals import Dispersion, PoissonSchedule, Segment, dispersion

START = 1_700_000_000.4
"""An epoch second that the load does not begin with."""

RATES = st.floats(0, 50) | st.just(0.0)
SEGMENTS = st.lists(st.builds(Segment, st.floats(0.1, 20), RATES, RATES), min_size=1, max_size=4)
RAMP = (Segment(20, 0, 1000), Segment(20, 1000, 1000))


def counted(times: Iterable[float]) -> Dispersion:
    sends = Dispersion()
    for at in times:
        sends.record(START + at)
    return sends


def merged(parts: Iterable[Dispersion]) -> Dispersion:
    whole = Dispersion()
    for part in parts:
        whole.merge(part)
    return whole


@given(SEGMENTS, st.integers())
def test_due_times_ascend_within_the_load(segments: list[Segment], seed: int) -> None:
    schedule = PoissonSchedule(segments, Random(seed))
    due = list(schedule)
    assert due == sorted(due)
    assert all(0 <= at <= schedule.seconds for at in due)


@given(st.builds(Segment, st.floats(0.1, 1000), st.floats(0, 1e4), st.floats(0, 1e4)),
       st.floats(0, 1))  # fmt: skip
def test_the_inverse_of_the_integral_is_its_inverse(segment: Segment, share: float) -> None:
    wanted = segment.expected * share
    assert segment.expected_by(segment.reached(wanted)) == pytest.approx(wanted, rel=1e-9, abs=1e-6)


def test_each_second_of_a_ramp_gets_its_own_rate() -> None:
    """The transformed times of a Poisson process are uniform: Kolmogorov's distance is small."""
    schedule = PoissonSchedule(RAMP, Random("ramp"))
    due = list(schedule)
    expected = schedule.expected_by(40)
    assert expected == 30_000
    assert len(due) == pytest.approx(expected, abs=4 * math.sqrt(expected))
    places = [schedule.expected_by(at) / expected for at in due]
    distance = max(abs(place - k / len(due)) for k, place in enumerate(places))
    assert distance < 1.95 / math.sqrt(len(due))  # passed once in a thousand times


def test_counts_of_a_second_vary_as_much_as_their_mean() -> None:
    random, counts = Random("counts"), []
    for _ in range(2000):
        counts.append(sum(1 for _ in PoissonSchedule([Segment(0.5, 10, 30)], random)))
    assert fmean(counts) == pytest.approx(10, abs=0.3)
    assert variance(counts) == pytest.approx(10, rel=0.13)


def test_workers_with_a_share_each_are_together_the_whole() -> None:
    workers = [PoissonSchedule(RAMP, Random(f"worker {k}"), share=1 / 4) for k in range(4)]
    assert sum(worker.expected_by(25) for worker in workers) == pytest.approx(15_000)
    due = [at for worker in workers for at in worker]
    assert len(due) == pytest.approx(30_000, abs=4 * math.sqrt(30_000))
    assert all(0.8 < index.value < 2 for index in counted(due).indices())


def test_a_load_of_nothing_is_never_due() -> None:
    assert list(PoissonSchedule([Segment(10, 0, 0)], Random(1))) == []
    late = list(PoissonSchedule([Segment(10, 0, 0), Segment(10, 5, 5)], Random(1)))
    assert late and min(late) > 10


@pytest.mark.parametrize(
    "wrong", [(0, 1, 1), (-1, 1, 1), (1, -1, 1), (1, 1, -1), (1, math.inf, 1), (math.nan, 1, 1)]
)
def test_a_segment_that_is_none_is_refused(wrong: tuple[float, float, float]) -> None:
    with pytest.raises(ValueError):
        Segment(*wrong)


@pytest.mark.parametrize("share", [0, -1, 1.5])
def test_a_share_that_is_none_is_refused(share: float) -> None:
    with pytest.raises(ValueError):
        PoissonSchedule(RAMP, Random(1), share)


@pytest.mark.parametrize(
    "segments",
    [[Segment(60, 500, 500)], [Segment(60, 0, 900)], [Segment(60, 900, 10)], [Segment(25, 20, 20)]],
    ids=["steady", "ramp up", "ramp down", "few"],
)
def test_independent_sends_are_about_one_on_a_ramp_too(segments: list[Segment]) -> None:
    random = Random("independent")
    sends = [counted(PoissonSchedule(segments, random)).indices() for _ in range(8)]
    for scale in zip(*sends, strict=True):
        assert fmean(index.value for index in scale) == pytest.approx(1, abs=0.25)
        assert all(index.at_least < 1.3 for index in scale)


def test_the_plain_variance_would_take_a_ramp_for_bursts() -> None:
    random = Random("a ramp")
    counts = [0] * 60
    for at in PoissonSchedule([Segment(60, 0, 900)], random):
        counts[int(at)] += 1
    index = dispersion(counts)
    assert index is not None and index.value < 2
    assert variance(counts) / fmean(counts) > 50


@pytest.mark.parametrize("spread_seconds", [0.0, 0.005, 0.05, 0.4])
def test_four_hundred_at_once_each_second_show_at_some_scale(spread_seconds: float) -> None:
    random = Random("batches")
    batches = [
        second + 0.3 + random.random() * spread_seconds for second in range(40) for _ in range(400)
    ]
    alone = counted(batches).indices()
    with_others = counted([*batches, *PoissonSchedule([Segment(40, 475, 475)], random)]).indices()
    assert max(index.at_least for index in alone) > 10
    assert max(index.at_least for index in with_others) > 5


def test_sends_more_even_than_chance_are_below_one() -> None:
    even = counted(k / 500 for k in range(500 * 30))
    assert all(index.value < 0.2 for index in even.indices())


def test_too_short_a_phase_has_no_index() -> None:
    assert Dispersion().indices() == ()
    assert counted([0.1, 0.2]).indices() == ()
    short = counted(PoissonSchedule([Segment(8, 100, 100)], Random(4))).indices()
    assert [index.bin_seconds for index in short] == [0.01, 0.1]
    assert dispersion([5] * 11) is None
    assert dispersion([0] * 50) is None


def test_workers_in_step_are_seen_though_each_is_even() -> None:
    """One send each every 10 ms, at the same moment: even alone, batches of twenty together."""
    worker = [k / 50 for k in range(50 * 20)]
    together = merged(counted(worker) for _ in range(20)).indices()
    assert all(index.value <= 1 for index in counted(worker).indices()[1:])
    assert together[0].value > 20


@given(st.lists(st.floats(0, 30), max_size=300), st.integers(1, 4), st.floats(0, 31),
       st.floats(0, 31))  # fmt: skip
def test_given_in_parts_it_is_what_it_is_as_a_whole(
    times: list[float], workers: int, drained: float, folded: float
) -> None:
    whole = counted(times)
    coordinator = Dispersion()
    parts = [counted(times[k::workers]) for k in range(workers)]
    for part in parts:
        coordinator.merge(through_json(part.drain(START + drained)))
    coordinator.fold(START + min(folded, drained))
    for part in parts:
        coordinator.merge(through_json(part))
    assert coordinator.indices() == whole.indices()
    assert coordinator.late == 0
    assert through_json(coordinator).indices() == whole.indices()


def through_json(sends: Dispersion) -> Dispersion:
    return Dispersion.from_dict(json.loads(json.dumps(sends.to_dict())))


def test_a_worker_goes_on_counting_after_it_gave_away_what_was_over() -> None:
    times = list(PoissonSchedule([Segment(20, 200, 200)], Random(8)))
    worker, coordinator = Dispersion(), Dispersion()
    for number, at in enumerate(times):
        worker.record(START + at)
        if number % 300 == 0:
            coordinator.merge(worker.drain(START + at))
            coordinator.fold()
            assert len(worker.to_dict()["seconds"]) <= 1
            assert len(coordinator.to_dict()["seconds"]) <= 1
    coordinator.merge(worker)
    assert coordinator.indices() == counted(times).indices()


def test_what_comes_after_its_second_was_folded_is_said_to_be_late() -> None:
    coordinator = counted(PoissonSchedule([Segment(20, 50, 50)], Random(5)))
    coordinator.fold(START + 10)
    before = coordinator.indices()
    coordinator.merge(counted([3.0, 3.1, 4.0]))
    assert coordinator.late == 3
    assert coordinator.indices() == before
    with pytest.raises(ValueError, match="merge first"):
        Dispersion().merge(coordinator)


def test_a_clock_that_leaps_costs_no_time() -> None:
    sends = counted(PoissonSchedule([Segment(20, 100, 100)], Random(6)))
    sends.record(START + 1e12)
    sends.record(1.0)
    assert len(sends.indices()) == 3


@pytest.mark.parametrize(
    "raw",
    [{}, {"late": 0, "seconds": {"1": [5]}, "folded": None, "sums": [[0, 0, 0, []]] * 3},
     {"late": 0, "seconds": {}, "folded": None, "sums": []},
     {"late": 0, "seconds": None, "folded": None, "sums": [[0, 0, 0, []]] * 3}],
)  # fmt: skip
def test_what_are_no_counts_is_refused(raw: dict[str, object]) -> None:
    with pytest.raises(ValueError):
        Dispersion.from_dict(raw)
