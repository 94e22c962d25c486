"""Run the benchmarks and keep their numbers: ``python tests/bench/run.py [NAME]``.

Each benchmark is a module here with ``run() -> list[Case]``; its result goes to
``.slipway/bench/NAME.json``. A case that could not run has ``met: null`` and says why.
"""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import ModuleType

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
BENCHMARKS = ("release", "judge", "rollout", "backup", "load", "drill", "fire")


@dataclass
class Case:
    """One comparison. ``ours`` and ``peers`` are medians of ``runs``."""

    name: str
    unit: str
    goal: str
    ours: float | None = None
    peers: dict[str, float] = field(default_factory=dict)
    met: bool | None = None
    runs: dict[str, list[float]] = field(default_factory=dict)
    note: str = ""


def main(names: tuple[str, ...]) -> int:
    sys.path.insert(0, str(HERE))
    bad = False
    for name in names:
        cases: list[Case] = load(name).run()
        document = {
            "machine": machine(),
            "commit": commit(),
            "cases": [asdict(case) for case in cases],
        }
        target = ROOT / ".slipway" / "bench" / f"{name}.json"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(json.dumps(document, indent=1) + "\n")
        for case in cases:
            print(line(case))
        print(f"written to {target.relative_to(ROOT)}")
        bad |= any(case.met is not True for case in cases)
    return 1 if bad else 0


def line(case: Case) -> str:
    word = {True: "met", False: "NOT MET", None: "NOT RUN"}[case.met]
    peers = ", ".join(f"{name} {value:g}" for name, value in case.peers.items())
    ours = "-" if case.ours is None else f"{case.ours:g}"
    beside = f" ({peers})" if peers else ""
    note = f"; {case.note}" if case.note else ""
    return f"{word:8} {case.name}: {ours} {case.unit}{beside}; goal {case.goal}{note}"


def load(name: str) -> ModuleType:
    if name not in BENCHMARKS:
        sys.exit(f"no benchmark {name!r}; there are: {', '.join(BENCHMARKS)}")
    specification = importlib.util.spec_from_file_location(f"bench_{name}", HERE / f"{name}.py")
    assert specification is not None and specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules[specification.name] = module  # dataclasses look their module up there
    specification.loader.exec_module(module)
    return module


def machine() -> str:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**30
    python = platform.python_version()
    return (
        f"{os.cpu_count()} cores, {memory} GiB, {platform.system()}, Python {python}, "
        f"{loop_ms():.0f} ms for a million turns of a loop"
    )


def loop_ms() -> float:
    """How fast this machine and its Python are, the best of five: two cores are not two cores."""
    took = []
    for _ in range(5):
        began, total = time.process_time(), 0
        for number in range(1_000_000):
            total += number * number
        took.append(time.process_time() - began)
    return 1000 * min(took)


def commit() -> str:
    done = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT,
                          capture_output=True, text=True)  # fmt: skip
    return done.stdout.strip() or "unknown"


if __name__ == "__main__":
    sys.modules["bench"] = sys.modules[__name__]
    sys.exit(main(tuple(sys.argv[1:]) or BENCHMARKS))
