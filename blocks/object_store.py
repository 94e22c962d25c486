"""Object stores: where the journal, artifacts' records and reports are kept."""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path
from typing import Protocol

from domain.errors import Failed, SlipwayError, UsageError

_FULL = (errno.ENOSPC, errno.EDQUOT)


class AlreadyExists(Exception):
    """A create-only write found the key taken."""


class ObjectStore(Protocol):
    """Small objects by key (``a/b/c``); a listing is complete or raises."""

    def create(self, key: str, content: bytes) -> None:
        """Write a new object, whole or not at all. Raises AlreadyExists."""
        ...

    def replace(self, key: str, content: bytes) -> None: ...

    def read(self, key: str) -> bytes | None: ...

    def list(self, prefix: str) -> tuple[str, ...]:
        """Keys under a folder-like prefix, sorted."""
        ...


class FileStore:
    """An object store in a local directory."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def create(self, key: str, content: bytes) -> None:
        """``link`` gives the name only to a complete file, and to the first who asks for it.

        O_EXCL alone would leave an empty entry under the final name after a crash in between.
        """
        target = self._path(key)
        temporary = self._written(target, content)
        try:
            os.link(temporary, target)
        except FileExistsError:
            raise AlreadyExists(key) from None
        except OSError as error:
            raise self._refused(target, error) from error
        finally:
            temporary.unlink(missing_ok=True)
        _sync_directory(target.parent)

    def replace(self, key: str, content: bytes) -> None:
        target = self._path(key)
        self._written(target, content).replace(target)
        _sync_directory(target.parent)

    def read(self, key: str) -> bytes | None:
        try:
            return self._path(key).read_bytes()
        except FileNotFoundError:
            return None

    def list(self, prefix: str) -> tuple[str, ...]:
        folder = self._path(prefix)
        if not folder.exists():
            return ()
        found = (p for p in folder.rglob("*") if p.is_file() and not p.name.startswith(".tmp-"))
        return tuple(sorted(p.relative_to(self.root).as_posix() for p in found))

    def _path(self, key: str) -> Path:
        path = (self.root / key).resolve()
        if not path.is_relative_to(self.root.resolve()):
            raise ValueError(f"key {key!r} leaves the store")
        return path

    def _written(self, target: Path, content: bytes) -> Path:
        """A synced temporary file beside ``target``."""
        temporary = None
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(prefix=".tmp-", dir=target.parent)
            temporary = Path(name)
            with os.fdopen(handle, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            if temporary:
                temporary.unlink(missing_ok=True)
            raise self._refused(target, error) from error
        return temporary

    def _refused(self, target: Path, error: OSError) -> SlipwayError:
        tried = f"tried to write {target}: {(error.strerror or str(error)).lower()}"
        if error.errno in _FULL:
            help = "free some space on that disk and run it again"
            return Failed("SLP015", tried, help=help, where=str(self.root))
        help = "make the folder writable for who runs the flows, and run it again"
        return UsageError("SLP016", tried, help=help, where=str(self.root))


def _sync_directory(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
