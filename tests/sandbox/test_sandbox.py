"""A whole sandbox with its real parts: started, disturbed, killed and stopped."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TypeVar

import httpx
import psutil
import psycopg
import pytest

from domain.errors import Failed, UsageError
from sandbox import control, ports
from sandbox.control import PartStatus, State, Status
from sandbox.home import Home, Memory
from sandbox.processes import is_alive

T = TypeVar("T")
PARTS = {
    "prefect", "worker", "traefik", "cluster", "postgres-aws", "postgres-gcp", "redis", "moto",
    "gcs", "traefik-gcp", "cluster-gcp", "google", "dns", "keeper-aws", "keeper-gcp",
}  # fmt: skip


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    place = Home.at(tmp_path_factory.mktemp("sandbox") / "state root")
    place.make()
    # Not the preferred ones: the sandbox of another test may take those while this one restarts.
    Memory({name: ports.choose(f"any port for {name}") for name in ports.PREFERRED}).save(place)
    yield place
    control.down(place)


@pytest.fixture
def running(home: Home) -> Status:
    return control.up(home)


@pytest.fixture
def other(tmp_path: Path) -> Iterator[Home]:
    place = Home.at(tmp_path / "other")
    yield place
    control.down(place)


def processes_of(home: Home) -> list[str]:
    """Found without the product's own way of finding them."""
    found = []
    for process in psutil.process_iter():
        try:
            mine = process.environ().get("SLIPWAY_HOME") == str(home.root)
            mine = mine or str(home.root) in " ".join(process.cmdline())
        except psutil.Error:
            continue
        if mine and is_alive(process):
            found.append(f"{process.pid} {process.cmdline()}")
    return found


def listens(home: Home, port: int) -> bool:
    """Somebody listens there who is not known to belong to another sandbox, which may have
    chosen the preferred ports as soon as this one had left them."""
    for one in psutil.net_connections("tcp"):
        if one.status == psutil.CONN_LISTEN and one.laddr.port == port:
            try:
                owner = psutil.Process(one.pid).environ().get("SLIPWAY_HOME")
            except psutil.NoSuchProcess:
                continue
            return owner in (None, str(home.root))
    return False


def assert_nothing_is_left(home: Home) -> None:
    assert processes_of(home) == []
    memory = Memory.load(home)
    assert [name for name, port in memory.ports.items() if listens(home, port)] == []
    assert memory.processes == {}
    assert not home.lock_file.exists()
    assert not home.run.exists()
    assert control.status(home) is None


def wait_for(look: Callable[[], T | None], seconds: float = 45) -> T:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if (seen := look()) is not None:
            return seen
        time.sleep(0.05)
    raise AssertionError(f"not seen within {seconds} s")


def part(home: Home, name: str) -> PartStatus:
    found = control.require(home).part(name)
    assert found is not None
    return found


def test_every_part_is_ready_and_its_address_answers(home: Home, running: Status) -> None:
    assert {p.name for p in running.parts} == PARTS
    assert running.ready
    at = running.addresses
    with httpx.Client(trust_env=False, timeout=10) as client:
        pages = [f"{at['prefect_api']}/health", at["prefect_ui"], f"{at['edge_api']}/rawdata",
                 at["edge_metrics"], f"{at['s3_endpoint']}/moto-api/config",
                 at["gcs_endpoint"]]  # fmt: skip
        assert [page for page in pages if client.get(page).status_code >= 400] == []
        # No route yet: the edge itself answers.
        assert client.get(at["edge_web"]).status_code == 404
        assert client.get(at["edge_internal"]).status_code == 404
        pool = client.get(f"{at['prefect_api']}/work_pools/local").json()
        assert (pool["type"], pool["status"]) == ("process", "READY")
    for cloud in ("aws", "gcp"):
        with psycopg.connect(at[f"database_{cloud}_url"]) as connection:
            row = connection.execute("select current_user, current_setting('fsync')").fetchone()
            assert row == ("slipway", "on")
    with socket.create_connection((ports.LOOPBACK, int(at["redis_url"].split(":")[2][:-2]))) as s:
        s.sendall(b"PING\r\n")
        assert s.recv(16) == b"+PONG\r\n"
    assert all(Path(at[folder]).is_dir() for folder in ("store", "bundles", "edge_dynamic"))


def test_a_database_refuses_a_wrong_password(running: Status) -> None:
    url = running.addresses["database_aws_url"]
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(url.replace("slipway:", "slipway:x"))


def test_everything_listens_on_loopback_only(home: Home, running: Status) -> None:
    pids = {int(line.split()[0]) for line in processes_of(home)}
    listening = [
        c for c in psutil.net_connections("inet") if c.pid in pids and c.status == "LISTEN"
    ]
    assert {str(c.laddr).split("'")[1] for c in listening} == {"127.0.0.1", "127.0.0.2"}


def test_what_runs_in_it_finishes_its_turn_on_a_processor(home: Home, running: Status) -> None:
    policies = {part.name: os.sched_getscheduler(part.pid) for part in running.parts if part.pid}
    assert set(policies.values()) == {os.SCHED_BATCH}, policies


def test_only_the_owner_can_reach_the_sockets_and_the_passwords(
    home: Home, running: Status
) -> None:
    assert home.run.stat().st_mode & 0o777 == 0o700
    assert home.control_socket.stat().st_mode & 0o777 == 0o600
    assert home.state_file.stat().st_mode & 0o777 == 0o600
    password = Memory.load(home).secrets["database"]
    assert password not in str(running.public()) + repr(running)
    assert all(password not in log.read_text(errors="replace") for log in home.logs.iterdir())


def test_a_second_up_finds_the_first_and_changes_nothing(home: Home, running: Status) -> None:
    again = control.up(home)
    assert again.pid == running.pid
    assert [p.pid for p in again.parts] == [p.pid for p in running.parts]


@pytest.mark.parametrize("name", ["traefik", "redis", "worker"])
def test_a_part_that_is_killed_comes_back_and_is_counted(
    home: Home, running: Status, name: str
) -> None:
    before = part(home, name)
    assert before.pid is not None
    os.kill(before.pid, signal.SIGKILL)

    def back() -> PartStatus | None:
        now = part(home, name)
        return now if now.state is State.READY and now.pid != before.pid else None

    after = wait_for(back)
    assert after.restarts == before.restarts + 1
    assert after.address == before.address


def test_a_part_is_restarted_on_request_without_being_counted(home: Home, running: Status) -> None:
    before = part(home, "redis")
    control.restart(home, "redis")
    after = wait_for(
        lambda: p if (p := part(home, "redis")).pid not in (None, before.pid) else None
    )
    assert after.restarts == before.restarts
    with pytest.raises(UsageError) as caught:
        control.restart(home, "nonsense")
    assert caught.value.code == "SLP017"


def test_a_part_whose_port_was_taken_gets_another_one(home: Home, running: Status) -> None:
    before = part(home, "redis")
    port = Memory.load(home).ports["redis"]
    assert before.pid is not None
    with socket.socket() as thief:
        thief.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        os.kill(before.pid, signal.SIGSTOP)  # while it is down we must be quicker than its restart
        os.kill(before.pid, signal.SIGKILL)

        def taken() -> bool | None:
            try:
                thief.bind((ports.LOOPBACK, port))
                thief.listen()
            except OSError:
                return None
            return True

        wait_for(taken, 5)
        control.up(home)
        now = control.require(home)
        assert now.ready
        assert now.addresses["redis_url"] != running.addresses["redis_url"]
        assert any(f"port {port} (redis) is taken" in note for note in now.notes)


def start_a_replica(home: Home, folder: Path) -> psutil.Process:
    spec = {
        "name": "app-1", "application": "app", "environment": "test", "service": "web",
        "version": "1", "digest": "sha256:" + "0" * 64, "command": "sleep 100000", "replicas": 1,
    }  # fmt: skip
    (folder / "app").mkdir()
    transport = httpx.HTTPTransport(uds=str(home.cluster_socket()))
    with httpx.Client(base_url="http://cluster", transport=transport) as client:
        body = {"spec": spec, "directory": str(folder)}
        client.put("/workloads/app-1", json=body).raise_for_status()

        def pid() -> int | None:
            replicas = client.get("/workloads/app-1").raise_for_status().json()["replicas"]
            return replicas[0]["pid"] if replicas else None

        return psutil.Process(wait_for(pid))


def start_a_flow_run(running: Status, folder: Path) -> Path:
    """Run a flow that waits for ever; returns the file that it writes when it is ended."""
    (folder / "hold.py").write_text(HOLD)
    with httpx.Client(base_url=running.addresses["prefect_api"], trust_env=False) as client:

        def post(path: str, body: Mapping[str, object]) -> str:
            return str(client.post(path, json=body).raise_for_status().json()["id"])

        flow = post("/flows/", {"name": "hold"})
        where = {"entrypoint": "hold.py:hold", "path": str(folder), "work_pool_name": "local"}
        deployment = post("/deployments/", {"name": "test", "flow_id": flow, **where})
        scheduled = {"state": {"type": "SCHEDULED"}, "parameters": {"folder": str(folder)}}
        post(f"/deployments/{deployment}/create_flow_run", scheduled)
    wait_for(lambda: (folder / "started").exists() or None)
    return folder / "undone"


HOLD = """
import time
from pathlib import Path

from prefect import flow


@flow
def hold(folder: str) -> None:
    try:
        Path(folder, "started").write_text("")
        while True:
            time.sleep(0.1)
    finally:
        Path(folder, "undone").write_text("")
"""


def test_a_killed_supervisor_is_replaced_and_down_leaves_nothing(
    home: Home, running: Status, tmp_path: Path
) -> None:
    ports_before = Memory.load(home).ports
    replica = start_a_replica(home, tmp_path)
    os.kill(running.pid, signal.SIGKILL)
    wait_for(lambda: True if control.status(home) is None else None)
    again = control.up(home)
    assert again.pid != running.pid
    assert again.ready
    assert Memory.load(home).ports == ports_before
    assert again.addresses == running.addresses
    assert is_alive(replica)  # what was deployed serves on while the sandbox is put right
    witness = start_a_flow_run(again, tmp_path)
    control.down(home)
    assert witness.is_file()  # it was told to end and had the time to undo what it held
    assert not is_alive(replica)
    assert_nothing_is_left(home)
    assert Memory.load(home).ports == ports_before


def test_down_after_a_killed_supervisor_leaves_nothing(other: Home) -> None:
    other.make()
    daemon = control._spawn(other)

    def databases_ready() -> bool | None:
        now = control.status(other)
        names = ("postgres-aws", "postgres-gcp", "redis", "cluster")
        states = {p.state for p in now.parts if p.name in names} if now else set()
        return True if states == {State.READY} else None

    wait_for(databases_ready)
    daemon.kill()
    daemon.wait(10)
    assert any("postgres" in line for line in processes_of(other))  # they do not die with it
    control.down(other)
    assert_nothing_is_left(other)
    control.down(other)  # and again, with nothing to do


def test_a_start_that_fails_shows_the_log_and_stops_everything(other: Home) -> None:
    (other.redis).parent.mkdir(parents=True)
    other.redis.mkdir()
    (other.redis / "dump.rdb").write_text("this is no dump")
    told: list[str] = []
    with pytest.raises(Failed) as caught:
        control.up(other, progress=told.append)
    assert caught.value.code == "SLP011"
    assert "`redis` did not become ready: exited with 1" in caught.value.cause
    assert "Wrong signature" in caught.value.detail
    assert any(line.startswith("redis: exited with 1") for line in told)
    assert_nothing_is_left(other)


def test_two_starts_at_once_make_one_sandbox(other: Home) -> None:
    other.make()
    daemons = [control._spawn(other) for _ in range(2)]
    first = wait_for(lambda: next((d for d in daemons if d.poll() is not None), None))
    assert first.returncode == 3
    running = control.require(other)
    assert running.pid in {d.pid for d in daemons}
    control.down(other)
    assert_nothing_is_left(other)


def test_the_client_is_light() -> None:
    heavy = "{'prefect', 'pydantic', 'httpx', 'psycopg', 'asyncio'} & set(sys.modules)"
    code = f"import sys, sandbox.control; print({heavy})"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "set()"
