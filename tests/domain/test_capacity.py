"""A law that was planted is found; what was not measured is refused."""

from __future__ import annotations

import math
from collections.abc import Sequence
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from domain.capacity import (
    LEAST_LEVELS,
    Bottleneck,
    Level,
    NotMeasured,
    Tier,
    bottleneck,
    fit,
    replicas_for,
    throughput_bound,
)
from domain.latency import Interval

ALPHA, BETA, GAMMA = 0.02, 1e-4, 80.0
PEAK = math.sqrt((1 - ALPHA) / BETA)


def law(users: float, alpha: float = ALPHA, beta: float = BETA, gamma: float = GAMMA) -> float:
    return gamma * users / (1 + alpha * (users - 1) + beta * users * (users - 1))


def measured(up_to: float, noise: float = 0.0, random: Random | None = None) -> list[Level]:
    """Eight levels, evenly up to that many peaks."""
    users = [max(1.0, up_to * PEAK * k / 8) for k in range(1, 9)]
    luck = random or Random(0)
    return [Level(n, law(n) * luck.lognormvariate(0, noise)) for n in users]


@given(st.floats(0, 0.9), st.floats(1e-7, 0.01), st.floats(0.1, 1e4), st.floats(0.1, 3))
@settings(max_examples=60)
def test_a_law_without_noise_is_found_again(
    alpha: float, beta: float, gamma: float, reach: float
) -> None:
    most = max(20.0, reach * math.sqrt((1 - alpha) / beta))
    users = [1 + (most - 1) * k / 9 for k in range(10)]
    found = fit([Level(n, law(n, alpha, beta, gamma)) for n in users])
    for n in users:
        assert found.predict(n) == pytest.approx(law(n, alpha, beta, gamma), rel=1e-4)


def test_its_parameters_are_found_and_never_negative() -> None:
    found = fit(measured(2.0))
    assert (found.gamma, found.alpha, found.beta) == pytest.approx((GAMMA, ALPHA, BETA), rel=1e-5)
    assert found.error == pytest.approx(0, abs=1e-6)
    better_than_linear = fit([Level(n, n**1.2) for n in (1, 2, 4, 8, 16)])
    assert (better_than_linear.alpha, better_than_linear.beta) == (0, 0)
    flat = fit([Level(n, 500 * (1.01 if n % 2 else 0.99)) for n in range(1, 9)])
    assert 0.9 < flat.alpha <= 1


def test_no_neighbour_of_a_noisy_fit_is_better() -> None:
    random = Random("neighbours")
    for _ in range(20):
        levels = measured(random.choice([0.5, 1.0, 1.5, 2.0]), 0.05, random)
        best = fit(levels)
        for alpha, beta in ((1.01, 1), (0.99, 1), (1, 1.01), (1, 0.99), (1.01, 0.99)):
            other = misfit(levels, best.alpha * alpha, best.beta * beta)
            assert misfit(levels, best.alpha, best.beta) <= other + 1e-12


def misfit(levels: Sequence[Level], alpha: float, beta: float) -> float:
    logs = [math.log(level.throughput / law(level.users, alpha, beta, 1)) for level in levels]
    mean = sum(logs) / len(logs)
    return sum((value - mean) ** 2 for value in logs)


@pytest.mark.parametrize("reach", [0.5, 0.8, 1.0])
def test_a_peak_that_was_not_passed_is_not_reported(reach: float) -> None:
    random, refused = Random(f"before {reach}"), 0
    for _ in range(40):
        try:
            fit(measured(reach, 0.03, random)).peak()
        except NotMeasured as error:
            assert "not clearly passed" in str(error)
            refused += 1
    assert refused >= 37


def test_a_peak_that_was_passed_is_within_its_range() -> None:
    random, held = Random("past"), 0
    for _ in range(60):
        peak = fit(measured(2.0, 0.03, random)).peak()
        assert peak.users == pytest.approx(PEAK, rel=0.2)
        assert peak.throughput == pytest.approx(law(PEAK), rel=0.06)
        held += PEAK in peak.range
    assert held >= 54


def test_growth_without_end_has_no_peak() -> None:
    with pytest.raises(NotMeasured):
        fit([Level(n, law(n, 0.05, 0.0)) for n in range(1, 20)]).peak()


@pytest.mark.parametrize("users", [0.0, 5.0, 199.0, 1e6, math.nan])
def test_no_load_outside_the_measured_is_predicted(users: float) -> None:
    found = fit(measured(2.0))
    with pytest.raises(NotMeasured, match="outside the measured"):
        found.predict(users)


def test_few_different_loads_are_no_fit() -> None:
    levels = measured(2.0)[: LEAST_LEVELS - 1]
    with pytest.raises(NotMeasured, match="4 different loads"):
        fit([*levels, *levels])


@pytest.mark.parametrize("wrong", [(0, 5), (5, 0), (-1, 5), (5, math.inf), (math.nan, 1)])
def test_a_level_that_is_none_is_refused(wrong: tuple[float, float]) -> None:
    with pytest.raises(ValueError):
        Level(*wrong)


PROXY = Tier("proxy", cpu_seconds=30, requests=60_000, cores=2, host="one")
APPLICATION = Tier("application", cpu_seconds=60, requests=60_000, cores=1, host="one")
DATABASE = Tier("database", cpu_seconds=90, requests=60_000, cores=8, host="two")


@pytest.mark.parametrize(
    ("cores", "name", "host", "ceiling"),
    [
        ({"one": 8, "two": 8}, "application", None, 1000),  # its one process is full
        ({"one": 1, "two": 8}, "application", "one", 1 / 0.0015),  # shared with the proxy
        ({"one": 8, "two": 1}, "database", "two", 1 / 0.0015),
    ],
)
def test_the_tier_that_is_full_first_is_named(
    cores: dict[str, float], name: str, host: str | None, ceiling: float
) -> None:
    found = bottleneck([PROXY, APPLICATION, DATABASE], cores)
    assert (found.name, found.host) == (name, host)
    assert found.ceiling == pytest.approx(ceiling)
    assert found.demands == pytest.approx(
        {"proxy": 0.0005, "application": 0.001, "database": 0.0015}
    )
    assert name in found.sentence and (host or "full is") in found.sentence
    assert found.sentence.startswith(f"at {ceiling:,.0f} requests a second ")


@given(st.lists(st.floats(0.001, 100), min_size=1, max_size=5), st.floats(0.5, 64))
def test_at_the_ceiling_nothing_is_more_than_full(seconds: list[float], cores: float) -> None:
    tiers = [Tier(f"t{k}", used, 1000, 2, "h") for k, used in enumerate(seconds)]
    found: Bottleneck = bottleneck(tiers, {"h": cores})
    use = [found.ceiling * tier.demand for tier in tiers]
    assert max(use) <= 2 * (1 + 1e-9) and sum(use) <= cores * (1 + 1e-9)
    assert max(max(use) / 2, sum(use) / cores) == pytest.approx(1)


@pytest.mark.parametrize(
    "tiers",
    [[], [Tier("a", 5, 0, 1, "h")], [Tier("a", 0, 10, 1, "h")], [Tier("a", -1, 10, 1, "h")]],
    ids=["no tier", "no request", "no time", "less than no time"],
)
def test_without_a_demand_nothing_is_the_bottleneck(tiers: list[Tier]) -> None:
    with pytest.raises(NotMeasured):
        bottleneck(tiers, {"h": 2})


def test_users_cause_no_more_than_their_pauses_let_them() -> None:
    assert throughput_bound(10_000, 9.95, 0.05, 5_000) == pytest.approx(1000)
    assert throughput_bound(10_000, 9.95, 0.05, 800) == 800
    with pytest.raises(ValueError):
        throughput_bound(10, 0, 0, 1)


def test_replicas_are_a_range_that_says_what_it_assumes() -> None:
    answer = replicas_for(
        10_000, pause_seconds=9.9, response=Interval(0.02, 0.1), per_replica=Interval(450, 600)
    )
    assert (answer.low, answer.high, answer.extrapolated) == (3, 4, True)
    assert "only 1 at once was measured" in answer.reason
    assert "10000 users make up to 1,010 requests a second" in answer.reason  # not 1.01e+03
    seen = replicas_for(
        10_000, pause_seconds=9.9, response=Interval(0.02, 0.1), per_replica=Interval(450, 600),
        measured_replicas=4,
    )  # fmt: skip
    assert not seen.extrapolated and "measured" not in seen.reason


@given(st.floats(1, 1e6), st.floats(1, 1000), st.floats(1, 3), st.floats(0.1, 1))
def test_replicas_hold_what_the_users_cause(
    users: float, least: float, wider: float, utilisation: float
) -> None:
    answer = replicas_for(
        users, pause_seconds=10, response=Interval(0.01, 0.5),
        per_replica=Interval(least, least * wider), utilisation=utilisation,
    )  # fmt: skip
    assert 1 <= answer.low <= answer.high
    assert answer.high * least * utilisation >= users / 10.01 * (1 - 1e-9)


def test_a_replica_that_holds_nothing_is_no_answer() -> None:
    with pytest.raises(NotMeasured):
        replicas_for(10, pause_seconds=1, response=Interval(0, 1), per_replica=Interval(0, 5))
    with pytest.raises(ValueError):
        replicas_for(10, pause_seconds=1, response=Interval(0, 1), per_replica=Interval(1, 5),
                     utilisation=0)  # fmt: skip
