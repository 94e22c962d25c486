"""The steps of a failover: the same for a drill and for the real day."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dns.exception
import dns.resolver
from prefect import task
from prefect.cache_policies import NO_CACHE

from blocks.backup_locations import BackupLocation
from blocks.epochs import Epochs
from blocks.keeper import KeeperProcess, record_sequences
from blocks.names import Names
from blocks.replication import Replication, differences
from domain.drill_report import PhaseReport
from domain.errors import Failed, SlipwayError
from domain.failover import HALTS, Epoch, Phase, Tier, fenced_after, phases
from domain.verdict import Verdict
from tasks.sides import Side

_DETECT_PAUSE_SECONDS = 0.05
_DETECT_MISSES = 3
_ANSWERS_SECONDS = 10.0
"""A primary that never fails three times in a row for so long is not lost."""
_CLOSE_SECONDS = 1.0
_REST_SECONDS = 5.0
_FIT_SECONDS = 10.0
"""How long the new side may take until it takes writes and its smoke checks pass."""
_RESOLVE_SECONDS = 1.0
_BRIDGE = timedelta(seconds=30)
"""A first lease for a side whose keeper has to notice first that the epoch is its own."""

Restore = Callable[[], list[str]]
"""Brings the newest proved copy into the standby's database; tells what it did."""
FirstTransaction = Callable[[], str]
"""Waits for the first good transaction of a client; tells of it."""


@dataclass
class Failover:
    """Moves an application from one side to the other, phase by phase.

    Attributes:
        epochs_name: environment whose epochs decide.
        restore: for the tier ``backup``.
        replication: for the others.
        planned: both sides work: nothing may be lost, and what fails is taken back.
        resumed: its epoch was claimed by a run that died before it led users anywhere.
        starts_keeper: a drill keeps its own sides; the real ones have keepers of their own.
        patience: for each phase; RTO is what all of them are measured against.
    """

    tier: Tier
    primary: Side
    standby: Side
    names: Names
    epoch_location: BackupLocation
    epochs: Epochs
    epochs_name: str
    lease: timedelta
    ttl: timedelta
    nameserver: str
    replicas: dict[str, int]
    actor: str
    reason: str
    logs: Path
    first_transaction: FirstTransaction
    log: Callable[[str], None]
    restore: Restore | None = None
    replication: Replication | None = None
    planned: bool = False
    resumed: bool = False
    starts_keeper: bool = True
    patience: timedelta = timedelta(minutes=5)
    started: float = field(default_factory=time.monotonic)
    epoch: Epoch | None = None
    closed: bool = False
    switched: bool = False
    keeper: KeeperProcess | None = None
    reports: list[PhaseReport] = field(default_factory=list)

    def run(self) -> None:
        """Every phase of the tier in order; the first that cannot be done ends it.

        Raises:
            SlipwayError: what stopped it; ``reports`` says how far it came.
        """
        try:
            for phase in phases(self.tier):
                self.do(phase)
        except SlipwayError:
            if self.planned and self.epoch is not None and not self.switched:
                self._give_back()
            raise

    def do(self, phase: Phase) -> None:
        """One phase, timed; what it did becomes part of the report."""
        act = {
            Phase.DETECT: self._detect,
            Phase.DECIDE: self._decide,
            Phase.FENCE: self._fence,
            Phase.RESTORE: self._restore,
            Phase.PROMOTE: self._promote,
            Phase.SCALE: self._scale,
            Phase.VERIFY: self._verify,
            Phase.SWITCH: self._switch,
            Phase.FIRST_TRANSACTION: self.first_transaction,
        }[phase]
        began = time.monotonic()
        verdict, note = Verdict.ERROR, HALTS[phase]
        try:
            note = _phase(act, phase)
            verdict = Verdict.PASS
        except SlipwayError as error:
            note = error.cause
            raise
        finally:
            seconds = round(time.monotonic() - began, 3)
            self.reports.append(
                PhaseReport(name=phase, seconds=seconds, verdict=verdict, note=note)
            )
            self.log(f"{phase}: {note} ({seconds:.2f} s)")

    def _detect(self) -> str:
        """Raises Failed SLP205: there is nothing to fail over from."""
        if self.resumed:
            return f"goes on with the move to {self.standby.name} that was begun"
        return self._planned() if self.planned else self._noticed()

    def _planned(self) -> str:
        for _ in range(_DETECT_MISSES):  # one slow answer is no reason to leave it be
            check = self.primary.answers()
            if check.verdict is Verdict.PASS:
                return f"planned: {self.primary.name} answers"
        raise Failed("SLP205", f"{self.primary.name} does not serve: {check.reason}",
                     help="a planned move needs both sides; leave --planned out")  # fmt: skip

    def _noticed(self) -> str:
        """Several failures in a row, with no success between: one may be a hiccup.

        Raises:
            Failed: SLP205, the primary answers.
        """
        misses, answered_since = 0, time.monotonic()
        seen = ""
        while time.monotonic() - answered_since < _ANSWERS_SECONDS:
            check = self.primary.answers()
            misses = 0 if check.verdict is Verdict.PASS else misses + 1
            if misses >= _DETECT_MISSES:
                return f"{misses} failures in a row: {check.reason}"
            seen = check.reason
            time.sleep(_DETECT_PAUSE_SECONDS)
        raise Failed(
            "SLP205",
            f"{self.primary.name} answers, after {_ANSWERS_SECONDS:g} s still: {seen}",
            help="there is nothing to fail over from; to move on purpose, use --planned",
        )

    def _decide(self) -> str:
        return self.reason

    def _fence(self) -> str:
        """Claim the epoch; then the old side is closed by us, or its lease is over by itself."""
        self.epoch = self._claimed_before() if self.resumed else self._claim()
        claimed = time.monotonic()  # of a claim that was found: at the latest now
        closed = _within(_CLOSE_SECONDS, lambda: self.primary.fence.close(self._number))
        if closed is not None:
            self.closed = True
            return f"epoch {self._number}; {self.primary.name} was closed and said so"
        if self.planned:
            raise Failed("SLP204", f"{self.primary.name} did not say that it is closed",
                         help="it gets its epoch back; look at its database")  # fmt: skip
        wait = fenced_after(self.lease).total_seconds() - (time.monotonic() - claimed)
        if wait > 0:
            time.sleep(wait)
        return f"epoch {self._number}; {self.primary.name} does not answer, its lease is over"

    def _claim(self) -> Epoch:
        newest = self.epochs.newest()
        if newest is None or newest.side != self.primary.name:
            raise self._not_the_holder(self.primary, newest)
        epoch = Epoch(
            number=newest.number + 1,
            side=self.standby.name,
            claimed_at=datetime.now(UTC),
            actor=self.actor,
            reason=self.reason,
        )
        self.epochs.claim(epoch)
        return epoch

    def _claimed_before(self) -> Epoch:
        newest = self.epochs.newest()
        if newest is None or newest.side != self.standby.name:
            raise self._not_the_holder(self.standby, newest)
        return newest

    def _not_the_holder(self, side: Side, newest: Epoch | None) -> Failed:
        return Failed(
            "SLP205",
            f"{side.name} does not hold the epoch"
            + (f": {newest.side} does" if newest else ", nobody does"),
            help="look with `slipway readiness`; arm the side that serves, or fail back",
        )

    def _restore(self) -> str:
        assert self.restore is not None
        if self.resumed and self.standby.fence.opened_under(self._number):
            self._open()
            return "was restored before"
        told = self.restore()
        self.standby.fence.arm()
        self._open()
        return "; ".join(told)

    def _promote(self) -> str:
        assert self.replication is not None
        told: list[str] = []
        if self.resumed and not self.replication.is_set_up():
            told = ["everything that was to come had come before"]
        elif self.planned:
            told = self._everything_came()
        elif self.closed:
            told = self._rest_came()
        told += self.replication.promote()
        self._open()
        return "; ".join(told)

    def _last_beat_came(self, seconds: float) -> bool:
        """Whether all that the closed side has committed has arrived."""
        assert self.replication is not None
        with self.primary.fence.connection() as connection:
            row = connection.execute(
                "INSERT INTO slipway.heartbeat (sequence, source) VALUES (0, 'last') RETURNING at"
            ).fetchone()
            record_sequences(connection)
        assert row is not None
        return self.replication.await_beat(row[0], seconds)

    def _rest_came(self) -> list[str]:
        """The old side is given up, but it answers: what it has not sent yet is worth a moment."""
        try:
            came = self._last_beat_came(_REST_SECONDS)
        except SlipwayError as error:
            return [f"its last rows could not be waited for: {error.cause}"]
        return ["its last rows arrived" if came else "its last rows did not arrive in time"]

    def _everything_came(self) -> list[str]:
        """The closed side's last heartbeat has arrived, and every table is the same.

        Raises:
            Failed: SLP207, something is missing at the new side.
        """
        if not self._last_beat_came(self.patience.total_seconds()):
            raise Failed("SLP207", f"what {self.primary.name} has did not arrive in time",
                         help="it gets its epoch back; see `slipway readiness`")  # fmt: skip
        differ = differences(self.primary.admin_url, self.standby.admin_url)
        if differ:
            raise Failed("SLP207", f"the sides differ: {'; '.join(differ[:5])}",
                         help="the old side serves on; make the standby anew")  # fmt: skip
        return ["everything arrived: all tables are the same"]

    def _give_back(self) -> None:
        """A planned move that did not come about: the old side serves on, under a newer epoch."""
        again = Epoch(
            number=self._number + 1,
            side=self.primary.name,
            claimed_at=datetime.now(UTC),
            actor=self.actor,
            reason="the planned move did not come about",
        )
        self.epochs.claim(again)
        self.primary.fence.open(again.number, _BRIDGE)
        self.log(f"{self.primary.name} serves on under epoch {again.number}")

    def _open(self) -> None:
        """Let the new side write, and start keeping it: only after the old side cannot."""
        newest = self.epochs.newest()
        if newest != self.epoch:
            raise Failed("SLP203", f"{newest and newest.side} has claimed a newer epoch meanwhile",
                         help="somebody else moves this application")  # fmt: skip
        self.standby.fence.open(self._number, self.lease if self.starts_keeper else _BRIDGE)
        if not self.starts_keeper:
            return
        self.keeper = self.standby.keeper(
            self.epoch_location, self.lease, self.epochs_name, self.logs / "keeper-standby.log"
        )

    def _scale(self) -> str:
        if self.standby.ready_replicas() != self.replicas:
            self.standby.start(self.replicas)
        self.standby.route()
        what = ", ".join(f"{n} of {service}" for service, n in self.replicas.items())
        return f"{what} ready at {self.standby.name}"

    def _verify(self) -> str:
        """Raises Failed SLP210: it does not work there, so no user is led there."""
        deadline = time.monotonic() + _FIT_SECONDS
        # A keeper that starts on a full machine may come after the first lease: one of 200 drills
        # ended here at once, 1.6 s after a lease of 1.5 s that nobody had renewed yet.
        while not self.standby.fence.state().writable:
            if time.monotonic() > deadline:
                raise Failed("SLP210", f"the database of {self.standby.name} refuses writes",
                             help="its lease is not renewed: read the keeper's log")  # fmt: skip
            time.sleep(0.05)
        while (check := self.standby.smoke()).verdict is not Verdict.PASS:
            if time.monotonic() > deadline:
                raise Failed("SLP210", f"{self.standby.name} is not fit for users: {check.reason}",
                             help="nobody was led there; see the replicas' log")  # fmt: skip
            time.sleep(0.05)
        return check.reason

    def _switch(self) -> str:
        """Change the name, and see that the name server says so.

        Raises:
            Failed: SLP208, the service or the name server does not follow.
        """
        record = self.standby.record_for(self.ttl)
        deadline = time.monotonic() + self.patience.total_seconds()
        while True:
            try:
                self.names.point(record)
                self.switched = True
                break
            except Failed:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.5)
        while (seen := resolved(self.nameserver, record.name)) != record.addresses:
            if time.monotonic() > deadline:
                now = ", ".join(seen) or "nobody"
                raise Failed("SLP208", f"{record.name} still leads to {now}",
                             help="look at the name server")  # fmt: skip
            time.sleep(0.05)
        return f"{record.name} leads to {', '.join(record.addresses)}, TTL {record.ttl_seconds} s"

    @property
    def _number(self) -> int:
        assert self.epoch is not None
        return self.epoch.number


@task(name="phase", task_run_name="{phase}", cache_policy=NO_CACHE)
def _phase(act: Callable[[], str], phase: Phase) -> str:
    """A phase as Prefect shows it."""
    return act()


def resolved(nameserver: str, name: str) -> tuple[str, ...]:
    """What a name server says now, without any cache; nothing when it does not answer."""
    host, _, port = nameserver.rpartition(":")
    resolver = dns.resolver.Resolver(configure=False)
    resolver.nameservers, resolver.port = [host], int(port)
    try:
        answer = resolver.resolve(name, "A", lifetime=_RESOLVE_SECONDS)
    except dns.exception.DNSException:
        return ()
    return tuple(sorted(str(found) for found in answer))


def _within(seconds: float, act: Callable[[], int]) -> int | None:
    """What ``act`` gives in that time, else None: who asks a frozen server waits for ever."""
    found: list[int] = []

    def run() -> None:
        try:
            found.append(act())
        except SlipwayError:
            return

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    return found[0] if found else None
