"""The index of an application's saved objects, and what has changed since the one before.

An index is text, one JSON value a line, sorted by key (by code points, which is also the order of
UTF-8 bytes, in which S3 and Google Cloud Storage list)::

    {"format": 1, "place": "s3://bucket/prefix"}
    {"key": "a/b.png", "bytes": 12, "version": "...", "modified_at": "...", "sha256": "..."}
    {"objects": 1, "bytes": 12, "sha256": "... of all lines before"}

Everything here takes and gives iterators: 100,000 objects need no more memory than two.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, Generic, Protocol, TypeVar

LONGEST_LINE_BYTES = 1 << 20
_SHA256 = re.compile(r"[0-9a-f]{64}", re.ASCII)


class BadIndex(ValueError):
    """The index is cut, damaged, out of order or not understood; says what was met."""


class Seen(Protocol):
    """What a store says of an object without reading it."""

    @property
    def key(self) -> str: ...
    @property
    def bytes(self) -> int: ...
    @property
    def version(self) -> str: ...
    @property
    def modified_at(self) -> datetime: ...


@dataclass(frozen=True, slots=True)
class Saved:
    """One object of a recovery point.

    Attributes:
        version, modified_at: as the application's store said; they tell whether it changed.
        sha256: of its content, in hex; the content is in the pool under that name.
    """

    key: str
    bytes: int
    version: str
    modified_at: datetime
    sha256: str

    def is_still(self, seen: Seen) -> bool:
        """Nothing that the store says of it has changed, so its content need not be read.

        The version alone would do; size and time guard against a store that reuses versions.
        """
        return (self.key, self.bytes, self.version, self.modified_at) == (
            seen.key, seen.bytes, seen.version, seen.modified_at
        )  # fmt: skip


class IndexWriter:
    """Makes the lines of an index, and counts.

    Args:
        place: which store and prefix it is of. Versions of another store mean nothing.
    """

    def __init__(self, place: str) -> None:
        self._place, self._hash, self._last = place, hashlib.sha256(), ""
        self._content = hashlib.sha256()
        self.objects, self.bytes = 0, 0

    def begin(self) -> bytes:
        return self._told(_line({"format": 1, "place": self._place}))

    def add(self, saved: Saved) -> bytes:
        """Raises BadIndex when it does not come after the one before."""
        _check_order(self._last, saved.key, first=self.objects == 0)
        self._last = saved.key
        self.objects += 1
        self.bytes += saved.bytes
        self._content.update(_line([saved.key, saved.sha256]))
        return self._told(_saved_line(saved))

    def end(self) -> bytes:
        total = {"objects": self.objects, "bytes": self.bytes, "sha256": self._hash.hexdigest()}
        return _line(total)

    @property
    def digest(self) -> str:
        """SHA-256 of all keys with their contents' hashes: the same for any copy of them."""
        return self._content.hexdigest()

    def _told(self, line: bytes) -> bytes:
        self._hash.update(line)
        return line


class IndexReader:
    """An index under way; iterate over it once.

    Args:
        chunks: its bytes, in pieces of any size.

    Raises:
        BadIndex: at once for a wrong first line; while iterating for a wrong line; at the end
            for an index that is cut or altered. Whoever reads it to the end knows it is whole.
    """

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._lines, self._hash = _lines(chunks), hashlib.sha256()
        first = self._next()
        if not isinstance(first, dict) or first.get("format") != 1 or "place" not in first:
            raise BadIndex("it does not begin as an index does")
        self.place = str(first["place"])

    def __iter__(self) -> Iterator[Saved]:
        objects, size, last = 0, 0, ""
        while True:
            before = self._hash.hexdigest()
            said = self._next()
            if isinstance(said, dict) and "objects" in said:
                if said != {"objects": objects, "bytes": size, "sha256": before}:
                    raise BadIndex("its content is not what its last line says")
                break
            saved = _saved(said)
            _check_order(last, saved.key, first=objects == 0)
            objects, size, last = objects + 1, size + saved.bytes, saved.key
            yield saved
        if next(self._lines, None) is not None:
            raise BadIndex("something follows after its last line")

    def _next(self) -> Any:
        line = next(self._lines, None)
        if line is None:
            raise BadIndex("it is cut short")
        self._hash.update(line)
        try:
            return json.loads(line)
        except ValueError as error:
            raise BadIndex(f"a line is no JSON: {line[:80]!r}") from error


class ChangeKind(StrEnum):
    UNCHANGED = "unchanged"
    NEW = "new"
    CHANGED = "changed"
    DELETED = "deleted"


S = TypeVar("S", bound=Seen)


@dataclass(frozen=True, slots=True)
class Change(Generic[S]):
    """What became of one key.

    Attributes:
        saved: as the index before has it.
        seen: as the store has it now.
    """

    kind: ChangeKind
    saved: Saved | None
    seen: S | None


def changes(before: Iterable[Saved], now: Iterable[S]) -> Iterator[Change[S]]:
    """Both sorted by key, joined; each is read exactly to its end.

    Raises:
        BadIndex: one of them is not in order, so that keys could be missed.
    """
    olds, news = _ascending(before), _ascending(now)
    old, new = next(olds, None), next(news, None)
    while old is not None or new is not None:
        if new is None or (old is not None and old.key < new.key):
            yield Change(ChangeKind.DELETED, old, None)
            old = next(olds, None)
        elif old is None or new.key < old.key:
            yield Change(ChangeKind.NEW, None, new)
            new = next(news, None)
        else:
            same = ChangeKind.UNCHANGED if old.is_still(new) else ChangeKind.CHANGED
            yield Change(same, old, new)
            old, new = next(olds, None), next(news, None)


def _ascending(items: Iterable[S]) -> Iterator[S]:
    last: str | None = None
    for item in items:
        _check_order(last or "", item.key, first=last is None)
        last = item.key
        yield item


def _check_order(last: str, key: str, *, first: bool) -> None:
    if not first and key <= last:
        raise BadIndex(f"{key!r} does not come after {last!r}")


def _line(content: object) -> bytes:
    return json.dumps(content, separators=(",", ":")).encode() + b"\n"


def _saved_line(saved: Saved) -> bytes:
    return _line(
        {
            "key": saved.key,
            "bytes": saved.bytes,
            "version": saved.version,
            "modified_at": saved.modified_at.isoformat(),
            "sha256": saved.sha256,
        }
    )


def _lines(chunks: Iterable[bytes]) -> Iterator[bytes]:
    rest = b""
    for chunk in chunks:
        *whole, rest = (rest + chunk).split(b"\n")
        yield from (line + b"\n" for line in whole)
        if len(rest) > LONGEST_LINE_BYTES:
            raise BadIndex("a line has no end")
    if rest:
        raise BadIndex("its last line is cut")


def _saved(said: Any) -> Saved:
    try:
        saved = Saved(
            said["key"], said["bytes"], said["version"],
            datetime.fromisoformat(said["modified_at"]), said["sha256"],
        )  # fmt: skip
        whole = len(said) == 5 and all(isinstance(text, str) for text in (saved.key, saved.version))
        if not whole or type(saved.bytes) is not int or saved.bytes < 0:
            raise ValueError("a field is of another type")
        if saved.modified_at.tzinfo is None or not _SHA256.fullmatch(saved.sha256):
            raise ValueError("a time has no zone, or a hash is none")
    except (KeyError, TypeError, ValueError) as error:
        raise BadIndex(f"a line is no object: {error}") from error
    return saved
