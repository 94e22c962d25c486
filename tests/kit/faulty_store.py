"""A store that fails as a script says: errors, lost answers, damage, stale lists, kills.

The shape is that of kopia's ``FaultyStorage``: each call asks the script by its name and count.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum, auto
from typing import TypeVar

from blocks.object_store import Content, ObjectStore, Stat, Upload, UploadedPart
from domain.errors import Failed

T = TypeVar("T")


class Fault(Enum):
    ERROR = auto()
    """Nothing is done, and the caller is told."""
    LOST_ANSWER = auto()
    """It is done, and the caller is told that it failed."""
    CORRUPT = auto()
    """A byte of what is read or written is another one."""
    STALE_LIST = auto()
    """A listing does not show the newest object."""
    KILL = auto()
    """The process ends before it is done."""
    KILL_AFTER = auto()
    """The process ends after it is done."""


class Killed(BaseException):
    """What SIGKILL looks like to code that cannot catch it."""


@dataclass
class FaultyStore:
    """``script(call, number)`` names the fault of the number-th call of all; None for none."""

    inner: ObjectStore
    script: Callable[[str, int], Fault | None] = lambda call, number: None
    calls: list[str] = field(default_factory=list)

    def _do(self, call: str, act: Callable[[], T]) -> T:
        fault = self._next(call)
        if fault is Fault.KILL:
            raise Killed(call)
        if fault is Fault.ERROR:
            raise _error(call)
        try:
            result = act()
        finally:
            if fault is Fault.KILL_AFTER:
                raise Killed(call)
        if fault is Fault.LOST_ANSWER:
            raise _error(call)
        return result

    def _next(self, call: str) -> Fault | None:
        self.calls.append(call)
        return self.script(call, len(self.calls))

    def create(self, key: str, content: bytes) -> None:
        self._do("create", lambda: self.inner.create(key, content))

    def replace(self, key: str, content: bytes, *, expected: str | None = None) -> None:
        self._do("replace", lambda: self.inner.replace(key, content, expected=expected))

    def read(self, key: str) -> bytes | None:
        return self._do("read", lambda: self.inner.read(key))

    def list(self, prefix: str) -> tuple[str, ...]:
        return tuple(stat.key for stat in self.scan(prefix))

    def scan(self, prefix: str) -> Iterator[Stat]:
        fault = self._next("scan")
        if fault is Fault.KILL:
            raise Killed("scan")
        if fault is Fault.ERROR:
            raise Failed("SLP101", "the listing was cut", help="run it again")
        if fault is Fault.LOST_ANSWER:
            raise _error("scan")
        found = list(self.inner.scan(prefix))
        if fault is Fault.STALE_LIST and found:
            newest = max(found, key=lambda stat: stat.modified_at)
            found.remove(newest)
        if fault is Fault.KILL_AFTER:
            raise Killed("scan")
        return iter(found)

    def stat(self, key: str) -> Stat | None:
        return self._do("stat", lambda: self.inner.stat(key))

    @contextmanager
    def open(self, key: str, *, start: int = 0, end: int | None = None) -> Iterator[Content]:
        fault = self._next("open")
        if fault is Fault.KILL:
            raise Killed("open")
        if fault in (Fault.ERROR, Fault.LOST_ANSWER):
            raise _error("open")
        if fault is Fault.KILL_AFTER:
            raise Killed("open")
        with self.inner.open(key, start=start, end=end) as content:
            yield _Corrupt(content) if fault is Fault.CORRUPT else content

    def upload(self, key: str, *, locked_until: datetime | None = None) -> Upload:
        return FaultyUpload(self, self.inner.upload(key, locked_until=locked_until))

    def delete(self, key: str, version: str) -> None:
        self._do("delete", lambda: self.inner.delete(key, version))

    def clock(self) -> datetime:
        return self._do("clock", self.inner.clock)


class FaultyUpload:
    def __init__(self, store: FaultyStore, inner: Upload) -> None:
        self._store, self._inner = store, inner
        self.part_bytes = inner.part_bytes

    @property
    def done(self) -> tuple[UploadedPart, ...]:
        return self._inner.done

    def put(self, number: int, content: bytes) -> None:
        self._store._do("put", lambda: self._inner.put(number, content))

    def complete(self, sha256: str) -> Stat:
        return self._store._do("complete", lambda: self._inner.complete(sha256))

    def abort(self) -> None:
        self._store._do("abort", self._inner.abort)


class _Corrupt:
    """The first byte that is read is another one."""

    def __init__(self, content: Content) -> None:
        self._content, self._done = content, False

    def read(self, size: int = -1, /) -> bytes:
        data = self._content.read(size)
        if data and not self._done:
            self._done = True
            return bytes([data[0] ^ 1]) + data[1:]
        return data


def _error(call: str) -> Failed:
    return Failed("SLP104", f"{call}: the store does not answer", help="run it again")
