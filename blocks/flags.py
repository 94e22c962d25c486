"""Where the flags of an environment are kept: one flagd file, which applications read.

Applications read it by themselves, through OpenFeature's flagd provider in its file mode
(``FLAGD_RESOLVER=file``, ``FLAGD_OFFLINE_FLAG_SOURCE_PATH``). It looks twice a second whether the
file's modification time has *grown*, and at nothing else. So every write gives the file a later
time than it had, also when the clock went back or two writes fall into one tick of the kernel:
else a kill switch could be overlooked for ever. And because the provider notes the time of a file
only after it has read it, a process that starts at that moment can take the new time for the old
content; so the time is moved on once more, a moment later.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import glob
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Protocol

from domain.errors import Failed, SlipwayError, UsageError
from domain.flags import Definition, parse

MODE = 0o644
TICK_SECONDS = 0.001
"""More than the provider's resolution: it compares floating point seconds."""
AGAIN_SECONDS = 0.2
"""Longer than a process that starts takes from reading the file to noting its time."""
LOCK_SECONDS = 30.0
POLL_SECONDS = 0.01

Change = Callable[[Definition], Definition]


class Flags(Protocol):
    """The flags of every application and environment of a platform."""

    def environ(self, application: str, environment: str) -> dict[str, str]:
        """What a service's environment must hold, so that OpenFeature finds the flags."""

    def read(self, application: str, environment: str) -> Definition | None:
        """What is there now; None when nothing was ever written.

        Raises:
            Failed: SLP014, it could not be read, or it is no flagd definition.
        """

    def change(self, application: str, environment: str, change: Change) -> Definition:
        """Replace the definition by ``change`` of it, in one step, and read it back.

        Changes follow each other: none is lost, and ``change`` may refuse by raising. One that
        somebody else makes meanwhile, past our lock, is not overwritten. The definition is
        written again also when it is the same, so that whoever overlooked it reads it once more.

        Raises:
            Failed: SLP014, it could not be written, is not there afterwards, or was changed by
                somebody else meanwhile; SLP015, the disk is full. What was there before is still
                there.
        """

    def remove(self, application: str, environment: str) -> None:
        """Forget the flags of an environment that is no more; removing nothing is no error."""

    def remove_stale(self, application: str, prefix: str, before: datetime) -> None:
        """Forget environments with that prefix whose flags were last changed before a moment."""


class FileFlags:
    """``ROOT/APPLICATION/ENVIRONMENT/flags.json``."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def environ(self, application: str, environment: str) -> dict[str, str]:
        path = self.path(application, environment)
        return {"FLAGD_RESOLVER": "file", "FLAGD_OFFLINE_FLAG_SOURCE_PATH": str(path)}

    def path(self, application: str, environment: str) -> Path:
        return self.root / application / environment / "flags.json"

    def read(self, application: str, environment: str) -> Definition | None:
        return _parsed(path := self.path(application, environment), _content(path))

    def change(self, application: str, environment: str, change: Change) -> Definition:
        path = self.path(application, environment)
        lock = path.parent / ".lock"
        with _disk(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with _alone(lock):
                content = _content(path)
                wanted = change(_parsed(path, content) or Definition.empty())
                _replace(path, wanted.to_text(), _digest(content))
                found = self.read(application, environment)
            if found is None or found.to_text() != wanted.to_text():
                raise _unreadable(path, "it does not hold what was just written")
            time.sleep(AGAIN_SECONDS)
            with _alone(lock):
                _move_on(path, path)
        return found

    def remove(self, application: str, environment: str) -> None:
        path = self.path(application, environment)
        with _disk(path):
            shutil.rmtree(path.parent, ignore_errors=not path.parent.exists())

    def remove_stale(self, application: str, prefix: str, before: datetime) -> None:
        for folder in (self.root / application).glob(f"{glob.escape(prefix)}*"):
            with contextlib.suppress(FileNotFoundError):  # another process removes it as well
                if folder.stat().st_mtime < before.timestamp():
                    self.remove(application, folder.name)


def _content(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _unreadable(path, error.strerror or str(error)) from error


def _digest(content: bytes | None) -> str:
    return "" if content is None else hashlib.sha256(content).hexdigest()


def _parsed(path: Path, content: bytes | None) -> Definition | None:
    if content is None:
        return None
    try:
        return parse(content.decode("utf-8"), str(path))
    except UnicodeDecodeError as error:
        raise _unreadable(path, "it is not UTF-8 text") from error
    except UsageError as error:  # nobody's request is wrong: the file is
        raise _unreadable(path, error.cause) from error


@contextlib.contextmanager
def _disk(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        raise Failed(
            "SLP015" if full else "SLP014",
            f"tried to change the flags and saw: {error.strerror or error}",
            help="free some space and try again; the flags are as they were"
            if full
            else "the flags are as they were; see that the folder is writable and try again",
            where=str(path),
        ) from error


@contextlib.contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """One change at a time; a killed process gives the lock back by dying."""
    handle = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        deadline = time.monotonic() + LOCK_SECONDS
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise
            time.sleep(POLL_SECONDS)
        yield
    finally:
        os.close(handle)


def _replace(path: Path, text: str, known: str) -> None:
    """A reader, or a machine that loses power, sees the old file or the new, never half.

    Whoever edits the file by hand holds no lock, so it must still be the one that was read, of
    the digest ``known``.
    """
    for stale in path.parent.glob(f"{path.name}.*"):  # we hold the lock: a killed process left it
        stale.unlink(missing_ok=True)
    handle, name = tempfile.mkstemp(prefix=f"{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as draft:
            draft.write(text)
            draft.flush()
            os.fchmod(draft.fileno(), MODE)  # a container's user is not ours
            os.fsync(draft.fileno())
        _move_on(path, Path(name))
        if _digest(_content(path)) != known:
            raise Failed(
                "SLP014",
                "tried to change the flags, and somebody else changed them in the same moment",
                help="their change stands and yours was not made; look at the file and try again",
                where=str(path),
            )
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _move_on(known: Path, file: Path) -> None:
    """Give ``file`` the time now, or a tick after that of ``known``, whichever is later."""
    later = time.time()
    with contextlib.suppress(FileNotFoundError):
        later = max(later, known.stat().st_mtime + TICK_SECONDS)
    os.utime(file, (later, later))


def _unreadable(path: Path, seen: str) -> SlipwayError:
    return Failed(
        "SLP014",
        f"tried to read the flags and saw: {seen}",
        help="correct the file or put back a copy; applications keep the flags they read last",
        where=str(path),
    )
