"""The Prefect server as the command line meets it on a bad day."""

from __future__ import annotations

import socket
from typing import Any

import pytest

from deployments.runs import PrefectServer
from domain.errors import Failed, SlipwayError, Unauthorised, UsageError

RUN = "5d3f0c1e-0000-4000-8000-000000000001"
HTML = (200, "<html>UI</html>", "text/html")


def server(prefect: Any, patience_seconds: float = 20.0, **settings: Any) -> PrefectServer:
    return PrefectServer(prefect.api, patience_seconds=patience_seconds, **settings)


@pytest.mark.parametrize(
    "fault", [None, (500, "oops", "text/plain"), (503, "", "text/html"), (429, "", "text/plain")]
)
def test_a_fault_that_passes_is_waited_for_and_told_once(prefect: Any, fault: Any) -> None:
    told: list[str] = []
    prefect.faults = [fault, fault]
    with server(prefect, on_lost=told.append) as client:
        assert client.run(RUN).name == "release shop 1 production"
    assert len(told) == 1


def test_a_server_that_stays_away_is_an_error_with_its_address() -> None:
    client = PrefectServer("http://127.0.0.1:9/api", patience_seconds=0.5)
    with pytest.raises(Failed, match="SLP070") as raised:
        client.run(RUN)
    assert raised.value.where == "http://127.0.0.1:9/api"


def test_a_server_that_accepts_and_never_answers_is_given_up() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        api = f"http://127.0.0.1:{silent.getsockname()[1]}/api"
        client = PrefectServer(api, patience_seconds=0.5, timeout_seconds=0.1)
        with pytest.raises(Failed, match="ReadTimeout") as raised:
            client.run(RUN)
    assert raised.value.code == "SLP070"


@pytest.mark.parametrize(
    ("fault", "kind", "code"),
    [
        (HTML, Failed, "SLP070"),
        ((302, "", "text/plain"), Failed, "SLP070"),
        ((401, "{}", "application/json"), Unauthorised, "SLP073"),
        ((403, "{}", "application/json"), Unauthorised, "SLP073"),
        ((409, '{"detail": "strategy"}', "application/json"), UsageError, "SLP075"),
        ((404, "{}", "application/json"), UsageError, "SLP076"),
    ],
)
def test_an_answer_that_no_repeat_can_mend_is_not_repeated(
    prefect: Any, fault: Any, kind: type[SlipwayError], code: str
) -> None:
    prefect.faults = [fault]
    with server(prefect) as client, pytest.raises(kind) as raised:
        client.run(RUN)
    assert raised.value.code == code
    assert len(prefect.asked) == 1


def test_a_repeated_start_carries_one_key_so_that_it_makes_one_run(prefect: Any) -> None:
    with server(prefect) as client:
        client.deployment("release/slipway")
        prefect.faults = [(500, "", "text/plain")]
        prefect.asked.clear()
        client.start("release/slipway", {"environment": "production"}, "name", ["app:shop"])
        prefect.faults = [(200, '{"id": "d"}', "application/json"), None]
        client.start("release/slipway", {"environment": "production"}, "name", ["app:shop"])
    bodies = [body for _, path, body in prefect.asked if path.endswith("create_flow_run")]
    keys = [body["idempotency_key"] for body in bodies]
    assert len(keys) == 3 and keys[1] == keys[2] != keys[0]


def test_a_name_is_at_most_sixty_characters(prefect: Any) -> None:
    with server(prefect) as client:
        client.start("release/slipway", {}, "r" * 90, [])
    assert len(prefect.asked[-1][2]["name"]) == 60


def test_missing_deployments_say_how_to_register_them(prefect: Any) -> None:
    prefect.refuse["/api/deployments/name/release/slipway"] = (404, {})
    with server(prefect) as client, pytest.raises(UsageError, match="slipway up") as raised:
        client.start("release/slipway", {}, "name", [])
    assert raised.value.code == "SLP074"


@pytest.mark.parametrize(
    "text",
    [RUN, RUN[:8], f"http://127.0.0.1:1/runs/flow-run/{RUN}", "release shop 1 production"],
)
def test_a_run_is_found_by_what_people_have_at_hand(prefect: Any, text: str) -> None:
    with server(prefect) as client:
        assert client.find(text).id == RUN


@pytest.mark.parametrize("text", ["", "5d3", "another", RUN.replace("5", "6")])
def test_a_run_that_is_not_there_is_said(prefect: Any, text: str) -> None:
    with server(prefect) as client, pytest.raises(UsageError) as raised:
        client.find(text)
    assert raised.value.code == "SLP076"


def test_a_refused_cancellation_is_an_error(prefect: Any) -> None:
    prefect.refuse[f"/api/flow_runs/{RUN}/set_state"] = (
        200,
        {"status": "ABORT", "details": {"reason": "it has ended"}},
    )
    with server(prefect) as client, pytest.raises(Failed, match="it has ended") as raised:
        client.cancel(client.run(RUN))
    assert raised.value.code == "SLP077"
