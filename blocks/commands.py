"""Runs an application's own commands: migrations, seeds, test suites."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

_KEPT = ("HOME", "LANG", "LC_ALL", "TMPDIR", "TZ", "USER", "LOGNAME", "SHELL")


@dataclass(frozen=True)
class Ended:
    """How a command ended. ``code`` is None when it was stopped at its time limit."""

    code: int | None
    tail: str


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
            code: int | None = process.wait(seconds)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            _end_group(process)
    return Ended(code, tail(log))


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


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """Kill what is left of the session; harmless when nothing is."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
