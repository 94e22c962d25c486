"""How long a failover takes and what it loses, over many drills of each tier.

``DRILL_RUNS=5 make bench NAME=drill`` makes fewer drills than the twenty that the goals are
stated for. Every second drill freezes the primary, the others kill it.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import psycopg
from bench import ROOT, Case

from blocks.postgres import database_name
from sandbox.control import down, require
from sandbox.home import Home

RUNS = int(os.environ.get("DRILL_RUNS", "20"))
RTA_GOAL = {"warm": 15.0, "hot": 5.0, "backup": 60.0}
RPA_GOAL = 1.0
BULK_BYTES = 1 << 30
BIN = Path(sys.executable).parent
BENCH = ROOT / ".slipway" / "bench"


def run() -> list[Case]:
    home = Home.at(BENCH / "sandbox")
    os.environ["SLIPWAY_HOME"] = str(home.root)
    shutil.rmtree(home.root, ignore_errors=True)
    try:
        slipway("up")
        slipway("release", str(ROOT / "examples" / "diet_game"), "--environment", "production")
        slipway("backup", "diet-game", "-e", "production")
        cases = [case for tier in ("warm", "hot") for case in drills(tier)]
        fill(home)
        slipway("backup", "diet-game", "-e", "production")
        return [*cases, *drills("backup")]
    finally:
        down(home, progress=lambda line: None)


def drills(tier: str) -> list[Case]:
    """So many drills: how long until users were served, what was lost, where the time went."""
    seen = [
        slipway("drill", "diet-game", "-e", "production", "--tier", tier, "--seed", str(number),
                "--fault", "freeze" if number % 2 else "kill", check=False)
        for number in range(RUNS)
    ]  # fmt: skip
    good = [report for report in seen if report.get("rta_seconds") is not None]
    rta = [report["rta_seconds"] for report in good]
    size = ", 1 GB" if tier == "backup" else ""
    case = Case(
        name=f"RTA of the tier {tier}{size}, as a client sees it, worst of {RUNS}",
        unit="s",
        goal=f"below {RTA_GOAL[tier]:g}, every drill passed",
        runs={"slipway": rta},
    )
    if good:
        case.ours = max(rta)
        case.met = case.ours < RTA_GOAL[tier] and all(r["outcome"] == "PASSED" for r in seen)
        bad = [r["reason"] for r in seen if r["outcome"] != "PASSED"]
        case.note = f"median {statistics.median(rta):.2f}; {shares(good)}" + "".join(
            f"; not passed: {reason}" for reason in bad[:3]
        )
    return [case, losses(tier, good)]


def losses(tier: str, good: list[dict[str, Any]]) -> Case:
    rpa = [report["rpa_seconds"] for report in good if report["rpa_seconds"] is not None]
    lost = [len(report["lost_transactions"]) for report in good]
    listed = all(
        check["verdict"] == "pass"
        for report in good
        for check in report["checks"]
        if check["name"] == "losses listed"
    )
    age = "at most the age of the copy" if tier == "backup" else f"below {RPA_GOAL:g}"
    case = Case(name=f"RPA of the tier {tier}, worst of {RUNS}", unit="s",
                goal=f"{age}, every loss listed", runs={"slipway": rpa})  # fmt: skip
    if len(rpa) == RUNS:
        case.ours = max(rpa)
        case.met = listed and (tier == "backup" or case.ours < RPA_GOAL)
        case.note = (
            f"median {statistics.median(rpa):.2f}; acknowledged and lost: {min(lost)} to "
            f"{max(lost)} of about {statistics.median(r['acknowledged'] for r in good):.0f}, "
            + ("each listed" if listed else "NOT all listed")
        )
    return case


def shares(good: list[dict[str, Any]]) -> str:
    """Percent of the time by phase, over all drills."""
    times: dict[str, float] = {}
    for report in good:
        for phase in report["phases"]:
            times[phase["name"]] = times.get(phase["name"], 0.0) + phase["seconds"]
    whole = sum(times.values()) or 1.0
    return ", ".join(f"{name} {100 * t / whole:.0f} %" for name, t in times.items())


def fill(home: Home) -> None:
    """A gigabyte that a restore has to bring back."""
    url = require(home).addresses["database_aws_url"]
    name = database_name("diet-game", "production")
    with psycopg.connect(url.rpartition("/")[0] + f"/{name}", autocommit=True) as connection:
        connection.execute("CREATE TABLE bulk (id bigint PRIMARY KEY, payload text NOT NULL)")
        connection.execute(f'ALTER TABLE bulk OWNER TO "{name}"'.encode())
        connection.execute(
            "INSERT INTO bulk SELECT n, repeat(md5(n::text), 30) FROM generate_series(1, %s) n",
            [BULK_BYTES // 1000],
        )


def slipway(*arguments: str, check: bool = True) -> dict[str, Any]:
    done = subprocess.run([str(BIN / "slipway"), *arguments, "--json"], stdout=subprocess.PIPE,
                          stderr=subprocess.DEVNULL, text=True)  # fmt: skip
    assert done.returncode == 0 or not check, done.stdout
    document: dict[str, Any] = json.loads(done.stdout)
    return document
