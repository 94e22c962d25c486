from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest

from two_services import quotes, web


def ask(app: Any, path: str) -> httpx.Response:
    async def send() -> httpx.Response:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await client.get(path)

    return asyncio.run(send())


def ask_web(path: str, other: httpx.AsyncBaseTransport, base: str) -> httpx.Response:
    web.app.state.quotes = base
    web.app.state.client = httpx.AsyncClient(transport=other)
    return ask(web.app, path)


def test_quotes_begin_again_after_the_last() -> None:
    assert ask(quotes.app, "/quote?number=1").json() == ask(quotes.app, "/quote?number=5").json()


@pytest.mark.parametrize("number", ["-1", "one", "%00", "1" * 10, "%D9%A3", ""])
def test_numbers_that_are_none(number: str) -> None:
    assert ask(quotes.app, f"/quote?number={number}").status_code == 400


def test_web_asks_quotes() -> None:
    answer = ask_web("/", httpx.ASGITransport(quotes.app), "http://quotes")
    assert answer.json()["quote"] in quotes.QUOTES


def test_the_address_may_have_a_path() -> None:
    asked: list[str] = []

    def other(request: httpx.Request) -> httpx.Response:
        asked.append(request.url.path)
        return httpx.Response(200, json={"quote": "x"})

    base = web.quotes_url({"QUOTES_URL": "http://edge/internal/quotes/"})
    assert ask_web("/", httpx.MockTransport(other), base).json()["quote"] == "x"
    assert asked == ["/internal/quotes/quote"]


@pytest.mark.parametrize("path", ["/", "/readyz"])
def test_without_quotes_web_is_alive_and_not_ready(path: str) -> None:
    gone = httpx.MockTransport(lambda request: httpx.Response(502))
    answer = ask_web(path, gone, "http://quotes")
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    assert ask(web.app, "/healthz").status_code == 200


def test_a_missing_address_is_named() -> None:
    with pytest.raises(SystemExit, match="QUOTES_URL"):
        web.quotes_url({})
