"""The journal of one environment: what was about to be done, and what was done.

Entries are numbered from 1 without gaps and each carries the SHA-256 of the bytes of the entry
before it. Appending number N+1 with create-only semantics is the lock: whoever loses the race
must stop before its next side effect. State is a replay; nothing else is trusted.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

GENESIS = "0" * 64


class Kind(StrEnum):
    """What an entry says."""

    REFUSED = "refused"  # ended before any side effect: a failed test, a finding, a bad plan
    STARTED = "started"
    INTENT = "intent"
    DONE = "done"
    STEP_PASSED = "step-passed"
    ABORTING = "aborting"
    TAKEN_OVER = "taken-over"
    FLAG = "flag"  # a feature flag changes; that is no part of a release
    ASKED = "asked"  # a person steers a release under way; it goes on reading
    FINISHED = "finished"


class Outcome(StrEnum):
    """How a release ended."""

    PROMOTED = "PROMOTED"
    ROLLED_BACK = "ROLLED_BACK"
    ROLLBACK_FAILED = "ROLLBACK_FAILED"
    REFUSED = "REFUSED"


class Entry(BaseModel):
    """One line of the journal; its canonical bytes are what is stored and hashed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sequence: int = Field(ge=1)
    previous: str = Field(pattern=r"^[0-9a-f]{64}$")
    at: datetime
    application: str
    environment: str
    release: int = Field(ge=1)
    kind: Kind
    actor: str
    run: str = Field(description="Prefect flow run id, or 'none'.")
    data: Mapping[str, Any] = Field(default_factory=dict)

    def to_bytes(self) -> bytes:
        document = self.model_dump(mode="json")
        return json.dumps(document, sort_keys=True, separators=(",", ":")).encode() + b"\n"

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.to_bytes()).hexdigest()


def next_entry(
    entries: Sequence[Entry],
    *,
    at: datetime,
    application: str,
    environment: str,
    release: int,
    kind: Kind,
    actor: str,
    run: str,
    data: Mapping[str, Any],
) -> Entry:
    """The entry that follows ``entries``."""
    last = entries[-1] if entries else None
    return Entry(
        sequence=last.sequence + 1 if last else 1,
        previous=last.digest if last else GENESIS,
        at=at, application=application, environment=environment, release=release,
        kind=kind, actor=actor, run=run, data=data,
    )  # fmt: skip


@dataclass(frozen=True)
class Break:
    """Where the chain does not hold."""

    sequence: int
    problem: str


def verify(
    raw: Mapping[int, bytes], application: str | None = None, environment: str | None = None
) -> tuple[Break, ...]:
    """Check stored bytes by sequence number: gaps, changed bytes, wrong links.

    With an application and an environment, entries that belong to another are breaks too: a
    whole journal copied over another has an unbroken chain.

    An edited entry shows at its follower, whose ``previous`` no longer fits; the newest entry has
    no follower, so it can only be checked against a head noted elsewhere (``audit verify`` prints
    the head for that reason).
    """
    breaks: list[Break] = []
    previous = GENESIS
    for expected, sequence in enumerate(sorted(raw), start=1):
        if sequence != expected:
            breaks.append(Break(expected, f"missing: the next one stored is {sequence}"))
            return tuple(breaks)
        try:
            entry = Entry.model_validate_json(raw[sequence])
        except ValueError as error:
            breaks.append(Break(sequence, f"not an entry: {str(error).splitlines()[0]}"))
            previous = hashlib.sha256(raw[sequence]).hexdigest()
            continue
        if entry.sequence != sequence:
            breaks.append(Break(sequence, f"says that it is number {entry.sequence}"))
        if entry.previous != previous:
            breaks.append(Break(sequence, "its link does not fit the entry before it"))
        for what, wanted in ((entry.application, application), (entry.environment, environment)):
            if wanted is not None and what != wanted:
                breaks.append(Break(sequence, f"it belongs to {what}, not to {wanted}"))
        if entry.to_bytes() != raw[sequence]:
            breaks.append(Break(sequence, "its bytes are not in canonical form"))
        previous = hashlib.sha256(raw[sequence]).hexdigest()
    return tuple(breaks)


@dataclass(frozen=True)
class Release:
    """One release as its entries tell it."""

    number: int
    version: str
    digest: str
    strategy: str
    actor: str
    run: str
    started_at: datetime
    finished_at: datetime | None
    outcome: Outcome | None
    reason: str
    workloads: Mapping[str, str]
    previous: int | None
    data: Mapping[str, Any]

    @property
    def unfinished(self) -> bool:
        return self.outcome is None


def releases(entries: Iterable[Entry]) -> tuple[Release, ...]:
    """Every release of the environment, oldest first."""
    found: dict[int, Release] = {}
    for entry in entries:
        data = entry.data
        if entry.kind in (Kind.STARTED, Kind.REFUSED):
            refused = entry.kind is Kind.REFUSED
            found[entry.release] = Release(
                number=entry.release,
                version=str(data.get("version", "")),
                digest=str(data.get("digest", "")),
                strategy=str(data.get("strategy", "")),
                actor=entry.actor,
                run=entry.run,
                started_at=entry.at,
                finished_at=entry.at if refused else None,
                outcome=Outcome.REFUSED if refused else None,
                reason=str(data.get("reason", "")),
                workloads=dict(data.get("workloads", {})),
                previous=data.get("previous"),
                data=data,
            )
        elif entry.kind is Kind.FINISHED and entry.release in found:
            known = found[entry.release]
            found[entry.release] = Release(
                **{
                    **known.__dict__,
                    "finished_at": entry.at,
                    "outcome": Outcome(data["outcome"]),
                    "reason": str(data.get("reason", "")),
                    "data": {**known.data, **data},
                }
            )
    return tuple(found[number] for number in sorted(found))


def live(history: Sequence[Release]) -> Release | None:
    """The release that serves by the journal: the newest promoted one."""
    return next((r for r in reversed(history) if r.outcome is Outcome.PROMOTED), None)


def unfinished(history: Sequence[Release]) -> Release | None:
    """The release that started and never finished, if any; there is at most one."""
    return next((r for r in reversed(history) if r.unfinished), None)


def previous_live(history: Sequence[Release]) -> Release | None:
    """What a rollback goes back to: the newest promoted release with other content than live.

    Going back twice returns to where one was: a rollback is itself a promoted release, so the
    one before it is the version that was left.
    """
    current = live(history)
    if current is None:
        return None
    return next(
        (
            r
            for r in reversed(history)
            if r.outcome is Outcome.PROMOTED
            and r.number < current.number
            and r.digest != current.digest
        ),
        None,
    )
