"""Ramps, kills and settings against real files and a real journal; only users and time are made up.

The made-up replicas read the flag file a second late, as the provider may.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from blocks.file_store import FileStore
from blocks.flag_metrics import Arms, FlagReading
from blocks.flags import FileFlags
from blocks.journal import Journal
from domain.application import Strategy
from domain.errors import Failed, NeedsPerson, UsageError
from domain.flags import Definition, parse
from domain.journal import Kind, verify
from domain.judge import Limits
from domain.ramp import Did, Ended, Ramp, flags_left, replay, unfinished_ramp
from domain.rollout import Policy, steps_for
from domain.rollout import replay as replay_release
from domain.routing import Counts
from tasks import ramping
from tasks.ramping import Ramping

APP, ENV, FLAG = "shop", "production", "basket"
SWITCH = {"state": "ENABLED", "variants": {"on": True, "off": False}, "defaultVariant": "off"}
BOUNDS = ("0.1", "+Inf")
LAG = timedelta(seconds=1)


class Died(BaseException):
    """The process was killed; nothing of it runs any more."""


@dataclass
class World:
    root: Path
    errors: Callable[[str], float] = lambda variant: 0.0
    rate: int = 400
    now: datetime = datetime(2026, 5, 1, tzinfo=UTC)
    total: Arms = field(default_factory=Arms)
    shares: list[tuple[datetime, float]] = field(default_factory=list)
    deaf: bool = False
    blind: bool = False
    dies_at: int = -1
    calls: int = 0

    def __post_init__(self) -> None:
        self.flags = FileFlags(self.root / "flags")
        source = parse(json.dumps({"flags": {FLAG: SWITCH, "other": SWITCH}}), "flags.json")
        self.flags.change(APP, ENV, lambda known: known.carrying(source, [FLAG, "other"]))

    def journal(self, actor: str = "ann") -> Journal:
        store = FileStore(self.root / "store")
        return Journal(store, APP, ENV, actor=actor, run="run", now=lambda: self.now)

    @property
    def share(self) -> float:
        return (self.flags.read(APP, ENV) or Definition.empty()).share(FLAG)

    def pause(self, seconds: float) -> None:
        """Time passes, and users come."""
        self.die()
        if not self.shares or self.shares[-1][1] != self.share:
            self.shares.append((self.now, self.share))
        self.now += timedelta(seconds=seconds)
        read = [share for at, share in self.shares if self.now - at >= LAG] or [0.0]
        share = 1.0 if self.deaf else read[-1]
        on = round(self.rate * share)
        self.total += Arms(self.met("on", on), self.met("off", self.rate - on))

    def met(self, variant: str, count: int) -> Counts:
        errors = round(count * self.errors(variant))
        return Counts(requests=count, errors=errors, buckets=dict.fromkeys(BOUNDS, count))

    def open(self) -> Any:
        return FakeMeter(self, self.total)

    def die(self) -> None:
        self.calls += 1
        if self.calls == self.dies_at:
            raise Died

    def ramping(self, **more: Any) -> Ramping:
        return Ramping(self.flags, self.journal(), FLAG, self.open, pause=self.pause, **more)


@dataclass
class FakeMeter:
    world: World
    base: Arms

    def __post_init__(self) -> None:
        self._look()

    def read(self) -> FlagReading:
        self._look()
        return FlagReading(self.world.now, self.world.total.since(self.base))

    def close(self) -> None: ...

    def _look(self) -> None:
        self.world.die()
        if self.world.blind:
            raise Failed("SLP014", "a replica did not answer", help="wait")


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setattr("blocks.flags.AGAIN_SECONDS", 0.0)
    return World(tmp_path)


def ramp(*steps: str, **limits: Any) -> Ramp:
    return Ramp.model_validate(
        {"flag": FLAG, "steps": steps or ("10%", "50%", "100%"), "limits": Limits(**limits),
         "verdict_deadline": "2m"}
    )  # fmt: skip


def run(world: World, what: Ramp | None = None) -> tuple[Ended, Ramping]:
    under_way = world.ramping()
    under_way.begin(what or ramp())
    return under_way.drive().outcome, under_way


def did(world: World) -> list[str]:
    return [str(e.data["did"]) for e in world.journal().entries if e.kind is Kind.FLAG]


def test_a_good_flag_goes_through_its_steps_each_judged(world: World) -> None:
    ended, under_way = run(world)
    assert (ended, world.share) == (Ended.RAMPED, 1.0)
    assert [share for _, share in world.shares] == [0.1, 0.5]
    assert [judged["verdict"] for judged in under_way.judgements] == ["pass", "pass"]
    assert under_way.judgements[0]["numbers"]["candidate_requests"] >= 200
    assert did(world).count(Did.STEP_PASSED) == 2


def test_100_percent_is_judged_by_the_objectives_since_nobody_is_left_to_compare_with(
    world: World,
) -> None:
    ended, under_way = run(world, ramp(error_rate=0.01))
    assert (ended, world.share) == (Ended.RAMPED, 1.0)
    assert [judged["verdict"] for judged in under_way.judgements] == ["pass"] * 3
    assert "stable_requests" not in under_way.judgements[-1]["numbers"]


def test_what_breaks_an_objective_at_100_percent_alone_is_killed(world: World) -> None:
    world.errors = lambda variant: 0.2 if world.share == 1.0 else 0.0
    ended, under_way = run(world, ramp(error_rate=0.01))
    assert (ended, world.share) == (Ended.KILLED, 0.0)
    assert under_way.judgements[-1]["numbers"]["rule"] == "objective error_rate"


def test_without_objectives_100_percent_is_said_not_to_be_judged(world: World) -> None:
    under_way = world.ramping()
    under_way.begin(ramp())
    ended = under_way.drive()
    assert ended.outcome is Ended.RAMPED and "100% was not judged" in ended.reason


def test_a_bad_flag_is_killed_and_the_kill_is_seen_in_the_replicas(world: World) -> None:
    world.errors = lambda variant: 0.2 if variant == "on" else 0.0
    ended, under_way = run(world)
    assert (ended, world.share) == (Ended.KILLED, 0.0)
    assert under_way.judgements[0]["verdict"] == "fail"
    before = world.total
    world.pause(1.0)
    assert world.total.since(before).on.requests == 0
    assert isinstance(ramping.error_of(FLAG, under_way.drive()), Failed)


def test_no_request_is_no_evidence_and_kills_in_the_end(world: World) -> None:
    world.rate = 0
    assert run(world)[0] is Ended.KILLED
    assert world.share == 0


def test_too_few_requests_hold_and_never_pass(world: World) -> None:
    world.rate = 1
    ended, _ = run(world)
    assert ended is Ended.KILLED
    assert Did.STEP_PASSED not in did(world)


def test_replicas_that_cannot_be_asked_are_no_zero_and_the_kill_is_not_claimed(
    world: World,
) -> None:
    under_way = world.ramping()
    under_way.begin(ramp())
    world.blind = True
    ended = under_way.drive()
    assert (ended.outcome, world.share) == (Ended.KILL_FAILED, 0.0)
    assert isinstance(ramping.error_of(FLAG, ended), NeedsPerson)


def test_a_replica_that_goes_on_giving_the_flag_is_told(world: World) -> None:
    world.errors = lambda variant: 0.2 if variant == "on" else 0.0
    world.deaf = True
    assert run(world)[0] is Ended.KILL_FAILED


def test_a_flag_that_cannot_be_counted_is_refused_before_anybody_gets_it(world: World) -> None:
    world.blind = True
    with pytest.raises(Failed):
        run(world)
    assert (world.share, did(world)) == (0.0, [])


def test_a_kill_by_hand_stops_a_ramp_and_stays(world: World) -> None:
    under_way = world.ramping()
    under_way.begin(ramp())
    pause, killed = world.pause, []

    def kill_at_half(seconds: float) -> None:
        pause(seconds)
        if world.share == 0.5 and not killed:
            killed.append(ramping.kill(world.flags, world.journal("bob"), FLAG, world.open, pause))

    under_way.pause = kill_at_half
    ended = under_way.drive()
    assert ended.outcome is Ended.SUPERSEDED
    assert "bob" in ended.reason
    assert world.share == 0
    assert "none got it" in killed[0]


def test_a_kill_between_the_intent_of_a_ramp_and_its_effect_wins(world: World) -> None:
    under_way = world.ramping()
    under_way.begin(ramp())
    change, done = world.flags.change, []

    def late(*args: Any) -> Definition:
        if not done:
            done.append(1)
            ramping.set_share(world.flags, world.journal("bob"), FLAG, 0.0)
        return change(*args)

    world.flags.change = late  # type: ignore[method-assign]
    assert under_way.drive().outcome is Ended.SUPERSEDED
    assert world.share == 0


def test_a_file_edited_by_hand_is_not_turned_on_again(world: World) -> None:
    under_way = world.ramping()
    under_way.begin(ramp())
    pause = world.pause

    def edit(seconds: float) -> None:
        if world.share == 0.5:
            world.flags.change(APP, ENV, lambda known: known.killed([FLAG]))
        pause(seconds)

    under_way.pause = edit
    ended = under_way.drive()
    assert (ended.outcome, world.share) == (Ended.KILLED, 0.0)
    assert "nobody of this ramp put it" in ended.reason


@pytest.mark.parametrize(
    ("errors", "recovers"), [(0.0, False), (0.3, False), (0.3, True)],
    ids=["good", "bad", "recover"],
)  # fmt: skip
def test_killed_at_any_call_the_next_run_or_recover_ends_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, errors: float, recovers: bool
) -> None:
    """SIGKILL at every journal entry, change, look and pause."""
    monkeypatch.setattr("blocks.flags.AGAIN_SECONDS", 0.0)
    for at in range(1, 400):
        world = World(tmp_path / str(at), errors=lambda v: errors if v == "on" else 0.0)
        world.dies_at = at
        append, change = Journal.flag, world.flags.change

        def dying(self: Journal, data: Any, world: World = world, append: Any = append) -> Any:
            world.die()
            entry = append(self, data)
            world.die()
            return entry

        def changing(*args: Any, world: World = world, change: Any = change) -> Any:
            world.die()
            changed = change(*args)
            world.die()
            return changed

        with monkeypatch.context() as patched:
            patched.setattr(Journal, "flag", dying)
            world.flags.change = changing  # type: ignore[method-assign]
            try:
                run(world)
                survived = True
            except Died:
                survived = False
        world.flags.change = change  # type: ignore[method-assign]
        if survived:
            assert at > 20, "it must have died at some calls"
            return
        if recovers:
            end_left(world)
            assert world.share == 0 and flags_left(world.journal().entries) == ()
            continue
        if unfinished_ramp(world.journal().entries, FLAG) or not did(world):
            ended, _ = run(world)
        else:
            ended = replay(world.journal().entries, FLAG).finished or Ended.KILL_FAILED
        assert ended is (Ended.KILLED if errors else Ended.RAMPED)
        assert world.share == (0.0 if errors else 1.0)
        assert not verify(world.journal().raw(), APP, ENV)
    raise AssertionError("it never survived")


def end_left(world: World) -> None:
    """What recover does."""
    for flag in flags_left(world.journal().entries):
        assert flag == FLAG
        assert world.ramping().end_left("its process died").outcome is Ended.KILLED


def test_a_ramp_whose_process_died_is_turned_off_and_not_one_that_ended(world: World) -> None:
    under_way = world.ramping()
    under_way.begin(ramp())
    pause, kills = world.pause, iter([False] * 9 + [True])

    def die(seconds: float) -> None:
        pause(seconds)
        if world.share == 0.5 and next(kills, True):
            raise Died

    under_way.pause = die
    with pytest.raises(Died):
        under_way.drive()
    assert world.share == 0.5
    end_left(world)
    assert world.share == 0 and did(world)[-1] == Did.RAMP_FINISHED
    assert run(world)[0] is Ended.RAMPED
    end_left(world)
    assert world.share == 1.0


def test_a_ramp_with_other_steps_than_the_one_left_is_refused(world: World) -> None:
    world.ramping().begin(ramp())
    with pytest.raises(UsageError, match="10%, 50%, 100%"):
        run(world, ramp("1%", "100%"))
    ramping.kill(world.flags, world.journal(), FLAG, world.open, world.pause)
    assert run(world, ramp("1%", "50%"))[0] is Ended.RAMPED
    assert world.share == 0.5


def test_a_stopped_ramp_turns_the_flag_off(world: World) -> None:
    under_way = world.ramping()
    under_way.begin(ramp())
    under_way.stop_requested = "cancelled"
    assert under_way.drive().outcome is Ended.KILLED
    assert did(world)[-1] == Did.RAMP_FINISHED


def test_a_flag_that_is_on_already_is_not_ramped_down(world: World) -> None:
    ramping.set_share(world.flags, world.journal(), FLAG, 0.5)
    with pytest.raises(UsageError, match="on for 50% already"):
        run(world)


def test_set_tells_what_it_was_and_refuses_an_unknown_flag(world: World) -> None:
    journal = world.journal()
    assert ramping.set_share(world.flags, journal, FLAG, 0.25) == 0
    assert ramping.set_share(world.flags, journal, FLAG, 1.0) == 0.25
    with pytest.raises(UsageError, match="SLP080"):
        ramping.set_share(world.flags, journal, "nowhere", 0.5)
    assert did(world) == [Did.SETTING, Did.SET, Did.SETTING, Did.SET]


def test_a_kill_that_replicas_do_not_obey_needs_a_person(world: World) -> None:
    world.deaf = True
    world.pause(1.0)
    with pytest.raises(NeedsPerson, match="SLP082"):
        ramping.kill(world.flags, world.journal(), FLAG, world.open, world.pause)


def test_a_kill_without_any_traffic_is_believed_after_a_silence(world: World) -> None:
    world.rate = 0
    seen = ramping.kill(world.flags, world.journal(), FLAG, world.open, world.pause)
    assert seen == "no request met the flag in 5 s"


def test_flags_leave_the_numbers_of_releases_and_a_release_under_way_alone(world: World) -> None:
    ramping.set_share(world.flags, world.journal(), FLAG, 0.1)
    release = world.journal("release")
    assert release.next_release() == 1
    policy = Policy(strategy=Strategy.BLUE_GREEN, steps=steps_for(Strategy.BLUE_GREEN, 1))
    started = {"policy": policy.model_dump(mode="json"), "candidate": [], "stable": []}
    release.append(1, Kind.STARTED, started)
    ramping.set_share(world.flags, world.journal(), FLAG, 0.2)
    release.append(1, Kind.INTENT, {})
    assert release.next_release() == 2
    assert replay_release(e for e in release.entries if e.release == 1).policy == policy
    assert not verify(release.raw(), APP, ENV)
