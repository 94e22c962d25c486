"""The search for the greatest load that still holds its objectives, as a pure state machine.

Steps grow geometrically until one fails, then the gap between the greatest that passed and the
least that failed is halved on the logarithm: a hundredfold range is known to 2 % after about
twenty steps. A longer hold below the answer confirms it. A step is judged like any load test, so
one that was not sound is repeated, and never taken for a limit of the server. A load that stays
unsound bounds what can be measured here: the search goes on below it, where it once ended with
8,000 users that had passed because 16,000 could not be measured. What failed above it bounds the
limit all the same, only less tightly.

A disturbance makes a step worse and hardly ever better, and the least failure bounds the search for
good. So a pass is believed at once, a failure only when the same load fails again: one bad half
minute once ended a search at 14,700 users where 16,000 held.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cached_property
from typing import Final

from domain.latency import Interval
from domain.verdict import Verdict

_Z_95: Final = 1.96


class StepKind(StrEnum):
    """Why a load is to be run."""

    GROW = "grow"
    BISECT = "bisect"
    HOLD = "hold"
    """Longer, to confirm the answer."""


@dataclass(frozen=True)
class Step:
    """The load to run next.

    Attributes:
        attempt: 1 at first; more when earlier ones of this trial were not sound.
        trial: 1 at first; more when earlier ones failed, and that is to be confirmed.
    """

    kind: StepKind
    load: int
    attempt: int = 1
    trial: int = 1


@dataclass(frozen=True)
class Outcome:
    """How a step was judged."""

    step: Step
    verdict: Verdict
    reason: str = ""


@dataclass(frozen=True)
class Answer:
    """What the search found.

    Attributes:
        verdict: ``pass`` when a limit was found and confirmed, ``too_few`` when even the greatest
            load that may be run, or can be measured, passed, ``fail`` when even the least did not,
            ``error`` when nothing that was sound is left or steps contradicted one another.
        interval: where the limit lies; None when it was not bounded from both sides.
        held: the greatest load that is known to hold, by the hold if there was one; None: none.
        passed: the greatest load that passed below all that failed; None: none.
        reason: one sentence.
    """

    verdict: Verdict
    interval: Interval | None
    held: int | None
    reason: str
    passed: int | None = None


@dataclass(frozen=True)
class Search:
    """A search and what it has seen so far; each outcome makes another one.

    ``next`` is the step to run, or None when ``answer`` is there. The whole is a function of the
    outcomes, so a search that was killed goes on from a list of them.

    Attributes:
        start: load of the first step (users, or arrivals a second).
        most: the greatest load that may be run: what the generator can do. May be raised while
            the search goes on, as its steps show what that is.
        growth: factor between steps until one fails.
        ratio: how near the two ends must be, 0.05 for 5 %.
        noise: relative spread of the limit from run to run, as measured by repeating one. It
            widens the answer: with 5 %, a step may fail, or pass, 10 % off the limit.
        repeats: how often a step that was not sound is run again.
        failures: how often a load must fail before that is believed. Once it has failed, as many
            passes are needed to overrule it: with 2, the majority of three.
        hold_share: of the greatest load that passed, what the hold runs.
        holds: how many holds may fail before the search gives up.
    """

    start: int
    most: int
    growth: float = 2.0
    ratio: float = 0.05
    noise: float = 0.05
    repeats: int = 2
    failures: int = 2
    hold_share: float = 0.9
    holds: int = 3
    outcomes: tuple[Outcome, ...] = ()

    def __post_init__(self) -> None:
        if not 1 <= self.start <= self.most:
            raise ValueError(f"a search begins between 1 and {self.most}, not at {self.start}")
        if not (self.growth > 1 and self.ratio > 0 and 0 < self.hold_share < 1):
            raise ValueError("growth is above 1, ratio above 0, hold_share between 0 and 1")
        if self.noise < 0 or self.repeats < 0 or self.holds < 1 or self.failures < 1:
            raise ValueError("noise and repeats are not negative, a hold and a failure count")

    def after(self, verdict: Verdict, reason: str = "") -> Search:
        """The search once ``next`` has been judged.

        Raises:
            ValueError: it has ended.
        """
        if self.next is None:
            raise ValueError("the search has ended")
        outcome = Outcome(self.next, verdict, reason)
        return replace(self, outcomes=(*self.outcomes, outcome))

    @property
    def next(self) -> Step | None:
        return self._turn if isinstance(self._turn, Step) else None

    @property
    def answer(self) -> Answer | None:
        return self._turn if isinstance(self._turn, Answer) else None

    @cached_property
    def _turn(self) -> Step | Answer:
        last = self.outcomes[-1] if self.outcomes else None
        if last and last.verdict not in (Verdict.PASS, Verdict.FAIL):
            return self._again(last)
        if last and (last.step.kind, last.step.load) not in self._decided:
            return replace(last.step, attempt=1, trial=last.step.trial + 1)
        if last and last.step.kind is StepKind.HOLD:
            if self._decided[last.step.kind, last.step.load] is Verdict.PASS:
                return self._found(last.step.load)
            if self._failed_holds >= self.holds:
                why = f"{self.holds} holds failed below loads that had passed for a shorter time"
                return Answer(Verdict.ERROR, None, None, why)
        return self._bracketed()

    def _again(self, last: Outcome) -> Step | Answer:
        if last.step.attempt <= self.repeats:
            return replace(last.step, attempt=last.step.attempt + 1)
        if last.step.kind is not StepKind.HOLD and self._passed is not None:
            return self._bracketed()
        tried = f"the step of {last.step.load} was not sound in {last.step.attempt} attempts"
        why = f"{tried}: {last.reason or last.verdict}"
        return Answer(Verdict.ERROR, None, self._passed, why, self._passed)

    def _bracketed(self) -> Step | Answer:
        """Grow, shrink or halve; hold when the two ends are near."""
        low, high = self._passed, self._too_much
        if high is None:
            if low is None:
                return Step(StepKind.GROW, self.start)
            if low >= self.most:
                return self._beyond(low)
            return Step(StepKind.GROW, min(self.most, max(low + 1, round(low * self.growth))))
        if low is None:
            if high == 1:
                return Answer(Verdict.FAIL, None, None, "not even a load of 1 passes")
            return Step(StepKind.GROW, max(1, min(high - 1, round(high / self.growth))))
        middle = round(math.sqrt(low * high))
        if high / low > 1 + self.ratio and low < middle < high:
            return Step(StepKind.BISECT, middle)
        if self._failed is None:
            return self._out_of_sight(low, high)
        return Step(StepKind.HOLD, max(1, round(low * self.hold_share)))

    @cached_property
    def _decided(self) -> dict[tuple[StepKind, int], Verdict]:
        """What is known of each load, PASS or FAIL; not in it: still to be confirmed."""
        seen: dict[tuple[StepKind, int], list[Verdict]] = {}
        for outcome in self.outcomes:
            if outcome.verdict in (Verdict.PASS, Verdict.FAIL):
                at = (outcome.step.kind, outcome.step.load)
                seen.setdefault(at, []).append(outcome.verdict)
        found = {}
        for at, verdicts in seen.items():
            for verdict in (Verdict.PASS, Verdict.FAIL):
                needed = 1 if verdicts[0] is Verdict.PASS else self.failures
                if verdicts.count(verdict) >= needed:
                    found[at] = verdict
        return found

    @property
    def _failed_holds(self) -> int:
        return sum(
            kind is StepKind.HOLD and verdict is Verdict.FAIL
            for (kind, _), verdict in self._decided.items()
        )

    def _loads(self, verdict: Verdict) -> list[int]:
        return [load for (_, load), known in self._decided.items() if known is verdict]

    @property
    def _failed(self) -> int | None:
        """The least load that failed."""
        return min(self._loads(Verdict.FAIL), default=None)

    @property
    def _unsound(self) -> Outcome | None:
        """The least load that could not be measured, as it was last seen."""
        given_up = [
            outcome
            for outcome in self.outcomes
            if outcome.verdict not in (Verdict.PASS, Verdict.FAIL)
            and outcome.step.attempt > self.repeats
        ]
        return min(given_up, key=lambda outcome: outcome.step.load, default=None)

    @property
    def _too_much(self) -> int | None:
        """The least load that failed, or could not be measured."""
        bounds = [self._failed, self._unsound.step.load if self._unsound else None]
        return min((load for load in bounds if load is not None), default=None)

    @property
    def _passed(self) -> int | None:
        """The greatest load that passed below all that failed: a longer hold that fails below it
        takes back a pass."""
        failed = self._failed or math.inf
        return max((load for load in self._loads(Verdict.PASS) if load < failed), default=None)

    def _beyond(self, low: int) -> Answer:
        why = f"{low} passed, and more than {self.most} may not be run: the limit is above"
        return Answer(Verdict.TOO_FEW, None, low, why, low)

    def _out_of_sight(self, low: int, high: int) -> Answer:
        seen = self._unsound
        assert seen is not None  # it is what ``high`` is
        why = (
            f"{low} passed, and {high} could not be measured in {seen.step.attempt} attempts: the "
            f"limit is above {low}. {seen.reason or seen.verdict}"
        )
        return Answer(Verdict.TOO_FEW, None, low, why, low)

    def _found(self, held: int) -> Answer:
        low, high = self._passed, self._failed
        assert low is not None and high is not None  # a hold follows a bracket
        lowest = min(float(held), low * math.exp(-_Z_95 * self.noise))
        interval = Interval(lowest, high * math.exp(_Z_95 * self.noise))
        unseen = self._unsound.step.load if self._unsound else high
        between = f", {unseen} between them could not be measured" if unseen < high else ""
        why = (
            f"{low} passed and {high} failed{between}; {held} held for longer. With "
            f"{self.noise:.0%} from run to run the limit lies between {interval.low:.0f} and "
            f"{interval.high:.0f}"
        )
        return Answer(Verdict.PASS, interval, held, why, low)
