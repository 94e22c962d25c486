"""One line of recovery points at one location: claims, members, manifests and proofs.

A vault trusts nothing that it did not read: a point is complete when both of its manifests are
whole and say the same, and every part that they name is listed with its size.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import IO

import pyrage
from pydantic import ValidationError

from blocks.object_store import AlreadyExists, Content, ObjectStore, Stat, UploadedPart
from blocks.sealing import UNLIMITED, Pace, Progress, damaged, unsealed
from domain.errors import Failed, UsageError
from domain.recovery import (
    Claim,
    Copy,
    CopyState,
    Lineage,
    Manifest,
    Member,
    MemberKind,
    Part,
    Proof,
    Tombstone,
    point_id,
    sequence_of,
)

_READ_BYTES = 1 << 20
_ONE_MANIFEST = "one of the two manifests is missing or damaged; the other one is used"


@dataclass(frozen=True)
class Vault:
    """Where a lineage is kept; ``location`` is the name that people know it by."""

    location: str
    store: ObjectStore
    lineage: Lineage

    # Making a point

    def newest_sequence(self) -> int:
        """Of everything that ever had a number here; 0 when there is nothing.

        Raises:
            Failed: SLP101, the location could not be listed.
        """
        root = self.lineage.root
        folders = ("claims", "points", "tombstones")
        keys = [key for folder in folders for key in self.store.list(f"{root}/{folder}")]
        return max((_sequence(key, root) for key in keys), default=0)

    def claim(self, sequence: int, at: datetime, actor: str, run: str) -> Claim:
        """Take a number.

        Raises:
            AlreadyExists: somebody else has it.
        """
        claim = Claim(sequence=sequence, at=at, actor=actor, run=run)
        self.store.create(self.lineage.claim(sequence), claim.model_dump_json().encode())
        return claim

    def claim_of(self, sequence: int) -> Claim | None:
        content = self.store.read(self.lineage.claim(sequence))
        return Claim.model_validate_json(content) if content else None

    def record(self, point: str, member: Member) -> Member:
        """Say that a member is whole; the first to say so is believed by all."""
        key = self.lineage.record(point, member.kind)
        with contextlib.suppress(AlreadyExists):
            self.store.create(key, member.to_bytes())
        found = self.recorded(point, member.kind)
        assert found is not None
        return found

    def recorded(self, point: str, kind: MemberKind) -> Member | None:
        """A member that an earlier attempt has finished."""
        content = self.store.read(self.lineage.record(point, kind))
        return Member.model_validate_json(content) if content else None

    def commit(self, manifest: Manifest, locked_until: datetime | None = None) -> Manifest:
        """Write both manifests, the twin first: with the second one the point is there.

        Returns:
            The manifest that is there, which may be that of somebody who was first.

        Raises:
            Failed: SLP113, the point was swept meanwhile.
        """
        if self.tombstone_of(manifest.point) is not None:
            raise _given_up(manifest)
        content = manifest.to_bytes()
        for key in (self.lineage.twin(manifest.point), self.lineage.manifest(manifest.point)):
            self._put(key, content, locked_until)
            content = self.store.read(key) or content  # both are of one mind
        if self.tombstone_of(manifest.point) is not None:  # swept between our look and our writing
            raise _given_up(manifest)
        return Manifest.from_bytes(content)

    def _put(self, key: str, content: bytes, locked_until: datetime | None) -> None:
        if self.store.stat(key) is not None:
            return
        upload = self.store.upload(key, locked_until=locked_until)
        upload.put(1, content)
        with contextlib.suppress(AlreadyExists):
            upload.complete(hashlib.sha256(content).hexdigest())

    # Reading points

    def copies(self) -> tuple[Copy, ...]:
        """Every point that has anything here, oldest first; rebuilt from the listing alone.

        Raises:
            Failed: SLP101, the location could not be listed.
        """
        listed = {stat.key: stat for stat in self.store.scan(self.lineage.root)}
        points = defaultdict(list)
        for key in listed:
            if number := _sequence(key, self.lineage.root):
                points[point_id(number)].append(key)
        return tuple(self._copy(point, points[point], listed) for point in sorted(points))

    def copy(self, point: str) -> Copy:
        """One point.

        Raises:
            UsageError: SLP144, there is none of that number here.
        """
        with contextlib.suppress(ValueError):
            point = point_id(sequence_of(point.zfill(8)))
        found = next((c for c in self.copies() if c.point == point), None)
        if found is None:
            raise UsageError(
                "SLP144",
                f"looked for recovery point {point} at {self.location}; it is not there",
                help=f"see `slipway backups {self.lineage.application} --environment "
                f"{self.lineage.environment}`",
            )
        return found

    def prove(self, proof: Proof) -> None:
        with contextlib.suppress(AlreadyExists):
            self.store.create(self.lineage.proof(proof), proof.to_bytes())

    @contextmanager
    def open(self, part: Part) -> Iterator[Content]:
        """The stored bytes, checked against their hash when all of them were read.

        Raises:
            Failed: SLP143, they are missing or are not what the manifest says.
        """
        try:
            with self.store.open(part.key) as content:
                yield Checked(content, part, self._where(part.key))
        except KeyError:
            raise damaged(self._where(part.key), "an object that it needs is missing") from None

    @contextmanager
    def plain(
        self, member: Member, identities: Sequence[pyrage.x25519.Identity]
    ) -> Iterator[IO[bytes]]:
        """What was saved, decrypted and decompressed.

        Raises:
            Failed: SLP142, SLP143; at the latest when all was read.
        """
        assert member.part is not None
        where = self._where(member.part.key)
        with self.open(member.part) as content:
            try:
                with unsealed(content, identities, where, plain_bytes=member.plain_bytes) as plain:
                    yield plain
            except Failed as error:
                if error.code == "SLP142":
                    # A damaged header reads as one for other keys: the hash tells which it is.
                    while content.read(_READ_BYTES):
                        pass
                raise

    def _copy(self, point: str, keys: list[str], listed: Mapping[str, Stat]) -> Copy:
        lineage = self.lineage
        manifest, reason, state = self._manifest(point)
        if manifest is not None and state is CopyState.COMPLETE:
            missing = [p for m in manifest.stored if (p := m.part) and _lacks(p, listed)]
            if missing:
                state = CopyState.DAMAGED
                reason = f"{missing[0].key.rsplit('/', 1)[-1]} is missing or has another size"
        stone = self.tombstone_of(point) if lineage.tombstone(point) in listed else None
        if stone is not None:
            state, reason = CopyState.TOMBSTONED, "expired; it can be brought back until purged"
        claim = self.claim_of(sequence_of(point)) if state is CopyState.PARTIAL else None
        first = listed.get(lineage.manifest(point)) or min(
            (listed[key] for key in keys), key=lambda stat: stat.modified_at
        )
        proofs = [self._proof(k) for k in keys if k.startswith(f"{lineage.proofs(point)}/")]
        return Copy(
            point=point,
            location=self.location,
            state=state,
            reason=reason,
            manifest=manifest,
            proofs=tuple(
                p for p in proofs
                if p and manifest and p.manifest_sha256 == manifest_sha256(manifest)
            ),
            held=self.held(point) if lineage.hold(point) in listed else "",
            stored_at=first.modified_at,
            tombstoned_at=stone.at if stone else None,
            run=claim.run if claim else "",
        )  # fmt: skip

    def _manifest(self, point: str) -> tuple[Manifest | None, str, CopyState]:
        found: list[Manifest] = []
        problems: list[str] = []
        for key in (self.lineage.manifest(point), self.lineage.twin(point)):
            content = self.store.read(key)
            if content is None:
                continue
            try:
                one = Manifest.from_bytes(content)
                self._require_ours(one, point)
                found.append(one)
            except ValueError as error:
                problems.append(f"{key.rsplit('/', 1)[-1]}: {error}")
        if len(found) == 2 and found[0] != found[1]:
            return found[0], "its two manifests say different things", CopyState.DAMAGED
        if not found and problems:
            return None, "; ".join(problems), CopyState.DAMAGED
        if not found or (len(found) == 1 and not problems and not self._is_committed(point)):
            return None, "it was begun and never finished", CopyState.PARTIAL
        return found[0], "" if len(found) == 2 else _ONE_MANIFEST, CopyState.COMPLETE

    def _is_committed(self, point: str) -> bool:
        """The twin alone is one write short of a point."""
        return self.store.stat(self.lineage.manifest(point)) is not None

    def _require_ours(self, manifest: Manifest, point: str) -> None:
        names = Lineage(manifest.application, manifest.environment, manifest.lineage)
        if names != self.lineage or manifest.point != point:
            raise ValueError(f"it belongs to point {manifest.point} of {names.root}")

    def _proof(self, key: str) -> Proof | None:
        """None for a record that cannot be read: it proves nothing."""
        try:
            proof = Proof.model_validate_json(self.store.read(key) or b"")
        except ValidationError:
            return None
        return proof if proof.location == self.location else None

    # Holding, hiding and removing points

    def hold(self, point: str, why: str) -> None:
        """Nothing deletes the point until the hold is taken away; a second hold replaces it."""
        self.store.replace(self.lineage.hold(point), why.encode())

    def unhold(self, point: str) -> None:
        self._remove(self.lineage.hold(point))

    def held(self, point: str) -> str:
        """Why a point is held; empty when it is not. A hold that cannot be read holds."""
        content = self.store.read(self.lineage.hold(point))
        if content is None:
            return ""
        return content.decode(errors="replace").strip() or "held"

    def tombstone_of(self, point: str) -> Tombstone | None:
        content = self.store.read(self.lineage.tombstone(point))
        return Tombstone.model_validate_json(content) if content else None

    def bury(self, stone: Tombstone) -> None:
        """Hide a point; the first tombstone counts."""
        with contextlib.suppress(AlreadyExists):
            self.store.create(
                self.lineage.tombstone(stone.point), stone.model_dump_json(indent=1).encode()
            )

    def unbury(self, point: str) -> None:
        """Bring an expired point back; its objects are all there until it is purged."""
        self._remove(self.lineage.tombstone(point))

    def purge(self, point: str) -> None:
        """Remove everything of a buried point, its manifest first and its tombstone last.

        Killed anywhere in between, it is still buried, and the next one goes on.

        Raises:
            Failed: SLP112, it is held or not buried.
            blocks.object_store.Locked: the store keeps an object until its lock has run out.
        """
        if why := self.held(point):
            raise Failed(
                "SLP112",
                f"point {int(point)} at {self.location} was to be purged and is held: {why}",
                help="nothing of it was removed; take the hold away if it is over",
            )
        if self.tombstone_of(point) is None:
            raise Failed(
                "SLP112",
                f"point {int(point)} at {self.location} was to be purged and is not expired",
                help="somebody has brought it back; nothing of it was removed",
            )
        lineage = self.lineage
        first = (lineage.manifest(point), lineage.twin(point))
        rest = [
            key
            for folder in (lineage.folder(point), lineage.proofs(point))
            for key in self.store.list(folder)
            if key not in first
        ]
        for key in (*first, *rest, lineage.claim(sequence_of(point)), lineage.tombstone(point)):
            self._remove(key)

    def _remove(self, key: str) -> None:
        if there := self.store.stat(key):
            self.store.delete(key, there.version)

    def _where(self, key: str) -> str:
        return f"{self.location}: {key}"


class Checked:
    """Bytes whose end is only reached when their hash and their number are right."""

    def __init__(self, content: Content, part: Part, where: str) -> None:
        self._content, self._part, self._where = content, part, where
        self._sha256, self._count = hashlib.sha256(), 0

    def read(self, size: int = -1, /) -> bytes:
        data = self._content.read(size)
        self._sha256.update(data)
        self._count += len(data)
        if self._count > self._part.bytes or (not data and size != 0):
            self._check()
        return data

    def _check(self) -> None:
        if self._count != self._part.bytes:
            raise damaged(self._where, f"it has {self._count:,} bytes, not {self._part.bytes:,}")
        if self._sha256.hexdigest() != self._part.sha256:
            raise damaged(self._where, "its SHA-256 is not the one in its manifest")


def copy_part(
    source: Vault, target: Vault, part: Part, *, key: str = "",
    locked_until: datetime | None = None, pace: Pace = UNLIMITED,
    progress: Progress = lambda plain, stored: None,
) -> Part:  # fmt: skip
    """Copy stored bytes as they are; goes on where an earlier copy stopped.

    Args:
        key: at the target; by default the same.

    Returns:
        The part at the target.

    Raises:
        Failed: SLP143, the source is damaged: nothing is left under the key.
    """
    copied = part.model_copy(update={"key": key or part.key})
    there = target.store.stat(copied.key)
    if there is not None:
        _require_same(target, there, copied)
        return copied
    upload = target.store.upload(copied.key, locked_until=locked_until)
    done = {one.number: one for one in upload.done}
    sent, number = 0, 0
    with source.open(part) as content:
        while data := _exactly(content, upload.part_bytes):
            number += 1
            if not _is_there(done.get(number), data):
                pace.spend(len(data))
                upload.put(number, data)
            sent += len(data)
            progress(sent, sent)
    if not number:
        upload.put(1, b"")
    try:
        upload.complete(part.sha256)
    except AlreadyExists:
        there = target.store.stat(copied.key)
        assert there is not None
        _require_same(target, there, copied)
    except Failed:
        upload.abort()  # parts of another attempt did not fit: the next one begins anew
        raise
    return copied


def _is_there(part: UploadedPart | None, data: bytes) -> bool:
    """Whether an earlier copy has sent this piece; another one of that number is sent again."""
    if part is None or part.bytes != len(data):
        return False
    return part.sha256 in (None, hashlib.sha256(data).hexdigest())


def _require_same(target: Vault, there: Stat, part: Part) -> None:
    if there.bytes != part.bytes or there.sha256 not in (None, part.sha256):
        raise damaged(
            f"{target.location}: {part.key}",
            f"another object of {there.bytes:,} bytes has its place",
        )


def _exactly(content: Content, size: int) -> bytes:
    """The next ``size`` bytes, fewer only at the end: a read may return less than it was asked."""
    pieces, left = [], size
    while left and (data := content.read(min(left, _READ_BYTES))):
        pieces.append(data)
        left -= len(data)
    return b"".join(pieces)


def _given_up(manifest: Manifest) -> Failed:
    return Failed(
        "SLP113",
        f"point {manifest.sequence} was given up as unfinished before it was committed",
        help="run the backup again; it takes a new number",
    )


def manifest_sha256(manifest: Manifest) -> str:
    return hashlib.sha256(manifest.to_bytes()).hexdigest()


def _lacks(part: Part, listed: Mapping[str, Stat]) -> bool:
    found = listed.get(part.key)
    return found is None or found.bytes != part.bytes


def _sequence(key: str, root: str) -> int:
    """The number of the point that a key belongs to; 0 for the pool and for strangers."""
    kind, _, rest = key.removeprefix(f"{root}/").partition("/")
    if kind not in ("claims", "points", "tombstones", "proofs", "holds"):
        return 0
    try:
        return sequence_of(rest.partition("/")[0].removesuffix(".json"))
    except ValueError:
        return 0
