"""Losing a cloud: drills on a twin, failovers and failbacks on the real names, and their ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
from prefect.client.orchestration import get_client

from blocks import drill_processes
from blocks.platform import Platform, load_platform
from blocks.postgres import PostgresServer, database_name
from blocks.postgres_server_process import packaged_binaries
from domain.backup_report import BackupOutcome
from domain.drill import SCENARIOS, DrillRecord, Fault
from domain.drill_report import RecoveryOutcome, RecoveryReport
from domain.evidence_chain import broken_at
from domain.failover import Approval, Phase, Tier
from domain.verdict import Verdict
from flows.backup import backup
from flows.drill import drill
from flows.failback import failback
from flows.failover import failover
from flows.reap import reap
from flows.standby import standby
from tasks.moving import divergence
from tasks.reaping import leftovers
from tasks.sides import Side
from tasks.standing_by import Pair, pair_of
from tests.scenarios.apps import App, service
from tests.scenarios.world import PRODUCTION, World, wait_until

pytestmark = pytest.mark.sandbox

ROOT = Path(__file__).resolve().parents[2]
SCHEMA = (
    "CREATE TABLE IF NOT EXISTS ledger "
    "(id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, key text UNIQUE)"
)
LEDGER = f'''
"""Keeps keys in PostgreSQL, through psql: no library is needed for a row at a time."""
import os
import subprocess
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

PSQL = [{str(packaged_binaries() / "psql")!r}, os.environ["DATABASE_URL"],
        "-v", "ON_ERROR_STOP=1", "-qAtX"]


def sql(text, key=""):
    done = subprocess.run(PSQL + ["-v", "key=" + key], input=text, capture_output=True, text=True,
                          timeout=5, env={{**os.environ, "PGCONNECT_TIMEOUT": "2"}})
    return done.returncode == 0, done.stdout.strip()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        what, _, key = self.path.strip("/").partition("/")
        if what == "readyz":
            good = sql("SELECT 1")[0]
            self.say(200 if good else 503)
        elif what == "read":
            good, found = sql("SELECT count(*) FROM ledger WHERE key = :'key'", key)
            self.say(200 if good and found == "1" else 404)
        else:
            self.say(200)

    def do_POST(self):
        key = self.path.rpartition("/")[2]
        self.say(201 if sql("INSERT INTO ledger (key) VALUES (:'key')", key)[0] else 503)

    def say(self, status):
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128


Server(("127.0.0.1", int(os.environ["PORT"])), Handler).serve_forever()
'''
TRANSACTIONS = """
LEDGER = "SELECT key FROM ledger"


def begin(http):
    pass


def write(http, key):
    http.post("/write/" + key).raise_for_status()


def read(http, key):
    return http.get("/read/" + key).status_code == 200
"""


def live(world: World, app: App, tier: Tier = Tier.WARM) -> App:
    """A ledger in production, protected, with one proved backup."""
    psql = packaged_binaries() / "psql"
    source = app.write(
        {
            "version": "1.0.0",
            "services": {"web": service(command="python -IS ledger.py", drain="1s")},
            "smoke": [{"path": "/healthz"}],
            "database": {"migrate": f'{psql} "$DATABASE_URL" -qc "{SCHEMA}"'},
            "environments": {
                "production": {"strategy": "blue-green"},
                "recovery": {"platform": "sandbox-gcp"},
            },
            "recovery": {
                "name": f"{app.name}.slipway.test",
                "tier": tier.value,
                "ttl": "1s",
                "lease": "1500ms",
                "rto": "1m",
                "transactions": "transactions.py",
            },
        },
        {"ledger.py": LEDGER, "transactions.py": TRANSACTIONS},
    )
    world.ship(source)
    made = backup(PRODUCTION, app.name, return_state=True)
    report = world.records.backup_report(str(made.state_details.flow_run_id))
    assert report is not None and report.outcome is BackupOutcome.PROVED, made.message
    return app


@pytest.fixture(scope="module")
def ledger(session_world: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[App]:
    app = App(tmp_path_factory.mktemp("ledger"), f"ledger-{os.getpid()}")
    yield live(session_world, app)
    session_world.stop(app.name)


@pytest.fixture
def own(world: World, app: App) -> Iterator[App]:
    """One that this test may move about."""
    yield live(world, app)
    pair = pair_of("sandbox", app.name, PRODUCTION)
    world.platform.store.delete(key := pair.protection().key, version_of(world.platform, key))
    pair.away.stop()
    for source, target in ((pair.home, pair.away), (pair.away, pair.home)):
        replication = pair.replication(source, target)
        if any(n == database_name(app.name, s) for n in target.platform.database.databases()
               for s in (PRODUCTION, "recovery")):  # fmt: skip
            replication.forget_at_standby()
        replication.forget_at_primary()
    pair.home.fence.disarm()


def version_of(platform: Platform, key: str) -> str:
    found = platform.store.stat(key)
    return found.version if found else ""


def run(world: World, flow: Any, app: App, **more: Any) -> RecoveryReport:
    """The account that a flow left, whatever it ended with."""
    state = flow(PRODUCTION, app.name, return_state=True, **more)
    report = world.records.recovery_report(str(state.state_details.flow_run_id))
    assert report is not None, state.message
    assert state.is_completed() == (report.exit_code == 0), (state.message, report.reason)
    return report


def checks(report: RecoveryReport) -> dict[str, Verdict]:
    return {check.name: check.verdict for check in report.checks}


def open_drills(world: World) -> list[DrillRecord]:
    found = (world.platform.store.read(key) for key in world.platform.store.list("drills"))
    records = [DrillRecord.model_validate_json(content) for content in found if content]
    return [record for record in records if record.closed_at is None]


def assert_good(report: RecoveryReport) -> None:
    """What holds after every drill, whatever was broken."""
    assert report.outcome is RecoveryOutcome.PASSED, (report.reason, report.checks, report.error)
    seen = checks(report)
    for name in ("one writable side", "losses listed", "production untouched",
                 "nothing left over", "RTA", "RPA"):  # fmt: skip
        assert seen[name] is Verdict.PASS, report.checks
    assert report.leftovers == ()
    assert len(report.isolation) == 8
    assert all(check.verdict is Verdict.PASS for check in report.isolation)
    assert broken_at(report.events) is None and len(report.events) > 10
    assert report.acknowledged > 10


def test_a_drill_of_a_warm_standby(world: World, ledger: App) -> None:
    with world.users(ledger.name) as users:
        report = run(world, drill, ledger, tier="warm")
    assert_good(report)
    assert users.failed == []  # production's users noticed nothing
    assert [p.name for p in report.phases][-1] is Phase.FIRST_TRANSACTION
    assert report.rpa_seconds is not None and report.rpa_seconds < 1
    assert open_drills(world) == []
    page = world.platform.store.read(f"reports/recovery/{report.run}.html")
    assert page is not None and page.count(b"<rect") > 10 and b"production untouched" in page


@pytest.mark.slow
def test_a_drill_that_restores_a_backup(world: World, ledger: App) -> None:
    report = run(world, drill, ledger, tier="backup", fault="freeze")
    assert_good(report)
    # Everything that clients wrote to the twin came after the copy: each is listed.
    assert len(report.lost_transactions) > 10


@pytest.mark.slow
@pytest.mark.parametrize("tier", list(Tier))
@pytest.mark.parametrize("fault", list(Fault))
def test_every_fault_with_every_tier(world: World, ledger: App, tier: str, fault: str) -> None:
    assert_good(run(world, drill, ledger, tier=tier, fault=fault, seed=len(fault)))


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n, s in SCENARIOS.items() if s.stops_at is not None])
def test_what_must_stop_a_failover_stops_it_and_nobody_is_led_anywhere(
    world: World, ledger: App, name: str
) -> None:
    report = run(world, drill, ledger, scenario=name)
    assert report.outcome is RecoveryOutcome.PASSED, report.reason
    assert checks(report)["stopped where it must"] is Verdict.PASS
    assert report.phases[-1].name is SCENARIOS[name].stops_at
    assert report.phases[-1].verdict is not Verdict.PASS
    assert report.rta_seconds is None and report.leftovers == ()


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n, s in SCENARIOS.items() if s.stops_at is None])
def test_every_game_day_comes_to_what_it_says(world: World, ledger: App, name: str) -> None:
    report = run(world, drill, ledger, scenario=name)
    assert_good(report)
    if SCENARIOS[name].fault is Fault.CORRUPT:
        (restored,) = [p.note for p in report.phases if p.name is Phase.RESTORE]
        assert "is of no use" in restored and "; restored point" in restored


@pytest.mark.parametrize(
    "moment",
    [
        pytest.param("twin serves", marks=pytest.mark.slow),
        "fault",
        pytest.param("promote", marks=pytest.mark.slow),
    ],
)
def test_a_drill_that_is_killed_leaves_nothing_that_the_reaper_does_not_find(
    world: World, ledger: App, moment: str
) -> None:
    code = f"{TELLING}drill({PRODUCTION!r}, {ledger.name!r}, tier='warm')"
    environ = {**os.environ, "PREFECT_API_URL": world.addresses["prefect_api"],
               "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "false"}  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, env=environ, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip
    assert process.stdout is not None
    said = []
    for line in process.stdout:
        said.append(line)
        if line.startswith(f"told {moment}"):
            break
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    (record,) = open_drills(world)
    assert record.application == ledger.name, said[-5:]
    ended = reap(all_drills=True, return_state=True)
    assert ended.is_completed(), ended.message
    pair = [load_platform(name) for name in record.platforms]
    assert leftovers(pair[0], pair[1], record) == []
    assert drill_processes.of_drill(record.id, record.folder) == []
    assert open_drills(world) == []
    assert world.get(ledger.name, "/healthz") == ""


def test_a_drill_whose_login_reaches_production_stops_before_its_fault(
    world: World, ledger: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("secrets.token_hex", lambda size: "0badc0de" * (size // 4))
    server = PostgresServer(world.addresses["database_aws_url"])
    server.ensure("drill_0badc0de")  # somebody gave the drill's login to production's server
    production = database_name(ledger.name, PRODUCTION)
    with psycopg.connect(server.admin_url("postgres"), autocommit=True) as connection:
        connection.execute(f'GRANT CONNECT ON DATABASE "{production}" TO drill_0badc0de'.encode())
        try:
            report = run(world, drill, ledger, tier="warm")
        finally:
            connection.execute(
                f'REVOKE CONNECT ON DATABASE "{production}" FROM drill_0badc0de'.encode()
            )
    server.drop("drill_0badc0de")
    assert report.error is not None and report.error["code"] == "SLP202"
    assert "was let into" in report.reason
    assert not any(event.what == "fault" for event in report.events)
    assert report.leftovers == () and open_drills(world) == []


def test_a_standby_that_is_not_ready_is_told_before_anything_is_made(
    world: World, ledger: App
) -> None:
    platform = load_platform("sandbox-gcp")
    broken = platform.model_copy(deep=True)
    broken.backup_keys = type(platform.backup_keys)({})
    broken.save("sandbox-gcp", overwrite=True)
    before = len(world.platform.store.list("drills"))
    try:
        report = run(world, drill, ledger, tier="warm")
    finally:
        platform.save("sandbox-gcp", overwrite=True)
    assert report.outcome is RecoveryOutcome.REFUSED
    assert report.error is not None and report.error["code"] == "SLP201"
    assert "no private key is at hand" in report.reason
    assert len(world.platform.store.list("drills")) == before


def test_a_standby_whose_clock_is_minutes_ahead_is_told_before_anything_is_made(
    world: World, ledger: App
) -> None:
    server = load_platform("sandbox-gcp").database
    before = len(world.platform.store.list("drills"))
    with psycopg.connect(server.admin_url("postgres"), autocommit=True) as connection:
        connection.execute(
            "CREATE SCHEMA ahead; CREATE FUNCTION ahead.clock_timestamp() RETURNS timestamptz "
            "LANGUAGE sql AS $$SELECT pg_catalog.clock_timestamp() + interval '3 minutes'$$"
        )
        connection.execute("ALTER DATABASE postgres SET search_path = ahead, pg_catalog, public")
        try:
            report = run(world, drill, ledger, tier="warm")
        finally:
            connection.execute("ALTER DATABASE postgres RESET search_path")
            connection.execute("DROP SCHEMA ahead CASCADE")
    assert report.outcome is RecoveryOutcome.REFUSED
    assert report.error is not None and report.error["code"] == "SLP201"
    assert "the clock of gcp's database is 180" in report.reason, report.reason
    assert len(world.platform.store.list("drills")) == before


@pytest.mark.parametrize(
    ("given", "code"),
    [({"scenario": "flood"}, "SLP212"), ({"fault": "tickle"}, "SLP212")],
)
def test_what_cannot_be_drilled_is_refused(
    world: World, ledger: App, given: dict[str, str], code: str
) -> None:
    report = run(world, drill, ledger, **given)
    assert report.outcome is RecoveryOutcome.REFUSED
    assert report.error is not None and report.error["code"] == code


TELLING = """
from flows.drill import drill
from tasks.drill_world import World

tell = World.tell


def told(self, what, **data):
    tell(self, what, **data)
    print("told", what, flush=True)


World.tell = told
"""


# The real names


def ask(world: World, app: App, path: str, side: str = "edge_web", method: str = "GET") -> int:
    port = world.addresses["edge_web"].rpartition(":")[2]
    address = {"edge_web": "127.0.0.1", "edge_web_gcp": "127.0.0.2"}[side]
    answer = httpx.request(
        method, f"http://{address}:{port}{path}", headers={"Host": f"{app.name}.slipway.test"},
        timeout=10,
    )  # fmt: skip
    return answer.status_code


def approved(world: World, app: App, flow: Any, *people: str, **more: Any) -> str:
    """The digest of the plan, after these people have said yes."""
    shown = run(world, flow, app, **more)
    digest = shown.reason.split()[-1]
    from datetime import UTC, datetime

    for person in people:
        yes = Approval(person=person, plan=digest, at=datetime.now(UTC))
        key = yes.key(app.name, PRODUCTION)
        world.platform.store.create(key, yes.model_dump_json().encode())
    return digest


def the_pair(app: App) -> Pair:
    return pair_of("sandbox", app.name, PRODUCTION)


def test_there_and_back_without_losing_a_row(world: World, own: App) -> None:
    refused = run(world, failover, own)
    assert refused.error is not None and refused.error["code"] == "SLP205"  # never armed
    ready = run(world, standby, own)
    assert ready.outcome is RecoveryOutcome.PASSED, ready.reason
    assert ask(world, own, "/write/one", method="POST") == 201

    plan = approved(world, own, failover, "ann", planned=True)
    alone = run(world, failover, own, plan=plan, apply=True, planned=True)
    assert alone.error is not None and alone.error["code"] == "SLP206"
    assert alone.outcome is RecoveryOutcome.REFUSED and the_pair(own).primary().name == "aws"
    approved(world, own, failover, "bob", planned=True)
    moved = run(world, failover, own, plan=plan, apply=True, planned=True)
    assert moved.outcome is RecoveryOutcome.PASSED, moved.reason
    assert "all tables are the same" in " ".join(p.note for p in moved.phases)
    assert ask(world, own, "/read/one", "edge_web_gcp") == 200
    assert ask(world, own, "/write/two", "edge_web_gcp", "POST") == 201
    assert ask(world, own, "/write/lost", method="POST") == 503  # the old side is fenced
    release = world.release(own.source("1.2.0"))
    assert release.code == "SLP203"  # it would reach nobody
    saved = backup(PRODUCTION, own.name, return_state=True)  # of what users write to now
    account = world.records.backup_report(str(saved.state_details.flow_run_id))
    assert account is not None and account.outcome is BackupOutcome.PROVED, saved.message
    assert account.lines[0].startswith("from gcp") and account.point == "00000002"

    back = approved(world, own, failback, "ann", "bob")
    returned = run(world, failback, own, plan=back, apply=True)
    assert returned.outcome is RecoveryOutcome.PASSED, returned.reason
    assert the_pair(own).primary().name == "aws"
    assert ask(world, own, "/read/two") == 200
    assert ask(world, own, "/write/three", method="POST") == 201
    nothing = run(world, failback, own)
    assert nothing.error is not None and nothing.error["code"] == "SLP205"


@pytest.mark.slow
def test_a_frozen_primary_wakes_up_fenced_and_what_it_alone_holds_is_listed(
    world: World, own: App
) -> None:
    assert run(world, standby, own).outcome is RecoveryOutcome.PASSED
    pair = the_pair(own)
    plan = approved(world, own, failover, "ann", "bob")
    with psycopg.connect(pair.home.admin_url, autocommit=True) as connection:
        connection.execute("SET session_replication_role = replica")  # passes the fence
        frozen = postgres_of(world)
        drill_processes.freeze(frozen)
        try:
            moved = run(world, failover, own, plan=plan, apply=True)
        finally:
            drill_processes.thaw(frozen)
        assert moved.outcome is RecoveryOutcome.PASSED, moved.reason
        assert ask(world, own, "/write/new", "edge_web_gcp", "POST") == 201
        world.await_parts()
        wait_until(lambda: ask(world, own, "/readyz") == 200, "the old side to wake up", 30)
        assert ask(world, own, "/write/late", method="POST") == 503
    with psycopg.connect(pair.home.admin_url, autocommit=True) as connection:
        # What a commit that passed its check before the freeze leaves behind.
        connection.execute("SET session_replication_role = replica")
        connection.execute("INSERT INTO ledger (key) VALUES ('zombie')")
    found = divergence(pair, pair.home, pair.away)
    assert found is not None and found.counts == {"public.ledger": {"insert": 1}}
    refused = run(world, failback, own)
    assert refused.error is not None and refused.error["code"] == "SLP209"
    assert "1 insert in public.ledger" in refused.reason
    assert "key=zombie" in refused.error["detail"]
    back = approved(world, own, failback, "ann", "bob", accept_loss="a test row")
    returned = run(world, failback, own, plan=back, apply=True, accept_loss="a test row")
    assert returned.outcome is RecoveryOutcome.PASSED, returned.reason
    assert any("is kept as database" in line for line in returned.lines)
    assert ask(world, own, "/read/new") == 200 and ask(world, own, "/read/zombie") == 404


@pytest.mark.slow
def test_a_failover_that_is_killed_at_any_step_is_finished_by_the_next_run(
    world: World, own: App
) -> None:
    assert run(world, standby, own).outcome is RecoveryOutcome.PASSED
    assert ask(world, own, "/write/one", method="POST") == 201
    pair = the_pair(own)
    plan = approved(world, own, failover, "ann", "bob")
    frozen = postgres_of(world)
    drill_processes.freeze(frozen)
    try:
        for step in (
            "blocks.epochs:Epochs.claim",
            "blocks.replication:Replication.promote",
            "blocks.fence:Fence.open",
        ):
            killed_after(world, own, "failover", step, plan)
            assert not pair.names_lead_to(pair.away), step
            if step.endswith("claim"):  # its keeper sees an epoch of its own, and must not begin
                assert_stays_closed(pair.away)
            refused = run(world, standby, own)
            assert refused.error is not None and refused.error["code"] == "SLP205", step
            assert "begun and not finished" in refused.reason
        moved = run(world, failover, own, plan=plan, apply=True)
    finally:
        drill_processes.thaw(frozen)
    assert moved.outcome is RecoveryOutcome.PASSED, moved.reason
    assert moved.phases[0].note.startswith("goes on with the move to gcp")
    assert [e.side for e in pair.epochs.every()] == ["aws", "gcp"]  # claimed once
    assert ask(world, own, "/read/one", "edge_web_gcp") == 200
    assert ask(world, own, "/write/two", "edge_web_gcp", "POST") == 201
    world.await_parts()
    wait_until(lambda: ask(world, own, "/readyz") == 200, "the old side to wake up", 30)
    assert ask(world, own, "/write/late", method="POST") == 503


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_failback_that_is_killed_at_any_step_is_finished_by_the_next_run(
    world: World, own: App
) -> None:
    assert run(world, standby, own).outcome is RecoveryOutcome.PASSED
    assert ask(world, own, "/write/one", method="POST") == 201
    plan = approved(world, own, failover, "ann", "bob", planned=True)
    moved = run(world, failover, own, plan=plan, apply=True, planned=True)
    assert moved.outcome is RecoveryOutcome.PASSED, moved.reason
    assert ask(world, own, "/write/two", "edge_web_gcp", "POST") == 201
    pair = the_pair(own)
    back = approved(world, own, failback, "ann", "bob")
    for step in (
        "tasks.moving:set_aside",
        "blocks.replication:Replication.copy_schema",
        "blocks.replication:Replication.begin",
        "blocks.epochs:Epochs.claim",
        "blocks.fence:Fence.close",
        "blocks.replication:Replication.promote",
    ):
        killed_after(world, own, "failback", step, back)
        free_the_slot_of_the_dead(own)
        assert not pair.names_lead_to(pair.home), step
        assert ask(world, own, "/read/two", "edge_web_gcp") == 200, step
    returned = run(world, failback, own, plan=back, apply=True)
    assert returned.outcome is RecoveryOutcome.PASSED, returned.reason
    assert [e.side for e in pair.epochs.every()] == ["aws", "gcp", "aws"]  # claimed once
    assert ask(world, own, "/read/two") == 200
    assert ask(world, own, "/write/three", method="POST") == 201
    assert slots(pair.home) == []  # of the standby that was; it would keep the log for ever
    assert run(world, standby, own).outcome is RecoveryOutcome.PASSED
    assert slots(pair.away) == [] and len(slots(pair.home)) == 1


def free_the_slot_of_the_dead(app: App) -> None:
    """Its lease runs out after a minute; six of them would be a long test."""
    with get_client(sync_client=True) as client:
        client.delete_global_concurrency_limit_by_name(f"slipway-{app.name}-{PRODUCTION}")


def slots(side: Side) -> list[str]:
    """The replication slots of an application, whatever its databases are called now."""
    with side.fence.connection() as connection:
        rows = connection.execute(
            "SELECT slot_name FROM pg_replication_slots WHERE slot_name LIKE %s",
            [f"slipway_{side.record.application.name.replace('-', '_')}_%"],
        ).fetchall()
    return [str(name) for (name,) in rows]


def assert_stays_closed(side: Side) -> None:
    """For three leases."""
    until = time.monotonic() + 4.5
    while time.monotonic() < until:
        assert not side.fence.state().writable
        time.sleep(0.1)


def killed_after(world: World, app: App, flow: str, step: str, plan: str) -> None:
    """A flow whose process dies at the moment when that step has been done."""
    owner, _, name = step.replace(":", ".").rpartition(".")
    code = f"""
import os, pkgutil, signal
from flows.{flow} import {flow}
owner = pkgutil.resolve_name({owner!r})
original = getattr(owner, {name!r})

def act(*given, **named):
    original(*given, **named)
    os.kill(os.getpid(), signal.SIGKILL)

setattr(owner, {name!r}, act)
{flow}({PRODUCTION!r}, {app.name!r}, plan={plan!r}, apply=True)
"""
    environ = {**os.environ, "PREFECT_API_URL": world.addresses["prefect_api"],
               "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "false"}  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environ, timeout=90,
                          capture_output=True, text=True)  # fmt: skip
    assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]


def postgres_of(world: World) -> list[Any]:
    from sandbox import control

    part = control.require(world.home).part("postgres-aws")
    assert part is not None and part.pid is not None
    return drill_processes.family(part.pid)


@pytest.mark.slow
def test_a_primary_that_answers_is_not_failed_over(world: World, own: App) -> None:
    assert run(world, standby, own).outcome is RecoveryOutcome.PASSED
    plan = approved(world, own, failover, "ann", "bob")
    platform = world.platform
    stays = run(world, failover, own, plan=plan, apply=True)
    assert stays.error is not None and stays.error["code"] == "SLP205"
    assert the_pair(own).epochs.newest() is not None
    assert the_pair(own).primary().name == platform.side
    assert ask(world, own, "/write/still", method="POST") == 201
