"""Backups of a live application on the real sandbox: made, proved, damaged, restored, expired."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from blocks.backup_locations import BackupLocation
from blocks.postgres import database_name
from blocks.postgres_server_process import packaged_binaries
from blocks.vault import Vault
from domain.backup_report import BackupOutcome, BackupReport
from domain.recovery import CopyState, Lineage, MemberKind, Rung
from domain.verdict import Verdict
from flows.backup import backup
from flows.expire import expire
from flows.nightly import nightly
from flows.prove import prove
from flows.restore import restore
from tasks.saving import vaults_of
from tests.kit.cut_proxy import CutProxy
from tests.scenarios.apps import App
from tests.scenarios.world import PRODUCTION, World

pytestmark = pytest.mark.sandbox

UPLOADING = ".tmp-upload-"
PAGE = Path(__file__).resolve().parents[2] / "docs" / "restore-without-slipway.md"
SCHEMA = (
    "CREATE TABLE IF NOT EXISTS meal (id bigint GENERATED ALWAYS AS IDENTITY, what text);"
    "INSERT INTO meal (what) SELECT 'apple ' || n FROM generate_series(1, 500) n"
)


@pytest.fixture(scope="module")
def saved(
    session_world: World, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[App, BackupReport]]:
    """One application with one backup, for those who only look at it."""
    app = App(tmp_path_factory.mktemp("saved"), f"saved-{os.getpid()}")
    live(session_world, app)
    yield app, run(session_world, backup, app)
    session_world.stop(app.name)


@pytest.fixture
def shipped(world: World, app: App) -> App:
    return live(world, app)


def live(world: World, app: App) -> App:
    """In production, with a table, a cache and a probe that reads the restored copy."""
    psql = packaged_binaries() / "psql"
    count = "SELECT 1 / count(*) FROM meal"
    source = app.write(
        {
            "version": "1.0.0",
            "database": {"migrate": f'{psql} "$DATABASE_URL" -qc "{SCHEMA}"'},
            "cache": "redis",
            "backups": {
                "probe": f'{psql} "$DATABASE_URL" -v ON_ERROR_STOP=1 -qAtc "{count}"',
                "objects": {"store": "uploads", "prefix": f"{app.name}/"},
            },
        }
    )
    world.ship(source)
    uploads = world.platform.object_store("uploads")
    for key, content in pictures(app).items():
        uploads.create(key, content)
    uploads.create(f"not-{app.name}/x", b"somebody else's")
    return app


def pictures(app: App) -> dict[str, bytes]:
    return {f"{app.name}/{number}.png": b"picture %d" % (number % 2) for number in range(3)}


def run(world: World, flow: Any, app: App, **more: Any) -> BackupReport:
    """The account that a flow left, whatever it ended with."""
    state = flow(PRODUCTION, app.name, return_state=True, **more)
    report = world.records.backup_report(str(state.state_details.flow_run_id))
    assert report is not None, state.message
    assert state.is_completed() == (report.exit_code == 0)
    return report


def vaults(world: World, app: App) -> tuple[Vault, ...]:
    return vaults_of(world.platform, app.name, PRODUCTION)


def verdicts(report: BackupReport) -> dict[str, Verdict]:
    return {copy.location: copy.verdict for copy in report.copies}


def test_a_backup_is_proved_at_every_location_and_restored(
    world: World, saved: tuple[App, BackupReport]
) -> None:
    shipped, made = saved
    assert made.outcome is BackupOutcome.PROVED, made
    assert set(verdicts(made)) == {"aws", "aws-second-region", "gcp"}
    assert {copy.rung for copy in made.copies} == {"probed"}
    assert all(copy.twins and copy.twins_caught == copy.twins for copy in made.copies)
    stored = {m.kind for m in made.members if m.is_stored}
    assert stored == {
        MemberKind.POSTGRES, MemberKind.GLOBALS, MemberKind.REDIS, MemberKind.KUBERNETES,
        MemberKind.OBJECTS,
    }  # fmt: skip
    assert all(m.skipped for m in made.members if not m.is_stored)

    name = database_name(shipped.name, "copy")[:40]
    back = run(world, restore, shipped, to=name)
    assert back.outcome is BackupOutcome.RESTORED, back
    with psycopg.connect(world.addresses["database_gcp_url"].replace("/postgres", f"/{name}")) as c:
        assert c.execute("SELECT count(*) FROM meal").fetchone() == (500,)
    objects = run(world, restore, shipped, to="objects:uploads-restored")
    assert objects.outcome is BackupOutcome.RESTORED, objects
    there = world.platform.object_store("uploads-restored")
    found = {key: there.read(key) for key in there.list(shipped.name)}
    assert found == pictures(shipped)
    again = run(world, restore, shipped, to=name)
    assert again.error is not None and again.error["code"] == "SLP123"

    planned = run(world, expire, shipped)
    assert planned.outcome is BackupOutcome.PLANNED
    applied = run(world, expire, shipped, apply=True)
    assert applied.outcome is BackupOutcome.EXPIRED
    assert [v.copies()[0].state for v in vaults(world, shipped)] == [CopyState.COMPLETE] * 3


@pytest.mark.slow
def test_a_location_that_is_away_keeps_no_other_from_its_copy(world: World, shipped: App) -> None:
    platform = world.platform.model_copy(deep=True)
    dead = {"kind": "gcs", "endpoint": "http://127.0.0.1:9", "create": False,
            "patience_seconds": 0.5}  # fmt: skip
    platform.backup_locations[-1] = platform.backup_locations[-1].model_copy(update=dead)
    platform.save("half-dead", overwrite=True)
    made = run(world, backup, shipped, platform="half-dead")
    assert verdicts(made) == {
        "aws": Verdict.PASS, "aws-second-region": Verdict.PASS, "gcp": Verdict.ERROR,
    }  # fmt: skip
    assert made.exit_code == 1
    assert [v.copies()[0].state for v in vaults(world, shipped)[:2]] == [CopyState.COMPLETE] * 2


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [3.0, 60.0])
@pytest.mark.timeout(400)
def test_the_network_cut_in_mid_backup(world: World, shipped: App, seconds: float) -> None:
    """What was under way is tried again; should that not be enough, the location is red."""
    first = run(world, backup, shipped)
    assert first.outcome is BackupOutcome.PROVED, first
    platform = world.platform.model_copy(deep=True)
    where = platform.backup_locations[0]
    host, _, port = where.endpoint.removeprefix("http://").partition(":")
    with CutProxy(host, int(port), cut_after_bytes=6000, seconds=seconds) as network:
        through = {"endpoint": f"http://127.0.0.1:{network.port}"}
        platform.backup_locations[0] = where.model_copy(update=through)
        # A name of its own each time: overwriting with a copy overwrites what it is a copy of.
        name = f"cut-network-{seconds:.0f}"
        platform.save(name, overwrite=True)
        made = run(world, backup, shipped, platform=name)
        assert network.cuts == 1
    if seconds < 10:
        assert made.outcome is BackupOutcome.PROVED, made
    elif made.outcome is not BackupOutcome.PROVED:
        assert made.exit_code != 0 and made.error is not None, made
    # Whatever became of it: nothing is lost, and the next one needs nobody's help.
    kept = vaults(world, shipped)[0].copies()
    assert kept[0].proved(Rung.PROBED) and kept[0].state is CopyState.COMPLETE
    again = run(world, backup, shipped)
    assert again.outcome is BackupOutcome.PROVED, again
    assert all(v.copies()[-1].proved(Rung.PROBED) for v in vaults(world, shipped))


@pytest.mark.slow
def test_the_disk_full_in_mid_backup(
    world: World, shipped: App, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    platform = world.platform.model_copy(deep=True)
    disk = BackupLocation(name="disk", kind="file", bucket=str(tmp_path / "disk"))
    platform.backup_locations = [disk]
    platform.save("full-disk", overwrite=True)
    assert run(world, backup, shipped, platform="full-disk").outcome is BackupOutcome.PROVED
    original = os.fsync

    def full(descriptor: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        if path.is_relative_to(tmp_path / "disk") and path.name.startswith(UPLOADING):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        original(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    made = run(world, backup, shipped, platform="full-disk")
    assert made.error is not None and made.error["code"] == "SLP015", made
    monkeypatch.undo()
    vault = platform.vaults(Lineage(shipped.name, PRODUCTION))[0]
    states = [copy.state for copy in vault.copies()]
    assert states[0] is CopyState.COMPLETE and CopyState.COMPLETE not in states[1:]
    assert run(world, backup, shipped, platform="full-disk").outcome is BackupOutcome.PROVED


@pytest.mark.slow
def test_wrong_keys_are_found_before_they_are_needed(world: World, shipped: App) -> None:
    platform = world.platform.model_copy(deep=True)
    other = dict(platform.backup_keys.get_secret_value())
    other["aws"], other["gcp"] = other["gcp"], other["aws"]
    platform.backup_keys = type(platform.backup_keys)(other)
    platform.save("swapped-keys", overwrite=True)
    made = run(world, backup, shipped, platform="swapped-keys")
    assert [key.verdict for key in made.keys] == [Verdict.FAIL, Verdict.FAIL]
    assert made.outcome is BackupOutcome.UNPROVED
    assert "does not open" in made.reason


@pytest.mark.slow
def test_a_restored_database_has_backups_of_its_own(world: World, shipped: App) -> None:
    """plugin-barman-cloud#263: a restored copy wrote into production's backups."""
    first = run(world, backup, shipped)
    name = database_name(shipped.name, PRODUCTION)
    admin = world.platform.database.admin_url("postgres")
    platform = world.platform.model_copy(update={"restore_url": world.platform.database_url})
    platform.save("in-place", overwrite=True)
    back = run(world, restore, shipped, to=name, replace=True, platform="in-place")
    assert back.outcome is BackupOutcome.RESTORED, back
    second = run(world, backup, shipped)
    assert second.outcome is BackupOutcome.PROVED, second
    assert [c.point for c in vaults(world, shipped)[0].copies()] == [first.point]
    own = world.platform.vaults(Lineage(shipped.name, PRODUCTION, f"restored-{first.point}"))
    assert [c.state for c in own[0].copies()] == [CopyState.COMPLETE]
    with psycopg.connect(admin, autocommit=True) as connection:
        kept = connection.execute(
            "SELECT datname FROM pg_database WHERE datname LIKE %s", [f"{name[:20]}%replaced%"]
        ).fetchall()
        assert len(kept) == 1


@pytest.mark.slow
def test_the_night_takes_care_of_all_that_is_live(world: World, shipped: App) -> None:
    stale = nightly("watch", shipped.name, return_state=True)
    assert stale.is_failed() and shipped.name in stale.message
    made = nightly("backup", shipped.name, return_state=True)
    assert made.is_completed(), made.message
    assert all(v.copies()[-1].proved(Rung.PROBED) for v in vaults(world, shipped))
    assert nightly("watch", shipped.name, return_state=True).is_completed()
    assert nightly("expire", shipped.name, return_state=True).is_completed()


@pytest.fixture
def tools(tmp_path: Path) -> Iterator[dict[str, str]]:
    """A PATH with the standard programs; ``age`` by the library where the program is missing."""
    folder = tmp_path / "bin"
    folder.mkdir()
    if shutil.which("age") is None:
        (folder / "age").write_text(AGE)
        (folder / "age").chmod(0o755)
    if shutil.which("zstd") is None:
        (folder / "zstd").write_text(ZSTD)
        (folder / "zstd").chmod(0o755)
    path = f"{folder}:{packaged_binaries()}:{os.environ['PATH']}"
    yield {**os.environ, "PATH": path}


def test_anybody_restores_without_slipway(
    world: World, saved: tuple[App, BackupReport], tools: dict[str, str], tmp_path: Path
) -> None:
    """Every command of the page, as it stands there."""
    shipped, made = saved
    assert made.point is not None
    place = tmp_path / "elsewhere"
    point = place / "point"
    point.mkdir(parents=True)
    gcp = vaults(world, shipped)[-1]
    for key in gcp.store.list(gcp.lineage.folder(made.point)):
        (point / key.rsplit("/", 1)[-1]).write_bytes(gcp.store.read(key) or b"")
    shutil.copy(world.home.keys / "offline.key", place / "KEY")
    server = world.addresses["database_gcp_url"].removesuffix("/postgres")
    said = []
    for script in re.findall(r"```sh\n(.*?)```", PAGE.read_text(), re.S):
        if "redis-server" in script:
            script = script.split("redis-server")[0]
        script = script.replace("diet_game_restored", f"by_hand_{os.getpid()}")
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", script], cwd=place, capture_output=True, text=True,
            env={**tools, "SERVER": server}, timeout=60,
        )  # fmt: skip
        assert done.returncode == 0, f"{script}\n{done.stdout}\n{done.stderr}"
        said.append(done.stdout)
    assert "DAMAGED" not in said[0] and said[0].count("whole") == 5
    assert f"{int(made.point)} |" in "".join(said)  # the heartbeat of this point
    assert (place / "dump.rdb").read_bytes()[:5] == b"REDIS"
    assert '"kind": "Workload"' in said[-1] or '"kind":"Workload"' in said[-1]
    with psycopg.connect(f"{server}/by_hand_{os.getpid()}") as connection:
        assert connection.execute("SELECT count(*) FROM meal").fetchone() == (500,)
    assert hashlib.sha256((point / "manifest.json").read_bytes()).digest() == hashlib.sha256(
        (point / "manifest.twin.json").read_bytes()
    ).digest()  # fmt: skip


def test_a_damaged_copy_is_red_and_the_others_are_not(
    world: World, saved: tuple[App, BackupReport]
) -> None:
    """A green source never hides a red copy."""
    shipped, made = saved
    assert made.point is not None
    gcp = next(v for v in vaults(world, shipped) if v.location == "gcp")
    key = gcp.lineage.member(made.point, MemberKind.POSTGRES)
    content = gcp.store.read(key) or b""
    middle = len(content) // 2
    gcp.store.replace(key, content[:middle] + bytes([content[middle] ^ 4]) + content[middle + 1 :])
    seen = run(world, prove, shipped, point=made.point)
    assert verdicts(seen) == {
        "aws": Verdict.PASS, "aws-second-region": Verdict.PASS, "gcp": Verdict.FAIL,
    }  # fmt: skip
    assert seen.outcome is BackupOutcome.UNPROVED
    assert "SHA-256" in next(c.reason for c in seen.copies if c.location == "gcp")


AGE = (
    f"#!{sys.executable}\n"
    + """\
import sys
import pyrage
key = open(sys.argv[sys.argv.index("-i") + 1]).read().strip().splitlines()[-1]
file = next((a for a in sys.argv[1:] if not a.startswith("-") and not a.endswith("KEY")), None)
source = open(file, "rb") if file else sys.stdin.buffer
pyrage.decrypt_io(source, sys.stdout.buffer, [pyrage.x25519.Identity.from_str(key)])
"""
)
ZSTD = (
    f"#!{sys.executable}\n"
    + """\
import sys
import zstandard
zstandard.ZstdDecompressor().copy_stream(sys.stdin.buffer, sys.stdout.buffer)
"""
)
