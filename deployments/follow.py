"""Follow a run to its end: one line for each change of state and each log line.

The output is the same in a terminal and in a CI log: lines only, no cursor movement, and never
more than half a minute of silence.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from deployments.console import Console
from deployments.runs import Log, PrefectServer, Run
from domain.errors import OutcomeUnknown, SlipwayError

HEARTBEAT_SECONDS = 25.0
_POLL_SECONDS = 0.4
_QUIET_SECONDS = 2.0  # every look costs the server, which shares the machine with what is measured
_LATE = timedelta(seconds=20)  # lines are sent in batches, so they arrive out of order
_DRAIN_SECONDS = 5.0
_TAIL_LINES = 20

# What Prefect's engine says about itself on the loggers of runs.
_ENGINE = re.compile(
    r"(Beginning (flow|subflow) run|Created (task|subflow)|View at http|Finished in state"
    r"|Opening process|Process for flow run|Downloading flow|Running \d+ deployment pull|"
    r"Executing deployment step|Deployment step |All deployment steps|"
    # The change of state says the same, without the traceback.
    r"Encountered exception during execution|stage [a-z-]+: "
    # Of a scan that was given up: the state and the report say so.
    r"|Task run failed with exception: Stopped|.*Task run cancelled by the task runner)"
)
_WRAPPED = re.compile(
    r"^(Flow run|Task run) encountered an exception: (\w+: )?(?=error\[|given up)"
)
_LAST_WORD = re.compile(r"Finished in state |Crash detected|Process for flow run .* exited")


@dataclass
class _Follower:
    server: PrefectServer
    console: Console
    root: str
    now: Callable[[], float]
    mute: frozenset[str] = frozenset()
    known: dict[str, Run] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    seen: set[str] = field(default_factory=set)
    newest: datetime | None = None
    spoke: float = 0.0
    finished_talking: bool = False
    grouped: str = ""

    def look(self) -> Run:
        run = self.server.run(self.root)
        self._tell_state(run)
        for child in self.server.children([r for r in self.known]):
            self._tell_state(child)
        self._tell_logs()
        if self.now() - self.spoke > HEARTBEAT_SECONDS:
            self._heartbeat(run)
        return run

    def drain(self) -> None:
        """The last lines of a run may arrive after its state."""
        deadline = self.now() + _DRAIN_SECONDS
        while not self.finished_talking and self.now() < deadline:
            time.sleep(_POLL_SECONDS)
            self._tell_logs()

    def _tell_state(self, run: Run) -> None:
        before = self.known.get(run.id)
        self.known[run.id] = run
        if before is not None and before.state_name == run.state_name:
            return
        if run.id != self.root:
            self._regroup()
        self._say(self._state_line(self._name(run), run))

    def _regroup(self) -> None:
        """One group for what runs side by side: groups of a CI log cannot overlap."""
        title = ", ".join(self._active())
        if title == self.grouped:
            return
        if self.grouped:
            self.console.end_group()
        if title:
            self.console.group(title)
        self.grouped = title

    def _active(self) -> list[str]:
        return [self._name(r) for r in self.known.values() if not r.ended and r.id != self.root]

    def _state_line(self, stage: str, run: Run) -> str:
        symbol, style = {
            "COMPLETED": ("✔", "green"),
            "FAILED": ("✖", "red"),
            "CRASHED": ("✖", "red"),
            "CANCELLED": ("■", "yellow"),
            "RUNNING": ("▶", "blue"),
        }.get(run.state, ("·", "dim"))
        spent = f" in {run.seconds:.1f} s" if run.ended and run.seconds else ""
        why = f": {first_line(run.message)}" if run.ended and run.message else ""
        if run.state_name == "AwaitingConcurrencySlot":
            why = ": another run of this environment goes first"
        head = self.console.paint(f"{symbol} {stage}", style)
        return f"{head} {run.state_name.lower()}{spent}{why}"

    def _tell_logs(self) -> None:
        after = self.newest - _LATE if self.newest else None
        for line in self.server.logs(self.known, after):
            if line.id in self.seen:
                continue
            self.seen.add(line.id)
            self.newest = max(self.newest or line.at, line.at)
            if line.run == self.root and _LAST_WORD.search(line.message):
                self.finished_talking = True
            if self._wanted(line):
                self._say(self._log_line(line))

    def _wanted(self, line: Log) -> bool:
        if self.console.verbose > 1:
            return True
        if _ENGINE.match(line.message) or line.message in self.mute:
            return self.console.verbose > 0
        # Loggers of the worker and the runner speak about themselves.
        quiet = line.logger.startswith("prefect.flow_runs.") and not self.console.verbose
        return line.level >= (30 if quiet else 20)

    def _log_line(self, line: Log) -> str:
        style = "red" if line.level >= 40 else "yellow" if line.level >= 30 else ""
        word = "error: " if line.level >= 40 else "warning: " if line.level >= 30 else ""
        run = self.known.get(line.run)
        stage = self._name(run) if run else "run"
        text = f"{word}{self._shortened(line.message)}".replace("\n", "\n    ")
        return f"  {stage}: {self.console.paint(text, style) if style else text}"

    def _shortened(self, message: str) -> str:
        """The head of a long message and its last lines, which say what went wrong."""
        if self.console.debug:
            return message
        head, *rest = message.split("\nTraceback (")[0].splitlines() or [""]
        return "\n".join([head, *rest[-_TAIL_LINES:]])

    def _heartbeat(self, run: Run) -> None:
        doing = ", ".join(self._active()) or run.state_name.lower()
        hint = ""
        if run.state in ("SCHEDULED", "PENDING") and run.state_name != "AwaitingConcurrencySlot":
            hint = "; no worker has taken it yet, see `slipway status`"
        since = f" for {_age(run)}" if run.started else ""
        self._say(f"… still at it: {doing}{since}{hint}")

    def _name(self, run: Run) -> str:
        if run.flow_id not in self.names:
            self.names[run.flow_id] = self.server.flow_name(run.flow_id)
        return self.names[run.flow_id]

    def _say(self, text: str) -> None:
        self.spoke = self.now()
        self.console.say(text)


def follow(
    server: PrefectServer,
    run: Run,
    console: Console,
    *,
    mute: Iterable[str] = (),
    now: Callable[[], float] = time.monotonic,
) -> Run:
    """Print what the run does until it has ended; returns it as it ended.

    Args:
        mute: log lines that were already shown, such as those of the plan.

    Raises:
        OutcomeUnknown: SLP072, the server was lost for longer than its patience.
    """
    follower = _Follower(server, console, run.id, now, frozenset(mute), spoke=now())
    try:
        pause = _POLL_SECONDS
        while True:
            heard = len(follower.seen)
            current = follower.look()
            if current.ended:
                follower.drain()
                return current
            time.sleep(pause)
            quiet = len(follower.seen) == heard
            pause = min(pause * 1.3, _QUIET_SECONDS) if quiet else _POLL_SECONDS
    except SlipwayError as error:
        if error.code != "SLP070":
            raise
        raise OutcomeUnknown(
            "SLP072",
            f"followed run {run.name} and lost the Prefect server: {error.cause}",
            help=f"the run may go on; follow it again: slipway watch {run.id}",
            where=error.where,
        ) from error


def first_line(message: str) -> str:
    """What a state says, without the words that Prefect puts around an exception."""
    return _WRAPPED.sub("", message).splitlines()[0] if message else ""


def _age(run: Run) -> str:
    assert run.started is not None
    seconds = (datetime.now(run.started.tzinfo) - run.started).total_seconds()
    return f"{max(0, seconds):.0f} s"
