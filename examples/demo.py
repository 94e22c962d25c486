"""What `make demo` shows: an application goes from source to live traffic twice, users on it.

Everything goes through the command line that a person would use; this file only waits, counts
and prints. The users' own count of failures, not the edge's, decides whether the demo passed.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.request import urlopen

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "examples"
BIN = Path(sys.executable).parent
STATE = Path(os.environ.get("SLIPWAY_HOME", ROOT / ".slipway"))
WORK = STATE / "demo"
APPLICATION, ENVIRONMENT = "diet-game", "production"
WHERE = ("--environment", ENVIRONMENT)
VERSIONS = ("1.0.0", "1.1.0", "1.2.0", "1.2.1")
USERS, SPAWN_PER_SECOND = 40, 20


class DemoFailed(Exception):
    """One sentence about what did not go as shown."""


def main() -> int:
    began = time.monotonic()
    os.chdir(ROOT)
    say("1/12", "start the sandbox: Prefect, PostgreSQL, Redis, Traefik, a cluster")
    up = slipway("up")
    addresses = up["addresses"]
    first, second, bad, good = prepare_sources()
    say("2/12", f"release {APPLICATION} 1.0.0 to {ENVIRONMENT}")
    releases = [ship(first)]
    say("3/12", f"{USERS} users sign in, look for foods and log meals, from now to the end")
    with users(addresses["edge_web"]) as traffic:
        say("4/12", f"release {APPLICATION} 1.1.0 under that traffic: a new table, blue-green")
        releases.append(ship(second))
        say("5/12", "go back to 1.0.0 and forward to 1.1.0 again")
        releases += [go_back(), go_back()]
    with users(addresses["edge_web"]) as canaries:
        say("6/12", "release 1.2.0 as a canary: 1 in 20 of its answers is an error, in production only")
        releases.append(caught(slipway("release", str(bad), *WHERE, expected=1)))
        say("7/12", "release 1.2.1 as a canary: the same, repaired")
        releases.append(ship(good))
    say("8/12", "back up what the users wrote, and prove it by restoring it from three places")
    saved = slipway("backup", APPLICATION, *WHERE)
    say("9/12", "45 nights of such backups under a policy of 30 days, with a clock of their own")
    expired = slipway("expire", APPLICATION, *WHERE, "--simulate", "45")
    say("10/12", "lose a cloud in rehearsal: a twin of production is killed under its own users")
    with users(addresses["edge_web"]) as unaware:
        drilled = slipway("drill", APPLICATION, *WHERE, "--tier", "warm", expected=None)
    say("11/12", "10,000 users for a minute, after a minute in which they come")
    loaded = slipway("load", APPLICATION, *WHERE, "--profile", "10k", expected=None)
    say("12/12", "count")
    harmed = releases[-2]["failed_requests"]
    kept = traffic["failed_requests"] == 0 and canaries["failed_requests"] <= harmed
    kept = kept and unaware["failed_requests"] == 0 and drilled.get("outcome") == "PASSED"
    result = {
        "outcome": "passed" if kept else "failed",
        "seconds": round(time.monotonic() - began, 1),
        "addresses": {
            "prefect_ui": addresses["prefect_ui"],
            "application": releases[-1]["url"],
        },
        "users": traffic,
        "users_during_canaries": canaries,
        "users_during_the_drill": unaware,
        "releases": releases,
        "backup": {key: saved[key] for key in ("outcome", "point", "data_time", "copies")},
        "drill": {key: drilled.get(key) for key in (
            "outcome", "reason", "tier", "fault", "phases", "rta_seconds", "rpa_seconds",
            "acknowledged", "lost_transactions", "isolation", "leftovers", "page")},
        "load": {key: loaded.get(key) for key in ("outcome", "reason", "exit_code", "page")},
        "expiry": {key: expired[key] for key in ("simulated", "nights", "lines", "summary")},
    }
    STATE.mkdir(exist_ok=True)
    (STATE / "demo.json").write_text(json.dumps(result, indent=1) + "\n")
    show(result)
    if not traffic["requests"] or not canaries["requests"]:
        raise DemoFailed("the users sent no request, so nothing was shown; see the log above")
    return 0 if result["outcome"] == "passed" else 1


def prepare_sources() -> list[Path]:
    """A checkout of each version, as a developer would have them: each has one change more."""
    shutil.rmtree(WORK, ignore_errors=True)
    shutil.copytree(EXAMPLES / "advisories", WORK / "advisories")
    folders = []
    for number, version in enumerate(VERSIONS):
        folder = WORK / version
        shutil.copytree(
            EXAMPLES / "diet_game", folder, ignore=shutil.ignore_patterns("__pycache__")
        )
        # A repository of its own: inside another one, `git apply` would silently do nothing.
        subprocess.run(["git", "init", "--quiet"], cwd=folder, check=True)
        for change in VERSIONS[1 : number + 1]:
            patch = EXAMPLES / "changes" / f"diet_game-{change}.patch"
            subprocess.run(["git", "apply", str(patch)], cwd=folder, check=True)
        folders.append(folder)
    return folders


def ship(source: Path) -> dict[str, Any]:
    return promoted(slipway("release", str(source), *WHERE))


def go_back() -> dict[str, Any]:
    return promoted(slipway("rollback", APPLICATION, *WHERE))


def caught(report: dict[str, Any]) -> dict[str, Any]:
    if report.get("outcome") != "ROLLED_BACK" or not report.get("verdicts"):
        raise DemoFailed(f"expected ROLLED_BACK, got {report.get('outcome')}: {report}")
    return report


def promoted(report: dict[str, Any]) -> dict[str, Any]:
    if report.get("outcome") != "PROMOTED":
        raise DemoFailed(f"expected PROMOTED, got {report.get('outcome')}: {report.get('reason')}")
    return report


def slipway(*arguments: str, expected: int | None = 0) -> dict[str, Any]:
    """Run one command; its talk goes to the screen, its result comes back.

    Args:
        expected: the exit code that it must end with; None: any, the result tells.
    """
    print(f"\n$ slipway {' '.join(arguments)}", flush=True)
    done = subprocess.run(
        [str(BIN / "slipway"), *arguments, "--json"], stdout=subprocess.PIPE, text=True
    )
    try:
        document = json.loads(done.stdout)
    except ValueError:
        document = {}
    if expected not in (done.returncode, None) or not isinstance(document, dict):
        raise DemoFailed(f"`slipway {arguments[0]}` ended with code {done.returncode}")
    return document


@contextmanager
def users(address: str) -> Iterator[dict[str, Any]]:
    """Locust users in processes of their own; the yielded dict is filled when they have left."""
    result_file = WORK / "users.json"
    environ = {**os.environ, "PUBLIC_HOST": f"{APPLICATION}.{ENVIRONMENT}.localhost"}
    counts: dict[str, Any] = {"users": USERS, "requests": 0, "failed_requests": None}
    with (WORK / "users.log").open("w") as log:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "locust", "--headless", "--only-summary"),
                *("-f", str(EXAMPLES / "traffic" / "diet_game.py"), "--host", address),
                *("-u", str(USERS), "-r", str(SPAWN_PER_SECOND), "--run-time", "20m"),
                *("--json-file", str(result_file.with_suffix("")), "--stop-timeout", "10"),
                *("--exit-code-on-error", "0"),
            ],
            env=environ,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            wait_for_users(process, WORK / "users.log")
            yield counts
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
            process.wait(30)
    statistics = json.loads(result_file.read_text())
    counts["requests"] = sum(row["num_requests"] for row in statistics)
    counts["failed_requests"] = sum(row["num_failures"] for row in statistics)


def wait_for_users(process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 60
    while "All users spawned" not in log.read_text():
        if process.poll() is not None or time.monotonic() > deadline:
            raise DemoFailed(f"the users did not start; see {log}")
        time.sleep(0.1)


def show(result: dict[str, Any]) -> None:
    rows = [("what", "outcome", "seconds", "requests", "failed")]
    words = (
        "release 1.0.0", "release 1.1.0 under traffic", "back to 1.0.0", "forward to 1.1.0",
        "canary 1.2.0, a bad one", "canary 1.2.1",
    )  # fmt: skip
    for word, report in zip(words, result["releases"], strict=True):
        rows.append(
            (word, report["outcome"], f"{report['seconds']:.1f}", str(report["requests"]),
             str(report["failed_requests"]))
        )  # fmt: skip
    for word, counts in (
        ("the users' own count", result["users"]),
        ("the same during canaries", result["users_during_canaries"]),
        ("the same during the drill", result["users_during_the_drill"]),
    ):
        failed = str(counts["failed_requests"])
        rows.append((word, "", "", str(counts["requests"]), failed))
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    print()
    for row in rows:
        print(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        )
    bad = result["releases"][-2]
    print(
        f"\n1.2.0 was found out after {bad['detected_after_requests']} requests, and its traffic was"
        f" back {bad['rollback_seconds']:.1f} s later; only its own {bad['failed_requests']} errors"
        " reached users"
    )
    drilled = result["drill"]
    print(f"\ndrill: {drilled['outcome']}: {drilled['reason']}")
    print("  " + ", ".join(f"{p['name']} {p['seconds']:.1f} s" for p in drilled["phases"] or ()))
    print(f"  {drilled['page']}")
    load = result["load"]
    print(f"\n10,000 users: {load['outcome']}: {load['reason']}\n  {load['page']}")
    copies = result["backup"]["copies"]
    print(
        f"\nbackup of {result['backup']['data_time'][:19]} UTC: "
        + ", ".join(f"{c['location']} {c['rung']} in {c['restore_seconds']:.1f} s" for c in copies)
        + f"; {sum(c['twins_caught'] for c in copies)} of {sum(c['twins'] for c in copies)} "
        "damaged twins refused"
    )
    print(f"expiry: {result['expiry']['summary']}; last of its reasons:")
    for line in result["expiry"]["lines"][-6:]:
        print(f"  {line}")
    answers(result["addresses"]["prefect_ui"])
    print(f"\nPrefect UI      {result['addresses']['prefect_ui']}")
    print(f"application     {result['addresses']['application']}")
    print(f"numbers         {STATE / 'demo.json'}")
    print("\nnext: .venv/bin/slipway status")
    print(f"      .venv/bin/slipway history {APPLICATION} --environment {ENVIRONMENT}")
    print("to stop everything: make down")


def answers(address: str) -> None:
    with urlopen(address, timeout=10) as answer:
        if answer.status != 200:
            raise DemoFailed(f"{address} answers {answer.status}")


def say(step: str, what: str) -> None:
    print(f"\n=== {step} {what}", flush=True)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except DemoFailed as error:
        print(f"\ndemo failed: {error}", file=sys.stderr)
        sys.exit(1)
