"""Databases on a real PostgreSQL server: made once, private, and gone when they should be."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import psycopg
import pytest

from blocks.postgres import PostgresServer, database_name
from domain.errors import Failed
from sandbox import ports
from sandbox.home import Home, Memory

PASSWORD = "the-admin-s-own"


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Of a server of its own."""
    home = Home.at(tmp_path_factory.mktemp("postgres") / "home")
    home.make()
    Memory(secrets={"database": PASSWORD}).save(home)
    port = ports.choose("postgres-aws")
    process = subprocess.Popen(
        [sys.executable, "-m", "sandbox.postgres", "--home", str(home.root), "--name", "aws",
         "--port", str(port)],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        yield _ready(process, f"postgresql://slipway:{PASSWORD}@127.0.0.1:{port}/postgres")
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=30)
        for folder in home.run.iterdir():
            folder.rmdir()
        home.run.rmdir()


def _ready(process: subprocess.Popen[str], url: str) -> str:
    deadline = time.monotonic() + 60
    while True:
        try:
            psycopg.connect(url, connect_timeout=5).close()
            return url
        except psycopg.OperationalError:
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < deadline, "the server did not start"
        time.sleep(0.05)


@pytest.fixture
def server(url: str) -> PostgresServer:
    return PostgresServer(url)


def disposables(server: PostgresServer) -> list[str]:
    return [name for name in server.databases() if name.startswith("disposable-")]


def roles(server: PostgresServer) -> list[str]:
    with server._admin() as connection:
        return [str(row[0]) for row in connection.execute("select rolname from pg_roles")]


def test_a_database_is_made_once_and_keeps_its_data(server: PostgresServer, url: str) -> None:
    first = server.ensure("shop__test")
    with psycopg.connect(first, autocommit=True) as connection:
        connection.execute("create table kept (n int)")
    assert PostgresServer(url).ensure("shop__test") == first
    with psycopg.connect(first) as connection:
        assert connection.execute("select count(*) from kept").fetchone() == (0,)


def test_many_that_want_one_database_at_once_all_get_it(server: PostgresServer) -> None:
    with ThreadPoolExecutor(6) as pool:
        urls = set(pool.map(lambda _: server.ensure("crowd__test"), range(12)))
    assert len(urls) == 1 and "crowd__test" in server.databases()


def test_a_role_reaches_its_own_database_alone(server: PostgresServer) -> None:
    ours, theirs = server.ensure("ours__test"), server.ensure("theirs__test")
    with psycopg.connect(theirs, autocommit=True) as connection:
        connection.execute("create table secret (n int)")
    with pytest.raises(psycopg.OperationalError, match="permission denied for database"):
        psycopg.connect(f"{ours.rsplit('/', 1)[0]}/theirs__test")
    with (  # open to all, but it holds and gives nothing
        psycopg.connect(f"{ours.rsplit('/', 1)[0]}/postgres") as connection,
        pytest.raises(psycopg.errors.InsufficientPrivilege),
    ):
        connection.execute("create table public.mine (n int)")


def test_a_role_has_no_power_over_the_server(server: PostgresServer) -> None:
    statements = [
        "create database more",
        "create role more",
        "drop database theirs__power",
        "alter role slipway superuser",
        "select pg_read_file('/etc/passwd')",
        "copy (select 1) to program 'true'",
    ]
    server.ensure("theirs__power")
    with psycopg.connect(server.ensure("ours__power"), autocommit=True) as connection:
        for statement in statements:
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute(statement)


def test_passwords_differ_and_do_not_give_the_server_s_away(server: PostgresServer) -> None:
    one, two = server.url("one"), server.url("two")
    assert one.split("@")[0].split(":")[2] != two.split("@")[0].split(":")[2]
    assert PASSWORD not in one


def test_a_disposable_database_is_empty_usable_and_gone(server: PostgresServer) -> None:
    with server.disposable("diet-game") as first, server.disposable("diet-game") as second:
        assert first != second and len(disposables(server)) == 2
        with psycopg.connect(first, autocommit=True) as connection:
            connection.execute("create table t (n int)")
            connection.execute("create schema s")
        held = psycopg.connect(second)  # still connected when it is dropped
    assert disposables(server) == []
    held.close()
    assert not [name for name in roles(server) if name.startswith("disposable-")]


def test_it_is_gone_after_an_error_inside_too(server: PostgresServer) -> None:
    with pytest.raises(RuntimeError, match="inside"), server.disposable("shop"):
        raise RuntimeError("inside")
    assert disposables(server) == []


def test_what_a_killed_run_left_is_swept_when_its_time_is_over(server: PostgresServer) -> None:
    expired = server.disposable("old", timedelta(seconds=-1))
    young = server.disposable("young")
    young.__enter__()
    expired.__enter__()
    with server._admin() as connection:  # killed between the role and the database
        server._ensure_role(connection, "disposable-1000000000-half-abc")
    assert len(disposables(server)) == 2
    with server.disposable("next"):
        assert sorted(name.split("-")[2] for name in disposables(server)) == ["next", "young"]
    assert "disposable-1000000000-half-abc" not in roles(server)
    young.__exit__(None, None, None)


def test_no_environment_is_called_as_a_disposable_database_is(server: PostgresServer) -> None:
    name = database_name("disposable", "1000000000-x")
    server.ensure(name)
    with server.disposable("next"):
        assert name in server.databases()


def test_a_server_that_refuses_is_told_without_a_password() -> None:
    port = ports.choose("nobody")
    server = PostgresServer(f"postgresql://admin:hunter2@127.0.0.1:{port}/postgres")
    with pytest.raises(Failed) as caught:
        server.ensure("shop__test")
    assert caught.value.code == "SLP014" and str(port) in caught.value.cause
    assert "hunter2" not in str(caught.value) + caught.value.detail


def test_a_url_that_cannot_be_read_is_told_without_its_password() -> None:
    server = PostgresServer("postgresql://admin:hunter2 is it@127.0.0.1:1/postgres")
    with pytest.raises(Failed) as caught:
        server.ensure("shop__test")
    assert "unexpected spaces" in caught.value.cause and "hunter2" not in str(caught.value)


def test_a_wrong_statement_is_an_error_of_ours(server: PostgresServer) -> None:
    with pytest.raises(Failed) as caught:
        server.drop("postgres")
    assert caught.value.code == "SLP014" and "currently open" in caught.value.cause


def test_a_killed_connection_is_an_error_of_ours(server: PostgresServer) -> None:
    with pytest.raises(Failed) as caught, server._admin() as connection:
        connection.execute("select pg_terminate_backend(pg_backend_pid())")
    assert caught.value.code == "SLP014"


@pytest.mark.parametrize("length", [3, 20, 40])
def test_names_never_meet_and_fit(length: int) -> None:
    names = {database_name("a" * length, "b" * n) for n in range(2, 40)}
    assert len(names) == 38 and all(len(name) <= 63 for name in names)
    assert database_name("a-b", "c") != database_name("a", "b-c")
