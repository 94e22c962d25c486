"""The application: routes, wiring and lifespan."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from diet_game.api import OPERATIONS, Api
from diet_game.connections import Busy, Unavailable
from diet_game.http import JSON, Guard, Problem, Traffic
from diet_game.metrics import Metrics
from diet_game.openapi import document
from diet_game.settings import Settings
from diet_game.store import Store


def create_app(settings: Settings) -> Starlette:
    """Wire one process's application; it touches nothing outside until its lifespan starts."""
    metrics = Metrics(settings.version)
    traffic = Traffic()
    store = Store(settings.database_url, settings.pool_connections, settings.pool_waiting)
    api = Api(settings, store, traffic, metrics)
    described = msgspec.json.encode(document(OPERATIONS))

    async def openapi(request: Request) -> Response:
        return Response(described, media_type=JSON)

    async def on_problem(request: Request, error: Exception) -> Response:
        return error.response() if isinstance(error, Problem) else on_error(request, error)

    async def on_http_exception(request: Request, error: Exception) -> Response:
        if not isinstance(error, HTTPException):
            return on_error(request, error)
        return Problem(error.status_code, error.detail, dict(error.headers or {})).response()

    async def on_database(request: Request, error: Exception) -> Response:
        metrics.shed.labels("pool" if isinstance(error, Busy) else "database").inc()
        return Problem(503, "The database is busy or out of reach").response()

    def on_error(request: Request, error: Exception) -> Response:
        return Problem(500, "Something broke here; it is logged").response()

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        await store.open()
        api.flags.open()
        try:
            yield
        finally:
            api.flags.close()
            await store.close()
            await api.shared.close()

    routes = [Route(o.path, getattr(api, o.name), methods=[o.method]) for o in OPERATIONS]
    routes += [Route("/openapi.json", openapi), Route("/", api.index)]
    paths = frozenset(route.path for route in routes)
    app = Starlette(
        routes=routes,
        middleware=[Middleware(Guard, traffic, metrics, settings.max_in_flight, paths)],
        exception_handlers={
            Problem: on_problem,
            HTTPException: on_http_exception,
            Unavailable: on_database,
            500: on_error,
        },
        lifespan=lifespan,
    )
    app.state.traffic = traffic
    app.state.api = api
    return app
