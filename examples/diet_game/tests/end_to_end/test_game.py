"""A player's day against a running candidate at BASE_URL."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime

import httpx
import pytest
from jsonschema import Draft202012Validator


@pytest.fixture(scope="module")
def client() -> Iterator[httpx.Client]:
    base = os.environ.get("BASE_URL")
    if not base:
        pytest.fail("set BASE_URL to the address of a running candidate", pytrace=False)
    with httpx.Client(base_url=base, timeout=10.0) as client:
        yield client


@pytest.fixture
def player(client: httpx.Client) -> dict[str, str]:
    name = f"e2e-{uuid.uuid4().hex[:16]}"
    answer = client.post("/api/sign-in", json={"player": name})
    assert answer.status_code == 201, answer.text
    return {"authorization": f"Bearer {answer.json()['token']}"}


def test_it_is_up_and_says_what_it_is(client: httpx.Client) -> None:
    assert client.get("/healthz").status_code == 200
    assert client.get("/readyz").json() == {"status": "ready"}
    version = client.get("/version").json()
    assert version["name"] == "diet-game"
    assert version["version"]
    assert "Diet Game" in client.get("/").text


def test_a_day_of_play(client: httpx.Client, player: dict[str, str]) -> None:
    found = client.get("/api/foods", params={"q": "oats boiled"}).json()["foods"]
    assert [food["name"] for food in found] == ["rolled oats, boiled"]
    meal = {"food_id": found[0]["id"], "grams": 250}
    once = {**player, "idempotency-key": uuid.uuid4().hex}
    first = client.post("/api/meals", json=meal, headers=once)
    again = client.post("/api/meals", json=meal, headers=once)
    assert (first.status_code, again.status_code) == (201, 200)
    assert first.json() == again.json()
    assert client.post("/api/meals", json=meal, headers=player).status_code == 201

    day = first.json()["eaten_on"]
    summary = client.get("/api/summary", params={"date": day}, headers=player).json()
    assert summary["meals"] == 2
    assert summary["kcal"] == pytest.approx(2 * first.json()["kcal"], abs=0.2)
    assert summary["points"] == 2 * first.json()["points"]
    streak = client.get("/api/streak", headers=player).json()
    assert (streak["current_days"], streak["longest_days"]) == (1, 1)


def test_strangers_are_refused(client: httpx.Client) -> None:
    for path in ("/api/summary", "/api/streak"):
        assert client.get(path).status_code == 401
    assert client.post("/api/meals", json={"food_id": 10, "grams": 1}).status_code == 401


def test_answers_are_what_the_document_says(client: httpx.Client, player: dict[str, str]) -> None:
    document = client.get("/openapi.json").json()
    for path in ("/api/foods", "/api/leaderboard", "/api/streak", "/api/summary", "/version"):
        answer = client.get(path, headers=player)
        assert answer.status_code == 200, answer.text
        described = document["paths"][path]["get"]["responses"]["200"]["content"]
        schema = described["application/json"]["schema"]
        Draft202012Validator({**schema, "components": document["components"]}).validate(
            answer.json()
        )


def test_metrics_count_requests(client: httpx.Client) -> None:
    client.get("/version")
    text = client.get("/metrics").text
    assert 'http_requests_total{method="GET",route="/version",status="200"}' in text


def test_today_is_utc(client: httpx.Client, player: dict[str, str]) -> None:
    before = datetime.now(UTC).date().isoformat()
    shown = client.get("/api/summary", headers=player).json()["date"]
    assert before <= shown <= datetime.now(UTC).date().isoformat()
