"""Logs of replicas: written by the replicas themselves, kept small, read from the end.

Replicas hold the file open for appending, so they go on writing while no supervisor runs. A
log that has grown too large is therefore copied aside and cut to nothing in place.
"""

from __future__ import annotations

import os
import shutil
from datetime import UTC, datetime
from pathlib import Path

_LIMIT_BYTES = 10_000_000
_TAIL_BYTES = 256_000
_FAILED_BYTES = 16_000
_KEPT_FOLDERS = 50
_HEADER = "--- slipway: "
_FAILED = "failed.txt"


class Logs:
    """All logs of one cluster: ``<workload>/<index>.log``."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._folder = folder

    def path(self, workload: str, index: int) -> Path:
        return self._folder / workload / f"{index}.log"

    def open(self, workload: str, index: int, note: str) -> tuple[int, int]:
        """A descriptor for a new process, and where its output will begin.

        The first line is written here, so a full disk is met before anything is started.
        """
        path = self.path(workload, index)
        path.parent.mkdir(mode=0o700, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            header = f"{_HEADER}{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ} {note}\n"
            os.write(descriptor, header.encode())
            return descriptor, os.fstat(descriptor).st_size
        except OSError as error:
            os.close(descriptor)
            error.filename = str(path)
            raise

    def since(self, workload: str, index: int, start: int) -> str:
        """The last output of the process that began at ``start``."""
        path = self.path(workload, index)
        try:
            size = path.stat().st_size
            begin = start if start <= size else 0  # the log was cut in between
            with path.open("rb") as stream:
                stream.seek(max(begin, size - _FAILED_BYTES))
                return stream.read().decode(errors="replace")
        except OSError:
            return ""

    def keep_failure(self, workload: str, output: str) -> None:
        """Remember what a replica said last, before its next start talks over it."""
        path = self._folder / workload / _FAILED
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w", errors="replace") as stream:
            stream.write(output)

    def forget_failure(self, workload: str) -> None:
        """A workload that begins anew is not to be blamed for its former life."""
        (self._folder / workload / _FAILED).unlink(missing_ok=True)

    def tail(self, workload: str, lines: int) -> str:
        """Of the replica that failed last, else of the one that spoke last."""
        folder = self._folder / workload
        failed = folder / _FAILED
        logs = sorted(folder.glob("[0-9]*.log"), key=_modified, reverse=True)
        chosen = failed if failed.exists() else next(iter(logs), None)
        if chosen is None or lines <= 0:
            return ""
        return "\n".join(_last_lines(chosen, lines))

    def rotate(self) -> None:
        """Cut every log that has passed its limit; the last part stays beside it."""
        for path in self._folder.glob("*/*.log"):
            if _size(path) > _LIMIT_BYTES:
                _cut(path)

    def prune(self, wanted: set[str]) -> None:
        """Forget workloads that have gone, but for the newest fifty."""
        gone = [p for p in self._folder.iterdir() if p.is_dir() and p.name not in wanted]
        for folder in sorted(gone, key=_modified, reverse=True)[_KEPT_FOLDERS:]:
            shutil.rmtree(folder, ignore_errors=True)


def _last_lines(path: Path, lines: int) -> list[str]:
    try:
        with path.open("rb") as stream:
            stream.seek(max(0, _size(path) - _TAIL_BYTES))
            text = stream.read().decode(errors="replace")
    except OSError:
        return []
    return [line for line in text.splitlines() if not line.startswith(_HEADER)][-lines:]


def _cut(path: Path) -> None:
    try:
        shutil.copyfile(path, path.with_suffix(".log.1"))
        path.with_suffix(".log.1").chmod(0o600)
    except OSError:
        path.with_suffix(".log.1").unlink(missing_ok=True)  # no room: the old part is given up
    os.truncate(path, 0)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
