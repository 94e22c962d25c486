"""A whole rollout in memory: what would this policy do if the new version were like that?

The state machine and the judge are the real ones; the cluster, the edge, the users and the clock
are made up from a scenario and a seed. The same scenario and seed give the same story.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np

from domain.counting import added
from domain.journal import Entry, Kind, Outcome, next_entry
from domain.judge import Judgement, Look, Trial
from domain.place import Place
from domain.rollout import (
    Abort,
    Action,
    Advance,
    Finish,
    Judge,
    Observation,
    Policy,
    Route,
    State,
    Target,
    Wait,
    describe,
    next_action,
    replay,
)
from domain.routing import LATENCY_BOUNDS_SECONDS, Counts
from domain.verdict import Verdict, worst

START = datetime(2000, 1, 1, tzinfo=UTC)
TICK = timedelta(seconds=1)
_LONGEST = timedelta(hours=6)
_TAIL = 1.6448536269514722  # standard normal quantile of 95 %


@dataclass(frozen=True)
class Behaviour:
    """What users meet at one version: share of errors, median and 95th percentile in seconds."""

    error_rate: float = 0.0005
    median_seconds: float = 0.02
    p95_seconds: float = 0.06

    def buckets(self) -> np.ndarray[Any, np.dtype[np.float64]]:
        """Chance of each bucket of a lognormal latency with these two percentiles."""
        spread = math.log(self.p95_seconds / self.median_seconds) / _TAIL
        below = [
            0.5 * math.erfc(-math.log(bound / self.median_seconds) / (spread * math.sqrt(2)))
            for bound in LATENCY_BOUNDS_SECONDS
        ]
        return np.diff(np.array([0.0, *below, 1.0]))


@dataclass(frozen=True)
class Scenario:
    """One way in which a release can go. Moments are seconds since its start.

    Attributes:
        starts: whether replicas of the new version ever become ready.
        exits_at: when they begin to exit; None: never.
        blind_at: from when on nobody can read what users meet; None: never.
        killed_at: when the releasing process is killed; another recovers at once.
    """

    text: str
    stable: Behaviour = Behaviour()
    candidate: Behaviour = Behaviour()
    requests_per_second: float = 50
    starts: bool = True
    exits_at: float | None = None
    blind_at: float | None = None
    killed_at: float | None = None


SCENARIOS: Mapping[str, Scenario] = {
    "good": Scenario("the new version is as good as the old one"),
    "bad": Scenario("5 % of its answers are errors", candidate=Behaviour(error_rate=0.05)),
    "worse": Scenario("it has ten times the errors", candidate=Behaviour(error_rate=0.005)),
    "slow": Scenario(
        "its slow requests are twice as slow", candidate=Behaviour(p95_seconds=0.12)
    ),
    "no-users": Scenario("nobody uses the application", requests_per_second=0),
    "few-users": Scenario("one request every two seconds", requests_per_second=0.5),
    "never-ready": Scenario("its replicas never become ready", starts=False),
    "exits": Scenario("its replicas exit after 20 s", exits_at=20),
    "blind": Scenario("what users meet cannot be read any more after 10 s", blind_at=10),
    "killed": Scenario("the releasing process is killed after 15 s", killed_at=15),
    "both-bad": Scenario(
        "an outage that both versions share",
        stable=Behaviour(error_rate=0.2), candidate=Behaviour(error_rate=0.2),
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Event:
    """One action, and when it was taken."""

    seconds: float
    action: str
    reason: str


@dataclass(frozen=True)
class Story:
    """How it went. ``errors`` are those of the new version that users met."""

    outcome: Outcome
    reason: str
    seconds: float
    events: tuple[Event, ...]
    requests: int
    errors: int
    verdicts: tuple[Mapping[str, Any], ...]
    moments: tuple[Mapping[str, int], ...] = field(default=(), repr=False)


@dataclass
class _World:
    scenario: Scenario
    policy: Policy
    candidate: tuple[Target, ...]
    stable: tuple[Target, ...]
    random: np.random.Generator
    now: datetime = START
    entries: list[Entry] = field(default_factory=list)
    counts: dict[str, Counts] = field(default_factory=dict)
    users: dict[str, Counts] = field(default_factory=dict)
    stop_requested: str | None = None

    def __post_init__(self) -> None:
        self.place = Place.serving(self.stable)
        self.write(
            Kind.STARTED,
            {
                "policy": self.policy.model_dump(mode="json"),
                "candidate": [t.model_dump() for t in self.candidate],
                "stable": [t.model_dump() for t in self.stable],
            },
        )
        self.forget()
        self.preflight = Verdict.NOT_RUN

    @property
    def seconds(self) -> float:
        return (self.now - START).total_seconds()

    @property
    def state(self) -> State:
        return replay(self.entries)

    def write(self, kind: Kind, data: Mapping[str, Any]) -> None:
        self.entries.append(
            next_entry(
                self.entries, at=self.now, application="simulated", environment="simulated",
                release=1, kind=kind, actor="simulation", run="simulation", data=data,
            )
        )  # fmt: skip

    def forget(self) -> None:
        """What a process knows of the step that it watches, and no other does."""
        self.verdict, self.evidence = Verdict.NOT_RUN, Verdict.NOT_RUN
        self.trials: dict[str, Trial] = {}
        self.judgements: dict[str, Judgement] = {}
        self.evidence_at: datetime | None = None
        self.opened: dict[str, Counts] = {}

    def observe(self) -> Observation:
        found = self.judgements.values()
        reason = next((j.reason for j in found if j.verdict is self.evidence), "")
        return Observation(
            now=self.now, **vars(self.place), verdict=self.verdict,
            preflight=self.preflight, evidence=self.evidence, evidence_reason=reason,
            passed_at=self.now, evidence_at=self.evidence_at, stop_requested=self.stop_requested,
        )  # fmt: skip

    def tick(self) -> None:
        """Users send requests, replicas come up or exit, and time passes."""
        self.now += TICK
        for service, weights in self.place.weights.items():
            sent = int(self.random.poisson(self.scenario.requests_per_second))
            for workload, weight in weights.items():
                met = self.meet(workload, int(self.random.binomial(sent, weight / 100)))
                self.count(workload, met)
                self.users[workload] = added(self.users.get(workload, Counts()), met)
            for workload, percent in self.place.mirrors.get(service, {}).items():
                copies = int(self.random.binomial(sent, percent / 100))
                self.count(workload, self.meet(workload, copies))
        ours = {t.workload for t in self.candidate}
        late = self.scenario.exits_at is not None and self.seconds >= self.scenario.exits_at
        groups = self.place.groups.values()
        up = [g for g in groups if g.workload not in ours or (self.scenario.starts and not late)]
        gone = [g for g in groups if late and g.workload in ours]
        self.place = self.place.having(replace(group, ready=group.desired) for group in up)
        self.place = self.place.having(replace(group, ready=0, exited="code 1") for group in gone)

    def meet(self, workload: str, requests: int) -> Counts:
        ours = any(workload == t.workload for t in self.candidate)
        behaviour = self.scenario.candidate if ours else self.scenario.stable
        within = self.random.multinomial(requests, behaviour.buckets()).cumsum()
        bounds = (*(f"{bound:g}" for bound in LATENCY_BOUNDS_SECONDS), "+Inf")
        return Counts(
            requests=requests,
            errors=int(self.random.binomial(requests, behaviour.error_rate)),
            buckets={bound: int(n) for bound, n in zip(bounds, within, strict=True)},
        )

    def count(self, workload: str, met: Counts) -> None:
        self.counts[workload] = added(self.counts.get(workload, Counts()), met)

    def look(self) -> None:
        """The judge's next look at every public service of the step."""
        state = self.state
        step = None if state.complete or state.aborting else state.policy.steps[state.step]
        self.verdict = Verdict.PASS
        if step is None or not step.requests:
            return
        if self.scenario.blind_at is not None and self.seconds >= self.scenario.blind_at:
            self.evidence = Verdict.ERROR
            return
        old = {t.service: t.workload for t in self.stable}
        limits = self.policy.limits.model_copy(update={"requests": step.requests})
        if not self.opened:
            self.opened = {w: self.counts.get(w, Counts()) for w in self.place.groups}
        for target in (t for t in self.candidate if t.public):
            trial = self.trials.setdefault(target.service, Trial(limits))
            stable = old.get(target.service)
            self.judgements[target.service] = trial.add(
                Look(
                    at=self.now,
                    candidate=self.gained(target.workload),
                    stable=self.gained(stable) if stable else None,
                )
            )
        self.evidence = worst(j.verdict for j in self.judgements.values())
        self.evidence_at = self.now

    def gained(self, workload: str) -> Counts:
        return self.counts.get(workload, Counts()).since(self.opened.get(workload, Counts()))

    def perform(self, action: Action) -> None:
        match action:
            case Wait():
                return
            case Judge(subject="preflight"):
                self.preflight = Verdict.PASS
            case Judge():
                self.look()
            case Advance():
                self.write(Kind.STEP_PASSED, self.proof())
                self.forget()
            case Abort(reason=reason):
                self.write(Kind.ABORTING, {"reason": reason, **self.proof()})
                self.forget()
            case Finish(outcome=outcome, reason=reason):
                self.write(Kind.FINISHED, {"outcome": outcome, "reason": reason})
            case _:
                self.place = self.place.after(action)
                if isinstance(action, Route):
                    self.forget()
                self.write(Kind.DONE, describe(action))

    def proof(self) -> dict[str, Any]:
        state = self.state
        weight = state.policy.steps[min(state.step, len(state.policy.steps) - 1)].weight
        return {
            "judgements": [
                {
                    "step": state.step + 1, "weight": weight, "service": service,
                    "verdict": found.verdict.value, "reason": found.reason,
                    "numbers": dict(found.numbers),
                }
                for service, found in self.judgements.items()
            ]
        }  # fmt: skip

    def kill(self) -> None:
        """The process is gone; whoever recovers knows the journal alone."""
        self.forget()
        self.preflight = Verdict.NOT_RUN
        self.write(Kind.TAKEN_OVER, {})
        if self.policy.interrupted == "reverse":
            self.stop_requested = "the release was interrupted"


def simulate(
    policy: Policy,
    candidate: Sequence[Target],
    stable: Sequence[Target],
    scenario: Scenario,
    seed: int = 1,
) -> Story:
    """Run a release of ``candidate`` in place of ``stable`` to its end.

    Raises:
        ValueError: it does not end within six simulated hours.
    """
    world = _World(scenario, policy, tuple(candidate), tuple(stable), np.random.default_rng(seed))
    events: list[Event] = []
    moments: list[Mapping[str, int]] = []
    for action, at in _played(world):
        line = Event(at, type(action).__name__.lower(), action.reason)
        if not events or (events[-1].action, events[-1].reason) != (line.action, line.reason):
            events.append(line)
        moments.append({w: n for ws in world.place.weights.values() for w, n in ws.items()})
    end = world.entries[-1].data
    ours = [world.users.get(t.workload, Counts()) for t in world.candidate]
    return Story(
        outcome=Outcome(end["outcome"]),
        reason=str(end["reason"]),
        seconds=world.seconds,
        events=tuple(events),
        requests=sum(c.requests for c in world.users.values()),
        errors=sum(c.errors for c in ours),
        verdicts=tuple(v for e in world.entries for v in e.data.get("judgements", ())),
        moments=tuple(moments),
    )


def _played(world: _World) -> Iterator[tuple[Action, float]]:
    killed = False
    while world.now - START < _LONGEST:
        at = world.scenario.killed_at
        if at is not None and not killed and world.seconds >= at:
            killed = True
            world.kill()
        action = next_action(world.state, world.observe())
        when = world.seconds
        world.perform(action)
        yield action, when
        if isinstance(action, Finish):
            return
        if isinstance(action, Wait | Judge):
            world.tick()
    raise ValueError("the rollout does not end within six hours")
