"""Whole flows on a real sandbox: one for all scenarios, an application of its own for each."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from prefect.events.worker import EventsWorker
from prefect.logging.handlers import APILogWorker
from prefect.settings import (
    PREFECT_API_URL,
    PREFECT_FLOWS_HEARTBEAT_FREQUENCY,
    PREFECT_HOME,
    PREFECT_LOGGING_LEVEL,
    PREFECT_SERVER_ALLOW_EPHEMERAL_MODE,
    temporary_settings,
)

from sandbox import control
from sandbox.home import Home, Memory
from sandbox.ports import PREFERRED, answers, choose
from tests.scenarios.apps import App
from tests.scenarios.killing import Killer
from tests.scenarios.world import Standing, World, is_anothers, processes_of, save_platform


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    """A running sandbox; whatever happens, nothing of it is left at the end."""
    place = Home.at(tmp_path_factory.mktemp("scenarios") / "home")
    place.make()
    # Not the preferred ones: sandboxes of other workers start at the same moment.
    Memory({name: choose(f"any port for {name}") for name in PREFERRED}).save(place)
    try:
        control.up(place)
        yield place
    finally:
        control.down(place)
    assert processes_of(str(place.root)) == []
    ports = Memory.load(place).ports
    assert [n for n, port in ports.items() if answers(port) and not is_anothers(port)] == []
    assert not place.run.exists()


def forget_servers() -> None:
    """Prefect keeps one sender of events and one of logs a process, bound to the first server
    that it met; another test's harness may have been that."""
    for service in (EventsWorker, APILogWorker):
        service.drain_all(timeout=10)


@pytest.fixture(scope="session")
def connected(home: Home) -> Iterator[Home]:
    """This process runs flows against the sandbox's server."""
    addresses = control.require(home).addresses
    settings = {
        PREFECT_API_URL: addresses["prefect_api"],
        PREFECT_HOME: str(home.root / "client"),
        PREFECT_SERVER_ALLOW_EPHEMERAL_MODE: False,
        # Each sync flow run would wait a second for the thread that sends them.
        PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None,
        PREFECT_LOGGING_LEVEL: "WARNING",
    }
    forget_servers()
    with temporary_settings(updates=settings):
        save_platform(addresses, home)
        yield home
        forget_servers()


@pytest.fixture(scope="session")
def session_world(connected: Home) -> World:
    return World(connected)


@pytest.fixture
def world(session_world: World) -> Iterator[World]:
    """All parts are ready before and after each scenario."""
    session_world.await_parts()
    yield session_world
    session_world.await_parts()


@pytest.fixture
def app(request: pytest.FixtureRequest, tmp_path: Path, world: World) -> Iterator[App]:
    """An application that no other test knows; it does not run on while others are tested."""
    mine = App(tmp_path / "source", name_of(request))
    yield mine
    world.stop(mine.name)


@pytest.fixture(scope="session")
def standing(tmp_path_factory: pytest.TempPathFactory) -> Standing:
    return Standing(tmp_path_factory.mktemp("standing"))


@pytest.fixture(scope="session")
def killer(connected: Home, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Killer]:
    """Runs flows in processes that are killed where a test says."""
    folder = tmp_path_factory.mktemp("killed")
    environ = {**os.environ, "PREFECT_API_URL": control.require(connected).addresses["prefect_api"]}
    with Killer(folder, environ) as ready:
        yield ready


def name_of(request: pytest.FixtureRequest) -> str:
    words = re.sub(r"[^a-z0-9]+", "-", request.node.name.removeprefix("test_").lower())
    short = words[:22].strip("-")
    return f"{short}-{hash((request.node.nodeid, os.getpid())) % 99991}"
