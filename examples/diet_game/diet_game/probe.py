"""Does the game work with this database? `python -m diet_game.probe` plays a round of it.

For a restored copy, never for a live database: it signs a player in and logs a meal, so that keys
that a sequence gave before the backup would show as conflicts.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import sys
from datetime import UTC, datetime, timedelta

from asyncpg import PostgresError

from diet_game.connections import Unavailable
from diet_game.rules import Nutrition, points
from diet_game.settings import SettingsError, database_url
from diet_game.store import Store

NAME = "slipway-probe"


async def play(url: str) -> str:
    """One sentence about what worked; raises AssertionError with what did not."""
    store = Store(url, connections=1, waiting=2)
    await store.open()
    try:
        foods = await store.foods([], 5)
        assert foods, "there are no foods"
        token = hashlib.sha256(os.urandom(16)).digest()
        player, _ = await store.sign_in(NAME, token, timedelta(minutes=1))
        assert await store.session(token), "the session just made is not there"
        today = datetime.now(UTC).date()
        before = await store.day(player, today)
        food = foods[0]
        eaten = Nutrition(
            food.kcal, food.protein_g, food.fat_g, food.carbs_g, food.fibre_g, food.sugar_g
        )
        meal = await store.log_meal(player, food, 100, today, eaten, points(eaten), None)
        assert meal is not None, "the meal was not logged"
        after = await store.day(player, today)
        assert after.meals == before.meals + 1, "the day does not count the meal"
        standings = await store.leaderboard(today - timedelta(days=6), today, 1000)
        return f"foods found, a meal logged, {len(standings)} players on the leaderboard"
    finally:
        await store.close()


def main() -> int:
    """0 when the round could be played."""
    try:
        print(asyncio.run(play(database_url())))
    except (SettingsError, Unavailable, PostgresError, AssertionError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
