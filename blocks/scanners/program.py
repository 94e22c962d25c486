"""Runs a scanner's program: found, bounded in time, alone with a clean environment."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from blocks import commands
from blocks.commands import POLL_SECONDS
from blocks.scanners.evidence import blind

ARGUMENTS_BYTES = 250_000
"""Length of the file names in one command: well below the 1 to 2 MB that systems allow."""


@dataclass(frozen=True)
class Output:
    """What a program said and how it ended."""

    stdout: str
    stderr: str
    code: int

    @property
    def tail(self) -> str:
        """The last lines a person needs to see, from wherever the program talked last."""
        return "\n".join((self.stderr.strip() or self.stdout.strip()).splitlines()[-20:])


def find(name: str) -> Path:
    """The program beside the interpreter (our own environment), else the one on PATH.

    Raises:
        Failed: SLP041 when there is none.
    """
    beside = Path(sys.executable).parent / name
    found = beside if os.access(beside, os.X_OK) else shutil.which(name)
    if found is None:
        raise blind(
            f"looked for the program {name} beside {Path(sys.executable).name} and on PATH, "
            "and did not find it",
            help="install slipway with the extra: pip install 'slipway[scan]'",
        )
    return Path(found)


def version_of(distribution: str) -> str:
    """Name and version of an installed scanner, read without starting it."""
    try:
        return f"{distribution} {metadata.version(distribution)}"
    except metadata.PackageNotFoundError:
        return f"{distribution} (version unknown)"


def run(
    name: str,
    arguments: Sequence[str],
    *,
    cwd: Path,
    seconds: float,
    good: Sequence[int] = (0, 1),
) -> Output:
    """Run a program to its end and return what it said.

    The environment holds nothing of ours: no token, no proxy, no PYTHON* variable. The program
    is started by its own file and not with ``-m``, so that a module in ``cwd`` (the scanned
    source) cannot take the place of one that the scanner imports.

    Args:
        seconds: after that, the program and all it started are killed.
        good: exit codes with which it has done its work.

    Raises:
        Failed: SLP041 when it is missing, cannot be started, takes too long, or ends otherwise.
    """
    program = find(name)
    with tempfile.TemporaryDirectory(prefix="slipway-scan-") as home:
        try:
            process = subprocess.Popen(
                [str(program), *arguments],
                cwd=cwd,
                env=_environment(home),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                encoding="utf-8",
                errors="replace",
                start_new_session=True,
            )
        except OSError as error:
            raise blind(
                f"tried to start {name} and got: {error.strerror or error}",
                help="reinstall it: pip install --force-reinstall 'slipway[scan]'",
                where=str(program.name),
            ) from None
        output = _wait(process, name, seconds)
    if output.code not in good:
        raise blind(
            f"{name} ended with exit code {output.code}",
            help="read its last lines, repair the cause and scan again",
            detail=output.tail,
        )
    return output


def _wait(process: subprocess.Popen[str], name: str, seconds: float) -> Output:
    with process:
        try:
            stdout, stderr = _communicate(process, seconds)
        except subprocess.TimeoutExpired:
            raise blind(
                f"{name} did not end within {seconds:g} s and was stopped",
                help="give it more time in the policy, or less to look at",
            ) from None
        finally:
            # The whole session at once: detect-secrets forks, and a child that was born after its
            # parent's children had been listed held the pipes, so a cancelled run waited for ever.
            commands.end_group(process)
    return Output(stdout, stderr, process.returncode)


def _communicate(process: subprocess.Popen[str], seconds: float) -> tuple[str, str]:
    """What it says until it ends; Stopped when the work was given up in the meantime."""
    deadline = time.monotonic() + seconds
    while True:
        left = deadline - time.monotonic()
        try:
            return process.communicate(timeout=max(0.0, min(left, POLL_SECONDS)))
        except subprocess.TimeoutExpired:
            if left <= POLL_SECONDS:
                raise
        commands.raise_if_given_up()


def _environment(home: str) -> dict[str, str]:
    path = os.pathsep.join((str(Path(sys.executable).parent), os.defpath))
    return {
        "PATH": path,
        "HOME": home,
        "TMPDIR": home,
        "LANG": "C.UTF-8",
        "NO_COLOR": "1",
        "TERM": "dumb",
        "COLUMNS": "200",
    }


@contextmanager
def empty_folder() -> Iterator[Path]:
    """A folder with nothing in it: a place to run where no configuration is picked up."""
    with tempfile.TemporaryDirectory(prefix="slipway-scan-") as folder:
        yield Path(folder)


def batches(files: Sequence[str]) -> Iterator[list[str]]:
    """Split file names so that each command line stays within the system's limit."""
    batch: list[str] = []
    size = 0
    for file in files:
        length = len(os.fsencode(file)) + 1
        if batch and size + length > ARGUMENTS_BYTES:
            yield batch
            batch, size = [], 0
        batch.append(file)
        size += length
    if batch:
        yield batch
