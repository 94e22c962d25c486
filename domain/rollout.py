"""The rollout: one pure state machine for every strategy.

``next_action(state, observation)`` looks at what the journal says was done and at what is really
there, and names the one thing to do next, with its reason. It is level-triggered: it asks "what
is missing?", never "what did I do last?", so a process that died between any two lines is
continued by calling it again. A strategy is nothing but a list of steps.

Rules it keeps (tests/domain/test_rollout.py generates histories against them):

- the weights of a service sum to 100, and a version with weight has a ready replica;
- capacity never falls below the floor: new replicas are ready before old ones go;
- a forward step needs a ``pass``; a rollback gives the stable version its capacity back *before*
  traffic moves to it, is judged itself, and ends ROLLED_BACK or ROLLBACK_FAILED;
- nothing is stopped while it has weight, or before its drain time has passed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from domain.application import Strategy
from domain.journal import Entry, Kind, Outcome
from domain.units import Duration, parse_duration
from domain.verdict import Verdict


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Target(_Frozen):
    """One service of one version, at full size."""

    service: str
    workload: str
    replicas: int = Field(ge=1)
    public: bool = True
    needs: tuple[str, ...] = Field((), description="Workloads that must be ready before it.")


class Step(_Frozen):
    """One move of traffic.

    ``candidate`` and ``stable`` are shares of full capacity in percent: what the candidate must
    have ready before the move, and what the stable version keeps after it.
    """

    weight: int = Field(ge=1, le=100)
    candidate: int = Field(ge=1, le=100)
    stable: int = Field(ge=0, le=100)


class Policy(_Frozen):
    """How to move. Written into the journal at the start and never re-read from a file."""

    strategy: Strategy
    steps: tuple[Step, ...] = Field(min_length=1)
    ready_deadline: Duration = parse_duration("60s")
    verdict_deadline: Duration = parse_duration("60s")
    drain: Duration = Field(parse_duration("1s"), description="From weight 0 to the stop.")
    keep_previous: Duration = parse_duration("10m")
    migrate: bool = False


def steps_for(strategy: Strategy, replicas: int, batches: int = 4) -> tuple[Step, ...]:
    """The steps of a strategy for a service of ``replicas`` replicas at most.

    Rolling goes in at most ``batches`` equal moves; the candidate's share of capacity is ready
    before its share of traffic arrives, so capacity never falls below the full size.
    """
    if strategy is Strategy.BLUE_GREEN:
        return (Step(weight=100, candidate=100, stable=100),)
    count = max(1, min(replicas, batches))
    shares = [round(100 * index / count) for index in range(1, count + 1)]
    return tuple(Step(weight=s, candidate=s, stable=100 - s) for s in shares)


@dataclass(frozen=True)
class Group:
    """What is there of one workload."""

    workload: str
    desired: int
    ready: int
    exited: str | None = None
    waiting_for: str = ""
    expires: bool = False


@dataclass(frozen=True)
class Observation:
    """What was seen at one moment. ``weights`` is by service, then by workload.

    ``preflight`` is the verdict on the candidate's private address, before it has any traffic;
    ``verdict`` the one since the last move.
    """

    now: datetime
    groups: Mapping[str, Group]
    weights: Mapping[str, Mapping[str, int]]
    verdict: Verdict = Verdict.NOT_RUN
    preflight: Verdict = Verdict.NOT_RUN
    reason: str = ""
    stop_requested: str | None = None

    def group(self, workload: str) -> Group:
        return self.groups.get(workload, Group(workload, 0, 0))


@dataclass(frozen=True)
class State:
    """What the journal says of one release; made by ``replay``."""

    policy: Policy
    candidate: tuple[Target, ...]
    stable: tuple[Target, ...]
    started_at: datetime
    since: datetime
    step: int = 0
    migrated: bool = False
    routed_at: datetime | None = None
    aborting: str | None = None
    finished: Outcome | None = None

    @property
    def complete(self) -> bool:
        """All steps have passed: the candidate is what users should have."""
        return self.step >= len(self.policy.steps)


@dataclass(frozen=True)
class Action:
    """One thing to do; ``reason`` says why, for people and the journal."""

    reason: str


@dataclass(frozen=True)
class Wait(Action):
    """Look again soon."""


@dataclass(frozen=True)
class Migrate(Action):
    """Run the migrations of the candidate."""


@dataclass(frozen=True)
class Scale(Action):
    sizes: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Route(Action):
    """Set these weights, for all services in one switch."""

    weights: Mapping[str, Mapping[str, int]] = field(default_factory=dict)


@dataclass(frozen=True)
class Judge(Action):
    """Obtain a verdict: on the candidate's private address, or on who has the traffic."""

    subject: Literal["preflight", "candidate", "stable"] = "candidate"


@dataclass(frozen=True)
class Advance(Action):
    """Record that the step has passed."""


@dataclass(frozen=True)
class Abort(Action):
    """Record that the release goes back; ``workload`` is the one whose log shows why."""

    code: str = "SLP053"
    workload: str | None = None


@dataclass(frozen=True)
class Retire(Action):
    """Keep these workloads for ``keep`` and let the cluster stop them then."""

    workloads: tuple[str, ...] = ()
    keep: timedelta = timedelta()


@dataclass(frozen=True)
class Stop(Action):
    workloads: tuple[str, ...] = ()


@dataclass(frozen=True)
class Finish(Action):
    outcome: Outcome = Outcome.ROLLBACK_FAILED


def next_action(state: State, seen: Observation) -> Action:
    """The one thing to do now. Total: every state and observation has an answer."""
    if state.finished:
        return Finish(f"already ended {state.finished}", state.finished)
    if state.aborting is not None:
        return _backward(state, seen)
    if seen.stop_requested and not state.complete:
        return Abort(seen.stop_requested, "SLP057")
    return _settle(state, seen) if state.complete else _forward(state, seen)


def _forward(state: State, seen: Observation) -> Action:
    policy, step = state.policy, state.policy.steps[state.step]
    if policy.migrate and not state.migrated:
        return Migrate("the schema must fit the new version before it starts")
    if broken := _broken(state.candidate, seen):
        return broken
    needed = _sizes(state.candidate, step.candidate)
    if missing := _startable(state.candidate, _too_small(needed, seen), seen):
        return Scale(f"step {state.step + 1} needs {_counted(missing)}", missing)
    if waiting := _not_ready(needed, seen):
        if _expired(state.since, policy.ready_deadline, seen.now):
            limit = policy.ready_deadline.total_seconds()
            late = next(w for w, n in needed.items() if seen.group(w).ready < n)
            return Abort(f"not ready within {limit:g} s: {waiting}", "SLP051", late)
        return Wait(waiting)
    wanted = step_weights(state, step.weight)
    if _weights_of(seen, wanted) != wanted:
        return _preflight(state, seen) or Route(
            f"step {state.step + 1}: {step.weight}% to the new version", wanted
        )
    judge = Judge(f"step {state.step + 1} needs a pass")
    return _unless_passed(
        seen, seen.verdict, judge, state.since, policy.verdict_deadline
    ) or _shrink_stable(state, seen, step)


def _preflight(state: State, seen: Observation) -> Action | None:
    """The first move needs a pass on the private address; None when it is there."""
    if state.step:
        return None
    judge = Judge("looked at before any user is", "preflight")
    # Counted from the start of the replicas, which may have used all of their own time.
    limit = state.policy.ready_deadline + state.policy.verdict_deadline
    return _unless_passed(seen, seen.preflight, judge, state.since, limit)


def _unless_passed(
    seen: Observation, verdict: Verdict, judge: Judge, since: datetime, limit: timedelta
) -> Action | None:
    """What a missing ``pass`` means; None when it is there."""
    match verdict:
        case Verdict.PASS:
            return None
        case Verdict.FAIL:
            return Abort(seen.reason or "the new version failed its checks")
        case _ if _expired(since, limit, seen.now):
            why = f": {seen.reason}" if seen.reason else ""
            return Abort(
                f"no pass within {limit.total_seconds():g} s, the last verdict was {verdict}{why}"
            )
        case _:
            return judge


def _shrink_stable(state: State, seen: Observation, step: Step) -> Action:
    """Give back the stable capacity that the step no longer needs, then pass."""
    keep = _sizes(state.stable, step.stable)
    surplus = {w: n for w, n in keep.items() if seen.group(w).desired > n}
    if surplus:
        if not _expired(state.routed_at or state.since, state.policy.drain, seen.now):
            return Wait("requests on their way to the old version finish first")
        return Scale(f"step {state.step + 1} leaves {_counted(surplus)}", surplus)
    return Advance(f"step {state.step + 1} of {len(state.policy.steps)} passed")


def _settle(state: State, seen: Observation) -> Action:
    """All steps passed: put the old version away and end."""
    home = step_weights(state, 100)
    if _weights_of(seen, home) != home:
        return Route("all steps passed, so all traffic belongs to the new version", home)
    # Not the stable version alone: what a failed release had to leave behind goes too.
    serving = {t.workload for t in state.candidate}
    there = [g for g in seen.groups.values() if g.workload not in serving]
    if idle := tuple(g.workload for g in there if g.desired == 0):
        return Stop("no replica of the old version is left", idle)
    if kept := tuple(g.workload for g in there if not g.expires):
        return Retire("going back stays instant for a while", kept, state.policy.keep_previous)
    return Finish("all steps passed", Outcome.PROMOTED)


def _backward(state: State, seen: Observation) -> Action:
    reason = state.aborting or ""
    candidates = tuple(t.workload for t in state.candidate if t.workload in seen.groups)
    shared = {t.workload for t in state.stable}
    ours = tuple(w for w in candidates if w not in shared)
    if not state.stable:
        if _weights_of(seen, {}):
            return Route("nothing was live before, so nothing is reached", {})
        if ours:
            return Stop("nothing was live before, so nothing stays", ours)
        return Finish(reason, Outcome.ROLLED_BACK)
    full = _sizes(state.stable, 100)
    if missing := _too_small(full, seen):
        return Scale("the stable version gets its capacity back before its traffic", missing)
    home = {t.service: {t.workload: 100} for t in state.stable if t.public}
    if _weights_of(seen, home) != home:
        if waiting := _not_ready(full, seen):
            if _expired(state.since, state.policy.ready_deadline, seen.now):
                return _give_up(
                    state,
                    seen,
                    ours,
                    f"{reason}; and the stable version is not ready: {waiting}; traffic stays "
                    "where it was",
                )
            return Wait(waiting)
        return Route(reason, home)
    if seen.verdict is not Verdict.PASS:
        if not _expired(state.since, state.policy.verdict_deadline, seen.now):
            return Judge("a rollback is proved, not assumed", "stable")
        return _give_up(
            state,
            seen,
            ours,
            f"{reason}; and the stable version did not pass its checks: {seen.reason}",
        )
    if ours:
        if not _expired(state.routed_at or state.since, state.policy.drain, seen.now):
            return Wait("requests on their way to the new version finish first")
        return Stop("the new version has no traffic any more", ours)
    return Finish(reason, Outcome.ROLLED_BACK)


def _give_up(state: State, seen: Observation, ours: tuple[str, ...], reason: str) -> Action:
    """A person is needed. What has no traffic stays a while for that person, not for ever."""
    weighted = {w for weights in seen.weights.values() for w, n in weights.items() if n}
    idle = tuple(w for w in ours if w not in weighted and not seen.group(w).expires)
    if idle:
        return Retire("kept for whoever looks into it", idle, state.policy.keep_previous)
    return Finish(reason, Outcome.ROLLBACK_FAILED)


def step_weights(state: State, weight: int) -> dict[str, dict[str, int]]:
    """Weights by service at a candidate share of ``weight`` percent.

    A service that only one of the two versions has goes wholly to the version that has it; a
    first release has no other version to share with.
    """
    stable = {t.service: t for t in state.stable if t.public}
    wanted: dict[str, dict[str, int]] = {}
    for target in state.candidate:
        if not target.public:
            continue
        old = stable.get(target.service)
        if old is None or old.workload == target.workload or weight == 100:
            wanted[target.service] = {target.workload: 100}
        else:
            wanted[target.service] = {target.workload: weight, old.workload: 100 - weight}
    gone = set(stable) - set(wanted)
    if weight < 100:
        wanted |= {service: {stable[service].workload: 100} for service in gone}
    return wanted


def _weights_of(
    seen: Observation, like: Mapping[str, Mapping[str, int]]
) -> dict[str, dict[str, int]]:
    """The observed weights without zeros; services that ``like`` lacks show as a difference."""
    shown = {s: {w: n for w, n in ws.items() if n} for s, ws in seen.weights.items()}
    return {service: weights for service, weights in shown.items() if weights or service in like}


def _sizes(targets: Iterable[Target], percent: int) -> dict[str, int]:
    return {t.workload: math.ceil(t.replicas * percent / 100) for t in targets}


def _too_small(needed: Mapping[str, int], seen: Observation) -> dict[str, int]:
    """What must be declared (again): too few replicas, or about to expire.

    A rollback target may still run on borrowed time; traffic must not move to a version that
    the cluster is going to stop.
    """
    short = {w: n for w, n in needed.items() if seen.group(w).desired < n}
    return short | {
        w: seen.group(w).desired for w in needed if w not in short and seen.group(w).expires
    }


def _startable(
    targets: Iterable[Target], missing: Mapping[str, int], seen: Observation
) -> dict[str, int]:
    """Those of ``missing`` whose dependencies are ready."""
    needs = {t.workload: t.needs for t in targets}
    return {
        w: n for w, n in missing.items() if all(seen.group(needed).ready for needed in needs[w])
    }


def _not_ready(needed: Mapping[str, int], seen: Observation) -> str:
    """A sentence about the first workload that is not ready; empty when all are."""
    for workload, count in needed.items():
        group = seen.group(workload)
        if group.ready < count:
            detail = f": {group.waiting_for}" if group.waiting_for else ""
            return f"{workload} has {group.ready} of {count} replicas ready{detail}"
    return ""


def _broken(targets: Iterable[Target], seen: Observation) -> Abort | None:
    """The first candidate that exits instead of serving; None when there is none."""
    for target in targets:
        group = seen.group(target.workload)
        if group.exited and group.ready < group.desired:
            reason = f"{target.workload} exited: {group.exited}"
            return Abort(reason, "SLP050", target.workload)
    return None


def _counted(sizes: Mapping[str, int]) -> str:
    return ", ".join(f"{n} of {workload}" for workload, n in sizes.items())


def _expired(since: datetime, limit: timedelta, now: datetime) -> bool:
    return now - since >= limit


def replay(entries: Iterable[Entry]) -> State:
    """The state of one release from its own entries, which begin with ``started``."""
    iterator = iter(entries)
    first = next(iterator)
    if first.kind is not Kind.STARTED:
        raise ValueError(f"release {first.release} begins with `{first.kind}`, not `started`")
    state = State(
        policy=Policy.model_validate(first.data["policy"]),
        candidate=tuple(Target.model_validate(t) for t in first.data["candidate"]),
        stable=tuple(Target.model_validate(t) for t in first.data["stable"]),
        started_at=first.at,
        since=first.at,
    )
    for entry in iterator:
        state = _apply(state, entry)
    return state


def _apply(state: State, entry: Entry) -> State:
    match entry.kind:
        case Kind.DONE:
            return _done(state, entry)
        case Kind.TAKEN_OVER:
            # Deadlines run while somebody works; nobody did since the last entry.
            return replace(state, since=entry.at)
        case Kind.STEP_PASSED:
            return replace(state, step=state.step + 1, since=entry.at, routed_at=None)
        case Kind.ABORTING if state.aborting is None:
            return replace(state, aborting=entry.data["reason"], since=entry.at, routed_at=None)
        case Kind.FINISHED:
            return replace(state, finished=Outcome(entry.data["outcome"]))
        case _:
            return state


def _done(state: State, entry: Entry) -> State:
    match entry.data.get("action"):
        case "Migrate":
            return replace(state, since=entry.at, migrated=True)
        case "Route":
            return replace(state, since=entry.at, routed_at=entry.at)
        case "Scale":
            return replace(state, since=entry.at)
        case _:
            return state


def describe(action: Action) -> dict[str, Any]:
    """An action as the journal keeps it."""
    shown = {key: value for key, value in vars(action).items() if value is not None}
    if "keep" in shown:
        shown["keep"] = shown["keep"].total_seconds()
    return {"action": type(action).__name__, **shown}
