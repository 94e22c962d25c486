"""What every cluster must do, tried on each with real programs.

A cluster joins by a ``Rig`` and one line in ``RIGS``. Only the protocol and the replicas' own
addresses are used here; what is particular to one cluster is tested beside it.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal, Protocol, TypeVar

import httpx
import pytest

from blocks.cluster import Cluster
from blocks.local_cluster import LocalCluster
from domain.workload import Phase, Replica, Workload, WorkloadSpec

ROOT = Path(__file__).resolve().parents[2]

SERVER = """
import http.server, json, os, signal, sys, threading, time

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/slow":
            print("slow request came in", flush=True)
            time.sleep(1)
        if self.path == "/crash":
            print("last words", flush=True)
            os._exit(7)
        status = 503 if self.path == "/never" else 200
        body = json.dumps({"pid": os.getpid(), "environ": dict(os.environ)}).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

class Server(http.server.ThreadingHTTPServer):
    daemon_threads = False

server = Server(("127.0.0.1", int(os.environ["PORT"])), Handler)
signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown).start())
server.serve_forever()
server.server_close()
"""
STUBBORN = SERVER.replace(
    "server.serve_forever()",
    "signal.signal(signal.SIGTERM, signal.SIG_IGN); server.serve_forever()",
)


class Rig(Protocol):
    """One cluster under test, and a way to give it bundles."""

    @property
    def cluster(self) -> Cluster: ...

    def bundle(self, files: dict[str, str]) -> str:
        """Digest of a bundle whose ``app/`` holds these files."""
        ...


class Folders:
    """Bundles that are plain folders, named by the digest of their files."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def materialize(self, digest: str) -> Path:
        return self._root / digest.removeprefix("sha256:")

    def add(self, files: dict[str, str]) -> str:
        digest = "sha256:" + hashlib.sha256(repr(sorted(files.items())).encode()).hexdigest()
        app = self.materialize(digest) / "app"
        app.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            (app / name).write_text(content)
        return digest


class LocalRig:
    def __init__(self, root: Path) -> None:
        socket = root / "run" / "cluster.sock"
        self._bundles = Folders(root / "bundles")
        self._socket = socket
        options = [
            "--socket",
            str(socket),
            "--home",
            str(root / "cluster"),
            "--probe-seconds",
            "0.2",
        ]
        with (root / "supervisor.log").open("w") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "sandbox.cluster_supervisor", *options],
                cwd=ROOT,
                stdout=log,
                stderr=log,
            )
        self.cluster = LocalCluster(socket, self._bundles, patience_seconds=20)

    def bundle(self, files: dict[str, str]) -> str:
        return self._bundles.add(files)

    def close(self) -> None:
        self.cluster.close()
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(self._socket))) as client:
            client.post("http://cluster/shutdown?forget=true", timeout=20)
        assert self._process.wait(20) == 0


@pytest.fixture(scope="module")
def local() -> Iterator[Rig]:
    root = Path(tempfile.mkdtemp(prefix="slipway-"))
    rig = LocalRig(root)
    yield rig
    rig.close()
    shutil.rmtree(root)


RIGS = ["local"]


@pytest.fixture(params=RIGS)
def rig(request: pytest.FixtureRequest) -> Rig:
    found: Rig = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def cluster(rig: Rig) -> Cluster:
    return rig.cluster


Maker = Callable[..., WorkloadSpec]


@pytest.fixture
def make(rig: Rig, request: pytest.FixtureRequest) -> Iterator[Maker]:
    """Specs of the small server above; whatever a test applied is stopped after it."""
    name = request.node.originalname.removeprefix("test_").replace("_", "-")[:80]
    made: set[str] = set()

    def build(files: dict[str, str] | None = None, **changes: object) -> WorkloadSpec:
        values: dict[str, object] = {
            "name": f"shop-1.0.0.{name}",
            "application": name,
            "environment": "staging",
            "service": "wéb",
            "version": "1.0.0",
            "digest": rig.bundle(files or {"server.py": SERVER}),
            "command": "python -S server.py",
            "replicas": 1,
            "port": 8000,
            "ready": "/ready",
            "start_seconds": 20,
            "drain_seconds": 5,
        }
        spec = WorkloadSpec.model_validate(values | changes)
        made.add(spec.name)
        return spec

    yield build
    for workload in made:
        rig.cluster.stop(workload)


T = TypeVar("T")


def until(read: Callable[[], T | Literal[False] | None], what: str, seconds: float = 15) -> T:
    """The first value that is true; the last one seen is shown when none came."""
    deadline = time.monotonic() + seconds
    while not (seen := read()):
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.03)
    return seen


def ready(cluster: Cluster, name: str, replicas: int = 1) -> Workload:
    def read() -> Workload | None:
        found = cluster.get(name)
        if found and found.is_ready and len(found.replicas) == replicas:
            return found
        return None

    try:
        return until(read, f"{name} ready with {replicas}")
    except AssertionError as error:
        raise AssertionError(f"{error}; {cluster.get(name)}; {cluster.log_tail(name)}") from None


def failure(cluster: Cluster, name: str) -> Replica:
    def read() -> Replica | None:
        found = cluster.get(name)
        return found.failure if found else None

    return until(read, f"a failure of {name}")


def test_it_is_a_cluster(cluster: Cluster) -> None:
    assert isinstance(cluster, Cluster)


def test_apply_starts_every_replica_and_they_serve(cluster: Cluster, make: Maker) -> None:
    spec = make(replicas=3)
    at_once = cluster.apply(spec)
    assert at_once.desired == 3 and not at_once.is_ready
    found = ready(cluster, spec.name, 3)
    answers = [httpx.get(f"http://{address}/").json()["pid"] for address in found.addresses]
    assert len(set(answers)) == len(set(found.addresses)) == 3
    assert found.failure is None and all(not replica.reason for replica in found.replicas)


def test_apply_twice_changes_nothing(cluster: Cluster, make: Maker) -> None:
    spec = make(replicas=2)
    cluster.apply(spec)
    before = ready(cluster, spec.name, 2)
    again = cluster.apply(spec)
    assert again == before


def test_scaling_keeps_the_replicas_that_stay(cluster: Cluster, make: Maker) -> None:
    cluster.apply(make(replicas=1))
    name = make().name
    first = ready(cluster, name, 1).replicas[0]
    cluster.apply(make(replicas=3))
    three = ready(cluster, name, 3)
    assert three.replicas[0] == first
    cluster.apply(make(replicas=1))
    assert ready(cluster, name, 1).replicas == (first,)


def test_no_replicas_is_a_workload_that_is_not_ready(cluster: Cluster, make: Maker) -> None:
    found = cluster.apply(make(replicas=0))
    assert found.replicas == () and not found.is_ready


def test_stop_lets_a_request_in_flight_finish_and_leaves_nothing(
    cluster: Cluster, make: Maker
) -> None:
    spec = make()
    cluster.apply(spec)
    address = ready(cluster, spec.name).addresses[0]
    statuses: list[int] = []
    user = threading.Thread(
        target=lambda: statuses.append(httpx.get(f"http://{address}/slow").status_code)
    )
    user.start()
    until(lambda: "slow request came in" in cluster.log_tail(spec.name), "the request is in flight")
    cluster.stop(spec.name)
    user.join(10)
    assert statuses == [200]
    assert cluster.get(spec.name) is None
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"http://{address}/")


def test_a_program_that_ignores_sigterm_is_killed_after_its_drain(
    cluster: Cluster, make: Maker
) -> None:
    spec = make({"server.py": STUBBORN}, drain_seconds=0.5)
    cluster.apply(spec)
    ready(cluster, spec.name)
    cluster.stop(spec.name)
    assert cluster.get(spec.name) is None


def test_a_command_that_exits_at_once_is_seen_with_code_and_last_words(
    cluster: Cluster, make: Maker
) -> None:
    spec = make({"x": ""}, command="echo no such setting; exit 3")
    cluster.apply(spec)
    failed = failure(cluster, spec.name)
    assert failed.exit_code == 3 and "code 3" in failed.reason
    assert "no such setting" in cluster.log_tail(spec.name)


def test_a_command_that_does_not_exist_is_seen_as_such(cluster: Cluster, make: Maker) -> None:
    spec = make(command="no-such-program --port 1")
    cluster.apply(spec)
    failed = failure(cluster, spec.name)
    assert failed.exit_code == 127
    assert "no-such-program" in cluster.log_tail(spec.name)


def test_a_program_that_never_gets_ready_says_what_its_probe_got(
    cluster: Cluster, make: Maker
) -> None:
    spec = make(ready="/never")
    cluster.apply(spec)

    def reason() -> str:
        found = cluster.get(spec.name)
        return found.replicas[0].reason if found and "503" in found.replicas[0].reason else ""

    assert "/never: expected 2xx, got 503" in until(reason, "a reason")
    found = cluster.get(spec.name)
    assert found and not found.is_ready and found.failure is None and found.addresses == ()


def test_a_replica_that_crashes_comes_back(cluster: Cluster, make: Maker) -> None:
    spec = make()
    cluster.apply(spec)
    before = ready(cluster, spec.name)
    with pytest.raises(httpx.RemoteProtocolError):
        httpx.get(f"http://{before.addresses[0]}/crash")
    failure(cluster, spec.name)
    after = ready(cluster, spec.name).replicas[0]
    assert after.restarts == 1 and after.exit_code == 7
    assert "last words" in cluster.log_tail(spec.name)


def test_a_program_without_a_port_is_ready_when_it_lives(cluster: Cluster, make: Maker) -> None:
    spec = make(port=None, ready=None, command='echo "port=$PORT."; exec sleep 60')
    cluster.apply(spec)
    found = ready(cluster, spec.name)
    assert found.addresses == ()
    assert "port=." in cluster.log_tail(spec.name)


def test_without_a_path_it_is_ready_once_it_accepts(cluster: Cluster, make: Maker) -> None:
    spec = make({"x": ""}, ready=None, command="python -S -m http.server $PORT --bind $HOST")
    cluster.apply(spec)
    assert httpx.get(f"http://{ready(cluster, spec.name).addresses[0]}/x").status_code == 200


def test_an_expired_workload_stops_by_itself(cluster: Cluster, make: Maker) -> None:
    spec = make(expires_at=datetime.now(UTC) + timedelta(seconds=1.5))
    assert cluster.apply(spec).expires_at == spec.expires_at
    ready(cluster, spec.name)
    until(lambda: cluster.get(spec.name) is None, "it expired")
    assert cluster.expire(spec.name, None) is False


def test_an_expiry_can_be_cleared_in_time(cluster: Cluster, make: Maker) -> None:
    spec = make(expires_at=datetime.now(UTC) + timedelta(seconds=60))
    cluster.apply(spec)
    ready(cluster, spec.name)
    assert cluster.expire(spec.name, None) is True
    found = cluster.get(spec.name)
    assert found and found.expires_at is None
    assert cluster.expire(spec.name, datetime.now(UTC)) is True
    until(lambda: cluster.get(spec.name) is None, "it expired")


def test_an_apply_clears_the_expiry_that_its_spec_does_not_have(
    cluster: Cluster, make: Maker
) -> None:
    cluster.apply(make(expires_at=datetime.now(UTC) + timedelta(hours=1)))
    assert cluster.apply(make()).expires_at is None


def test_workloads_are_listed_by_application_and_environment(cluster: Cluster, make: Maker) -> None:
    spec = make(replicas=0)
    other = make(replicas=0, name="other-1.0.0", environment="production")
    cluster.apply(spec)
    cluster.apply(other)
    assert [w.name for w in cluster.workloads(spec.application, "staging")] == [spec.name]
    assert [w.name for w in cluster.workloads(spec.application, "production")] == [other.name]
    assert cluster.workloads("nobody", "staging") == ()


def test_what_is_not_there_is_no_error(cluster: Cluster) -> None:
    assert cluster.get("nothing") is None
    assert cluster.expire("nothing", None) is False
    assert cluster.log_tail("nothing") == ""
    cluster.stop("nothing")


def test_a_log_outlives_its_workload(cluster: Cluster, make: Maker) -> None:
    spec = make(port=None, ready=None, command="echo línea uno; echo line two; exec sleep 60")
    cluster.apply(spec)
    until(lambda: "line two" in cluster.log_tail(spec.name), "it has spoken")
    cluster.stop(spec.name)
    assert cluster.log_tail(spec.name) == "línea uno\nline two"
    assert cluster.log_tail(spec.name, lines=1) == "line two"


def test_a_replica_sees_its_own_environment_and_nothing_of_ours(
    cluster: Cluster, make: Maker
) -> None:
    spec = make(environ={"DATABASE_URL": "postgresql://u:s3cret@h/ü", "PORT": "1"})
    answers = [cluster.apply(spec), ready(cluster, spec.name)]
    address = answers[1].addresses[0]
    seen = httpx.get(f"http://{address}/").json()["environ"]
    assert seen["DATABASE_URL"] == "postgresql://u:s3cret@h/ü"
    assert seen["SLIPWAY_VERSION"] == "1.0.0" and seen["SLIPWAY_SERVICE"] == "wéb"
    assert seen["SLIPWAY_APPLICATION"] == spec.application
    assert seen["SLIPWAY_ENVIRONMENT"] == "staging" and seen["SLIPWAY_DIGEST"] == spec.digest
    assert seen["PORT"] == address.rpartition(":")[2]
    assert not [name for name in seen if name.startswith(("PREFECT", "PYTEST", "AWS"))]
    assert not any("s3cret" in answer.model_dump_json() for answer in answers)


def test_stopping_while_it_starts_leaves_nothing(cluster: Cluster, make: Maker) -> None:
    spec = make(replicas=2)
    pids = [replica.pid for replica in cluster.apply(spec).replicas]
    cluster.stop(spec.name)
    assert cluster.get(spec.name) is None
    assert not [pid for pid in pids if pid and os.path.exists(f"/proc/{pid}")]


def test_a_workload_can_be_applied_again_while_it_drains(cluster: Cluster, make: Maker) -> None:
    spec = make()
    cluster.apply(spec)
    address = ready(cluster, spec.name).addresses[0]
    user = threading.Thread(target=httpx.get, args=(f"http://{address}/slow",))
    user.start()
    until(lambda: "slow request came in" in cluster.log_tail(spec.name), "the request is in flight")
    stopping = threading.Thread(target=cluster.stop, args=(spec.name,))
    stopping.start()
    until(
        lambda: (w := cluster.get(spec.name)) and w.replicas[0].phase is Phase.STOPPING, "draining"
    )
    cluster.apply(spec)
    stopping.join(10)
    user.join(10)
    after = ready(cluster, spec.name)
    assert after.addresses != (address,)
