"""What players do, for `slipway load`: they sign in, look for foods, log meals, watch their score."""

from __future__ import annotations

import random
import uuid

from load.visitor import Visitor, task

WORDS = ("oat", "app", "rice", "bean", "milk", "egg", "tea", "nut")


class Player(Visitor):
    """One player at a phone."""

    def on_start(self) -> None:
        self.foods: list[int] = []
        self.sign_in()

    def sign_in(self) -> None:
        name = f"player-{random.randrange(500)}"
        answer = self.client.post("/api/sign-in", json={"player": name})
        if answer.ok:
            self.client.headers["Authorization"] = f"Bearer {answer.json()['token']}"

    @task(5)
    def search(self) -> None:
        answer = self.client.get(f"/api/foods?q={random.choice(WORDS)}", name="/api/foods")
        if answer.ok:
            self.foods = [food["id"] for food in answer.json()["foods"]]

    @task(3)
    def log_a_meal(self) -> None:
        if not self.foods:
            return self.search()
        if "Authorization" not in self.client.headers:
            return self.sign_in()
        self.client.post(
            "/api/meals",
            json={"food_id": random.choice(self.foods), "grams": random.randrange(20, 400)},
            headers={"Idempotency-Key": uuid.uuid4().hex},
        )

    @task(2)
    def summary(self) -> None:
        self.signed_in("/api/summary")

    @task(1)
    def streak(self) -> None:
        self.signed_in("/api/streak")

    def signed_in(self, path: str) -> None:
        """Who was turned away at the door tries that again first."""
        if "Authorization" not in self.client.headers:
            self.sign_in()
        else:
            self.client.get(path)

    @task(1)
    def leaderboard(self) -> None:
        self.client.get("/api/leaderboard")
