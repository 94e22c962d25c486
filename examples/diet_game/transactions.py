"""What a drill's clients do, for `slipway drill`: log a meal, and see that it is there."""

from __future__ import annotations

import random

LEDGER = "SELECT idempotency_key FROM meal WHERE idempotency_key LIKE 'drill-%'"


def begin(http) -> None:
    """Sign in; who was signed in on a side that is lost does so again."""
    name = f"drill-{random.randrange(20)}"
    answer = http.post("/api/sign-in", json={"player": name}).raise_for_status()
    http.headers["Authorization"] = f"Bearer {answer.json()['token']}"
    foods = http.get("/api/foods?limit=1").raise_for_status().json()["foods"]
    http.meal = {"food_id": foods[0]["id"], "grams": 100}


def write(http, key: str) -> None:
    """Returns only when the meal is acknowledged."""
    log(http, key).raise_for_status()


def read(http, key: str) -> bool:
    """The same key gives the same meal, and no second one."""
    return log(http, key).status_code == 200


def log(http, key: str):
    return http.post("/api/meals", json=http.meal, headers={"Idempotency-Key": key})
