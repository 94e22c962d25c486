"""An object store in memory: versioned, locking, with a clock that tests move."""

from __future__ import annotations

import hashlib
import io
import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from blocks.object_store import (
    AlreadyExists,
    Changed,
    Content,
    Locked,
    Stat,
    UploadedPart,
    folder_of,
)
from domain.errors import Failed


@dataclass(frozen=True)
class Version:
    stat: Stat
    content: bytes


class MemoryStore:
    """As strict as the strictest service: a lock (COMPLIANCE) is never shortened."""

    def __init__(self, now: datetime = datetime(2026, 1, 1, tzinfo=UTC)) -> None:
        self.now = now
        self.objects: dict[str, Version] = {}
        self.uploads: dict[str, dict[int, bytes]] = {}
        self._numbers = itertools.count(1)

    def create(self, key: str, content: bytes) -> None:
        if key in self.objects:
            raise AlreadyExists(key)
        self._write(key, content, None)

    def replace(self, key: str, content: bytes, *, expected: str | None = None) -> None:
        there = self.objects.get(key)
        if expected is not None and (there is None or there.stat.version != expected):
            raise Changed(key)
        self._write(key, content, there.stat.locked_until if there else None)

    def _write(self, key: str, content: bytes, locked_until: datetime | None) -> Stat:
        stat = Stat(
            key=key,
            bytes=len(content),
            version=str(next(self._numbers)),
            modified_at=self.now,
            sha256=hashlib.sha256(content).hexdigest(),
            locked_until=locked_until,
        )
        self.objects[key] = Version(stat, content)
        return stat

    def read(self, key: str) -> bytes | None:
        there = self.objects.get(key)
        return there.content if there else None

    def list(self, prefix: str) -> tuple[str, ...]:
        return tuple(stat.key for stat in self.scan(prefix))

    def scan(self, prefix: str) -> Iterator[Stat]:
        start = folder_of(prefix)
        return iter([self.objects[k].stat for k in sorted(self.objects) if k.startswith(start)])

    def stat(self, key: str) -> Stat | None:
        there = self.objects.get(key)
        return there.stat if there else None

    @contextmanager
    def open(self, key: str, *, start: int = 0, end: int | None = None) -> Iterator[Content]:
        if key not in self.objects:
            raise KeyError(key)
        yield io.BytesIO(self.objects[key].content[start:end])

    def upload(self, key: str, *, locked_until: datetime | None = None) -> MemoryUpload:
        return MemoryUpload(self, key, locked_until)

    def delete(self, key: str, version: str) -> None:
        there = self.objects.get(key)
        if there is None:
            return
        if there.stat.version != version:
            raise Changed(key)
        if there.stat.locked_until and there.stat.locked_until > self.now:
            raise Locked(f"{key} until {there.stat.locked_until}")
        del self.objects[key]

    def clock(self) -> datetime:
        return self.now

    def lock(self, key: str, until: datetime) -> None:
        there = self.objects[key]
        if there.stat.locked_until and until < there.stat.locked_until:
            raise Locked(f"{key}: a lock is never shortened")
        self.objects[key] = Version(replace(there.stat, locked_until=until), there.content)


class MemoryUpload:
    part_bytes = 1 << 16

    def __init__(self, store: MemoryStore, key: str, locked_until: datetime | None) -> None:
        self._store, self._key, self._until = store, key, locked_until

    @property
    def _parts(self) -> dict[int, bytes]:
        return self._store.uploads.setdefault(self._key, {})

    @property
    def done(self) -> tuple[UploadedPart, ...]:
        return tuple(
            UploadedPart(number, len(part), hashlib.sha256(part).hexdigest())
            for number, part in sorted(self._parts.items())
        )

    def put(self, number: int, content: bytes) -> None:
        self._parts[number] = content

    def complete(self, sha256: str) -> Stat:
        content = b"".join(part for _, part in sorted(self._parts.items()))
        if hashlib.sha256(content).hexdigest() != sha256:
            raise Failed("SLP103", f"{self._key} is not what was sent", help="run it again")
        if self._key in self._store.objects:
            raise AlreadyExists(self._key)
        self.abort()
        return self._store._write(self._key, content, self._until)

    def abort(self) -> None:
        self._store.uploads.pop(self._key, None)
