"""Retention over generated histories, and each way in which a rival has lost data.

The oracle below knows the promises and nothing of how ``domain.retention`` keeps them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from domain.recovery import CopyState
from domain.retention import (
    DAY,
    Act,
    Location,
    Plan,
    Point,
    Policy,
    gate,
    plan,
    violations,
)
from domain.retention_history import simulate, summary

START = datetime(2026, 1, 1, 2, tzinfo=UTC)
POLICY = Policy()


def point(number: int, at: datetime, **more: object) -> Point:
    made = Point(
        point=f"{number:08d}", sequence=number, state=CopyState.COMPLETE, data_time=at,
        stored_at=at, proved=True, bytes=10,
    )  # fmt: skip
    return replace(made, **more)  # type: ignore[arg-type]


def nights(count: int, **more: object) -> list[Point]:
    """One proved point a night, the last one at the end of the list."""
    return [point(n + 1, START + DAY * n, **more) for n in range(count)]


def at(points: Sequence[Point], now: datetime, **more: object) -> Location:
    return replace(Location("aws", tuple(points), now), **more)  # type: ignore[arg-type]


def reasons(planned: Plan) -> dict[int, str]:
    return {step.point.sequence: f"{step.act}: {step.reason}" for step in planned.steps}


def gone(planned: Plan) -> set[int]:
    return {step.point.sequence for step in planned.deletes}


# The oracle


@dataclass
class World:
    """One location, what was really saved, and a clock that may jump."""

    points: dict[str, Point]
    number: int = 0

    def usable(self) -> list[Point]:
        return [p for p in self.points.values() if p.state is CopyState.COMPLETE and p.proved]

    def can_bring_back(self, moment: datetime) -> bool:
        return any(p.data_time and p.data_time <= moment for p in self.usable())

    def carry_out(self, planned: Plan, now: datetime, most: int | None = None) -> None:
        """As tasks.expiring does it; ``most`` deletes, then killed."""
        for step in planned.deletes[:most]:
            if step.act is Act.TOMBSTONE:
                hidden = replace(step.point, state=CopyState.TOMBSTONED, tombstoned_at=now)
                self.points[step.point.point] = hidden
            else:
                self.points.pop(step.point.point, None)


FATES = st.sampled_from(
    ["proved"] * 8
    + ["unproved", "missing", "partial", "damaged", "held", "twice", "future", "past"]
)
HISTORIES = st.lists(FATES, min_size=1, max_size=70)


def save(world: World, fate: str, now: datetime) -> None:
    if fate == "missing":
        return
    for _ in range(2 if fate == "twice" else 1):
        world.number += 1
        shift = {"future": DAY * 40, "past": -DAY * 40}.get(fate, timedelta(0))
        made = point(world.number, now + shift)
        if fate == "unproved":
            made = replace(made, proved=False)
        if fate == "partial":
            made = replace(made, state=CopyState.PARTIAL, data_time=None, proved=False)
        if fate == "damaged":
            made = replace(made, state=CopyState.DAMAGED)
        if fate == "held":
            made = replace(made, held="audit")
        world.points[made.point] = replace(made, stored_at=now)


@settings(max_examples=60)
@given(HISTORIES, st.data())
def test_promises_hold_night_after_night(history: list[str], data: st.DataObject) -> None:
    world, policy = World({}), Policy(retention=DAY * 10, grace=DAY * 2)
    for night, fate in enumerate(history):
        now = START + DAY * night
        save(world, fate, now)
        location = at(list(world.points.values()), now)
        planned = plan(location, policy, now)
        assert plan(at(list(reversed(location.points)), now), policy, now).digest == planned.digest
        if gate(location, planned, policy, now) is not None:
            continue
        before = World(dict(world.points))
        moments = [policy.window_start(now) + DAY * n for n in range(11)]
        days = [m for m in moments if before.can_bring_back(m)]
        killed = data.draw(st.integers(0, len(planned.deletes)))
        world.carry_out(planned, now, killed)
        again = plan(at(list(world.points.values()), now), policy, now)
        world.carry_out(again, now)
        whole = World(dict(before.points))
        whole.carry_out(planned, now)
        assert {p.point: p.state for p in world.points.values()} == {
            p.point: p.state for p in whole.points.values()
        }  # killed anywhere, a rerun ends where an undisturbed run ends
        assert len(world.usable()) >= min(policy.keep_proved, len(before.usable()))
        assert all(world.can_bring_back(m) for m in days)
        held = {p.point for p in before.points.values() if p.held}
        assert held <= world.points.keys()
        assert all(world.points[p].state is not CopyState.TOMBSTONED for p in held)


@settings(max_examples=200)
@given(st.lists(FATES, max_size=40), st.integers(0, 60), st.integers(1, 5))
def test_the_second_opinion_never_objects_to_a_plan(
    history: list[str], later: int, keep: int
) -> None:
    """Two pieces of code that share nothing agree on what is promised."""
    world = World({})
    for night, fate in enumerate(history):
        save(world, fate, START + DAY * night)
    now = START + DAY * (len(history) + later)
    policy = Policy(retention=DAY * 7, keep_proved=keep)
    location = at(list(world.points.values()), now)
    assert violations(location, plan(location, policy, now), policy, now) == []


@given(st.sets(st.integers(1, 45), max_size=20))
def test_the_second_opinion_objects_to_what_breaks_a_promise(numbers: set[int]) -> None:
    """It can fail: a plan that deletes what must stay is found out."""
    points = nights(45)
    now = START + DAY * 44
    location = at(points, now)
    honest = plan(location, POLICY, now)
    forged = Plan(
        "aws",
        tuple(
            replace(s, act=Act.TOMBSTONE if s.point.sequence in numbers else s.act)
            for s in honest.steps
        ),
    )
    must_stay = {s.point.sequence for s in honest.steps if s.act is Act.KEEP}
    assert bool(violations(location, forged, POLICY, now)) == bool(numbers & must_stay)


def test_a_point_in_doubt_stays_in_doubt_when_a_crash_comes_after_the_first_delete() -> None:
    """What made it doubtful was hidden first; the rerun then took the doubtful one as well."""
    fates = ["proved", "missing", "past", *["proved"] * 13]
    world, policy = World({}), Policy(retention=DAY * 10, grace=DAY * 2)
    for night, fate in enumerate(fates):
        save(world, fate, START + DAY * night)
    now = START + DAY * (len(fates) - 1)
    planned = plan(at(list(world.points.values()), now), policy, now)
    assert 1 in gone(planned)
    assert 2 not in gone(planned)
    world.carry_out(planned, now)
    assert gone(plan(at(list(world.points.values()), now), policy, now)) == set()


# Rules by example


def test_thirty_days_and_the_anchor_stay() -> None:
    now = START + DAY * 44
    planned = plan(at(nights(45), now), POLICY, now)
    kept = {n for n, reason in reasons(planned).items() if reason.startswith("keep")}
    assert kept == set(range(14, 46))  # the window begins at midnight; 14 is from before it
    assert "anchor" in reasons(planned)[14]
    assert "older than the window" in reasons(planned)[13]


def test_pgbackrest_two_points_around_the_window_are_both_kept() -> None:
    """Fulls 25 and 35 days old and 30 days to keep: nothing is deleted."""
    now = START + DAY * 35
    points = [point(1, START), point(2, START + DAY * 10)]
    assert gone(plan(at(points, now), replace(POLICY, keep_proved=1), now)) == set()


def test_of_one_day_the_newest_stays_and_the_newest_proved_too() -> None:
    hours = timedelta(hours=1)
    day = [point(n, START + hours * n, proved=n != 5) for n in range(1, 6)]
    later = [point(n, START + DAY * (n - 5)) for n in range(6, 11)]
    now = START + DAY * 5
    assert gone(plan(at([*day, *later], now), POLICY, now)) == {1, 2, 3}


def test_weeks_and_months_are_kept_on_demand() -> None:
    now = START + DAY * 119
    policy = Policy(weekly=8, monthly=4)
    kept = {
        s.point.data_time.date()
        for s in plan(at(nights(120), now), policy, now).steps
        if s.act is Act.KEEP and s.point.data_time and s.point.data_time < now - DAY * 32
    }
    assert {str(day) for day in kept} == {"2026-01-31", "2026-02-28", "2026-03-15", "2026-03-22"}


def test_expired_is_hidden_first_and_purged_after_the_grace_period() -> None:
    stone = point(1, START, state=CopyState.TOMBSTONED, tombstoned_at=START + DAY * 40)
    rest = [p for p in nights(45) if p.sequence > 1]
    for days, act in ((41, Act.KEEP), (43, Act.PURGE)):
        now = START + DAY * days
        step = plan(at([stone, *rest], now), POLICY, now).steps[0]
        assert step.act is act
    assert "brought back until" in plan(at([stone], START + DAY * 41), POLICY,
                                        START + DAY * 41).steps[0].reason  # fmt: skip


def test_a_plan_is_named_by_what_it_deletes() -> None:
    now = START + DAY * 44
    points = nights(45)
    first = plan(at(points, now), POLICY, now)
    held = [replace(points[0], held="audit"), *points[1:]]
    assert plan(at(held, now), POLICY, now).digest != first.digest
    assert plan(at(points, now), POLICY, now).digest == first.digest


def test_far_more_than_usual_needs_somebody_who_read_the_plan() -> None:
    now = START + DAY * 44
    location = at(nights(45), now)
    planned = plan(location, POLICY, now)
    refused = gate(location, planned, POLICY, now)
    assert refused is not None and refused.by_size and planned.digest in refused.reason
    assert gate(location, planned, POLICY, now, approved=planned.digest) is None
    changed = gate(location, planned, POLICY, now, approved="0" * 16)
    assert changed is not None and "changed" in changed.reason and not changed.by_size


# Each way in which a rival has lost data


def test_velero_9061_nothing_expires_while_backups_fail() -> None:
    """Age alone deletes nothing: the last points stay, however old they are."""
    now = START + DAY * 400
    for count in (1, 2, 3):
        assert gone(plan(at(nights(count), now), POLICY, now)) == set()
    failed = [*nights(3), *[point(n, now - DAY * (9 - n), proved=False) for n in range(4, 9)]]
    assert {1, 2, 3} & gone(plan(at(failed, now), POLICY, now)) == set()


def test_portabase_332_failed_points_fill_no_quota() -> None:
    failed = [
        point(n, START + DAY * n, state=CopyState.PARTIAL, data_time=None) for n in range(4, 40)
    ]
    now = START + DAY * 60
    assert {1, 2, 3} & gone(plan(at([*nights(3), *failed], now), POLICY, now)) == set()


def test_borg_241_points_of_another_group_stop_everything() -> None:
    now = START + DAY * 44
    points = [*nights(44), point(45, START + DAY * 44, foreign="it belongs to shop in staging")]
    location = at(points, now)
    refused = gate(location, plan(location, POLICY, now), POLICY, now, approved="")
    assert refused is not None and "not of this application" in refused.reason


def test_restic_4568_a_policy_that_keeps_nothing_still_keeps_the_newest() -> None:
    now = START + DAY * 44
    nothing = Policy(retention=timedelta(0), keep_proved=1)
    planned = plan(at(nights(45), now), nothing, now)
    assert 45 not in gone(planned) and len(planned.steps) - len(gone(planned)) >= 2


def test_wal_g_636_order_is_by_number_never_by_name() -> None:
    now = START + DAY * 44
    names = [replace(p, point=f"{99 - p.sequence:08d}") for p in nights(45)]
    assert gone(plan(at(names, now), POLICY, now)) == set(range(1, 14))


@pytest.mark.parametrize("state", [CopyState.COMPLETE, CopyState.TOMBSTONED, CopyState.PARTIAL,
                                   CopyState.DAMAGED])  # fmt: skip
def test_wal_g_1768_a_hold_is_honoured_on_every_path(state: CopyState) -> None:
    held = point(1, START, state=state, held="legal", tombstoned_at=START)
    now = START + DAY * 400
    rest = [point(n, now - DAY * (50 - n)) for n in range(2, 50)]
    assert 1 not in gone(plan(at([held, *rest], now), POLICY, now))


def test_pgbackrest_2622_a_running_backup_is_not_swept_and_stops_the_rest() -> None:
    now = START + DAY * 44
    running = point(46, START, state=CopyState.PARTIAL, data_time=None, running=True)
    location = at([*nights(45), running], now)
    planned = plan(location, POLICY, now)
    assert 46 not in gone(planned)
    refused = gate(location, planned, POLICY, now, approved=planned.digest)
    assert refused is not None and "being made right now" in refused.reason


def test_what_was_never_finished_goes_after_a_day_and_not_before() -> None:
    left = point(5, START + DAY * 4, state=CopyState.PARTIAL, data_time=None)
    for hours, act in ((23, Act.KEEP), (25, Act.SWEEP)):
        now = left.stored_at + timedelta(hours=hours)
        steps = plan(at([*nights(4), left], now), POLICY, now).steps
        assert steps[-1].act is act


def test_restic_4612_a_failed_listing_is_not_an_empty_one() -> None:
    location = at([], START, problem="timeout after 3 pages")
    refused = gate(location, plan(location, POLICY, START), POLICY, START)
    assert refused is not None and "could not be listed" in refused.reason


@pytest.mark.parametrize("apart", [timedelta(minutes=6), -timedelta(minutes=6), DAY])
def test_kopia_2227_nothing_goes_while_the_clocks_differ(apart: timedelta) -> None:
    now = START + DAY * 44
    location = at(nights(45), now + apart)
    refused = gate(location, plan(location, POLICY, now), POLICY, now)
    assert refused is not None and "clock" in refused.reason


def test_restic_newer_snapshots_of_an_attacker_push_out_nothing() -> None:
    """From the future, or newer than the store has them: in doubt, and worth nothing."""
    now = START + DAY * 44
    forged = [point(100 + n, now + DAY * n, stored_at=now) for n in range(1, 10)]
    planned = plan(at([*nights(45), *forged], now), POLICY, now)
    honest = plan(at(nights(45), now), POLICY, now)
    assert gone(planned) == gone(honest)
    assert all("in doubt" in reasons(planned)[p.sequence] for p in forged)


def test_a_point_that_claims_another_time_than_its_number_displaces_nothing() -> None:
    now = START + DAY * 20
    backdated = point(30, START + DAY * 5 + timedelta(hours=3), stored_at=now)
    planned = plan(at([*nights(21), backdated], now), POLICY, now)
    assert "in doubt" in reasons(planned)[30] and 6 not in gone(planned)


def test_contents_that_somebody_needs_stay_in_the_pool() -> None:
    now = START + DAY * 44
    points = [replace(p, needs=frozenset({f"c{p.sequence}", "shared"})) for p in nights(45)]
    pool = [(f"c{n}", START) for n in range(46)] + [("shared", START), ("fresh", now)]
    planned = plan(at(points, now, pool=tuple(pool)), POLICY, now)
    assert planned.pool == ("c0",)  # even what only an expired point needs: it can come back
    unknown = [*points, point(46, now, state=CopyState.DAMAGED, data_time=None)]
    assert plan(at(unknown, now, pool=tuple(pool)), POLICY, now).pool == ()


def test_the_simulated_nights_end_with_thirty_days() -> None:
    seen = list(simulate(POLICY, 45, START))
    assert all(night.refusal is None for night in seen)
    lines = [line for night in seen for line in night.lines()]
    assert any("purge point 1" in line for line in lines)
    assert not any("point 3:" in line for line in lines)  # held
    assert "simulated" in summary(seen)


def test_every_step_has_a_reason() -> None:
    steps: Iterable[object] = (
        step for night in simulate(POLICY, 60, START) for step in night.planned.steps
    )
    assert all(getattr(step, "reason", "") for step in steps)
