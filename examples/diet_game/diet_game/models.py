"""What goes over the wire. The OpenAPI document is made from these types."""

from __future__ import annotations

from datetime import date, datetime
from typing import Annotated

from msgspec import UNSET, Meta, Struct, UnsetType

PLAYER_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9_.\-]*$"
TOKEN_BYTES = 32
SEARCH_LIMIT = 50
BOARD_LIMIT = 100
MAX_BODY_BYTES = 16 * 1024

# Whole numbers. In JSON Schema 150.0 is an integer too, and some clients write it so.
FoodId = Annotated[float, Meta(ge=1, le=2**31 - 1, multiple_of=1)]
Grams = Annotated[float, Meta(ge=1, le=5_000, multiple_of=1)]
PlayerName = Annotated[str, Meta(pattern=PLAYER_PATTERN, min_length=2, max_length=32)]


class SignIn(Struct, forbid_unknown_fields=True):
    """Who is playing. A new name makes a new player."""

    player: PlayerName


class NewMeal(Struct, forbid_unknown_fields=True):
    """A portion of one food; `eaten_on` is today (UTC) when left out."""

    food_id: FoodId
    grams: Grams
    eaten_on: date | UnsetType = UNSET


class Session(Struct):
    """Send `token` as `Authorization: Bearer TOKEN`."""

    player: str
    token: str
    expires_at: datetime


class Food(Struct):
    """A food; nutrients are in grams and energy in kcal per 100 g."""

    id: int
    name: str
    category: str
    kcal: float
    protein_g: float
    fat_g: float
    carbs_g: float
    fibre_g: float
    sugar_g: float


class Foods(Struct):
    """Foods whose name holds every word of the search, best match first."""

    foods: list[Food]


class Meal(Struct):
    """A logged meal and what it earned."""

    id: int
    food_id: int
    food: str
    grams: int
    eaten_on: date
    kcal: float
    points: int


class Summary(Struct):
    """One day of one player."""

    player: str
    date: date
    meals: int
    kcal: float
    goal_kcal: int
    protein_g: float
    fat_g: float
    carbs_g: float
    fibre_g: float
    sugar_g: float
    points: int


class Streak(Struct):
    """Runs of consecutive days with at least one meal."""

    player: str
    current_days: int
    longest_days: int


class Standing(Struct):
    """One line of the leaderboard."""

    rank: int
    player: str
    points: int


class Leaderboard(Struct):
    """Points of the last `days` days; may be some seconds old."""

    days: int
    as_of: datetime
    standings: list[Standing]


class Status(Struct):
    """Whether the process is up, or ready for traffic; `reason` says why not."""

    status: str
    reason: str | UnsetType = UNSET


class Version(Struct):
    """What is running."""

    name: str
    version: str
    digest: str
    environment: str
    service: str


class ProblemDetails(Struct):
    """An error, as RFC 9457 describes it."""

    type: str
    title: str
    status: int
    detail: str
