"""Runs an application's own commands: migrations, seeds, test suites."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

POLL_SECONDS = 0.05
_KEPT = ("HOME", "LANG", "LC_ALL", "TMPDIR", "TZ", "USER", "LOGNAME", "SHELL")


@dataclass(frozen=True)
class Ended:
    """How a command ended. ``code`` is None when it was stopped at its time limit."""

    code: int | None
    tail: str


class Stopped(Exception):
    """The work was given up with what it belongs to; see ``ended_together``."""


_giving_up: ContextVar[tuple[threading.Event, ...]] = ContextVar("giving_up", default=())


@contextlib.contextmanager
def ended_together() -> Iterator[None]:
    """Work of this block in other threads ends when an exception leaves the block.

    A signal reaches the main thread alone, and a cancelled run has seconds to live: without this,
    a scanner in another thread would be waited for until SIGKILL ends the run, before it has put
    anything back. The threads must have a copy of this context, as those of Prefect's task runner
    have. An inner block that fails does not end what the outer one began.
    """
    event = threading.Event()
    token = _giving_up.set((*_giving_up.get(), event))
    try:
        yield
    except BaseException:
        event.set()
        raise
    finally:
        _giving_up.reset(token)


def raise_if_given_up() -> None:
    """Raises Stopped when a block of ``ended_together`` that this is part of was left so."""
    if any(event.is_set() for event in _giving_up.get()):
        raise Stopped("given up, for the run was cancelled or an earlier stage did not pass")


def run(
    command: str,
    *,
    cwd: Path,
    venv: Path | None,
    environ: Mapping[str, str],
    seconds: float,
    log: Path,
) -> Ended:
    """Run a shell command to its end, its output into ``log``.

    Nothing of it outlives the call: not its children at a time-out, not itself when the flow is
    cancelled. Its environment is the application's, none of ours.
    """
    raise_if_given_up()
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as output:
        process = subprocess.Popen(
            ["/bin/sh", "-c", command],
            cwd=cwd,
            env=clean_environ(venv) | dict(environ),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code = _wait(process, seconds)
        finally:
            end_group(process)
    return Ended(code, tail(log))


def _wait(process: subprocess.Popen[bytes], seconds: float) -> int | None:
    """The exit code, or None at the time limit; Stopped when the work was given up."""
    deadline = time.monotonic() + seconds
    while (left := deadline - time.monotonic()) > 0:
        with contextlib.suppress(subprocess.TimeoutExpired):
            return process.wait(min(left, POLL_SECONDS))
        raise_if_given_up()
    return process.poll()


def clean_environ(venv: Path | None) -> dict[str, str]:
    """What a program needs to find its way, and nothing that is ours."""
    kept = {key: os.environ[key] for key in _KEPT if key in os.environ}
    path = os.environ.get("PATH", os.defpath)
    kept["PATH"] = f"{venv / 'bin'}{os.pathsep}{path}" if venv else path
    if venv:
        kept["VIRTUAL_ENV"] = str(venv)
    kept["PYTHONUNBUFFERED"] = "1"
    return kept


def tail(log: Path, lines: int = 20) -> str:
    with contextlib.suppress(FileNotFoundError), log.open("rb") as file:
        file.seek(0, os.SEEK_END)
        file.seek(max(0, file.tell() - 16_384))
        return "\n".join(file.read().decode(errors="replace").splitlines()[-lines:])
    return ""


def end_group(process: subprocess.Popen[Any]) -> None:
    """Kill what is left of the session that it began; harmless when nothing is."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
