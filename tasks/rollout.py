"""Carrying out a rollout: observe, ask ``domain.rollout``, write intent, act, write outcome.

Nothing here decides. The journal entry before each effect is also the lock: a process that lost
the environment to another cannot write it, and so does not act.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE

from blocks.http_probe import Probed, probe, timed
from blocks.journal import Journal
from blocks.observing import metrics_for
from blocks.platform import Platform
from blocks.records import Records
from domain.application import Service, SmokeCheck
from domain.errors import Failed, SlipwayError
from domain.journal import Entry, Kind, Outcome
from domain.redaction import without_credentials
from domain.release import BuildRecord, routing_for, workload_spec
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
    Retire,
    Route,
    Scale,
    State,
    Stop,
    Target,
    Wait,
    describe,
    next_action,
    replay,
)
from domain.routing import Counts, Routing, Testing
from domain.verdict import Check, Verdict, worst
from domain.workload import Workload
from tasks.candidates import exit_of, wait_until_ready, waiting_for
from tasks.databases import contract_database, migrate_database
from tasks.environs import service_environ
from tasks.evidence import Evidence, Pair
from tasks.flags import is_on, kill_carried
from tasks.moves import publish_moves

POLL_SECONDS = 0.1
LOOK_SECONDS = 0.5
"""Between two looks at what users met; a bad version is noticed that much later at most."""
CHECK_SECONDS = 10.0
"""Between two rounds of smoke checks while a step collects its evidence."""
TALK_SECONDS = 15.0
"""Between two lines of the log about a step that collects its evidence."""
PATIENCE = timedelta(seconds=45)
"""How long a rollout goes on asking a cluster or an edge that does not answer."""

_Weights = Mapping[str, Mapping[str, int]]


@task(name="scale", task_run_name="scale {what}", cache_policy=NO_CACHE)
def _scale(platform: Platform, specs: list[Any], what: str) -> None:
    for spec in specs:
        platform.cluster.apply(spec)


@task(name="route", task_run_name="route {what}", cache_policy=NO_CACHE)
def _route(platform: Platform, journal: Journal, routing: Routing, what: str) -> None:
    journal.confirm_ours()  # time has passed since the intent, and this is what users feel
    if any(route.weights for route in routing.routes):
        platform.edge.write(routing)
    else:
        platform.edge.remove(routing.application, routing.environment)


@task(name="stop", task_run_name="stop {workload}", cache_policy=NO_CACHE)
def _stop(platform: Platform, workload: str) -> None:
    platform.cluster.stop(workload)


@task(name="retire", task_run_name="retire {workload}", cache_policy=NO_CACHE)
def _retire(platform: Platform, workload: str, at: datetime) -> None:
    platform.cluster.expire(workload, at)


@task(name="smoke", task_run_name="smoke {what}", cache_policy=NO_CACHE)
def _smoke(targets: list[tuple[str, Mapping[str, str], Any]], what: str) -> list[Check]:
    """One check for each (base URL, headers, SmokeCheck)."""
    return [
        probe(base, headers, check.path, check.status, check.contains, 5)
        for base, headers, check in targets
    ]


@dataclass
class Side:
    """One version that takes part: its record and what runs of it."""

    record: BuildRecord
    targets: tuple[Target, ...]


@dataclass
class Rollout:
    """One release under way. All truth is in the journal; this holds only what was just seen."""

    platform: Platform
    journal: Journal
    number: int
    candidate: Side
    stable: Side | None
    log: Callable[[str], None] = lambda line: None
    verdict: Verdict = Verdict.NOT_RUN
    preflight: Verdict = Verdict.NOT_RUN
    reason: str = ""
    stop_requested: str | None = None
    before: Mapping[str, Counts] = field(default_factory=dict)
    checks: list[Check] = field(default_factory=list)
    evidence: Evidence | None = None
    evidence_verdict: Verdict = Verdict.NOT_RUN
    evidence_reason: str = ""
    _passed_at: datetime | None = None
    _ready_at: datetime | None = None
    _evidence_at: datetime | None = None
    _checked: float = -math.inf
    _talked: float = -math.inf
    _silent_since: float | None = None
    _last_line: str = ""
    _disk_full: SlipwayError | None = None
    _unwritten: list[Entry] = field(default_factory=list)
    _requests: int = 0
    _failed_requests: int = 0
    _had_weight: set[str] = field(default_factory=set)
    _uncounted: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        if self.stable:
            self._had_weight |= {t.workload for t in self.stable.targets if t.public}
        self._uncounted = self._had_weight & self.before.keys()

    # --- driving ---------------------------------------------------------------------------

    def state(self) -> State:
        entries = (*self.journal.entries, *self._unwritten)
        return replay(e for e in entries if e.release == self.number)

    def drive(self, until: Callable[[State, Action], bool] = lambda state, action: False) -> Action:
        """Act until the release has ended, or until ``until`` says to stop before an action."""
        last = self._drive(until)
        try:
            publish_moves(self.journal, self.number)
        except Exception as error:  # of telling alone: what was done stays done
            self.log(f"the moves are not shown: {error}")
        return last

    def _drive(self, until: Callable[[State, Action], bool]) -> Action:
        while True:
            self.journal.catch_up()
            state = self.state()
            if state.finished:
                self._raise_unwritten()
                return Finish("already ended", state.finished)
            try:
                action = next_action(state, self.observe(state))
                if until(state, action):
                    return action
                self._say(action)
                self.perform(action)
                self._silent_since = None
            except SlipwayError as error:
                self._on_error(state, error)
                continue
            if isinstance(action, Finish):
                self._raise_unwritten()
                return action
            if isinstance(action, Wait):
                time.sleep(POLL_SECONDS)

    def cancel(self, reason: str) -> Action:
        """Go back now, within the seconds that a cancelled run is given."""
        self.stop_requested = reason
        return self.drive()

    def observe(self, state: State) -> Observation:
        workloads, there = self.workloads(), self._read()
        weights = _weights(there)
        self._list_backends(workloads, weights, there)
        now, routes = self.journal.now(), there.routes if there else ()
        if all(_is_ready(workloads.get(t.workload)) for t in self.candidate.targets):
            self._ready_at = now
        return Observation(
            now=now,
            groups={name: _group(w) for name, w in workloads.items()},
            weights=weights,
            verdict=self.verdict,
            preflight=self.preflight,
            reason=self.reason,
            stop_requested=self.stop_requested,
            evidence=self.evidence_verdict,
            evidence_reason=self.evidence_reason,
            mirrors={r.service: dict(r.mirror) for r in routes if r.mirror},
            testers={r.service: r.testing.workload for r in routes if r.testing},
            flags_on=self._flags_on(),
            passed_at=self._passed_at,
            ready_at=self._ready_at,
            evidence_at=self._evidence_at,
        )

    def _flags_on(self) -> tuple[str, ...]:
        """Flags that the candidate carries and that are on for anybody."""
        declared = self.candidate.record.application.flags
        if declared is None:
            return ()
        known = self.platform.flags.read(self.journal.application, self.journal.environment)
        return tuple(flag for flag in declared.carry if known is not None and is_on(known, flag))

    def workloads(self) -> dict[str, Workload]:
        found = self.platform.cluster.workloads(self.journal.application, self.journal.environment)
        return {w.name: w for w in found}

    def perform(self, action: Action) -> None:
        """Intent, effect, outcome. Waiting and judging change nothing, so need no intent."""
        match action:
            case Wait():
                return
            case Judge(subject=subject):
                self._judge(subject)
            case Advance():
                checks = [c.model_dump() for c in self.checks]
                self._write(Kind.STEP_PASSED, checks=checks, **self._proof())
                self._forget_verdict()
            case Abort(reason=reason, code=code, workload=workload):
                detail = self.platform.cluster.log_tail(workload) if workload else ""
                self._write(Kind.ABORTING, reason=reason, code=code, detail=detail, **self._proof())
                self._forget_verdict()
            case Finish(outcome=outcome, reason=reason):
                self._finish(outcome, reason)
            case _:
                self._write(Kind.INTENT, **_jsonable(describe(action)))
                self._effect(action)
                self._write(Kind.DONE, **_jsonable(describe(action)))

    def _effect(self, action: Action) -> None:
        match action:
            case Migrate():
                migrate_database(self.platform, self.candidate.record, self.journal.environment)
            case Contract():
                contract_database(self.platform, self.candidate.record, self.journal.environment)
            case Scale(sizes=sizes):
                self._unlist_surplus(sizes)
                _scale(self.platform, [self._spec(w, n) for w, n in sizes.items()], _sized(sizes))
            case Route(weights=weights, mirrors=mirrors, testers=testers):
                there = self._read()
                testing = self._testing(testers)
                routing = self._routing(self.workloads(), weights, there, mirrors, testing)
                self._tally(there)
                _route(self.platform, self.journal, routing, _shares(weights))
                self._forget_verdict()
            case KillFlags(flags=flags):
                kill_carried(
                    self.platform, self.journal.application, self.journal.environment, flags
                )
                self._forget_verdict()
            case Retire(workloads=workloads, keep=keep):
                for workload in workloads:
                    _retire(self.platform, workload, datetime.now(UTC) + keep)
            case Stop(workloads=workloads):
                for workload in workloads:
                    _stop(self.platform, workload)

    def _on_error(self, state: State, error: SlipwayError) -> None:
        """Forward: go back. Backward: ask again for a while, then say that a person is needed.

        A full disk stops the journal. While nobody else has appended, the environment is still
        ours, so we go back as whoever takes over would, and tell the journal when there is room.
        """
        if error.code in ("SLP054", "SLP060"):
            raise error
        self.log(str(error))
        if error.code == "SLP015":
            self._disk_full = error
        if error.code == "SLP052" and state.complete:  # it would fail again, and may have done half
            self._finish(Outcome.PROMOTED, f"{PASSED}; then: {error.cause}")
            return
        forward = state.aborting is None and not state.complete
        if forward and error.code != "SLP014":
            self._abort(error)
            return
        now = time.monotonic()
        self._silent_since = self._silent_since or now
        if now - self._silent_since < PATIENCE.total_seconds():
            time.sleep(POLL_SECONDS * 5)
            return
        self._silent_since = None
        if forward:
            self._abort(error)
            return
        outcome = Outcome.PROMOTED if state.complete else Outcome.ROLLBACK_FAILED
        self._finish(outcome, f"{state.aborting or PASSED}; then: {error.cause}")

    def _abort(self, error: SlipwayError) -> None:
        self._write(Kind.ABORTING, reason=error.cause, code=error.code, detail=error.detail)
        self._forget_verdict()

    def _raise_unwritten(self) -> None:
        if self._unwritten and self._disk_full:
            ended = self._unwritten[-1].data.get("outcome", "nothing yet")
            raise Failed(
                "SLP015",
                f"{self._disk_full.cause}; the release ended {ended}, which could not be noted",
                help=f"free some space, then run `slipway recover {self.journal.application} "
                f"--environment {self.journal.environment}`",
                where=self._disk_full.where,
            )

    # --- judging ---------------------------------------------------------------------------

    def look(self, subject: str) -> list[Check]:
        """Check one side: its smoke checks, and the replicas of every service without one.

        So a worker, which no request can reach, is judged as well, and there is always a check.
        """
        side = self.stable if subject == "stable" and self.stable else self.candidate
        declared = [(c, _target_of(side, c.path)) for c in side.record.application.smoke_checks()]
        asked = [(check, target) for check, target in declared if target]
        checks = [_unreachable(check.path) for check, target in declared if target is None]
        if asked:
            found = self._smoke_targets(asked, subject)
            checks += _smoke(found, f"{subject} {side.record.version}")
        workloads, reached = self.workloads(), {target.service for _, target in asked}
        fresh = side is self.candidate and self.state().finished is None
        return checks + [
            _replicas(target, workloads.get(target.workload), fresh=fresh)
            for target in side.targets
            if target.service not in reached
        ]

    def _judge(self, subject: str) -> None:
        step = self._step_in_proof() if subject == "candidate" else None
        recent = time.monotonic() - self._checked < CHECK_SECONDS
        if step is None or self.verdict is not Verdict.PASS or not recent:
            self._check(subject)
        if step is not None:
            self._weigh(step)

    def _step_in_proof(self) -> int | None:
        """The step that needs evidence now; None for one whose checks are enough."""
        state = self.state()
        if state.complete or state.finished or not state.policy.steps[state.step].requests:
            return None
        return state.step

    def _weigh(self, step: int) -> None:
        """Judge what users have met since the move, and wait a moment for more of it."""
        began = time.monotonic()
        try:
            if self.evidence is None or self.evidence.step != step:
                self.evidence = self._open_evidence(step)
            self.evidence.look()
        except SlipwayError as error:
            silent = error.code == "SLP090"  # it could be seen that there is nothing to see
            self.evidence_verdict = Verdict.NO_DATA if silent else Verdict.ERROR
            self.evidence_reason = error.cause
        else:
            self._evidence_at = self.journal.now()
            self.evidence_verdict = self.evidence.verdict
            self.evidence_reason = self.evidence.reason
        self._tell_evidence(step)
        if self.evidence_verdict not in (Verdict.PASS, Verdict.FAIL) or self.state().paused:
            time.sleep(max(0.0, LOOK_SECONDS - (time.monotonic() - began)))

    def _open_evidence(self, step: int) -> Evidence:
        assert self.stable is not None
        policy, application = self.state().policy, self.journal.application
        stable = {t.service: t.workload for t in self.stable.targets if t.public}
        pairs = [
            Pair(t.service, t.workload, stable.get(t.service))
            for t in self.candidate.targets
            if t.public
        ]
        probes, record = policy.probes, self.candidate.record
        observe = record.application.observe_in(self.journal.environment)
        return Evidence(
            step=step,
            metrics=metrics_for(self.platform, observe),
            application=application,
            environment=self.journal.environment,
            pairs=pairs,
            limits=policy.limits.model_copy(update={"requests": policy.steps[step].requests}),
            probe=(lambda workload: self._probe(workload, probes.path)) if probes else None,
            probes_per_second=probes.per_second if probes else 0,
        )

    def _probe(self, workload: str, path: str) -> Probed:
        edge = self.platform.edge
        base = edge.private_url(self.journal.application, self.journal.environment, workload)
        return timed(base, path)

    def _proof(self) -> dict[str, Any]:
        """What the journal keeps of the evidence: the verdicts, and the digest of the counts."""
        if self.evidence is None or not self.evidence.judgements:
            return {}
        records = Records(self.platform.store)
        weight = self.state().policy.steps[self.evidence.step].weight
        return {
            "judgements": self.evidence.described(weight),
            "evidence": records.keep_evidence(self.evidence.document()),
        }

    def _tell_evidence(self, step: int) -> None:
        """How far the step is, for ``slipway status``, and now and then for the log."""
        policy, now = self.state().policy, time.monotonic()
        weight = policy.steps[step].weight
        Records(self.platform.store).keep_progress(
            self.journal.application,
            self.journal.environment,
            {
                "release": self.number,
                "at": self.journal.now().isoformat(),
                "step": step + 1,
                "steps": len(policy.steps),
                "weight": weight,
                "needed": policy.steps[step].requests,
                "verdict": self.evidence_verdict.value,
                "reason": self.evidence_reason,
                "judgements": self.evidence.described(weight) if self.evidence else [],
            },
        )
        ended = self.evidence_verdict in (Verdict.PASS, Verdict.FAIL)
        if ended or now - self._talked > TALK_SECONDS:
            self._talked = now
            symbol = self.evidence_verdict.symbol
            self.log(f"{symbol} step {step + 1} at {weight}%: {self.evidence_reason}")

    def _check(self, subject: str) -> None:
        self.checks, self._checked = self.look(subject), time.monotonic()
        verdict = worst(check.verdict for check in self.checks)
        failed = next((c for c in self.checks if c.verdict is not Verdict.PASS), None)
        self.reason = failed.reason if failed else ""
        if verdict is not Verdict.PASS:
            self.log(f"{verdict.symbol} {subject}: {self.reason or 'no check was run'}")
            time.sleep(POLL_SECONDS * 3)
        if subject == "preflight":
            self.preflight = verdict
            return
        self.verdict = verdict
        if verdict is Verdict.PASS:
            self._passed_at = self.journal.now()

    def _smoke_targets(
        self, asked: list[tuple[SmokeCheck, Target]], subject: str
    ) -> list[tuple[str, Mapping[str, str], SmokeCheck]]:
        """The private address always; the public one too, when all of the traffic goes there."""
        application, environment = self.journal.application, self.journal.environment
        edge, there = self.platform.edge, self._read()
        weights = _weights(there)
        found: list[tuple[str, Mapping[str, str], SmokeCheck]] = []
        for check, target in asked:
            found.append((edge.private_url(application, environment, target.workload), {}, check))
            home = weights.get(target.service) == {target.workload: 100}
            if subject != "preflight" and there is not None and home:
                base, headers = edge.request_target(there)
                found.append((base, headers, check))
        return found

    def restore(self) -> list[str]:
        """Bring the candidate side back to full size and traffic; what had to be started.

        What neither serves nor waits to be stopped was left by a release that failed; it is
        given a time to end.

        Raises:
            Failed: SLP050 or SLP051 when a workload does not come up.
        """
        there, seen = self.workloads(), self._read()
        ours = {t.workload for t in self.candidate.targets}
        home = {t.service: {t.workload: 100} for t in self.candidate.targets if t.public}
        lost = [t for t in self.candidate.targets if not _is_whole(t, there.get(t.workload))]
        left = [w.name for w in there.values() if w.name not in ours and not w.expires_at]
        moved = _weights(seen) != home
        if not (lost or moved or left):
            return []
        self._write(Kind.INTENT, action="Restore", start=[t.workload for t in lost], retire=left)
        for target in lost:
            self.platform.cluster.apply(self._spec(target.workload, target.replicas))
            service = self.candidate.record.application.services[target.service]
            wait_until_ready(self.platform, target, service.start.total_seconds())
        if home and (lost or moved):
            self.journal.confirm_ours()
            self.platform.edge.write(self._routing(self.workloads(), home, seen, {}, {}))
        keep = self.state().policy.keep_previous
        for name in left:
            self.platform.cluster.expire(name, datetime.now(UTC) + keep)
        self._write(Kind.DONE, action="Restore", start=[t.workload for t in lost], retire=left)
        return [t.workload for t in lost]

    # --- reading and describing ------------------------------------------------------------

    def _read(self) -> Routing | None:
        return self.platform.edge.read(self.journal.application, self.journal.environment)

    def _list_backends(
        self, workloads: Mapping[str, Workload], weights: _Weights, there: Routing | None
    ) -> None:
        """Give every ready workload its private address; moves no weight."""
        wanted = self._routing(workloads, weights, there)
        if (_listed(there) if there else {}) == _listed(wanted):
            return
        self._tally(there)
        self.journal.confirm_ours()
        if wanted.routes:
            self.platform.edge.write(wanted)
        else:
            self.platform.edge.remove(wanted.application, wanted.environment)

    def _unlist_surplus(self, sizes: Mapping[str, int]) -> None:
        """The edge forgets the replicas that a scale-down ends, the last ones, before they end.

        A replica that is told to stop while it is still listed refuses what is sent to it; the
        edge sends that elsewhere, but counts it as failed, and a POST it may not send twice.
        """
        workloads, there = self.workloads(), self._read()
        kept = {
            name: w.model_copy(
                update={
                    "replicas": tuple(r for r in w.replicas if r.index < sizes.get(name, w.desired))
                }
            )
            for name, w in workloads.items()
        }
        if kept != workloads:
            self._list_backends(kept, _weights(there), there)

    def _testing(self, testers: Mapping[str, str]) -> dict[str, Testing]:
        who = self.state().policy.testers
        if who is None:
            return {}
        return {
            service: Testing(carrier=who.carrier, name=who.name, value=who.value, workload=workload)
            for service, workload in testers.items()
        }

    def _routing(
        self,
        workloads: Mapping[str, Workload],
        weights: _Weights,
        known: Routing | None,
        mirrors: _Weights | None = None,
        testing: Mapping[str, Testing] | None = None,
    ) -> Routing:
        """Raises Failed SLP051 when a version would get weight that has no ready replica."""
        sides = [side for side in (self.stable, self.candidate) if side is not None]
        parts = [
            (
                target,
                side.record.application.services[target.service],
                workloads.get(target.workload),
            )
            for side in sides
            for target in side.targets
        ]
        # The public name may differ between versions; it is that of the newest with weight.
        has = {w for shares in weights.values() for w, share in shares.items() if share}
        serving = [s for s in sides if any(t.workload in has for t in s.targets)] or sides[:1]
        application, environment = serving[-1].record.application, self.journal.environment
        host, also = application.host_in(environment), application.also_in(environment)
        try:
            return routing_for(
                host, application.name, environment, parts, weights, known, mirrors, testing, also
            )
        except ValueError as error:
            raise Failed(
                "SLP051",
                f"tried to move traffic of {application.name} in {environment}: {error}",
                help="see its log in `slipway status`; run it again when its replicas stay ready",
            ) from error

    def _spec(self, workload: str, replicas: int) -> Any:
        side = next(
            s
            for s in (self.candidate, self.stable)
            if s is not None and any(t.workload == workload for t in s.targets)
        )
        target = next(t for t in side.targets if t.workload == workload)
        names = {t.service: t.workload for t in side.targets}
        environ = service_environ(
            self.platform, side.record, self.journal.environment, target.service, names
        )
        return workload_spec(side.record, target, self.journal.environment, replicas, environ)

    # --- counting --------------------------------------------------------------------------

    def moved(self) -> tuple[int, int] | None:
        """Requests of users and failed ones since the start; None when some were not counted."""
        try:
            self._tally(self._read())
        except SlipwayError as error:
            self.log(f"requests could not be counted: {error}")
            return None
        return None if self._uncounted else (self._requests, self._failed_requests)

    def _tally(self, there: Routing | None) -> None:
        """Add up what came in since the last look.

        Before each change of the edge, since a workload that leaves it takes its counter along.
        Workloads that never had weight are left out: nobody but us has asked them anything.
        """
        if there is None:
            return
        try:
            now = self.platform.edge.counts(self.journal.application, self.journal.environment)
        except SlipwayError as error:
            self.log(f"requests could not be counted: {error}")
            return
        self._had_weight |= {w for shares in _weights(there).values() for w, n in shares.items()}
        for workload in self._had_weight & now.keys():
            gained = now[workload].since(self.before.get(workload, Counts()))
            self._requests += gained.requests
            self._failed_requests += gained.errors
        self._uncounted -= now.keys()
        self.before = {**self.before, **now}

    # --- writing ---------------------------------------------------------------------------

    def _finish(self, outcome: Outcome, reason: str) -> None:
        counted = self.moved()
        self._write(
            Kind.FINISHED,
            outcome=outcome,
            reason=reason,
            requests=counted[0] if counted else None,
            failed_requests=counted[1] if counted else None,
        )

    def _write(self, kind: Kind, **data: Any) -> None:
        """Into the journal; once the disk was full, into memory until there is room again."""
        shown = _shown(data)
        if self._disk_full is None:
            self.journal.append(self.number, kind, shown)
            return
        self.journal.confirm_ours()
        self._unwritten.append(self.journal.draft(self.number, kind, shown))
        try:
            while self._unwritten:
                entry = self._unwritten[0]
                self.journal.append(entry.release, entry.kind, entry.data)
                self._unwritten.pop(0)
        except SlipwayError as error:
            if error.code != "SLP015":
                raise

    def _forget_verdict(self) -> None:
        self.verdict, self.reason = Verdict.NOT_RUN, ""
        self.evidence = None
        self.evidence_verdict, self.evidence_reason = Verdict.NOT_RUN, ""

    def _say(self, action: Action) -> None:
        """One line per change; repeated waiting is silent."""
        line = f"{type(action).__name__.lower()}: {action.reason}"
        if line != self._last_line:
            self.log(line)
            self._last_line = line


def _weights(routing: Routing | None) -> dict[str, dict[str, int]]:
    routes = routing.routes if routing else ()
    return {route.service: dict(route.weights) for route in routes if route.weights}


def _group(workload: Workload) -> Group:
    return Group(
        workload=workload.name,
        desired=workload.desired,
        ready=len(workload.ready),
        exited=exit_of(workload),
        waiting_for=waiting_for(workload),
        expires=workload.expires_at is not None,
    )


def _target_of(side: Side, path: str) -> Target | None:
    """The public service whose longest route holds ``path``."""
    best: tuple[int, Target] | None = None
    for target in side.targets:
        service: Service = side.record.application.services[target.service]
        for route in service.routes if service.is_public else ():
            inside = path == route or path.startswith(route.rstrip("/") + "/")
            if inside and (best is None or len(route) > best[0]):
                best = (len(route), target)
    return best[1] if best else None


def _unreachable(path: str) -> Check:
    return Check(
        name=f"GET {path}",
        verdict=Verdict.NOT_RUN,
        reason=f"no public service has a route that holds {path}, so nobody was asked",
        samples=0,
    )


def _replicas(target: Target, workload: Workload | None, *, fresh: bool) -> Check:
    """What the cluster says of a service that no smoke check reaches.

    One that is new must not have been started twice: a worker that exits after a second is
    ready in between.
    """
    ready, desired = (len(workload.ready), workload.desired) if workload else (0, target.replicas)
    again = sum(r.restarts for r in workload.replicas) if workload and fresh else 0
    restarted = f", {again} restarts" if again else ""
    return Check(
        name=f"{target.service} is ready",
        verdict=Verdict.PASS if 0 < desired <= ready and not again else Verdict.ERROR,
        reason=f"{ready} of {desired} replicas of {target.workload} are ready{restarted}",
        value=ready,
        limit=desired,
        samples=ready,
    )


def _is_ready(workload: Workload | None) -> bool:
    return workload is not None and 0 < workload.desired <= len(workload.ready)


def _is_whole(target: Target, workload: Workload | None) -> bool:
    return (
        workload is not None
        and len(workload.ready) >= target.replicas
        and workload.expires_at is None
    )


def _listed(routing: Routing) -> dict[str, frozenset[str]]:
    return {b.workload: frozenset(b.addresses) for r in routing.routes for b in r.backends}


def _sized(sizes: Mapping[str, int]) -> str:
    return ", ".join(f"{workload} to {n}" for workload, n in sizes.items())


def _shares(weights: _Weights) -> str:
    return ", ".join(f"{n}% {w}" for ws in weights.values() for w, n in ws.items()) or "nothing"


def _shown(value: Any) -> Any:
    """The same tree with every text as people may read it."""
    match value:
        case Outcome() | Verdict():
            return value
        case str():
            return without_credentials(value)
        case Mapping():
            return {key: _shown(inner) for key, inner in value.items()}
        case list() | tuple():
            return [_shown(inner) for inner in value]
        case _:
            return value


def _jsonable(data: Mapping[str, Any]) -> dict[str, Any]:
    return {k: list(v) if isinstance(v, tuple) else v for k, v in data.items()}
