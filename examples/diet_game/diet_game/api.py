"""The endpoints: read the request, ask the store or a cache, apply a rule, answer."""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from importlib.resources import files
from typing import Any, TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from diet_game import models, rules
from diet_game.cache import SharedCache, TtlCache
from diet_game.connections import Unavailable
from diet_game.flags import DOUBLE_FIBRE, ON, Flags
from diet_game.http import (
    JSON,
    Problem,
    Traffic,
    as_date,
    as_integer,
    as_json,
    idempotency_key,
    read_body,
    read_query,
)
from diet_game.metrics import CONTENT_TYPE, Metrics
from diet_game.openapi import BODY_PROBLEMS, Json, Operation, parameter
from diet_game.settings import Settings
from diet_game.store import Store

SESSION_LIFETIME = timedelta(days=7)
SHARED_SESSION_SECONDS = 3600
LEADERBOARD_SECONDS = 2

_TOKEN = re.compile(r"[A-Za-z0-9_-]{43}")
_PLAYER = re.compile(models.PLAYER_PATTERN)
_sign_in = msgspec.json.Decoder(models.SignIn)
_new_meal = msgspec.json.Decoder(models.NewMeal)
_session = msgspec.json.Decoder(tuple[int, str, datetime])
_encode = msgspec.json.Encoder().encode


OPERATIONS: list[Operation] = []
Handler = TypeVar("Handler", bound=Callable[..., Awaitable[Response]])

_TEXT = r"^[^\u0000-\u001f\u007f]*$"
_Q = parameter("q", type="string", maxLength=64, pattern=_TEXT)
_KEY = parameter(
    "Idempotency-Key", "header", type="string", minLength=1, maxLength=128, pattern="^[!-~]+$"
)


def route(method: str, path: str, answers: dict[int, type], **more: Any) -> Callable[..., Handler]:
    """Serve a path with a method of `Api`; its docstring is the summary in the document."""

    def add(handler: Handler) -> Handler:
        summary = (handler.__doc__ or "").strip()
        OPERATIONS.append(Operation(handler.__name__, summary, method, path, answers, **more))
        return handler

    return add


def _limit(default: int, most: int) -> Json:
    return parameter("limit", type="integer", minimum=1, maximum=most, default=default)


@dataclass(frozen=True, slots=True)
class Player:
    """Who sent a request."""

    id: int
    name: str
    until: datetime


class Api:
    """Handlers and what they share."""

    def __init__(self, settings: Settings, store: Store, traffic: Traffic, metrics: Metrics):
        self.settings = settings
        self.store = store
        self.traffic = traffic
        self.metrics = metrics
        # The 1 is the form of what is kept: another form needs another number.
        prefix = f"{settings.application}:{settings.environment}:1:"
        self.shared = SharedCache(settings.redis_url, prefix, metrics)
        # A session ends when it says so and not before: what is kept cannot be out of date.
        self.players: TtlCache[bytes, Player] = TtlCache(20_000, 300.0)
        self.foods: TtlCache[tuple[str, int], bytes] = TtlCache(2_000, 30.0)
        self.food: TtlCache[int, models.Food] = TtlCache(2_000, 30.0)
        self.boards: TtlCache[int, bytes] = TtlCache(models.BOARD_LIMIT, 1.0)
        self.flags = Flags(settings.flags_file)
        self.page = files("diet_game").joinpath("page.html").read_text("utf-8")

    # --- players

    @route(
        "POST",
        "/api/sign-in",
        {201: models.Session},
        body=models.SignIn,
        problems=BODY_PROBLEMS,
    )
    async def sign_in(self, request: Request) -> Response:
        """Sign in, as a new player or a known one."""
        body = await read_body(request, _sign_in)
        if not _PLAYER.fullmatch(body.player):  # `$` also matches before a last newline
            raise Problem(422, "player must be letters, digits, dots, dashes and underscores")
        token = secrets.token_urlsafe(models.TOKEN_BYTES)
        hashed = _hash(token)
        player_id, until = await self.store.sign_in(body.player, hashed, SESSION_LIFETIME)
        await self._share(hashed, Player(player_id, body.player, until))
        return as_json(models.Session(body.player, token, until), 201)

    async def player(self, request: Request) -> Player:
        """The signed-in player.

        Raises:
            Problem: 401.
        """
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and _TOKEN.fullmatch(token):
            hashed = _hash(token)
            found = await self.players.get_or_load(hashed, lambda: self._find(hashed))
            if found is not None and found.until > datetime.now(UTC):
                return found
        raise Problem(401, "Send a token from POST /api/sign-in as Authorization: Bearer TOKEN")

    async def _find(self, hashed: bytes) -> Player | None:
        shared = await self.shared.get("session", hashed.hex())
        if shared is not None:
            try:
                return Player(*_session.decode(shared))
            except msgspec.MsgspecError:
                pass  # not ours to read: PostgreSQL knows
        row = await self.store.session(hashed)
        if row is None:
            return None
        player = Player(*row)
        await self._share(hashed, player)
        return player

    async def _share(self, hashed: bytes, player: Player) -> None:
        value = _encode((player.id, player.name, player.until))
        await self.shared.put("session", hashed.hex(), value, SHARED_SESSION_SECONDS)

    def _flag(self, request: Request, flag: str, player: Player) -> str:
        """The player's variant; the guard counts the request under it when it is answered."""
        variant = self.flags.variant(flag, player.id)
        request.scope.setdefault("flags", {})[flag] = variant
        return variant

    # --- foods and meals

    @route(
        "GET",
        "/api/foods",
        {200: models.Foods},
        parameters=(_Q, _limit(20, models.SEARCH_LIMIT)),
    )
    async def search_foods(self, request: Request) -> Response:
        """Search foods."""
        query = read_query(request, "q", "limit")
        limit = as_integer("limit", query.get("limit", "20"), 1, models.SEARCH_LIMIT)
        text = query.get("q", "")
        if len(text) > 64:
            raise Problem(400, "q is at most 64 characters")
        words = text.lower().split()

        async def load() -> bytes:
            return _encode(models.Foods(await self.store.foods(words, limit)))

        found = await self.foods.get_or_load((" ".join(words), limit), load)
        return Response(found, media_type=JSON)

    @route(
        "POST",
        "/api/meals",
        {201: models.Meal, 200: models.Meal},
        body=models.NewMeal,
        parameters=(_KEY,),
        problems=(*BODY_PROBLEMS, 404, 409),
        signed_in=True,
    )
    async def log_meal(self, request: Request) -> Response:
        """Log a meal; 200 repeats the answer to the same Idempotency-Key."""
        player = await self.player(request)
        key = idempotency_key(request)
        body = await read_body(request, _new_meal)
        food_id, grams, today = int(body.food_id), int(body.grams), _today()
        eaten_on = body.eaten_on if isinstance(body.eaten_on, date) else today
        if rules.too_far_ahead(eaten_on, today):
            raise Problem(409, f"{eaten_on} has not come yet; today is {today} in UTC")
        food = await self.food.get_or_load(food_id, lambda: self.store.food(food_id))
        if food is None:
            raise Problem(404, f"There is no food {food_id}; GET /api/foods lists them")
        eaten = _per_100_g(food).of(grams)
        double_fibre = self._flag(request, DOUBLE_FIBRE, player) == ON
        meal = await self.store.log_meal(
            player.id, food, grams, eaten_on, eaten,
            rules.points(eaten, double_fibre=double_fibre), key,
        )  # fmt: skip
        if meal is not None:
            self.metrics.meals.inc()
            return as_json(meal, 201)
        before = await self.store.meal_by_key(player.id, key) if key else None
        same = before is not None and (before.food_id, before.grams) == (food.id, grams)
        if before is None or not same or (body.eaten_on and before.eaten_on != eaten_on):
            raise Problem(409, "This Idempotency-Key was used for another meal")
        return as_json(before)

    @route(
        "GET",
        "/api/summary",
        {200: models.Summary},
        parameters=(parameter("date", type="string", format="date"),),
        signed_in=True,
    )
    async def summary(self, request: Request) -> Response:
        """One day's totals; today (UTC) when no date is given."""
        player = await self.player(request)
        query = read_query(request, "date")
        day = as_date("date", query["date"]) if "date" in query else _today()
        found = await self.store.day(player.id, day)
        return as_json(
            models.Summary(
                player=player.name,
                date=day,
                meals=found.meals,
                kcal=found.eaten.kcal,
                goal_kcal=rules.DAILY_GOAL_KCAL,
                protein_g=found.eaten.protein_g,
                fat_g=found.eaten.fat_g,
                carbs_g=found.eaten.carbs_g,
                fibre_g=found.eaten.fibre_g,
                sugar_g=found.eaten.sugar_g,
                points=found.points,
            )
        )

    @route("GET", "/api/streak", {200: models.Streak}, signed_in=True)
    async def streak(self, request: Request) -> Response:
        """Days in a row."""
        player = await self.player(request)
        read_query(request)
        current, longest = rules.streaks(await self.store.days(player.id), _today())
        return as_json(models.Streak(player.name, current, longest))

    @route(
        "GET",
        "/api/leaderboard",
        {200: models.Leaderboard},
        parameters=(_limit(10, models.BOARD_LIMIT),),
    )
    async def leaderboard(self, request: Request) -> Response:
        """The most points of the week."""
        query = read_query(request, "limit")
        limit = as_integer("limit", query.get("limit", "10"), 1, models.BOARD_LIMIT)
        board = await self.boards.get_or_load(limit, lambda: self._board(limit))
        return Response(board, media_type=JSON)

    async def _board(self, limit: int) -> bytes:
        shared = await self.shared.get("leaderboard", str(limit))
        if shared is not None:
            return shared
        today = _today()
        first = today - timedelta(days=rules.LEADERBOARD_DAYS - 1)
        standings = await self.store.leaderboard(first, today, limit)
        now = datetime.now(UTC).replace(microsecond=0)
        board = _encode(models.Leaderboard(rules.LEADERBOARD_DAYS, now, standings))
        await self.shared.put("leaderboard", str(limit), board, LEADERBOARD_SECONDS)
        return board

    # --- for the platform

    @route("GET", "/healthz", {200: models.Status}, problems=())
    async def healthz(self, request: Request) -> Response:
        """Alive."""
        return as_json(models.Status("ok"))

    @route("GET", "/readyz", {200: models.Status, 503: models.Status}, problems=())
    async def readyz(self, request: Request) -> Response:
        """Ready for traffic."""
        if self.traffic.draining:
            return as_json(models.Status("not ready", "draining"), 503)
        try:
            await self.store.ping()
        except Unavailable as error:
            return as_json(models.Status("not ready", f"database: {error}"), 503)
        return as_json(models.Status("ready"))

    @route("GET", "/version", {200: models.Version}, problems=())
    async def version(self, request: Request) -> Response:
        """What is running."""
        s = self.settings
        return as_json(models.Version(s.application, s.version, s.digest, s.environment, s.service))

    @route("GET", "/metrics", {200: str}, problems=(), media_type="text/plain")
    async def metrics_text(self, request: Request) -> Response:
        """Prometheus metrics."""
        self.metrics.in_flight.set(self.traffic.in_flight)
        for state, number in self.store.pool.numbers().items():
            self.metrics.pool.labels(state).set(number)
        return Response(self.metrics.render(), media_type=CONTENT_TYPE)

    async def index(self, request: Request) -> Response:
        """The page."""
        policy = "default-src 'self'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
        return HTMLResponse(self.page, headers={"content-security-policy": policy})


def _today() -> date:
    return datetime.now(UTC).date()


def _hash(token: str) -> bytes:
    # The token is 256 random bits, so one round of a plain hash is enough.
    return hashlib.sha256(token.encode()).digest()


def _per_100_g(food: models.Food) -> rules.Nutrition:
    return rules.Nutrition(
        food.kcal, food.protein_g, food.fat_g, food.carbs_g, food.fibre_g, food.sugar_g
    )
