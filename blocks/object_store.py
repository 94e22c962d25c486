"""Object stores: where the journal, the records, the reports and the backups are kept.

One protocol for a directory, S3 and Google Cloud Storage, small objects and large ones. What all
of them promise is in tests/blocks/test_object_store_contract.py, which runs against each.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol


class AlreadyExists(Exception):
    """A create-only write found the key taken."""


class Changed(Exception):
    """The object is not, or no longer, the version that was named."""


class Locked(Exception):
    """The object may not be deleted yet; says until when."""


@dataclass(frozen=True, slots=True)
class Stat:
    """What a store says of an object without reading it.

    Attributes:
        version: of this content at this key; changes with every write.
        modified_at: by the store's clock, which is a second opinion on ours.
        sha256: in hex where the store keeps one of the whole object, else None.
        locked_until: the store refuses to delete it before that moment.
    """

    key: str
    bytes: int
    version: str
    modified_at: datetime
    sha256: str | None = None
    locked_until: datetime | None = None


@dataclass(frozen=True, slots=True)
class UploadedPart:
    """A part of an unfinished upload that the store already has; numbers start at 1.

    Attributes:
        sha256: in hex, where the store can tell without reading it.
    """

    number: int
    bytes: int
    sha256: str | None = None


class Content(Protocol):
    """The bytes of one object, read from the front."""

    def read(self, size: int = -1, /) -> bytes: ...


class Upload(Protocol):
    """A large object on its way: parts in any order, then ``complete``.

    Nothing is listed under the key before that, and the key is given only to the first.
    """

    part_bytes: int
    """Size of every part but the last."""

    @property
    def done(self) -> tuple[UploadedPart, ...]:
        """Parts that an earlier, unfinished upload of this key left; by number."""
        ...

    def put(self, number: int, content: bytes) -> None:
        """Store one part; storing it again replaces it."""
        ...

    def complete(self, sha256: str) -> Stat:
        """Make the object of parts 1 to n.

        Args:
            sha256: of the whole object, in hex.

        Raises:
            AlreadyExists: the key was taken meanwhile.
            Failed: SLP103, what the store has is not what was sent.
        """
        ...

    def abort(self) -> None:
        """Drop all parts; of an upload that is over, nothing happens."""
        ...


class ObjectStore(Protocol):
    """Objects by key (``a/b/c``).

    Every listing is complete or raises: nobody may take "could not look" for "nothing there".
    """

    def create(self, key: str, content: bytes) -> None:
        """Write a new object, whole or not at all. Raises AlreadyExists."""
        ...

    def replace(self, key: str, content: bytes, *, expected: str | None = None) -> None:
        """Write an object that may be there.

        Args:
            expected: the version that must be there. Raises Changed otherwise.
        """
        ...

    def read(self, key: str) -> bytes | None: ...

    def list(self, prefix: str) -> tuple[str, ...]:
        """Keys under a folder-like prefix, sorted."""
        ...

    def scan(self, prefix: str) -> Iterator[Stat]:
        """The same with what the store says of each, sorted by key; no data is read.

        An empty prefix stands for everything.
        """
        ...

    def stat(self, key: str) -> Stat | None: ...

    def open(
        self, key: str, *, start: int = 0, end: int | None = None
    ) -> AbstractContextManager[Content]:
        """Read an object, or its bytes from ``start`` up to and without ``end``.

        Raises:
            KeyError: there is no such object.
        """
        ...

    def upload(self, key: str, *, locked_until: datetime | None = None) -> Upload:
        """Begin a large object, or go on with the unfinished one of that key.

        Args:
            locked_until: nobody may delete the object before, where the store can promise that.
        """
        ...

    def delete(self, key: str, version: str) -> None:
        """Remove exactly this version; that it is gone already is no error.

        Raises:
            Changed: another version is there. Locked: it may not go yet.
        """
        ...

    def clock(self) -> datetime:
        """The store's own time."""
        ...


def folder_of(prefix: str) -> str:
    """What keys below a prefix begin with: a prefix is a folder, so ``a`` does not find ``ab``."""
    folder = prefix.rstrip("/")
    return f"{folder}/" if folder else ""
