"""What a scenario can do to a sandbox, and how it looks at what is really there.

It looks without the product's own eyes where it can: at processes, Traefik's files, PostgreSQL's
catalogue and Redis' keys.
"""

from __future__ import annotations

import contextvars
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, LiteralString, TypeVar
from uuid import UUID

import httpx
import psutil
import psycopg
import redis
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State
from prefect.exceptions import ObjectNotFound

from blocks.file_store import FileStore
from blocks.journal import Journal
from blocks.platform import Platform, load_platform
from blocks.postgres import database_name
from blocks.records import Records
from deployments.register import platforms
from domain.errors import SlipwayError
from domain.journal import Outcome, Release, live, unfinished, verify
from domain.release import Report
from domain.rollout import replay
from domain.steering import Verb
from flows.build import build
from flows.deploy import deploy
from flows.recover import recover
from flows.release import release
from flows.retry import retry
from flows.rollback import rollback
from sandbox import control
from sandbox.home import Home
from sandbox.keys import ensure
from tests.scenarios.apps import App
from tests.scenarios.users import Users

T = TypeVar("T")
PRODUCTION = "production"


@dataclass(frozen=True)
class Ended:
    """How a flow run ended, and the report that it left."""

    state: State[Any]
    report: Report | None

    @property
    def outcome(self) -> Outcome | None:
        return self.report.outcome if self.report else None

    @property
    def code(self) -> str | None:
        return str(self.report.error["code"]) if self.report and self.report.error else None

    @property
    def detail(self) -> str:
        return str((self.report.error or {}).get("detail") or "") if self.report else ""

    @property
    def message(self) -> str:
        return self.state.message or ""


class World:
    """The sandbox of this session."""

    def __init__(self, home: Home) -> None:
        self.home = home
        self.addresses = control.require(home).addresses
        # Settings, but no flow run: what starts from it is nobody's subflow.
        self._outside = contextvars.copy_context()

    # --- acting ----------------------------------------------------------------------------

    def release(self, source: str, environment: str = PRODUCTION, **more: Any) -> Ended:
        state = release(environment, source, return_state=True, **more)
        return self.ended(state)

    def rollback(self, application: str, environment: str = PRODUCTION, **more: Any) -> Ended:
        return self.ended(rollback(environment, application, return_state=True, **more))

    def retry(self, application: str, environment: str = PRODUCTION) -> Ended:
        return self.ended(retry(environment, application, return_state=True))

    def ask(self, application: str, verb: str, reason: str) -> None:
        """What `slipway pause` and the like do."""
        self.journal(application).ask(Verb(verb), reason)

    def weight(self, application: str, release: int) -> int:
        """Percent of users' requests that go to a release, as the edge has it."""
        routing = self.platform.edge.read(application, PRODUCTION)
        return routing.weight(f"{application}.production.web.r{release}") if routing else 0

    def last_words(self, application: str) -> str:
        """The reason that a release under way gives for what it does."""
        newest = unfinished(self.journal(application).history())
        assert newest is not None
        entries = [e for e in self.journal(application).entries if e.release == newest.number]
        return f"paused: {replay(entries).paused}" if replay(entries).paused else ""

    def recover(self, application: str, environment: str = PRODUCTION) -> str:
        state: State[Any] = recover(environment, application, return_state=True)
        assert state.is_completed(), state.message
        return state.message or ""

    def ship(self, source: str, environment: str = PRODUCTION, **more: Any) -> None:
        """Build and deploy, without the tests and scans that a scenario is not about."""
        deploy(environment, build(source), **more)

    def deployed(self, source: str, environment: str = PRODUCTION, **more: Any) -> State[Any]:
        """As ``ship``, for what does not go well."""
        built: State[Any] = build(source, return_state=True)
        if built.is_failed():
            return built
        digest = str(built.result(raise_on_failure=True))
        state: State[Any] = deploy(environment, digest, return_state=True, **more)
        return state

    def fails(
        self, app: App, source: str, outcome: Outcome, code: str, *, live: str = "1.0.0"
    ) -> Ended:
        """Release ``source`` while people use the live version; it must end so and harm nobody."""
        with self.users(app.name) as users:
            users.wait_for(5)
            ended = self.release(source)
            users.wait_for(5)
        assert users.failed == []
        assert (ended.outcome, ended.code) == (outcome, code), ended
        assert ended.state.is_failed()
        if outcome is Outcome.REFUSED:
            assert set(users.versions) == {live}
        assert users.newest == live
        assert_sentence(ended)
        self.assert_serves(app.name, live)
        return ended

    def ended(self, state: State[Any]) -> Ended:
        run = state.state_details.flow_run_id
        return Ended(state, self.records.report(str(run)))

    def users(self, application: str, environment: str = PRODUCTION, **more: Any) -> Users:
        host = f"{application}.{environment}.localhost"
        return Users(self.addresses["edge_web"], host, **more)

    def tester(self, application: str) -> Users:
        """Somebody whose requests carry the testers' header."""
        return self.users(application, rate=20, headers="X-Try: always\r\n")

    def stopped(self, call: Callable[[], Any]) -> bool:
        """Whether Ctrl-C came out of it again, as a shell expects."""
        try:
            call()
        except KeyboardInterrupt:
            return True
        return False

    def interrupted_release(self, source: str) -> Report | None:
        """Release until Ctrl-C; the report that it left all the same."""
        known = set(self.store.list("reports"))
        assert self.stopped(lambda: self.release(source))
        left = [key for key in self.store.list("reports") if key not in known]
        assert len(left) == 1
        return self.records.report(left[0].removeprefix("reports/").removesuffix(".json"))

    def register(self) -> None:
        """The deployments that `slipway up` makes."""
        command = [sys.executable, "-m", "deployments.register", "--home", str(self.home.root)]
        done = subprocess.run(
            command, cwd=self.home.project, capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr

    def both_started(self, application: str, environments: Sequence[str]) -> bool:
        return all(self.journal(application, name).entries for name in environments)

    def in_thread(self, call: Callable[[], T]) -> Callable[[], T]:
        """Run ``call`` beside whatever runs here; what is returned waits for its result."""
        results: list[T] = []
        errors: list[BaseException] = []
        context = self._outside.copy()

        def work() -> None:
            try:
                results.append(context.run(call))
            except BaseException as error:  # handed to whoever waits
                errors.append(error)

        thread = threading.Thread(target=work, daemon=True)
        thread.start()

        def result() -> T:
            thread.join(150)
            assert not thread.is_alive(), "it does not end"
            if errors:
                raise errors[0]
            return results[0]

        return result

    def tried(self, call: Callable[[], T]) -> T | None:
        """The result, or None when the way there was broken: the server may be gone."""
        try:
            return call()
        except Exception as error:  # whatever Prefect's client makes of a lost server
            print(f"the flow run ended with {type(error).__name__}: {error}")
            return None

    def down_from(self, at: float, seen: Sequence[tuple[float, str]]) -> float:
        """When users were first answered again after something was killed."""
        return next((when for when, _ in sorted(seen) if when > at + 0.1), at) + 0.5

    def stop(self, application: str) -> None:
        """End all that runs of an application."""
        self.await_parts()
        platform, there = self.platform, self.workloads(application)
        for environment in {w["environment"] for w in there.values()}:
            platform.edge.remove(application, environment)
        for name in there:
            platform.cluster.stop(name)

    # --- breaking --------------------------------------------------------------------------

    def kill_part(self, name: str) -> int:
        """SIGKILL one part; the sandbox's supervisor starts it again."""
        part = control.require(self.home).part(name)
        assert part is not None and part.pid is not None
        os.kill(part.pid, signal.SIGKILL)
        return part.pid

    def await_parts(self) -> None:
        def ready() -> bool:
            now = control.status(self.home)
            return now is not None and now.ready

        wait_until(ready, "every part ready", 60)

    def free_slot(self, application: str, environment: str = PRODUCTION) -> None:
        """What the server does by itself once the lease of a killed holder has run out."""
        with get_client(sync_client=True) as client:
            client.delete_global_concurrency_limit_by_name(slot_name(application, environment))

    # --- looking ---------------------------------------------------------------------------

    @property
    def store(self) -> FileStore:
        return FileStore(self.home.store)

    @property
    def records(self) -> Records:
        return Records(self.store)

    @property
    def platform(self) -> Platform:
        return load_platform("sandbox")

    def journal(self, application: str, environment: str = PRODUCTION) -> Journal:
        return Journal(self.store, application, environment)

    def live(self, application: str, environment: str = PRODUCTION) -> Release | None:
        return live(self.journal(application, environment).history())

    def workloads(self, application: str) -> dict[str, dict[str, Any]]:
        """All workloads of an application in every environment, previews too."""
        transport = httpx.HTTPTransport(uds=str(self.home.cluster_socket()))
        with httpx.Client(transport=transport, base_url="http://cluster", timeout=10) as client:
            found = client.get("/workloads", params={"application": application})
        return {w["name"]: w for w in found.raise_for_status().json()}

    def task_run_counts(self, ended: Ended, name: str) -> list[int]:
        """How often each task run of that task, anywhere below a flow run, was tried."""
        api = self.addresses["prefect_api"]
        counts, flows = [], [str(ended.state.state_details.flow_run_id)]
        with httpx.Client(base_url=api, trust_env=False, timeout=20) as client:
            while flows:
                wanted = {"flow_runs": {"id": {"any_": [flows.pop()]}}}
                for run in client.post("/task_runs/filter", json=wanted).json():
                    child = run["state"]["state_details"].get("child_flow_run_id")
                    flows += [child] if child else []
                    if run["name"].startswith(name):
                        counts.append(int(run["run_count"]))
        return counts

    def get(self, application: str, path: str = "/version", environment: str = PRODUCTION) -> str:
        host = f"{application}.{environment}.localhost"
        with httpx.Client(trust_env=False, timeout=10) as client:
            answer = client.get(self.addresses["edge_web"] + path, headers={"Host": host})
        assert answer.status_code == 200, f"{answer.status_code}: {answer.text[:200]}"
        return answer.text

    def status(self, application: str, environment: str = PRODUCTION) -> int:
        """What a user's request ends with now."""
        host = f"{application}.{environment}.localhost"
        with httpx.Client(trust_env=False, timeout=10) as client:
            return client.get(self.addresses["edge_web"], headers={"Host": host}).status_code

    def rows(self, application: str, query: LiteralString) -> list[tuple[Any, ...]]:
        """What the database of production holds."""
        url = self.platform.database.url(database_name(application, PRODUCTION))
        with psycopg.connect(url) as connection:
            return connection.execute(query).fetchall()

    def is_alive(self, pid: int) -> bool:
        try:
            return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False

    def slots_taken(self, application: str, environment: str = PRODUCTION) -> int:
        with get_client(sync_client=True) as client:
            try:
                limit = client.read_global_concurrency_limit_by_name(
                    slot_name(application, environment)
                )
            except ObjectNotFound:
                return 0
        return int(limit.active_slots)

    # --- what must hold at the end ---------------------------------------------------------

    def assert_serves(
        self, application: str, version: str | None, environment: str = PRODUCTION
    ) -> None:
        """Exactly one version is live (None: none is), and nothing half-made is left behind."""
        journal = self.journal(application, environment)
        assert verify(journal.raw()) == ()
        history = journal.history()
        assert unfinished(history) is None
        current = live(history)
        assert (current.version if current else None) == version
        self._assert_cluster(application, environment, current)
        self._assert_edge(application, environment, current)
        self.assert_no_leftovers(application)
        # A server that was away when the run ended frees the slot when its lease has run out.
        wait_until(lambda: self.slots_taken(application, environment) == 0, "the slot is free", 100)

    def _assert_cluster(self, application: str, environment: str, current: Release | None) -> None:
        there = {
            name: w
            for name, w in self.workloads(application).items()
            if w["environment"] == environment
        }
        targets = current.data["candidate"] if current else []
        wanted = {t["workload"]: t["replicas"] for t in targets}
        lasting = {name: w for name, w in there.items() if w["expires_at"] is None}
        assert {name: w["desired"] for name, w in lasting.items()} == wanted
        for workload in lasting.values():
            assert [r["phase"] for r in workload["replicas"]] == ["ready"] * workload["desired"]
        pids = {r["pid"] for w in there.values() for r in w["replicas"]}
        assert {p.pid for p in replicas_of(application, environment)} == pids

    def _assert_edge(self, application: str, environment: str, current: Release | None) -> None:
        routing = self.platform.edge.read(application, environment)
        weights = (
            {r.service: dict(r.weights) for r in routing.routes if r.weights} if routing else {}
        )
        targets = current.data["candidate"] if current else []
        assert weights == {t["service"]: {t["workload"]: 100} for t in targets if t["public"]}
        if current is None:
            assert routing is None
        elif weights and self.records.record(current.digest).application.name == application:
            assert current.version in self.get(application, environment=environment)

    def assert_no_leftovers(self, application: str) -> None:
        """No candidate, preview, disposable database, Redis number, suite or draft."""
        previews = [w for w in self.workloads(application).values()
                    if w["environment"].startswith("preview-")]  # fmt: skip
        assert previews == []
        routes = [p.name for p in self.home.traefik_dynamic().iterdir()]
        assert [name for name in routes if name.startswith(f"{application}~preview-")] == []
        drafts = self.home.traefik() / f"{self.home.traefik_dynamic().name}.drafts"
        assert [p.name for p in drafts.glob(f"{application}~*")] == []
        left = self._disposable_databases(application)
        assert left == []
        numbers = self._disposable_numbers()
        assert numbers == []
        for folder in (self.home.root / "suites", self.home.bundles() / "partial"):
            assert [p.name for p in folder.glob("*")] == [], folder
        hidden = [str(p) for p in self.home.store.rglob(".tmp-*")]
        assert hidden == [], hidden

    def _disposable_databases(self, application: str) -> list[str]:
        """Databases and roles that bear the application's name and are no environment's."""
        whole = {database_name(application, name) for name in (PRODUCTION, "staging")}
        marks = (application[:30], application[:30].replace("-", "_"))
        with psycopg.connect(self.addresses["database_aws_url"]) as connection:
            databases = connection.execute("SELECT datname FROM pg_database").fetchall()
            roles = connection.execute("SELECT rolname FROM pg_roles").fetchall()
        names = {str(row[0]) for row in databases + roles} - whole
        return sorted(name for name in names if any(mark in name for mark in marks))

    def _disposable_numbers(self) -> list[str]:
        with redis.Redis.from_url(self.addresses["redis_url"]) as client:
            names = [name.decode() for name in client.hkeys("slipway:databases")]
        return [name for name in names if name.startswith("disposable/")]


class Standing:
    """An application with 1.0.0 live that many tests may try to harm.

    A test that did harm it gets the next one another.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._count = folder, 0
        self._app: App | None = None

    def app(self, world: World) -> App:
        if self._app is None or getattr(world.live(self._app.name), "version", "") != "1.0.0":
            self._count += 1
            self._app = App(
                self._folder / str(self._count), f"standing-{os.getpid()}-{self._count}"
            )
            world.ship(self._app.source("1.0.0"))
        return self._app


def assert_sentence(ended: Ended) -> None:
    """One line that says what happened, with the reason, and beside it what to do."""
    assert ended.report is not None
    assert "\n" not in ended.message
    assert ended.report.reason
    assert ended.report.reason in ended.message
    assert ended.report.error is not None
    assert len(str(ended.report.error["hint"])) > 15


def slot_name(application: str, environment: str) -> str:
    return f"slipway-{application}-{environment}"


def save_platform(addresses: Mapping[str, str], home: Home) -> UUID:
    """The blocks that `slipway up` saves for people; returns the id of the first."""
    saved: list[Any] = [
        block.save(name, overwrite=True)
        for name, block in platforms(addresses, ensure(home)).items()
    ]
    assert isinstance(saved[0], UUID)
    return saved[0]


def replicas_of(application: str, environment: str) -> list[psutil.Process]:
    """First processes of replicas, by what their environment says."""
    found = []
    for process in psutil.process_iter():
        try:
            environ = process.environ()
            mine = environ.get("SLIPWAY_APPLICATION") == application
            if mine and environ.get("SLIPWAY_ENVIRONMENT") == environment:
                found.append(process)
        except psutil.Error:
            continue
    return [p for p in found if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


def processes_of(root: str) -> list[str]:
    """Processes that carry the sandbox's home, apart from ourselves."""
    found = []
    for process in psutil.process_iter():
        try:
            mine = root in (process.environ().get("SLIPWAY_HOME"), *process.cmdline())
            if mine and process.pid != os.getpid() and process.status() != psutil.STATUS_ZOMBIE:
                found.append(f"{process.pid} {process.cmdline()}")
        except psutil.Error:
            continue
    return found


def is_anothers(port: int) -> bool:
    """Whether a sandbox took the port meanwhile; ours has no process any more by then."""
    for listener in psutil.net_connections("tcp"):
        if listener.laddr and listener.laddr.port == port and listener.pid:
            try:
                return "SLIPWAY_HOME" in psutil.Process(listener.pid).environ()
            except psutil.Error:
                return True  # it has just ended
    return False


def wait_until(look: Callable[[], Any], what: str, seconds: float = 30) -> Any:
    end = time.monotonic() + seconds
    while not (seen := look()):
        assert time.monotonic() < end, f"not within {seconds:g} s: {what}"
        time.sleep(0.05)
    return seen


def error_in(state: State[Any]) -> SlipwayError:
    """The error that a failed flow run ended with."""
    error = state.result(raise_on_failure=False)
    assert isinstance(error, SlipwayError), error
    return error


@contextmanager
def on_append(
    wanted: Callable[[Any], bool], act: Callable[[], Any], *, before: bool = False
) -> Iterator[list[Any]]:
    """Call ``act`` once, at the first journal entry that ``wanted`` picks; after it is written."""
    original = Journal.append
    seen: list[Any] = []

    def append(self: Journal, release: int, kind: Any, data: Mapping[str, Any]) -> Any:
        picked = not seen and wanted((kind, data))
        if picked and before:
            seen.append(kind)
            act()
        entry = original(self, release, kind, data)
        if picked and not before:
            seen.append(kind)
            act()
        return entry

    Journal.append = append  # type: ignore[method-assign]
    try:
        yield seen
    finally:
        Journal.append = original  # type: ignore[method-assign]
