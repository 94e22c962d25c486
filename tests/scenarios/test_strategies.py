"""Rolling and blue-green, services and workers, forward and back, under users."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from domain.journal import Outcome
from flows.contract import contract
from tests.scenarios.apps import WORK, App, Document, service
from tests.scenarios.users import Users
from tests.scenarios.world import PRODUCTION, World, error_in, wait_until

pytestmark = pytest.mark.sandbox

ROLLING = {"production": {"strategy": "rolling"}}
EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def pids(world: World, application: str, release: int) -> set[int]:
    return {
        replica["pid"]
        for name, workload in world.workloads(application).items()
        if name.endswith(f".r{release}")
        for replica in workload["replicas"]
    }


def assert_quiet(users: Users, versions: set[str]) -> None:
    assert users.failed == []
    assert set(users.versions) == versions


def test_rolling_with_three_replicas_fails_no_request(world: World, app: App) -> None:
    def version(name: str) -> str:
        services = {"web": service(replicas={"default": 3})}
        return app.write({"version": name, "services": services, "environments": ROLLING})

    world.ship(version("1.0.0"))
    old = pids(world, app.name, 1)
    assert len(old) == 3
    with world.users(app.name, rate=80) as users:
        users.wait_for(20)
        ended = world.release(version("1.1.0"))
        users.wait_for(20)
    assert ended.outcome is Outcome.PROMOTED, ended
    assert_quiet(users, {"1.0.0", "1.1.0"})
    world.assert_serves(app.name, "1.1.0")
    assert set(world.workloads(app.name)) == {f"{app.name}.production.web.r2"}
    assert not any(world.is_alive(pid) for pid in old)
    assert ended.report is not None
    assert ended.report.failed_requests == 0
    assert (ended.report.requests or 0) > 40


@pytest.mark.slow
def test_rolling_that_fails_half_way_gives_the_capacity_back(world: World, app: App) -> None:
    def version(name: str, **knobs: Any) -> str:
        services = {"web": service(replicas={"default": 3})}
        document = {"version": name, "services": services, "environments": ROLLING,
                    "smoke": [{"path": "/smoke"}]}  # fmt: skip
        return app.write(document, **knobs)

    world.ship(version("1.0.0"))
    with world.users(app.name, rate=80) as users:
        users.wait_for(20)
        state = world.deployed(version("1.1.0", public_smoke=500))
        users.wait_for(20)
    assert state.is_failed()
    assert error_in(state).code == "SLP053"
    assert users.failed == []
    assert users.newest == "1.0.0"
    world.assert_serves(app.name, "1.0.0")


@pytest.mark.slow
def test_blue_green_keeps_the_old_version_for_an_instant_return(world: World, app: App) -> None:
    """Back and forward again are the same processes, and nobody notices."""
    world.ship(app.source("1.0.0"))
    first = pids(world, app.name, 1)
    with world.users(app.name) as users:
        users.wait_for(10)
        ended = world.release(app.source("1.1.0"))
        assert ended.outcome is Outcome.PROMOTED, ended
        second = pids(world, app.name, 2)
        back = world.rollback(app.name)
        assert back.outcome is Outcome.PROMOTED, back
        users.wait_for(10)
        assert users.newest == "1.0.0"
        assert pids(world, app.name, 1) == first
        world.assert_serves(app.name, "1.0.0")
        forward = world.rollback(app.name)
        assert forward.outcome is Outcome.PROMOTED, forward
        users.wait_for(10)
    assert_quiet(users, {"1.0.0", "1.1.0"})
    assert users.newest == "1.1.0"
    assert pids(world, app.name, 2) == second
    world.assert_serves(app.name, "1.1.0")
    assert ended.report is not None
    assert ended.report.undo == f"slipway rollback {app.name} --environment production"


def test_a_rollback_with_nothing_to_go_back_to(world: World, app: App) -> None:
    world.ship(app.source("1.0.0"))
    ended = world.rollback(app.name)
    assert ended.state.is_failed()
    assert ended.code == "SLP006"
    assert "promoted were: 1" in ended.message
    world.assert_serves(app.name, "1.0.0")


def test_a_rollback_of_something_that_was_never_released(world: World, app: App) -> None:
    ended = world.rollback(app.name)
    assert ended.state.is_failed()
    assert ended.code == "SLP006"
    assert "promoted were: none" in ended.message


def test_a_rollback_after_the_old_version_has_expired(world: World, app: App) -> None:
    """It is started again from its bundle."""
    short = {"environments": {"production": {"keep_previous": "0s"}}}
    world.ship(app.write({"version": "1.0.0", **short}))
    world.ship(app.write({"version": "1.1.0", **short}))
    old = f"{app.name}.production.web.r1"
    wait_until(lambda: old not in world.workloads(app.name), "the old version expired")
    with world.users(app.name) as users:
        users.wait_for(10)
        ended = world.rollback(app.name)
        users.wait_for(10)
    assert ended.outcome is Outcome.PROMOTED, ended
    assert_quiet(users, {"1.0.0", "1.1.0"})
    wait_until(lambda: len(world.workloads(app.name)) == 1, "1.1.0 expired")
    world.assert_serves(app.name, "1.0.0")


@pytest.mark.slow
def test_a_rollback_to_a_chosen_release(world: World, app: App) -> None:
    for version in ("1.0.0", "1.1.0", "1.2.0"):
        world.ship(app.source(version))
    ended = world.rollback(app.name, to_release=1)
    assert ended.outcome is Outcome.PROMOTED, ended
    assert world.get(app.name) == "1.0.0"
    missing = world.rollback(app.name, to_release=9)
    assert missing.code == "SLP006"
    assert "looked for release 9" in missing.message


def test_a_worker_without_a_port(world: World, app: App) -> None:
    """Nothing is routed, nothing is smoked; one version of it works at a time."""

    def version(name: str) -> str:
        services: Document = {
            "worker": {"command": WORK, "port": None, "routes": [], "drain": "2s"}
        }
        environments = {"production": {"keep_previous": "0s"}}
        return app.write(
            {"version": name, "services": services, "environments": environments, "smoke": []}
        )

    first = world.release(version("1.0.0"))
    assert first.outcome is Outcome.PROMOTED, first
    world.assert_serves(app.name, "1.0.0")
    second = world.release(version("1.1.0"))
    assert second.outcome is Outcome.PROMOTED, second
    wait_until(lambda: len(world.workloads(app.name)) == 1, "only one version works")
    world.assert_serves(app.name, "1.1.0")


def pair(app: App, version: str, *, with_peer: bool = True) -> str:
    web = service(depends_on=["peer"] if with_peer else [])
    services = {"web": web}
    if with_peer:
        services["peer"] = service(routes=[])
    return app.write({"version": version, "services": services})


def test_two_services_never_mix_their_versions(world: World, app: App) -> None:
    """A user's request meets both services of one version, through the whole switch."""
    world.ship(pair(app, "1.0.0"))
    with world.users(app.name, path="/peer") as users:
        users.wait_for(10)
        ended = world.release(pair(app, "1.1.0"))
        users.wait_for(10)
    assert ended.outcome is Outcome.PROMOTED, ended
    assert_quiet(users, {"1.0.0+1.0.0", "1.1.0+1.1.0"})
    world.assert_serves(app.name, "1.1.0")


@pytest.mark.slow
def test_a_service_that_comes_and_goes_between_versions(world: World, app: App) -> None:
    world.ship(pair(app, "1.0.0", with_peer=False))
    with world.users(app.name) as users:
        users.wait_for(10)
        world.ship(pair(app, "1.1.0"))
        world.assert_serves(app.name, "1.1.0")
        assert world.get(app.name, "/peer") == "1.1.0+1.1.0"
        world.ship(pair(app, "1.2.0", with_peer=False))
        users.wait_for(10)
    assert_quiet(users, {"1.0.0", "1.1.0", "1.2.0"})
    world.assert_serves(app.name, "1.2.0")


@pytest.mark.slow
def test_a_public_service_that_is_new_fails_and_its_route_goes_again(
    world: World, app: App
) -> None:
    world.ship(app.source("1.0.0"))
    services = {"web": service(), "admin": service(routes=["/admin"])}
    smoke = [{"path": "/version"}, {"path": "/smoke"}]
    source = app.write({"version": "1.1.0", "services": services, "smoke": smoke},
                       public_smoke=500)  # fmt: skip
    world.fails(app, source, Outcome.ROLLED_BACK, "SLP053")
    routing = world.platform.edge.read(app.name, PRODUCTION)
    assert routing is not None
    assert [r.service for r in routing.routes if r.weights] == ["web"]


@pytest.mark.slow
def test_the_example_with_two_services_twice(world: World, tmp_path: Path) -> None:
    """As people have it, with its lock and suites; its packages come from the index or a cache."""
    source = tmp_path / "two_services"
    shutil.copytree(EXAMPLES / "two_services", source)
    shutil.copytree(EXAMPLES / "advisories", tmp_path / "advisories")
    document = source / "application.yaml"
    first = world.release(str(source))
    assert first.outcome is Outcome.PROMOTED, first
    document.write_text(document.read_text().replace("version: 1.0.0", "version: 1.1.0"))
    with world.users("two-services", path="/", rate=20) as users:
        users.wait_for(10)
        ended = world.release(str(source))
        users.wait_for(10)
    assert ended.outcome is Outcome.PROMOTED, ended
    assert users.failed == []
    assert users.served >= 20
    journal = world.journal("two-services")
    assert [r.outcome for r in journal.history()] == [Outcome.PROMOTED] * 2
    world.assert_no_leftovers("two-services")
    world.stop("two-services")


def test_a_contraction_waits_for_the_old_version_and_closes_the_way_back(
    world: World, app: App
) -> None:
    def version(name: str, keep: str = "10m") -> str:
        database = {"migrate": "true", "contract": "touch contracted"}
        places = {"production": {"strategy": "blue-green", "keep_previous": keep}}
        return app.write({"version": name, "database": database, "environments": places})

    world.ship(version("1.0.0"))
    world.ship(version("1.1.0"))
    early = contract(PRODUCTION, app.name, return_state=True)
    assert early.is_failed() and error_in(early).code == "SLP063"
    world.platform.cluster.stop(f"{app.name}.production.web.r1")
    done = contract(PRODUCTION, app.name, return_state=True)
    assert done.is_completed(), done.message
    back = world.rollback(app.name)
    assert back.state.is_failed() and back.code == "SLP065", back
    world.assert_serves(app.name, "1.1.0")
