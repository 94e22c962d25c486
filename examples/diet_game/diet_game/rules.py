"""The rules of the game: pure functions over plain values."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date, timedelta

DAILY_GOAL_KCAL = 2000
LEADERBOARD_DAYS = 7
# A meal may be logged ahead for the players who are already in tomorrow, and no further.
DAYS_AHEAD = 1


@dataclass(frozen=True, slots=True)
class Nutrition:
    """Energy in kcal and nutrients in grams; per 100 g for a food, total for a meal."""

    kcal: float
    protein_g: float
    fat_g: float
    carbs_g: float
    fibre_g: float
    sugar_g: float

    def of(self, grams: int) -> Nutrition:
        """The nutrition of a portion, when this is per 100 g; to 0.1 of each unit."""
        share = grams / 100
        return Nutrition(
            kcal=round(self.kcal * share, 1),
            protein_g=round(self.protein_g * share, 1),
            fat_g=round(self.fat_g * share, 1),
            carbs_g=round(self.carbs_g * share, 1),
            fibre_g=round(self.fibre_g * share, 1),
            sugar_g=round(self.sugar_g * share, 1),
        )


def energy_kcal(protein_g: float, fat_g: float, carbs_g: float) -> float:
    """Energy by the general Atwater factors: 4 kcal/g protein and carbohydrate, 9 kcal/g fat."""
    return round(4 * protein_g + 9 * fat_g + 4 * carbs_g, 1)


def points(meal: Nutrition, *, double_fibre: bool = False) -> int:
    """What a meal earns: 10 for logging it, more for fibre and protein, less for sugar; 1 to 20."""
    score = 10 + meal.fibre_g / (1 if double_fibre else 2) + meal.protein_g / 10 - meal.sugar_g / 10
    return max(1, min(20, round(score)))


def streaks(days: Iterable[date], today: date) -> tuple[int, int]:
    """The current and the longest run of consecutive days with a meal.

    A day that is not over does not break a streak: it is current when it reaches today or
    yesterday. Days after today count only once they come.
    """
    longest = current = run = 0
    previous: date | None = None
    for day in sorted({d for d in days if d <= today}):
        run = run + 1 if previous is not None and day - previous == timedelta(days=1) else 1
        longest = max(longest, run)
        previous = day
    if previous is not None and today - previous <= timedelta(days=1):
        current = run
    return current, longest


def too_far_ahead(day: date, today: date) -> bool:
    """Whether a meal on that day cannot have been eaten yet."""
    return (day - today).days > DAYS_AHEAD
