"""Load profiles: how many users, or how many arrivals a second, over which time.

A profile is data. In the closed model there is a number of users, each of whom pauses for an
exponential time between what he does; in the open model arrivals come at a rate, whatever the
server does (Schroeder, Wierman, Harchol-Balter: "Open versus closed", NSDI 2006). Both arrive
independently of each other, which is what makes the result one of the server and not of the
generator (docs/load.md).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from enum import StrEnum
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

LONGEST_SECONDS = 24 * 3600.0
MOST_USERS = 200_000


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Model(StrEnum):
    """What the load is made of."""

    CLOSED = "closed"
    """A number of users, each of whom waits for his answer and then pauses."""
    OPEN = "open"
    """Arrivals at absolute due times; a slow server does not slow them down."""


class Phase(_Model):
    """A stretch of time in which the load goes evenly from one level to another.

    Attributes:
        start: users (closed) or arrivals a second (open) at its beginning.
        end: the same at its end.
        judged: limits hold in it; what warms up, or breaks on purpose, is only shown.
    """

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]{0,29}$")]
    seconds: Annotated[float, Field(gt=0, le=LONGEST_SECONDS)]
    start: Annotated[float, Field(ge=0, le=MOST_USERS)]
    end: Annotated[float, Field(ge=0, le=MOST_USERS)]
    judged: bool = False

    @property
    def steady(self) -> bool:
        return self.start == self.end


class Profile(_Model):
    """One load, in the order of its phases.

    Attributes:
        pause_seconds: mean of the exponential pause of a user.
        timeout_seconds: a request without an answer by then has failed, and counts as one of at
            least that length.
    """

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,29}$")]
    description: str
    model: Model = Model.CLOSED
    pause_seconds: Annotated[float, Field(gt=0, le=3600)] = 10.0
    timeout_seconds: Annotated[float, Field(gt=0, le=120)] = 10.0
    phases: Annotated[tuple[Phase, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _whole(self) -> Profile:
        names = [phase.name for phase in self.phases]
        if len(set(names)) < len(names):
            raise ValueError("two phases have the same name")
        if not any(phase.judged for phase in self.phases):
            raise ValueError("no phase is judged, so there could be no verdict")
        if self.peak < 1:
            raise ValueError("it has no users at any time")
        return self

    @property
    def seconds(self) -> float:
        return sum(phase.seconds for phase in self.phases)

    @property
    def peak(self) -> float:
        """The most users, or the most arrivals a second."""
        return max(max(phase.start, phase.end) for phase in self.phases)

    def spans(self) -> Iterator[tuple[Phase, float, float]]:
        """Each phase with the seconds from the start at which it begins and ends."""
        at = 0.0
        for phase in self.phases:
            yield phase, at, at + phase.seconds
            at += phase.seconds

    def phase_at(self, seconds: float) -> Phase:
        """The phase of a moment; the first before the start, the last after the end."""
        for phase, _, end in self.spans():
            if seconds < end:
                return phase
        return self.phases[-1]

    def level_at(self, seconds: float) -> float:
        """Users, or arrivals a second, at a moment."""
        for phase, begin, end in self.spans():
            if seconds < end:
                share = max(0.0, seconds - begin) / phase.seconds
                return phase.start + (phase.end - phase.start) * share
        return self.phases[-1].end

    def presence(self, rank: float) -> list[tuple[float, float]]:
        """When the user of a rank is there: he comes when more than ``rank`` users are wanted.

        Args:
            rank: 0 for the first user; fractions spread the users of several workers evenly.

        Returns:
            Seconds from the start, begin and end of each stay, ascending.
        """
        stays: list[tuple[float, float]] = []
        for phase, begin, end in self.spans():
            stay = _above(phase, begin, end, rank)
            if stay is None:
                continue
            if stays and math.isclose(stays[-1][1], stay[0]):
                stays[-1] = (stays[-1][0], stay[1])
            else:
                stays.append(stay)
        return stays

    def expected_rate(self) -> float:
        """The most things done a second, were the server infinitely fast."""
        return self.peak if self.model is Model.OPEN else self.peak / self.pause_seconds

    def scaled(self, users: float, name: str | None = None) -> Profile:
        """The same shape with another peak."""
        factor = users / self.peak
        phases = tuple(
            {**dict(phase), "start": phase.start * factor, "end": phase.end * factor}
            for phase in self.phases
        )
        return Profile.model_validate({**dict(self), "phases": phases, "name": name or self.name})


def _above(phase: Phase, begin: float, end: float, rank: float) -> tuple[float, float] | None:
    """The part of a phase in which its level is above ``rank``."""
    if phase.steady:
        return (begin, end) if phase.start > rank else None
    crossing = begin + phase.seconds * (rank - phase.start) / (phase.end - phase.start)
    low, high = (crossing, end) if phase.end > phase.start else (begin, crossing)
    low, high = max(low, begin), min(high, end)
    return (low, high) if high > low else None


def ramp(users: float, ramp_seconds: float, steady_seconds: float, **more: object) -> Profile:
    """Up evenly, a while to settle, and then what is judged."""
    return Profile.model_validate(
        {
            "phases": (
                Phase(name="ramp", seconds=ramp_seconds, start=0, end=users),
                Phase(name="settle", seconds=max(2.0, ramp_seconds / 3), start=users, end=users),
                Phase(name="steady", seconds=steady_seconds, start=users, end=users, judged=True),
            ),
            **more,
        }
    )


def approach(
    users: float, users_a_second: float, pause_seconds: float, steady_seconds: float, **more: object
) -> Profile:
    """Up quickly and then ever more slowly, so that coming is hardly a load of its own.

    Whoever comes does something at once, besides what those do who are there. 16,000 users with a
    pause of 10 s who come 250 a second ask on their way for 1,850 things a second, where 1,600 are
    meant: a queue that grew on the way was taken for the server's. Here it is never more than an
    eighth above what is meant.
    """
    rate = min(users_a_second, users / (2 * pause_seconds))
    fast, slower = users - rate * pause_seconds, users - rate / 2 * pause_seconds
    return Profile.model_validate(
        {
            "phases": (
                Phase(name="ramp", seconds=fast / rate, start=0, end=fast),
                Phase(name="slower", seconds=pause_seconds, start=fast, end=slower),
                Phase(name="slowest", seconds=2 * pause_seconds, start=slower, end=users),
                Phase(name="settle", seconds=max(2.0, pause_seconds / 2), start=users, end=users),
                Phase(name="steady", seconds=steady_seconds, start=users, end=users, judged=True),
            ),
            "pause_seconds": pause_seconds,
            **more,
        }
    )


PROFILES: dict[str, Profile] = {
    profile.name: profile
    for profile in (
        ramp(50, 3, 20, name="smoke", pause_seconds=0.15,
             description="50 quick users for 20 seconds: does it answer under load at all?"),
        ramp(500, 15, 120, name="baseline", pause_seconds=5,
             description="500 users for two minutes: what later versions are compared with."),
        ramp(10_000, 45, 60, name="10k",
             description="10,000 users, one thing each every 10 seconds, for a minute."),
        Profile(
            name="spike",
            description="1,000 users, then 5,000 within five seconds, then 1,000 again.",
            phases=(
                Phase(name="ramp", seconds=15, start=0, end=1000),
                Phase(name="before", seconds=30, start=1000, end=1000, judged=True),
                Phase(name="rise", seconds=5, start=1000, end=5000),
                Phase(name="spike", seconds=30, start=5000, end=5000, judged=True),
                Phase(name="fall", seconds=5, start=5000, end=1000),
                Phase(name="after", seconds=30, start=1000, end=1000, judged=True),
            ),
        ),
        ramp(2000, 60, 2 * 3600, name="soak",
             description="2,000 users for two hours: what leaks, and what fills up?"),
        ramp(4000, 10, 20, name="breakpoint",
             description="The step that the search for the limit repeats with other numbers."),
        ramp(100, 5, 60, name="open", model=Model.OPEN,
             description="100 arrivals a second for a minute, whatever the server does."),
    )
}  # fmt: skip

ProfileName = Literal["smoke", "baseline", "10k", "spike", "soak", "breakpoint", "open"]
