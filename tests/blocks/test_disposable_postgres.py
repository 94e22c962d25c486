"""Throwaway servers: they start, and nothing of them stays, whoever is killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import psycopg
import pytest

from blocks.disposable_postgres import DisposableServer, sweep
from domain.errors import Failed, UsageError
from tests.blocks.conftest import wait_for
from tests.blocks.databases import ask

USER_OF_ONE = """
import sys, time
from pathlib import Path
from blocks.disposable_postgres import DisposableServer
with DisposableServer(folder=Path(sys.argv[1]), lifetime_seconds=float(sys.argv[2])) as server:
    print(server.folder, server.pid, flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def base(tmp_path: Path) -> Iterator[Path]:
    """A short path, for the socket's sake, and one that other users may pass."""
    place = Path("/tmp") / f"slipway-test-{os.getpid()}-{tmp_path.name[-6:]}"
    yield place
    assert not place.exists() or not list(place.iterdir()), "a server left something"
    if place.exists():
        place.rmdir()


@contextmanager
def user_of_one(base: Path, lifetime_seconds: float = 600) -> Iterator[tuple[int, Path, int]]:
    """A process with a server: its number, the server's folder and number."""
    process = subprocess.Popen(
        [sys.executable, "-c", USER_OF_ONE, str(base), str(lifetime_seconds)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert process.stdout is not None and process.stdin is not None
    try:
        folder, server = process.stdout.readline().rsplit(" ", 1)
        yield process.pid, Path(folder), int(server)
    finally:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()


def gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def keeper(folder: Path) -> int:
    return int(json.loads((folder / "process.json").read_text())["pid"])


@pytest.mark.parametrize("tcp", [False, True])
def test_it_serves_and_leaves_nothing(base: Path, tcp: bool) -> None:
    with DisposableServer(folder=base, tcp=tcp) as server:
        assert ask(server.url, "select 1") == 1
        latin = server.database("in latin", encoding="LATIN1")
        assert ask(latin, "show server_encoding") == "LATIN1"
        assert ask(server.url, "show listen_addresses") == ("127.0.0.1" if tcp else "")
        pid = server.pid
    assert gone(pid) and not server.folder.exists()


def test_on_loopback_it_wants_its_password(base: Path) -> None:
    with (
        DisposableServer(folder=base, tcp=True) as server,
        pytest.raises(psycopg.OperationalError, match="password"),
    ):
        psycopg.connect(psycopg.conninfo.make_conninfo(server.url, password="guess"))


def test_it_ends_when_its_user_is_killed(base: Path) -> None:
    with user_of_one(base) as (user, folder, server):
        os.kill(user, signal.SIGKILL)
        wait_for(lambda: gone(server) and not folder.exists(), "end of the server")


def test_it_ends_when_its_keeper_is_killed_and_a_sweep_removes_the_rest(base: Path) -> None:
    with user_of_one(base) as (_, folder, server):
        os.kill(keeper(folder), signal.SIGKILL)
        wait_for(lambda: gone(server), "end of the server")
        assert folder.exists()
        assert sweep(base) == (folder,)
        assert not folder.exists()


def test_it_does_not_outlive_its_time(base: Path) -> None:
    with user_of_one(base, lifetime_seconds=10) as (_, folder, server):
        wait_for(lambda: gone(server), "end of the server")
        wait_for(lambda: not list(folder.glob("data")), "end of its data")
    sweep(base)


def test_a_sweep_ends_a_server_whose_time_is_over(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when its keeper hangs."""
    with user_of_one(base) as (_, folder, server):
        os.kill(keeper(folder), signal.SIGSTOP)
        later = time.time() + 3600
        monkeypatch.setattr("blocks.disposable_postgres.time.time", lambda: later)
        assert sweep(base) == (folder,)
        wait_for(lambda: gone(server), "end of the server")


def test_a_sweep_leaves_those_that_live(base: Path) -> None:
    with DisposableServer(folder=base) as server:
        (base / "not-ours").mkdir()
        assert sweep(base) == ()
        assert ask(server.url, "select 1") == 1
        (base / "not-ours").rmdir()


def test_a_sweep_never_kills_a_process_that_only_has_the_number(base: Path) -> None:
    other = subprocess.Popen(["sleep", "60"])
    try:
        base.mkdir(mode=0o711)
        old = base / f"{int(time.time()) - 10}-deadbeef"
        (old / "data").mkdir(parents=True)
        (old / "data" / "postmaster.pid").write_text(f"{other.pid}\n{old}/data\n")
        (old / "process.json").write_text(json.dumps({"pid": other.pid, "started": 0}))
        assert sweep(base) == (old,)
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()


def test_a_folder_that_others_may_write_to_is_refused(base: Path) -> None:
    """Who can put a folder there could have us kill what he likes."""
    base.mkdir()
    base.chmod(0o777)
    with pytest.raises(Failed) as caught, DisposableServer(folder=base):
        pass
    assert caught.value.code == "SLP125"


def test_a_path_too_long_for_a_socket_is_refused_with_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(Failed) as caught, DisposableServer(folder=tmp_path / ("x" * 90)):
        pass
    assert "TMPDIR" in caught.value.help


def test_a_server_that_does_not_start_says_what_it_said(base: Path, tmp_path: Path) -> None:
    for name, text in (
        ("postgres", "echo 'postgres (PostgreSQL) 18.4'"),
        ("initdb", "echo 'no space left on device' >&2; exit 1"),
    ):
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    tmp_path.chmod(0o755)
    with pytest.raises(Failed) as caught, DisposableServer(folder=base, binaries=tmp_path):
        pass
    assert caught.value.code == "SLP125" and "no space left" in caught.value.detail


def test_a_version_that_is_not_here_is_refused(base: Path) -> None:
    with pytest.raises(UsageError) as caught, DisposableServer(folder=base, major=99):
        pass
    assert caught.value.code == "SLP120"
