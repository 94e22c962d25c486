from __future__ import annotations

import pytest

from diet_game.rules import energy_kcal
from diet_game.seed import foods


def test_seed_is_300_distinct_foods_and_always_the_same() -> None:
    first, second = list(foods()), list(foods())
    assert first == second
    assert len(first) == len({food.id for food in first}) == len({food.name for food in first})
    assert len(first) == 300


def test_every_food_could_be_real() -> None:
    for food in foods():
        parts = food.protein_g + food.fat_g + food.carbs_g
        assert 0 < parts <= 101, food
        assert food.kcal == energy_kcal(food.protein_g, food.fat_g, food.carbs_g), food
        assert 5 <= food.kcal <= 900, food
        assert food.sugar_g <= food.carbs_g + 0.2, food
        assert food.fibre_g <= food.carbs_g + 0.2, food
        assert min(food.protein_g, food.fat_g, food.carbs_g, food.fibre_g, food.sugar_g) >= 0, food


def test_cooking_moves_the_numbers_the_right_way() -> None:
    by_name = {food.name: food for food in foods()}
    dry, boiled = by_name["white rice, dry"], by_name["white rice, boiled"]
    assert boiled.kcal == pytest.approx(dry.kcal / 2.7, rel=0.02)
    assert by_name["cod, fried"].fat_g > by_name["cod, raw"].fat_g
