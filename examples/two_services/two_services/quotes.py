"""The internal service: one quotation for any number."""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

QUOTES = (
    "A smooth sea never made a skilled sailor.",
    "One hand for yourself and one for the ship.",
    "Any port in a storm.",
    "Worse things happen at sea.",
)


async def quote(request: Request) -> JSONResponse:
    """The quotation; numbers past the last begin again."""
    number = request.query_params.get("number", "0")
    if not (number.isascii() and number.isdigit() and len(number) <= 9):
        return JSONResponse({"detail": "number must be a whole number"}, 400)
    return JSONResponse({"quote": QUOTES[int(number) % len(QUOTES)]})


async def healthz(request: Request) -> JSONResponse:
    """Alive."""
    return JSONResponse({"status": "ok"})


app = Starlette(routes=[Route("/quote", quote), Route("/healthz", healthz)])
