"""Whether the flows have to be registered again, and doing it in a process of its own.

Registering imports Prefect and every flow, which takes seconds; when nothing has changed since
the last time, `slipway up` only asks the server whether the deployments are still there.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from deployments.manifest import FILE_NAME
from domain.errors import Failed
from sandbox.home import Home, writing

if TYPE_CHECKING:
    from deployments.console import Console
    from sandbox.control import Status

DEADLINE_SECONDS = 120.0
_ROOMS = ("flows", "tasks", "blocks", "domain", "deployments")


def ensure(home: Home, status: Status, console: Console) -> bool:
    """Register when needed; True when it was.

    Raises:
        Failed: SLP078, or SLP070 when the server is gone.
    """
    wanted = fingerprint(home.project, status.addresses)
    if _is_registered(home, wanted, status.addresses["prefect_api"]):
        return False
    console.say("registering the flows")
    identities = _register(home)
    _remember(home, {"fingerprint": wanted, "deployments": identities})
    return True


def fingerprint(project: Path, addresses: Mapping[str, str]) -> str:
    """Changes whenever registering again could make a difference.

    A flow's form depends on types of the other rooms, so all of them count.
    """
    hasher = hashlib.sha256()
    files = [project / FILE_NAME]
    for room in _ROOMS:
        files += sorted((project / room).rglob("*.py"))
    for file in files:
        hasher.update(f"{file.relative_to(project)}\n".encode())
        hasher.update(hashlib.sha256(file.read_bytes()).digest())
    settled = [str(project), version("prefect"), sys.executable, sorted(addresses.items())]
    hasher.update(json.dumps(settled).encode())
    return hasher.hexdigest()


def _is_registered(home: Home, wanted: str, api: str) -> bool:
    try:
        known = json.loads(_stamp(home).read_text())
        if known["fingerprint"] != wanted:
            return False
        expected = set(known["deployments"])
    except (OSError, ValueError, KeyError, TypeError):
        return False
    from deployments.runs import PrefectServer

    with PrefectServer(api, patience_seconds=20) as server:
        return expected <= server.deployments()


def _register(home: Home) -> list[str]:
    command = [sys.executable, "-m", "deployments.register", "--home", str(home.root)]
    # A person's own Prefect settings belong to another server.
    kept = {key: value for key, value in os.environ.items() if not key.startswith("PREFECT_")}
    try:
        done = subprocess.run(
            command, cwd=home.project, env=kept, capture_output=True, text=True,
            timeout=DEADLINE_SECONDS, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise _failed(f"it did not end within {DEADLINE_SECONDS:.0f} s", "") from error
    try:
        answer = json.loads(done.stdout.splitlines()[-1])
    except (ValueError, IndexError):
        raise _failed(f"it ended with {done.returncode}", done.stderr) from None
    if problem := answer.get("error"):
        raise Failed(
            problem["code"], problem["message"], help=problem["hint"], where=problem["where"],
            detail=problem["detail"] or "",
        )  # fmt: skip
    return [str(identity) for identity in answer["deployments"]]


def _failed(seen: str, output: str) -> Failed:
    return Failed(
        "SLP078",
        f"tried to register the flows, {seen}",
        help="read the lines below; `slipway status` shows whether the Prefect server runs",
        detail="\n".join(output.splitlines()[-20:]),
    )


def _remember(home: Home, known: Mapping[str, object]) -> None:
    fresh = _stamp(home).with_suffix(f".{os.getpid()}")
    with writing(fresh):
        fresh.write_text(json.dumps(known))
        os.replace(fresh, _stamp(home))


def _stamp(home: Home) -> Path:
    return home.root / "registered.json"
