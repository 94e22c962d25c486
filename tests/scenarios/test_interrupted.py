"""Stopped at any point: by Ctrl-C, by SIGKILL, from the Prefect UI, by another release."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import httpx
import psutil
import pytest

from blocks import commands
from domain.journal import Kind, Outcome, unfinished
from domain.rollout import Action
from tasks.rollout import Rollout
from tests.scenarios.apps import App, service
from tests.scenarios.killing import Killer
from tests.scenarios.world import (
    PRODUCTION,
    World,
    on_append,
    replicas_of,
    wait_until,
)

pytestmark = pytest.mark.sandbox

SLOW_SUITE = """
import os, pathlib, time
pathlib.Path(os.environ["JUNIT_XML"] + ".started").touch()
print("thinks", flush=True)
time.sleep(100)
"""


# --- Ctrl-C ---------------------------------------------------------------------------------


@contextmanager
def interrupted(kind: str, when: str) -> Iterator[list[str]]:
    """Ctrl-C at the first action of a kind: before it, or right after it was done."""
    original = Rollout.perform
    done: list[str] = []

    def perform(self: Rollout, action: Action) -> None:
        hit = not done and type(action).__name__ == kind
        if hit and when == "before":
            done.append(kind)
            raise KeyboardInterrupt
        original(self, action)
        if hit:
            done.append(kind)
            raise KeyboardInterrupt

    Rollout.perform = perform  # type: ignore[method-assign]
    try:
        yield done
    finally:
        Rollout.perform = original  # type: ignore[method-assign]


POINTS = [
    (kind, when)
    for kind in ("Migrate", "Scale", "Wait", "Judge", "Route", "Advance", "Retire", "Finish")
    for when in ("before", "after")
]


@pytest.mark.parametrize(
    "points",
    [
        pytest.param(POINTS[::8], id="every-eighth"),
        pytest.param(POINTS, id="all", marks=pytest.mark.slow),
    ],
)
def test_ctrl_c_at_the_actions_of_a_rollout(
    world: World, app: App, points: list[tuple[str, str]]
) -> None:
    """One version serves throughout. Once all steps have passed it is the new one."""

    def version(name: str) -> str:
        return app.write({"version": name, "database": {"migrate": "true"}})

    world.ship(version("1.0.0"))
    live = "1.0.0"
    with world.users(app.name) as users:
        for number, (kind, when) in enumerate(points, start=1):
            wanted = f"2.{number}.0"
            with interrupted(kind, when) as hit:
                stopped = world.stopped(lambda: world.ship(version(wanted)))  # noqa: B023
            assert hit == [kind], f"{kind} was never asked for"
            assert stopped, f"{when} {kind}: the run went on"
            past = (kind, when) == ("Advance", "after") or kind in ("Retire", "Finish")
            live = wanted if past else live
            users.wait_for(3)
            assert users.newest == live, f"{when} {kind}"
            world.assert_serves(app.name, live)
    assert users.failed == []


def test_ctrl_c_while_a_suite_runs(world: World, app: App, monkeypatch: Any) -> None:
    world.ship(app.source("1.0.0"))
    document = {
        "version": "1.1.0",
        "database": {},
        "cache": "redis",
        "tests": {"slow": {"kind": "integration", "command": "python -I slow.py"}},
    }
    source = app.write(document, {"slow.py": SLOW_SUITE})
    _interrupt_waiting(monkeypatch)
    ended = world.interrupted_release(source)
    assert ended is not None
    assert (ended.outcome, ended.error and ended.error["code"]) == (Outcome.REFUSED, "SLP057")
    world.assert_serves(app.name, "1.0.0")


def test_ctrl_c_while_the_candidate_is_tested(world: World, app: App, monkeypatch: Any) -> None:
    world.ship(app.source("1.0.0"))
    document = {
        "version": "1.1.0",
        "tests": {"slow": {"kind": "end-to-end", "command": "python -I slow.py"}},
    }
    source = app.write(document, {"slow.py": SLOW_SUITE})
    _interrupt_waiting(monkeypatch)
    ended = world.interrupted_release(source)
    assert ended is not None
    assert (ended.outcome, ended.error and ended.error["code"]) == (Outcome.REFUSED, "SLP057")
    world.assert_serves(app.name, "1.0.0")


def test_ctrl_c_while_a_migration_runs(world: World, app: App, monkeypatch: Any) -> None:
    world.ship(app.source("1.0.0"))
    document = {"version": "1.1.0", "database": {"migrate": "sleep 100"}}
    _interrupt_waiting(monkeypatch)
    ended = world.interrupted_release(app.write(document))
    assert ended is not None
    assert ended.outcome is Outcome.ROLLED_BACK
    world.assert_serves(app.name, "1.0.0")


def _interrupt_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C as it meets the process that waits for one of the application's own commands."""

    class Interrupted(subprocess.Popen[bytes]):
        asked = False

        def wait(self, timeout: float | None = None) -> int:
            if timeout is not None and not self.asked:
                self.asked = True
                raise KeyboardInterrupt
            return super().wait(timeout)

    only_there = SimpleNamespace(**{**vars(subprocess), "Popen": Interrupted})
    monkeypatch.setattr(commands, "subprocess", only_there)


def test_a_real_ctrl_c_in_a_terminal(world: World, app: App, killer: Killer) -> None:
    """SIGINT to a process that runs the whole flow, in the middle of the rollout."""
    world.ship(app.source("1.0.0"))
    with world.users(app.name) as users:
        users.wait_for(5)
        source = app.source("1.1.0", start=60)
        pid = killer.start("release", environment=PRODUCTION, source=source)
        wait_until(lambda: f"{app.name}.production.web.r2" in world.workloads(app.name), "r2")
        os.kill(pid, signal.SIGINT)
        assert killer.wait() != 0
        users.wait_for(5)
    assert users.failed == []
    assert set(users.versions) == {"1.0.0"}
    world.assert_serves(app.name, "1.0.0")


def test_a_real_ctrl_c_while_tests_and_scan_run_side_by_side(
    world: World, app: App, killer: Killer
) -> None:
    """The signal reaches the suite's thread alone; the candidates beside it must end as well."""
    world.ship(app.source("1.0.0"))
    document = {
        "version": "1.1.0",
        "services": {"web": service(openapi="/openapi.json")},
        "database": {"migrate": "sleep 987"},
        "tests": {
            "slow": {"kind": "unit", "command": "sleep 986"},
            "later": {"kind": "end-to-end", "command": "true"},
        },
    }
    source = app.write(document)
    killer.start("release", environment=PRODUCTION, source=source)
    wait_until(lambda: len(sleeping("986")) == 1, "the suite runs")
    wait_until(lambda: len(sleeping("987")) == 2, "both candidates are under way")
    os.kill(killer.pid, signal.SIGINT)
    assert killer.wait() != 0
    assert sleeping("986") + sleeping("987") == []
    world.assert_serves(app.name, "1.0.0")


def sleeping(seconds: str) -> list[int]:
    """Processes of the application's own commands."""
    found = psutil.process_iter(["cmdline"])
    return [p.pid for p in found if p.info["cmdline"] == ["sleep", seconds]]


# --- SIGKILL --------------------------------------------------------------------------------

ENTRIES = 10
"""More than a blue-green release without migrations writes; the last ones are never reached."""


def kill_points() -> list[Any]:
    """All of them; in the usual run every fifth is enough, for the others differ in little."""
    points = [(when, n) for n in range(1, ENTRIES) for when in ("before", "after")]
    return [
        pytest.param(when, n, id=f"{when}-{n}", marks=[] if i % 5 == 0 else [pytest.mark.slow])
        for i, (when, n) in enumerate(points)
    ]


@pytest.mark.parametrize(("when", "number"), kill_points())
def test_a_killed_release_is_ended_by_recover(
    world: World, app: App, killer: Killer, when: str, number: int
) -> None:
    """SIGKILL runs no handler at all: users notice nothing, and what was left is put right."""
    world.ship(app.source("1.0.0"))
    with world.users(app.name) as users:
        users.wait_for(5)
        source = app.source("1.1.0")
        code = killer.run("deploy", when, number, environment=PRODUCTION, source=source)
        killed = code == -signal.SIGKILL
        assert killed or code == 0
        world.free_slot(app.name)
        world.recover(app.name)
        current = world.live(app.name)
        assert current is not None
        users.wait_for(3)
        assert users.newest == current.version
        world.assert_serves(app.name, current.version)
    assert users.failed == []
    assert current.version == "1.1.0" or killed
    assert world.journal(app.name).history()[0].outcome is Outcome.PROMOTED


def test_a_killed_release_is_ended_by_the_next_one(world: World, app: App, killer: Killer) -> None:
    """After the move of traffic: 1.1.0 is taken back, then 1.2.0 goes live."""
    world.ship(app.source("1.0.0"))
    with world.users(app.name) as users:
        users.wait_for(5)
        code = killer.run("deploy", "after", 5, environment=PRODUCTION, source=app.source("1.1.0"))
        assert code == -signal.SIGKILL
        assert unfinished(world.journal(app.name).history()) is not None
        world.free_slot(app.name)
        ended = world.release(app.source("1.2.0"))
        users.wait_for(5)
    assert ended.outcome is Outcome.PROMOTED, ended
    assert users.failed == []
    assert users.newest == "1.2.0"
    outcomes = [r.outcome for r in world.journal(app.name).history()]
    assert outcomes == [Outcome.PROMOTED, Outcome.ROLLED_BACK, Outcome.PROMOTED]
    world.assert_serves(app.name, "1.2.0")


def test_a_first_release_that_is_killed_leaves_nothing(
    world: World, app: App, killer: Killer
) -> None:
    code = killer.run("deploy", "after", 5, environment=PRODUCTION, source=app.source("1.0.0"))
    assert code == -signal.SIGKILL
    world.free_slot(app.name)
    world.recover(app.name)
    assert world.workloads(app.name) == {}
    world.assert_serves(app.name, None)
    assert world.status(app.name) == 404


@pytest.mark.slow
def test_the_slot_of_a_killed_run_is_free_again_by_itself(
    world: World, app: App, killer: Killer
) -> None:
    """Nobody has to free it: the server does when the lease has run out."""
    world.ship(app.source("1.0.0"))
    code = killer.run("deploy", "after", 5, environment=PRODUCTION, source=app.source("1.1.0"))
    assert code == -signal.SIGKILL
    assert world.slots_taken(app.name) == 1
    ended = world.release(app.source("1.2.0"))
    assert ended.outcome is Outcome.PROMOTED, ended
    world.assert_serves(app.name, "1.2.0")


def test_a_zombie_cannot_act(world: World, app: App) -> None:
    """A run that was thought dead wakes up after `recover`: it stops before its next effect."""
    world.ship(app.source("1.0.0"))

    def taken_over() -> None:
        world.free_slot(app.name)
        world.in_thread(lambda: world.recover(app.name))()

    def scaled(entry: tuple[Kind, Any]) -> bool:
        return entry[0] is Kind.DONE and entry[1].get("action") == "Scale"

    with world.users(app.name) as users:
        users.wait_for(5)
        with on_append(scaled, taken_over) as seen:
            ended = world.release(app.source("1.1.0"))
        users.wait_for(5)
    assert seen
    assert ended.state.is_failed()
    assert ended.code == "SLP054"
    assert ended.report is not None
    assert ended.report.error is not None
    assert "wrote `taken-over` for release 2" in str(ended.report.error["message"])
    assert users.failed == []
    assert set(users.versions) == {"1.0.0"}
    after = [e for e in world.journal(app.name).entries if e.release == 2]
    mine = {e.run for e in after if e.kind is Kind.STARTED}
    assert after[-1].kind is Kind.FINISHED
    assert after[-1].run not in mine, "the zombie wrote nothing more"
    world.assert_serves(app.name, "1.0.0")


# --- from the Prefect UI --------------------------------------------------------------------


def test_a_run_cancelled_from_the_api_ends_clean(world: World, app: App) -> None:
    """The worker of the sandbox runs it from its deployment; somebody presses Cancel."""
    world.register()
    world.ship(app.source("1.0.0"))
    source = app.source("1.1.0", start=60)
    api = world.addresses["prefect_api"]
    with (
        world.users(app.name) as users,
        httpx.Client(base_url=api, trust_env=False, timeout=20) as client,
    ):
        users.wait_for(5)
        deployment = client.get("/deployments/name/release/slipway").raise_for_status().json()
        given = {"parameters": {"environment": PRODUCTION, "source": source},
                 "state": {"type": "SCHEDULED"}}  # fmt: skip
        create = f"/deployments/{deployment['id']}/create_flow_run"
        # On a busy machine SQLite may be locked for a moment; the server says so with a 503.
        run = wait_until(lambda: (r := client.post(create, json=given)).is_success and r, "a run")
        path = f"/flow_runs/{run.json()['id']}"
        wait_until(lambda: replicas_of(app.name, PRODUCTION)[1:], "the new version starts", 90)
        client.post(f"{path}/set_state", json={"state": {"type": "CANCELLING"}})

        def ended() -> str:
            kind = client.get(path).json()["state"]["type"]
            return str(kind) if kind in ("CANCELLED", "CRASHED", "FAILED", "COMPLETED") else ""

        assert wait_until(ended, "the run ended", 60) == "CANCELLED"
        users.wait_for(5)
    wait_until(lambda: unfinished(world.journal(app.name).history()) is None, "it has gone back")
    assert users.failed == []
    assert set(users.versions) == {"1.0.0"}
    wait_until(lambda: world.slots_taken(app.name) == 0, "the slot is free")
    world.assert_serves(app.name, "1.0.0")
    released = world.journal(app.name).history()[-1]
    assert released.outcome is Outcome.ROLLED_BACK
    assert "cancelled" in released.reason


# --- two at once ----------------------------------------------------------------------------


def test_two_releases_of_one_environment_queue(world: World, app: App) -> None:
    """The second waits; nothing of the two is mixed."""
    other = App(app.folder.parent / "other", app.name)
    world.ship(app.source("1.0.0"))
    with world.users(app.name) as users:
        users.wait_for(5)
        first = world.in_thread(lambda: world.release(app.source("1.1.0", start=1)))
        wait_until(lambda: world.slots_taken(app.name), "the first has begun to deploy")
        second = world.in_thread(lambda: world.release(other.source("1.2.0")))
        results = [first(), second()]
        users.wait_for(5)
    assert [r.outcome for r in results] == [Outcome.PROMOTED] * 2, results
    assert users.failed == []
    assert users.newest == "1.2.0"
    order = [e.release for e in world.journal(app.name).entries]
    assert order == sorted(order), "the releases did not interleave"
    assert [r.version for r in world.journal(app.name).history()] == ["1.0.0", "1.1.0", "1.2.0"]
    world.assert_serves(app.name, "1.2.0")


@pytest.mark.slow
def test_two_environments_work_side_by_side(world: World, app: App) -> None:
    """Each waits for the other in the middle of its rollout, so neither can have queued."""
    other = App(app.folder.parent / "other", app.name)
    seen: dict[str, bool] = {}

    def both() -> None:
        wait_until(lambda: world.both_started(app.name, (PRODUCTION, "staging")), "both began")
        seen["both"] = True

    with on_append(lambda entry: entry[0] is Kind.STARTED, both):
        one = world.in_thread(lambda: world.release(app.source("1.0.0")))
        two = world.in_thread(lambda: world.release(other.source("1.0.0"), "staging"))
        results = [one(), two()]
    assert seen == {"both": True}
    assert [r.outcome for r in results] == [Outcome.PROMOTED] * 2, results
    for environment in (PRODUCTION, "staging"):
        world.assert_serves(app.name, "1.0.0", environment)


def test_a_refusal_does_not_disturb_a_release_under_way(world: World, app: App) -> None:
    """It is only noted, between the entries of the one that acts."""
    world.ship(app.source("1.0.0"))
    bad = App(app.folder.parent / "bad", app.name)
    refusals = []

    def refuse() -> None:
        document = {"version": "9.9.9", "tests": {"unit": {"kind": "unit", "command": "exit 3"}}}
        refusals.append(world.in_thread(lambda: world.release(bad.write(document)))())

    with on_append(lambda entry: entry[0] is Kind.INTENT, refuse):
        ended = world.release(app.source("1.1.0"))
    assert [r.outcome for r in refusals] == [Outcome.REFUSED]
    assert ended.outcome is Outcome.PROMOTED, ended
    world.assert_serves(app.name, "1.1.0")
