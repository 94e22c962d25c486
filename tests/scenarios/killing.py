"""Flows in processes that are killed at a chosen place of the journal.

Importing Prefect takes seconds, so one process imports it once and forks a child for each
run. The product knows nothing of it: the child itself wraps ``Journal.append``.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

SCRIPT = r'''
import json, os, signal, sys

from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings

from blocks.journal import Journal
from flows.build import build
from flows.deploy import deploy
from flows.release import release
from flows.rollback import rollback

FLOWS = {"release": release, "deploy": deploy, "rollback": rollback}


def die_at(when, number):
    """SIGKILL before or after the process's own entry ``number``; 0 never."""
    original, count = Journal.append, 0

    def append(self, *given):
        nonlocal count
        count += 1
        if count == number and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        entry = original(self, *given)
        if count == number and when == "after":
            os.kill(os.getpid(), signal.SIGKILL)
        return entry

    Journal.append = append


def run(order):
    die_at(order["when"], order["number"])
    log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(log, 1)
    os.dup2(log, 2)
    given = dict(order["given"])
    if order["flow"] == "deploy":
        given["digest"] = build(given.pop("source"))
    state = FLOWS[order["flow"]](**given, return_state=True)
    os._exit(0 if state.is_completed() else 1)


print("ready", flush=True)
for line in sys.stdin:
    pid = os.fork()
    if pid == 0:
        try:
            with temporary_settings(updates={PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}):
                run(json.loads(line))
        except BaseException:
            import traceback
            traceback.print_exc()
            os._exit(2)
    print(json.dumps({"pid": pid}), flush=True)
    print(json.dumps({"code": os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])}), flush=True)
'''
ROOT = Path(__file__).resolve().parents[2]


class Killer:
    """Starts runs that die; a context manager."""

    def __init__(self, folder: Path, environ: Mapping[str, str]) -> None:
        self.folder = folder
        self._environ = {
            **environ,
            "PYTHONPATH": str(ROOT),
            "PREFECT_HOME": str(folder / "prefect"),
            "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "false",
        }
        self.pid = 0

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, "-c", SCRIPT],
            cwd=ROOT,
            env=self._environ,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._line() == "ready"
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(60)
        except subprocess.TimeoutExpired:
            os.kill(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def start(self, flow: str, when: str = "before", number: int = 0, **given: Any) -> int:
        """Start a run; it is killed ``when`` it writes entry ``number``. Returns its pid."""
        order = {"flow": flow, "given": given, "when": when, "number": number}
        order["log"] = str(self.folder / "runs.log")
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        self.pid = int(json.loads(self._line())["pid"])
        return self.pid

    def wait(self) -> int:
        """The exit code of the started run; -9 when it was killed."""
        return int(json.loads(self._line())["code"])

    def run(self, flow: str, when: str = "before", number: int = 0, **given: Any) -> int:
        self.start(flow, when, number, **given)
        return self.wait()

    def _line(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()
