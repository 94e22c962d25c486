"""PostgreSQL: the only truth. One statement a request wherever one will do."""

from __future__ import annotations

from dataclasses import astuple, dataclass
from datetime import date, datetime, timedelta
from typing import Any

from psycopg import OperationalError
from psycopg_pool import AsyncConnectionPool, PoolClosed, PoolTimeout, TooManyRequests

from diet_game.models import Food, Meal, Standing
from diet_game.rules import Nutrition

Row = tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Day:
    """The totals of one player's day."""

    meals: int
    points: int
    eaten: Nutrition


class Store:
    """The queries of the service over a bounded pool.

    Every method may raise `psycopg.OperationalError`, of which the pool's `PoolTimeout` and
    `TooManyRequests` are kinds; the caller answers 503.
    """

    def __init__(self, url: str, connections: int, waiting: int) -> None:
        self.pool = AsyncConnectionPool(
            url,
            min_size=connections,  # no connecting in the middle of a rush
            max_size=connections,
            max_waiting=waiting,
            timeout=1.0,
            reconnect_timeout=2.0,
            open=False,
            kwargs={
                "autocommit": True,
                "connect_timeout": 3,
                "application_name": "diet-game",
                "options": "-c statement_timeout=3000 -c timezone=UTC",
            },
        )

    async def open(self) -> None:
        """Start the pool; connections come in the background, so a dead database is no error."""
        await self.pool.open(wait=False)

    async def close(self) -> None:
        """Close every connection."""
        await self.pool.close(timeout=2.0)

    async def _read(self, sql: str, *values: object) -> list[Row]:
        """Run a statement that is safe to repeat; once more when its connection was stale."""
        try:
            return await self._run(sql, *values)
        except OperationalError as error:
            lost = error.sqlstate is None or error.sqlstate.startswith("57P")
            if not lost or isinstance(error, PoolClosed | PoolTimeout | TooManyRequests):
                raise
            await self.pool.check()
            return await self._run(sql, *values)

    async def _run(self, sql: str, *values: object) -> list[Row]:
        async with self.pool.connection() as connection:
            cursor = await connection.execute(sql, values)
            return await cursor.fetchall()

    async def ping(self) -> None:
        """Ask the database for one row that needs the schema."""
        await self._read("SELECT 1 FROM food LIMIT 1")

    async def sign_in(self, name: str, token_hash: bytes, lifetime: timedelta) -> Row:
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
                INSERT INTO player (name) VALUES (%s)
                ON CONFLICT (name) DO UPDATE SET last_seen_at = now() RETURNING id
            )
            INSERT INTO session (token_hash, player_id, expires_at)
            SELECT %s, id, now() + %s FROM signed_in
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
            WHERE s.token_hash = %s AND s.expires_at > now()
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
            FROM food WHERE name ILIKE ALL (%s::text[])
            ORDER BY name ILIKE %s DESC, name, id LIMIT %s
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
            FROM food WHERE id = %s
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
                VALUES (%s, %s, %s, %s, %s, %s, %s)
                ON CONFLICT (player_id, idempotency_key) DO NOTHING
                RETURNING id, player_id, eaten_on, kcal, points
            ), totals AS (
                INSERT INTO player_day AS day (player_id, day, meals, kcal, protein_g, fat_g,
                                               carbs_g, fibre_g, sugar_g, points)
                SELECT player_id, eaten_on, 1, kcal, %s, %s, %s, %s, %s, points FROM logged
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
            WHERE m.player_id = %s AND m.idempotency_key = %s
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
            FROM player_day WHERE player_id = %s AND day = %s
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
            SELECT day FROM player_day WHERE player_id = %s AND meals > 0
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
                  WHERE day BETWEEN %s AND %s AND meals > 0 GROUP BY player_id
                  ORDER BY 2 DESC, player_id LIMIT %s) t
            JOIN player p ON p.id = t.player_id
            ORDER BY t.points DESC, p.name
            """,
            first,
            last,
            limit,
        )
        return [Standing(*row) for row in rows]


def _escape(word: str) -> str:
    return word.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
