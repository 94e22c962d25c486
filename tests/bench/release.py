"""What a release costs beside a bare shell script, and what its switches cost users."""

from __future__ import annotations

import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench import ROOT, Case

from blocks.scanners.schemathesis import CHECKS
from sandbox.control import down, require
from sandbox.home import Home
from sandbox.postgres import binaries

ROUNDS = 3
SWITCHES = 20
RATE = 500
LIMIT = 1.15
FULL_RATE = 1000
FULL_SECONDS = 20
FULL_LIMIT_MS = 200
BIN = Path(sys.executable).parent
BENCH = ROOT / ".slipway" / "bench"
HERE = Path(__file__).resolve().parent
ENVIRONMENT = "production"
HOST = f"diet-game.{ENVIRONMENT}.localhost"


def run() -> list[Case]:
    home = Home.at(BENCH / "sandbox")
    os.environ["SLIPWAY_HOME"] = str(home.root)
    shutil.rmtree(home.root, ignore_errors=True)
    try:
        slipway("up")
        return [wall_time(home), switches(home), latency(home)]
    finally:
        down(home, progress=lambda line: None)


def wall_time(home: Home) -> Case:
    """Both ship the same changed source; the order alternates, so that neither is always warm."""
    case = Case(
        name="wall time of a release, ours / shell script",
        unit="ratio",
        goal=f"at most {LIMIT}",
    )
    if missing := [tool for tool in ("bash", "curl", "setsid") if shutil.which(tool) is None]:
        case.note = f"the shell script needs {', '.join(missing)}"
        return case
    ours: list[float] = []
    peer: list[float] = []
    release(home)  # the first one fills the package cache for both
    shell(home)
    for number in range(ROUNDS):
        pair = [(ours, release), (peer, shell)]
        for times, act in pair if number % 2 == 0 else reversed(pair):
            times.append(act(home))
    case.runs = {"slipway": ours, "shell script": peer}
    case.ours = round(statistics.median(ours) / statistics.median(peer), 3)
    case.peers = {"shell script": 1.0}
    case.met = case.ours <= LIMIT
    case.note = (
        f"{statistics.median(ours):.1f} s against {statistics.median(peer):.1f} s, "
        f"medians of {ROUNDS}"
    )
    return case


def release(home: Home) -> float:
    source = changed_source()
    began = time.monotonic()
    report = slipway("release", str(source), "--environment", ENVIRONMENT,
                     "--version", f"1.0.{uuid.uuid4().hex[:8]}")  # fmt: skip
    assert report["outcome"] == "PROMOTED", report
    return round(time.monotonic() - began, 2)


def shell(home: Home) -> float:
    source, work = changed_source(), BENCH / "shell"
    addresses = require(home).addresses
    command = [
        str(HERE / "release.sh"), str(source), str(work), str(BIN), str(binaries()),
        addresses["database_aws_url"], addresses["redis_url"], addresses["edge_dynamic"],
        addresses["edge_web"], f"shell-{uuid.uuid4().hex[:8]}.localhost", ",".join(CHECKS),
    ]  # fmt: skip
    began = time.monotonic()
    with (BENCH / "shell.log").open("w") as log:
        done = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, timeout=600)
    seconds = round(time.monotonic() - began, 2)
    sweep(work)
    if done.returncode != 0:
        raise RuntimeError(f"the shell script ended with {done.returncode}; see {BENCH}/shell.log")
    return seconds


def sweep(work: Path) -> None:
    """End the replicas that the script leaves running, as it is meant to."""
    pids = work / "pids"
    for pid in pids.read_text().split() if pids.exists() else ():
        os.kill(int(pid), signal.SIGTERM)
    if (work / "route").exists():
        Path((work / "route").read_text().strip()).unlink(missing_ok=True)


def changed_source() -> Path:
    """A copy with a changed line, so that nothing is known from before."""
    folder = BENCH / "source" / "diet_game"
    shutil.rmtree(folder.parent, ignore_errors=True)
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "examples" / "advisories", folder.parent / "advisories")
    shutil.copytree(ROOT / "examples" / "diet_game", folder, ignore=ignore)
    with (folder / "diet_game" / "__init__.py").open("a") as file:
        file.write(f"\nBUILD = {time.time_ns()}\n")
    return folder


def switches(home: Home) -> Case:
    """Blue-green switches there and back under an open-loop load."""
    case = Case(
        name=f"failed requests over {SWITCHES} blue-green switches at {RATE} requests/s",
        unit="requests",
        goal="0",
    )
    os.environ["PREFECT_API_URL"] = require(home).addresses["prefect_api"]
    from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings

    from flows.rollback import rollback

    with load(home, RATE) as counted, temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}):
        for _ in range(SWITCHES):
            state = rollback(ENVIRONMENT, "diet-game", return_state=True)
            assert state.is_completed(), state.message
    if counted["per_second"] < RATE * 0.98:
        case.note = f"the load reached only {counted['per_second']} requests/s"
        return case
    case.ours = counted["failed"]
    case.met = counted["failed"] == 0
    case.note = f"of {counted['requests']} requests, p95 {counted['p95_ms']} ms"
    return case


def latency(home: Home) -> Case:
    """The sample application at its stated load, through the edge, beside its own callers."""
    case = Case(
        name=f"p95 of diet-game at {FULL_RATE} requests/s for {FULL_SECONDS} s through the edge",
        unit="ms",
        goal=f"under {FULL_LIMIT_MS}, none failed",
    )
    values: list[float] = []
    failed = requests = 0
    for _ in range(ROUNDS):
        with load(home, FULL_RATE, FULL_SECONDS) as counted:
            pass
        if counted["per_second"] < FULL_RATE * 0.98:
            case.note = f"the load reached only {counted['per_second']} requests/s"
            return case
        values.append(counted["p95_ms"])
        failed, requests = failed + counted["failed"], requests + counted["requests"]
    case.runs = {"slipway": values}
    case.ours = statistics.median(values)
    case.met = case.ours < FULL_LIMIT_MS and not failed
    case.note = f"{failed} of {requests} requests failed; median of {ROUNDS}"
    return case


@contextmanager
def load(home: Home, rate: float, seconds: float | None = None) -> Iterator[dict[str, Any]]:
    counted: dict[str, Any] = {}
    process = subprocess.Popen(
        [sys.executable, str(HERE / "traffic.py"), "--url", require(home).addresses["edge_web"],
         "--host", HOST, "--rate", str(rate), *(["--seconds", str(seconds)] if seconds else [])],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stderr is not None
    try:
        if process.stderr.readline().strip() != "running":
            raise RuntimeError(f"the load did not start: {process.stderr.read()}")
        yield counted
    finally:
        if seconds is None:
            process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=60)
    counted.update(json.loads(output))


def slipway(*arguments: str) -> dict[str, Any]:
    command = [str(BIN / "slipway"), *arguments, "--json", "--quiet"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=900)
    document: dict[str, Any] = json.loads(done.stdout or "{}")
    if done.returncode != 0:
        raise RuntimeError(f"`slipway {' '.join(arguments)}` ended with {done.returncode}: "
                           f"{done.stdout[-2000:]}")  # fmt: skip
    return document
