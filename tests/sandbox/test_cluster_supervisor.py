"""The supervisor of local replicas: killed, restarted, refused, and given awkward programs."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal, TypeVar

import httpx
import psutil
import pytest

from blocks.local_cluster import LocalCluster
from domain.errors import Failed, UsageError
from domain.workload import Phase, Replica, WorkloadSpec
from sandbox import cluster_api, cluster_supervisor
from sandbox import cluster_process as processes
from sandbox.cluster_log import Logs
from sandbox.cluster_state import ReplicaRecord, StateFolder, WorkloadRecord

ROOT = Path(__file__).resolve().parents[2]
DIGEST = "sha256:" + "a" * 64
SERVE = "python -S -m http.server $PORT --bind 127.0.0.1"
T = TypeVar("T")


class Rig:
    """A supervisor that can be killed and started again on the same home."""

    def __init__(self, root: Path, name: str) -> None:
        self.root, self.name = root, name
        self.socket = root / "run" / "cluster.sock"
        self.bundle = root / "bundle"
        (self.bundle / "app").mkdir(parents=True)
        self.process: subprocess.Popen[bytes] | None = None
        self.cluster = LocalCluster(self.socket, self, patience_seconds=15)

    def materialize(self, digest: str) -> Path:
        return self.bundle

    def start(self) -> None:
        where = ["--socket", str(self.socket), "--home", str(self.root / "cluster")]
        haste = ["--probe-seconds", "0.1", "--health-seconds", "0.1"]
        with (self.root / "supervisor.log").open("a") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "sandbox.cluster_supervisor", *where, *haste],
                cwd=ROOT,
                stdout=log,
                stderr=log,
            )

    def kill(self) -> None:
        assert self.process
        self.process.kill()
        self.process.wait()

    def shutdown(self, *, forget: bool = True) -> None:
        assert self.process
        self.cluster.get("anything")  # waits until it answers
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(self.socket))) as client:
            client.post(f"http://c/shutdown?forget={forget}", timeout=20).raise_for_status()
        assert self.process.wait(10) == 0

    def spec(self, command: str = SERVE, **changes: object) -> WorkloadSpec:
        values: dict[str, object] = {
            "name": f"shop.{self.name}",
            "application": "shop",
            "environment": "staging",
            "service": "web",
            "version": "1.0.0",
            "digest": DIGEST,
            "command": command,
            "replicas": 1,
            "port": 8000,
            "drain_seconds": 1,
        }
        return WorkloadSpec.model_validate(values | changes)

    def program(self, text: str) -> None:
        (self.bundle / "app" / "program.py").write_text(text)

    def replica(self) -> Replica:
        found = self.cluster.get(f"shop.{self.name}")
        assert found and found.replicas, self.log()
        return found.replicas[0]

    def ready(self) -> Replica:
        return until(
            lambda: (r := self.replica()).phase is Phase.READY and r, lambda: f"{self.replica()}"
        )

    def log(self) -> str:
        return (self.root / "supervisor.log").read_text()

    def pids(self) -> list[int]:
        return [pid for pids in self.left().values() for pid in pids]

    def left(self) -> dict[str, list[int]]:
        """Processes of any replica of this home that live."""
        return processes.marked(cluster_supervisor.marker_prefix(self.root / "cluster"))


@pytest.fixture(scope="module")
def shared() -> Iterator[Rig]:
    """One supervisor for the tests that do not end it."""
    yield from _rig("shared")


@pytest.fixture
def own() -> Iterator[Rig]:
    yield from _rig("own")


def _rig(name: str) -> Iterator[Rig]:
    root = Path(tempfile.mkdtemp(prefix="slipway-"))
    rig = Rig(root, name)
    rig.start()
    try:
        yield rig
        if rig.process and rig.process.poll() is None:
            rig.shutdown()
        assert rig.left() == {}, "processes were left behind"
    finally:
        rig.kill()
        processes.send(rig.pids(), signal.SIGKILL)
        rig.cluster.close()
        shutil.rmtree(root)


@pytest.fixture
def rig(shared: Rig, request: pytest.FixtureRequest) -> Iterator[Rig]:
    shared.name = request.node.originalname.removeprefix("test_").replace("_", "-")[:80]
    yield shared
    shared.cluster.stop(f"shop.{shared.name}")


def until(
    read: Callable[[], T | Literal[False] | None],
    what: Callable[[], str] | str = "",
    seconds: float = 15,
) -> T:
    deadline = time.monotonic() + seconds
    while not (seen := read()):
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds} s: {what() if callable(what) else what}")
        time.sleep(0.03)
    return seen


def status(replica: Replica, path: str = "/") -> int:
    return httpx.get(f"http://{replica.address}{path}").status_code


# -- the supervisor goes and comes back ------------------------------------------------------


def test_replicas_serve_on_while_the_supervisor_is_killed_and_comes_back(own: Rig) -> None:
    spec = own.spec(replicas=2)
    own.cluster.apply(spec)
    until(lambda: (w := own.cluster.get(spec.name)) and w.is_ready)
    before = own.cluster.get(spec.name)
    assert before
    statuses: list[int] = []
    over = threading.Event()

    def user() -> None:
        while not over.is_set():
            statuses.append(status(before.replicas[0]))

    browsing = threading.Thread(target=user)
    browsing.start()
    own.kill()
    own.start()
    after = own.cluster.get(spec.name)
    over.set()
    browsing.join()
    assert after == before
    assert set(statuses) == {200}


def test_an_adopted_replica_is_watched_restarted_and_stopped_like_any_other(own: Rig) -> None:
    own.cluster.apply(own.spec())
    before = own.ready()
    own.kill()
    own.start()
    assert before.pid and own.ready().pid == before.pid
    os.kill(before.pid, signal.SIGKILL)
    after = until(lambda: (r := own.ready()).pid != before.pid and r)
    assert after.address == before.address and after.restarts == 1
    own.cluster.stop(own.spec().name)
    assert own.left() == {}


def test_sigterm_leaves_the_replicas_and_shutdown_ends_them(own: Rig) -> None:
    own.cluster.apply(own.spec())
    before = own.ready()
    assert own.process
    own.process.terminate()
    assert own.process.wait(10) == 0 and not own.socket.exists()
    assert status(before) == 200
    own.start()
    assert own.ready().pid == before.pid
    own.shutdown(forget=False)
    assert own.left() == {}


def test_what_was_declared_comes_back_after_a_shutdown_unless_forgotten(own: Rig) -> None:
    own.cluster.apply(own.spec())
    before = own.ready()
    own.shutdown(forget=False)
    own.start()
    after = own.ready()
    assert after.address == before.address and after.pid != before.pid
    own.shutdown(forget=True)
    own.start()
    assert own.cluster.workloads("shop", "staging") == ()


def test_a_supervisor_killed_in_the_middle_of_starting_ends_with_what_was_declared(
    own: Rig,
) -> None:
    spec = own.spec("sleep 60", replicas=8, port=None)
    for pause_seconds in (0.0, 0.01, 0.03):
        applying = threading.Thread(target=_apply_quietly, args=(own, spec))
        applying.start()
        threading.Event().wait(pause_seconds)
        own.kill()
        applying.join()
        own.start()
        own.cluster.get(spec.name)
    own.cluster.apply(spec)
    until(lambda: (w := own.cluster.get(spec.name)) and w.is_ready)
    running = own.cluster.get(spec.name)
    assert running
    assert sorted(own.pids()) == sorted(replica.pid for replica in running.replicas if replica.pid)


def _apply_quietly(rig: Rig, spec: WorkloadSpec) -> None:
    impatient = LocalCluster(rig.socket, rig, patience_seconds=0.1)
    with contextlib.suppress(Failed), impatient:
        impatient.apply(spec)


def test_a_process_that_was_started_and_never_written_down_is_ended(own: Rig) -> None:
    own.shutdown()
    marker = cluster_supervisor.marker_prefix(own.root / "cluster") + "half-started"
    spec = own.spec(replicas=1)
    record = WorkloadRecord(
        spec=spec, directory=own.bundle, replicas=[ReplicaRecord(index=0, marker=marker)]
    )
    StateFolder(own.root / "cluster" / "workloads").write(record)
    orphan = subprocess.Popen(
        ["sleep", "60"], env={"PATH": os.environ["PATH"], "SLIPWAY_REPLICA": marker}
    )
    stranger = subprocess.Popen(
        ["sleep", "60"],
        env={"PATH": os.environ["PATH"], "SLIPWAY_REPLICA": marker.replace("half", "un")},
    )
    own.start()
    assert own.ready()
    assert orphan.wait(5) == stranger.wait(5) == -signal.SIGKILL


def test_a_stop_that_was_interrupted_is_finished_after_the_restart(own: Rig) -> None:
    own.program("import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(60)")
    own.cluster.apply(own.spec("python program.py", port=None, drain_seconds=3))
    own.ready()
    stopping = threading.Thread(target=own.cluster.stop, args=(own.spec().name,))
    stopping.start()
    until(lambda: own.replica().phase is Phase.STOPPING)
    own.kill()
    own.start()
    stopping.join(20)
    assert own.cluster.get(own.spec().name) is None and own.left() == {}


def test_what_expired_while_no_supervisor_ran_is_stopped_at_its_start(own: Rig) -> None:
    own.cluster.apply(own.spec(expires_at=datetime.now(UTC) + timedelta(seconds=2)))
    own.kill()
    until(lambda: own.left(), "it runs on")
    until(lambda: datetime.now(UTC) > expiry_of(own), "the time has come")
    own.start()
    until(lambda: own.cluster.get(own.spec().name) is None)
    assert own.left() == {}


def expiry_of(rig: Rig) -> datetime:
    path = rig.root / "cluster" / "workloads" / f"{rig.spec().name}.json"
    return datetime.fromisoformat(json.loads(path.read_text())["spec"]["expires_at"])


def test_a_record_that_cannot_be_read_is_set_aside_and_its_processes_ended(own: Rig) -> None:
    own.cluster.apply(own.spec())
    own.ready()
    own.kill()
    path = own.root / "cluster" / "workloads" / f"{own.spec().name}.json"
    path.write_text(path.read_text()[:-20])
    own.start()
    assert own.cluster.workloads("shop", "staging") == ()
    assert path.with_suffix(".damaged").exists() and own.left() == {}


# -- ports -----------------------------------------------------------------------------------


def test_a_killed_replica_comes_back_on_its_port(rig: Rig) -> None:
    rig.cluster.apply(rig.spec())
    before = rig.ready()
    assert before.pid
    os.kill(before.pid, signal.SIGKILL)
    after = until(lambda: (r := rig.ready()).pid != before.pid and r)
    assert (after.address, after.exit_code, after.restarts) == (before.address, -9, 1)


def test_a_port_taken_before_the_restart_is_given_up(rig: Rig) -> None:
    rig.program(
        "import os, pathlib, socket, subprocess, sys\n"
        "if not pathlib.Path('again').exists():\n"
        "    pathlib.Path('again').touch()\n"
        "    sys.exit('OSError: [Errno 98] Address already in use')\n"
        "os.execvp('python', ['python', '-m', 'http.server', os.environ['PORT']])\n"
    )
    rig.cluster.apply(rig.spec("python program.py"))
    first = rig.replica().address
    after = rig.ready()
    assert after.address != first and after.restarts == 1
    assert after.exit_code is None, "losing a port is not a failure of the version"


def test_a_stranger_on_the_port_is_never_taken_for_the_replica(rig: Rig) -> None:
    rig.program("import os, time; print(os.environ['PORT'], flush=True); time.sleep(60)")
    rig.cluster.apply(rig.spec("python program.py"))
    address = rig.replica().address
    assert address
    with socket.create_server(("127.0.0.1", int(address.rpartition(":")[2]))):
        moved = until(lambda: (r := rig.replica()).address != address and r)
    assert moved.phase is not Phase.READY
    assert f"{os.getpid()}" in moved.reason or "taken by another process" in moved.reason


def test_a_program_that_ignores_its_port_is_explained(rig: Rig) -> None:
    port = processes.free_port(())
    rig.cluster.apply(rig.spec(f"python -m http.server {port} --bind 127.0.0.1"))
    reason = until(lambda: (r := rig.replica().reason) and "make the command" in r and r)
    assert f"listens on 127.0.0.1:{port}, not on $PORT=" in reason


def test_a_program_whose_own_port_is_taken_is_explained(rig: Rig) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        rig.cluster.apply(
            rig.spec(f"python -m http.server {taken.getsockname()[1]} --bind 127.0.0.1")
        )
        failed = until(lambda: (r := rig.replica()).exit_code is not None and r)
    assert failed.exit_code == 1 and "make the command use $PORT" in failed.reason


# -- programs of all kinds -------------------------------------------------------------------


def test_children_end_with_their_replica_even_those_that_left_its_session(rig: Rig) -> None:
    rig.program(
        "import subprocess, time\n"
        "subprocess.Popen(['sleep', '60'])\n"
        "subprocess.Popen(['sleep', '61'], start_new_session=True)\n"
        "subprocess.Popen(['sh', '-c', 'setsid sleep 62 & exit'], start_new_session=True)\n"
        "time.sleep(60)\n"
    )
    rig.cluster.apply(rig.spec("python program.py", port=None))
    pids = until(lambda: len(found := rig.pids()) >= 4 and found)
    rig.cluster.stop(rig.spec().name)
    assert not [pid for pid in pids if psutil.pid_exists(pid)]


def test_a_compound_command_passes_its_signal_on(rig: Rig) -> None:
    rig.program(
        "import pathlib, signal, sys, time\n"
        "def end(*_):\n"
        "    print('drained', flush=True); sys.exit(0)\n"
        "signal.signal(signal.SIGTERM, end)\n"
        "print('set', flush=True); time.sleep(60)\n"
    )
    rig.cluster.apply(rig.spec("python program.py && echo done; true", port=None))
    until(lambda: "set" in rig.cluster.log_tail(rig.spec().name))
    rig.cluster.stop(rig.spec().name)
    assert "drained" in rig.cluster.log_tail(rig.spec().name)


def test_a_worker_that_outlives_its_master_is_ended_before_the_restart(rig: Rig) -> None:
    rig.program(
        "import os, subprocess, sys, time\n"
        "subprocess.Popen([sys.executable, '-m', 'http.server', os.environ['PORT']])\n"
        "time.sleep(60)\n"
    )
    rig.cluster.apply(rig.spec("python program.py"))
    before = rig.ready()
    assert before.pid
    os.kill(before.pid, signal.SIGKILL)
    after = until(lambda: (r := rig.ready()).pid != before.pid and r)
    assert after.address == before.address and len(rig.pids()) == 2


def test_a_crash_loop_slows_down(rig: Rig) -> None:
    rig.cluster.apply(rig.spec("exit 4"))
    replica = until(lambda: (r := rig.replica()).restarts >= 3 and r)
    assert replica.exit_code == 4
    assert replica.phase is Phase.BACKOFF and "starts again in 2 s" in replica.reason


def test_a_failing_health_check_restarts_a_replica_that_was_ready(rig: Rig) -> None:
    (rig.bundle / "app" / "alive").touch()
    rig.cluster.apply(rig.spec(health="/alive"))
    before = rig.ready()
    (rig.bundle / "app" / "alive").unlink()
    failed = until(lambda: (r := rig.replica()).exit_code is not None and r)
    assert "failed its health check 3 times in a row" in failed.reason
    assert "/alive: expected 2xx, got 404" in failed.reason
    assert failed.pid != before.pid


def test_a_replica_that_stops_answering_is_unready_and_recovers(rig: Rig) -> None:
    (rig.bundle / "app" / "readyz").touch()
    rig.cluster.apply(rig.spec(ready="/readyz"))
    before = rig.ready()
    (rig.bundle / "app" / "readyz").unlink()
    unready = until(lambda: (r := rig.replica()).phase is Phase.UNREADY and r)
    assert "got 404" in unready.reason
    (rig.bundle / "app" / "readyz").touch()
    assert rig.ready() == before


def test_a_redirect_is_not_ready_and_says_where_to(rig: Rig) -> None:
    (rig.bundle / "app" / "folder").mkdir()
    rig.cluster.apply(rig.spec(ready="/folder"))
    reason = until(lambda: (r := rig.replica().reason) and "301" in r and r)
    assert "got 301 to /folder/" in reason
    assert rig.replica().phase is Phase.STARTING


def test_a_program_that_listens_late_says_so_after_its_deadline(rig: Rig) -> None:
    rig.cluster.apply(rig.spec("sleep 60", start_seconds=0.5))
    reason = until(lambda: (r := rig.replica().reason) and "no port yet" in r and r)
    assert reason.startswith("not ready after 0.5 s: ") and "connection refused" in reason


# -- refusals and limits ---------------------------------------------------------------------


@pytest.mark.parametrize("what", ["log", "state"])
def test_a_full_disk_starts_nothing(rig: Rig, what: str) -> None:
    folder = rig.root / "cluster"
    full = {
        "log": folder / "logs" / f"shop.{rig.name}" / "1.log",
        "state": folder / "workloads" / f"shop.{rig.name}.new",
    }[what]
    full.parent.mkdir(exist_ok=True)
    full.symlink_to("/dev/full")
    with pytest.raises(Failed) as caught:
        rig.cluster.apply(rig.spec("sleep 60", replicas=3, port=None))
    assert caught.value.code == "SLP015" and "nothing was changed" in caught.value.cause
    assert rig.cluster.get(rig.spec().name) is None
    until(lambda: rig.left() == {})
    full.unlink(missing_ok=True)
    rig.cluster.apply(rig.spec("sleep 60", replicas=3, port=None))


def test_scaling_on_a_full_disk_keeps_what_runs(rig: Rig) -> None:
    rig.cluster.apply(rig.spec("sleep 60", port=None))
    before = rig.ready()
    log = rig.root / "cluster" / "logs" / rig.spec().name / "1.log"
    log.symlink_to("/dev/full")
    with pytest.raises(Failed):
        rig.cluster.apply(rig.spec("sleep 60", port=None, replicas=2))
    found = rig.cluster.get(rig.spec().name)
    assert found and found.desired == 1 and found.replicas == (before,)


@pytest.mark.parametrize(
    "changes", [{"command": "sleep 61"}, {"version": "1.0.1"}, {"digest": "sha256:" + "b" * 64}]
)
def test_another_version_under_the_same_name_is_refused(rig: Rig, changes: dict[str, Any]) -> None:
    rig.cluster.apply(rig.spec("sleep 60", port=None))
    before = rig.ready()
    with pytest.raises(UsageError) as caught:
        rig.cluster.apply(rig.spec(**{"command": "sleep 60", "port": None, **changes}))
    assert caught.value.code == "SLP005" and next(iter(changes)) in caught.value.cause
    assert rig.replica() == before


@pytest.mark.parametrize(
    "changes",
    [
        {"environ": {"A=B": "1"}},
        {"environ": {"A": "secret\0"}},
        {"command": "  "},
        {"expires_at": datetime(2030, 1, 1)},
    ],
)
def test_a_spec_that_cannot_run_is_refused_in_words(rig: Rig, changes: dict[str, Any]) -> None:
    with pytest.raises(UsageError) as caught:
        rig.cluster.apply(rig.spec(**changes))
    assert caught.value.code == "SLP002" and "secret" not in str(caught.value)
    assert rig.cluster.get(rig.spec().name) is None


def test_a_bundle_without_source_is_refused(rig: Rig) -> None:
    bundle = rig.bundle
    rig.bundle = rig.root / "elsewhere"
    try:
        with pytest.raises(UsageError, match="is not a folder"):
            rig.cluster.apply(rig.spec())
    finally:
        rig.bundle = bundle


def test_secrets_stay_in_files_that_only_the_owner_reads(rig: Rig) -> None:
    rig.cluster.apply(rig.spec("echo $TOKEN; sleep 60", port=None, environ={"TOKEN": "pl4nted"}))
    rig.ready()
    with httpx.Client(transport=httpx.HTTPTransport(uds=str(rig.socket))) as client:
        for path in (f"/workloads/{rig.spec().name}", "/workloads", "/healthz"):
            assert "pl4nted" not in client.get(f"http://c{path}").text
    holders = [p for p in rig.root.rglob("*") if p.is_file() and b"pl4nted" in p.read_bytes()]
    assert len(holders) == 2, "the record and the replica's own log"
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in holders)
    assert "pl4nted" not in rig.log()


def test_the_socket_is_the_owners_alone(rig: Rig) -> None:
    rig.cluster.get("anything")
    assert stat.S_IMODE(rig.socket.stat().st_mode) == 0o600
    assert stat.S_IMODE(rig.socket.parent.stat().st_mode) == 0o700


def test_a_connection_of_another_user_is_closed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    here, there = socket.socketpair(socket.AF_UNIX)
    with here, there:
        assert cluster_api._peer_uid(here) == os.getuid()
    monkeypatch.setattr(cluster_api, "_peer_uid", lambda connection: os.getuid() + 1)
    folder = Path(tempfile.mkdtemp(prefix="slipway-"))
    with pytest.raises(httpx.TransportError):
        asyncio.run(_ask_in_process(tmp_path, folder / "s"))
    shutil.rmtree(folder)


async def _ask_in_process(home: Path, path: Path) -> None:
    server = cluster_api.server(cluster_supervisor.Supervisor(home))
    with cluster_api.owner_only_socket(path) as listener:
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        try:
            transport = httpx.AsyncHTTPTransport(uds=str(path))
            async with httpx.AsyncClient(transport=transport) as client:
                await client.get("http://c/healthz")
        finally:
            server.stop()
            await serving


def test_a_socket_folder_that_others_may_enter_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "open").mkdir(mode=0o755)
    where = ["--socket", str(tmp_path / "open" / "s"), "--home", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-m", "sandbox.cluster_supervisor", *where],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=20,
    )
    assert done.returncode == 1 and "others may enter its folder" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_second_supervisor_on_the_same_home_gives_up(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rig.cluster.get("anything")
    monkeypatch.setattr(cluster_supervisor, "_LOCK_SECONDS", 0.1)
    monkeypatch.setattr(os, "umask", lambda mask: mask)
    code = cluster_supervisor.main(
        ["--socket", str(rig.socket), "--home", str(rig.root / "cluster")]
    )
    assert code == 1 and "another cluster supervisor" in capsys.readouterr().err


def test_without_a_supervisor_the_client_says_what_to_do(tmp_path: Path) -> None:
    with (
        LocalCluster(tmp_path / "none.sock", Rig(tmp_path, "x"), patience_seconds=0.3) as cluster,
        pytest.raises(Failed) as caught,
    ):
        cluster.get("anything")
    assert caught.value.code == "SLP014" and "slipway up" in caught.value.help


# -- parts -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "direct"),
    [
        ("python -m app --port $PORT", True),
        ("python -c 'import x; x.run()'", True),
        ("python -m app > out.txt", True),
        ("./run.sh", True),
        ("MODE=1 python -m app", False),
        ("cd sub && python -m app", False),
        ("python a.py & python b.py", False),
        ("python a.py | tee log", False),
        ("(python a.py)", False),
        ("exit 3", False),
        ("no-such-program", False),
        ("python 'unclosed", False),
        ("python a.py\npython b.py", False),
        ("$(which python) a.py", False),
        ("", False),
    ],
)
def test_only_a_single_program_takes_the_shells_place(
    tmp_path: Path, command: str, direct: bool
) -> None:
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "run.sh").touch(mode=0o755)
    path = processes.search_path(tmp_path)
    assert processes.is_program(command, path, tmp_path) is direct


def test_a_bundles_own_environment_comes_first(
    tmp_path: Path, rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLIPWAY_SANDBOX", "/home/of/this")
    (tmp_path / "venv" / "bin").mkdir(parents=True)
    environ = processes.environment(
        rig.spec(environ={"PATH": "/evil", "LANG": "de_DE"}),
        tmp_path,
        marker="m",
        port=1,
    )
    assert environ["PATH"].split(":")[0] == str(tmp_path / "venv" / "bin")
    assert environ["VIRTUAL_ENV"] == str(tmp_path / "venv")
    assert environ["LANG"] == "de_DE" and "/evil" not in environ["PATH"]
    assert environ["SLIPWAY_SANDBOX"] == "/home/of/this"


def test_a_log_that_has_grown_too_large_is_cut_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sandbox.cluster_log._LIMIT_BYTES", 1000)
    logs = Logs(tmp_path)
    descriptor, start = logs.open("shop", 0, "start 0")
    os.write(descriptor, b"old\n" * 500)
    logs.rotate()
    os.write(descriptor, b"new\n")
    os.close(descriptor)
    assert logs.path("shop", 0).read_bytes() == b"new\n"
    assert b"old" in logs.path("shop", 0).with_suffix(".log.1").read_bytes()
    assert logs.tail("shop", 5) == "new" and logs.since("shop", 0, start) == "new\n"


def test_a_pid_that_was_given_to_another_process_is_not_ours() -> None:
    me = psutil.Process()
    marker = os.environ.get(processes.MARKER, "")
    born = processes.birth(me.pid)
    assert processes.is_alive(me.pid, born, marker)
    assert not processes.is_alive(me.pid, born - 1, marker)
    assert not processes.is_alive(me.pid, born, "another's") or not marker
    assert not processes.is_alive(2**22 + 1, born, marker)


def test_ports_are_chosen_where_no_client_can_be_sitting() -> None:
    with socket.create_server(("127.0.0.1", processes.free_port(()))) as server:
        assert not processes.is_free(server.getsockname()[1])
    ports = {processes.free_port(()) for _ in range(50)}
    assert all(10_000 <= port < 32_768 for port in ports)
