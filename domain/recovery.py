"""Recovery points: what was saved together, what a manifest says of it, and how far it is proved.

A point is whatever its manifest says; a point without one does not exist. The manifest is
written last and removed first, so that no crash leaves half a point that looks whole.

Layout at every location, below ``backups/APPLICATION/ENVIRONMENT/LINEAGE/``::

    claims/00000042.json            who makes point 42; create-only, so two cannot
    points/00000042/manifest.json   the commit mark, and ``manifest.twin.json`` with the same bytes
    points/00000042/postgres.age    one object for each member
    points/00000042/postgres.json   that this member is whole, for a run that goes on after a crash
    pool/ab/ab12...                 contents of the application's objects, shared between points
    proofs/00000042/TIME-RUN.json   one record for each climb of the ladder at this location
    holds/00000042.json             never delete, with name and reason
    tombstones/00000042.json        deleted logically, purged after the grace period
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import IntEnum, StrEnum
from typing import Annotated, Any, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from domain.verdict import Verdict

MAIN = "main"
"""The lineage of a database that was never restored."""


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class MemberKind(StrEnum):
    """What a recovery point may hold; every point says of each whether and why not."""

    POSTGRES = "postgres"
    GLOBALS = "globals"
    OBJECTS = "objects"
    REDIS = "redis"
    KUBERNETES = "kubernetes"
    SECRETS = "secrets"
    RDS = "rds"


class Rung(IntEnum):
    """The proof ladder: each rung says more than the one below, and none is climbed without it."""

    UPLOADED = 1
    READ_BACK = 2
    PARSED = 3
    RESTORED = 4
    CONTENT_HASHED = 5
    PROBED = 6

    @property
    def label(self) -> str:
        return self.name.lower()


class Facts(_Model):
    """What a member's source knows once its stream has ended.

    Attributes:
        data_time: the moment whose state was saved. Of a pg_dump that is its *start*.
        tools: programs and servers by name, with versions.
        inventory: what a restored copy must have again; compared, never trusted.
    """

    data_time: AwareDatetime
    tools: Mapping[str, str] = {}
    inventory: Mapping[str, Any] = {}


class Part(_Model):
    """One stored object: the key below the lineage, and the hash of its stored bytes."""

    key: str = Field(min_length=1)
    bytes: int = Field(ge=0)
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Member(_Model):
    """One member of a point: stored with its facts, or skipped with the reason.

    Attributes:
        plain_bytes: before compression and encryption.
    """

    kind: MemberKind
    part: Part | None = None
    plain_bytes: int = Field(0, ge=0)
    facts: Facts | None = None
    skipped: str = Field("", description="Why there is none; empty for a stored member.")

    @property
    def is_stored(self) -> bool:
        return self.part is not None and self.facts is not None

    def to_bytes(self) -> bytes:
        return self.model_dump_json(indent=1).encode()


class Tombstone(_Model):
    """That a point has expired: hidden, and purged after the grace period."""

    point: str
    at: AwareDatetime
    plan: str
    reason: str


class Claim(_Model):
    """Who makes a point; nobody else may use its number."""

    sequence: int = Field(ge=1)
    at: AwareDatetime
    actor: str
    run: str


class Manifest(_Model):
    """What a recovery point holds. Without it there is no point.

    Attributes:
        version, release, digest: what was live when it was made.
        recipients: public age keys by name; each of them alone opens every member.
        heartbeat: sequence of the row that was written right before the dump.
    """

    format: Literal[1] = 1
    application: str
    environment: str
    lineage: str
    sequence: int = Field(ge=1)
    started_at: AwareDatetime
    finished_at: AwareDatetime
    version: str
    release: int
    digest: str
    members: tuple[Member, ...] = Field(min_length=1)
    recipients: Mapping[str, str] = Field(min_length=1)
    heartbeat: int | None = None
    actor: str
    run: str

    @property
    def point(self) -> str:
        return point_id(self.sequence)

    @property
    def stored(self) -> tuple[Member, ...]:
        return tuple(m for m in self.members if m.is_stored)

    @property
    def data_time(self) -> datetime:
        """The oldest of its members': what the whole point can bring back."""
        return min(self._times, default=self.started_at)

    @property
    def skew(self) -> timedelta:
        """Between the oldest and the newest member."""
        return max(self._times, default=self.started_at) - self.data_time

    @property
    def _times(self) -> list[datetime]:
        return [m.facts.data_time for m in self.stored if m.facts is not None]

    @property
    def stored_bytes(self) -> int:
        return sum(m.part.bytes for m in self.members if m.part)

    def member(self, kind: MemberKind) -> Member | None:
        return next((m for m in self.stored if m.kind is kind), None)

    def to_bytes(self) -> bytes:
        """With the hash of itself, so that a damaged manifest is no manifest."""
        content = self.model_dump(mode="json")
        return json.dumps({"manifest": content, "sha256": _sha256(content)}, indent=1).encode()

    @classmethod
    def from_bytes(cls, content: bytes) -> Manifest:
        """Raises ValueError with a sentence for anything but what ``to_bytes`` wrote."""
        try:
            raw = json.loads(content)
            body, said = raw["manifest"], raw["sha256"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError("it is cut or is no manifest") from error
        if set(raw) != {"manifest", "sha256"} or said != _sha256(body):
            raise ValueError("its own hash does not fit its content")
        try:
            return cls.model_validate(body)
        except ValidationError as error:
            raise ValueError(f"its content is not understood: {error.errors()[0]}") from error


def _sha256(content: object) -> str:
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


class RungResult(_Model):
    """One rung of the ladder at one climb."""

    rung: Rung
    verdict: Verdict
    reason: str = Field(description="One sentence: what was compared and what was seen.")
    seconds: float = Field(0.0, ge=0)


class TwinResult(_Model):
    """A damaged copy given to the verifier, which must not pass it."""

    name: str
    caught: bool
    reason: str


class Proof(_Model):
    """One climb of the ladder by the copy at one location.

    Attributes:
        manifest_sha256: of the manifest that was read; a proof of another one proves nothing.
        restore_seconds: from the first byte read to a database that answers (feeds RTA).
        lost_seconds: from the newest heartbeat found to the data time claimed (feeds RPA).
    """

    application: str
    environment: str
    lineage: str
    point: str
    location: str
    manifest_sha256: str
    at: AwareDatetime
    run: str
    rungs: tuple[RungResult, ...]
    twins: tuple[TwinResult, ...] = ()
    restore_seconds: float | None = None
    lost_seconds: float | None = None

    @property
    def reached(self) -> Rung | None:
        """The highest rung that it and every rung below it passed.

        A verifier that passed a damaged twin is not believed in anything.
        """
        if any(not twin.caught for twin in self.twins):
            return None
        verdicts = {r.rung: r.verdict for r in self.rungs}
        top = None
        for rung in Rung:
            if verdicts.get(rung) is not Verdict.PASS:
                break
            top = rung
        return top

    def proves(self, needed: Rung) -> bool:
        return self.reached is not None and self.reached >= needed

    def to_bytes(self) -> bytes:
        return self.model_dump_json(indent=1).encode()


class CopyState(StrEnum):
    """What one location has of one point."""

    COMPLETE = "complete"
    PARTIAL = "partial"
    """Claimed or begun, without a manifest: not a backup."""
    DAMAGED = "damaged"
    """A manifest that cannot be read, differs from its twin, or lacks a part."""
    TOMBSTONED = "tombstoned"


@dataclass(frozen=True, slots=True)
class Copy:
    """One recovery point at one location.

    Attributes:
        stored_at: by the store's clock: of the manifest, else of the first thing that is there.
        run: that claimed it, as far as it is known.
    """

    point: str
    location: str
    state: CopyState
    reason: str = ""
    manifest: Manifest | None = None
    proofs: tuple[Proof, ...] = ()
    held: str = ""
    stored_at: datetime | None = None
    tombstoned_at: datetime | None = None
    run: str = ""

    def proved(self, needed: Rung) -> Proof | None:
        """The newest climb that reached ``needed``; only of the manifest that is there now."""
        if self.state is not CopyState.COMPLETE:
            return None
        fits = [p for p in self.proofs if p.proves(needed)]
        return max(fits, key=lambda p: p.at, default=None)

    @property
    def reached(self) -> Rung | None:
        if self.state is not CopyState.COMPLETE:
            return None
        return max((p.reached for p in self.proofs if p.reached), default=Rung.UPLOADED)


def proved_copies(copies: Iterable[Copy], needed: Rung) -> list[Copy]:
    """The copies to restore from, the best first: newest data, then the most recently proved."""
    fits = [(c.manifest.data_time, p.at, c.location, c) for c in copies
            if c.manifest and (p := c.proved(needed))]  # fmt: skip
    return [fit[-1] for fit in sorted(fits, key=lambda f: f[:3], reverse=True)]


def newest_proved(copies: Iterable[Copy], needed: Rung) -> Copy | None:
    """The first of ``proved_copies``."""
    return next(iter(proved_copies(copies, needed)), None)


@dataclass(frozen=True, slots=True)
class Lineage:
    """One line of recovery points, and its keys at every location.

    A restored system gets a lineage of its own, so that it cannot write into production's
    (plugin-barman-cloud#263).
    """

    application: str
    environment: str
    name: str = MAIN

    @property
    def root(self) -> str:
        return f"backups/{self.application}/{self.environment}/{self.name}"

    def claim(self, sequence: int) -> str:
        return f"{self.root}/claims/{point_id(sequence)}.json"

    def folder(self, point: str) -> str:
        return f"{self.root}/points/{point}"

    def manifest(self, point: str) -> str:
        return f"{self.folder(point)}/manifest.json"

    def twin(self, point: str) -> str:
        return f"{self.folder(point)}/manifest.twin.json"

    def member(self, point: str, kind: MemberKind) -> str:
        """Of the stored bytes."""
        return f"{self.folder(point)}/{kind}.age"

    def record(self, point: str, kind: MemberKind) -> str:
        """That the member is whole."""
        return f"{self.folder(point)}/{kind}.json"

    @property
    def pool_root(self) -> str:
        return f"{self.root}/pool"

    def pool(self, sha256: str) -> str:
        return f"{self.pool_root}/{sha256[:2]}/{sha256}"

    def needs(self, point: str) -> str:
        """Hashes of the contents in the pool that a point cannot do without."""
        return f"{self.folder(point)}/objects.needs"

    def proofs(self, point: str) -> str:
        return f"{self.root}/proofs/{point}"

    def proof(self, proof: Proof) -> str:
        return f"{self.proofs(proof.point)}/{proof.at:%Y%m%dT%H%M%S%fZ}-{proof.run[:8]}.json"

    def hold(self, point: str) -> str:
        return f"{self.root}/holds/{point}.json"

    def tombstone(self, point: str) -> str:
        return f"{self.root}/tombstones/{point}.json"


def point_id(sequence: int) -> str:
    return f"{sequence:08d}"


def sequence_of(point: str) -> int:
    """Raises ValueError for anything but the eight digits of a point."""
    if not re.fullmatch(r"\d{8}", point, re.ASCII):
        raise ValueError(f"{point!r} is not the number of a recovery point")
    return int(point)
