"""``slipway load --self-test``: the generator against servers whose behaviour is known beforehand.

It proves on this machine, in about four minutes, that percentiles are right, that each planted
fault is named, that none passes, and that nothing is left running. No sandbox is needed.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import ceil
from pathlib import Path

from blocks.load_workers import LocalWorkers
from deployments.console import Console, table
from domain.application import Objectives
from domain.latency import Histogram
from domain.load_plan import LoadPlan, Operation, Target
from domain.load_profile import Model, Profile, ramp
from domain.load_report import LoadOutcome, figures_of
from domain.load_run import Run
from domain.load_verdict import LoadVerdict, hopeless, judge
from domain.units import parse_duration

ATTEMPTS = 3
_ROOT = Path(__file__).resolve().parents[1]
FAST, RARE = Operation("GET", "/often", "/often"), Operation("GET", "/rare", "/rare")
Harm = Callable[[Sequence[int]], None]


@dataclass(frozen=True)
class Case:
    """One server, one load, and what must come of it.

    Attributes:
        outcome: that the run must end with.
        words: all of them must be in the reason.
        exact: percentiles of the steady phase that theory gives: share to seconds.
        truth: percentiles of everything that must be what the server itself has noted.
        allowed: relative error of both.
        harm: done to the worker's processes in mid-run.
    """

    name: str
    server: str
    profile: Profile
    outcome: LoadOutcome
    words: tuple[str, ...] = ()
    exact: dict[float, float] = field(default_factory=dict)
    allowed: float = 0.05
    truth: tuple[float, ...] = ()
    operations: tuple[Operation, ...] = (FAST,)
    harm: Harm | None = None
    limit: str = "200ms"


@dataclass(frozen=True)
class Found:
    """What came of a case; ``problem`` is empty when it is what must come of it."""

    case: Case
    verdict: LoadVerdict
    outcome: LoadOutcome
    run: Run
    problem: str


def load_of(users: float, pause: float, steady: float, rise: float = 2, **more: object) -> Profile:
    given = {"timeout_seconds": 4.0, "name": "self-test", "description": "self-test", **more}
    return ramp(users, rise, steady, pause_seconds=pause, **given)


def at_second(seconds: float, act: Callable[[int], None]) -> Harm:
    """Do something to the first worker a while after the start."""

    def harm(pids: Sequence[int]) -> None:
        timer = threading.Timer(seconds, act, (pids[0],))
        timer.daemon = True
        timer.start()

    return harm


def starve(pids: Sequence[int]) -> None:
    """Leave a worker a fifth of its time, as a full machine would."""

    def hold() -> None:
        while True:
            try:
                os.kill(pids[0], signal.SIGSTOP)
                time.sleep(0.08)
                os.kill(pids[0], signal.SIGCONT)
                time.sleep(0.02)
            except ProcessLookupError:
                return

    threading.Thread(target=hold, daemon=True).start()


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


def freeze(pid: int) -> None:
    os.kill(pid, signal.SIGSTOP)


CASES: tuple[Case, ...] = (
    Case("constant 20 ms", "constant", load_of(100, 0.1, 10), LoadOutcome.PASSED),
    Case("lognormal, median 1 s", "lognormal", load_of(450, 1, 10, model=Model.OPEN),
         LoadOutcome.PASSED, truth=(0.5, 0.9, 0.95, 0.99), allowed=0.005, limit="3s"),
    Case("stall of 2 s in 10, open", "stall", load_of(400, 1, 20, model=Model.OPEN),
         LoadOutcome.FAILED, ("p95",), {0.95: 1.5, 0.99: 1.9}, truth=(0.9, 0.95, 0.99)),
    # 400 connections a second: the server's own note begins when a request has been read, so what
    # waits for a connection that cannot be made faster would be ours alone.
    Case("stall of 2 s in 10, closed", "stall", load_of(4000, 10, 20, rise=10),
         LoadOutcome.FAILED, ("p95",), {0.95: 1.497, 0.99: 1.901}, truth=(0.9, 0.95, 0.99)),
    Case("1 % errors", "errors", load_of(60, 0.2, 10), LoadOutcome.FAILED, ("HTTP 500",)),
    Case("one slow endpoint", "slow-endpoint", load_of(60, 0.2, 12), LoadOutcome.FAILED,
         ("/rare",), operations=(*[FAST] * 19, RARE)),
    Case("dropped connections", "drops", load_of(60, 0.2, 10), LoadOutcome.FAILED,
         ("had to be sent twice",)),
    Case("idle connections closed", "closes-idle", load_of(400, 0.5, 10), LoadOutcome.PASSED),
    Case("connection limit", "few-connections", load_of(100, 0.2, 10), LoadOutcome.FAILED,
         ("connections were ever answered",)),
    Case("everything fails", "down", load_of(60, 0.2, 40), LoadOutcome.FAILED,
         ("ended early", "HTTP 503")),
    Case("generator with a fifth of a core", "constant", load_of(100, 0.2, 8),
         LoadOutcome.UNSOUND, ("the generator was the limit",), harm=starve),
    Case("worker killed", "constant", load_of(40, 0.2, 8), LoadOutcome.UNSOUND,
         ("worker 1 of 1 died (signal 9)", "samples are lost"), harm=at_second(5, kill)),
    Case("worker frozen", "constant", load_of(40, 0.2, 12), LoadOutcome.UNSOUND,
         ("worker 1 of 1 fell silent",), harm=at_second(5, freeze)),
    Case("nothing sent", "constant", load_of(40, 3000, 4, model=Model.CLOSED),
         LoadOutcome.UNSOUND, ("no request was sent",), operations=()),
)  # fmt: skip


@contextmanager
def known_server(behaviour: str) -> Iterator[int]:
    """The port of a server of that behaviour, gone afterwards."""
    process = subprocess.Popen(
        [sys.executable, "-m", "sandbox.known_server", behaviour],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=_ROOT, start_new_session=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        yield int(process.stdout.readline())
    finally:
        assert process.stdin is not None
        process.stdin.close()
        process.wait(10)


def try_case(case: Case, folder: Path) -> Found:
    """A case; one that a hiccup of this machine has made unsound is tried twice more."""
    for attempt in range(1, ATTEMPTS + 1):
        found = run_case(case, folder / f"attempt-{attempt}")
        hiccup = found.outcome is LoadOutcome.UNSOUND and case.outcome is not LoadOutcome.UNSOUND
        if not hiccup:
            break
    return found


def run_case(case: Case, folder: Path) -> Found:
    """Put the load of a case on its server, judge it, compare with what must come of it."""
    objectives = Objectives(p95=parse_duration(case.limit))
    with known_server(case.server) as port:
        plan = LoadPlan(
            profile=case.profile,
            target=Target("http", "127.0.0.1", port, "127.0.0.1"),
            workers=1,
            seed=11,
            operations=case.operations,
        )

        def look(run: Run, at: int) -> None:
            run.hopeless = run.hopeless or hopeless(run, at - 1, objectives)

        workers = LocalWorkers(folder, on_started=case.harm or (lambda pids: None))
        run = workers.run(plan, look)
        took = _truth(port) if case.truth else []
    verdict = judge(run, objectives)
    outcome: LoadOutcome = figures_of(run, verdict)["outcome"]
    return Found(case, verdict, outcome, run, _problem(case, verdict, outcome, run, took))


def _truth(port: int) -> list[float]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/truth", timeout=10) as answer:
        took: list[float] = sorted(json.load(answer))
    return took


def _problem(
    case: Case, verdict: LoadVerdict, outcome: LoadOutcome, run: Run, took: Sequence[float]
) -> str:
    if outcome is not case.outcome:
        return f"it ended {outcome}: {verdict.reason}"
    told = " ".join([verdict.reason, *(c.reason for c in verdict.limits if c.verdict != "pass")])
    for words in case.words:
        if words not in told:
            return f"its reason does not say {words!r}: {told}"
    compared = [(run.phase("steady").response, case.exact)]
    if took:
        noted = {share: took[ceil(share * len(took)) - 1] for share in case.truth}
        compared.append((_served(run), noted))
    for seen, wanted in compared:
        for share, right in wanted.items():
            found = (seen.percentile(share) or 0) / 1e6
            if abs(found / right - 1) > case.allowed:
                return f"p{100 * share:g} is {found:.4f} s, and should be {right:.4f} s"
    return ""


def _served(run: Run) -> Histogram:
    """What the server took for each request of the whole run."""
    whole = Histogram()
    for series in run.endpoints.values():
        whole.merge(series.service)
    return whole


def run_all(console: Console, cases: Sequence[Case] = CASES) -> int:
    """Run every case; exits 0 when the generator can be trusted on this machine."""
    rows: list[list[str]] = []
    found: list[Found] = []
    with tempfile.TemporaryDirectory(prefix="slipway-self-test-") as folder:
        for case in cases:
            console.say(f"self-test: {case.name}")
            result = try_case(case, Path(folder))
            found.append(result)
            mark = "✖" if result.problem else "✔"
            rows.append([mark, case.name, result.outcome, result.problem or result.verdict.reason])
    bad = [result for result in found if result.problem]
    document = {
        "outcome": "failed" if bad else "passed",
        "cases": [
            {"name": r.case.name, "outcome": r.outcome, "reason": r.verdict.reason,
             "problem": r.problem, "requests": r.run.requests}
            for r in found
        ],
    }  # fmt: skip
    text = table(("", "CASE", "ENDED", "BECAUSE"), rows)
    summary = f"{len(found) - len(bad)} of {len(found)} cases as they must be"
    console.finish(f"{text}\n\n{summary}", document)
    return 1 if bad else 0
