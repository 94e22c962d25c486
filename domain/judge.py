"""The judge: may the candidate have more of the traffic?

It compares what users met at the candidate and at the stable version while both served them, and
against what they were promised. It may be asked after every request (domain.sequential), says
``pass`` only on the evidence that was asked for, and gives the numbers behind every answer. It
knows no clock and no chance: the same looks have the same answer on any day.

``alpha`` is the chance that a version no worse than the stable one is *ever* found worse. It is
spent on four questions: errors (0.6), latency (0.2) and the two objectives (0.1 each).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from domain.routing import Counts
from domain.sequential import Over, OwnsMore, Slower, slower_than
from domain.verdict import Verdict

ERRORS, LATENCY, OBJECTIVE = 0.6, 0.2, 0.1
"""Shares of ``alpha``: of the comparison of errors, of latency, and of each of two objectives."""
TAIL = 0.05
"""What may be slower than a 95th percentile."""
_STABLE_SHARE = 4
"""The stable version needs a quarter of the candidate's evidence to be compared with."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Limits(_Frozen):
    """What a step asks of its evidence; kept in the journal."""

    alpha: float = Field(0.01, gt=0, lt=0.5, description="Chance of ever alarming by mistake.")
    requests: int = Field(200, ge=1, description="Requests to the candidate before a pass.")
    error_rate: float | None = Field(None, ge=0, le=1, description="Promised share of errors.")
    p95_seconds: float | None = Field(None, gt=0, description="Promised 95th percentile.")


class Look(_Frozen):
    """One reading. Counts are of the time since the step began, restarts already taken out.

    ``stable`` None: nothing else is live, so there is nothing to compare with.
    """

    at: datetime
    candidate: Counts
    stable: Counts | None


@dataclass(frozen=True)
class Judgement:
    """A verdict, one sentence about it, and the numbers that it was made from."""

    verdict: Verdict
    reason: str
    numbers: Mapping[str, Any]


class _Unsound(ValueError):
    """Counts that no honest source gives."""


@dataclass(frozen=True)
class _Arm:
    """One version's counts, checked: requests, errors, and cumulative counts by bound."""

    requests: int
    errors: int
    buckets: Mapping[float, int]

    @classmethod
    def of(cls, name: str, counts: Counts) -> _Arm:
        buckets = {_bound(name, bound): n for bound, n in counts.buckets.items()}
        numbers = [counts.requests, counts.errors, *buckets.values()]
        if any(not math.isfinite(n) or n < 0 for n in numbers):
            raise _Unsound(f"a count of the {name} version is negative or no number")
        if counts.errors > counts.requests:
            raise _Unsound(
                f"the {name} version has {counts.errors} errors in {counts.requests} requests"
            )
        rising = [buckets[bound] for bound in sorted(buckets)]
        if rising != sorted(rising):
            raise _Unsound(f"the latencies of the {name} version are not cumulative")
        if buckets and math.inf not in buckets:
            raise _Unsound(f"the latencies of the {name} version have no bound +Inf")
        return cls(counts.requests, counts.errors, buckets)

    def minus(self, name: str, earlier: _Arm) -> _Arm:
        """What was added; raises _Unsound when something was taken away."""
        gained = _Arm(
            self.requests - earlier.requests,
            self.errors - earlier.errors,
            {b: n - earlier.buckets.get(b, 0) for b, n in self.buckets.items()},
        )
        gone = set(earlier.buckets) - set(self.buckets)
        if gone or min(gained.requests, gained.errors, *gained.buckets.values(), 0) < 0:
            raise _Unsound(f"counts of the {name} version went back between two looks")
        if gained.errors > gained.requests:
            raise _Unsound(
                f"the {name} version gained {gained.errors} errors in {gained.requests} requests"
            )
        return gained

    @property
    def error_rate(self) -> float:
        return self.errors / self.requests if self.requests else 0.0

    def percentile(self, share: float) -> float | None:
        """By linear interpolation within the bucket, as Prometheus' histogram_quantile does."""
        total = self.buckets.get(math.inf, 0)
        if not total:
            return None
        rank, below, low = share * total, 0, 0.0
        for bound in sorted(self.buckets):
            within = self.buckets[bound]
            if within >= rank:
                if math.isinf(bound):
                    return low
                return low + (bound - low) * (rank - below) / max(within - below, 1)
            below, low = within, bound
        return low

    def slower(self, seconds: float) -> tuple[int, float] | None:
        """Requests slower than the first bound at or above ``seconds``, and that bound."""
        bounds = [b for b in sorted(self.buckets) if b >= seconds and not math.isinf(b)]
        if not bounds:
            return None
        return self.buckets[math.inf] - self.buckets[bounds[0]], bounds[0]


def _bound(name: str, text: str) -> float:
    try:
        bound = float(text)
    except ValueError:
        raise _Unsound(f"{text!r} is no upper bound of a latency ({name} version)") from None
    if math.isnan(bound) or bound < 0:
        raise _Unsound(f"{text!r} is no upper bound of a latency ({name} version)")
    return bound


_NONE = _Arm(0, 0, {})


@dataclass(frozen=True)
class _Alarm:
    """One question that can fail the candidate, with its evidence and what makes it certain."""

    rule: str
    log_evidence: float
    log_alarm: float
    sentence: str

    @property
    def rings(self) -> bool:
        return self.log_evidence >= self.log_alarm

    @property
    def suspects(self) -> bool:
        """More than halfway, on the scale on which evidence adds up."""
        return self.log_evidence >= self.log_alarm / 2


class Trial:
    """The judgement of one step, look by look. A trial that has failed stays failed."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._errors, self._latency = OwnsMore(), Slower()
        self._rate = {name: Over(limits.error_rate or 0.0) for name in ("candidate", "stable")}
        self._late = {name: Over(TAIL) for name in ("candidate", "stable")}
        self._candidate, self._stable = _NONE, _NONE
        self._ended: Judgement | None = None

    def add(self, look: Look) -> Judgement:
        """The verdict with this look. Whatever goes wrong in judging is ``error``, never a pass."""
        if self._ended is not None:
            return self._ended
        try:
            judgement = self._judge(look)
        except _Unsound as error:
            judgement = Judgement(Verdict.ERROR, f"the counts cannot be judged: {error}", {})
        except Exception as error:  # a judge that breaks has judged nothing (kayenta lets it pass)
            reason = f"the judge failed: {type(error).__name__}: {error}"
            judgement = Judgement(Verdict.ERROR, reason, {})
        if judgement.verdict in (Verdict.FAIL, Verdict.ERROR):
            self._ended = judgement
        return judgement

    def _judge(self, look: Look) -> Judgement:
        candidate = _Arm.of("new", look.candidate)
        stable = _Arm.of("old", look.stable) if look.stable is not None else None
        self._learn(candidate, stable)
        alarms = list(self._alarms(candidate, stable))
        numbers = self._numbers(candidate, stable, alarms)
        for alarm in alarms:
            if alarm.rings:
                return Judgement(Verdict.FAIL, alarm.sentence, {**numbers, "rule": alarm.rule})
        verdict, reason = self._unless_enough(candidate, stable, alarms)
        if verdict is Verdict.PASS:
            reason = _passed(candidate, stable)
        return Judgement(verdict, reason, {**numbers, "rule": verdict.value})

    def _learn(self, candidate: _Arm, stable: _Arm | None) -> None:
        new = candidate.minus("new", self._candidate)
        old = stable.minus("old", self._stable) if stable else _NONE
        if new.buckets and old.buckets and set(new.buckets) != set(old.buckets):
            raise _Unsound("the latencies of the two versions are counted by different bounds")
        self._errors.add(new.requests, new.errors, old.requests, old.errors)
        for name, gained in (("candidate", new), ("stable", old)):
            self._rate[name].add(gained.requests, gained.errors)
            late = self.limits.p95_seconds and gained.slower(self.limits.p95_seconds)
            if late:
                self._late[name].add(gained.buckets[math.inf], late[0])
        bounds = new.buckets or old.buckets
        if stable is not None and bounds:
            empty = dict.fromkeys(bounds, 0)
            self._latency.add(slower_than(new.buckets or empty), slower_than(old.buckets or empty))
        self._candidate, self._stable = candidate, stable or _NONE

    def _alarms(self, candidate: _Arm, stable: _Arm | None) -> Iterator[_Alarm]:
        if stable is not None:
            yield _Alarm(
                "errors",
                float(self._errors.log_evidence),
                self._certain(ERRORS),
                f"{_rate(candidate)} failed at the new version, {_rate(stable)} at the old one: "
                "more than its share",
            )
            yield _Alarm(
                "latency",
                float(self._latency.log_evidence),
                self._certain(LATENCY),
                f"slow requests are more often the new version's: p95 {_p95(candidate)} after "
                f"{candidate.requests} requests, {_p95(stable)} at the old one",
            )
        yield from self._objectives(candidate, stable)

    def _objectives(self, candidate: _Arm, stable: _Arm | None) -> Iterator[_Alarm]:
        """What was promised, unless the stable version breaks it too: then the new version may
        be the repair, and only the comparison holds against it."""
        limits = self.limits
        if limits.error_rate is not None and not self._red(stable, "errors"):
            yield _Alarm(
                "objective error rate",
                float(self._rate["candidate"].log_evidence) if limits.error_rate else
                (math.inf if candidate.errors else 0.0),
                self._certain(OBJECTIVE),
                f"{_rate(candidate)} failed at the new version; promised is at most "
                f"{_percent(limits.error_rate)}",
            )  # fmt: skip
        if limits.p95_seconds is not None and not self._red(stable, "p95"):
            yield _Alarm(
                "objective p95",
                float(self._late["candidate"].log_evidence),
                self._certain(OBJECTIVE),
                f"p95 is {_p95(candidate)} at the new version after {candidate.requests} requests; "
                f"promised is at most {_seconds(limits.p95_seconds)}",
            )

    def _red(self, stable: _Arm | None, what: str) -> bool:
        """Whether the stable version breaks the promise as well, as far as can be seen."""
        if stable is None or not stable.requests:
            return False
        limits, p95 = self.limits, stable.percentile(1 - TAIL)
        if what == "errors":
            return limits.error_rate is not None and stable.error_rate > limits.error_rate
        return limits.p95_seconds is not None and p95 is not None and p95 > limits.p95_seconds

    def _certain(self, share: float) -> float:
        return -math.log(share * self.limits.alpha)

    def _unless_enough(
        self, candidate: _Arm, stable: _Arm | None, alarms: Sequence[_Alarm]
    ) -> tuple[Verdict, str]:
        needed, seen = self.limits.requests, candidate.requests
        if not seen:
            return Verdict.NO_DATA, f"no request has reached the new version, of {needed} needed"
        if seen < needed:
            return Verdict.TOO_FEW, f"{seen} of {needed} requests; {_rate(candidate)} failed"
        least = math.ceil(needed / _STABLE_SHARE)
        if stable is not None and stable.requests < least:
            return Verdict.TOO_FEW, (
                f"the old version got {stable.requests} requests, and {least} are needed to "
                "compare with"
            )
        for alarm in alarms:
            if alarm.suspects:
                return Verdict.TOO_FEW, f"suspected, not certain: {alarm.sentence}"
        over = next(self._broken_so_far(candidate, stable), None)
        if over is not None:
            return Verdict.TOO_FEW, f"not certain yet: {over}"
        return Verdict.PASS, ""

    def _broken_so_far(self, candidate: _Arm, stable: _Arm | None) -> Iterator[str]:
        """Promises that the plain numbers break, whether or not that is certain."""
        limits, p95 = self.limits, candidate.percentile(1 - TAIL)
        if (
            limits.error_rate is not None
            and candidate.error_rate > limits.error_rate
            and not self._red(stable, "errors")
            and not (stable is not None and _alike(candidate, stable))
        ):
            yield f"{_rate(candidate)} failed; promised is {_percent(limits.error_rate)}"
        if (
            limits.p95_seconds is not None
            and p95 is not None
            and p95 > limits.p95_seconds
            and not self._red(stable, "p95")
        ):
            yield f"p95 is {_p95(candidate)}; promised is {_seconds(limits.p95_seconds)}"

    def _numbers(
        self, candidate: _Arm, stable: _Arm | None, alarms: Sequence[_Alarm]
    ) -> dict[str, Any]:
        found: dict[str, Any] = {
            "candidate_requests": candidate.requests,
            "candidate_errors": candidate.errors,
            "candidate_p95_seconds": candidate.percentile(1 - TAIL),
            "stable_requests": stable.requests if stable else None,
            "stable_errors": stable.errors if stable else None,
            "stable_p95_seconds": stable.percentile(1 - TAIL) if stable else None,
            "requests_needed": self.limits.requests,
            "alpha": self.limits.alpha,
            "already_red": [w for w in ("errors", "p95") if self._red(stable, w)],
        }
        for alarm in alarms:
            name = alarm.rule.replace(" ", "_")
            found[f"{name}_evidence"] = _shown(alarm.log_evidence)
            found[f"{name}_alarm_at"] = _shown(alarm.log_alarm)
        return found


def judge(looks: Sequence[Look], limits: Limits) -> Judgement:
    """The verdict after all looks; without one, ``not_run``."""
    trial = Trial(limits)
    judgement = Judgement(Verdict.NOT_RUN, "nobody has looked", {})
    for look in looks:
        judgement = trial.add(look)
    return judgement


@dataclass(frozen=True)
class Detectable:
    """What a step can see at least, said before it begins.

    Attributes:
        error_ratio: how many times the old version's errors are found for certain with the
            requests that the step asks for; None: no ratio is.
    """

    error_ratio: float | None
    requests: int
    sentence: str


def detectable(
    limits: Limits, *, weight_percent: float, error_rate: float, requests: int
) -> Detectable:
    """The smallest rate of errors that the expected counts alone would show.

    Args:
        weight_percent: the candidate's share of traffic.
        error_rate: of the stable version.
        requests: to the candidate.
    """
    other = requests * (100 - weight_percent) / weight_percent
    alarm = -math.log(ERRORS * limits.alpha)
    found = None
    for ratio in np.geomspace(1.1, 1000, 400):
        errors = requests * min(1.0, error_rate * ratio)
        test = OwnsMore()
        test.add(requests, errors, other, other * error_rate)
        if errors >= 1 and float(test.log_evidence) >= alarm:
            found = float(ratio)
            break
    what = f"with {requests} requests at {weight_percent:g}%, against {_percent(error_rate)} errors"
    if found is None or error_rate * found > 1:
        return Detectable(None, requests, f"{what}, no rise of errors is certain to be seen")
    return Detectable(found, requests, f"{what}, {found:.2g} times as many are seen, fewer may not")


def _alike(candidate: _Arm, stable: _Arm) -> bool:
    """No more errors than the stable version's rate explains: a bad hour that both share."""
    return candidate.error_rate <= stable.error_rate


def _passed(candidate: _Arm, stable: _Arm | None) -> str:
    against = f" against {_rate(stable)} and p95 {_p95(stable)}" if stable else ""
    return f"{_rate(candidate)} failed, p95 {_p95(candidate)}{against}"


def _rate(arm: _Arm) -> str:
    return f"{arm.errors} of {arm.requests} requests ({_percent(arm.error_rate)})"


def _percent(rate: float) -> str:
    return f"{100 * rate:.3g}%"


def _p95(arm: _Arm) -> str:
    found = arm.percentile(1 - TAIL)
    return "unknown" if found is None else _seconds(found)


def _seconds(value: float) -> str:
    if value >= 1:
        return f"{value:.3g} s"
    return f"{1000 * value:.3g} ms" if value >= 0.001 else f"{1e6 * value:.3g} µs"


def _shown(log_evidence: float) -> float:
    """As odds, in a form that survives JSON."""
    return float(f"{math.exp(min(log_evidence, 600.0)):.6g}")
