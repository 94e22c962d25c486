"""Two questions that one load test cannot answer: where does it break, and did it get slower?"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import ceil
from pathlib import Path
from statistics import fmean

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE

from blocks.load_workers import most_connections
from blocks.platform import Platform
from blocks.records import Records
from domain.application import Objectives
from domain.breakpoint import Search, Step, StepKind
from domain.capacity import (
    Level,
    NotMeasured,
    Tier,
    bottleneck,
    fit,
    replicas_for,
)
from domain.errors import OutcomeUnknown, UsageError
from domain.latency import Interval
from domain.load_plan import CEILING_SHARE, LoadPlan, Target
from domain.load_profile import Profile, approach
from domain.load_report import ComparisonFigures, LimitFigures, StepFigures
from domain.load_run import Run
from domain.load_verdict import LoadVerdict, judge
from domain.regression import compare, interleaved, noise_floor
from domain.release import BuildRecord
from domain.verdict import Verdict
from tasks.candidates import candidate
from tasks.loading import put_load
from tasks.releasing import open_journal, target_release

USERS_A_SECOND = 250
"""How fast a step grows at most; a faster ramp is a test of connecting."""
HOST = "this machine"
ATTEMPTS = 3


# --- where does it break? -------------------------------------------------------------------


def most_users(plan: LoadPlan, ceiling: float) -> int:
    """As many as the generator was calibrated for and the machine has connections for."""
    able = int(CEILING_SHARE * ceiling * plan.profile.pause_seconds)
    return max(1, min(able, most_connections(plan)))


def find_limit(
    platform: Platform,
    record: BuildRecord,
    environment: str,
    plan: LoadPlan,
    ceiling: float,
    folder: Path,
) -> tuple[LimitFigures, Run, LoadVerdict]:
    """Search for the greatest number of users within the objectives; each step is a load test.

    Returns:
        What was found, and the last run with its verdict: the hold, when there was one.
    """
    objectives, most = record.application.objectives, most_users(plan, ceiling)
    search = Search(start=min(most, ceil(plan.profile.peak)), most=most)
    steps: list[StepFigures] = []
    sound: list[tuple[Step, Run]] = []
    while (step := search.next) is not None:
        aimed = replace(plan, profile=_profile(plan, step, objectives))
        run = put_load(platform, record, environment, aimed, folder / f"step-{len(steps) + 1}")
        judged = judge(run, objectives)
        steps.append(_figures(step, run, *_weighed(judged)))
        get_run_logger().info("%s %d users: %s, %s", step.kind, step.load, judged.verdict,
                              judged.reason)  # fmt: skip
        if judged.sound and not run.hopeless:  # one that ended early has no rate of its own
            sound.append((step, run))
        search = _reaching(search.after(*_weighed(judged)), plan, run, judged)
    answer = search.answer
    assert answer is not None
    interval = answer.interval
    found = LimitFigures(
        verdict=answer.verdict,
        reason=answer.reason,
        low=interval and round(interval.low),
        high=interval and round(interval.high),
        held=answer.held,
        passed=answer.passed,
        most=search.most,
        steps=tuple(steps),
        bottleneck=_bottleneck(sound),
        scalability=_scalability(sound),
        replicas=_replicas(sound, interval, plan, record, environment, objectives),
    )
    return found, run, judged


def _reaching(search: Search, plan: LoadPlan, run: Run, judged: LoadVerdict) -> Search:
    """The search, which may go as far as a step that was measured right has shown.

    Few requests cost a generator more each than many, so that calibration, which is short, names
    too low a ceiling: 13,600 users on a machine whose generator then needed half of that for each.
    """
    cost = run.cost_seconds() if judged.sound else None
    if cost is None:
        return search
    return replace(search, most=max(search.most, most_users(plan, plan.workers / cost)))


def _weighed(judged: LoadVerdict) -> tuple[Verdict, str]:
    """What a step means to the search: on a full machine, that so many users cannot be had here.

    Where the generator shares the machine with the application, more load than that ends in late
    requests, so the step itself says nothing of the server. That the load does not hold is safe
    to say, as long as the generator had its share: all else of the measuring must be right.
    """
    if judged.verdict is not Verdict.ERROR:
        return judged.verdict, judged.reason
    wrong = {check.name for check in judged.soundness if check.verdict is not Verdict.PASS}
    late = ("schedule kept", "event loop", "CPU of the machine", "arrivals", "audit", "judged time")
    if "CPU of the machine" in wrong and all(name.startswith(late) for name in wrong):
        return Verdict.FAIL, "the machine was full, by the application, its proxy and the generator"
    return judged.verdict, judged.reason


def _profile(plan: LoadPlan, step: Step, objectives: Objectives) -> Profile:
    """Long enough for the requests that it takes to see a share of errors as small as the limit.

    What was too little is repeated for longer.
    """
    limit = min(objectives.error_rate, 1 - objectives.availability) or 0.001
    needed = 1.3 * 3.7 / limit * plan.profile.pause_seconds / step.load
    shortest = step.attempt * (60.0 if step.kind is StepKind.HOLD else 30.0)
    steady = float(ceil(min(180.0, max(shortest, needed))))
    return approach(step.load, USERS_A_SECOND, plan.profile.pause_seconds, steady,
                    name="breakpoint", description=f"{step.kind} {step.load} users",
                    model=plan.profile.model)  # fmt: skip


def _figures(step: Step, run: Run, verdict: Verdict, reason: str) -> StepFigures:
    steady = run.phase("steady")
    p95, seconds = steady.response.percentile(0.95), run.profile.phases[-1].seconds
    return StepFigures(
        kind=step.kind,
        load=step.load,
        attempt=step.attempt,
        trial=step.trial,
        verdict=verdict,
        reason=reason,
        per_second=round(steady.requests / seconds, 1),
        p95=None if p95 is None else round(p95 / 1000, 3),
    )


def _used(run: Run) -> tuple[int, Mapping[str, float]]:
    """Requests of the judged seconds, and CPU seconds of each tier and of the generator."""
    seconds = [s for _, begin, end in run.judged() for s in run.within(begin, end)]
    used: dict[str, float] = {"generator": sum(sum(s.cpu.values()) for s in seconds)}
    for second in seconds:
        for tier, cpu in second.tiers.items():
            used[tier] = used.get(tier, 0.0) + cpu
    return sum(second.series.requests for second in seconds), used


def _bottleneck(sound: Sequence[tuple[Step, Run]]) -> str:
    """By the busiest sound step: there the idle share of each tier matters least."""
    if not sound:
        return "no step was measured soundly, so nothing is known of a bottleneck"
    requests, used = _used(max(sound, key=lambda found: found[1].requests)[1])
    cores = os.cpu_count() or 1
    try:
        tiers = [Tier(name, cpu, requests, cores, HOST) for name, cpu in used.items() if cpu]
        return bottleneck(tiers, {HOST: cores}).sentence
    except NotMeasured as error:
        return f"no bottleneck can be named: {error}"


def _scalability(sound: Sequence[tuple[Step, Run]]) -> str:
    try:
        levels = [Level(step.load, run.phase("steady").requests / run.profile.phases[-1].seconds)
                  for step, run in sound]  # fmt: skip
        law = fit(levels)
        peak = law.peak()
    except NotMeasured as error:
        return f"the scalability law says nothing of a peak: {error}"
    return (
        f"throughput is greatest at {peak.users:.0f} users ({peak.range.low:.0f} to "
        f"{peak.range.high:.0f}) with {peak.throughput:.0f} requests a second (universal "
        f"scalability law: contention {law.alpha:.3g}, coherence {law.beta:.3g})"
    )


def _replicas(
    sound: Sequence[tuple[Step, Run]],
    interval: Interval | None,
    plan: LoadPlan,
    record: BuildRecord,
    environment: str,
    objectives: Objectives,
) -> str:
    """How many replicas the users of the profile need, by what the present ones hold."""
    if interval is None or not sound:
        return ""
    service = record.application.services[record.application.first_service]
    running = service.replicas.get(environment, service.replicas.get("default", 1))
    rates = [run.phase("steady").requests / run.profile.phases[-1].seconds / step.load
             for step, run in sound]  # fmt: skip
    each = fmean(rates) / running
    try:
        need = replicas_for(
            plan.profile.peak,
            pause_seconds=plan.profile.pause_seconds,
            response=Interval(0.0, objectives.p95.total_seconds()),
            per_replica=Interval(interval.low * each, interval.high * each),
            measured_replicas=running,
        )
    except (NotMeasured, ValueError) as error:
        return f"no number of replicas can be given: {error}"
    return need.reason


# --- did it get slower? ---------------------------------------------------------------------


def accepted_version(
    platform: Platform, application: str, environment: str, release: int
) -> BuildRecord:
    """The release to compare with: of that number, or the one before what is live.

    Raises:
        UsageError: there is none.
    """
    journal = open_journal(platform, application, environment)
    return Records(platform.store).record(target_release(journal, release).digest)


def _sound_run(
    platform: Platform, record: BuildRecord, plan: LoadPlan, folder: Path
) -> tuple[Run, LoadVerdict]:
    """A run that was measured right; a hiccup of the machine costs a second or a third try.

    Raises:
        OutcomeUnknown: SLP187, none of them was.
    """
    for attempt in range(1, ATTEMPTS + 1):
        run = put_load(platform, record, "preview", plan, folder / f"attempt-{attempt}")
        judged = judge(run, record.application.objectives)
        if judged.sound:
            return run, judged
        get_run_logger().warning("not measured right, so once more: %s", judged.reason)
    raise OutcomeUnknown(
        "SLP187",
        f"a run was not measured right in {ATTEMPTS} attempts: {judged.reason}",
        help="see that nothing else is busy here, and compare again",
        where=str(folder),
    )


@task(name="compare versions", timeout_seconds=3 * 3600, cache_policy=NO_CACHE)
def compare_versions(
    platform: Platform, before: BuildRecord, after: BuildRecord, plan: LoadPlan, runs: int,
    folder: Path,
) -> tuple[ComparisonFigures, Run, LoadVerdict]:  # fmt: skip
    """Run both in turn (A B B A), each on a database of its own, and compare their runs.

    Raises:
        OutcomeUnknown: SLP187, a run was not measured soundly.
        UsageError: SLP186, too few runs.
    """
    if runs < 5:
        raise UsageError("SLP186", f"{runs} runs of each version show nothing",
                         help="make at least 5 of each: `--runs 5`")  # fmt: skip
    seen: dict[str, list[float]] = {"A": [], "B": []}
    with candidate(platform, before) as one, candidate(platform, after) as other:
        urls = {"A": one.url, "B": other.url}
        for number, which in enumerate(interleaved(runs), 1):
            aimed = replace(plan, target=Target.of(urls[which]), seed=plan.seed + number)
            record = before if which == "A" else after
            run, judged = _sound_run(platform, record, aimed, folder / f"run-{number}")
            p95 = run.phase("steady").response.percentile(0.95) or 0.0
            seen[which].append(round(p95 / 1000, 4))
            get_run_logger().info("run %d: %s has a p95 of %.2f ms", number,
                                  record.version, p95 / 1000)  # fmt: skip
    result = compare(seen["A"], seen["B"], noise_floor=noise_floor(seen["A"]))
    interval = result.interval
    figures = ComparisonFigures(
        before=f"{before.version} ({before.digest[7:15]})",
        after=f"{after.version} ({after.digest[7:15]})",
        verdict=result.verdict,
        reason=f"{after.version} against {before.version}: p95 {result.reason}",
        ratio=result.ratio,
        low=interval and interval.low,
        high=interval and interval.high,
        p=result.p,
        noise_floor=result.noise_floor,
        before_runs=tuple(seen["A"]),
        after_runs=tuple(seen["B"]),
    )
    return figures, run, judged
