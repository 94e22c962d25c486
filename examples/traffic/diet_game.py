"""Users of the Diet Game: they sign in, look for foods, log meals and watch the leaderboard.

Run by Locust in a process of its own. ``PUBLIC_HOST`` is the environment's host name; requests go
to ``--host`` with that name in their Host header.
"""

from __future__ import annotations

import os
import random
import uuid

from locust import FastHttpUser, between, task

WORDS = ("oat", "app", "rice", "bean", "milk", "egg", "tea", "nut")


class Player(FastHttpUser):
    """One player at a phone."""

    wait_time = between(0.2, 0.8)
    connection_timeout = 10.0
    network_timeout = 10.0

    def on_start(self) -> None:
        self.headers = {"Host": os.environ["PUBLIC_HOST"]}
        self.foods: list[int] = []
        self._sign_in()

    def _sign_in(self) -> None:
        name = f"player-{random.randrange(500)}"
        answer = self.client.post("/api/sign-in", json={"player": name}, headers=self.headers)
        if answer.status_code in (200, 201):
            self.headers["Authorization"] = f"Bearer {answer.json()['token']}"

    @task(5)
    def search(self) -> None:
        answer = self.client.get(
            f"/api/foods?q={random.choice(WORDS)}", name="/api/foods", headers=self.headers
        )
        if answer.status_code == 200:
            self.foods = [food["id"] for food in answer.json()["foods"]]

    @task(3)
    def log_a_meal(self) -> None:
        if not self.foods:
            return
        self.client.post(
            "/api/meals",
            json={"food_id": random.choice(self.foods), "grams": random.randrange(20, 400)},
            headers={**self.headers, "Idempotency-Key": uuid.uuid4().hex},
        )

    @task(2)
    def summary(self) -> None:
        self.client.get("/api/summary", headers=self.headers)

    @task(1)
    def streak(self) -> None:
        self.client.get("/api/streak", headers=self.headers)

    @task(1)
    def leaderboard(self) -> None:
        self.client.get("/api/leaderboard", headers=self.headers)
