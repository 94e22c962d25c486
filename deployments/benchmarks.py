"""``slipway bench``: run a benchmark of the checkout that this package is installed from."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deployments.console import Console, nearest, table
from domain.errors import Failed, UsageError

CHECKOUT = Path(__file__).resolve().parent.parent
_WORDS = {True: "met", False: "NOT MET", None: "NOT RUN"}


def run(name: str, console: Console, checkout: Path = CHECKOUT) -> int:
    """Run one benchmark and show what it wrote; 1 when a goal is not met.

    Raises:
        UsageError: SLP019, not a checkout; SLP000, no such benchmark.
        Failed: SLP099, the benchmark ended without a result.
    """
    folder = checkout / "tests" / "bench"
    if not (folder / "run.py").is_file():
        raise UsageError(
            "SLP019",
            f"tried to run a benchmark of {checkout}: it has no tests/bench/run.py",
            help="clone the repository, run `make install` there and use its .venv/bin/slipway",
        )
    known = sorted(
        path.stem for path in folder.glob("*.py") if "\ndef run() ->" in path.read_text()
    )
    if name not in known:
        raise UsageError("SLP000", f"there is no benchmark {name!r}", help=nearest(name, known))
    document = _measure(name, checkout, console)
    cases = document["cases"]
    console.finish(_shown(document), document)
    return 0 if cases and all(case["met"] is True for case in cases) else 1


def _measure(name: str, checkout: Path, console: Console) -> Mapping[str, Any]:
    result = checkout / ".slipway" / "bench" / f"{name}.json"
    # The result of an earlier run must not be taken for this one's.
    result.unlink(missing_ok=True)
    console.say(f"running the benchmark {name}; this takes minutes")
    command = [sys.executable, str(checkout / "tests" / "bench" / "run.py"), name]
    done = subprocess.run(command, cwd=checkout, capture_output=True, text=True)
    if not result.is_file():
        raise Failed(
            "SLP099",
            f"the benchmark {name} ended with {done.returncode} and left no result",
            help="run it alone to see why: " + " ".join(command),
            detail="\n".join((done.stdout + done.stderr).splitlines()[-20:]),
        )
    document: Mapping[str, Any] = json.loads(result.read_text())
    return document


def _shown(document: Mapping[str, Any]) -> str:
    rows = []
    for case in document["cases"]:
        peers = ", ".join(f"{peer} {value:g}" for peer, value in case["peers"].items())
        ours = "-" if case["ours"] is None else f"{case['ours']:g}"
        rows.append((_WORDS[case["met"]], case["name"], ours, case["unit"], peers, case["goal"]))
    return table(("", "case", "ours", "unit", "others", "goal"), rows)
