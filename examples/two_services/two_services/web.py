"""The public service: asks the other one, at QUOTES_URL, for the quotation of the day."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import httpx
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

DOCUMENT: dict[str, Any] = {
    "openapi": "3.1.0",
    "info": {"title": "Two services", "version": "1.0.0"},
    "paths": {
        path: {
            "get": {
                "operationId": name,
                "responses": {
                    status: {
                        "description": description,
                        "content": {"application/json": {"schema": {"type": "object"}}},
                    }
                    for status, description in answers.items()
                },
            }
        }
        for path, name, answers in (
            ("/", "index", {"200": "The quotation.", "503": "Quotes are out of reach."}),
            ("/healthz", "healthz", {"200": "Alive."}),
            ("/readyz", "readyz", {"200": "Ready.", "503": "Quotes are out of reach."}),
        )
    },
}


def quotes_url(env: Mapping[str, str] = os.environ) -> str:
    """The address of the other service, which may have a path of its own, without a last slash."""
    url = env.get("QUOTES_URL", "")
    if not url.startswith(("http://", "https://")):
        raise SystemExit("QUOTES_URL: set it to the address of the quotes service")
    return url.rstrip("/")


async def ask(request: Request, path: str) -> JSONResponse | dict[str, Any]:
    """The other service's answer, or the 503 to give when there is none."""
    try:
        answer = await request.app.state.client.get(request.app.state.quotes + path)
        answer.raise_for_status()
        found: dict[str, Any] = answer.json()
    except (httpx.HTTPError, ValueError) as error:
        detail = f"quotes: {type(error).__name__}"
        return JSONResponse({"detail": detail}, 503, {"retry-after": "1"})
    return found


async def index(request: Request) -> JSONResponse:
    """The quotation of the day."""
    day = datetime.now(UTC).date()
    found = await ask(request, f"/quote?number={day.toordinal()}")
    if isinstance(found, JSONResponse):
        return found
    return JSONResponse({"day": day.isoformat(), "quote": found["quote"]})


async def readyz(request: Request) -> JSONResponse:
    """Ready when the other service answers."""
    found = await ask(request, "/healthz")
    return found if isinstance(found, JSONResponse) else JSONResponse({"status": "ready"})


async def healthz(request: Request) -> JSONResponse:
    """Alive."""
    return JSONResponse({"status": "ok"})


async def openapi(request: Request) -> JSONResponse:
    """The OpenAPI document."""
    return JSONResponse(DOCUMENT)


@asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[None]:
    """Find the other service and keep connections to it."""
    app.state.quotes = quotes_url()
    async with httpx.AsyncClient(timeout=2.0) as client:
        app.state.client = client
        yield


app = Starlette(
    routes=[
        Route("/", index),
        Route("/readyz", readyz),
        Route("/healthz", healthz),
        Route("/openapi.json", openapi),
    ],
    lifespan=lifespan,
)
