"""PostgreSQL: the only truth. One statement a request wherever one will do."""

from __future__ import annotations

import asyncio
from dataclasses import astuple, dataclass
from datetime import date, datetime, timedelta
from typing import Any

from diet_game.connections import Connections, Lost
from diet_game.models import Food, Meal, Standing
from diet_game.rules import Nutrition


@dataclass(frozen=True, slots=True)
class Day:
    """The totals of one player's day."""

    meals: int
    points: int
    eaten: Nutrition


class Store:
    """The queries of the service over a bounded number of connections.

    Every method may raise `connections.Unavailable`, of which `Busy` is a kind; the caller
    answers 503.
    """

    def __init__(self, url: str, connections: int, waiting: int) -> None:
        self.pool = Connections(url, connections, waiting)
        # Of its own: while all others are busy, the database is still there.
        self._probing = Connections(url, 1, waiting)

    async def open(self) -> None:
        """Start connecting; it goes on in the background, so a dead database is no error."""
        await self.pool.open()
        await self._probing.open()

    async def close(self) -> None:
        """Close every connection."""
        await asyncio.gather(self.pool.close(), self._probing.close())

    async def _run(self, sql: str, *values: object) -> list[Any]:
        return await self.pool.run(sql, *values)

    async def _read(self, sql: str, *values: object) -> list[Any]:
        return await _repeated(self.pool, sql, *values)

    async def ping(self) -> None:
        """Ask the database for one row that needs the schema."""
        await _repeated(self._probing, "SELECT 1 FROM food LIMIT 1")

    async def sign_in(
        self, name: str, token_hash: bytes, lifetime: timedelta
    ) -> tuple[int, datetime]:
        """Make or find the player, keep the session, drop some that have expired.

        Returns:
            The player's id and when the session ends.
        """
        rows = await self._run(
            """
            WITH expired AS (
                DELETE FROM session WHERE token_hash IN (
                    SELECT token_hash FROM session WHERE expires_at < now()
                    LIMIT 10 FOR UPDATE SKIP LOCKED)
            ), signed_in AS (
                INSERT INTO player (name) VALUES ($1)
                ON CONFLICT (name) DO UPDATE SET last_seen_at = now() RETURNING id
            )
            INSERT INTO session (token_hash, player_id, expires_at)
            SELECT $2, id, now() + $3 FROM signed_in
            RETURNING player_id, expires_at
            """,
            name,
            token_hash,
            lifetime,
        )
        return rows[0]

    async def session(self, token_hash: bytes) -> tuple[int, str, datetime] | None:
        """The player behind a token and when the session ends."""
        rows = await self._read(
            """
            SELECT p.id, p.name, s.expires_at FROM session s JOIN player p ON p.id = s.player_id
            WHERE s.token_hash = $1 AND s.expires_at > now()
            """,
            token_hash,
        )
        return (rows[0][0], rows[0][1], rows[0][2]) if rows else None

    async def foods(self, words: list[str], limit: int) -> list[Food]:
        """Foods whose name holds every word; names that begin with the first come first."""
        patterns = [f"%{_escape(word)}%" for word in words]
        first = f"{_escape(words[0])}%" if words else "%"
        rows = await self._read(
            """
            SELECT id, name, category, kcal, protein_g, fat_g, carbs_g, fibre_g, sugar_g
            FROM food WHERE name ILIKE ALL ($1::text[])
            ORDER BY name ILIKE $2 DESC, name, id LIMIT $3
            """,
            patterns,
            first,
            limit,
        )
        return [Food(*row) for row in rows]

    async def food(self, food_id: int) -> Food | None:
        """One food."""
        rows = await self._read(
            """
            SELECT id, name, category, kcal, protein_g, fat_g, carbs_g, fibre_g, sugar_g
            FROM food WHERE id = $1
            """,
            food_id,
        )
        return Food(*rows[0]) if rows else None

    async def log_meal(
        self,
        player_id: int,
        food: Food,
        grams: int,
        eaten_on: date,
        eaten: Nutrition,
        points: int,
        key: str | None,
    ) -> Meal | None:
        """Log a meal and add it to the day's totals, in one statement.

        Returns:
            The meal, or None when this player has used the key before.
        """
        rows = await self._run(
            """
            WITH logged AS (
                INSERT INTO meal (player_id, food_id, grams, eaten_on, kcal, points,
                                  idempotency_key)
                VALUES ($1, $2, $3, $4, $5, $6, $7)
                ON CONFLICT (player_id, idempotency_key) DO NOTHING
                RETURNING id, player_id, eaten_on, kcal, points
            ), totals AS (
                INSERT INTO player_day AS day (player_id, day, meals, kcal, protein_g, fat_g,
                                               carbs_g, fibre_g, sugar_g, points)
                SELECT player_id, eaten_on, 1, kcal, $8, $9, $10, $11, $12, points FROM logged
                ON CONFLICT (player_id, day) DO UPDATE SET
                    meals = day.meals + 1,
                    kcal = day.kcal + excluded.kcal,
                    protein_g = day.protein_g + excluded.protein_g,
                    fat_g = day.fat_g + excluded.fat_g,
                    carbs_g = day.carbs_g + excluded.carbs_g,
                    fibre_g = day.fibre_g + excluded.fibre_g,
                    sugar_g = day.sugar_g + excluded.sugar_g,
                    points = day.points + excluded.points
            )
            SELECT id FROM logged
            """,
            *(player_id, food.id, grams, eaten_on, eaten.kcal, points, key),
            *astuple(eaten)[1:],
        )
        if not rows:
            return None
        return Meal(rows[0][0], food.id, food.name, grams, eaten_on, eaten.kcal, points)

    async def meal_by_key(self, player_id: int, key: str) -> Meal | None:
        """The meal that was logged with this key."""
        rows = await self._read(
            """
            SELECT m.id, m.food_id, f.name, m.grams, m.eaten_on, m.kcal, m.points
            FROM meal m JOIN food f ON f.id = m.food_id
            WHERE m.player_id = $1 AND m.idempotency_key = $2
            """,
            player_id,
            key,
        )
        return Meal(*rows[0]) if rows else None

    async def day(self, player_id: int, day: date) -> Day:
        """One day's totals; zeros when nothing was logged."""
        rows = await self._read(
            """
            SELECT meals, points, kcal, protein_g, fat_g, carbs_g, fibre_g, sugar_g
            FROM player_day WHERE player_id = $1 AND day = $2
            """,
            player_id,
            day,
        )
        meals, points, *totals = rows[0] if rows else (0, 0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
        # Sums of tenths drift in binary; what is shown is in tenths again.
        return Day(meals, points, Nutrition(*(round(total, 1) for total in totals)))

    async def days(self, player_id: int) -> list[date]:
        """The newest 1,000 days on which the player logged a meal."""
        rows = await self._read(
            """
            SELECT day FROM player_day WHERE player_id = $1 AND meals > 0
            ORDER BY day DESC LIMIT 1000
            """,
            player_id,
        )
        return [row[0] for row in rows]

    async def leaderboard(self, first: date, last: date, limit: int) -> list[Standing]:
        """Players by points between two days, both included; equal points share a rank."""
        rows = await self._read(
            """
            SELECT rank() OVER (ORDER BY t.points DESC), p.name, t.points
            FROM (SELECT player_id, sum(points)::bigint AS points FROM player_day
                  WHERE day BETWEEN $1 AND $2 AND meals > 0 GROUP BY player_id
                  ORDER BY 2 DESC, player_id LIMIT $3) t
            JOIN player p ON p.id = t.player_id
            ORDER BY t.points DESC, p.name
            """,
            first,
            last,
            limit,
        )
        return [Standing(*row) for row in rows]


async def _repeated(connections: Connections, sql: str, *values: object) -> list[Any]:
    """Run a statement that is safe to repeat; once more when its connection was lost."""
    try:
        return await connections.run(sql, *values)
    except Lost:
        return await connections.run(sql, *values)


def _escape(word: str) -> str:
    return word.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
