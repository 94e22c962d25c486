"""Drills under fire: seeded, with a fault at random, while the flow, the worker or the Prefect
server is killed at a moment at random. Whatever happens, four things must hold: never two writable
sides, production's users notice nothing, nothing is left over, and every loss is listed.

``FIRE_RUNS=40 make bench NAME=fire`` makes fewer than the two hundred of the goal; ``FIRE_SEED``
begins elsewhere. A sandbox has one drill at a time, as its deployment does, and most of that is
waiting (a drill whose worker was killed holds its place for a minute), so ``FIRE_SANDBOXES`` of
them share the work.

Each drill is on record as it ends, in ``.slipway/bench/fire.jsonl``: when a run was cut,
``FIRE_CONTINUE=1`` makes those that are missing, if the code is still the same.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import psutil
from bench import ROOT, Case, commit
from prefect.settings import PREFECT_API_URL, temporary_settings
from pydantic import TypeAdapter

from blocks.disposable_postgres import USER
from blocks.fence import Fence
from blocks.platform import Platform, load_platform
from blocks.records import Records
from domain.drill import DrillRecord, Fault
from domain.errors import SlipwayError
from domain.failover import Tier
from domain.verdict import Verdict
from sandbox.control import down, require
from sandbox.home import Home
from tasks.drill_watch import Watch
from tasks.reaping import leftovers

RUNS = int(os.environ.get("FIRE_RUNS", "200"))
SEED = int(os.environ.get("FIRE_SEED", "1"))
SANDBOXES = int(os.environ.get("FIRE_SANDBOXES", "2"))
CONTINUE = os.environ.get("FIRE_CONTINUE") == "1"
APPLICATION, ENVIRONMENT = "diet-game", "production"
KILLS = ("nothing", "nothing", "flow", "flow", "worker", "server")
BEGIN_SECONDS = 240.0
"""A place that a killed drill held is given away after a minute, and a server needs its own."""
END_SECONDS = 150.0
MUST = ("one writable side", "losses listed", "production untouched")
PASS = (Verdict.PASS,)
BIN = Path(sys.executable).parent
BENCH = ROOT / ".slipway" / "bench"
RECORD = BENCH / "fire.jsonl"
WATCHED_SHARE = 0.5
"""Of the drills, at least: one that is killed before it has two sides gives nothing to watch."""


@dataclass
class Shot:
    """One drill, and what is done to it.

    Attributes:
        after: seconds from its start to the kill.
        outcome: of its report; "": it came to none.
        broken: what did not hold, a clause each.
        good: requests of production's users that were answered meanwhile.
        failed: and those that were not, a clause each.
        commit: of the code that it ran.
    """

    seed: int
    tier: Tier
    fault: Fault
    kill: str
    after: float
    run: str = ""
    fired: bool = False
    watched: bool = False
    outcome: str = ""
    broken: list[str] = field(default_factory=list)
    good: int = 0
    failed: list[str] = field(default_factory=list)
    commit: str = field(default_factory=commit)

    @classmethod
    def of(cls, seed: int) -> Shot:
        chance = random.Random(seed)
        tier = chance.choices(list(Tier), weights=[1, 2, 2])[0]
        faults = [f for f in Fault if f is not Fault.CORRUPT or tier is Tier.BACKUP]
        return cls(seed, tier, chance.choice(faults), chance.choice(KILLS), chance.uniform(2, 22))


SHOT = TypeAdapter(Shot)


def run() -> list[Case]:
    if not CONTINUE:
        RECORD.unlink(missing_ok=True)
    done = {shot.seed for shot in recorded()}
    seeds = [seed for seed in range(SEED, SEED + RUNS) if seed not in done]
    homes = [Home.at(BENCH / f"fire-{number}") for number in range(min(SANDBOXES, len(seeds)))]
    for home in homes:
        shutil.rmtree(home.root, ignore_errors=True)
    try:
        for home in homes:  # one after the other, so that each finds ports of its own
            prepare(home)
        shares = [seeds[number :: len(homes)] for number in range(len(homes))]
        with ProcessPoolExecutor(SANDBOXES, multiprocessing.get_context("fork")) as pool:
            list(pool.map(fire, homes, shares))
    finally:
        for home in homes:
            down(home, progress=lambda line: None)
    return cases(recorded())


def recorded() -> list[Shot]:
    """The drills of this code that are on record and wanted, by their seeds."""
    lines = RECORD.read_text().splitlines() if RECORD.exists() else []
    shots = [SHOT.validate_json(line) for line in lines]
    wanted = [s for s in shots if s.commit == commit() and SEED <= s.seed < SEED + RUNS]
    return sorted(wanted, key=lambda shot: shot.seed)


def record(shot: Shot) -> None:
    """One write a line, so that sandboxes side by side do not mix theirs."""
    with RECORD.open("ab", buffering=0) as file:
        file.write(SHOT.dump_json(shot) + b"\n")


def prepare(home: Home) -> None:
    os.environ["SLIPWAY_HOME"] = str(home.root)
    slipway("up")
    slipway("release", str(ROOT / "examples" / APPLICATION.replace("-", "_")),
            "--environment", ENVIRONMENT)  # fmt: skip
    slipway("backup", APPLICATION, "-e", ENVIRONMENT)


def fire(home: Home, seeds: list[int]) -> None:
    """All drills of one sandbox, one after the other, in a process of its own."""
    os.environ["SLIPWAY_HOME"] = str(home.root)
    with temporary_settings({PREFECT_API_URL: require(home).addresses["prefect_api"]}):
        primary, standby = load_platform("sandbox"), load_platform("sandbox-gcp")
        with Users(primary) as users:
            for shot in map(Shot.of, seeds):
                once(home, primary, standby, shot)
                shot.good, shot.failed = users.since()
                record(shot)
                fired = f"{shot.kill} killed" if shot.fired else "nothing killed"
                print(f"{shot.seed}: {shot.tier} {shot.fault}, {fired}: "
                      f"{shot.outcome or 'no report'} {'; '.join(shot.broken + shot.failed[:1])}",
                      flush=True)  # fmt: skip


def cases(shots: list[Shot]) -> list[Case]:
    broken = [f"seed {s.seed}: {clause}" for s in shots for clause in s.broken]
    failed = [f"seed {s.seed}: {clause}" for s in shots for clause in s.failed]
    good = sum(s.good for s in shots)
    fired = Counter(shot.kill for shot in shots if shot.fired)
    outcomes = Counter(shot.outcome or "no report" for shot in shots)
    watched = sum(shot.watched for shot in shots)
    whole = len(shots) >= max(RUNS, 200)
    return [
        Case(
            name=f"invariants broken in {len(shots)} seeded drills under fire",
            unit="broken",
            goal="0 of 200",
            ours=len(broken),
            met=not broken and whole,
            note=f"killed: {dict(fired)}; outcomes: {dict(outcomes)}; " + "; ".join(broken[:5]),
        ),
        Case(
            name="drills both sides of which were watched from outside, so the first case saw them",
            unit="drills",
            goal=f"at least {WATCHED_SHARE:.0%}",
            ours=watched,
            met=watched >= WATCHED_SHARE * len(shots) and whole,
        ),
        Case(
            name="requests of production's users that failed meanwhile",
            unit="requests",
            goal="0",
            ours=len(failed),
            met=not failed and all(shot.good for shot in shots) and whole,
            note=f"of {good + len(failed)}; {'; '.join(failed[:3])}",
        ),
    ]


def once(home: Home, primary: Platform, standby: Platform, shot: Shot) -> None:
    """One drill to its end, whatever that is; then what is left is reaped and looked for."""
    before = set(primary.store.list("drills"))
    watches: dict[str, Watch] = {}
    over = threading.Event()
    watcher = threading.Thread(target=watch, args=(primary, standby, before, watches, over))
    watcher.start()
    given = ("--tier", shot.tier, "--fault", shot.fault, "--seed", str(shot.seed))
    shot.run = slipway("drill", APPLICATION, "-e", ENVIRONMENT, *given, "--detach")["run"]
    until(BEGIN_SECONDS, lambda: bool(processes_of(shot.run)) or ended(home, shot))
    if not until(shot.after, lambda: ended(home, shot)):
        shoot(home, shot)
    until(END_SECONDS, lambda: ended(home, shot))
    reaped = slipway("drill", APPLICATION, "-e", ENVIRONMENT, "--reap", check=False)
    over.set()
    watcher.join()
    for one in watches.values():
        one.close()
    judge(primary, standby, shot, before, watches, reaped)


def until(seconds: float, look: Callable[[], bool]) -> bool:
    """Whether it came to be in that time."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if look():
            return True
        time.sleep(0.2)
    return False


def shoot(home: Home, shot: Shot) -> None:
    match shot.kill:
        case "flow":
            victims = processes_of(shot.run)
        case "worker" | "server":
            part = require(home).part("worker" if shot.kill == "worker" else "prefect")
            victims = [psutil.Process(part.pid)] if part is not None and part.pid else []
        case _:
            return
    for victim in victims:
        with contextlib.suppress(psutil.NoSuchProcess):
            victim.send_signal(signal.SIGKILL)
            shot.fired = True


def processes_of(run: str) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if "prefect.engine" in " ".join(process.cmdline()) and (
                process.environ().get("PREFECT__FLOW_RUN_ID") == run
            ):
                found.append(process)
    return found


def ended(home: Home, shot: Shot) -> bool:
    """Its process is gone, having been there, or the server says that it has ended."""
    if processes_of(shot.run):
        return False
    with contextlib.suppress(httpx.HTTPError, KeyError, SlipwayError):
        api = require(home).addresses["prefect_api"]
        state = httpx.get(f"{api}/flow_runs/{shot.run}", timeout=5).json()["state"]["type"]
        waiting = ("SCHEDULED", "PENDING", "RUNNING")
        return state not in waiting or (state == "RUNNING" and shot.fired)
    return False


def watch(
    primary: Platform, standby: Platform, before: set[str], watches: dict[str, Watch],
    over: threading.Event,
) -> None:  # fmt: skip
    """Look at both sides of every drill that comes, from outside of it."""
    while not over.wait(0.2):
        for key in set(primary.store.list("drills")) - before - set(watches):
            content = primary.store.read(key)
            if content is None:
                continue
            record = DrillRecord.model_validate_json(content)
            twin = next(Path(record.folder).glob("*/data/postmaster.pid"), None)
            if twin is None:
                continue
            place = quote(str(twin.parents[1]), safe="")
            watches[key] = Watch(
                {
                    "primary": Fence(f"postgresql://{USER}@/{record.database}?host={place}"),
                    "standby": Fence(standby.database.admin_url(record.database)),
                }
            )


def judge(
    primary: Platform, standby: Platform, shot: Shot, before: set[str],
    watches: dict[str, Watch], reaped: dict[str, Any],
) -> None:  # fmt: skip
    broken = shot.broken
    if reaped.get("exit_code") != 0:
        broken.append(f"reaping: {json.dumps(reaped)[:200]}")
    for key in set(primary.store.list("drills")) - before:
        record = DrillRecord.model_validate_json(primary.store.read(key) or b"")
        if record.closed_at is None:
            broken.append(f"the record of drill {record.id} is open")
        broken += leftovers(primary, standby, record)
        broken += [f"process {pid} of drill {record.id} is left" for pid in named(record.id)]
        shot.watched |= key in watches
        if key in watches and (seen := watches[key].verdict()).verdict is Verdict.FAIL:
            broken.append(f"drill {record.id}: {seen.reason}")
    report = Records(primary.store).recovery_report(shot.run)
    if report is None:
        if not shot.fired:
            broken.append("no report, and nothing was killed")
        return
    shot.outcome = report.outcome
    for check in report.checks:
        # A standby that was never opened gives no data; whatever else is not known is no pass.
        known = (Verdict.PASS, Verdict.NO_DATA) if check.name == "one writable side" else PASS
        if check.name in MUST and check.verdict not in known:
            broken.append(f"{check.name}: {check.reason}")
    if not shot.fired and report.outcome not in ("PASSED", "MISSED"):
        broken.append(f"{report.outcome}: {report.reason}")


def named(drill: str) -> list[int]:
    """Processes whose words name a drill; looked at without the product's own eyes."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if drill in " ".join(process.cmdline()):
                found.append(process.pid)
    return found


class Users:
    """Production's: twenty requests a second, each must be answered."""

    def __init__(self, primary: Platform) -> None:
        self._url = primary.edge_web
        port = primary.edge_web.rpartition(":")[2]
        self._host = f"{APPLICATION}.{ENVIRONMENT}.localhost:{port}"
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._ask)
        self._good = 0
        self._failed: list[str] = []
        self._told = (0, 0)

    def __enter__(self) -> Users:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def since(self) -> tuple[int, list[str]]:
        """What was answered and what failed since this was last asked."""
        good, failed = self._good, list(self._failed)
        told_good, told_failed = self._told
        self._told = good, len(failed)
        return good - told_good, failed[told_failed:]

    def _ask(self) -> None:
        with httpx.Client(headers={"Host": self._host}, timeout=10, trust_env=False) as client:
            while not self._over.wait(0.05):
                try:
                    status = client.get(f"{self._url}/api/foods?q=oat").status_code
                except httpx.HTTPError as error:
                    self._failed.append(f"{type(error).__name__}: {error}")
                    continue
                if status == 200:
                    self._good += 1
                else:
                    self._failed.append(f"answered {status}")


def slipway(*arguments: str, check: bool = True) -> dict[str, Any]:
    done = subprocess.run(
        [str(BIN / "slipway"), *arguments, "--json"], capture_output=True, text=True
    )
    assert done.returncode == 0 or not check, done.stdout + done.stderr[-2000:]
    document: dict[str, Any] = json.loads(done.stdout) if done.stdout.strip() else {}
    return {**document, "exit_code": done.returncode}
