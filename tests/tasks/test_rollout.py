"""Releases against a cluster and an edge in memory, killed, cancelled and starved at every call.

The journal and all rules are the real ones; the clock jumps instead of waiting.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import pytest

from blocks.journal import Journal
from blocks.records import Records
from domain.application import Strategy, parse
from domain.errors import Failed, NeedsPerson, SlipwayError, UsageError
from domain.journal import Kind, Outcome, live
from domain.release import BuildRecord
from domain.rollout import Finish, Judge
from domain.routing import Counts, Routing
from tasks import releasing, rollout
from tasks.releasing import (
    begin,
    check_live,
    on_trial,
    restore_live,
    take_over,
    target_release,
    trial,
    undone_when_stopped,
)
from tasks.rollout import Rollout
from tests.tasks.world import WEB, Killed, World

PROMOTED = Finish("all steps passed", Outcome.PROMOTED)


def left_over(world: World) -> set[str]:
    """Workloads that neither serve nor wait to be stopped."""
    now = live(world.journal().history())
    serving = set(now.workloads.values()) if now else set()
    return {n for n, s in world.specs.items() if n not in serving and s.expires_at is None}


def every_call(world: World, strategy: Strategy) -> Iterator[int]:
    """Each outside call of release 2 in turn, with the world as it was before that release."""
    back = world.start_over(lambda new: new.ship("1", strategy))
    world.calls, world.run = 0, "hurt"
    assert world.ship("2", strategy).outcome is Outcome.PROMOTED
    for call in range(1, world.calls + 1):
        back()
        world.run = "hurt"
        yield call


@pytest.mark.parametrize("strategy", Strategy)
def test_killed_at_any_call_users_are_served_and_the_next_release_cleans_up(
    world: World, strategy: Strategy
) -> None:
    for call in every_call(world, strategy):
        world.kill_at(call)
        with pytest.raises(Killed):
            world.ship("2", strategy)
        world.check()
        world.run, world.seconds = "next", world.seconds + 7200
        assert world.ship("3", strategy).outcome is Outcome.PROMOTED
        assert list(world.weights()) == list(world.journal().history()[-1].workloads.values())
        assert not left_over(world)
        assert Outcome.ROLLBACK_FAILED not in world.outcomes() and None not in world.outcomes()


@pytest.mark.parametrize("strategy", Strategy)
def test_killed_at_any_call_recover_leaves_one_whole_version(
    world: World, strategy: Strategy
) -> None:
    for call in every_call(world, strategy):
        world.kill_at(call)
        with pytest.raises(Killed):
            world.ship("2", strategy)
        world.run, world.seconds = "next", world.seconds + 7200
        recover(world)
        assert Outcome.ROLLBACK_FAILED not in world.outcomes()


def recover(world: World) -> None:
    journal = world.journal()
    take_over(world.platform, journal)
    restore_live(world.platform, journal)
    now = live(world.journal().history())
    assert now is not None and world.weights() == {now.workloads["web"]: 100}
    assert world.specs[now.workloads["web"]].replicas == 2
    assert not left_over(world)


@pytest.mark.parametrize("strategy", Strategy)
def test_cancelled_at_any_call_the_release_ends_and_nothing_is_left(
    world: World, strategy: Strategy
) -> None:
    for call in every_call(world, strategy):
        world.kill_at(call)
        with pytest.raises(Killed), undone_when_stopped(world.platform, "shop", "test"):
            world.ship("2", strategy)
        assert None not in world.outcomes(), f"call {call}: the release is still open"
        assert set(world.outcomes()) <= {Outcome.ROLLED_BACK, Outcome.PROMOTED}
        now = live(world.journal().history())
        assert now is not None and world.weights() == {now.workloads["web"]: 100}
        assert not left_over(world)


@pytest.mark.parametrize("strategy", Strategy)
def test_a_disk_that_fills_up_at_any_call_leaves_the_old_version_and_no_candidate(
    world: World, strategy: Strategy
) -> None:
    for call in every_call(world, strategy):

        def fill() -> None:
            world.full = True

        record = world.record("2")
        world.calls, world.hit_at, world.hit = 0, call, fill
        with suppress(Failed):
            begin(world.platform, record, "test", strategy=strategy).drive()
        passed = "step-passed" in {str(e.kind) for e in world.journal().entries if e.release == 2}
        if strategy is not Strategy.ROLLING and not passed:
            assert world.weights() == {"shop.test.web.r1": 100}
            assert set(world.specs) == {"shop.test.web.r1"}
        world.full, world.run = False, "next"
        recover(world)


def test_a_full_disk_is_told_and_the_traffic_is_back_before_there_is_room(world: World) -> None:
    world.ship("1")
    started = world.begin("2")
    started.drive(until=on_trial)
    assert world.weights() == {"shop.test.web.r2": 100}
    world.full = True
    world.sick = {"shop.test.web.r2"}
    with pytest.raises(Failed, match="could not be noted") as caught:
        started.drive()
    assert caught.value.code == "SLP015" and "slipway recover shop" in caught.value.help
    assert world.weights() == {"shop.test.web.r1": 100} and "shop.test.web.r2" not in world.specs
    assert world.outcomes() == [Outcome.PROMOTED, None]
    world.full = False
    ended = take_over(world.platform, world.journal())
    assert ended is not None and ended.outcome is Outcome.ROLLED_BACK


def test_a_disk_with_room_again_gets_the_whole_story(world: World) -> None:
    world.ship("1")
    started = world.begin("2")
    started.drive(until=on_trial)
    world.full, world.sick = True, {"shop.test.web.r2"}
    stop = world.stop

    def stop_and_free(name: str) -> None:
        stop(name)
        world.full = False

    world.stop = stop_and_free  # type: ignore[method-assign]
    assert started.drive().outcome is Outcome.ROLLED_BACK
    kinds = [entry.kind for entry in world.journal().entries if entry.release == 2]
    assert kinds[-1] is Kind.FINISHED and Kind.ABORTING in kinds


def test_a_zombie_cannot_act_any_more(world: World) -> None:
    world.ship("1")
    zombie = world.begin("2")
    zombie.drive(until=lambda state, action: isinstance(action, Judge))
    world.run = "run-2"
    world.ship("3")
    writes, specs = world.writes, dict(world.specs)
    with pytest.raises(Failed) as caught:
        zombie.drive()
    assert caught.value.code == "SLP054"
    assert (world.writes, world.specs) == (writes, specs)


def test_a_zombie_that_wakes_between_its_intent_and_the_switch_does_not_switch(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.ship("1")
    zombie, route = world.begin("2"), rollout._route

    def late(platform: Any, journal: Journal, routing: Routing, what: str) -> None:
        monkeypatch.setattr(rollout, "_route", route)
        world.run = "run-2"
        world.ship("3")
        route(platform, journal, routing, what)

    monkeypatch.setattr(rollout, "_route", late)
    with pytest.raises(Failed, match="wrote"):
        zombie.drive()
    assert world.weights() == {"shop.test.web.r3": 100}


def test_taken_over_long_after_its_abort_a_release_is_judged_before_it_is_given_up(
    world: World,
) -> None:
    world.ship("1")
    hurt = world.begin("2")
    hurt.drive(until=on_trial)
    world.sick = {"shop.test.web.r2"}
    hurt.drive(until=lambda state, action: isinstance(action, Judge) and bool(state.aborting))
    world.seconds += 86_400
    ended = take_over(world.platform, world.journal())
    assert ended is not None and ended.outcome is Outcome.ROLLED_BACK


def test_after_a_rollback_that_failed_the_next_release_works_and_cleans_up(world: World) -> None:
    world.ship("1")
    hurt = world.begin("2")
    hurt.drive(until=on_trial)
    world.sick, world.never_ready = {"shop.test.web.r2"}, {"shop.test.web.r1"}
    world.specs.pop("shop.test.web.r1")
    assert hurt.drive().outcome is Outcome.ROLLBACK_FAILED
    assert world.weights() == {"shop.test.web.r2": 100}, "there is nowhere better to go"
    world.run = "run-2"
    assert world.ship("3").outcome is Outcome.PROMOTED
    assert world.weights() == {"shop.test.web.r3": 100}
    assert not left_over(world)


def test_a_rollback_that_cannot_be_proved_does_not_leave_the_candidate_for_ever(
    world: World,
) -> None:
    world.ship("1")
    world.sick = {"shop.test.web.r1", "shop.test.web.r2"}
    assert world.ship("2").outcome is Outcome.ROLLBACK_FAILED
    assert world.specs["shop.test.web.r2"].expires_at is not None
    with pytest.raises(NeedsPerson, match="did not pass"):
        raise releasing.error_of(world.journal(), world.journal().history()[-1])


def test_a_first_release_that_fails_leaves_nothing_at_the_edge(world: World) -> None:
    world.sick = {"shop.test.web.r1"}
    assert world.ship("1").outcome is Outcome.ROLLED_BACK
    assert world.routing is None and not world.specs


@pytest.mark.parametrize("strategy", Strategy)
def test_requests_are_counted_over_both_versions(world: World, strategy: Strategy) -> None:
    world.ship("1", strategy)
    world.counted["shop.test.web.r1"] = Counts()
    world.count("shop.test.web.r1", 1000, 7)
    started = world.begin("2", strategy)
    world.users(100)
    started.drive(until=on_trial)
    world.users(100)
    started.drive()
    data = world.journal().history()[-1].data
    total = sum(c.requests for c in world.counted.values()) - 1000 - world.copies
    assert data["requests"] == total >= 200 and data["failed_requests"] == 0


def test_failures_that_users_met_are_counted_although_the_version_is_gone(world: World) -> None:
    world.ship("1")
    started = world.begin("2")
    started.drive(until=on_trial)
    world.sick = {"shop.test.web.r2"}
    world.users(100)
    assert started.drive().outcome is Outcome.ROLLED_BACK
    data = world.journal().history()[-1].data
    assert "shop.test.web.r2" not in world.specs and data["failed_requests"] >= 100


def test_what_a_tester_asks_a_candidate_is_no_user(world: World) -> None:
    world.ship("1")
    started = world.begin("2")
    started.drive(until=lambda state, action: isinstance(action, Judge))
    world.counted["shop.test.web.r2"] = Counts(requests=50, errors=50)
    started.drive()
    assert world.journal().history()[-1].data["failed_requests"] == 0


def test_a_worker_alone_is_released_by_its_replicas(world: World) -> None:
    worker = "services: {work: {command: run, port: null, replicas: {default: 2}}}"
    assert world.ship("1", text=worker).outcome is Outcome.PROMOTED
    assert world.ship("2", Strategy.ROLLING, worker).outcome is Outcome.PROMOTED
    check_live(world.platform, world.journal())
    assert world.routing is None and not left_over(world)


def test_a_worker_that_was_started_twice_is_not_released(world: World) -> None:
    worker = "services: {work: {command: run, port: null}}"
    world.ship("1", text=worker)
    world.restarts["shop.test.work.r2"] = 1
    assert world.ship("2", text=worker).outcome is Outcome.ROLLED_BACK
    assert set(world.specs) == {"shop.test.work.r1"}


def test_a_worker_beside_a_public_service_is_judged_too(world: World) -> None:
    both = "services: {web: {command: run}, work: {command: run, port: null}}"
    world.ship("1", text=both)
    world.restarts["shop.test.work.r2"] = 1
    assert world.ship("2", text=both).outcome is Outcome.ROLLED_BACK


def test_a_live_version_that_vanished_is_not_missed_by_verify(world: World) -> None:
    worker = "services: {work: {command: run, port: null}}"
    world.ship("1", text=worker)
    world.specs.clear()
    with pytest.raises(Failed, match="0 of 1 replicas"):
        check_live(world.platform, world.journal())


def test_a_release_over_a_version_that_vanished_goes_through(world: World) -> None:
    world.ship("1")
    world.specs.clear()
    world.vanished = True
    assert world.ship("2", Strategy.ROLLING).outcome is Outcome.PROMOTED
    assert world.weights() == {"shop.test.web.r2": 100}


def test_recover_starts_again_what_was_lost_and_writes_it_down(world: World) -> None:
    world.ship("1")
    world.specs.clear()
    journal = world.journal()
    assert "started shop.test.web.r1" in restore_live(world.platform, journal)
    assert world.specs["shop.test.web.r1"].replicas == 2
    last = world.journal().entries[-2:]
    assert [e.kind for e in last] == [Kind.INTENT, Kind.DONE]
    assert restore_live(world.platform, world.journal()) == "1 serves"
    assert len(world.journal().entries) == len(journal.entries)


def test_recover_keeps_a_live_version_that_was_about_to_expire(world: World) -> None:
    world.ship("1")
    world.expire("shop.test.web.r1", datetime(2026, 1, 2, tzinfo=UTC))
    restore_live(world.platform, world.journal())
    assert world.specs["shop.test.web.r1"].expires_at is None


def test_an_outage_in_the_middle_is_waited_for(world: World) -> None:
    world.ship("1")
    started = world.begin("2")
    started.drive(until=on_trial)
    world.silent, sleep, back = True, world.sleep, world.seconds + 20

    def back_after(seconds: float) -> None:
        sleep(seconds)
        world.silent = world.seconds < back

    world.sleep = back_after  # type: ignore[method-assign]
    assert started.drive().outcome is Outcome.PROMOTED


def test_an_outage_that_lasts_ends_the_release_as_not_proved(world: World) -> None:
    world.ship("1")
    started = world.begin("2")
    started.drive(until=on_trial)
    world.silent = True
    assert started.drive() == Finish("already ended", Outcome.ROLLBACK_FAILED)
    assert world.outcomes() == [Outcome.PROMOTED, Outcome.ROLLBACK_FAILED]


def test_an_outage_after_all_steps_have_passed_does_not_undo_them(world: World) -> None:
    world.ship("1")
    started = world.begin("2")
    started.drive(until=lambda state, action: state.complete)
    world.silent = True
    assert started.drive().outcome is Outcome.PROMOTED
    world.silent, world.run = False, "run-2"
    restore_live(world.platform, world.journal())
    assert not left_over(world)


def test_a_release_left_on_trial_is_judged_by_a_verify_of_another_run(world: World) -> None:
    world.ship("1")
    world.begin("2").drive(until=on_trial)
    world.run, world.seconds = "run-2", world.seconds + 7200
    journal = world.journal()
    found = trial(world.platform, journal)
    assert isinstance(found, Rollout) and found.drive() == PROMOTED
    assert Kind.TAKEN_OVER in [entry.kind for entry in journal.entries]


def test_a_release_left_half_way_is_not_continued_by_a_verify(world: World) -> None:
    world.ship("1")
    world.begin("2").drive(until=lambda state, action: isinstance(action, Judge))
    world.run = "run-2"
    assert trial(world.platform, world.journal()) is None


def test_a_public_name_changes_with_the_switch_and_not_before(world: World) -> None:
    world.ship("1")
    named = f"{WEB}\nenvironments: {{test: {{host: new.example}}}}"
    application = parse(f"name: shop\n{named}\n")
    record = world.record("2")
    moved = BuildRecord.of(application, record.artifact, "unversioned")
    Records(world.store).keep(moved)
    started = begin(world.platform, moved, "test", strategy=Strategy.BLUE_GREEN)
    started.drive(until=lambda state, action: isinstance(action, Judge))
    assert world.routing is not None and world.routing.host == "shop.test.localhost"
    started.drive()
    assert world.routing.host == "new.example"


def test_paths_that_move_between_services_are_never_without_an_answer(world: World) -> None:
    one = "services: {web: {command: run, routes: [/]}}"
    two = "services: {web: {command: run, routes: [/]}, api: {command: run, routes: [/api]}}"
    world.ship("1", text=one)
    owners: list[dict[str, list[str]]] = []
    write = world.write

    def noted(routing: Routing) -> None:
        write(routing)
        owners.append({r.service: [p for p in r.paths if not r.weights] for r in routing.routes})

    world.write = noted  # type: ignore[method-assign]
    world.ship("2", Strategy.ROLLING, two)
    world.ship("3", Strategy.ROLLING, one)
    claimed = [found for found in owners if any(found.values())]
    assert not claimed, "a service without weight takes requests away from the one that answers"


def test_what_serves_already_is_not_gone_back_to(world: World) -> None:
    world.ship("1")
    world.ship("2")
    with pytest.raises(UsageError) as caught:
        target_release(world.journal(), 2)
    assert caught.value.code == "SLP004"
    goal = target_release(world.journal(), 0)
    record = Records(world.store).record(goal.digest)
    began = begin(world.platform, record, "test", strategy=Strategy.BLUE_GREEN, back_to=goal)
    assert began.drive() == PROMOTED
    assert world.weights() == {"shop.test.web.r1": 100}
    assert world.specs["shop.test.web.r1"].expires_at is None
    assert target_release(world.journal(), 0).version == "2"


def test_a_refusal_noted_in_the_same_moment_does_not_share_a_number(world: World) -> None:
    world.ship("1")
    other, create = world.journal(), world.store.create
    record, noted = world.record("2"), False

    def note_first(key: str, content: bytes) -> None:
        nonlocal noted
        if b'"started"' in content and not noted:
            noted = True
            other.note(Kind.REFUSED, {"version": "x", "reason": "a test failed"})
        create(key, content)

    world.store.create = note_first  # type: ignore[method-assign]
    began = begin(world.platform, record, "test", strategy=Strategy.BLUE_GREEN)
    assert began.number == 3 and began.drive() == PROMOTED
    assert world.outcomes() == [Outcome.PROMOTED, Outcome.REFUSED, Outcome.PROMOTED]


def test_the_log_of_a_replica_is_told_without_its_passwords(world: World) -> None:
    world.ship("1")
    world.never_ready = {"shop.test.web.r2"}
    assert world.ship("2").outcome is Outcome.ROLLED_BACK
    error = releasing.error_of(world.journal(), world.journal().history()[-1])
    assert error.code == "SLP051" and "is not there" in error.detail
    assert "hunter2" not in error.detail and isinstance(error, SlipwayError)
