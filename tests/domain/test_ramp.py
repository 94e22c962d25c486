"""The ramp of a flag under generated histories."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain.flags import check_steps
from domain.journal import Entry, Kind, next_entry
from domain.ramp import (
    Abort,
    Did,
    Ended,
    Finish,
    Judge,
    Look,
    Observation,
    Pass,
    ProveOff,
    Ramp,
    SetShare,
    State,
    next_action,
    replay,
    superseded,
    unfinished_ramp,
)
from domain.verdict import Verdict

T0 = datetime(2026, 5, 1, tzinfo=UTC)


def ramp(*steps: str) -> Ramp:
    return Ramp.model_validate({"flag": "a", "steps": steps})


RAMP = ramp("10%", "50%", "100%")


@pytest.mark.parametrize(
    "steps",
    [(), (0.0, 1.0), (0.5, 0.1), (0.5, 0.5), (1.0,), (0.1, 1.1), (0.00001, 1.0)],
)
def test_steps_that_cannot_be_judged_are_refused(steps: tuple[float, ...]) -> None:
    assert check_steps(steps)


def test_a_ramp_cannot_be_made_of_such_steps() -> None:
    assert check_steps((0.1, 0.5, 1.0)) is None
    with pytest.raises(ValueError, match="steps must grow"):
        ramp("50%", "10%")


@dataclass
class World:
    """A journal, a flag file, and a process that may die before and after each effect."""

    policy: Ramp
    share: float = 0.0
    now: datetime = T0
    entries: list[Entry] = field(default_factory=list)
    passed_at: list[float] = field(default_factory=list)

    def write(self, did: Did, writer: str = "me", ramp: str = "r1", **data: Any) -> None:
        data = {"flag": "a", "writer": writer, "did": did.value, "ramp": ramp, **data}
        self.entries.append(
            next_entry(
                self.entries, at=self.now, application="shop", environment="production",
                release=1, kind=Kind.FLAG, actor="ann", run="run", data=data,
            )
        )  # fmt: skip

    def begin(self) -> None:
        policy = self.policy.model_dump(mode="json")
        self.write(Did.RAMP_STARTED, policy=policy, base=self.share)

    def step(self, verdict: Verdict, off: Verdict, seen: bool, dies: bool) -> Ended | None:
        """One turn of the loop; a process that dies leaves its intent without its outcome."""
        state = replay(self.entries, "a")
        action = next_action(
            state,
            Observation(self.now, self.share if seen else None, verdict, "seen", off),
        )
        match action:
            case SetShare(share=share):
                self.write(Did.SETTING, share=share)
                if not dies:
                    self.share = share
                    self.write(Did.SET, share=share)
            case Pass():
                self.passed_at.append(self.share)
                assert verdict is Verdict.PASS, "only a pass goes on"
                self.write(Did.STEP_PASSED)
            case Abort():
                self.write(Did.ABORTING, reason=action.reason)
            case Finish(outcome=outcome):
                self.write(Did.RAMP_FINISHED, outcome=outcome.value)
                return outcome
            case _:
                assert isinstance(action, Judge | Look | ProveOff)
        return None


turns = st.lists(
    st.tuples(
        st.sampled_from(Verdict),
        st.sampled_from(Verdict),
        st.booleans(),
        st.booleans(),
        st.sampled_from([timedelta(), timedelta(seconds=20), timedelta(hours=2)]),
    ),
    max_size=60,
)


@given(turns, st.sampled_from([("10%", "50%", "100%"), ("1%",), ("0.01%", "99%")]))
def test_whatever_happens_a_ramp_goes_on_by_passes_alone_and_ends_off_otherwise(
    history: list[tuple[Verdict, Verdict, bool, bool, timedelta]], steps: tuple[str, ...]
) -> None:
    world = World(ramp(*steps))
    world.begin()
    for verdict, off, seen, dies, later in history:
        before = world.share
        ended = world.step(verdict, off, seen, dies)
        world.now += later
        if world.share > before:
            allowed = len(world.passed_at)
            assert world.share == world.policy.steps[allowed], "one step, after its pass"
        if ended is Ended.KILLED:
            assert world.share == 0
        if ended is Ended.RAMPED:
            assert world.share == world.policy.steps[-1]
        if ended is not None:
            assert unfinished_ramp(world.entries, "a") is None
            return
    # Whoever goes on ends it: nothing passes any more, and replicas answer.
    for _ in range(20):
        world.now += timedelta(hours=2) if replay(world.entries, "a").aborting is None else (
            timedelta(seconds=1)
        )  # fmt: skip
        ended = world.step(Verdict.FAIL, Verdict.PASS, True, False)
        if ended is not None:
            assert ended in (Ended.KILLED, Ended.RAMPED, Ended.KILL_FAILED)
            assert ended is not Ended.KILLED or world.share == 0
            return
    raise AssertionError("the ramp never ended")


def seen(share: float | None, **more: Any) -> Observation:
    return Observation(T0, share, **more)


def state(**more: Any) -> State:
    return State(RAMP, 0.0, T0, **more)


def test_the_flow_of_a_good_ramp() -> None:
    world = World(ramp("10%", "50%", "100%"))
    world.begin()
    ended = None
    while ended is None:
        ended = world.step(Verdict.PASS, Verdict.NOT_RUN, True, False)
    assert (ended, world.share, world.passed_at) == (Ended.RAMPED, 1.0, [0.1, 0.5])


@pytest.mark.parametrize("verdict", [v for v in Verdict if v is not Verdict.PASS])
def test_anything_but_a_pass_in_its_time_kills(verdict: Verdict) -> None:
    late = Observation(T0 + timedelta(hours=2), 0.1, verdict, "few requests")
    assert isinstance(next_action(state(is_set=True), late), Abort)
    soon = next_action(state(is_set=True), seen(0.1, verdict=verdict))
    assert isinstance(soon, Abort if verdict is Verdict.FAIL else Judge)


def test_a_flag_that_a_person_turned_off_in_the_file_is_not_turned_on_again() -> None:
    assert isinstance(next_action(state(is_set=True), seen(0.0)), Abort)
    assert isinstance(next_action(state(step=1), seen(0.0)), Abort)


def test_a_file_that_cannot_be_read_is_waited_for_and_then_kills() -> None:
    assert isinstance(next_action(state(), seen(None)), Look)
    late = Observation(T0 + timedelta(hours=2), None)
    assert isinstance(next_action(state(), late), Abort)


def test_a_kill_is_not_over_before_it_is_proved() -> None:
    aborting = state(aborting="worse")
    assert next_action(aborting, seen(0.1)) == SetShare("off for everybody: worse", 0.0)
    assert isinstance(next_action(aborting, seen(None)), SetShare)
    for off in Verdict:
        action = next_action(aborting, seen(0.0, off=off))
        expected = Finish if off is Verdict.PASS else ProveOff
        assert isinstance(action, expected)
        late = Observation(T0 + timedelta(minutes=1), 0.0, off=off)
        if off is not Verdict.PASS:
            ended = next_action(aborting, late)
            assert isinstance(ended, Finish)
            assert ended.outcome is Ended.KILL_FAILED


def test_a_ramp_whose_flag_somebody_else_took_leaves_it_alone() -> None:
    world = World(RAMP)
    world.begin()
    world.write(Did.SET, share=0.1)
    assert superseded(world.entries, "a", "me") is None
    world.write(Did.SETTING, writer="bob", ramp="", share=0.0)
    world.write(Did.SETTING, share=0.5)  # intended before it knew of bob
    why = superseded(world.entries, "a", "me")
    assert why is not None and "ann wrote `setting`" in why
    assert unfinished_ramp(world.entries, "a") is None
    ended = next_action(state(is_set=True), seen(0.0, superseded=why))
    assert ended == Finish(why, Ended.SUPERSEDED)


def test_entries_of_other_flags_and_carrying_change_no_ramp() -> None:
    world = World(RAMP)
    world.begin()
    world.write(Did.SET, share=0.1)
    before = replay(world.entries, "a")
    world.write(Did.CARRIED, writer="bob", ramp="")
    world.write(Did.SETTING, writer="bob", ramp="", flag="b")
    assert replay(world.entries, "a") == before


def test_somebody_who_takes_over_gets_the_whole_time_again() -> None:
    world = World(RAMP)
    world.begin()
    world.now += timedelta(hours=3)
    world.write(Did.TAKEN_OVER)
    assert replay(world.entries, "a").since == world.now


def test_the_replay_of_what_the_journal_stored_is_the_same() -> None:
    world = World(RAMP)
    world.begin()
    world.write(Did.SET, share=0.1)
    world.write(Did.STEP_PASSED)
    stored = [Entry.model_validate_json(entry.to_bytes()) for entry in world.entries]
    assert replay(stored, "a") == replay(world.entries, "a")


def test_a_zombie_neither_moves_the_ramp_nor_takes_it_back() -> None:
    world = World(RAMP)
    world.begin()
    world.write(Did.TAKEN_OVER, writer="second")
    taken = replay(world.entries, "a")
    world.write(Did.STEP_PASSED)
    world.write(Did.SET, share=0.5)
    assert replay(world.entries, "a") == taken
    assert superseded(world.entries, "a", "second") is None
    assert superseded(world.entries, "a", "me") is not None
