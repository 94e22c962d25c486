"""The rollout: one pure state machine for every strategy.

``next_action(state, observation)`` looks at what the journal says was done and at what is really
there, and names the one thing to do next, with its reason. It is level-triggered: it asks "what
is missing?", never "what did I do last?", so a process that died between any two lines is
continued by calling it again. A strategy is nothing but a list of steps.

Rules it keeps (tests/domain/test_rollout.py generates histories against them):

- the weights of a service sum to 100, and a version with weight has a ready replica;
- capacity never falls below the floor: new replicas are ready before old ones go;
- a forward step needs a ``pass``, and one that declares evidence needs that much of it: too
  little holds the step, and never advances it;
- a rollback gives the stable version its capacity back *before* traffic moves to it, is judged
  itself, and ends ROLLED_BACK or ROLLBACK_FAILED;
- nothing is stopped while it has weight, or before its drain time has passed;
- the schema is contracted last, and only when no other version is left that needs it as it was.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from domain.application import Canary, Probes, Strategy, Testers
from domain.journal import Entry, Kind, Outcome
from domain.judge import Limits
from domain.steering import Verb, said
from domain.units import Duration, format_duration, parse_duration
from domain.verdict import Verdict

PASSED = "all steps passed"


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
    have ready before the move, and what the stable version keeps after it. ``requests`` is the
    evidence that the step needs; 0: its checks are enough. ``mirror`` is the percentage of
    requests of which the candidate gets a copy, without users noticing.
    """

    weight: int = Field(ge=0, le=100)
    candidate: int = Field(ge=1, le=100)
    stable: int = Field(ge=0, le=100)
    requests: int = Field(0, ge=0)
    mirror: int = Field(0, ge=0, le=100)


class Policy(_Frozen):
    """How to move. Written into the journal at the start and never re-read from a file."""

    strategy: Strategy
    steps: tuple[Step, ...] = Field(min_length=1)
    ready_deadline: Duration = parse_duration("60s")
    verdict_deadline: Duration = parse_duration("60s")
    drain: Duration = Field(parse_duration("1s"), description="From weight 0 to the stop.")
    keep_previous: Duration = parse_duration("10m")
    migrate: bool = False
    contract: bool = Field(False, description="The schema is contracted at the end.")
    limits: Limits = Field(Limits(), description="What the judge of evidence goes by.")
    patience: Duration = Field(parse_duration("1h"), description="Of a step, for its evidence.")
    blind: Duration = Field(
        parse_duration("60s"), description="How long the evidence may be out of sight."
    )
    testers: Testers | None = None
    probes: Probes | None = None
    interrupted: Literal["reverse", "continue"] = "reverse"


def steps_for(
    strategy: Strategy, replicas: int, batches: int = 4, canary: Canary | None = None
) -> tuple[Step, ...]:
    """The steps of a strategy for a service of ``replicas`` replicas at most.

    Rolling goes in at most ``batches`` equal moves; the candidate's share of capacity is ready
    before its share of traffic arrives, so capacity never falls below the full size. A canary
    keeps the stable version at full size to the end: every step can be taken back at once.
    """
    whole = Step(weight=100, candidate=100, stable=100)
    if strategy is Strategy.BLUE_GREEN:
        return (whole,)
    if strategy is Strategy.CANARY:
        return (*_canary_steps(canary or Canary()), whole)
    count = max(1, min(replicas, batches))
    shares = [round(100 * index / count) for index in range(1, count + 1)]
    return tuple(Step(weight=s, candidate=s, stable=100 - s) for s in shares)


def _canary_steps(canary: Canary) -> Iterator[Step]:
    first = canary.steps[0].weight
    if canary.mirror:
        yield Step(weight=0, candidate=first, stable=100, requests=canary.mirror, mirror=first)
    for step in canary.steps:
        needed = step.requests or canary.requests
        yield Step(weight=step.weight, candidate=step.weight, stable=100, requests=needed)


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
    ``verdict`` the one of the checks since the last move, and ``evidence`` the judge's on what
    users met since then. The moments say until when all was well: a long step must not end at
    the first hiccup after its deadline has passed.
    """

    now: datetime
    groups: Mapping[str, Group]
    weights: Mapping[str, Mapping[str, int]]
    verdict: Verdict = Verdict.NOT_RUN
    preflight: Verdict = Verdict.NOT_RUN
    reason: str = ""
    stop_requested: str | None = None
    evidence: Verdict = Verdict.NOT_RUN
    evidence_reason: str = ""
    mirrors: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    testers: Mapping[str, str] = field(default_factory=dict)
    flags_on: tuple[str, ...] = ()
    passed_at: datetime | None = None
    ready_at: datetime | None = None
    evidence_at: datetime | None = None

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
    contracted: bool = False
    routed_at: datetime | None = None
    aborting: str | None = None
    finished: Outcome | None = None
    paused: str | None = None
    promoted: str | None = None
    stop: str | None = None

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
class Contract(Action):
    """Run the contraction of the candidate: no earlier version can serve after it."""


@dataclass(frozen=True)
class Scale(Action):
    sizes: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Route(Action):
    """Set these weights, for all services in one switch.

    ``mirrors`` says, by service and workload, of which percentage of requests a copy goes
    there; ``testers``, by service, to which workload the testers' requests go.
    """

    weights: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    mirrors: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    testers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class KillFlags(Action):
    """Turn these feature flags off, before traffic is moved back: they may be the fault."""

    flags: tuple[str, ...] = ()


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
    stop = state.stop or seen.stop_requested
    if stop and not state.complete:
        return Abort(stop, "SLP057")
    if state.complete:
        return _settle(state, seen)
    action = _forward(state, seen)
    return _held(state, action) if state.paused else action


def _held(state: State, action: Action) -> Action:
    """What a pause leaves of an action: it may look and go back, and changes nothing else."""
    if isinstance(action, Wait | Judge | Abort | KillFlags):
        return action
    why = f"paused by {state.paused}"
    return Judge(why) if state.routed_at else Wait(why)


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
        since = max(state.since, seen.ready_at or state.since)
        if _expired(since, policy.ready_deadline, seen.now):
            limit = policy.ready_deadline.total_seconds()
            late = next(w for w, n in needed.items() if seen.group(w).ready < n)
            return Abort(f"not ready within {limit:g} s: {waiting}", "SLP051", late)
        return Wait(waiting)
    move = _move(state, step)
    if _differs(seen, move):
        return _preflight(state, seen) or move
    judge = Judge(f"step {state.step + 1} needs a pass")
    since = max(state.since, seen.passed_at or state.since)
    return (
        _unless_passed(seen, seen.verdict, judge, since, policy.verdict_deadline)
        or _unless_proved(state, seen, step)
        or _shrink_stable(state, seen, step)
    )


def _move(state: State, step: Step) -> Route:
    """Where users' requests, copies of them and testers' requests go in this step."""
    stable = {t.service for t in state.stable}
    shared = [t for t in state.candidate if t.public and t.service in stable]
    below = step.weight < 100
    copied = {t.service: {t.workload: step.mirror} for t in shared if step.mirror}
    tested = {t.service: t.workload for t in shared if below and state.policy.testers}
    what = f"{step.weight}% to the new version"
    if step.mirror:
        what = f"copies of {step.mirror}% to the new version"
    number = state.step + 1
    return Route(f"step {number}: {what}", step_weights(state, step.weight), copied, tested)


def _differs(seen: Observation, move: Route) -> bool:
    return (
        _weights_of(seen, move.weights) != move.weights
        or dict(seen.mirrors) != move.mirrors
        or dict(seen.testers) != move.testers
    )


def _preflight(state: State, seen: Observation) -> Action | None:
    """The first move needs a pass on the private address; None when it is there."""
    ours = {t.workload for t in state.candidate}
    if any(n for weights in seen.weights.values() for w, n in weights.items() if w in ours):
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


def _unless_proved(state: State, seen: Observation, step: Step) -> Action | None:
    """What missing evidence means; None when there is enough of it, and it is good.

    Too little of it holds the step for the declared patience: few users are no fault of the
    version. Evidence that cannot be seen at all is worse, and is given much less time.
    """
    if not step.requests:
        return None
    policy, number = state.policy, state.step + 1
    why = f": {seen.evidence_reason}" if seen.evidence_reason else ""
    match seen.evidence:
        case Verdict.PASS:
            return None
        case Verdict.FAIL if seen.flags_on:
            return KillFlags(f"a flag may be why: {seen.evidence_reason}", seen.flags_on)
        case Verdict.FAIL:
            return Abort(seen.evidence_reason or "users met more faults than before", "SLP059")
        case Verdict.ERROR if _expired(
            max(state.since, seen.evidence_at or state.since), policy.blind, seen.now
        ):
            limit = format_duration(policy.blind)
            return Abort(f"what users met could not be seen for {limit}{why}", "SLP059")
        case _ if not state.paused and _expired(state.since, policy.patience, seen.now):
            limit = format_duration(policy.patience)
            return Abort(f"step {number} has not got its evidence within {limit}{why}", "SLP059")
        case _:
            return Judge(f"step {number} collects evidence: {step.requests} requests")


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
    home = Route("all steps passed, so all traffic belongs to the new version",
                 step_weights(state, 100))  # fmt: skip
    if _differs(seen, home):
        return home
    # Not the stable version alone: what a failed release had to leave behind goes too.
    serving = {t.workload for t in state.candidate}
    there = [g for g in seen.groups.values() if g.workload not in serving]
    if idle := tuple(g.workload for g in there if g.desired == 0):
        return Stop("no replica of the old version is left", idle)
    policy = state.policy
    if kept := tuple(g.workload for g in there if not g.expires):
        if policy.keep_previous or not policy.contract:
            return Retire("going back stays instant for a while", kept, policy.keep_previous)
        if not _expired(state.routed_at or state.since, policy.drain, seen.now):
            return Wait("requests on their way to the old version finish first")
        return Stop("the schema is contracted next, so nobody goes back", kept)
    if not policy.contract or state.contracted:
        return Finish(PASSED, Outcome.PROMOTED)
    if there:
        names = ", ".join(group.workload for group in there)
        return Finish(
            f"{PASSED}; the schema is not contracted yet, since {names} may be gone back to",
            Outcome.PROMOTED,
        )
    return Contract("no other version is left that needs the schema as it was")


def _backward(state: State, seen: Observation) -> Action:
    reason = state.aborting or ""
    candidates = tuple(t.workload for t in state.candidate if t.workload in seen.groups)
    shared = {t.workload for t in state.stable}
    # What depends on others goes before them.
    ours = tuple(w for w in reversed(candidates) if w not in shared)
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
    if _differs(seen, Route(reason, home)):
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
        if old is not None and weight == 0:
            wanted[target.service] = {old.workload: 100}
        elif old is None and weight == 0:
            continue
        elif old is None or old.workload == target.workload or weight == 100:
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
    # One about a flag only bears the number of the newest release, or of the first before it began.
    iterator = (entry for entry in entries if entry.kind is not Kind.FLAG)
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
        case Kind.ASKED:
            return _asked(state, entry)
        case Kind.STEP_PASSED:
            return replace(state, step=state.step + 1, since=entry.at, routed_at=None)
        case Kind.ABORTING if state.aborting is None:
            return replace(state, aborting=entry.data["reason"], since=entry.at, routed_at=None)
        case Kind.FINISHED:
            return replace(state, finished=Outcome(entry.data["outcome"]))
        case _:
            return state


def _asked(state: State, entry: Entry) -> State:
    """What a person asked for while it ran; a request that came too late changes nothing."""
    if state.aborting is not None or state.finished or state.complete:
        return state
    who = said(entry)
    match entry.data.get("verb"):
        case Verb.PAUSE:
            return replace(state, paused=who)
        case Verb.RESUME:
            return replace(state, paused=None, since=entry.at)
        case Verb.ABORT:
            return replace(state, stop=f"aborted by {who}")
        case Verb.PROMOTE:
            last = len(state.policy.steps) - 1
            moved = state.step != last
            return replace(
                state, promoted=who, paused=None, step=last, since=entry.at,
                routed_at=None if moved else state.routed_at,
            )  # fmt: skip
        case _:
            return state


def _done(state: State, entry: Entry) -> State:
    match entry.data.get("action"):
        case "Migrate":
            return replace(state, since=entry.at, migrated=True)
        case "Route":
            return replace(state, since=entry.at, routed_at=entry.at)
        case "Contract":
            return replace(state, since=entry.at, contracted=True)
        case "Scale" | "KillFlags":
            return replace(state, since=entry.at)
        case _:
            return state


def describe(action: Action) -> dict[str, Any]:
    """An action as the journal keeps it."""
    shown = {key: value for key, value in vars(action).items() if value is not None}
    if "keep" in shown:
        shown["keep"] = shown["keep"].total_seconds()
    return {"action": type(action).__name__, **shown}
