"""The rollout's rules over generated histories: failures, crashes, dying replicas, cancellation."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from domain.application import Canary, Strategy
from domain.application import Testers as Marked  # pytest takes Test... for a class of tests
from domain.journal import Entry, Kind, Outcome, next_entry
from domain.rollout import (
    PASSED,
    Abort,
    Action,
    Advance,
    Contract,
    Finish,
    Group,
    Judge,
    KillFlags,
    Migrate,
    Observation,
    Policy,
    Retire,
    Route,
    Scale,
    Stop,
    Target,
    Wait,
    describe,
    next_action,
    replay,
    steps_for,
)
from domain.verdict import Verdict

START = datetime(2026, 1, 1, tzinfo=UTC)


@dataclass
class Replicas:
    desired: int
    ready: int
    exited: str | None = None
    expires: bool = False


@dataclass
class World:
    """A cluster, an edge, a clock and a journal, all in memory."""

    stable: tuple[Target, ...]
    candidate: tuple[Target, ...]
    policy: Policy
    now: datetime = START
    groups: dict[str, Replicas] = field(default_factory=dict)
    weights: dict[str, dict[str, int]] = field(default_factory=dict)
    mirrors: dict[str, dict[str, int]] = field(default_factory=dict)
    testers: dict[str, str] = field(default_factory=dict)
    evidence: list[Verdict] = field(default_factory=list)
    seen_evidence: Verdict = Verdict.NOT_RUN
    entries: list[Entry] = field(default_factory=list)
    candidate_starts: bool = True
    candidate_exits: bool = False
    verdicts: list[Verdict] = field(default_factory=list)
    stable_verdict: Verdict = Verdict.PASS
    stop_requested: str | None = None
    flags_on: tuple[str, ...] = ()
    seen_verdict: Verdict = Verdict.NOT_RUN
    preflight: Verdict = Verdict.NOT_RUN
    log: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        for target in self.stable:
            self.groups[target.workload] = Replicas(target.replicas, target.replicas)
            if target.public:
                self.weights[target.service] = {target.workload: 100}
        self.write(
            Kind.STARTED,
            policy=self.policy.model_dump(mode="json"),
            candidate=[t.model_dump() for t in self.candidate],
            stable=[t.model_dump() for t in self.stable],
        )

    def write(self, kind: Kind, **data: object) -> None:
        self.entries.append(
            next_entry(self.entries, at=self.now, application="a", environment="e", release=1,
                       kind=kind, actor="t", run="r", data=data)
        )  # fmt: skip

    def observe(self) -> Observation:
        groups = {
            w: Group(w, g.desired, g.ready, g.exited, expires=g.expires)
            for w, g in self.groups.items()
        }
        return Observation(self.now, groups, self.weights, self.seen_verdict,
                           self.preflight, stop_requested=self.stop_requested,
                           evidence=self.seen_evidence, mirrors=self.mirrors,
                           testers=self.testers, flags_on=self.flags_on)  # fmt: skip

    def tick(self) -> None:
        """Time passes and replicas come up, or do not."""
        self.now += timedelta(seconds=1)
        ours = {t.workload for t in self.candidate}
        for workload, group in self.groups.items():
            if workload in ours and self.candidate_exits:
                group.ready, group.exited = 0, "code 1"
            elif workload not in ours or self.candidate_starts:
                group.ready = group.desired

    def perform(self, action: Action) -> None:
        """The effect alone; the journal entry is written by ``run``, so a crash fits between."""
        match action:
            case Scale(sizes=sizes):
                for workload, size in sizes.items():
                    group = self.groups.setdefault(workload, Replicas(0, 0))
                    group.desired, group.ready = size, min(group.ready, size)
                    group.expires = False
            case Route(weights=weights, mirrors=mirrors, testers=testers):
                self.weights = {s: dict(w) for s, w in weights.items()}
                self.mirrors = {s: dict(w) for s, w in mirrors.items()}
                self.testers = dict(testers)
                self.forget()
            case Judge(subject="preflight"):
                self.preflight = self.verdicts.pop(0) if self.verdicts else Verdict.PASS
            case Judge(subject="stable"):
                self.seen_verdict = self.stable_verdict
            case Judge():
                self.seen_verdict = self.verdicts.pop(0) if self.verdicts else Verdict.PASS
                self.seen_evidence = self.evidence.pop(0) if self.evidence else Verdict.PASS
            case KillFlags():
                self.flags_on = ()
                self.forget()
            case Retire(workloads=workloads):
                for workload in workloads:
                    self.groups[workload].expires = True
            case Stop(workloads=workloads):
                for workload in workloads:
                    assert not self.weight(workload), f"{workload} stopped while it has weight"
                    del self.groups[workload]
            case Contract():
                ours = {t.workload for t in self.candidate}
                assert set(self.groups) <= ours, "somebody needs the schema as it was"
                assert not any(e.kind is Kind.ABORTING for e in self.entries)
            case _:
                pass

    def forget(self) -> None:
        self.seen_verdict = self.seen_evidence = Verdict.NOT_RUN

    def weight(self, workload: str) -> int:
        return sum(w.get(workload, 0) for w in self.weights.values())

    def check(self) -> None:
        """The invariants, at every moment."""
        for service, weights in self.weights.items():
            assert sum(weights.values()) == 100, (service, weights)
            for workload, weight in weights.items():
                if weight:
                    assert self.groups[workload].desired > 0, f"{workload} has weight, no replica"

    def record(self, action: Action) -> None:
        match action:
            case Advance():
                self.write(Kind.STEP_PASSED)
                self.forget()
            case Abort(reason=reason):
                self.write(Kind.ABORTING, reason=reason)
                self.forget()
            case Finish(outcome=outcome, reason=reason):
                self.write(Kind.FINISHED, outcome=outcome, reason=reason)
            case Wait() | Judge():
                pass
            case _:
                self.write(Kind.DONE, **describe(action))


def run(world: World, crashes: list[int] | None = None, limit: int = 2000) -> Finish:
    """Drive to the end; ``crashes`` are turns at which the effect happens but no record is kept."""
    crashes = crashes or []
    for turn in range(limit):
        state = replay(world.entries)
        seen = world.observe()
        action = next_action(state, seen)
        world.log.append(f"{type(action).__name__}: {action.reason}")
        if isinstance(action, Route):
            for weights in action.weights.values():
                for workload, weight in weights.items():
                    assert weight == 0 or seen.group(workload).ready > 0, "routed to nobody"
                    assert not seen.group(workload).expires, "routed to what is going to be stopped"
        world.perform(action)
        world.check()
        if turn in crashes:
            world.forget()  # the next process has judged nothing
            world.preflight = Verdict.NOT_RUN
        else:
            world.record(action)
            if isinstance(action, Finish):
                return action
        world.tick()
    raise AssertionError("no end after\n" + "\n".join(world.log[-30:]))


def target(service: str, release: int, replicas: int, public: bool = True) -> Target:
    return Target(
        service=service, workload=f"{service}.r{release}", replicas=replicas, public=public
    )


@st.composite
def worlds(draw: st.DrawFn) -> World:
    strategy = draw(st.sampled_from(Strategy))
    services = draw(st.lists(st.sampled_from("abc"), min_size=1, max_size=3, unique=True))
    old_services = draw(st.lists(st.sampled_from("abc"), max_size=3, unique=True))
    public = draw(st.fixed_dictionaries({s: st.booleans() for s in "abc"}))
    size = st.integers(1, 7)
    candidate = tuple(target(s, 2, draw(size), public[s]) for s in services)
    stable = tuple(target(s, 1, draw(size), public[s]) for s in old_services)
    policy = Policy(
        strategy=strategy,
        steps=steps_for(strategy, max(t.replicas for t in candidate),
                        canary=Canary(mirror=draw(st.sampled_from([None, 50])))),
        migrate=draw(st.booleans()),
        contract=draw(st.booleans()),
        keep_previous=draw(st.sampled_from([timedelta(), timedelta(minutes=10)])),
        patience=timedelta(seconds=30),
        testers=draw(st.sampled_from([None, Marked(name="x-try")])),
    )  # fmt: skip
    return World(
        stable=stable,
        candidate=candidate,
        policy=policy,
        candidate_starts=draw(st.booleans()),
        candidate_exits=draw(st.booleans()),
        verdicts=draw(st.lists(st.sampled_from(Verdict), max_size=6)),
        evidence=draw(st.lists(st.sampled_from(Verdict), max_size=12)),
        stable_verdict=draw(st.sampled_from([Verdict.PASS, Verdict.PASS, Verdict.FAIL])),
    )


@settings(max_examples=300)
@given(worlds(), st.lists(st.integers(0, 40), max_size=6))
def test_every_history_ends_with_one_version_and_no_half_moved_traffic(
    world: World, crashes: list[int]
) -> None:
    end = run(world, crashes)
    old = {t.workload for t in world.stable}
    new = {t.workload for t in world.candidate}
    serving = {w for ws in world.weights.values() for w, n in ws.items() if n}
    if end.outcome is Outcome.PROMOTED:
        assert serving == {t.workload for t in world.candidate if t.public}
    elif end.outcome is Outcome.ROLLED_BACK:
        assert serving == {t.workload for t in world.stable if t.public}
        assert not new & set(world.groups), "a candidate is left behind"
        assert all(world.groups[t.workload].desired == t.replicas for t in world.stable)
    else:
        assert world.stable_verdict is not Verdict.PASS
        assert old <= set(world.groups)


@settings(max_examples=200)
@given(worlds(), st.integers(0, 30))
def test_nothing_but_a_pass_advances(world: World, at: int) -> None:
    world.verdicts = [v for v in Verdict if v is not Verdict.PASS] * 100
    end = run(world)
    assert end.outcome is not Outcome.PROMOTED


@settings(max_examples=200)
@given(worlds(), st.integers(0, 25))
def test_a_person_can_stop_it_at_any_turn(world: World, turn: int) -> None:
    world.stable_verdict = Verdict.PASS
    ticks = 0
    original = world.tick

    def tick() -> None:
        nonlocal ticks
        ticks += 1
        if ticks == turn:
            world.stop_requested = "stopped by a person"
        original()

    world.tick = tick  # type: ignore[method-assign]
    assert run(world).outcome in (Outcome.PROMOTED, Outcome.ROLLED_BACK)


@given(st.integers(1, 60), st.integers(1, 10))
def test_rolling_never_falls_below_full_capacity(replicas: int, batches: int) -> None:
    steps = steps_for(Strategy.ROLLING, replicas, batches)
    assert [s.weight for s in steps] == sorted({s.weight for s in steps})
    assert steps[-1].weight == 100 and steps[-1].stable == 0
    for step in steps:
        new = -(-replicas * step.candidate // 100)
        old = -(-replicas * step.stable // 100)
        assert new + old >= replicas


def simple(strategy: Strategy = Strategy.BLUE_GREEN, **changes: object) -> World:
    changes.setdefault("policy", Policy(strategy=strategy, steps=steps_for(strategy, 2)))
    return World((target("a", 1, 2),), (target("a", 2, 2),), **changes)  # type: ignore[arg-type]


def test_blue_green_keeps_the_old_version_for_an_instant_return() -> None:
    world = simple()
    assert run(world).outcome is Outcome.PROMOTED
    assert world.groups["a.r1"] == Replicas(2, 2, None, expires=True)


@pytest.mark.parametrize("strategy", Strategy)
def test_a_declared_contraction_is_the_last_step_once_the_old_version_is_gone(
    strategy: Strategy,
) -> None:
    steps = steps_for(strategy, 2)
    world = simple(policy=Policy(strategy=strategy, steps=steps, contract=True,
                                 keep_previous=timedelta()))  # fmt: skip
    assert run(world).reason == PASSED
    assert world.log[-2].startswith("Contract: ") and world.log[-3].startswith(("Stop", "Advance"))
    assert set(world.groups) == {"a.r2"}


def test_a_declared_contraction_waits_for_what_may_be_gone_back_to() -> None:
    steps = steps_for(Strategy.BLUE_GREEN, 2)
    world = simple(policy=Policy(strategy=Strategy.BLUE_GREEN, steps=steps, contract=True))
    assert "is not contracted yet, since a.r1 may be gone back to" in run(world).reason
    assert not any(line.startswith("Contract") for line in world.log)


def test_rolling_leaves_nothing_of_the_old_version() -> None:
    world = simple(Strategy.ROLLING)
    assert run(world).outcome is Outcome.PROMOTED
    assert set(world.groups) == {"a.r2"}


def test_going_back_to_a_version_on_borrowed_time_clears_its_expiry_first() -> None:
    world = simple()
    world.groups["a.r2"] = Replicas(2, 2, expires=True)
    assert run(world).outcome is Outcome.PROMOTED
    assert not world.groups["a.r2"].expires


def test_an_exit_is_noticed_before_the_deadline_and_named() -> None:
    world = simple(candidate_exits=True)
    end = run(world)
    assert end.outcome is Outcome.ROLLED_BACK and "a.r2 exited: code 1" in end.reason
    assert world.now - START < timedelta(seconds=15)


def test_a_version_that_fails_before_traffic_gets_none() -> None:
    world = simple(verdicts=[Verdict.FAIL])
    assert run(world).outcome is Outcome.ROLLED_BACK
    assert not any(line.startswith("Route") for line in world.log)


def test_a_flag_that_is_on_is_killed_before_traffic_goes_back() -> None:
    world = simple(Strategy.CANARY, evidence=[Verdict.FAIL, Verdict.PASS, Verdict.PASS])
    world.flags_on = ("new-search",)
    assert run(world).outcome is Outcome.PROMOTED
    kinds = [line.split(":")[0] for line in world.log]
    assert kinds.count("KillFlags") == 1 and "Abort" not in kinds


def test_a_version_that_is_bad_without_its_flags_goes_back() -> None:
    world = simple(Strategy.CANARY, evidence=[Verdict.FAIL, Verdict.TOO_FEW, Verdict.FAIL])
    world.flags_on = ("new-search",)
    assert run(world).outcome is Outcome.ROLLED_BACK
    kinds = [line.split(":")[0] for line in world.log]
    assert kinds.index("KillFlags") < kinds.index("Abort")


def test_services_start_after_those_they_need() -> None:
    world = simple()
    front = Target(service="b", workload="b.r2", replicas=1, needs=("a.r2",))
    world.candidate = (front, target("a", 2, 2))
    world.entries.clear()
    world.__post_init__()
    assert run(world).outcome is Outcome.PROMOTED
    scales = [line for line in world.log if line.startswith("Scale")]
    assert "a.r2" in scales[0] and "b.r2" not in scales[0] and "b.r2" in scales[1]


def test_argo_3372_an_abort_restores_capacity_before_traffic() -> None:
    """Argo Rollouts #3372 moved all traffic to a stable set that was not scaled up yet."""
    world = simple(Strategy.ROLLING, verdicts=[Verdict.PASS] * 2 + [Verdict.FAIL])
    assert run(world).outcome is Outcome.ROLLED_BACK
    kinds = [line.split(":")[0] for line in world.log]
    after = kinds[kinds.index("Abort") :]
    assert after.index("Scale") < after.index("Route")


def test_a_failed_migration_moves_nothing() -> None:
    world = simple()
    world.policy = world.policy.model_copy(update={"migrate": True})
    world.entries.clear()
    world.__post_init__()
    action = next_action(replay(world.entries), world.observe())
    assert isinstance(action, Migrate)
    world.write(Kind.ABORTING, reason="the migration failed")
    assert run(world).outcome is Outcome.ROLLED_BACK
    assert not any(line.startswith("Route") for line in world.log)


def test_a_stable_version_that_cannot_be_proved_is_said_so() -> None:
    world = simple(verdicts=[Verdict.FAIL], stable_verdict=Verdict.ERROR)
    assert run(world).outcome is Outcome.ROLLBACK_FAILED


def test_a_finished_release_stays_finished() -> None:
    world = simple()
    run(world)
    assert isinstance(next_action(replay(world.entries), world.observe()), Finish)


def test_replay_wants_the_beginning() -> None:
    world = simple()
    world.write(Kind.DONE, action="Route")
    with pytest.raises(ValueError, match="not `started`"):
        replay(world.entries[1:])


def after(world: World, kind: type[Action]) -> Action:
    """Go on until an action of this kind is due; it is not performed."""
    for _ in range(500):
        action = next_action(replay(world.entries), world.observe())
        if isinstance(action, kind):
            return action
        world.perform(action)
        world.check()
        world.record(action)
        world.tick()
    raise AssertionError(f"no {kind.__name__}")


def test_candidates_that_die_in_the_middle_take_the_traffic_back_with_them() -> None:
    world = simple(Strategy.ROLLING)
    after(world, Advance)
    world.candidate_exits = True
    world.tick()
    end = run(world)
    assert end.outcome is Outcome.ROLLED_BACK and "exited" in end.reason
    assert world.weights["a"] == {"a.r1": 100} and world.groups["a.r1"].desired == 2


def test_candidates_that_only_fall_silent_are_waited_for_and_then_given_up() -> None:
    world = simple(Strategy.ROLLING)
    after(world, Advance)
    world.record(Advance("passed"))
    world.candidate_starts = False
    world.groups["a.r2"].ready = 0
    since = world.now
    assert run(world).outcome is Outcome.ROLLED_BACK
    assert world.now - since >= world.policy.ready_deadline


def test_stable_replicas_that_die_on_the_way_back_are_waited_for() -> None:
    world = simple(verdicts=[Verdict.PASS, Verdict.FAIL])
    after(world, Abort)
    world.groups["a.r1"].ready = 0
    assert run(world).outcome is Outcome.ROLLED_BACK


def test_traffic_is_never_sent_back_to_a_version_that_does_not_come_up() -> None:
    world = simple(verdicts=[Verdict.PASS, Verdict.FAIL])
    world.record(after(world, Abort))
    world.groups["a.r1"] = Replicas(2, 0)
    for _ in range(300):
        action = next_action(replay(world.entries), world.observe())
        assert not isinstance(action, Route)
        if isinstance(action, Finish):
            break
        world.now += timedelta(seconds=1)  # nothing comes up
    assert isinstance(action, Finish) and action.outcome is Outcome.ROLLBACK_FAILED
    assert world.weights["a"] == {"a.r2": 100}


def test_a_clock_that_jumps_ahead_aborts_and_goes_back_safely() -> None:
    world = simple(candidate_starts=False)
    after(world, Wait)
    world.now += timedelta(days=400)
    action = next_action(replay(world.entries), world.observe())
    assert isinstance(action, Abort) and action.code == "SLP051"
    world.record(action)
    assert run(world).outcome is Outcome.ROLLED_BACK


def test_a_clock_that_goes_back_only_waits() -> None:
    world = simple(candidate_starts=False)
    after(world, Wait)
    world.now -= timedelta(days=400)
    assert isinstance(next_action(replay(world.entries), world.observe()), Wait)


@pytest.mark.parametrize("kind", [Judge, Route, Advance, Abort, Stop])
def test_taken_over_a_year_later_a_release_gets_its_deadlines_anew(kind: type[Action]) -> None:
    verdicts = [Verdict.PASS, Verdict.FAIL] if kind in (Abort, Stop) else []
    world = simple(verdicts=verdicts)
    after(world, kind)
    world.now += timedelta(days=365)
    world.seen_verdict = world.preflight = Verdict.NOT_RUN
    world.write(Kind.TAKEN_OVER)
    world.stop_requested = "interrupted"
    assert run(world).outcome is Outcome.ROLLED_BACK


def test_what_passed_is_finished_by_whoever_takes_over() -> None:
    world = simple()
    after(world, Retire)
    world.now += timedelta(days=365)
    world.write(Kind.TAKEN_OVER)
    world.stop_requested = "interrupted"
    assert run(world).outcome is Outcome.PROMOTED


def test_what_an_earlier_failure_left_behind_goes_with_the_old_version() -> None:
    world = simple()
    world.groups["a.r0"] = Replicas(2, 2)
    assert run(world).outcome is Outcome.PROMOTED
    assert world.groups["a.r0"].expires and not world.groups["a.r2"].expires


def test_weights_that_a_failed_release_left_are_taken_over() -> None:
    world = simple()
    world.groups["a.r0"] = Replicas(1, 1)
    world.weights = {"a": {"a.r0": 100}}
    assert run(world).outcome is Outcome.PROMOTED
    assert world.weights == {"a": {"a.r2": 100}}


def test_a_candidate_that_cannot_be_taken_back_for_sure_is_given_a_time_to_end() -> None:
    world = simple(verdicts=[Verdict.FAIL], stable_verdict=Verdict.ERROR)
    assert run(world).outcome is Outcome.ROLLBACK_FAILED
    assert world.groups["a.r2"].expires and not world.groups["a.r1"].expires


def test_traffic_that_strayed_after_the_last_step_is_brought_to_the_new_version() -> None:
    world = simple()
    after(world, Retire)
    world.weights = {"a": {"a.r1": 100}}
    assert run(world).outcome is Outcome.PROMOTED
    assert world.weights == {"a": {"a.r2": 100}}


@pytest.mark.parametrize("verdicts", [[], [Verdict.PASS, Verdict.FAIL]])
def test_nothing_is_stopped_or_shrunk_before_its_requests_had_time_to_end(
    verdicts: list[Verdict],
) -> None:
    world = simple(Strategy.ROLLING, verdicts=verdicts)
    world.policy = world.policy.model_copy(update={"drain": timedelta(seconds=20)})
    world.entries.clear()
    world.__post_init__()
    routed, shrunk, perform = world.now, 0, world.perform

    def watched(action: Action) -> None:
        nonlocal routed, shrunk
        if isinstance(action, Route):
            routed = world.now
        sizes = action.sizes if isinstance(action, Scale) else {}
        shrinks = any(
            size < world.groups[w].desired for w, size in sizes.items() if w in world.groups
        )
        idle = isinstance(action, Stop) and any(world.groups[w].desired for w in action.workloads)
        if shrinks or idle:
            shrunk += 1
            assert world.now - routed >= timedelta(seconds=20)
        perform(action)

    world.perform = watched  # type: ignore[method-assign]
    run(world)
    assert shrunk


@given(st.integers(1, 9), st.integers(1, 9))
def test_capacity_stays_at_the_smaller_version_s_full_size(old: int, new: int) -> None:
    policy = Policy(strategy=Strategy.ROLLING, steps=steps_for(Strategy.ROLLING, new))
    world = World((target("a", 1, old),), (target("a", 2, new),), policy)
    perform = world.perform

    def watched(action: Action) -> None:
        perform(action)
        assert sum(group.desired for group in world.groups.values()) >= min(old, new)

    world.perform = watched  # type: ignore[method-assign]
    assert run(world).outcome is Outcome.PROMOTED


def test_the_first_reason_to_go_back_is_the_one_that_is_told() -> None:
    world = simple()
    world.write(Kind.ABORTING, reason="the first")
    world.write(Kind.ABORTING, reason="the second")
    assert run(world).reason == "the first"
