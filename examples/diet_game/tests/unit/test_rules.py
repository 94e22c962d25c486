from __future__ import annotations

from datetime import date, timedelta

import pytest

from diet_game.rules import Nutrition, energy_kcal, points, streaks, too_far_ahead

TODAY = date(2024, 3, 1)


def back(*days: int) -> list[date]:
    return [TODAY - timedelta(days=day) for day in days]


@pytest.mark.parametrize(
    ("days", "expected"),
    [
        ([], (0, 0)),
        (back(0), (1, 1)),
        (back(1), (1, 1)),
        (back(2), (0, 1)),
        (back(0, 1, 2), (3, 3)),  # over 29 February
        (back(1, 2), (2, 2)),
        (back(0, 2, 3, 4), (1, 3)),
        (back(0, 0, 1), (2, 2)),
        (back(-1), (0, 0)),
        (back(-1, 0), (1, 1)),
    ],
)
def test_streaks(days: list[date], expected: tuple[int, int]) -> None:
    assert streaks(days, TODAY) == expected
    assert streaks(reversed(days), TODAY) == expected


def test_energy_is_atwater() -> None:
    assert energy_kcal(protein_g=10, fat_g=10, carbs_g=10) == 170


def test_a_portion_is_its_share_of_100_g() -> None:
    assert Nutrition(100, 10, 1, 5, 2, 0.3).of(250) == Nutrition(250, 25, 2.5, 12.5, 5, 0.8)


def test_points_reward_fibre_and_protein_and_stay_in_range() -> None:
    plain = Nutrition(0, 0, 0, 0, 0, 0)
    assert points(plain) == 10
    assert points(Nutrition(0, 0, 0, 0, 8, 0)) == 14
    assert points(Nutrition(0, 30, 0, 0, 0, 0)) == 13
    assert points(Nutrition(0, 0, 0, 0, 0, 50)) == 5
    assert points(Nutrition(0, 5000, 0, 0, 5000, 0)) == 20
    assert points(Nutrition(0, 0, 0, 5000, 0, 5000)) == 1


def test_a_meal_may_be_a_day_ahead_and_no_more() -> None:
    assert not too_far_ahead(TODAY + timedelta(days=1), TODAY)
    assert too_far_ahead(TODAY + timedelta(days=2), TODAY)
    assert not too_far_ahead(date.min, TODAY)
