"""Whether a load test says anything, and then what: the measuring is judged before the server.

Locust, k6 and the rest end with a number and exit code 0 when the generator was overloaded, a
worker died, or nothing was sent at all (docs/load.md). Here such a run is ``error`` with its
cause, and has no other verdict.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random

from domain.application import Objectives
from domain.latency import (
    LEAST_BLOCKS,
    Histogram,
    Interval,
    block_bootstrap_interval,
    least_samples,
    percentile_interval,
    proportion_interval,
)
from domain.load_profile import Model
from domain.load_run import Run, Second, Series
from domain.units import format_duration
from domain.verdict import Check, Verdict, worst

WINDOW_SECONDS = 10
_SEED = 1  # the same run has the same verdict
WORTH_TELLING = 0.02
"""Of a machine's processors; a shared machine always loses a little."""
_SURE = 0.999
"""Confidence of each of many checks of the same kind; one in a thousand errs by chance."""


@dataclass(frozen=True, slots=True)
class Soundness:
    """What the measuring may be wrong by; the reasons are in docs/load.md.

    Attributes:
        lag_seconds: how late the 99th percentile of requests may leave; a quarter of the
            latency limit when that is more. Latency counts from the due time, so lateness makes
            the server look worse and never better.
        loop_seconds: how late the 99th percentile of timers may be.
        dispersion: variance over mean of sends in bins of 10 ms, 100 ms and 1 s.
        worker_cpu: of one core, over a judged phase.
        host_cpu: above this in more than ``host_share`` of the seconds the machine was full. Then
            a generator that is one of many measures its own queue for a processor; one that runs
            before all else does not, and the queue is the server's.
        pause_seconds: of the garbage collector.
        audit: how far the rate may be from users / (pause + response).
        waiting: share of users of the closed model who wait for an answer; above it the server
            and not the generator decides when they come again.
        scripts: share of things that may end in an error of the behaviours themselves.
    """

    lag_seconds: float = 0.020
    loop_seconds: float = 0.050
    dispersion: float = 2.0
    worker_cpu: float = 0.9
    host_cpu: float = 0.97
    host_share: float = 0.2
    pause_seconds: float = 0.2
    audit: float = 0.02
    waiting: float = 0.05
    scripts: float = 0.001


@dataclass(frozen=True, slots=True)
class LoadVerdict:
    """The answer, in one sentence, and everything that it rests on."""

    verdict: Verdict
    reason: str
    soundness: tuple[Check, ...]
    limits: tuple[Check, ...]

    @property
    def sound(self) -> bool:
        return all(check.verdict is Verdict.PASS for check in self.soundness)


def judge(run: Run, objectives: Objectives, bounds: Soundness = Soundness()) -> LoadVerdict:
    """Judge the measuring, and if it is sound the server."""
    sound = tuple(soundness(run, objectives, bounds))
    bad = [check for check in sound if check.verdict is not Verdict.PASS]
    limits = tuple(limit_checks(run, objectives))
    if bad:
        return LoadVerdict(Verdict.ERROR, bad[0].reason, sound, limits)
    if run.hopeless:
        reason = f"ended early: {run.hopeless}"
        failed = Check(name="hopeless", verdict=Verdict.FAIL, reason=reason)
        return LoadVerdict(Verdict.FAIL, reason, sound, (failed, *limits))
    if run.stopped:
        return LoadVerdict(Verdict.ERROR, f"ended early: {run.stopped}", sound, limits)
    outcome = worst(check.verdict for check in limits)
    decisive = [check for check in limits if check.verdict is outcome]
    reason = decisive[0].reason if decisive else "nothing was judged"
    if outcome is Verdict.PASS:
        told = [check for check in decisive if check.name.startswith(("p95", "errors"))]
        reason = "; ".join(check.reason for check in reversed(told)) or reason
    return LoadVerdict(outcome, reason, sound, limits)


# The measuring


def soundness(run: Run, objectives: Objectives, bounds: Soundness) -> Iterator[Check]:
    """Checks of the measuring, the most telling cause first."""
    yield from _whole(run)
    if not run.requests:
        yield _check("requests", False, "no request was sent, so nothing is known", value=0)
        return
    yield _scripts(run, bounds)
    seconds = [s for _, begin, end in run.judged() for s in run.within(begin, end)]
    if run.hopeless:
        seconds = run.timeline()[-WINDOW_SECONDS:]
    if not seconds:
        yield _check("judged time", False, "it ended before anything could be judged")
        return
    yield from _generator(run, seconds, objectives, bounds)
    if not run.hopeless and not run.stopped:
        yield from _arrivals(run, bounds)


def _whole(run: Run) -> Iterator[Check]:
    """Every worker was there to the end, and everything it saw arrived."""
    length = run.profile.seconds
    for lost in run.lost:
        share = lost.share * max(0.0, length - lost.at) / length
        yield _check(
            "workers",
            False,
            f"worker {lost.worker + 1} of {run.workers} {lost.how} at {lost.at:.0f} s; "
            f"{100 * share:.1f} % of the load and its samples are lost",
        )
    if not run.lost:
        yield _check("workers", True, f"all {run.workers} were there to the end", run.workers)
    missing = run.missing_samples()
    words = f"{missing} requests were made whose results never came"
    yield _check("samples", not missing, words if missing else "every request is counted", missing)


def _scripts(run: Run, bounds: Soundness) -> Check:
    broken, done = run.scripts.total(), sum(second.done for second in run.timeline())
    share = broken / max(done, broken, 1)
    if share <= bounds.scripts:
        return _check("behaviours", True, f"{broken} of {done} ended in an error of their own")
    what, count = run.scripts.most_common(1)[0]
    return _check("behaviours", False, f"the behaviours themselves failed {broken} times; "
                  f"{count} times with {what}")  # fmt: skip


def _generator(
    run: Run, seconds: Sequence[Second], objectives: Objectives, bounds: Soundness
) -> Iterator[Check]:
    """Whether the load left when it should have."""
    lag, loop = Histogram(), Histogram()
    for second in seconds:
        lag.merge(second.lag)
        loop.merge(second.loop)
    allowed = max(bounds.lag_seconds, objectives.p95.total_seconds() / 4)
    away = _stolen(seconds)
    words = "the generator was the limit: requests left late"
    yield _upper("schedule kept", lag, allowed, words, away)
    words = "the generator was the limit: its timers were late"
    yield _upper("event loop", loop, bounds.loop_seconds, words, away)
    for worker in range(run.workers):
        used = sum(second.cpu.get(worker, 0.0) for second in seconds) / len(seconds)
        words = f"{100 * used:.0f} % of a core"
        if used > bounds.worker_cpu:
            words = f"the generator was the limit: it used {words}"
        name = f"CPU of worker {worker + 1}"
        yield _check(name, used <= bounds.worker_cpu, words, round(used, 3), bounds.worker_cpu)
    known = [second.host_cpu for second in seconds if second.host_cpu is not None]
    full = sum(share > bounds.host_cpu for share in known) / len(known) if known else 1.0
    words = f"the machine was full for {100 * full:.0f} % of the time"
    ahead = bool(known) and run.real_time() is True
    if ahead:
        words += "; the generator ran before all else on it"
    yield _check("CPU of the machine", full <= bounds.host_share or ahead,
                 words if known else "the CPU of the machine was not measured",
                 round(full, 3), bounds.host_share)  # fmt: skip
    pause = max(second.pause_us for second in seconds) / 1e6
    yield _check("collector", pause <= bounds.pause_seconds,
                 f"the longest pause for garbage collection was {_time(pause)}",
                 round(pause, 4), bounds.pause_seconds)  # fmt: skip


def _stolen(seconds: Sequence[Second]) -> str:
    """What the host of a virtual machine had to do with it; it is nothing that we could mend."""
    share = sum(second.stolen for second in seconds) / len(seconds)
    if share < WORTH_TELLING:
        return ""
    return f"; meanwhile the host gave {100 * share:.0f} % of this machine's processors to others"


def _upper(name: str, seen: Histogram, limit: float, words: str, away: str) -> Check:
    if not seen.count:
        return Check(name=name, verdict=Verdict.NO_DATA, reason=f"{name}: nothing was measured")
    late = (seen.percentile(0.99) or 0) / 1e6
    fine = late <= limit
    reason = f"99 % within {_time(late)}"
    if not fine:
        reason = f"{words}, 1 in 100 by more than {_time(late)} (allowed: {_time(limit)}){away}"
    return _check(name, fine, reason, round(late, 5), round(limit, 5), seen.count)


def _arrivals(run: Run, bounds: Soundness) -> Iterator[Check]:
    """Whether what left is what was meant: independent, and as much."""
    for phase, begin, end in run.profile.spans():
        if not (phase.judged and phase.steady):
            continue
        if (waiting := _waiting(run, begin, end)) > bounds.waiting:
            yield _check(f"arrivals in {phase.name}", True, f"{100 * waiting:.0f} % of the users "
                         "waited for an answer, so when the others came says nothing")  # fmt: skip
            yield _audit(run, phase.name, phase.start, begin, end, bounds)
            continue
        for index in run.sends[phase.name].indices():
            bunched = index.value > bounds.dispersion and index.at_least > 1
            words = f"dispersion {index.value:.2f} (independent arrivals have 1)"
            if bunched:
                words = f"requests left in bunches: {words}"
            yield _check(f"arrivals in {phase.name}, {1000 * index.bin_seconds:.0f} ms",
                         not bunched, words, round(index.value, 3), bounds.dispersion,
                         index.windows)  # fmt: skip
        yield _audit(run, phase.name, phase.start, begin, end, bounds)


def _waiting(run: Run, begin: float, end: float) -> float:
    if run.profile.model is Model.OPEN:
        return 0.0
    seconds = run.within(begin, end)
    users = sum(second.users for second in seconds)
    return sum(second.in_flight for second in seconds) / users if users else 0.0


def _audit(run: Run, name: str, level: float, begin: float, end: float, bounds: Soundness) -> Check:
    """The rate that users who are not waiting for an answer must have: Little's law.

    In the open model the rate is given. The allowance has the noise of a Poisson count in it.
    """
    seconds = run.within(begin, end)
    sent = sum(second.lag.count for second in seconds)
    if run.profile.model is Model.OPEN:
        expected = level * len(seconds)
    else:
        idle = sum(max(0, second.users - second.in_flight) for second in seconds)
        expected = idle / run.profile.pause_seconds
    gap = abs(sent / expected - 1) if expected else 1.0
    allowed = bounds.audit + (4 / expected**0.5 if expected else 0.0)
    users = sum(second.users for second in seconds) / max(1, len(seconds))
    short = run.profile.model is Model.CLOSED and users < 0.98 * level
    fine = gap <= allowed and not short
    words = f"{sent} things were begun where {expected:.0f} should have been"
    if short:
        words = f"{users:.0f} users were there where {level:.0f} should have been"
    return _check(f"audit of {name}", fine, words, sent, round(expected), sent)


# The server


def limit_checks(run: Run, objectives: Objectives) -> Iterator[Check]:
    """Limits in each judged phase, of the whole, of the worst stretch, and of each endpoint."""
    yield from _connections(run)
    for name, begin, end in run.judged():
        seconds = run.within(begin, end)
        blocks = [_series(part, name) for part in _blocks(seconds)]
        yield from _limits(f"in {name}", blocks, objectives)
        yield from _dropped(name, seconds, objectives)
        yield from _windows(name, seconds, objectives)
        yield from _endpoints(run, name, objectives)


def _connections(run: Run) -> Iterator[Check]:
    """A server that accepts connections and serves only some of them starves the others."""
    timeline = run.timeline()
    opened = sum(second.connections + second.reconnections for second in timeline)
    answered = sum(second.answered for second in timeline)
    if run.failed and opened and answered < 0.9 * opened:
        yield Check(name="connections", verdict=Verdict.FAIL, value=answered, limit=opened,
                    reason=f"only {answered} of {opened} connections were ever answered: the "
                    "server, or a proxy before it, serves no more at once")  # fmt: skip


def _limits(where: str, blocks: Sequence[Series], objectives: Objectives) -> Iterator[Check]:
    requests = sum(series.requests for series in blocks)
    failed = sum(series.failed for series in blocks)
    yield _failures(f"errors {where}", failed, requests, objectives.error_rate, blocks)
    if objectives.availability > 1 - objectives.error_rate:
        yield _failures(f"availability {where}", failed, requests,
                        1 - objectives.availability, blocks)  # fmt: skip
    limit = objectives.p95.total_seconds()
    interval = _interval([series.response for series in blocks], 0.95)
    if interval is None:
        verdict = Verdict.TOO_FEW if requests else Verdict.NO_DATA
        yield Check(name=f"p95 {where}", verdict=verdict,
                    reason=_why_no_interval(where, requests, len(blocks)), limit=limit,
                    samples=requests)  # fmt: skip
        return
    yield _latency(f"p95 {where}", _p95(blocks), interval, limit, requests)


def _dropped(name: str, seconds: Sequence[Second], objectives: Objectives) -> Iterator[Check]:
    """Requests that only a second try got an answer for: a user's browser may not try again."""
    dropped = sum(second.repeated for second in seconds)
    requests = sum(second.series.requests for second in seconds)
    interval = proportion_interval(dropped, requests, _SURE)
    if dropped and interval is not None:
        fine = interval.low <= objectives.error_rate
        yield Check(name=f"dropped in {name}", verdict=Verdict.PASS if fine else Verdict.FAIL,
                    reason=f"{dropped} of {requests} requests had to be sent twice: the connection "
                    "was closed after the request and before an answer",
                    value=dropped / requests, limit=objectives.error_rate,
                    samples=requests)  # fmt: skip


def _why_no_interval(where: str, requests: int, blocks: int) -> str:
    need = least_samples(0.95)
    if requests < need or blocks < LEAST_BLOCKS:
        return (
            f"{requests} requests in {blocks} stretches {where}; a p95 needs {need} or more, in "
            f"{LEAST_BLOCKS} or more"
        )
    return f"the seconds {where} are too unlike for an interval of the p95; measure longer"


def _failures(
    name: str, failed: int, requests: int, limit: float, blocks: Sequence[Series]
) -> Check:
    interval = proportion_interval(failed, requests)
    if interval is None:
        return Check(name=name, verdict=Verdict.NO_DATA, reason=f"{name}: no request", limit=limit,
                     samples=0)  # fmt: skip
    verdict = _against(interval, limit)
    cause = ""
    if failed:
        merged = Series()
        for series in blocks:
            merged.failures.update(series.failures)
        cause = f"; most often {merged.failures.most_common(1)[0][0]}"
    words = f"{failed} of {requests} requests failed ({100 * failed / requests:.3g} %"
    words += f", limit {100 * limit:.3g} %){cause}"
    if verdict is Verdict.TOO_FEW:
        words += (
            f"; the true share may be up to {100 * interval.high:.3g} %, so it needs more requests"
        )
    return Check(name=name, verdict=verdict, reason=words, value=failed / requests, limit=limit,
                 samples=requests)  # fmt: skip


def _latency(name: str, value: float, interval: Interval, limit: float, samples: int) -> Check:
    low, high = interval.low / 1e6, interval.high / 1e6
    verdict = _against(Interval(low, high), limit)
    words = (
        f"{name}: {_time(value)} (95 % sure: {_time(low)} to {_time(high)}), limit {_time(limit)}"
    )
    if verdict is Verdict.TOO_FEW:
        words += "; the limit lies between, so it needs more requests"
    return Check(
        name=name, verdict=verdict, reason=words, value=value, limit=limit, samples=samples
    )


def _windows(name: str, seconds: Sequence[Second], objectives: Objectives) -> Iterator[Check]:
    """The worst stretch of ten seconds: what the whole phase would hide (k6#2379).

    There are many stretches, so each must be beyond its limit with 99.9 % confidence.
    """
    limit, found = objectives.p95.total_seconds(), False
    for first in range(max(0, len(seconds) - WINDOW_SECONDS + 1)):
        part = seconds[first : first + WINDOW_SECONDS]
        series = [_series([second], name) for second in part]
        requests, failed = sum(s.requests for s in series), sum(s.failed for s in series)
        at = f"from {part[0].at} s to {part[-1].at + 1} s"
        share = proportion_interval(failed, requests, _SURE)
        if share is not None and share.low > objectives.error_rate:
            yield Check(name=f"worst stretch of {name}", verdict=Verdict.FAIL,
                        reason=f"{failed} of {requests} requests failed {at}",
                        value=failed / requests, limit=objectives.error_rate,
                        samples=requests)  # fmt: skip
            return
        p95 = _p95(series)
        # Only where it can matter: there are many stretches.
        interval = _interval([s.response for s in series], _SURE) if p95 > limit else None
        if interval is not None and interval.low / 1e6 > limit:
            yield Check(name=f"worst stretch of {name}", verdict=Verdict.FAIL,
                        reason=f"p95 was {_time(p95)} {at}, limit {_time(limit)}",
                        value=p95, limit=limit, samples=requests)  # fmt: skip
            return
        found = True
    if found:
        yield Check(name=f"worst stretch of {name}", verdict=Verdict.PASS,
                    reason=f"no {WINDOW_SECONDS} s were beyond a limit")  # fmt: skip


def _endpoints(run: Run, phase: str, objectives: Objectives) -> Iterator[Check]:
    """Each endpoint by itself: a slow one that few ask for does not move the p95 of all."""
    limit = objectives.p95.total_seconds()
    for name in run.names():
        series = run.endpoints.get((phase, name))
        if series is None or series.requests < least_samples(0.95, _SURE):
            continue
        interval = percentile_interval(series.response, 0.95, _SURE)
        failures = proportion_interval(series.failed, series.requests, _SURE)
        assert interval is not None and failures is not None
        p95 = (series.response.percentile(0.95) or 0) / 1e6
        slow, failing = interval.low / 1e6 > limit, failures.low > objectives.error_rate
        words = f"{name} in {phase}: p95 {_time(p95)}, {series.failed} of {series.requests} failed"
        if failing:
            words += f", most often {series.failures.most_common(1)[0][0]}"
        yield Check(name=f"{name} in {phase}", verdict=Verdict.FAIL if slow or failing else
                    Verdict.PASS, reason=words, value=p95, limit=limit,
                    samples=series.requests)  # fmt: skip


def _against(interval: Interval, limit: float) -> Verdict:
    """The whole of it must lie on one side of an upper limit; across it is too little data."""
    if interval.high <= limit:
        return Verdict.PASS
    return Verdict.FAIL if interval.low > limit else Verdict.TOO_FEW


def _interval(blocks: Sequence[Histogram], confidence: float) -> Interval | None:
    """Of the 95th percentile; as careful as requests that follow each other ask for."""
    pooled = Histogram()
    for block in blocks:
        pooled.merge(block)
    alone = percentile_interval(pooled, 0.95, confidence)
    spread = block_bootstrap_interval(blocks, 0.95, confidence, 400, random=Random(_SEED))
    return alone.including(spread) if alone is not None and spread is not None else None


def _blocks(seconds: Sequence[Second]) -> Iterator[Sequence[Second]]:
    """Stretches of up to five seconds, at least twenty of them where there are as many seconds."""
    size = max(1, min(5, len(seconds) // 20))
    for first in range(0, len(seconds) - size + 1, size):
        yield seconds[first : first + size]


def _series(seconds: Sequence[Second], phase: str) -> Series:
    whole = Series()
    for second in seconds:
        if phase in second.phases:
            whole.merge(second.phases[phase])
    return whole


def _p95(blocks: Sequence[Series]) -> float:
    whole = Histogram()
    for series in blocks:
        whole.merge(series.response)
    return (whole.percentile(0.95) or 0) / 1e6


def _check(
    name: str,
    fine: bool,
    reason: str,
    value: float | None = None,
    limit: float | None = None,
    samples: int | None = None,
) -> Check:
    return Check(name=name, verdict=Verdict.PASS if fine else Verdict.ERROR, reason=reason,
                 value=value, limit=limit, samples=samples)  # fmt: skip


def _time(seconds: float) -> str:
    """``0.0123`` -> ``12.3 ms``."""
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1000 * seconds:.3g} ms"


def hopeless(run: Run, now: float, objectives: Objectives) -> str:
    """Why going on would only do harm; empty when it would not.

    Looked at while it runs: half of ten seconds' requests failing, or a p95 of ten times the
    limit and at least five seconds, in any phase.
    """
    seconds = run.within(now - WINDOW_SECONDS, now)
    if len(seconds) < WINDOW_SECONDS:
        return ""
    whole = Series()
    for second in seconds:
        whole.merge(second.series)
    if whole.requests >= 50 and whole.failed > whole.requests / 2:
        return (f"{whole.failed} of {whole.requests} requests failed in {WINDOW_SECONDS} s, "
                f"most often {whole.failures.most_common(1)[0][0]}")  # fmt: skip
    p95 = (whole.response.percentile(0.95) or 0) / 1e6
    bound = max(5.0, 10 * objectives.p95.total_seconds())
    if whole.requests >= least_samples(0.95) and p95 > bound:
        limit = format_duration(objectives.p95)
        return f"p95 was {_time(p95)} for {WINDOW_SECONDS} s, the limit is {limit}"
    return ""
