"""Many nights of backups under a policy, with a clock of its own: what retention will do.

Simulated: no store is asked and nothing is deleted. The decisions are those of domain.retention.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from domain.recovery import CopyState
from domain.retention import Act, Location, Plan, Point, Policy, Refusal, gate, plan

SIMULATED = "(simulated)"


@dataclass(frozen=True)
class Night:
    """One night: what its backup became, and what expiry did after it."""

    number: int
    at: datetime
    fate: str
    planned: Plan
    refusal: Refusal | None

    def lines(self) -> list[str]:
        """A sentence for everything that was not as on any other night."""
        day = f"night {self.number:>2}, {self.at:%Y-%m-%d}"
        said = [] if self.fate == "proved" else [f"{day}: the backup is {self.fate}"]
        if self.refusal is not None:
            return [*said, f"{day}: nothing expires: {self.refusal.reason}"]
        return said + [
            f"{day}: {step.act} point {step.point.sequence}: {step.reason}"
            for step in self.planned.deletes
        ]


FATES: dict[int, str] = {7: "unproved", 12: "missing", 20: "unfinished", 33: "unproved"}
"""What becomes of the backups of some nights; those of the others are proved."""
HELD = 3
"""The point that somebody holds from the start, for an audit."""


def simulate(policy: Policy, nights: int, start: datetime) -> Iterator[Night]:
    """Night after night: a backup, then expiry of what it allows.

    Args:
        start: 02:00 UTC of the first night.
    """
    points: dict[str, Point] = {}
    for number in range(1, nights + 1):
        at = start + timedelta(days=number - 1)
        fate = FATES.get(number, "proved")
        if fate != "missing":
            point = _made(number, at, fate)
            points[point.point] = point
        location = Location(SIMULATED, tuple(points.values()), at)
        planned = plan(location, policy, at)
        refusal = gate(location, planned, policy, at)
        yield Night(number, at, fate, planned, refusal)
        if refusal is None:
            _apply(points, planned, at)


def summary(nights: Sequence[Night]) -> str:
    """One line about where it ended."""
    last = nights[-1]
    kept = [s.point for s in last.planned.steps if s.act is Act.KEEP]
    usable = [p for p in kept if p.state is CopyState.COMPLETE and p.data_time]
    oldest = min((p.data_time for p in usable if p.data_time), default=None)
    proved = sum(p.proved for p in usable)
    return (
        f"{SIMULATED} after {last.number} nights: {len(usable)} points, {proved} proved, the "
        f"oldest of {oldest:%Y-%m-%d}"
        if oldest
        else f"{SIMULATED} after {last.number} nights: nothing can be brought back"
    )


def _made(number: int, at: datetime, fate: str) -> Point:
    return Point(
        point=f"{number:08d}",
        sequence=number,
        state=CopyState.PARTIAL if fate == "unfinished" else CopyState.COMPLETE,
        data_time=None if fate == "unfinished" else at,
        stored_at=at,
        proved=fate == "proved",
        held="audit" if number == HELD else "",
        bytes=1_000_000,
    )


def _apply(points: dict[str, Point], planned: Plan, at: datetime) -> None:
    for step in planned.deletes:
        if step.act is Act.TOMBSTONE:
            hidden = replace(step.point, state=CopyState.TOMBSTONED, tombstoned_at=at)
            points[step.point.point] = hidden
        else:
            del points[step.point.point]
