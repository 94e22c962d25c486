"""Changing one flag of one environment: set it, kill it, or ramp it by evidence.

Nothing here decides. Intent is in the journal before each effect. A ramp checks, while nobody else
can change the flags, that nobody else has taken its flag; so a kill, which waits for no queue, is
never undone by a ramp that did not know of it yet.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Protocol

from blocks.flag_metrics import FlagMeter, FlagReading, Source
from blocks.flags import Flags
from blocks.journal import Journal
from blocks.platform import Platform
from domain.errors import Failed, NeedsPerson, SlipwayError, UsageError
from domain.flags import Definition
from domain.journal import live
from domain.judge import Judgement, Look, Trial
from domain.ramp import (
    Abort,
    Action,
    Did,
    Ended,
    Finish,
    Judge,
    Observation,
    Pass,
    ProveOff,
    Ramp,
    SetShare,
    State,
    next_action,
    replay,
    superseded,
    unfinished_ramp,
)
from domain.units import format_percent
from domain.verdict import Verdict
from domain.workload import Phase

POLL_SECONDS = 0.5
SILENCE = timedelta(seconds=5)
"""Ten looks of the provider: without any request that met the flag, off is believed after it."""
SETTLE = timedelta(seconds=2)
"""From a change of the file until every replica has read it; the provider looks twice a second."""
_SERVING = frozenset({Phase.READY, Phase.UNREADY})


class Meter(Protocol):
    """What ``FlagMeter`` is to a ramp."""

    def read(self) -> FlagReading: ...

    def close(self) -> None: ...


Open = Callable[[], Meter]


class Taken(Exception):
    """Somebody else took the flag between our look and our change."""


def sources_of(platform: Platform, application: str, environment: str) -> list[Source]:
    """Replicas that serve in an environment, of every version that has any."""
    return [
        Source(f"{workload.name}/{replica.index}", workload.service, replica.address)
        for workload in platform.cluster.workloads(application, environment)
        for replica in workload.replicas
        if replica.address and replica.phase in _SERVING
    ]


def meter_of(platform: Platform, application: str, environment: str, flag: str) -> FlagMeter:
    """Counts only what the live version's replicas meet."""
    journal = Journal(platform.store, application, environment)
    current = live(journal.history())
    names = set(current.workloads.values()) if current else set()

    def serving() -> list[Source]:
        found = sources_of(platform, application, environment)
        return [source for source in found if source.name.rpartition("/")[0] in names]

    return FlagMeter(flag, serving)


@dataclass
class Proof:
    """Whether replicas still give ``on``, look by look."""

    open: Open
    since: datetime
    _meter: Meter | None = None
    _opened: datetime | None = None

    def look(self, now: datetime) -> tuple[Verdict, str]:
        """``pass`` once requests met the flag and none got ``on``, or none met it for SILENCE.

        Raises:
            Failed: SLP014, a replica could not be asked.
        """
        if now - self.since < SETTLE:
            return Verdict.TOO_FEW, "replicas may not have read the change yet"
        if self._meter is None or self._opened is None:
            self._meter, self._opened = self.open(), now
            return Verdict.TOO_FEW, "looked once; the next look shows what was counted in between"
        arms = self._meter.read().arms
        if arms.on.requests:
            self._start_again()
            return Verdict.FAIL, f"{arms.on.requests} requests still got the flag"
        if arms.off.requests:
            return Verdict.PASS, f"{arms.off.requests} requests met the flag, and none got it"
        if now - self._opened >= SILENCE:
            return Verdict.PASS, f"no request met the flag in {SILENCE.total_seconds():g} s"
        return Verdict.NO_DATA, "no request has met the flag yet"

    def _start_again(self) -> None:
        if self._meter is not None:
            self._meter.close()
        self._meter = self._opened = None


@dataclass
class Ramping:
    """One ramp under way; all truth is in the journal and in the flag's file.

    Args:
        open: opens a meter that counts from then on.
        trial: makes a judge of one step; the seam to domain.judge.
    """

    flags: Flags
    journal: Journal
    flag: str
    open: Open
    trial: Callable[[State], Trial] = lambda state: Trial(state.ramp.limits)
    log: Callable[[str], None] = lambda line: None
    pause: Callable[[float], None] = time.sleep
    stop_requested: str | None = None
    ramp: str = field(default_factory=lambda: uuid.uuid4().hex[:12])
    writer: str = field(default_factory=lambda: uuid.uuid4().hex)
    judgements: list[dict[str, Any]] = field(default_factory=list)
    _trial: Trial | None = None
    _meter: Meter | None = None
    _proof: Proof | None = None
    _judgement: Judgement | None = None
    _off: Verdict = Verdict.NOT_RUN
    _why: str = ""
    _last_line: str = ""

    # --- beginning -------------------------------------------------------------------------

    def begin(self, ramp: Ramp) -> None:
        """Write the start, or take over a ramp of the same steps that its process left.

        Raises:
            UsageError: SLP080, the flag cannot ramp, or a ramp with other steps was left.
            Failed: SLP014, the flags or the counters cannot be read: nothing was changed.
        """
        known = self.flags.read(self.journal.application, self.journal.environment)
        base = (known or Definition.empty()).share(self.flag)
        left = unfinished_ramp(self.journal.entries, self.flag)
        if left is not None:
            if left.ramp.steps != ramp.steps:
                raise UsageError(
                    "SLP080",
                    f"a ramp of {self.flag} by {_shown(left.ramp)} was begun and never ended",
                    help="go on with the same steps, or kill the flag first",
                )
            self._write(Did.TAKEN_OVER)
            return
        if base >= ramp.steps[0]:
            raise UsageError(
                "SLP080",
                f"{self.flag} is on for {format_percent(base)} already, and the ramp begins at "
                f"{format_percent(ramp.steps[0])}",
                help="kill it first, or begin higher with --steps",
            )
        self.open().close()  # a flag that cannot be counted is refused before anybody gets it
        self._write(Did.RAMP_STARTED, policy=ramp.model_dump(mode="json"), base=base)

    def end_left(self, reason: str) -> Finish:
        """Take over a ramp that its process left, and turn its flag off."""
        self._write(Did.TAKEN_OVER)
        self.stop_requested = reason
        return self.drive()

    # --- driving ---------------------------------------------------------------------------

    def drive(self) -> Finish:
        """Act until the ramp has ended."""
        while True:
            self.journal.refresh()
            state = replay(self.journal.entries, self.flag)
            action = next_action(state, self._observe(state))
            self._say(action)
            if isinstance(action, Finish):
                if action.outcome is not Ended.SUPERSEDED:
                    self._write(Did.RAMP_FINISHED, outcome=action.outcome, reason=action.reason)
                self._close()
                return action
            with suppress(Taken):  # the next look at the journal says by whom
                self._do(state, action)

    def _observe(self, state: State) -> Observation:
        share, reason = None, self._why
        try:
            known = self.flags.read(self.journal.application, self.journal.environment)
            share = (known or Definition.empty()).share(self.flag)
        except SlipwayError as error:
            reason = error.cause
        return Observation(
            now=self.journal.now(),
            share=share,
            verdict=self._judgement.verdict if self._judgement else Verdict.NOT_RUN,
            reason=reason,
            off=self._off,
            superseded=superseded(self.journal.entries, self.flag, self.writer),
            stop_requested=self.stop_requested,
        )

    def _do(self, state: State, action: Action) -> None:
        match action:
            case SetShare(share=share):
                self._set(share, action.reason, quietly=state.aborting is not None)
            case Judge():
                self._judge(state)
            case Pass():
                self._close()
                self._write(Did.STEP_PASSED, step=state.step + 1, reason=action.reason)
            case Abort():
                self._close()
                self._write(Did.ABORTING, reason=action.reason)
            case ProveOff():
                self._prove()
            case _:
                self.pause(POLL_SECONDS)

    def _set(self, share: float, reason: str, *, quietly: bool) -> None:
        self._close()
        self._write(Did.SETTING, share=share, reason=reason)
        try:
            self._change(share)
        except SlipwayError as error:
            if not quietly:
                raise
            self._why = error.cause  # a kill is tried again until its deadline
            self.pause(POLL_SECONDS)
            return
        self._write(Did.SET, share=share)

    def _change(self, share: float) -> None:
        def ours(known: Definition) -> Definition:
            self.journal.refresh()
            if superseded(self.journal.entries, self.flag, self.writer):
                raise Taken
            return known.with_share(self.flag, share)

        self.flags.change(self.journal.application, self.journal.environment, ours)

    def _judge(self, state: State) -> None:
        """One look more at both arms. What cannot be read is no verdict, and certainly no zero."""
        self.pause(POLL_SECONDS)
        if self.journal.now() - state.since < SETTLE:
            self._why = "replicas may not have read the change yet"
            return
        try:
            if self._meter is None or self._trial is None:
                self._meter, self._trial = self.open(), self.trial(state)
                return
            reading = self._meter.read()
        except SlipwayError as error:
            self._judgement, self._why = Judgement(Verdict.ERROR, error.cause, {}), error.cause
            return
        off = None if state.is_whole else reading.arms.off
        look = Look(at=reading.at, candidate=reading.arms.on, stable=off)
        self._judgement = self._trial.add(look)
        self._why = self._judgement.reason

    def _prove(self) -> None:
        self.pause(POLL_SECONDS)
        now = self.journal.now()
        self._proof = self._proof or Proof(self.open, now)
        try:
            self._off, self._why = self._proof.look(now)
            if self._off is Verdict.FAIL:
                self._change(0.0)  # once more: a replica may have overlooked it
        except SlipwayError as error:
            self._off, self._why = Verdict.ERROR, error.cause

    # --- writing ---------------------------------------------------------------------------

    def _write(self, did: Did, **data: Any) -> None:
        if self._judgement and did in (Did.STEP_PASSED, Did.ABORTING, Did.RAMP_FINISHED):
            judged = {
                "verdict": self._judgement.verdict.value,
                "reason": self._judgement.reason,
                "numbers": dict(self._judgement.numbers),
            }
            self.judgements.append(judged)
            data["judgement"] = judged
            self._judgement = None
        self.journal.flag(
            {"flag": self.flag, "did": did.value, "ramp": self.ramp, "writer": self.writer, **data}
        )

    def _close(self) -> None:
        if self._meter is not None:
            self._meter.close()
        self._meter = self._trial = None

    def _say(self, action: Action) -> None:
        line = f"{self.flag}: {action.reason}" + (f" ({self._why})" if self._why else "")
        if line != self._last_line:
            self.log(line)
            self._last_line = line


def set_share(flags: Flags, journal: Journal, flag: str, share: float) -> float:
    """Give a flag a share by hand; returns the one it had. A ramp of it, if any, stops.

    Raises:
        UsageError: SLP080.
        Failed: SLP014, SLP015.
    """
    where = journal.application, journal.environment
    known = flags.read(*where) or Definition.empty()
    known.with_share(flag, share)  # refused before anything is written
    before = known.share(flag) if known.flags[flag].state == "ENABLED" else 0.0
    by_hand = {"flag": flag, "writer": uuid.uuid4().hex, "share": share}
    journal.flag({**by_hand, "did": Did.SETTING.value})
    flags.change(*where, lambda now: now.with_share(flag, share))
    journal.flag({**by_hand, "did": Did.SET.value})
    return before


def kill(
    flags: Flags, journal: Journal, flag: str, open: Open, pause: Callable[[float], None]
) -> str:
    """Turn a flag off for everybody, and see in the replicas that it is; a sentence about it.

    Raises:
        UsageError: SLP080.
        Failed: SLP014, SLP015: the flag is as it was.
        NeedsPerson: SLP082, it is off in the file and not shown to be off in the replicas.
    """
    set_share(flags, journal, flag, 0.0)
    began = journal.now()
    proof, deadline = Proof(open, began), began + timedelta(seconds=30)
    seen = ""
    while (now := journal.now()) < deadline:
        try:
            verdict, seen = proof.look(now)
        except Failed as error:
            verdict, seen = Verdict.ERROR, error.cause
        if verdict is Verdict.PASS:
            return seen
        if verdict is Verdict.FAIL:
            flags.change(journal.application, journal.environment, lambda now: now.killed([flag]))
        pause(POLL_SECONDS)
    raise not_off(flag, seen)


def not_off(flag: str, seen: str) -> NeedsPerson:
    return NeedsPerson(
        "SLP082",
        f"{flag} was killed and is not shown to be off: {seen}",
        help="see docs/flags.md, section `a flag that does not go off`",
    )


def error_of(flag: str, ended: Finish) -> SlipwayError:
    """What a ramp ends with that did not reach its last step."""
    if ended.outcome is Ended.KILL_FAILED:
        return not_off(flag, ended.reason)
    if ended.outcome is Ended.KILLED:
        help = "it is off for everybody; correct the code behind it and ramp it again"
        return Failed("SLP081", f"{flag} was killed: {ended.reason}", help=help)
    return Failed(
        "SLP081", f"the ramp of {flag} ended: {ended.reason}", help="see `slipway flag list`"
    )


def _shown(ramp: Ramp) -> str:
    return ", ".join(format_percent(step) for step in ramp.steps)
