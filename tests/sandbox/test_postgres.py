"""A PostgreSQL server of the sandbox, started by itself."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest

from sandbox import ports, postgres
from sandbox.home import Home, Memory
from sandbox.postgres import binaries


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    private = tmp_path / "private"
    private.mkdir(mode=0o700)  # as a checkout below /root is
    place = Home.at(private / "state root")
    place.make()
    yield place
    for socket_folder in place.run.iterdir():
        socket_folder.rmdir()
    place.run.rmdir()


@contextmanager
def server(home: Home, password: str, *flags: str) -> Iterator[psycopg.Connection[object]]:
    port = ports.choose("postgres-aws")
    memory = Memory(secrets={"database": password})
    memory.save(home)
    process = subprocess.Popen(
        [sys.executable, "-m", "sandbox.postgres", "--home", str(home.root), "--name", "aws",
         "--port", str(port), *flags],
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        yield _connect(process, postgres.url(port, password))
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=30)


def _connect(process: subprocess.Popen[str], url: str) -> psycopg.Connection[object]:
    deadline = time.monotonic() + 30
    while True:
        try:
            return psycopg.connect(url, autocommit=True, connect_timeout=5)
        except psycopg.OperationalError as error:
            if process.poll() is not None:
                raise AssertionError(process.communicate()[1]) from error
            if time.monotonic() > deadline:
                raise
        time.sleep(0.05)


# As root the second way down must work where user namespaces are forbidden; for anybody else
# both are the same start.
@pytest.mark.parametrize("flags", [(), ("--no-user-namespace",)])
def test_it_starts_below_a_folder_that_only_its_owner_may_enter(
    home: Home, flags: tuple[str, ...]
) -> None:
    with server(home, "first", *flags) as connection:
        connection.execute("create table kept (n int)")
        connection.execute("insert into kept values (7)")
    with server(home, "first") as connection:  # the data changes hands when the way changes
        assert connection.execute("select n from kept").fetchone() == (7,)


def test_a_forgotten_password_is_replaced_and_the_data_kept(home: Home) -> None:
    with server(home, "first") as connection:
        connection.execute("create table kept (n int)")
    with server(home, "it's new") as connection:
        assert connection.execute("select count(*) from kept").fetchone() == (0,)


def test_a_first_start_that_was_cut_short_is_begun_again(home: Home) -> None:
    half = home.postgres("aws") / "new" / "base"
    half.mkdir(parents=True)
    (home.postgres("aws") / "new" / "PG_VERSION").write_text("18")
    with server(home, "first") as connection:
        version = connection.execute("show server_version").fetchone()
    assert str(version).startswith("('18")
    assert not half.exists()


def test_the_client_programs_come_along() -> None:
    assert all((binaries() / name).is_file() for name in ("pg_dump", "pg_restore", "psql"))
