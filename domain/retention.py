"""What may be deleted of the backups at one location, with a reason for each keep and each delete.

The rules, in the order in which they win (times are UTC, days are calendar days):

1. A held point stays, whatever else is true. A point whose number, time or manifest is in doubt
   stays, counts for nothing and displaces nothing.
2. The newest complete point and the ``keep_proved`` newest *proved* ones stay.
3. Of each day in the window (today and the ``retention`` days before) the newest complete point
   stays, and the newest proved one if that is another. Today's and yesterday's all stay.
4. The anchor stays: the newest proved point at or before the start of the window. With it any
   moment of the window can be brought back (pgBackRest's rule for time-based retention).
5. ``weekly`` and ``monthly`` keep the newest proved point of that many weeks and months besides.
6. What is left over goes only when at least ``keep_proved`` newer proved points stay and there is
   an anchor: age alone never deletes (velero#9061).
7. What was begun and never finished stays for a day, then goes. What is damaged stays until the
   window has passed it.

Deleting has two steps: a tombstone hides a point, and only after ``grace`` are its objects purged.

``plan`` decides, ``violations`` looks at the state that would be left with code of its own, and
``gate`` refuses to act on a snapshot that cannot be trusted. Nothing here talks to a store.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from enum import StrEnum

from domain.application import Backups
from domain.recovery import CopyState
from domain.units import format_bytes, format_duration

DAY = timedelta(days=1)
ALL = "all"
"""A hold on this instead of a point stops every delete of the lineage: an open incident."""


@dataclass(frozen=True, slots=True)
class Policy:
    """How long what is kept.

    Attributes:
        clock_doubt: how far a time may lie in the future, and our clock from the store's.
        most_share: of a location's points that one run may delete without being asked to.
    """

    retention: timedelta = timedelta(days=30)
    grace: timedelta = timedelta(days=3)
    keep_proved: int = 3
    weekly: int = 0
    monthly: int = 0
    partial_after: timedelta = DAY
    clock_doubt: timedelta = timedelta(minutes=5)
    most_share: float = 0.1
    most_free: int = 3

    @classmethod
    def of(cls, declared: Backups) -> Policy:
        """What application.yaml says."""
        return cls(
            retention=declared.retention,
            grace=declared.grace,
            keep_proved=declared.keep_proved,
            weekly=declared.weekly,
            monthly=declared.monthly,
        )

    def window_start(self, now: datetime) -> datetime:
        return datetime.combine(now.date(), datetime.min.time(), UTC) - self.retention


@dataclass(frozen=True, slots=True)
class Point:
    """One recovery point as one location has it.

    Attributes:
        data_time: None where no manifest could be read.
        stored_at: by the store's clock; of the manifest, else of the claim.
        proved: climbed as high as the application's policy asks.
        needs: SHA-256 of the contents in the pool that it cannot do without.
    """

    point: str
    sequence: int
    state: CopyState
    data_time: datetime | None
    stored_at: datetime
    proved: bool = False
    held: str = ""
    running: bool = False
    foreign: str = ""
    tombstoned_at: datetime | None = None
    bytes: int = 0
    needs: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Location:
    """Everything of one lineage at one location, as it was listed.

    Attributes:
        problem: why the listing may be incomplete; then nothing is decided on it (restic#4612).
        clock: the store's own time when it was listed.
        pool: contents in the pool, with the store's time of each.
        frozen: reason of a hold on everything.
    """

    name: str
    points: Sequence[Point]
    clock: datetime
    problem: str = ""
    pool: Sequence[tuple[str, datetime]] = ()
    frozen: str = ""


class Act(StrEnum):
    KEEP = "keep"
    TOMBSTONE = "tombstone"
    PURGE = "purge"
    SWEEP = "sweep"
    """Remove what was begun and never finished."""


@dataclass(frozen=True, slots=True)
class Step:
    """What happens to one point, and why."""

    point: Point
    act: Act
    reason: str


@dataclass(frozen=True, slots=True)
class Plan:
    """What happens at one location; ``digest`` names exactly this."""

    location: str
    steps: tuple[Step, ...]
    pool: tuple[str, ...] = ()

    @property
    def deletes(self) -> tuple[Step, ...]:
        return tuple(s for s in self.steps if s.act is not Act.KEEP)

    @property
    def digest(self) -> str:
        """Of what it does: an approval is for this and for nothing else."""
        seen = hashlib.sha256(self.location.encode())
        for step in self.deletes:
            seen.update(f"\n{step.act} {step.point.point}".encode())
        for content in self.pool:
            seen.update(f"\npool {content}".encode())
        return seen.hexdigest()[:16]

    def summary(self) -> str:
        count = Counter(step.act for step in self.steps)
        freed = sum(s.point.bytes for s in self.steps if s.act in (Act.PURGE, Act.SWEEP))
        said = f"{count[Act.KEEP]} kept, {count[Act.TOMBSTONE]} expired"
        if count[Act.PURGE] or count[Act.SWEEP] or self.pool:
            said += (
                f", {count[Act.PURGE]} purged, {count[Act.SWEEP]} unfinished removed, "
                f"{len(self.pool)} contents of the pool removed, {format_bytes(freed)} freed"
            )
        return f"{self.location}: {said} (plan {self.digest})"

    def lines(self, now: datetime) -> list[str]:
        """One a point, newest first."""
        return [
            f"{step.act:<9} {step.point.sequence:>6}  {_aged(step.point, now):>7}  "
            f"{self.location}  {step.reason}"
            for step in reversed(self.steps)
        ]


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why nothing at a location may be deleted now."""

    location: str
    reason: str
    by_size: bool = False
    """Only because it is much; an approval of exactly this plan lifts it."""


def plan(location: Location, policy: Policy, now: datetime) -> Plan:
    """Decide on every point of one location. The order of the input does not matter."""
    points = sorted(location.points, key=lambda p: (p.sequence, p.point))
    reasons = _kept(points, policy, now)
    steps = tuple(_step(point, reasons.get(point.point), policy, now) for point in points)
    return Plan(location.name, steps, _unneeded(location, steps, policy))


def gate(
    location: Location, planned: Plan, policy: Policy, now: datetime, *, approved: str = ""
) -> Refusal | None:
    """Whether the plan may be carried out; every delete passes here.

    Args:
        approved: digest of the plan that a person has read; it lifts the limit on how much.
    """

    def refused(reason: str, *, by_size: bool = False) -> Refusal:
        return Refusal(location.name, reason, by_size)

    if location.problem:
        return refused(f"it could not be listed: {location.problem}")
    if location.frozen:
        return refused(f"everything is held: {location.frozen}")
    if (apart := abs(now - location.clock)) > policy.clock_doubt:
        return refused(f"its clock and ours are {format_duration(apart)} apart")
    if foreign := next((p for p in location.points if p.foreign), None):
        return refused(f"point {foreign.sequence} is not of this application: {foreign.foreign}")
    if running := next((p for p in location.points if p.running), None):
        return refused(f"point {running.sequence} is being made right now")
    if approved and approved != planned.digest:
        return refused(f"the plan has changed since {approved} was approved: {planned.digest}")
    if wrong := violations(location, planned, policy, now):
        return refused(f"it would break a promise: {wrong[0]}")
    expired = sum(step.act is Act.TOMBSTONE for step in planned.steps)
    there = sum(point.state is CopyState.COMPLETE for point in location.points)
    most = max(policy.most_free, int(there * policy.most_share))
    if expired > most and not approved:
        return refused(
            f"{expired} of {there} points would expire at once, more than {most}; "
            f"if that is right, approve plan {planned.digest}",
            by_size=True,
        )
    return None


def _step(point: Point, reason: str | None, policy: Policy, now: datetime) -> Step:
    if reason is not None:
        return Step(point, Act.KEEP, reason)
    if point.state is CopyState.TOMBSTONED:
        return Step(point, Act.PURGE, "expired, and its grace period is over")
    if point.state is CopyState.PARTIAL:
        return Step(point, Act.SWEEP, "begun and never finished")
    if point.state is CopyState.DAMAGED:
        return Step(point, Act.TOMBSTONE, "damaged, and older than the window")
    if _time(point) < policy.window_start(now):
        return Step(point, Act.TOMBSTONE, "older than the window, whose start is covered")
    return Step(point, Act.TOMBSTONE, "a newer point of the same day stays")


def _kept(points: Sequence[Point], policy: Policy, now: datetime) -> dict[str, str]:
    """The first reason for each point that stays, by point. ``points`` in their order."""
    reasons: dict[str, str] = {}
    good: list[Point] = []
    newest_time = datetime.min.replace(tzinfo=UTC)
    for point in points:
        doubt = _doubt(point, newest_time, policy, now)
        if point.held:
            reasons[point.point] = f"held: {point.held}"
        elif doubt:
            reasons[point.point] = doubt
        elif point.state is not CopyState.COMPLETE and (why := _waiting(point, policy, now)):
            reasons[point.point] = why
        if doubt:
            continue
        if point.state is CopyState.COMPLETE:
            good.append(point)
        if point.data_time is not None and (point.state in _SEEN or point.point in reasons):
            # also of what this run hides: a rerun after a crash must decide as the run itself did
            newest_time = max(newest_time, point.data_time)
    for point, reason in _rules(good, policy, now):
        reasons.setdefault(point.point, reason)
    return reasons


_SEEN = (CopyState.COMPLETE, CopyState.DAMAGED)
"""There before this run and, hidden at most, after it. Of tombstones only those that stay count."""


def _doubt(point: Point, newest_time: datetime, policy: Policy, now: datetime) -> str:
    """Why a point is believed in nothing; empty for one that is as it should be.

    An attacker, or a clock that jumped, must not be able to push out a right point by a wrong
    one. Times are therefore checked against the store's, and against the order of the numbers.
    """
    if point.state is CopyState.TOMBSTONED:
        return ""
    if point.foreign:
        return f"in doubt: {point.foreign}"
    if point.data_time is None:
        return "in doubt: its manifest says no time" if point.state is CopyState.COMPLETE else ""
    if point.data_time > now + policy.clock_doubt:
        return "in doubt: its time lies in the future"
    if point.data_time > point.stored_at + policy.clock_doubt:
        return "in doubt: it claims to be newer than the store says"
    if point.state is CopyState.COMPLETE and point.data_time + policy.clock_doubt < newest_time:
        return "in doubt: a point of a lower number is newer"
    return ""


def _waiting(point: Point, policy: Policy, now: datetime) -> str:
    """Why something that is no usable point stays for now."""
    if point.state is CopyState.TOMBSTONED:
        until = (point.tombstoned_at or now) + policy.grace
        return f"expired; can be brought back until {until:%Y-%m-%d %H:%M}" if until > now else ""
    if point.state is CopyState.PARTIAL:
        if point.running:
            return "is being made right now"
        young = point.stored_at + policy.partial_after > now
        return "unfinished, and younger than a day" if young else ""
    young = (point.data_time or point.stored_at) >= policy.window_start(now)
    return "damaged; kept to find out why" if young else ""


def _rules(good: Sequence[Point], policy: Policy, now: datetime) -> Iterator[tuple[Point, str]]:
    """Rules 2 to 6 over usable points in the order of their numbers."""
    if not good:
        return
    start, proved = policy.window_start(now), [p for p in good if p.proved]
    yield good[-1], "the newest point"
    for point in proved[-policy.keep_proved :]:
        yield point, f"one of the {policy.keep_proved} newest proved points"
    for what, some in (("", good), ("proved ", proved)):
        for day, point in _newest_by(some, _day).items():
            if datetime.combine(day, datetime.min.time(), UTC) >= start:
                yield point, f"the newest {what}point of {day}"
    anchor = next((p for p in reversed(proved) if _time(p) <= start), None)
    if anchor is not None:
        yield anchor, "the anchor: the newest proved point before the window"
    for count, word, period in ((policy.weekly, "week", _week), (policy.monthly, "month", _month)):
        for day, point in list(_newest_by(proved, period).items())[-count:] if count else ():
            yield point, f"the newest proved point of the {word} of {day}"
    yesterday, newer = now.date() - DAY, len(proved)
    for point in good:
        newer -= point.proved
        if _day(point) >= yesterday:
            yield point, "of today or yesterday"
        elif newer < policy.keep_proved:
            yield point, f"only {newer} newer points are proved, not {policy.keep_proved}"
        elif anchor is None and _time(point) < start:
            yield point, "no proved point is old enough to cover the start of the window"


def _newest_by(points: Iterable[Point], period: Callable[[Point], date]) -> dict[date, Point]:
    """Of each period the point with the highest number; periods from the oldest."""
    found: dict[date, Point] = {}
    for point in points:
        found[period(point)] = point
    return dict(sorted(found.items()))


def _time(point: Point) -> datetime:
    return point.data_time or point.stored_at


def _day(point: Point) -> date:
    return _time(point).date()


def _week(point: Point) -> date:
    """Its Monday."""
    return _day(point) - DAY * _day(point).weekday()


def _month(point: Point) -> date:
    return _day(point).replace(day=1)


def _unneeded(location: Location, steps: Sequence[Step], policy: Policy) -> tuple[str, ...]:
    """Contents that nothing left over needs. A running backup may need what is younger than a day.

    What a point without a readable manifest needs is not known, so nothing goes while one stays.
    """
    stays = [s.point for s in steps if s.act not in (Act.PURGE, Act.SWEEP)]
    if any(p.data_time is None and p.state is not CopyState.PARTIAL for p in stays):
        return ()
    needed = frozenset[str]().union(*(point.needs for point in stays))
    old = location.clock - policy.partial_after
    return tuple(sorted(c for c, at in location.pool if at < old and c not in needed))


# The second opinion: what must hold of the state that would be left


def violations(location: Location, planned: Plan, policy: Policy, now: datetime) -> list[str]:
    """Promises that the plan would break; shares no decision with ``plan``.

    (a) enough proved points stay, (b) every day that can be brought back still can, and so can
    the start of the window, (c) nothing held goes, (d) nothing that stays needs what goes.
    """
    gone = {step.point.point for step in planned.deletes}
    after = [point for point in location.points if point.point not in gone]
    broken = [f"point {p.sequence} is held ({p.held})" for p in location.points
              if p.held and p.point in gone]  # fmt: skip
    before_proved, after_proved = _usable(location.points, now), _usable(after, now)
    enough = min(policy.keep_proved, len(before_proved))
    if len(after_proved) < enough:
        broken.append(f"{len(after_proved)} proved points would be left, not {enough}")
    complete = [p for p in location.points if p.state is CopyState.COMPLETE]
    if complete and max(complete, key=lambda p: p.sequence).point in gone:
        broken.append("the newest point would go")
    start = policy.window_start(now)
    for moment in (start + DAY * n for n in range(policy.retention.days + 1)):
        if _covers(before_proved, moment) and not _covers(after_proved, moment):
            broken.append(f"{moment:%Y-%m-%d} could not be brought back any more")
    lost = {p.data_time.date() for p in before_proved if p.data_time and p.data_time >= start}
    lost -= {p.data_time.date() for p in after_proved if p.data_time}
    broken += [f"no proved point of {day} would be left" for day in sorted(lost)]
    removed = set(planned.pool)
    survivors = (s.point for s in planned.steps if s.act not in (Act.PURGE, Act.SWEEP))
    for point in survivors:
        if removed & point.needs:
            broken.append(f"point {point.sequence} needs contents that would go")
    return broken


def _usable(points: Iterable[Point], now: datetime) -> list[Point]:
    """Proved points whose time has come, by the claim of their manifest alone."""
    return [
        p for p in points
        if p.state is CopyState.COMPLETE and p.proved and not p.foreign
        and p.data_time is not None and p.data_time <= min(now, p.stored_at) + timedelta(minutes=5)
    ]  # fmt: skip


def _covers(points: Iterable[Point], moment: datetime) -> bool:
    """Some point is from that moment or before it."""
    return any(p.data_time is not None and p.data_time <= moment for p in points)


def _aged(point: Point, now: datetime) -> str:
    days = (now - _time(point)) / DAY
    return f"{days:.0f} d" if days >= 1 else f"{days * 24:.0f} h"
