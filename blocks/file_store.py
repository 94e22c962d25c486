"""An object store in a local directory."""

from __future__ import annotations

import errno
import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO, cast

from blocks.object_store import AlreadyExists, Changed, Content, Stat, UploadedPart
from domain.errors import Failed, SlipwayError, UsageError

_FULL = (errno.ENOSPC, errno.EDQUOT)
_NEEDS_A_NAME = (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL)
"""How a file system says that it has no nameless files (NFS, old overlays)."""
_HIDDEN = ".tmp-"
"""Files that start so are on their way; no listing shows them."""


class FileStore:
    """Objects as files. A directory can lock nothing, so ``locked_until`` is not promised."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def create(self, key: str, content: bytes) -> None:
        """``link`` gives the name only to a complete file, and to the first who asks for it.

        O_EXCL alone would leave an empty entry under the final name after a crash in between.
        """
        target = self._path(key)
        with self._written(target, content) as written:
            self._link(written, target, key)

    def replace(self, key: str, content: bytes, *, expected: str | None = None) -> None:
        target = self._path(key)
        if expected is not None:
            self._require(key, expected)
        done = False
        while not done:
            with self._written(target, content) as written:
                done = self._put_over(written, target)
        _sync_directory(target.parent)

    def read(self, key: str) -> bytes | None:
        try:
            return self._path(key).read_bytes()
        except FileNotFoundError:
            return None

    def list(self, prefix: str) -> tuple[str, ...]:
        return tuple(stat.key for stat in self.scan(prefix))

    def scan(self, prefix: str) -> Iterator[Stat]:
        folder = self._path(prefix)
        if not folder.exists():
            return iter(())
        root = self.root.resolve()
        names = (
            Path(here, name).relative_to(root).as_posix()
            for here, _, files in os.walk(folder, onerror=_refuse)
            for name in files
            if not name.startswith(_HIDDEN)
        )
        found = (self.stat(key) for key in sorted(names))
        return (stat for stat in found if stat is not None)  # None: removed since

    def stat(self, key: str) -> Stat | None:
        try:
            seen = self._path(key).stat()
        except FileNotFoundError:
            return None
        return Stat(
            key=key,
            bytes=seen.st_size,
            version=f"{seen.st_ino}-{seen.st_mtime_ns}-{seen.st_size}",
            modified_at=datetime.fromtimestamp(seen.st_mtime, UTC),
        )

    @contextmanager
    def open(self, key: str, *, start: int = 0, end: int | None = None) -> Iterator[Content]:
        try:
            file = self._path(key).open("rb")
        except FileNotFoundError:
            raise KeyError(key) from None
        with file:
            file.seek(start)
            yield file if end is None else _Range(file, end - start)

    def upload(self, key: str, *, locked_until: datetime | None = None) -> FileUpload:
        target = self._path(key)
        hidden = target.parent / f"{_HIDDEN}upload-{_digest(key)}"
        return FileUpload(self, key, target, hidden)

    def delete(self, key: str, version: str) -> None:
        if self.stat(key) is None:
            return
        self._require(key, version)
        path = self._path(key)
        path.unlink(missing_ok=True)
        _sync_directory(path.parent)

    def clock(self) -> datetime:
        return datetime.now(UTC)

    def _require(self, key: str, version: str) -> None:
        found = self.stat(key)
        if found is None or found.version != version:
            raise Changed(key)

    def _path(self, key: str) -> Path:
        path = (self.root / key).resolve()
        if not path.is_relative_to(self.root.resolve()):
            raise ValueError(f"key {key!r} leaves the store")
        return path

    def _link(self, written: Path, target: Path, key: str) -> None:
        try:
            _give(written, target)
        except FileExistsError:
            raise AlreadyExists(key) from None
        except OSError as error:
            raise self._refused(target, error) from error
        _sync_directory(target.parent)

    def _put_over(self, written: Path, target: Path) -> bool:
        """No if another writer was in between: it has to be written again.

        Nothing but ``rename`` replaces a file, and it needs a name to come from. That is the
        key's own: what a SIGKILL between the two calls leaves there, the next replacement of
        the key takes away. Whatever stands there is whole, since it was linked.
        """
        hidden = target.parent / f"{_HIDDEN}{_digest(target.name)}"
        try:
            return _renamed(written, hidden, target)
        except OSError as error:
            raise self._refused(target, error) from error
        except BaseException:
            hidden.unlink(missing_ok=True)
            raise

    @contextmanager
    def _written(self, target: Path, content: bytes) -> Iterator[Path]:
        """A synced file to be linked, gone afterwards unless it was."""
        with ExitStack() as opened:
            try:
                target.parent.mkdir(parents=True, exist_ok=True)
                file, path = opened.enter_context(_nameless(target.parent))
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            except OSError as error:
                raise self._refused(target, error) from error
            yield path

    def _refused(self, target: Path, error: OSError) -> SlipwayError:
        tried = f"tried to write {target}: {(error.strerror or str(error)).lower()}"
        if error.errno in _FULL:
            help = "free some space on that disk and run it again"
            return Failed("SLP015", tried, help=help, where=str(self.root))
        help = "make the folder writable for who runs the flows, and run it again"
        return UsageError("SLP016", tried, help=help, where=str(self.root))


class FileUpload:
    """One hidden file that parts are written into, and that gets its name at the end."""

    part_bytes = 8 << 20

    def __init__(self, store: FileStore, key: str, target: Path, hidden: Path) -> None:
        self._store, self._key, self._target, self._hidden = store, key, target, hidden

    @property
    def done(self) -> tuple[UploadedPart, ...]:
        """Whole parts only: of one that was cut nobody knows where."""
        try:
            whole = self._hidden.stat().st_size // self.part_bytes
        except FileNotFoundError:
            whole = 0
        return tuple(UploadedPart(number + 1, self.part_bytes) for number in range(whole))

    def put(self, number: int, content: bytes) -> None:
        try:
            self._hidden.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(self._hidden, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
            with os.fdopen(handle, "wb") as file:
                file.seek((number - 1) * self.part_bytes)
                file.write(content)
                if len(content) < self.part_bytes:  # the last one ends the file
                    file.truncate()
        except OSError as error:
            raise self._store._refused(self._hidden, error) from error

    def complete(self, sha256: str) -> Stat:
        try:
            self._seal(sha256)
        except OSError as error:  # a disk may say only now that it was full
            raise self._store._refused(self._hidden, error) from error
        try:
            self._store._link(self._hidden, self._target, self._key)
        finally:
            self.abort()
        stat = self._store.stat(self._key)
        assert stat is not None
        return stat

    def _seal(self, sha256: str) -> None:
        with self._hidden.open("r+b") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
            if found != sha256:
                raise Failed(
                    "SLP103",
                    f"what was stored under {self._key} is not what was sent: its SHA-256 is "
                    f"{found[:16]}..., not {sha256[:16]}...",
                    help="run it again; if it happens twice, test the disk",
                    where=str(self._store.root),
                )
            os.fsync(file.fileno())

    def abort(self) -> None:
        self._hidden.unlink(missing_ok=True)


class _Range:
    """The next ``left`` bytes of a file and no more."""

    def __init__(self, file: BinaryIO, left: int) -> None:
        self._file, self._left = file, left

    def read(self, size: int = -1, /) -> bytes:
        wanted = self._left if size < 0 else min(size, self._left)
        data = self._file.read(wanted)
        self._left -= len(data)
        return data


def _refuse(error: OSError) -> None:
    """``os.walk`` passes over folders that it cannot read unless it is told not to."""
    raise Failed(
        "SLP101",
        f"tried to list {error.filename}: {(error.strerror or str(error)).lower()}",
        help="make the folder readable for who runs the flows; nothing was decided on what it "
        "would not show",
    ) from error


@contextmanager
def _nameless(folder: Path) -> Iterator[tuple[BinaryIO, Path]]:
    """A new file that the kernel takes back however the process ends, and what to link it by.

    Where it had a hidden name from the start, Ctrl-C at the wrong moment, or the end of a
    program whose thread was writing, left that in the store for ever.
    """
    try:
        handle = os.open(folder, os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC, 0o600)
    except OSError as error:
        if error.errno not in _NEEDS_A_NAME:
            raise
        with tempfile.NamedTemporaryFile(prefix=_HIDDEN, dir=folder) as named:
            yield cast(BinaryIO, named), Path(named.name)
        return
    with os.fdopen(handle, "wb") as file:
        yield file, Path(f"/proc/self/fd/{handle}")


def _renamed(written: Path, hidden: Path, target: Path) -> bool:
    """Whether ``target`` is what was written; no if another writer was at the hidden name."""
    try:
        _give(written, hidden)
    except FileExistsError:
        hidden.unlink(missing_ok=True)
        return False
    try:
        hidden.replace(target)
    except FileNotFoundError:
        return False
    return True


def _give(written: Path, name: Path) -> None:
    """``os.link`` follows ``/proc/self/fd`` to the file only where it is given a directory."""
    root = os.open("/", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.link(written, name, src_dir_fd=root)
    finally:
        os.close(root)


def _digest(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()[:24]


def _sync_directory(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
