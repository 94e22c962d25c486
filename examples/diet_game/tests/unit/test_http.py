"""The application without a database: what it must still do, and what it must refuse."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest
from jsonschema import Draft202012Validator
from starlette.applications import Starlette

from diet_game.api import OPERATIONS
from diet_game.app import create_app
from diet_game.openapi import document
from diet_game.settings import Settings

TOKEN = {"authorization": "Bearer " + "a" * 43}


def make(**settings: Any) -> Starlette:
    return create_app(Settings(database_url="postgresql://nobody@/none?host=/nowhere", **settings))


def ask(app: Starlette, method: str, path: str, **request: Any) -> httpx.Response:
    async def send() -> httpx.Response:
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await client.request(method, path, **request)

    return asyncio.run(send())


@pytest.fixture(scope="module")
def app() -> Starlette:
    return make()


def test_alive_and_not_ready_without_a_database(app: Starlette) -> None:
    assert ask(app, "GET", "/healthz").json() == {"status": "ok"}
    ready = ask(app, "GET", "/readyz")
    assert ready.status_code == 503
    assert ready.json()["reason"].startswith("database: ")


def test_not_ready_while_draining_and_clients_are_asked_off() -> None:
    app = make()
    app.state.traffic.draining = True
    ready = ask(app, "GET", "/readyz")
    assert (ready.status_code, ready.json()["reason"]) == (503, "draining")
    version = ask(app, "GET", "/version")
    assert (version.status_code, version.headers["connection"]) == (200, "close")


def test_version_says_what_is_running() -> None:
    found = ask(make(version="1.2.3", digest="abc"), "GET", "/version").json()
    assert (found["name"], found["version"], found["digest"]) == ("diet-game", "1.2.3", "abc")


def test_too_much_at_once_is_refused_and_probes_are_not() -> None:
    app = make(max_in_flight=3)
    app.state.traffic.in_flight = 3
    refused = ask(app, "GET", "/api/leaderboard")
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
    assert ask(app, "GET", "/healthz").status_code == 200
    assert app.state.traffic.in_flight == 3
    metrics = ask(app, "GET", "/metrics").text
    assert 'http_requests_shed_total{reason="in_flight"} 1.0' in metrics
    assert 'http_requests_total{method="GET",route="/api/leaderboard",status="503"} 1.0' in metrics


def test_no_database_is_a_503_that_says_when_to_try_again(app: Starlette) -> None:
    for path in ("/api/foods", "/api/leaderboard"):
        answer = ask(app, "GET", path)
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    assert ask(app, "GET", "/api/streak", headers=TOKEN).status_code == 503


BAD: list[tuple[int, str, str, dict[str, Any]]] = [
    (404, "GET", "/api/nothing", {}),
    (404, "GET", "/%00", {}),
    (405, "DELETE", "/api/meals", {}),
    (400, "GET", "/api/foods?q=%00", {}),
    (400, "GET", "/api/foods?q=%ff", {}),
    (400, "GET", "/api/foods?q=%ed%a0%80", {}),
    (400, "GET", "/api/foods?q=" + "a" * 65, {}),
    (400, "GET", "/api/foods?q=a&q=b", {}),
    (400, "GET", "/api/foods?" + "q=a&" * 20, {}),
    (400, "GET", "/api/foods?page=2", {}),
    (400, "GET", "/api/foods?limit=0", {}),
    (400, "GET", "/api/foods?limit=51", {}),
    (400, "GET", "/api/foods?limit=" + "9" * 5000, {}),
    (400, "GET", "/api/foods?limit=1.0", {}),
    (400, "GET", "/api/foods?limit=%D9%A3", {}),
    (400, "GET", "/api/leaderboard?limit=101", {}),
    (401, "GET", "/api/summary", {}),
    (401, "GET", "/api/summary", {"headers": {"authorization": "Bearer short"}}),
    (401, "GET", "/api/summary", {"headers": {"authorization": "Basic " + "a" * 43}}),
    (401, "POST", "/api/meals", {"json": {"food_id": 10, "grams": 1}}),
    (400, "POST", "/api/sign-in", {"content": b""}),
    (400, "POST", "/api/sign-in", {"content": b"{"}),
    (400, "POST", "/api/sign-in", {"content": b"\xff\xfe"}),
    (400, "POST", "/api/sign-in", {"content": b'{"player":"\xed\xa0\x80"}'}),
    (400, "POST", "/api/sign-in", {"content": b'{"player":"\\ud800"}'}),
    (422, "POST", "/api/sign-in", {"content": b'{"player":"a\\u0000b"}'}),
    (422, "POST", "/api/sign-in", {"content": b"[" * 10_000}),
    (422, "POST", "/api/sign-in", {"json": {"player": "ann\n"}}),
    (422, "POST", "/api/sign-in", {"json": {"player": "a"}}),
    (422, "POST", "/api/sign-in", {"json": {"player": "a" * 33}}),
    (422, "POST", "/api/sign-in", {"json": {"player": 7}}),
    (422, "POST", "/api/sign-in", {"json": {"player": "ann", "admin": True}}),
    (422, "POST", "/api/sign-in", {"content": b"null"}),
    (413, "POST", "/api/sign-in", {"content": b'"' + b"a" * 20_000 + b'"'}),
    (415, "POST", "/api/sign-in", {"content": b"a=b", "headers": {"content-type": "text/plain"}}),
]


@pytest.mark.parametrize(("status", "method", "path", "request_"), BAD)
def test_bad_requests_are_refused(
    app: Starlette, status: int, method: str, path: str, request_: dict[str, Any]
) -> None:
    answer = ask(app, method, path, **request_)
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["status"] == status
    assert answer.json()["detail"]
    # Everything the application refuses, its document must list.
    described = document(OPERATIONS)
    operation = described["paths"].get(path.partition("?")[0], {}).get(method.lower())
    if operation is not None:
        assert str(status) in operation["responses"]


def test_the_document_names_every_type_it_uses() -> None:
    described = document(OPERATIONS)
    for schema in described["components"]["schemas"].values():
        Draft202012Validator.check_schema(schema)
    assert described["components"]["schemas"]["NewMeal"]["properties"]["grams"] == {
        "type": "integer",
        "minimum": 1,
        "maximum": 5000,
    }
    names = [o["operationId"] for path in described["paths"].values() for o in path.values()]
    assert len(names) == len(set(names)) == len(OPERATIONS)


def test_the_page_loads_nothing_from_elsewhere(app: Starlette) -> None:
    page = ask(app, "GET", "/")
    assert page.headers["content-type"].startswith("text/html")
    assert "default-src 'self'" in page.headers["content-security-policy"]
    assert "http://" not in page.text
    assert "https://" not in page.text
