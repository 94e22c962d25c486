"""Canaries under users: a good one goes all the way, a bad one is caught and goes back alone."""

from __future__ import annotations

import signal
from typing import Any

import pytest

from domain.journal import Kind, Outcome
from tests.scenarios.apps import App, service
from tests.scenarios.killing import Killer
from tests.scenarios.world import PRODUCTION, World, wait_until

pytestmark = pytest.mark.sandbox

CANARY = {
    "strategy": "canary",
    "canary": {"steps": ["10%", "50%"], "requests": 40, "patience": "60s"},
    "objectives": {"availability": "99%", "p95": "500ms", "error_rate": "1%"},
    "environments": {"production": {}},
    "smoke": [{"path": "/healthz"}],  # the evidence alone shall find what is wrong
}


def version(app: App, name: str, more: dict[str, Any] | None = None, **knobs: Any) -> str:
    document = {"version": name, "services": {"web": service(replicas={"default": 2})}}
    return app.write({**CANARY, **document, **(more or {})}, **knobs)


def test_a_good_canary_goes_step_by_step_and_fails_no_request(world: World, app: App) -> None:
    world.ship(version(app, "1.0.0"))
    with world.users(app.name, rate=200) as users:
        users.wait_for(50)
        ended = world.release(version(app, "1.1.0"))
        users.wait_for(50)
    assert ended.outcome is Outcome.PROMOTED, ended
    assert users.failed == [] and users.newest == "1.1.0"
    assert ended.report is not None
    verdicts = ended.report.verdicts
    assert [(v["weight"], v["verdict"]) for v in verdicts] == [(10, "pass"), (50, "pass")]
    assert all(v["numbers"]["candidate_requests"] >= 40 for v in verdicts)
    assert ended.report.failed_requests == 0
    world.assert_serves(app.name, "1.1.0")


def test_a_bad_canary_is_caught_and_taken_back_on_its_own(world: World, app: App) -> None:
    world.ship(version(app, "1.0.0"))
    with world.users(app.name, rate=200) as users:
        users.wait_for(50)
        ended = world.release(version(app, "1.1.0", flaky=0.3))
        users.wait_for(100)
    assert (ended.outcome, ended.code) == (Outcome.ROLLED_BACK, "SLP059"), ended
    assert users.newest == "1.0.0"
    assert ended.report is not None
    last = ended.report.verdicts[-1]
    assert last["verdict"] == "fail" and last["numbers"]["candidate_errors"] > 0
    assert 0 < (ended.report.detected_after_requests or 0) <= users.served + len(users.failed)
    assert ended.report.rollback_seconds is not None
    # Nobody met more faults than the version made while it had its share.
    assert len(users.failed) <= last["numbers"]["candidate_errors"] + 60
    world.assert_serves(app.name, "1.0.0")


@pytest.mark.slow
def test_no_users_hold_a_canary_and_then_it_goes_back(world: World, app: App) -> None:
    more = {"canary": {**CANARY["canary"], "patience": "3s"}}  # type: ignore[dict-item]
    world.ship(version(app, "1.0.0"))
    ended = world.release(version(app, "1.1.0", more))
    assert (ended.outcome, ended.code) == (Outcome.ROLLED_BACK, "SLP059"), ended
    assert "has not got its evidence within 3s: the candidate has had no request" in ended.message
    world.assert_serves(app.name, "1.0.0")


@pytest.mark.slow
def test_declared_probes_stand_in_for_users(world: World, app: App) -> None:
    more = {"canary": {"steps": ["50%"], "requests": 10,
                       "probes": {"path": "/version", "per_second": 20}}}  # fmt: skip
    world.ship(version(app, "1.0.0"))
    ended = world.release(version(app, "1.1.0", more))
    assert ended.outcome is Outcome.PROMOTED, ended
    world.assert_serves(app.name, "1.1.0")


@pytest.mark.slow
def test_copies_and_testers_come_before_users(world: World, app: App) -> None:
    """A mirror step judges by copies; testers reach the candidate by their header meanwhile."""
    more = {"canary": {"steps": ["10%"], "requests": 60, "mirror": 20,
                       "testers": {"name": "X-Try"}}}  # fmt: skip
    world.ship(version(app, "1.0.0"))
    with world.users(app.name, rate=200) as users, world.tester(app.name) as tester:
        users.wait_for(50)
        ended = world.release(version(app, "1.1.0", more))
    assert ended.outcome is Outcome.PROMOTED, ended
    assert users.failed == []
    moves = [e.data for e in world.journal(app.name).entries if e.kind is Kind.DONE]
    routes = [d for d in moves if d["action"] == "Route" and d["mirrors"]]
    assert routes[0]["mirrors"] == {"web": {f"{app.name}.production.web.r2": 10}}
    first_user = next(at for at, seen in users.seen if seen == "1.1.0")
    assert "1.1.0" in tester.before(users.began_at + first_user), "no tester met it before users"
    world.assert_serves(app.name, "1.1.0")


def test_a_person_pauses_resumes_and_promotes(world: World, app: App) -> None:
    world.ship(version(app, "1.0.0"))
    more = {"canary": {"steps": ["10%", "50%"], "requests": 100_000}}
    with world.users(app.name, rate=100) as users:
        result = world.in_thread(lambda: world.release(version(app, "1.1.0", more)))
        wait_until(lambda: world.weight(app.name, 2) == 10, "the first step", 90)
        world.ask(app.name, "pause", "lunch")
        wait_until(lambda: "paused" in world.last_words(app.name), "the pause", 20)
        world.ask(app.name, "resume", "")
        world.ask(app.name, "promote", "looked at by hand")
        ended = result()
        users.wait_for(20)
    assert ended.outcome is Outcome.PROMOTED, ended
    assert ended.report is not None and "looked at by hand" in ended.report.override
    assert users.failed == [] and users.newest == "1.1.0"
    world.assert_serves(app.name, "1.1.0")


@pytest.mark.slow
def test_a_person_aborts_and_tries_again(world: World, app: App) -> None:
    world.ship(version(app, "1.0.0"))
    more = {"canary": {"steps": ["10%"], "requests": 100_000}}
    with world.users(app.name, rate=100) as users:
        result = world.in_thread(lambda: world.release(version(app, "1.1.0", more)))
        wait_until(lambda: world.weight(app.name, 2) == 10, "the first step", 90)
        world.ask(app.name, "abort", "the graphs look odd")
        ended = result()
        assert (ended.outcome, ended.code) == (Outcome.ROLLED_BACK, "SLP057")
        assert "the graphs look odd" in ended.message
        again = world.in_thread(lambda: world.retry(app.name))
        wait_until(lambda: world.weight(app.name, 3) == 10, "the first step again", 60)
        world.ask(app.name, "promote", "they were odd for another reason")
        assert again().outcome is Outcome.PROMOTED
    assert users.failed == []
    world.assert_serves(app.name, "1.1.0")


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["replace", "refuse"])
def test_a_newer_release_follows_the_declared_policy(world: World, app: App, policy: str) -> None:
    world.ship(version(app, "1.0.0"))
    slow = {"canary": {"steps": ["10%"], "requests": 100_000}, "superseding": policy}
    quick = {"canary": {"steps": ["10%"], "requests": 20}, "superseding": policy}
    with world.users(app.name, rate=200) as users:
        first = world.in_thread(lambda: world.release(version(app, "1.1.0", slow)))
        wait_until(lambda: world.weight(app.name, 2) == 10, "the first step", 90)
        second = world.release(version(app, "1.2.0", quick))
        if policy == "refuse":
            assert (second.outcome, second.code) == (Outcome.REFUSED, "SLP062"), second
            world.ask(app.name, "abort", "enough")
        assert first().outcome is Outcome.ROLLED_BACK
        if policy == "replace":
            assert second.outcome is Outcome.PROMOTED, second
    assert users.failed == []
    world.assert_serves(app.name, "1.2.0" if policy == "replace" else "1.0.0")


@pytest.mark.slow
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("interrupted", ["reverse", "continue"])
def test_a_canary_killed_at_every_boundary_is_ended_by_recover(
    world: World, app: App, killer: Killer, interrupted: str, when: str
) -> None:
    """SIGKILL at each entry that a canary writes; nobody is there to undo anything."""
    more = {"canary": {"steps": ["20%"], "requests": 20, "interrupted": interrupted}}
    world.ship(version(app, "1.0.0", more))
    with world.users(app.name, rate=60) as users:
        for number in range(1, 40):
            source = version(app, f"1.{number}.0", more)
            code = killer.run("deploy", when, number, environment=PRODUCTION, source=source)
            if code != -signal.SIGKILL:
                break
            world.free_slot(app.name)
            world.recover(app.name)
            current = world.live(app.name)
            assert current is not None
            world.assert_serves(app.name, current.version)
    assert code == 0 and number > 10, "not every entry of a canary was reached"
    assert users.failed == []


@pytest.mark.slow
@pytest.mark.parametrize("part", ["traefik", "prefect", "cluster"])
def test_a_part_killed_in_mid_canary_ends_nothing(world: World, app: App, part: str) -> None:
    """Traefik takes its counters along, and Prefect its runs; the step goes on collecting."""
    more = {"canary": {"steps": ["20%"], "requests": 300}}
    world.ship(version(app, "1.0.0"))
    with world.users(app.name, rate=100) as users:
        result = world.in_thread(lambda: world.release(version(app, "1.1.0", more)))
        wait_until(lambda: world.weight(app.name, 2) == 20, "the first step", 90)
        users.wait_for(50)
        killed_at = users.now()
        world.kill_part(part)
        world.await_parts()
        world.tried(result)
        users.wait_for(20)
    last = world.journal(app.name).history()[-1]
    assert last.outcome is Outcome.PROMOTED, last
    back = world.down_from(killed_at, users.seen)
    late = [f for f in users.failed if not killed_at - 0.5 <= f[0] <= back]
    assert late == [] and (part == "traefik" or users.failed == [])
    world.assert_serves(app.name, "1.1.0")
