"""Parts that die and disks that fill in mid-release."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from blocks.file_store import FileStore
from domain.errors import Failed
from domain.journal import Kind, Outcome
from sandbox import postgres
from tests.scenarios.apps import App
from tests.scenarios.world import Standing, World, error_in, on_append, wait_until

pytestmark = pytest.mark.sandbox

SLOW_SCALE = pytest.param("Scale", marks=pytest.mark.slow)


def intent(action: str) -> Callable[[tuple[Kind, Any]], bool]:
    return lambda entry: entry[0] is Kind.INTENT and entry[1].get("action") == action


def with_database(app: App, version: str) -> str:
    """It creates a table on each release, so a dead server is noticed."""
    psql = postgres.binaries() / "psql"
    ask = f'{psql} "$DATABASE_URL" -v ON_ERROR_STOP=1 -c "create table if not exists t (n int)"'
    return app.write({"version": version, "database": {"migrate": ask}})


def test_postgresql_killed_before_a_migration(world: World, app: App) -> None:
    """The server is back within seconds, and the release waits for it; or it ends cleanly."""
    world.ship(with_database(app, "1.0.0"))
    with (
        on_append(intent("Migrate"), lambda: world.kill_part("postgres-aws")) as killed,
        world.users(app.name) as users,
    ):
        users.wait_for(5)
        ended = world.release(with_database(app, "1.1.0"))
        users.wait_for(5)
    assert killed
    assert users.failed == []
    world.await_parts()
    if ended.outcome is Outcome.PROMOTED:
        assert users.newest == "1.1.0"
        world.assert_serves(app.name, "1.1.0")
    else:
        assert (ended.outcome, ended.code) in {
            (Outcome.ROLLED_BACK, "SLP014"), (Outcome.ROLLED_BACK, "SLP052")
        }, ended  # fmt: skip
        assert users.newest == "1.0.0"
        world.assert_serves(app.name, "1.0.0")
    again = world.release(with_database(app, "1.2.0"))
    assert again.outcome is Outcome.PROMOTED, again
    world.assert_serves(app.name, "1.2.0")


@pytest.mark.parametrize("action", ["Route", SLOW_SCALE])
def test_traefik_killed_in_mid_release(world: World, app: App, action: str) -> None:
    """Users see errors while Traefik is away, and not one besides; the release goes on."""
    world.ship(app.source("1.0.0"))
    times: list[float] = []

    with world.users(app.name) as users:
        users.wait_for(5)

        def kill() -> None:
            times.append(users.now())
            world.kill_part("traefik")

        with on_append(intent(action), kill):
            ended = world.release(app.source("1.1.0"))
        users.wait_for(20)
    assert ended.outcome is Outcome.PROMOTED, ended
    assert users.newest == "1.1.0"
    away = world.down_from(times[0], users.seen)
    assert [f for f in users.failed if not times[0] - 0.2 <= f[0] <= away] == []
    world.assert_serves(app.name, "1.1.0")


@pytest.mark.slow
def test_the_cluster_supervisor_killed_in_mid_release(world: World, app: App) -> None:
    """Replicas belong to nobody who can die: users notice nothing."""
    world.ship(app.source("1.0.0"))
    with (
        on_append(intent("Scale"), lambda: world.kill_part("cluster")) as killed,
        world.users(app.name) as users,
    ):
        users.wait_for(5)
        ended = world.release(app.source("1.1.0"))
        users.wait_for(10)
    assert killed
    assert ended.outcome is Outcome.PROMOTED, ended
    assert users.failed == []
    assert set(users.versions) == {"1.0.0", "1.1.0"}
    world.assert_serves(app.name, "1.1.0")


@pytest.mark.slow
def test_the_cluster_supervisor_killed_while_traffic_moves(world: World, app: App) -> None:
    world.ship(app.source("1.0.0"))
    with (
        on_append(intent("Route"), lambda: world.kill_part("cluster")) as killed,
        world.users(app.name) as users,
    ):
        users.wait_for(5)
        ended = world.release(app.source("1.1.0"))
        users.wait_for(10)
    assert killed
    assert ended.outcome is Outcome.PROMOTED, ended
    assert users.failed == []
    world.assert_serves(app.name, "1.1.0")


@pytest.mark.parametrize("action", ["Route", SLOW_SCALE])
def test_the_prefect_server_killed_in_mid_release(world: World, app: App, action: str) -> None:
    """Prefect owns no truth: the release ends one way or the other, and users notice nothing."""
    world.ship(app.source("1.0.0"))
    with (
        on_append(intent(action), lambda: world.kill_part("prefect")) as killed,
        world.users(app.name) as users,
    ):
        users.wait_for(5)
        state = world.tried(lambda: world.deployed(app.source("1.1.0")))
        world.await_parts()
        users.wait_for(5)
    assert killed
    assert users.failed == []
    world.free_slot(app.name)  # the server forgot who held it, or lets go when the lease is over
    said = world.recover(app.name)
    current = world.live(app.name)
    assert current is not None
    assert current.version == ("1.1.0" if state and state.is_completed() else current.version)
    assert current.version in said
    world.assert_serves(app.name, current.version)


# --- the disk -------------------------------------------------------------------------------


@contextmanager
def full_disk(after: int, *, for_ever: bool) -> Iterator[list[str]]:
    """From its ``after``-th write on the store has no room: for one write, or until the end."""
    original, refused = FileStore._written, []
    count = 0

    def written(self: FileStore, target: Path, content: bytes) -> Path:
        nonlocal count
        count += 1
        if count == after or (for_ever and count > after):
            refused.append(target.name)
            raise Failed(
                "SLP015",
                f"writing {target} failed: {os.strerror(errno.ENOSPC)}",
                help="free some space on that disk and run it again",
                where=str(self.root),
            )
        return original(self, target, content)

    FileStore._written = written  # type: ignore[method-assign]
    try:
        yield refused
    finally:
        FileStore._written = original  # type: ignore[method-assign]


@pytest.mark.parametrize(
    ("for_ever", "step"),
    [
        pytest.param(True, 4, id="for-good-at-some"),
        pytest.param(True, 1, id="for-good-at-each", marks=pytest.mark.slow),
        pytest.param(False, 1, id="for-a-moment-at-each", marks=pytest.mark.slow),
    ],
)
def test_the_disk_full_at_a_write(world: World, app: App, for_ever: bool, step: int) -> None:
    """Whichever write it is: one version serves throughout, and all of it is put right after."""
    world.ship(app.source("1.0.0"))
    live, number = "1.0.0", 2
    with world.users(app.name) as users:
        users.wait_for(5)
        while True:
            version = f"1.{number}.0"
            with full_disk(number, for_ever=for_ever) as refused:
                state = world.deployed(app.source(version))
            if not refused:
                break
            if state.is_failed():
                assert error_in(state).code == "SLP015", error_in(state)
            world.recover(app.name)
            current = world.live(app.name)
            assert current is not None
            assert current.version in (live, version)
            live = current.version
            users.wait_for(2)
            assert users.newest == live, f"after write {number}"
            world.assert_serves(app.name, live)
            number += step
    assert users.failed == []
    assert state.is_completed()
    assert number > 8, "a release writes its record, and the journal around each action"


def test_a_full_disk_for_the_build(
    world: World, standing: Standing, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bundle store meets it first; what was half made is removed."""
    app, original = standing.app(world), os.fsync

    def full(descriptor: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        if path.is_relative_to(world.home.bundles()):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        original(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    ended = world.fails(app, app.source(app.fresh()), Outcome.REFUSED, "SLP015")
    assert "No space left on device" in ended.message


@pytest.mark.slow
def test_a_part_that_does_not_come_back_ends_the_release(
    world: World, app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An edge that takes no change: traffic stays where it was, and it is said."""
    world.ship(app.source("1.0.0"))
    monkeypatch.setattr("tasks.rollout.PATIENCE", timedelta(seconds=2))
    edge = type(world.platform.edge)
    write = edge.write
    refused = []

    def refuses(self: Any, routing: Any) -> None:
        if any(weight == 100 and name.endswith(".r2")
               for route in routing.routes for name, weight in route.weights.items()):  # fmt: skip
            refused.append(time.monotonic())
            raise Failed("SLP014", "tried to switch and saw nothing", help="see `slipway status`")
        write(self, routing)

    monkeypatch.setattr(edge, "write", refuses)
    ended = world.fails(app, app.source("1.1.0"), Outcome.ROLLED_BACK, "SLP014")
    assert len(refused) > 1, "asked again before giving up"
    assert "saw nothing" in ended.message


def test_a_sandbox_whose_replicas_were_killed_heals_by_itself(world: World, app: App) -> None:
    world.ship(app.source("1.0.0"))
    name = f"{app.name}.production.web.r1"
    old = world.workloads(app.name)[name]["replicas"][0]["pid"]
    os.kill(old, 9)

    def back() -> bool:
        replica = world.workloads(app.name)[name]["replicas"][0]
        return bool(replica["pid"] not in (None, old) and replica["phase"] == "ready")

    wait_until(back, "the replica runs again")
    # The edge asks for health once a second, and trusts a replica again only after that.
    wait_until(lambda: world.status(app.name) != 503, "the edge trusts it again")
    world.assert_serves(app.name, "1.0.0")
