"""The ramp of one flag: a pure state machine in the style of domain.rollout.

``next_action(state, observation)`` asks what is missing, never what was done last, so a process
that died between any two lines is continued by calling it again. Only a ``pass`` goes on. Whatever
else, or somebody else's hand on the flag's file, ends in a flag that is off and shown to be off.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum

from pydantic import BaseModel, ConfigDict, Field, model_validator

from domain.flags import WHOLE, check_steps
from domain.journal import Entry, Kind
from domain.judge import Limits
from domain.units import Duration, Percent, format_percent, parse_duration
from domain.verdict import Verdict


class Ended(StrEnum):
    """How a ramp ended."""

    RAMPED = "RAMPED"
    KILLED = "KILLED"
    KILL_FAILED = "KILL_FAILED"
    SUPERSEDED = "SUPERSEDED"


class Did(StrEnum):
    """What a journal entry about a flag says was done, or is about to be."""

    CARRIED = "carried"
    RAMP_STARTED = "ramp-started"
    TAKEN_OVER = "taken-over"
    SETTING = "setting"
    SET = "set"
    STEP_PASSED = "step-passed"
    ABORTING = "aborting"
    RAMP_FINISHED = "ramp-finished"


class Ramp(BaseModel):
    """How one flag ramps. In the journal from the start, and never read from a file again."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    flag: str = Field(min_length=1)
    steps: tuple[Percent, ...]
    limits: Limits = Limits()
    verdict_deadline: Duration = Field(
        parse_duration("1h"), description="For the pass of one step, from its share on."
    )
    off_deadline: Duration = Field(
        parse_duration("30s"), description="For the proof that a killed flag is off."
    )

    @model_validator(mode="after")
    def _can_be_judged(self) -> Ramp:
        if problem := check_steps(self.steps):
            raise ValueError(problem)
        return self


@dataclass(frozen=True)
class State:
    """What the journal says of one ramp; made by ``replay``."""

    ramp: Ramp
    base: float
    since: datetime
    step: int = 0
    is_set: bool = False
    aborting: str | None = None
    finished: Ended | None = None
    owner: str = ""

    @property
    def target(self) -> float:
        return self.ramp.steps[self.step]

    @property
    def is_whole(self) -> bool:
        """Everybody has the flag in this step, so that there is nobody to compare with."""
        return _same(self.target, 1.0)

    @property
    def has_objectives(self) -> bool:
        limits = self.ramp.limits
        return limits.error_rate is not None or limits.p95_seconds is not None

    @property
    def before(self) -> float:
        """Share that the flag had before the step."""
        return self.ramp.steps[self.step - 1] if self.step else self.base


@dataclass(frozen=True)
class Observation:
    """What was seen at one moment.

    Attributes:
        now: the time.
        share: share of the flag as its file says; None when it could not be read.
        verdict: of ``on`` against ``off`` since the share was set.
        off: whether replicas were seen to give ``on`` to nobody any more.
        superseded: who else has taken the flag since.
        stop_requested: why the ramp must end.
    """

    now: datetime
    share: float | None
    verdict: Verdict = Verdict.NOT_RUN
    reason: str = ""
    off: Verdict = Verdict.NOT_RUN
    superseded: str | None = None
    stop_requested: str | None = None


@dataclass(frozen=True)
class Action:
    reason: str


@dataclass(frozen=True)
class Look(Action):
    """The file could not be read; look again soon."""


@dataclass(frozen=True)
class SetShare(Action):
    share: float = 0.0


@dataclass(frozen=True)
class Judge(Action):
    """Obtain a verdict on ``on`` against ``off``."""


@dataclass(frozen=True)
class Pass(Action):
    """Record that the step has passed."""


@dataclass(frozen=True)
class Abort(Action):
    """Record that the flag is killed, and why."""


@dataclass(frozen=True)
class ProveOff(Action):
    """Look whether any replica still gives ``on``."""


@dataclass(frozen=True)
class Finish(Action):
    outcome: Ended = Ended.KILL_FAILED


def next_action(state: State, seen: Observation) -> Action:
    """The one thing to do now. Total: every state and observation has an answer."""
    if seen.superseded:
        return Finish(seen.superseded, Ended.SUPERSEDED)
    if state.finished:
        return Finish(f"already ended {state.finished}", state.finished)
    if state.aborting is not None:
        return _towards_off(state, seen)
    if seen.stop_requested:
        return Abort(seen.stop_requested)
    return _onwards(state, seen)


def _onwards(state: State, seen: Observation) -> Action:
    step = f"step {state.step + 1} of {len(state.ramp.steps)}"
    late = _expired(state.since, state.ramp.verdict_deadline, seen.now)
    if seen.share is None:
        why = f"the flag's file cannot be read: {seen.reason}"
        return Abort(why) if late else Look(why)
    if not _same(seen.share, state.target):
        if state.is_set or not _same(seen.share, state.before):
            return Abort(
                f"{step}: the flag is at {format_percent(seen.share)}, where nobody of this ramp "
                "put it"
            )
        return SetShare(f"{step}: on for {format_percent(state.target)}", state.target)
    if not state.is_set:  # the effect is there, its entry is not: a process died in between
        return SetShare(f"{step}: on for {format_percent(state.target)}", state.target)
    if state.is_whole and not state.has_objectives:
        return Finish(
            "every step before passed, and everybody has it; 100% was not judged: nobody is left "
            "to compare with, and no objective is declared",
            Ended.RAMPED,
        )
    return _judged(state, seen, step, late=late)


def _judged(state: State, seen: Observation, step: str, *, late: bool) -> Action:
    match seen.verdict:
        case Verdict.PASS if state.step == len(state.ramp.steps) - 1:
            how = " (100% by the objectives alone: nobody is left to compare with)"
            return Finish(
                f"every step passed: {seen.reason}{how if state.is_whole else ''}", Ended.RAMPED
            )
        case Verdict.PASS:
            return Pass(f"{step} passed: {seen.reason}")
        case Verdict.FAIL:
            return Abort(seen.reason or f"{step} failed")
        case _ if late:
            seconds = state.ramp.verdict_deadline.total_seconds()
            why = f": {seen.reason}" if seen.reason else ""
            return Abort(
                f"{step}: no pass within {seconds:g} s, the last verdict was {seen.verdict}{why}"
            )
        case _:
            return Judge(f"{step} needs a pass")


def _towards_off(state: State, seen: Observation) -> Action:
    reason = state.aborting or ""
    if _expired(state.since, state.ramp.off_deadline, seen.now) and (
        seen.share != 0 or seen.off is not Verdict.PASS
    ):
        return Finish(f"{reason}; and it is not shown to be off: {seen.reason}", Ended.KILL_FAILED)
    if seen.share != 0:
        return SetShare(f"off for everybody: {reason}", 0.0)
    if seen.off is not Verdict.PASS:
        return ProveOff("a kill is proved, not assumed")
    return Finish(reason, Ended.KILLED)


def _same(one: float, other: float) -> bool:
    return abs(one - other) * WHOLE < 0.5


def _expired(since: datetime, limit: timedelta, now: datetime) -> bool:
    return now - since > limit


# --- the journal ----------------------------------------------------------------------------


def entries_of(entries: Iterable[Entry], flag: str) -> Iterator[Entry]:
    return (e for e in entries if e.kind is Kind.FLAG and e.data.get("flag") == flag)


def unfinished_ramp(entries: Iterable[Entry], flag: str) -> State | None:
    """The ramp of a flag that started and never ended; None when there is none.

    A hand on the flag ends a ramp: its process, should it still live, sees that and stops.
    """
    state: State | None = None
    for entry in entries_of(entries, flag):
        state = _apply(state, entry)
    return state if state is not None and state.finished is None else None


def flags_left(entries: Iterable[Entry]) -> tuple[str, ...]:
    """Flags whose ramp started and never ended, in the order in which they were first met."""
    known = list(entries)
    met = dict.fromkeys(str(e.data["flag"]) for e in known if e.kind is Kind.FLAG)
    return tuple(flag for flag in met if unfinished_ramp(known, flag) is not None)


def superseded(entries: Iterable[Entry], flag: str, writer: str) -> str | None:
    """Who has claimed the flag after ``writer`` did, as a sentence; None: nobody.

    What a zombie writes later is no claim, and neither is what a ramp writes that lost its flag a
    moment ago: only a beginning, a take-over or a hand on the flag is.
    """
    last: Entry | None = None
    for entry in entries_of(entries, flag):
        if _is_claim(entry):
            last = entry
    if last is None or last.data.get("writer") == writer:
        return None
    return (
        f"{last.actor} wrote `{last.data.get('did')}` for {flag} at {last.at:%H:%M:%S} UTC "
        f"(run {last.run})"
    )


def _is_claim(entry: Entry) -> bool:
    did = entry.data.get("did")
    by_hand = not entry.data.get("ramp") and did == Did.SETTING
    return by_hand or did in (Did.RAMP_STARTED, Did.TAKEN_OVER)


def replay(entries: Iterable[Entry], flag: str) -> State:
    """The state of the newest ramp of a flag.

    Raises:
        ValueError: the flag has never ramped.
    """
    state: State | None = None
    for entry in entries_of(entries, flag):
        found = _apply(state, entry)
        state = found if found is not None else state
    if state is None:
        raise ValueError(f"the journal has no ramp of {flag}")
    return state


def _apply(state: State | None, entry: Entry) -> State | None:
    data = entry.data
    if data["did"] == Did.RAMP_STARTED:
        ramp = Ramp.model_validate(data["policy"])
        return State(ramp, float(data["base"]), entry.at, owner=str(data["writer"]))
    if state is None or state.finished is not None:
        return state
    if data["did"] == Did.TAKEN_OVER:
        return replace(state, since=entry.at, owner=str(data["writer"]))
    if _is_claim(entry):
        return replace(state, finished=Ended.SUPERSEDED)
    if data["writer"] != state.owner:  # carried once more, or a zombie's
        return state
    match data["did"]:
        case Did.SET:
            return replace(state, is_set=True, since=state.since if state.aborting else entry.at)
        case Did.STEP_PASSED:
            return replace(state, step=state.step + 1, is_set=False, since=entry.at)
        case Did.ABORTING if state.aborting is None:
            return replace(state, aborting=str(data["reason"]), is_set=False, since=entry.at)
        case Did.RAMP_FINISHED:
            return replace(state, finished=Ended(data["outcome"]))
        case _:
            return state
