"""What canary rollouts cost users, how soon a bad version is off, and what a kill leaves."""

from __future__ import annotations

import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from bench import ROOT, Case

from blocks.file_store import FileStore
from blocks.journal import Journal
from blocks.records import Records
from domain.hindsight import look_back
from domain.journal import Kind, Outcome, unfinished, verify
from sandbox.control import down, require, up
from sandbox.home import Home

ROLLOUTS = 50
BREACHES = 10
RATE = 500
SECONDS = 3.0
ENVIRONMENT = "production"
BENCH = ROOT / ".slipway" / "bench"
HERE = Path(__file__).resolve().parent


def run() -> list[Case]:
    home = Home.at(BENCH / "rollout-sandbox")
    shutil.rmtree(home.root, ignore_errors=True)
    up(home)
    try:
        with connected(home):
            return [breach(home), kills(home), switches(home)]
    finally:
        down(home, progress=lambda line: None)


@contextmanager
def connected(home: Home) -> Iterator[None]:
    """Flows run in this process, against the sandbox's server."""
    os.environ["PREFECT_API_URL"] = require(home).addresses["prefect_api"]
    os.environ["PREFECT_SERVER_ALLOW_EPHEMERAL_MODE"] = "false"
    os.environ["PREFECT_LOGGING_LEVEL"] = "CRITICAL"
    command = [sys.executable, "-m", "deployments.register", "--home", str(home.root)]
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL, timeout=120)
    from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings

    with temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}):
        yield


def source(version: str, name: str = "bench-canary", **knobs: Any) -> str:
    """The scenarios' small server, as a canary with short steps."""
    sys.path.insert(0, str(ROOT))
    from tests.scenarios.apps import App, service

    document = {
        "version": version,
        "strategy": "canary",
        "canary": {"steps": ["20%", "50%"], "requests": 100},
        "services": {"web": service(replicas={"default": 2})},
        "objectives": {"availability": "99%", "p95": "500ms", "error_rate": "1%"},
        "environments": {ENVIRONMENT: {}},
        "smoke": [{"path": "/healthz"}],  # the judge alone shall find what is wrong
    }
    return App(BENCH / "source" / f"{name}-{version}", name).write(document, **knobs)


def shipped(path: str) -> Any:
    from flows.build import build
    from flows.deploy import deploy

    return deploy(ENVIRONMENT, build(path), return_state=True)


def switches(home: Home) -> Case:
    """Every release moves traffic three times; what fails meanwhile failed because of us."""
    case = Case(
        name=f"failed requests over {ROLLOUTS} canary rollouts at {RATE} requests/s",
        unit="requests",
        goal="0",
    )
    from flows.build import build
    from flows.deploy import deploy

    digests = [build(source(version)) for version in ("1.0.0", "1.1.0")]
    deploy(ENVIRONMENT, digests[0])
    with load(home, "bench-canary") as counted:
        for number in range(ROLLOUTS):
            state = deploy(ENVIRONMENT, digests[(number + 1) % 2], return_state=True)
            assert state.is_completed(), state.message
    journal = Journal(FileStore(home.store), "bench-canary", ENVIRONMENT)
    steps = sum(e.kind is Kind.STEP_PASSED and "judgements" in e.data for e in journal.entries)
    assert steps == 2 * ROLLOUTS, f"{steps} steps were judged by evidence"
    if counted["per_second"] < RATE * 0.98:
        case.note = f"the load reached only {counted['per_second']} requests/s"
        return case
    case.ours = counted["failed"]
    case.met = counted["failed"] == 0
    case.note = (
        f"of {counted['requests']} requests, p95 {counted['p95_ms']} ms; {steps} steps judged; "
        f"{counted['failures'] or 'no failures'}"
    )
    return case


def breach(home: Home) -> Case:
    """From the look before the one that failed until all traffic is back on the old version.

    The breach became visible after the former, so this is the most that it can have been.
    """
    case = Case(
        name="from a breach visible in the metrics to all traffic on stable",
        unit="s",
        goal=f"under {SECONDS:g}, the slowest of {BREACHES}",
    )
    name = "bench-breach"
    state = shipped(source("1.0.0", name))
    assert state.is_completed(), state.message
    journal, found = None, []
    with load(home, name):
        for number in range(BREACHES):
            state = shipped(source(f"1.1.{number}", name, flaky=0.2))
            assert state.is_failed(), "a version with 20 % of errors was promoted"
            journal = Journal(FileStore(home.store), name, ENVIRONMENT)
            found.append(_seconds_to_safety(home, journal, number + 2))
    case.ours = max(found)
    case.met = case.ours < SECONDS
    case.runs = {"slipway": found}
    case.note = f"median {statistics.median(found):.2f} s, under {RATE} requests/s"
    return case


def _seconds_to_safety(home: Home, journal: Journal, release: int) -> float:
    entries = [e for e in journal.entries if e.release == release]
    aborted = next(e for e in entries if e.kind is Kind.ABORTING)
    document = Records(FileStore(home.store)).evidence(str(aborted.data["evidence"]))
    looks = document["looks"]["web"]
    before = datetime.fromisoformat(looks[-2]["at"]) if len(looks) > 1 else entries[0].at
    rollback = look_back(entries).rollback_seconds
    assert rollback is not None
    return round((aborted.at - before).total_seconds() + rollback, 3)


def kills(home: Home) -> Case:
    """SIGKILL before and after every entry that a canary writes, then ``recover``, under users."""
    case = Case(
        name="kill -9 at every journal boundary of a canary: recovered",
        unit="of all boundaries",
        goal="all, with one whole version and no failed request",
    )
    from flows.recover import recover
    from tests.scenarios.killing import Killer

    name = "bench-killed"
    assert shipped(source("1.0.0", name)).is_completed()
    tried = recovered = 0
    ends: dict[str, int] = {}
    folder = BENCH / "killed"
    folder.mkdir(parents=True, exist_ok=True)
    with Killer(folder, dict(os.environ)) as killer, load(home, name, 100) as counted:
        for number in range(1, 40):
            codes = set()
            for when in ("before", "after"):
                version = source(f"1.1.{number}{when[0]}", name)
                code = killer.run("deploy", when, number, environment=ENVIRONMENT, source=version)
                codes.add(code)
                if code != -signal.SIGKILL:
                    continue
                tried += 1
                _free_slot(name)
                assert recover(ENVIRONMENT, name, return_state=True).is_completed()
                outcome = _whole(home, name)
                ends[outcome] = ends.get(outcome, 0) + 1
                recovered += outcome != "broken"
            if -signal.SIGKILL not in codes:
                break
    case.ours, case.met = recovered, recovered == tried > 0 and counted["failed"] == 0
    case.peers = {"boundaries": float(tried)}
    told = ", ".join(f"{n} {end}" for end, n in sorted(ends.items()))
    case.note = f"{told}; {counted['failed']} of {counted['requests']} requests failed"
    return case


def _free_slot(name: str) -> None:
    """What the server does by itself a minute after the holder died."""
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        client.delete_global_concurrency_limit_by_name(f"slipway-{name}-{ENVIRONMENT}")


def _whole(home: Home, name: str) -> str:
    """How the newest release ended, or `broken` when not exactly one version is there."""
    from blocks.platform import load_platform

    journal = Journal(FileStore(home.store), name, ENVIRONMENT)
    history = journal.history()
    routing = load_platform("sandbox").edge.read(name, ENVIRONMENT)
    weights = [dict(route.weights) for route in routing.routes] if routing else []
    live = [r for r in history if r.outcome is Outcome.PROMOTED][-1]
    one = weights == [{live.workloads["web"]: 100}]
    ok = one and unfinished(history) is None and verify(journal.raw()) == ()
    return str(history[-1].outcome) if ok else "broken"


@contextmanager
def load(home: Home, name: str, rate: float = RATE) -> Iterator[dict[str, Any]]:
    """Requests at a fixed rate; what did not get an answer below 500 has failed."""
    counted: dict[str, Any] = {}
    address = require(home).addresses["edge_web"]
    command = [
        sys.executable, str(HERE / "traffic.py"), "--url", address, "--plain", "/version",
        "--host", f"{name}.{ENVIRONMENT}.localhost", "--rate", str(rate), "--seconds", "1500",
    ]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        if process.stderr.readline().strip() != "running":
            raise RuntimeError(f"the load did not start: {process.stderr.read()}")
        yield counted
    finally:
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=60)
    counted.update(json.loads(output))
