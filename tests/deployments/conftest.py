"""A Prefect server with faults, and journals of applications that were never really released."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from blocks.file_store import FileStore
from blocks.journal import Journal
from deployments.cli import main
from domain.journal import Kind
from sandbox.home import Home

RUN = "5d3f0c1e-0000-4000-8000-000000000001"
FLOW = "f10w0000-0000-4000-8000-000000000001"


@dataclass
class Ended:
    code: int
    out: str
    err: str

    @property
    def document(self) -> dict[str, Any]:
        document: dict[str, Any] = json.loads(self.out)
        return document


@pytest.fixture
def slipway(home: Home, capfd: pytest.CaptureFixture[str]) -> Any:
    def call(*words: str | Path) -> Ended:
        capfd.readouterr()
        code = main([str(word) for word in words])
        return Ended(code, *capfd.readouterr())

    return call


@dataclass
class FakePrefect:
    """Answers like a Prefect API; ``faults`` are used up before the true answers are given.

    A fault is a status, a body and a content type, or None to close the connection.
    """

    states: list[tuple[str, str, str]] = field(default_factory=lambda: [("COMPLETED", "Done", "")])
    logs: list[dict[str, Any]] = field(default_factory=list)
    faults: list[tuple[int, str, str] | None] = field(default_factory=list)
    tags: list[str] = field(default_factory=list)
    asked: list[tuple[str, str, Any]] = field(default_factory=list)
    refuse: dict[str, tuple[int, str]] = field(default_factory=dict)
    api: str = ""

    def answer(self, method: str, path: str, body: Any) -> tuple[int, Any]:
        if path in self.refuse:
            return self.refuse[path]
        match path.removeprefix("/api").strip("/").split("/"):
            case ["deployments", "name", _, _]:
                return 200, {"id": "d"}
            case ["deployments", "d", "create_flow_run"]:
                return 201, self._run(body["name"], body["tags"])
            case ["deployments", "filter"]:
                return 200, [{"id": "d"}]
            case ["flow_runs", "filter"]:
                children = "flow_runs" in (body or {})
                return 200, [] if children else [self._run("release shop 1 production", self.tags)]
            case ["flow_runs", identity, "set_state"] if identity == RUN:
                return 201, {"status": "ACCEPT"}
            case ["flow_runs", identity] if identity == RUN:
                return 200, self._run("release shop 1 production", self.tags)
            case ["flows", _]:
                return 200, {"name": "release"}
            case ["logs", "filter"]:
                return 200, self.logs
            case _:
                return 404, {"detail": "Not Found"}

    def _run(self, name: str, tags: list[str]) -> dict[str, Any]:
        kind, state, message = self.states.pop(0) if len(self.states) > 1 else self.states[0]
        return {
            "id": RUN,
            "name": name,
            "flow_id": FLOW,
            "state_type": kind,
            "state_name": state,
            "state": {"type": kind, "name": state, "message": message},
            "tags": tags,
            "start_time": "2026-01-01T00:00:00Z",
            "total_run_time": 1.5,
        }


def _handler(fake: FakePrefect) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def _serve(self) -> None:
            size = int(self.headers.get("content-length") or 0)
            content = self.rfile.read(size)
            try:
                body = json.loads(content) if size else None
            except ValueError:
                body = content.decode()  # an envelope for Sentry is several documents
            fake.asked.append((self.command, self.path, body))
            if fake.faults:
                fault = fake.faults.pop(0)
                if fault is None:
                    self.close_connection = True
                    self.connection.close()
                    return
                return self._send(fault[0], fault[1].encode(), fault[2])
            status, document = fake.answer(self.command, self.path, body)
            self._send(status, json.dumps(document).encode(), "application/json")

        def _send(self, status: int, content: bytes, kind: str) -> None:
            self.send_response(status)
            self.send_header("content-type", kind)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = _serve

        def log_message(self, *_: object) -> None:
            pass

    return Handler


@pytest.fixture
def prefect() -> Iterator[FakePrefect]:
    fake = FakePrefect(tags=["app:shop", "env:production", "kind:release"])
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(fake))
    server.daemon_threads = True
    fake.api = f"http://127.0.0.1:{server.server_port}/api"
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield fake
    server.shutdown()
    server.server_close()


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    """A state root of its own; no sandbox runs there."""
    for name in (
        "CI",
        "GITHUB_ACTIONS",
        "SENTRY_DSN",
        "SLIPWAY_SENTRY_DSN",
        "NO_COLOR",
        "GITHUB_ACTOR",
        "PREFECT_API_URL",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SLIPWAY_HOME", str(tmp_path / "state"))
    return Home.find()


Write = Callable[..., Journal]


@pytest.fixture
def write(home: Home) -> Write:
    """Write releases of (version, outcome) into a journal; outcome None leaves it unfinished."""

    def write(application: str, environment: str, *releases: tuple[str, str | None]) -> Journal:
        clock = iter(datetime(2026, 1, 1, tzinfo=UTC) + timedelta(minutes=n) for n in range(99))
        journal = Journal(
            FileStore(home.store), application, environment,
            actor="ann", run=RUN, now=lambda: next(clock),
        )  # fmt: skip
        for number, (version, outcome) in enumerate(releases, start=journal.next_release()):
            workload = f"{application}.{environment}.web.r{number}"
            target = {"service": "web", "workload": workload, "replicas": 1}
            data = {
                "version": version,
                "digest": f"sha256:{version.encode().hex():0<64}",
                "strategy": "blue-green",
                "workloads": {"web": workload},
                "candidate": [target],
                "stable": [],
            }
            journal.append(number, Kind.STARTED, data)
            if outcome:
                journal.append(number, Kind.FINISHED, {"outcome": outcome, "reason": "because"})
        return journal

    return write


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """The folder of a small application."""
    folder = tmp_path / "shop"
    folder.mkdir()
    (folder / "application.yaml").write_text(
        "name: shop\nversion: '1'\nservices:\n  web:\n    command: run\n"
        "environments:\n  production: {}\n  cloud: {platform: aws}\n"
    )
    return folder
