"""A list of events in which no line can be changed, dropped or moved without it showing."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

GENESIS = "0" * 64


class Event(BaseModel):
    """One line; ``previous`` is the SHA-256 of the line before it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    number: int = Field(ge=1)
    previous: str
    at: AwareDatetime
    what: str
    data: Mapping[str, Any] = Field(default_factory=dict)

    @property
    def digest(self) -> str:
        document = self.model_dump(mode="json")
        text = json.dumps(document, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


def chained(events: Sequence[Event], at: Any, what: str, data: Mapping[str, Any]) -> Event:
    """The event that follows these."""
    previous = events[-1].digest if events else GENESIS
    return Event(number=len(events) + 1, previous=previous, at=at, what=what, data=data)


def broken_at(events: Sequence[Event]) -> int | None:
    """The number of the first line that does not fit the one before it; None when all do."""
    previous = GENESIS
    for number, event in enumerate(events, 1):
        if event.number != number or event.previous != previous:
            return number
        previous = event.digest
    return None
