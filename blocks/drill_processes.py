"""The processes of a drill, found by a mark that they inherit or by where they work: their parent
may be dead."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable
from pathlib import Path

import psutil

MARKER = "SLIPWAY_DRILL"
"""Environment variable; its value is the drill's id."""
_GONE_SECONDS = 10.0


def of_drill(drill: str, folder: str) -> list[psutil.Process]:
    """Every living process of a drill but ourselves: by its mark, or since it works in ``folder``.

    PostgreSQL writes the titles of its children over their environment, so the mark is not seen
    there. They mostly end with their parent; frozen ones did not, and nobody saw them.
    """
    ours = psutil.Process().pid
    return [
        process
        for process in psutil.process_iter()
        if process.pid != ours
        and (_marked(process, drill) or _works_in(process, folder))
        and _lives(process)
    ]


def _marked(process: psutil.Process, drill: str) -> bool:
    with contextlib.suppress(psutil.Error, OSError):
        return bool(process.environ().get(MARKER) == drill)
    return False


def _works_in(process: psutil.Process, folder: str) -> bool:
    with contextlib.suppress(psutil.Error, OSError):
        return Path(process.cwd()).is_relative_to(folder)
    return False


def family(pid: int) -> list[psutil.Process]:
    """A process and all that descend from it, parents first; empty when it is gone."""
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.Error:
        return []


def kill(processes: Iterable[psutil.Process]) -> None:
    """Kill them, frozen ones too, and wait until they are gone."""
    left = list(processes)
    for process in left:
        with contextlib.suppress(psutil.Error):
            process.kill()
    deadline = time.monotonic() + _GONE_SECONDS
    while any(_lives(p) for p in left) and time.monotonic() < deadline:
        time.sleep(0.01)


def freeze(processes: Iterable[psutil.Process]) -> None:
    """Stop them where they are; a parent first, so that it starts no other child."""
    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.suspend()


def thaw(processes: Iterable[psutil.Process]) -> None:
    """Let frozen ones go on."""
    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.resume()


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False
