"""Versions that do not come up or do not behave: the old one serves, and the cause is said."""

from __future__ import annotations

import socket
import time
from typing import Any

import pytest

from domain.journal import Outcome
from sandbox import postgres
from tests.scenarios.apps import App, service
from tests.scenarios.world import Standing, World, assert_sentence

pytestmark = pytest.mark.sandbox

BACK = Outcome.ROLLED_BACK


@pytest.fixture
def live(world: World, standing: Standing) -> App:
    """1.0.0 is live; what fails must leave it so, so many tests share it."""
    return standing.app(world)


def test_a_service_that_is_never_ready(world: World, live: App) -> None:
    source = live.source(live.fresh(), web={"start": "2s"}, ready=503)
    ended = world.fails(live, source, BACK, "SLP051")
    assert "/readyz: expected 2xx, got 503" in ended.message
    assert "starts as 1.1." in ended.detail


def test_a_command_that_exits_at_once(world: World, live: App) -> None:
    began = time.monotonic()
    source = live.source(live.fresh(), web={"start": "100s"}, exit=3)
    ended = world.fails(live, source, BACK, "SLP050")
    assert "exited with code 3" in ended.message
    assert "the flux capacitor is missing" in ended.detail
    assert time.monotonic() - began < 60, "it waited although the replica had gone"


@pytest.mark.slow
def test_a_command_that_does_not_exist(world: World, live: App) -> None:
    source = live.source(live.fresh(), web={"command": "no-such-program --serve"})
    ended = world.fails(live, source, BACK, "SLP050")
    assert "exited with code 127" in ended.message
    assert "no-such-program" in ended.detail


def test_a_command_that_takes_a_port_that_is_taken(world: World, live: App) -> None:
    with socket.socket() as squatter:
        squatter.bind(("127.0.0.1", 0))
        squatter.listen()
        port = squatter.getsockname()[1]
        ended = world.fails(live, live.source(live.fresh(), port=port), BACK, "SLP050")
    assert "an address is in use" in ended.message
    assert "make the command use $PORT" in ended.message
    assert str(port) in ended.detail


@pytest.mark.slow
def test_a_command_that_ignores_its_port(world: World, live: App) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    source = live.source(live.fresh(), web={"start": "3s"}, port=port)
    ended = world.fails(live, source, BACK, "SLP051")
    assert f"it listens on 127.0.0.1:{port}, not on $PORT=" in ended.message


def test_a_version_that_answers_500_meets_no_user(world: World, live: App) -> None:
    """The smoke checks look at its private address first."""
    ended = world.fails(live, live.source(live.fresh(), answer=500), BACK, "SLP053")
    assert "/version: expected 200, got 500" in ended.message
    entries = [e for e in world.journal(live.name).entries
               if ended.report and e.release == ended.report.release]  # fmt: skip
    assert "Route" not in [e.data.get("action") for e in entries]


def test_a_smoke_check_that_fails_once_users_are_there(world: World, live: App) -> None:
    """Some faults show only at the public address; traffic goes back and nobody noticed."""
    document = {"version": live.fresh(), "smoke": [{"path": "/smoke"}]}
    ended = world.fails(live, live.write(document, public_smoke=500), BACK, "SLP053")
    assert "/smoke" in ended.message
    assert "expected 200, got 500" in ended.message
    assert ended.report is not None
    actions = [e.data.get("action") for e in world.journal(live.name).entries
               if e.release == ended.report.release and e.kind == "done"]  # fmt: skip
    assert actions == ["Scale", "Route", "Route", "Stop"]


def test_a_replica_that_dies_during_the_trial(world: World, live: App) -> None:
    """It is ready, gets traffic, and goes; the smoke checks must not pass on the old answers."""
    document = {
        "version": live.fresh(),
        "services": {"web": service(start="10s")},
        "smoke": [{"path": "/smoke"}],
    }
    source = live.write(document, public_smoke=503, exit_after=1.5)
    state = world.deployed(source)
    assert state.is_failed()
    world.assert_serves(live.name, "1.0.0")


def test_a_migration_that_fails(world: World, live: App) -> None:
    document = {
        "version": live.fresh(),
        "database": {"migrate": "echo column taste is missing >&2; exit 4"},
    }
    ended = world.fails(live, live.write(document), BACK, "SLP052")
    assert "ended with code 4" in ended.message
    assert "column taste is missing" in ended.detail
    assert ended.report is not None
    number = ended.report.release
    done = [e.data["action"] for e in world.journal(live.name).entries
            if e.release == number and e.kind == "done"]  # fmt: skip
    assert done == [], "no traffic moved and nothing was started"


@pytest.mark.slow
def test_a_migration_that_does_not_end(world: World, live: App) -> None:
    document = {
        "version": live.fresh(),
        "database": {"migrate": "echo waiting for a lock; sleep 600", "timeout": "1s"},
    }
    ended = world.fails(live, live.write(document), BACK, "SLP052")
    assert "did not end in time" in ended.message
    assert "waiting for a lock" in ended.detail


def test_migrations_reach_the_environments_own_database(world: World, app: App) -> None:
    psql = postgres.binaries() / "psql"
    create = "create table if not exists meals (name text)"
    document = {
        "version": "1.0.0",
        "database": {
            "migrate": f'{psql} "$DATABASE_URL" -v ON_ERROR_STOP=1 -c "{create}"',
            "seed": f'{psql} "$DATABASE_URL" -c "insert into meals values (\'soup\')"',
        },
    }
    ended = world.release(app.write(document))
    assert ended.outcome is Outcome.PROMOTED, ended
    assert world.rows(app.name, "select name from meals") == [("soup",)]
    world.assert_serves(app.name, "1.0.0")


@pytest.mark.parametrize(
    ("knobs", "code"), [({"exit": 3}, "SLP050"), ({"public_smoke": 500}, "SLP053")]
)
def test_a_first_release_that_fails_leaves_nothing(
    world: World, app: App, knobs: dict[str, Any], code: str
) -> None:
    """Not even its routes: whoever asks gets a 404 from the edge."""
    ended = world.release(app.write({"version": "1.0.0", "smoke": [{"path": "/smoke"}]}, **knobs))
    assert (ended.outcome, ended.code) == (BACK, code), ended
    assert_sentence(ended)
    assert world.workloads(app.name) == {}
    world.assert_serves(app.name, None)
    assert world.status(app.name) == 404


@pytest.mark.slow
def test_the_next_release_after_a_failed_one_goes_through(world: World, app: App) -> None:
    world.deployed(app.source("1.0.0", exit=1))
    ended = world.release(app.source("1.0.1"))
    assert ended.outcome is Outcome.PROMOTED, ended
    world.assert_serves(app.name, "1.0.1")
