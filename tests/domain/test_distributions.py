"""Against sums over every outcome, and against printed tables."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain.distributions import (
    beta_share,
    binomial_at_most,
    crossing,
    first_true,
    normal_two_sided,
    student_quantile,
    student_two_sided,
)


@given(st.integers(1, 80), st.floats(0.001, 0.999), st.data())
def test_the_binomial_is_the_sum_of_its_chances(
    of: int, chance: float, data: st.DataObject
) -> None:
    hits = data.draw(st.integers(-1, of + 1))
    total = sum(
        math.comb(of, k) * chance**k * (1 - chance) ** (of - k) for k in range(min(hits, of) + 1)
    )
    assert binomial_at_most(hits, of, chance) == pytest.approx(total, abs=1e-10)


def test_a_million_trials_are_near_the_normal() -> None:
    spread = math.sqrt(1e6 * 0.05 * 0.95)
    for z in (-3, -1, 0, 2):
        below = binomial_at_most(round(950_000 + z * spread), 1_000_000, 0.95)
        assert below == pytest.approx(0.5 * math.erfc(-z / math.sqrt(2)), abs=0.002)


@given(st.floats(0.5, 500), st.floats(0.5, 500), st.floats(0.001, 0.999))
def test_the_beta_function_is_symmetric_and_within_its_bounds(a: float, b: float, x: float) -> None:
    share = beta_share(a, b, x)
    assert 0 <= share <= 1
    assert share == pytest.approx(1 - beta_share(b, a, 1 - x), abs=1e-9)


@pytest.mark.parametrize(
    ("confidence", "freedom", "t"),
    [(0.95, 1, 12.706), (0.95, 4, 2.776), (0.95, 9, 2.262), (0.95, 30, 2.042), (0.99, 9, 3.250),
     (0.999, 5, 6.869), (0.95, 100_000, 1.960)],
)  # fmt: skip
def test_students_t_is_that_of_the_tables(confidence: float, freedom: int, t: float) -> None:
    assert student_quantile(confidence, freedom) == pytest.approx(t, abs=6e-4)
    assert student_two_sided(t, freedom) == pytest.approx(1 - confidence, rel=2e-3)
    assert student_two_sided(-t, freedom) == student_two_sided(t, freedom)


def test_the_normal_is_that_of_the_tables() -> None:
    assert normal_two_sided(1.959964) == pytest.approx(0.05, abs=1e-7)
    assert normal_two_sided(0) == 1


@given(st.integers(-50, 50), st.integers(0, 60), st.integers(-60, 120))
def test_the_first_is_the_first(low: int, length: int, edge: int) -> None:
    expected = min(max(low, edge), low + length)
    assert first_true(low, low + length, lambda k: k >= edge) == expected


@given(st.floats(0.001, 0.999))
def test_a_crossing_is_found(edge: float) -> None:
    assert crossing(0, 1, lambda x: x >= edge) == pytest.approx(edge, abs=1e-12)
