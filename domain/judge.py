"""Is the candidate no worse than stable? A verdict after every look, with its numbers.

The tests are those of ``domain.sequential``: each keeps an e-value, and alarms when that reaches
``tests / alpha``. So a candidate that is no worse is *ever* failed with a chance of at most
``alpha``, all looks and all tests together (Ville's inequality, and the union bound). What each
test takes for granted is in docs/judging.md.

A pass needs more than the absence of an alarm: the declared number of requests on either side,
enough looks for the latencies to have been compared, objectives met, and no e-value above the
square root of the alarm threshold. Everything else has a name of its own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from domain import power
from domain.histogram import cumulative, fault, quantile, timed
from domain.routing import Counts
from domain.sequential import BLOCK_REQUESTS, Floats, Ints, Rate, Shares, Slowness, SlowShare
from domain.verdict import Verdict

BLOCKS_NEEDED: Final = 6
"""Latency blocks before a pass. The first only teaches what is usual, and the others can at most
double the wealth: with fewer even a dead slow candidate would raise no suspicion."""

P95: Final = 0.95
LARGEST_EVIDENCE: Final = 1e15
"""E-values are written down up to here, so that they stay numbers in JSON."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Limits(_Frozen):
    """What a candidate is held to. Kept in the journal with the release."""

    alpha: float = Field(
        0.01,
        gt=0,
        le=0.5,
        description="Chance of ever failing a candidate that is no worse, all looks together.",
    )
    requests: int = Field(
        200, ge=1, description="Requests that candidate and stable each need before a pass."
    )
    error_rate: float | None = Field(
        None, gt=0, lt=1, description="Objective: highest share of requests that may fail."
    )
    p95_seconds: float | None = Field(
        None, gt=0, allow_inf_nan=False, description="Objective: highest 95th percentile."
    )
    margin_seconds: float = Field(
        0,
        ge=0,
        allow_inf_nan=False,
        description="How much slower than stable still counts as no slower.",
    )


class Look(_Frozen):
    """One reading. Counts are cumulative since the judged step began, restarts taken out."""

    at: datetime
    candidate: Counts
    stable: Counts | None = Field(description="None: nothing else is live; objectives only.")


@dataclass(frozen=True)
class Judgement:
    """A verdict with one sentence of reason and the numbers behind it, fit for JSON."""

    verdict: Verdict
    reason: str
    numbers: Mapping[str, Any]


@dataclass
class _Objective:
    """One absolute limit, and what the evidence says of either arm."""

    name: Literal["error_rate", "p95_seconds"]
    limit: float
    candidate: Rate | SlowShare
    stable: Rate | SlowShare


@dataclass
class _Tests:
    """Everything that a trial keeps from look to look; its size does not grow."""

    shares: Shares | None
    slowness: Slowness | None = None
    objectives: list[_Objective] = field(default_factory=list)


class Trial:
    """The judge of one step, look by look, in the same time and space for each."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._last: Look | None = None
        self._looks = 0
        self._tests: _Tests | None = None
        self._failed: tuple[str, str] | None = None
        self._broken: str | None = None

    def add(self, look: Look) -> Judgement:
        """Judge with one more look. Never raises: whatever goes wrong is ``error``.

        A look that cannot be true changes nothing, so a later good one is judged as if the bad one
        had not been. A failure is final.
        """
        try:
            if self._broken is None and (wrong := self._wrong_with(look)):
                return self._judgement(Verdict.ERROR, "counts", f"the counts cannot be: {wrong}")
        except Exception as error:
            return self._judgement(Verdict.ERROR, "counts", f"the look is unreadable: {error!r}")
        try:
            if self._broken is None:
                self._take(look)
                return self._verdict(look)
        except Exception as error:
            # Half of the tests may have seen the look, so none of them can be trusted again.
            self._broken = repr(error)
        return self._judgement(Verdict.ERROR, "judge", f"the judge itself failed: {self._broken}")

    # --- what cannot be ----------------------------------------------------------------------

    def _wrong_with(self, look: Look) -> str | None:
        arms = {"candidate": look.candidate, "stable": look.stable}
        for arm, counts in arms.items():
            if counts is not None and (wrong := fault(counts)):
                return f"{arm}: {wrong}"
        if wrong := _bounds_apart(look):
            return wrong
        limit = self.limits.p95_seconds
        highest = max((b for b in _bounds(look) if math.isfinite(b)), default=None)
        if limit is not None and highest is not None and limit > highest:
            return f"the objective p95 {limit:g} s is beyond the last bucket bound {highest:g} s"
        return self._step_back(look) if self._last else None

    def _step_back(self, look: Look) -> str | None:
        last = self._last
        assert last is not None
        if look.at < last.at:
            return f"a look of {look.at.isoformat()} after one of {last.at.isoformat()}"
        if (look.stable is None) != (last.stable is None):
            return "stable came or went in the middle of a trial"
        for arm, now, before in _arms(look, last):
            if now.went_back(before):
                return f"{arm}: a count went back since the look before"
            appeared = bool(now.buckets) and not before.buckets and before.requests > 0
            if appeared or (before.buckets and _keys(now) != _keys(before)):
                return f"{arm}: the bucket bounds changed since the look before"
        return None

    # --- what was gained ---------------------------------------------------------------------

    def _take(self, look: Look) -> None:
        if self._tests is None:
            self._tests = self._begin(look)
        tests = self._tests
        finite = [b for b in _bounds(look) if math.isfinite(b)]
        if finite and look.stable is not None and tests.slowness is None:
            tests.slowness = Slowness(finite, margin=self.limits.margin_seconds)
        gained = _Gain(look.candidate, self._last.candidate if self._last else Counts())
        stable = None
        if look.stable is not None:
            before = self._last.stable if self._last else None
            stable = _Gain(look.stable, before or Counts())
        if tests.shares is not None and stable is not None:
            tests.shares.add(
                _column(gained.errors, gained.requests, stable.errors, stable.requests)
            )
        if tests.slowness is not None and stable is not None:
            slower = np.array([[gained.slower(finite)], [stable.slower(finite)]], dtype=np.int64)
            tests.slowness.add(_column(gained.timed, stable.timed), slower)
        for objective in tests.objectives:
            _add(objective, objective.candidate, gained, finite)
            if stable is not None:
                _add(objective, objective.stable, stable, finite)
        self._last, self._looks = look, self._looks + 1

    def _begin(self, look: Look) -> _Tests:
        limits = self.limits
        tests = _Tests(None if look.stable is None else Shares())
        if (rate := limits.error_rate) is not None:
            tests.objectives.append(_Objective("error_rate", rate, Rate(rate), Rate(rate)))
        if (p95 := limits.p95_seconds) is not None:
            over = SlowShare(1 - P95), SlowShare(1 - P95)
            tests.objectives.append(_Objective("p95_seconds", p95, *over))
        return tests

    @property
    def _threshold(self) -> float:
        """The e-value that alarms: alpha, in equal parts for each test."""
        return self._parts / self.limits.alpha

    @property
    def _parts(self) -> int:
        compared = 0 if self._last is not None and self._last.stable is None else 2
        declared = (self.limits.error_rate, self.limits.p95_seconds)
        return max(1, compared + sum(limit is not None for limit in declared))

    # --- the verdict -------------------------------------------------------------------------

    def _verdict(self, look: Look) -> Judgement:
        if self._failed is None:
            self._failed = self._alarm(look)
        if self._failed is not None:
            return self._judgement(Verdict.FAIL, *self._failed)
        if look.stable is None and self._tests is not None and not self._tests.objectives:
            return self._judgement(
                Verdict.NOT_RUN,
                "nothing to judge by",
                "there is no stable version to compare with and no objective is declared",
            )
        if look.candidate.requests == 0:
            return self._judgement(
                Verdict.NO_DATA, "no requests", "the candidate has had no request at all"
            )
        if missing := self._missing(look):
            rule, reason = missing
            verdict = Verdict.NO_DATA if rule == "no histogram" else Verdict.TOO_FEW
            return self._judgement(verdict, rule, reason)
        return self._judgement(Verdict.PASS, "no worse", self._praise(look))

    def _alarm(self, look: Look) -> tuple[str, str] | None:
        """The rule that fired and its sentence."""
        tests, alarm = self._tests, math.log(self._threshold)
        assert tests is not None
        if tests.shares is not None and tests.shares.log_peak[0] >= alarm:
            return "share of errors", self._errors_sentence(look, tests.shares.log_peak)
        if tests.slowness is not None and tests.slowness.log_peak[0] >= alarm:
            return "slower requests", self._latency_sentence(look, tests.slowness.log_peak)
        for objective in tests.objectives:
            broken = objective.candidate.log_peak[0] >= alarm
            if broken and not self._red(objective) and not _over(objective, look.stable):
                return f"objective {objective.name}", (
                    f"{_standing(objective, look.candidate, 'the candidate')}; "
                    f"{self._evidence(objective.candidate.log_peak)}"
                )
        return None

    def _missing(self, look: Look) -> tuple[str, str] | None:
        """What stands between this look and a pass: the rule and its sentence."""
        return (
            self._too_few_requests(look)
            or self._uncompared()
            or self._suspicion(look)
            or self._objective_open(look)
        )

    def _too_few_requests(self, look: Look) -> tuple[str, str] | None:
        needed = self.limits.requests
        for arm, counts in (("the candidate", look.candidate), ("stable", look.stable)):
            if counts is not None and counts.requests < needed:
                return "requests", (
                    f"{arm} has had {counts.requests} of the {needed} requests that a pass needs"
                )
        if self.limits.p95_seconds is not None and not look.candidate.buckets:
            return "no histogram", (
                "an objective for the 95th percentile is declared, and no latencies were measured"
            )
        return None

    def _uncompared(self) -> tuple[str, str] | None:
        tests = self._tests
        assert tests is not None
        if tests.shares is not None:
            _, requests, _, stable_requests = (int(n) for n in tests.shares.open[:, 0])
            if requests >= BLOCK_REQUESTS:
                return "uncompared", (
                    f"the last {requests} requests of the candidate have nothing to be compared "
                    f"with: stable had {stable_requests} meanwhile"
                )
        if tests.slowness is not None and (blocks := int(tests.slowness.blocks[0])) < BLOCKS_NEEDED:
            return "looks", (
                f"latencies were compared over {blocks} of the {BLOCKS_NEEDED} stretches of "
                f"time that a pass needs; they are told apart by looks"
            )
        return None

    def _suspicion(self, look: Look) -> tuple[str, str] | None:
        tests, strong = self._tests, math.log(self._threshold) / 2
        assert tests is not None
        keep = "too little to fail it, too much to pass it"
        if tests.shares is not None and tests.shares.log_suspicion[0] >= strong:
            sentence = self._errors_sentence(look, tests.shares.log_suspicion)
            return "suspicion: share of errors", f"{sentence}: {keep}"
        if tests.slowness is not None and tests.slowness.log_suspicion[0] >= strong:
            sentence = self._latency_sentence(look, tests.slowness.log_e)
            return "suspicion: slower requests", f"{sentence}: {keep}"
        return None

    def _objective_open(self, look: Look) -> tuple[str, str] | None:
        assert self._tests is not None
        for objective in self._tests.objectives:
            if self._red(objective):
                continue
            if _over(objective, look.candidate):
                return f"objective {objective.name} not certain", (
                    f"{_standing(objective, look.candidate, 'the candidate')}, which is not yet "
                    f"certain; {self._evidence(objective.candidate.log_e)}"
                )
        return None

    def _red(self, objective: _Objective) -> bool:
        """Whether stable itself certainly breaks the objective: then only comparing counts."""
        return bool(objective.stable.log_peak[0] >= math.log(self._threshold))

    # --- the words ---------------------------------------------------------------------------

    def _praise(self, look: Look) -> str:
        tests, mine, theirs = self._tests, look.candidate, look.stable
        assert tests is not None
        parts = []
        if theirs is not None:
            parts.append(
                f"{mine.errors} errors in {mine.requests} requests against {theirs.errors} in "
                f"{theirs.requests} of stable"
            )
            if tests.slowness is None:
                parts.append("latencies were not measured")
            else:
                parts.append(f"p95 {_p95(mine)} against {_p95(theirs)}")
        for objective in tests.objectives:
            if self._red(objective):
                parts.append(
                    f"already red: {_standing(objective, theirs, 'stable itself')}, so only the "
                    "comparison counts"
                )
            else:
                parts.append(_standing(objective, mine, "the candidate"))
        return "; ".join(parts)

    def _errors_sentence(self, look: Look, log_e: Floats) -> str:
        mine, theirs = look.candidate, look.stable or Counts()
        every, asked = mine.errors + theirs.errors, mine.requests + theirs.requests
        return (
            f"the candidate has {mine.errors} of {every} errors with {mine.requests} of {asked} "
            f"requests; {self._evidence(log_e)}"
        )

    def _latency_sentence(self, look: Look, log_e: Floats) -> str:
        mine, theirs = look.candidate, look.stable or Counts()
        margin = self.limits.margin_seconds
        slower = f"slower by more than {1000 * margin:g} ms" if margin else "slower"
        return (
            f"the candidate's requests are {slower}: p95 {_p95(mine)} over {mine.requests} "
            f"requests, stable's {_p95(theirs)} over {theirs.requests}; {self._evidence(log_e)}"
        )

    def _evidence(self, log_e: Floats) -> str:
        return f"evidence {_evidence(log_e):g}, alarm at {self._threshold:g}"

    def _judgement(self, verdict: Verdict, rule: str, reason: str) -> Judgement:
        return Judgement(verdict, reason, {"rule": rule, **self._numbers()})

    def _numbers(self) -> dict[str, Any]:
        numbers: dict[str, Any] = {
            "looks": self._looks,
            "alpha": self.limits.alpha,
            "threshold": self._threshold,
            "requests_needed": self.limits.requests,
            "margin_seconds": self.limits.margin_seconds,
        }
        if self._last is None or self._tests is None:
            return numbers
        for arm, counts in (("candidate", self._last.candidate), ("stable", self._last.stable)):
            if counts is not None:
                numbers |= _measured(arm, counts)
        tests, evidence = self._tests, {}
        if tests.shares is not None:
            evidence["errors"] = _evidence(tests.shares.log_e)
        if tests.slowness is not None:
            evidence["latency"] = _evidence(tests.slowness.log_e)
            numbers["latency_blocks"] = int(tests.slowness.blocks[0])
        for objective in tests.objectives:
            evidence[objective.name] = _evidence(objective.candidate.log_e)
            numbers[f"{objective.name}_limit"] = objective.limit
            numbers[f"{objective.name}_already_red"] = self._red(objective)
        return {**numbers, "evidence": evidence}


def judge(looks: Sequence[Look], limits: Limits) -> Judgement:
    """The judgement after the last look; of no looks at all, ``not_run``.

    Pure: the same looks from a journal give the same answer, bit for bit.
    """
    trial = Trial(limits)
    judgement = Judgement(Verdict.NOT_RUN, "there was no look", {"rule": "no look", "looks": 0})
    for look in looks:
        judgement = trial.add(look)
    return judgement


# --- before the rollout -----------------------------------------------------------------------


@dataclass(frozen=True)
class Detectable:
    """The least harm that a step can be expected to see, said before it begins.

    Attributes:
        error_ratio: candidate's error rate over stable's, seen 4 times in 5; None: no ratio is.
        p95_ratio: candidate's 95th percentile, less the margin, over stable's, seen about as
            often, for independent latencies spread as ``power.SPREAD`` says, with a look for every
            ``power.LOOK_REQUESTS`` requests of the smaller arm; None: no slowdown is.
        requests: of the candidate.
        sentence: all that for a person.
    """

    error_ratio: float | None
    p95_ratio: float | None
    requests: int
    sentence: str


def detectable(
    limits: Limits, *, weight_percent: float, error_rate: float, requests: int
) -> Detectable:
    """The minimum detectable effect of one step.

    Args:
        limits: as the step will be judged.
        weight_percent: the candidate's share of traffic, above 0 and below 100.
        error_rate: stable's share of errors.
        requests: of the candidate during the step.

    Raises:
        ValueError: an argument is out of its range.
    """
    if not 0 < weight_percent < 100:
        raise ValueError(f"weight {weight_percent} is not between 0 and 100 percent")
    if not 0 <= error_rate < 1 or requests < 1:
        raise ValueError(f"{requests} requests at an error rate of {error_rate} cannot be judged")
    stable = requests * (100 - weight_percent) / weight_percent
    tests = 2 + sum(limit is not None for limit in (limits.error_rate, limits.p95_seconds))
    alarm = math.log(tests / limits.alpha)
    seen, unseen = power.error_ratios(requests, stable, error_rate, alarm)
    slower = power.p95_ratio(requests, stable, alarm)
    usual = f"{100 * error_rate:.3g} %"
    if error_rate == 0:
        errors = f"errors of {100 * seen:.2g} % where stable has none" if seen else "no errors"
        blind = f", not {100 * unseen:.2g} %" if unseen else ""
    else:
        errors = f"{seen:.3g} times the errors of {usual}" if seen else f"no rise above {usual}"
        blind = f", not {unseen:.2g} times" if seen and unseen else ""
    slow = f"a p95 up {100 * (slower - 1):.0f} %" if slower else "no slowdown"
    if slower and limits.margin_seconds:
        slow += f" and {1000 * limits.margin_seconds:g} ms"
    return Detectable(
        error_ratio=seen if error_rate > 0 else None,
        p95_ratio=slower,
        requests=requests,
        sentence=f"with {requests} requests at {weight_percent:g} %, it can see {errors}{blind}, "
        f"and {slow}",
    )


# --- counts -----------------------------------------------------------------------------------


class _Gain:
    """What one arm gained between two looks."""

    def __init__(self, now: Counts, before: Counts) -> None:
        self.requests = now.requests - before.requests
        self.errors = now.errors - before.errors
        self.timed = max(0, timed(now) - timed(before)) if now.buckets else 0
        earlier = cumulative(before.buckets)
        within = cumulative(now.buckets)
        self._within = {bound: n - earlier.get(bound, 0) for bound, n in within.items()}

    def slower(self, finite: Sequence[float]) -> list[int]:
        """Requests that took longer than each of the bounds."""
        return [max(0, self.timed - self._within.get(bound, self.timed)) for bound in finite]


def _add(
    objective: _Objective, test: Rate | SlowShare, gained: _Gain, finite: Sequence[float]
) -> None:
    if isinstance(test, Rate):
        test.add(_column(gained.errors)[0], _column(gained.requests)[0])
    elif finite:
        # Of the requests inside the bucket that holds the limit, none is counted as too slow.
        bound = min(b for b in finite if b >= objective.limit)
        test.add(_column(*gained.slower([bound]))[0], _column(gained.timed)[0])


def _column(*values: int) -> Ints:
    return np.array([[value] for value in values], dtype=np.int64)


def _over(objective: _Objective, counts: Counts | None) -> bool:
    value = None if counts is None else _value(objective, counts)
    return value is not None and value > objective.limit


def _value(objective: _Objective, counts: Counts) -> float | None:
    if objective.name == "p95_seconds":
        return quantile(counts, P95)
    return counts.errors / counts.requests if counts.requests else None


def _standing(objective: _Objective, counts: Counts | None, who: str) -> str:
    assert counts is not None
    if objective.name == "p95_seconds":
        value, limit = _p95(counts), f"{objective.limit:g} s"
        return f"{who}'s p95 is {value} over {counts.requests} requests, objective {limit}"
    rate, limit = 100 * counts.errors / max(counts.requests, 1), f"{100 * objective.limit:g} %"
    return (
        f"{who} has errors on {rate:.3g} % ({counts.errors} of {counts.requests} requests), "
        f"objective {limit}"
    )


def _p95(counts: Counts) -> str:
    value = quantile(counts, P95)
    if value is None:
        return "unknown"
    last = max((b for b in cumulative(counts.buckets) if math.isfinite(b)), default=0.0)
    return f"{value:.3g} s" if math.isfinite(value) else f"above {last:g} s"


def _measured(arm: str, counts: Counts) -> dict[str, Any]:
    p95 = quantile(counts, P95)
    return {
        f"{arm}_requests": counts.requests,
        f"{arm}_errors": counts.errors,
        f"{arm}_error_rate": counts.errors / counts.requests if counts.requests else None,
        f"{arm}_p95_seconds": p95 if p95 is not None and math.isfinite(p95) else None,
    }


def _evidence(log_e: Floats) -> float:
    capped = min(float(log_e[0]), math.log(LARGEST_EVIDENCE))
    return float(f"{math.exp(capped):.4g}")


def _keys(counts: Counts) -> frozenset[float]:
    return frozenset(cumulative(counts.buckets))


def _bounds(look: Look) -> list[float]:
    stable = look.stable.buckets if look.stable is not None else {}
    return list(cumulative(look.candidate.buckets or stable))


def _bounds_apart(look: Look) -> str | None:
    """Whether the arms are measured with different buckets. An arm without a request has none."""
    stable = look.stable
    if stable is None:
        return None
    idle = any(not c.buckets and c.requests == 0 for c in (look.candidate, stable))
    if idle or _keys(look.candidate) == _keys(stable):
        return None
    return "candidate and stable have different bucket bounds"


def _arms(look: Look, last: Look) -> list[tuple[str, Counts, Counts]]:
    arms = [("candidate", look.candidate, last.candidate)]
    if look.stable is not None and last.stable is not None:
        arms.append(("stable", look.stable, last.stable))
    return arms
