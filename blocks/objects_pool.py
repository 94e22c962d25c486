"""Contents of an application's objects at one location: each once, sealed, named by its SHA-256.

A content counts as there when its record is there: the record has the hash of the stored bytes,
which encryption makes different each time, and is written after them. What a recovery point
needs stands beside its members (``objects.needs``), as hashes alone, so that retention and copies
need no private key.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import IO

import pyrage
from pydantic import ValidationError

from blocks import sealing
from blocks.object_store import AlreadyExists, Stat
from blocks.objects_dump import Open
from blocks.sealing import UNLIMITED, Pace, damaged
from blocks.vault import Vault, copy_part
from domain.recovery import Member, MemberKind

_RECORD = ".json"


@dataclass(frozen=True)
class Pool:
    """The pool of one lineage at one location."""

    vault: Vault

    def contents(self) -> dict[str, datetime]:
        """When each content was stored, by its hash.

        Raises:
            Failed: SLP101, the location could not be listed.
        """
        return {sha256: stat.modified_at for sha256, stat in self._listed(_RECORD).items()}

    def sizes(self) -> dict[str, int]:
        """Stored bytes of each content that has a record, by its hash."""
        stored, records = self._listed(""), self._listed(_RECORD)
        return {sha256: stat.bytes for sha256, stat in stored.items() if sha256 in records}

    def _listed(self, ending: str) -> Mapping[str, Stat]:
        found = {}
        for stat in self.vault.store.scan(self.vault.lineage.pool_root):
            name = stat.key.rpartition("/")[2]
            if name.endswith(_RECORD) == bool(ending):
                found[name.removesuffix(_RECORD)] = stat
        return found

    def put(
        self,
        sha256: str,
        open_content: Open,
        recipients: Sequence[pyrage.x25519.Recipient],
        *,
        locked_until: datetime | None = None,
        pace: Pace = UNLIMITED,
    ) -> None:
        """Store a content that is not there yet; its bytes first, and then that they are there."""
        if self._record(sha256) is not None:
            return
        self._drop_unrecorded(sha256)
        key = self.vault.lineage.pool(sha256)
        with open_content() as content:
            sealed = sealing.seal(content, self.vault.store, key, recipients,
                                  locked_until=locked_until, pace=pace)  # fmt: skip
        self._keep(
            sha256,
            Member(kind=MemberKind.OBJECTS, part=sealed.part, plain_bytes=sealed.plain_bytes),
        )

    def copy_from(
        self,
        source: Pool,
        sha256: str,
        *,
        locked_until: datetime | None = None,
        pace: Pace = UNLIMITED,
    ) -> int:
        """Bring a content here as it is stored there; the bytes that were copied.

        Raises:
            Failed: SLP143, the source does not have it, or not as it was stored.
        """
        if self._record(sha256) is not None:
            return 0
        there = source._record(sha256)
        if there is None or there.part is None:
            raise damaged(source._where(sha256), "a content that the point needs is missing")
        copy_part(source.vault, self.vault, there.part, locked_until=locked_until, pace=pace)
        self._keep(sha256, there)
        return there.part.bytes

    @contextmanager
    def fetch(
        self, sha256: str, identities: Sequence[pyrage.x25519.Identity]
    ) -> Iterator[IO[bytes]]:
        """The plain content.

        Raises:
            KeyError: it is not there. Failed: SLP142, SLP143.
        """
        record = self._record(sha256)
        if record is None:
            raise KeyError(sha256)
        with self.vault.plain(record, identities) as plain:
            yield plain

    def remove(self, sha256: str) -> None:
        """Its record first: killed in between, the bytes are dropped when it is stored again.

        Raises:
            blocks.object_store.Locked: the store keeps it until its lock has run out.
        """
        key = self.vault.lineage.pool(sha256)
        for each in (key + _RECORD, key):
            if there := self.vault.store.stat(each):
                self.vault.store.delete(each, there.version)

    # what points need

    def keep_needs(self, point: str, needed: Iterable[str]) -> None:
        """Before the point is there; an attempt that goes on says it again."""
        content = "\n".join(sorted(needed)).encode()
        self.vault.store.replace(self.vault.lineage.needs(point), content)

    def needs(self, point: str) -> frozenset[str] | None:
        """None when nothing is known, which is not the same as nothing."""
        content = self.vault.store.read(self.vault.lineage.needs(point))
        if content is None:
            return None
        return frozenset(content.decode().split())

    # one content

    def _record(self, sha256: str) -> Member | None:
        content = self.vault.store.read(self.vault.lineage.pool(sha256) + _RECORD)
        if content is None:
            return None
        try:
            return Member.model_validate_json(content)
        except ValidationError as error:
            raise damaged(self._where(sha256), "its record cannot be read") from error

    def _keep(self, sha256: str, record: Member) -> None:
        key = self.vault.lineage.pool(sha256) + _RECORD
        with contextlib.suppress(AlreadyExists):
            self.vault.store.create(key, record.to_bytes())

    def _drop_unrecorded(self, sha256: str) -> None:
        """Bytes whose record was never written: killed in between. Their hash is not known."""
        key = self.vault.lineage.pool(sha256)
        if there := self.vault.store.stat(key):
            self.vault.store.delete(key, there.version)

    def _where(self, sha256: str) -> str:
        return f"{self.vault.location}: {self.vault.lineage.pool(sha256)}"
