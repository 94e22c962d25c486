"""The generator in processes of its own against servers of known behaviour.

``slipway load --self-test`` runs the same cases; here each is a test, and the coordinator is
killed as well.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from blocks.load_workers import LocalWorkers, check_limits, local_ports
from deployments.self_test import CASES, FAST, Case, known_server, load_of, try_case
from domain.errors import UsageError
from domain.load_plan import LoadPlan, Operation, Target
from domain.load_profile import PROFILES, Profile
from domain.load_run import Run
from tests.scenarios.world import wait_until

QUICK = ("worker killed",)
ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, id=case.name, marks=() if case.name in QUICK else pytest.mark.slow)
        for case in CASES
    ],
)
def test_a_known_server(case: Case, tmp_path: Path) -> None:
    found = try_case(case, tmp_path)
    assert found.problem == ""
    assert workers_of(os.getpid()) == []


def lives(pid: int) -> bool:
    """A process whose frozen parent has not buried it yet sends nothing any more."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def workers_of(parent: int) -> list[psutil.Process]:
    return [p for p in psutil.Process(parent).children(recursive=True) if is_worker(p)]


def is_worker(process: psutil.Process) -> bool:
    try:
        return "load.worker" in process.cmdline()
    except psutil.Error:  # gone, or dead and not buried yet
        return False


def plan_for(port: int, profile: Profile, **more: object) -> LoadPlan:
    given = {"workers": 1, "seed": 3, "operations": (FAST,), **more}
    return LoadPlan(profile=profile, target=Target("http", "127.0.0.1", port, "127.0.0.1"), **given)  # type: ignore[arg-type]


COORDINATOR = """\
import json, os, sys
from pathlib import Path
from blocks.load_workers import LocalWorkers
from deployments.self_test import FAST, load_of
from domain.load_plan import LoadPlan, Target
plan = LoadPlan(profile=load_of(200, 0.2, 60), target=Target("http", "127.0.0.1", int(sys.argv[1]),
                "127.0.0.1"), workers=2, seed=1, operations=(FAST,))
said = lambda pids: print(json.dumps(pids), flush=True)
workers = LocalWorkers(Path(sys.argv[2]), on_started=said)
workers.run(plan, lambda run, at: print(run.requests, flush=True))
"""


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "frozen"])
def test_with_the_coordinator_gone_all_load_ends_within_five_seconds(
    end: signal.Signals, tmp_path: Path
) -> None:
    """locust#2008: workers of a dead master kept full load for a minute."""
    with known_server("constant") as port:
        coordinator = subprocess.Popen(
            [sys.executable, "-c", COORDINATOR, str(port), str(tmp_path)],
            stdout=subprocess.PIPE, cwd=ROOT, text=True,
        )  # fmt: skip
        try:
            assert coordinator.stdout is not None
            pids = json.loads(coordinator.stdout.readline())
            assert len(pids) == 2
            while int(coordinator.stdout.readline()) < 200:
                pass
            coordinator.send_signal(end)
            wait_until(lambda: not any(map(lives, pids)), "all load has ended", 5)
        finally:
            coordinator.kill()
            coordinator.wait()


@pytest.mark.slow
def test_two_workers_share_the_users_and_merge(tmp_path: Path) -> None:
    with known_server("constant") as port:
        plan = plan_for(port, load_of(60, 0.2, 4), workers=2)
        run = LocalWorkers(tmp_path).run(plan, lambda run, at: None)
    assert not run.lost and not run.stopped
    steady = [s for s in run.timeline() if 5 <= s.at < 7]
    assert {second.users for second in steady} == {60}
    assert run.missing_samples() == 0
    assert run.requests == sum(int(document["requests"]) for document in run.ended.values()) > 500
    assert workers_of(os.getpid()) == []


def test_behaviours_that_cannot_be_imported_are_refused_before_any_load(tmp_path: Path) -> None:
    for number, (text, words) in enumerate(
        (
            ("import nothing_of_that_name", "No module named 'nothing_of_that_name'"),
            ("x = 1", "has no subclass of load.visitor.Visitor"),
            ("from load.visitor import Visitor\nclass Idle(Visitor): pass", "no method with @task"),
        )
    ):
        file = tmp_path / f"users_{number}.py"
        file.write_text(text)
        with known_server("constant") as port, pytest.raises(UsageError) as refused:
            plan = plan_for(port, load_of(5, 1, 3), behaviours=str(file))
            LocalWorkers(tmp_path / "logs").run(plan, lambda run, at: None)
        assert refused.value.code == "SLP182"
        assert words in refused.value.cause


def test_a_behaviour_that_raises_is_named(tmp_path: Path) -> None:
    file = tmp_path / "users.py"
    file.write_text(
        "from load.visitor import Visitor, task\n"
        "class Clumsy(Visitor):\n"
        "    @task\n"
        "    def look(self):\n"
        "        self.client.get('/a').json()['missing']\n"
    )
    with known_server("constant") as port:
        plan = plan_for(port, load_of(20, 0.2, 3), behaviours=str(file), operations=())
        run = LocalWorkers(tmp_path / "logs").run(plan, lambda run, at: None)
    assert run.scripts.most_common(1)[0][0] == "KeyError: 'missing'"


def test_an_end_that_somebody_asks_for_comes_at_once(tmp_path: Path) -> None:
    began = time.monotonic()

    def stop(run: object, at: int) -> None:
        run.stopped = "asked for"  # type: ignore[attr-defined]

    with known_server("constant") as port:
        run = LocalWorkers(tmp_path).run(plan_for(port, load_of(20, 0.2, 600)), stop)
    assert run.stopped == "asked for"
    assert time.monotonic() - began < 60


def test_a_worker_runs_before_all_else_where_it_may(tmp_path: Path) -> None:
    """One that waits for a processor measures that, and calls it the server."""
    pids: list[int] = []
    seen: set[int] = set()

    def look(run: Run, at: int) -> None:
        seen.add(os.sched_getscheduler(pids[0]) & ~os.SCHED_RESET_ON_FORK)

    with known_server("constant") as port:
        workers = LocalWorkers(tmp_path, on_started=pids.extend)
        run = workers.run(plan_for(port, load_of(20, 0.2, 2)), look)
    allowed = subprocess.run(["chrt", "--rr", "1", "true"], capture_output=True).returncode == 0
    assert seen == {os.SCHED_RR if allowed else os.SCHED_OTHER}
    assert run.real_time() is allowed


def test_too_few_ports_for_a_profile_say_how_many_are_needed() -> None:
    users = local_ports() + 1000
    profile = PROFILES["10k"].scaled(users)
    with pytest.raises(UsageError) as refused:
        check_limits(plan_for(80, profile, workers=64))
    assert refused.value.code == "SLP184"
    assert str(users) in refused.value.cause


def test_too_few_descriptors_say_how_many_are_needed() -> None:
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY or hard > 150_000:
        hard = 150_000
    profile = PROFILES["10k"].scaled(min(hard, 190_000))
    with pytest.raises(UsageError) as refused:
        check_limits(plan_for(80, profile, workers=1))
    assert refused.value.code == "SLP184"


@pytest.mark.slow
def test_operations_are_what_users_do_without_behaviours(tmp_path: Path) -> None:
    operations = (Operation("GET", "/a", "/a"), Operation("GET", "/b?x=1", "/b"))
    with known_server("constant") as port:
        plan = plan_for(port, load_of(20, 0.2, 3), operations=operations)
        run = LocalWorkers(tmp_path).run(plan, lambda run, at: None)
    assert set(run.names()) == {"GET /a", "GET /b"}
