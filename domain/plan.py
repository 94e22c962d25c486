"""Plans: what a release is going to do, said before it does it.

The part that moves traffic is not written down a second time: the state machine itself
(``domain.rollout``) is run against a world in which everything succeeds at once, and the actions
that it asks for are the plan. So a plan cannot promise steps that a rollout does not take, and
``counts_done`` of the journal afterwards equals ``Plan.counts`` of the plan before.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from domain.application import Application, Strategy
from domain.artifact import Artifact, ServiceBundle, digest_of
from domain.journal import Entry, Kind, Outcome, next_entry
from domain.judge import detectable
from domain.place import Place
from domain.release import BuildRecord, policy_for, targets, workload_name
from domain.rollout import (
    Action,
    Advance,
    Contract,
    Finish,
    Group,
    Judge,
    Migrate,
    Observation,
    Policy,
    Retire,
    Route,
    Scale,
    Step,
    Stop,
    Target,
    Wait,
    describe,
    next_action,
    replay,
)
from domain.units import format_duration, format_percent
from domain.verdict import Verdict

Change = Literal["add", "change", "check", "remove"]

SYMBOLS: Mapping[Change, str] = {"add": "+", "change": "~", "check": "?", "remove": "-"}
_ZERO = datetime(2000, 1, 1, tzinfo=UTC)
_UNBUILT = digest_of("not built yet")
_LIMIT = 10_000


@dataclass(frozen=True)
class Line:
    """One action as a person reads it: ``+ start 2 replicas of api 1.1.0``."""

    change: Change
    word: str
    text: str

    @property
    def symbol(self) -> str:
        return SYMBOLS[self.change]

    def __str__(self) -> str:
        return f"{self.symbol} {self.word} {self.text}"


@dataclass(frozen=True)
class Counts:
    """How many workloads are started, moves and migrations made, workloads stopped or retired."""

    start: int = 0
    migrate: int = 0
    move: int = 0
    stop: int = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(
            self.start + other.start,
            self.migrate + other.migrate,
            self.move + other.move,
            self.stop + other.stop,
        )

    def __str__(self) -> str:
        return (
            f"{self.start} to start, {self.migrate} to migrate, {self.move} to move, "
            f"{self.stop} to stop"
        )

    def done(self) -> str:
        """The same counts, after the act."""
        return (
            f"{self.start} started, {self.migrate} migrated, {self.move} moved, {self.stop} stopped"
        )


@dataclass(frozen=True)
class Version:
    """One version with its workloads at full size."""

    name: str
    targets: tuple[Target, ...]

    def service_of(self, workload: str) -> str | None:
        return next((t.service for t in self.targets if t.workload == workload), None)


@dataclass(frozen=True)
class Plan:
    """What is going to happen, in order."""

    title: str
    lines: tuple[Line, ...]
    counts: Counts

    def summary(self) -> str:
        return f"plan: {self.counts}"

    def to_dict(self) -> dict[str, Any]:
        return {
            "title": self.title,
            "actions": [
                {"change": line.change, "word": line.word, "text": line.text} for line in self.lines
            ],
            "counts": vars(self.counts),
        }


def plan_release(
    application: Application,
    environment: str,
    *,
    version: str,
    strategy: Strategy,
    live: Version | None,
    number: int = 1,
) -> Plan:
    """The plan of a release from source.

    Args:
        live: what serves now by the journal; None when nothing does.
        number: the release number that the journal will give.
    """
    record = unbuilt(application, version)
    workloads = {
        service: workload_name(application.name, environment, service, number)
        for service in application.services
    }
    candidate = Version(version, tuple(targets(record, environment, workloads)))
    policy = policy_for(record, environment, strategy, migrate=True, first=live is None)
    return _plan(
        f"release {application.name} {version} to {environment}, {strategy}, "
        + (f"in place of {live.name}" if live else "where nothing is live"),
        [*_before_traffic(application, environment)],
        _Script(application, policy, candidate, live),
    )


def plan_rollback(
    application: Application,
    environment: str,
    *,
    back_to: Version,
    live: Version,
    present: Mapping[str, int],
) -> Plan:
    """The plan of going back to an earlier release.

    Args:
        application: application.yaml as it was when ``back_to`` was built.
        present: replicas by workload that the earlier release still has.
    """
    record = unbuilt(application, back_to.name)
    policy = policy_for(record, environment, Strategy.BLUE_GREEN, migrate=False)
    return _plan(
        f"take {application.name} in {environment} back to {back_to.name} from {live.name}",
        [],
        _Script(application, policy, back_to, live, present),
    )


def counts_done(entries: Iterable[Entry]) -> Counts:
    """What one release did, from its own entries: the same counts as its plan has."""
    entries = list(entries)
    first = next((e for e in entries if e.kind is Kind.STARTED), None)
    if first is None:
        return Counts()
    candidate = {target["workload"] for target in first.data["candidate"]}
    total = Counts()
    for entry in entries:
        if entry.kind is Kind.DONE:
            total += _counts_of(entry.data, candidate)
    return total


def _counts_of(data: Mapping[str, Any], candidate: set[str]) -> Counts:
    match data.get("action"):
        case "Migrate" | "Contract":
            return Counts(migrate=1)
        case "Scale":
            started = sum(workload in candidate for workload in data["sizes"])
            return Counts(start=started, stop=len(data["sizes"]) - started)
        case "Route":
            return Counts(move=1)
        case "Retire" | "Stop":
            return Counts(stop=len(data["workloads"]))
        case _:
            return Counts()


def _plan(title: str, before: Sequence[Line], script: _Script) -> Plan:
    lines, counts = list(before), Counts()
    candidate = {target.workload for target in script.candidate.targets}
    for action, seen in script.play():
        counts += _counts_of(describe(action), candidate)
        lines += script.lines(action, seen)
    return Plan(title, tuple(lines), counts)


def _before_traffic(application: Application, environment: str) -> Iterator[Line]:
    services = ", ".join(application.services)
    yield Line("change", "build", f"{_counted(len(application.services), 'bundle')}: {services}")
    if application.tests:
        names = ", ".join(application.tests)
        yield Line("check", "test", f"{_counted(len(application.tests), 'suite')}: {names}")
    policy = application.scan_in(environment)
    yield Line("check", "scan", f"source and packages; refuse severity {policy.fail_on} and above")
    for flag, steps in (application.flags.carry if application.flags else {}).items():
        ramp = ", ".join(format_percent(step) for step in steps)
        yield Line("add", "carry", f"flag {flag}, off, or at its share; ramps by {ramp} when asked")


@dataclass
class _Script:
    """A world where everything succeeds at once, for the state machine to act on."""

    application: Application
    policy: Policy
    candidate: Version
    stable: Version | None
    present: Mapping[str, int] = field(default_factory=dict)

    def play(self) -> Iterator[tuple[Action, Observation]]:
        """The actions of the rollout with what was seen before each; ends before ``Finish``."""
        entries, seen = [self._started()], self._seen()
        for _ in range(_LIMIT):
            action = next_action(replay(entries), seen)
            if isinstance(action, Finish):
                if action.outcome is not Outcome.PROMOTED:
                    raise ValueError(f"a release in a perfect world ended {action}")
                return
            if not isinstance(action, Wait | Advance):
                yield action, seen
            entries += _recorded(entries, action, seen.now)
            seen = _after(action, seen, self.policy)
        raise ValueError("the rollout does not end in a perfect world")

    def lines(self, action: Action, seen: Observation) -> list[Line]:
        new = self.candidate.name
        match action:
            case Migrate():
                return self._migration_lines()
            case Scale(sizes=sizes):
                return [
                    self._size_line(w, seen.group(w).desired, size) for w, size in sizes.items()
                ]
            case Route(mirrors=mirrors) if mirrors:
                share = max(n for copies in mirrors.values() for n in copies.values())
                text = f"{share}% of GET requests to {new} too; users get the old answers"
                return [Line("change", "copy", text)]
            case Route(weights=weights):
                return [Line("change", "move", f"{self._share(weights)}% of traffic to {new}")]
            case Judge(subject="preflight"):
                return [Line("check", "check", f"{new} on its private address, before any user")]
            case Judge():
                return [Line("check", "check", self._proof(seen)), *self._sight(seen)]
            case Contract():
                return [self._contraction_line("no earlier version can serve after it")]
            case Retire(workloads=workloads, keep=keep):
                after = f"after {format_duration(keep)}"
                lines = [self._stop_line(workload, after) for workload in workloads]
                late = f"not before {format_duration(keep)} have passed: `slipway recover` runs it"
                return lines + ([self._contraction_line(late)] if self.policy.contract else [])
            case Stop(workloads=workloads):
                return [self._stop_line(workload, "now") for workload in workloads]
            case _:
                return []

    def _step(self, seen: Observation) -> Step | None:
        """The step that needs evidence at these weights; None for one whose checks are enough."""
        share = self._share(seen.weights)
        step = next((s for s in self.policy.steps if s.weight == share), None)
        return step if step and step.requests and self.stable else None

    def _sight(self, seen: Observation) -> list[Line]:
        """What the evidence of the step can show, said before anybody trusts it."""
        step = self._step(seen)
        if step is None or not step.weight:
            return []
        found = detectable(
            self.policy.limits,
            weight_percent=step.weight,
            error_rate=self.application.objectives.error_rate,
            requests=step.requests,
        )
        return [Line("check", "see", found.sentence)]

    def _proof(self, seen: Observation) -> str:
        new, step = self.candidate.name, self._step(seen)
        if step is None or self.stable is None:
            return f"{new} through the edge; it goes back on failure"
        return (
            f"{new} against {self.stable.name} on {step.requests} requests at least; "
            "it goes back when it is worse"
        )

    def _migration_lines(self) -> list[Line]:
        database = self.application.database
        commands = (database.migrate, database.seed) if database else ()
        words = ("migration", "seed")
        return [
            Line("change", "run", f"{word} `{command}`")
            for word, command in zip(words, commands, strict=False)
            if command
        ]

    def _contraction_line(self, when: str) -> Line:
        database = self.application.database
        assert database is not None
        return Line("remove", "contract", f"`{database.contract}`, {when}")

    def _size_line(self, workload: str, before: int, after: int) -> Line:
        service = self.candidate.service_of(workload)
        if service is None:
            return self._stop_line(workload, f"except {_counted(after, 'replica')}")
        what, version = _counted(after, "replica"), self.candidate.name
        if before == after:
            return Line("add", "start", f"nothing new: keep {what} of {service} {version}")
        more = f" (now {before})" if before else ""
        return Line("add", "start", f"{what} of {service} {version}{more}")

    def _stop_line(self, workload: str, when: str) -> Line:
        assert self.stable is not None
        service = self.stable.service_of(workload)
        return Line("remove", "stop", f"{service} {self.stable.name} {when}")

    def _share(self, weights: Mapping[str, Mapping[str, int]]) -> int:
        ours = {target.workload for target in self.candidate.targets}
        shares = [sum(n for w, n in ws.items() if w in ours) for ws in weights.values()]
        return min(shares, default=100)

    def _started(self) -> Entry:
        data = {
            "policy": self.policy.model_dump(mode="json"),
            "candidate": [t.model_dump() for t in self.candidate.targets],
            "stable": [t.model_dump() for t in self.stable.targets] if self.stable else [],
        }
        return _entry([], Kind.STARTED, _ZERO, data)

    def _seen(self) -> Observation:
        place = Place.serving(self.stable.targets if self.stable else ())
        kept = {w: Group(w, n, n, expires=True) for w, n in self.present.items()}
        return Observation(_ZERO, {**kept, **place.groups}, place.weights)


def _recorded(entries: Sequence[Entry], action: Action, now: datetime) -> list[Entry]:
    if isinstance(action, Wait | Judge):
        return []
    kind = Kind.STEP_PASSED if isinstance(action, Advance) else Kind.DONE
    return [_entry(entries, kind, now, describe(action))]


def _entry(entries: Sequence[Entry], kind: Kind, at: datetime, data: Mapping[str, Any]) -> Entry:
    return next_entry(
        entries, at=at, application="plan", environment="plan", release=1, kind=kind,
        actor="plan", run="plan", data=data,
    )  # fmt: skip


def _after(action: Action, seen: Observation, policy: Policy) -> Observation:
    """What is seen when the action has succeeded."""
    match action:
        case Wait():
            return replace(seen, now=seen.now + max(policy.drain, timedelta(seconds=1)))
        case Judge(subject="preflight"):
            return replace(seen, preflight=Verdict.PASS)
        case Judge():
            return replace(seen, verdict=Verdict.PASS, evidence=Verdict.PASS)
        case Advance() | Route():  # what comes next is judged anew
            seen = replace(seen, verdict=Verdict.NOT_RUN, evidence=Verdict.NOT_RUN)
    place = Place(seen.groups, seen.weights, seen.mirrors, seen.testers).after(action).ready()
    return replace(seen, **vars(place))


def unbuilt(application: Application, version: str) -> BuildRecord:
    """A record of the right shape for rules that look at nothing that a build decides."""
    bundle = ServiceBundle(digest=_UNBUILT, size_bytes=0, built_from=_UNBUILT)
    artifact = Artifact(
        application=application.name,
        version=version,
        services=dict.fromkeys(application.services, bundle),
    )
    return BuildRecord.of(application, artifact, "unversioned")


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" + ("" if count == 1 else "s")
