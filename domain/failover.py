"""Recovery in another cloud: its words, its phases, who may write, and what was achieved.

Definitions are those of research notes on disaster recovery: *RTA* runs from the fault to the
first write that was verified by reading it back through the public name; *RPA* from the commit of
the newest heartbeat that was recovered to the fault. RTO and RPO are the objectives for the two.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Sequence
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Tier(StrEnum):
    """How much of the standby is there before it is needed."""

    BACKUP = "backup"
    WARM = "warm"
    HOT = "hot"


class Phase(StrEnum):
    """The parts of a failover, in their order."""

    DETECT = "detect"
    DECIDE = "decide"
    FENCE = "fence"
    RESTORE = "restore"
    PROMOTE = "promote"
    SCALE = "scale"
    VERIFY = "verify"
    SWITCH = "switch"
    FIRST_TRANSACTION = "first transaction"


HALTS: Final = {
    Phase.DETECT: "the primary answers: nothing is lost, and nobody asked for a planned move",
    Phase.DECIDE: "the approval is missing, too old, or one person's alone",
    Phase.FENCE: "another epoch was claimed meanwhile, or the old side may still write",
    Phase.RESTORE: "no copy is proved, or what was restored is not what was saved",
    Phase.PROMOTE: "the database does not follow, or is fenced by another epoch",
    Phase.SCALE: "the bundle is missing, or the replicas do not become ready",
    Phase.VERIFY: "the standby does not answer its smoke checks, or cannot be written to",
    Phase.SWITCH: "the name server does not take the change",
    Phase.FIRST_TRANSACTION: "no client's transaction succeeds",
}
"""Before each phase: what stops the failover there. Until `switch` users are still where they
were, so stopping there leaves the application no worse off than the fault did."""


def phases(tier: Tier) -> tuple[Phase, ...]:
    """What a failover of this tier goes through."""
    skipped = {Tier.BACKUP: Phase.PROMOTE, Tier.WARM: Phase.RESTORE, Tier.HOT: Phase.RESTORE}[tier]
    return tuple(phase for phase in Phase if phase is not skipped)


class Epoch(_Model):
    """Which side may write. Numbers only grow; each is claimed once, by a create-only write."""

    number: int = Field(ge=1)
    side: str
    claimed_at: AwareDatetime
    actor: str
    reason: str


def may_renew(side: str, newest: Epoch | None, granted: int) -> bool:
    """Whether a side that read ``newest`` just now may go on writing for another lease.

    Nothing read is no permission: a keeper that cannot see the epochs does not renew. Nor does it
    begin: the first lease under an epoch is the failover's to grant, which knows when the old
    side's is over.

    Args:
        granted: the epoch under which the side's database was opened last.
    """
    return newest is not None and newest.side == side and granted == newest.number


CLOCK_RATE_MARGIN: Final = 0.05
"""Two clocks may run at different speeds, not by more than one part in twenty."""


def fenced_after(lease: timedelta) -> timedelta:
    """How long after the claim of a newer epoch no lease of the old side can be in force.

    A keeper starts its lease *before* it reads the epochs, so the last one it can have granted
    began before the claim and ends one lease later (Gray and Cheriton 1989). No two clocks are
    compared, only durations.
    """
    return lease * (1 + CLOCK_RATE_MARGIN)


class Attempt(_Model):
    """One transaction as a client met it; times in seconds since the epoch, by its clock.

    Attributes:
        sequence: numbered from 1 without gaps, over all clients of a drill.
        acknowledged: the application said that it was written.
        read_back: reading it back, through the same name, found it.
        address: to where the name led.
    """

    sequence: int
    sent: float
    done: float
    acknowledged: bool
    read_back: bool
    address: str
    error: str = ""


class Achieved(_Model):
    """What a failover achieved, from what clients and the data say.

    Attributes:
        rta_seconds: None when no client got through.
        rpa_seconds: of the newest heartbeat that was recovered; None when there was none.
        acknowledged: transactions that clients were told are written, before the fault and after.
        lost: those of them that the standby does not have, each by its number.
    """

    rta_seconds: float | None
    rpa_seconds: float | None
    acknowledged: int
    lost: tuple[int, ...]


def achieved(
    attempts: Sequence[Attempt],
    fault_at: float,
    target: str,
    recovered: Collection[int] | None,
    newest_beat: datetime | None,
) -> Achieved:
    """Measure a failover.

    Args:
        target: address of the side that took over; what is answered elsewhere does not count.
        recovered: numbers found in the database of that side; None when it could not be read:
            then every acknowledged one counts as lost.
    """
    good = [a for a in attempts if _verified(a) and a.address == target and a.done >= fault_at]
    first = min((a.done for a in good), default=None)
    acknowledged = [a.sequence for a in attempts if a.acknowledged]
    there = frozenset(recovered or ())
    return Achieved(
        rta_seconds=None if first is None else round(first - fault_at, 3),
        rpa_seconds=None
        if newest_beat is None
        else round(max(0.0, fault_at - newest_beat.timestamp()), 3),
        acknowledged=len(acknowledged),
        lost=tuple(sorted(n for n in acknowledged if n not in there)),
    )


def _verified(attempt: Attempt) -> bool:
    return attempt.acknowledged and attempt.read_back


def first_good(attempts: Iterable[Attempt], target: str, since: float) -> Attempt | None:
    """The first transaction that was written and read back at the target."""
    good = (a for a in attempts if _verified(a) and a.address == target and a.done >= since)
    return min(good, key=lambda a: a.done, default=None)


def spans(numbers: Sequence[int]) -> str:
    """``3, 7 to 12`` of numbers; ``none`` of none."""
    if not numbers:
        return "none"
    parts: list[list[int]] = []
    for number in sorted(numbers):
        if parts and number == parts[-1][-1] + 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return ", ".join(str(p[0]) if len(p) == 1 else f"{p[0]} to {p[-1]}" for p in parts)


class Approval(_Model):
    """One person's yes to a failover that they were shown."""

    person: str
    plan: str = Field(description="Digest of the plan that was approved.")
    at: AwareDatetime
    break_glass: str = Field("", description="Why one person's yes must do.")

    def key(self, application: str, environment: str) -> str:
        """Where it is kept: one for each time that a person says yes."""
        who = hashlib.sha256(self.person.strip().casefold().encode()).hexdigest()[:12]
        folder = approvals_of(application, environment, self.plan)
        return f"{folder}/{who}-{self.at.timestamp():.0f}.json"


def approvals_of(application: str, environment: str, plan: str) -> str:
    """Where the approvals of a plan are kept."""
    return f"approvals/{application}/{environment}/{plan}"


def approval_problem(
    approvals: Iterable[Approval], plan: str, now: datetime, max_age: timedelta
) -> str:
    """Why a failover may not begin, in one clause; empty when it may.

    Two different people, or one who gives a reason to do without the second.
    """
    given = list(approvals)
    other = [a.person for a in given if a.plan != plan]
    old = [a.person for a in given if a.plan == plan and now - a.at > max_age]
    young = [a for a in given if a.plan == plan and timedelta(0) <= now - a.at <= max_age]
    people = {a.person.strip().casefold() for a in young}
    if any(a.break_glass.strip() for a in young) or len(people) >= 2:
        return ""
    if len(young) >= 2:
        return f"{young[0].person} approved twice; it takes two different people"
    if young:
        return f"only {young[0].person} approved; it takes two people"
    if old:
        return f"the approval of {' and '.join(sorted(set(old)))} is too old"
    if other:
        return f"{' and '.join(sorted(set(other)))} approved another plan"
    return "nobody has approved"
