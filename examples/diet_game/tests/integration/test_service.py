from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import psycopg
import pytest
from conftest import Service, started, until

MEAL = {"food_id": 901, "grams": 200}  # lentil, boiled
TODAY = datetime.now(UTC).date()


def test_a_key_logs_one_meal_however_often_and_at_once(service: Service) -> None:
    headers = {**service.sign_in(), "idempotency-key": "breakfast"}
    with ThreadPoolExecutor(8) as pool:
        answers = list(
            pool.map(
                lambda _: service.client.post("/api/meals", json=MEAL, headers=headers), range(16)
            )
        )
    assert sorted(answer.status_code for answer in answers) == [200] * 15 + [201]
    assert len({answer.text for answer in answers}) == 1
    assert service.client.get("/api/summary", headers=headers).json()["meals"] == 1
    other = service.client.post("/api/meals", json={**MEAL, "grams": 201}, headers=headers)
    assert other.status_code == 409


def test_a_key_belongs_to_its_player(service: Service) -> None:
    for _ in range(2):
        headers = {**service.sign_in(), "idempotency-key": "same"}
        assert service.client.post("/api/meals", json=MEAL, headers=headers).status_code == 201


def test_totals_are_the_sum_of_meals_logged_at_once(
    service: Service, sql: psycopg.Connection
) -> None:
    headers = service.sign_in("summed")
    with ThreadPoolExecutor(8) as pool:
        answers = list(
            pool.map(
                lambda n: service.client.post(
                    "/api/meals", json={**MEAL, "grams": n + 1}, headers=headers
                ),
                range(40),
            )
        )
    assert {answer.status_code for answer in answers} == {201}
    summary = service.client.get("/api/summary", headers=headers).json()
    row = sql.execute(
        "SELECT count(*), sum(m.points), round(sum(m.kcal)::numeric, 1) FROM meal m"
        " JOIN player p ON p.id = m.player_id WHERE p.name = 'summed'"
    ).fetchone()
    assert row is not None
    assert (summary["meals"], summary["points"]) == (row[0], row[1]) == (40, row[1])
    assert summary["kcal"] == pytest.approx(float(row[2]))


def test_days_and_streaks(service: Service) -> None:
    headers = service.sign_in()
    for ago in (0, 1, 2, 5):
        day = (TODAY - timedelta(days=ago)).isoformat()
        meal = {**MEAL, "eaten_on": day}
        assert service.client.post("/api/meals", json=meal, headers=headers).status_code == 201
    streak = service.client.get("/api/streak", headers=headers).json()
    assert (streak["current_days"], streak["longest_days"]) == (3, 3)
    empty = service.client.get("/api/summary?date=0001-01-01", headers=headers).json()
    assert (empty["meals"], empty["kcal"]) == (0, 0)


@pytest.mark.parametrize(
    ("status", "meal"),
    [
        (404, {"food_id": 2_147_483_647, "grams": 1}),
        (409, {"food_id": 10, "grams": 1, "eaten_on": "9999-12-31"}),
        (422, {"food_id": 10**40, "grams": 1}),
        (422, {"food_id": 10, "grams": 0.5}),
        (422, {"food_id": 10, "grams": True}),
        (422, {"food_id": 10, "grams": 1, "eaten_on": "2023-02-29"}),
        (422, {"food_id": 10, "grams": 1, "eaten_on": "0000-01-01"}),
        (422, {"food_id": 10, "grams": 1, "eaten_on": "20240101"}),
    ],
)
def test_meals_that_cannot_be(service: Service, status: int, meal: dict[str, object]) -> None:
    answer = service.client.post("/api/meals", json=meal, headers=service.sign_in())
    assert answer.status_code == status, answer.text


@pytest.mark.parametrize("day", ["yesterday", "2023-02-29", "20240101", "2024-W01-1", "%00", ""])
def test_dates_that_are_none(service: Service, day: str) -> None:
    answer = service.client.get(f"/api/summary?date={day}", headers=service.sign_in())
    assert answer.status_code == 400, answer.text


def test_search_finds_every_word_and_takes_signs_literally(service: Service) -> None:
    foods = service.client.get("/api/foods", params={"q": "CHICKEN grilled"}).json()["foods"]
    assert [food["name"] for food in foods] == ["chicken breast, grilled", "chicken thigh, grilled"]
    for sign in ("%", "_", "\\", "'", '"', "\U0001f34e"):
        answer = service.client.get("/api/foods", params={"q": sign})
        assert (answer.status_code, answer.json()) == (200, {"foods": []})
    assert len(service.client.get("/api/foods?limit=50").json()["foods"]) == 50


def test_the_leaderboard_ranks_the_week(service: Service, sql: psycopg.Connection) -> None:
    for name, points, ago in (("gold", 9_000, 0), ("tie", 9_000, 6), ("old", 99_000, 7)):
        sql.execute(
            "WITH p AS (INSERT INTO player (name) VALUES (%s) RETURNING id)"
            " INSERT INTO player_day (player_id, day, meals, points)"
            " SELECT id, %s, 1, %s FROM p",
            (name, TODAY - timedelta(days=ago), points),
        )

    def seen() -> bool:  # the board may be some seconds old
        board = service.client.get("/api/leaderboard?limit=2").json()["standings"]
        return [(line["rank"], line["player"]) for line in board] == [(1, "gold"), (1, "tie")]

    until(seen, 8.0)


def test_an_expired_session_is_refused(service: Service, sql: psycopg.Connection) -> None:
    token = "e" * 43
    sql.execute(
        "WITH p AS (INSERT INTO player (name) VALUES ('expired') RETURNING id)"
        " INSERT INTO session SELECT %s, id, now() - interval '1 second' FROM p",
        (hashlib.sha256(token.encode()).digest(),),
    )
    answer = service.client.get("/api/streak", headers={"authorization": f"Bearer {token}"})
    assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")


def test_sessions_and_the_board_live_without_redis(service: Service) -> None:
    headers = service.sign_in()
    with started(REDIS_URL="redis://127.0.0.1:1/0", DRAIN_SECONDS="0") as alone:
        assert alone.client.get("/api/streak", headers=headers).status_code == 200
        assert alone.client.get("/api/streak", headers=alone.sign_in()).status_code == 200
        assert alone.client.get("/api/leaderboard").status_code == 200
        assert alone.stop() == 0


def test_connections_that_the_database_closed_are_replaced(
    service: Service, sql: psycopg.Connection
) -> None:
    headers = service.sign_in()
    for _ in range(20):  # whether a request meets the end of a connection is a matter of luck
        sql.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE application_name = 'diet-game' AND datname = current_database()"
        )
        assert service.client.get("/api/streak", headers=headers).status_code == 200
        assert service.client.get("/readyz").status_code == 200


def test_busy_connections_are_a_503_and_the_service_stays_ready(
    database: str, sql: psycopg.Connection
) -> None:
    with started(POOL_CONNECTIONS="1", DRAIN_SECONDS="0") as service:
        headers = service.sign_in("busy")
        assert service.client.post("/api/meals", json=MEAL, headers=headers).status_code == 201
        with ThreadPoolExecutor(1) as pool:
            with sql.transaction():
                _hold_the_day(sql, "busy")
                slow = pool.submit(service.client.post, "/api/meals", json=MEAL, headers=headers)
                with psycopg.connect(database, autocommit=True) as other:
                    until(lambda: _waiting(other), 5.0)
                refused = service.client.get("/api/streak", headers=headers)
                assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
                assert service.client.get("/readyz").status_code == 200
            assert slow.result(timeout=10).status_code == 201


def test_sigterm_drains(database: str, sql: psycopg.Connection) -> None:
    with started() as service:
        headers = service.sign_in("drained")
        assert service.client.post("/api/meals", json=MEAL, headers=headers).status_code == 201
        with ThreadPoolExecutor(1) as pool:
            with sql.transaction():
                _hold_the_day(sql, "drained")
                slow = pool.submit(service.client.post, "/api/meals", json=MEAL, headers=headers)
                with psycopg.connect(database, autocommit=True) as other:
                    until(lambda: _waiting(other), 5.0)
                service.process.terminate()
                until(lambda: service.client.get("/readyz").status_code == 503, 5.0)
                assert service.client.get("/readyz").json()["reason"] == "draining"
                new = service.client.get("/api/foods?q=apple")
                assert (new.status_code, new.headers["connection"]) == (200, "close")
                assert not slow.done()
            assert slow.result(timeout=10).status_code == 201
        assert service.process.wait(timeout=20) == 0


def _hold_the_day(connection: psycopg.Connection, player: str) -> None:
    """Keep this player's next meal in flight, until the transaction ends."""
    connection.execute(
        "SELECT 1 FROM player_day d JOIN player p ON p.id = d.player_id"
        " WHERE p.name = %s FOR UPDATE OF d",
        (player,),
    )


def _waiting(connection: psycopg.Connection) -> bool:
    found = connection.execute(
        "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
        " AND application_name = 'diet-game' AND datname = current_database()"
    )
    return found.fetchone() is not None
