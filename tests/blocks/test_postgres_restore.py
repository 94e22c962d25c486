"""Restores into real servers: all, or nothing; and never over what is there."""

from __future__ import annotations

import io
import re
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest

from blocks.disposable_postgres import DisposableServer
from blocks.postgres_dump import GlobalsSource
from blocks.postgres_programs import Login, find
from blocks.postgres_proof import inventory_of_copy
from blocks.postgres_restore import contents, restore, restore_file, restore_globals
from blocks.postgres_server_process import folders_with, version_of
from domain.errors import Failed, UsageError
from domain.pg_inventory import difference
from tests.blocks.conftest import wait_for
from tests.blocks.databases import Dump, ask, new_database, run

SMALL = "create table t (n int primary key, word text); insert into t values (1, 'one'), (2, 'two')"


@pytest.fixture(scope="module")
def dump(rich: str) -> Dump:
    return Dump(rich)


@pytest.fixture(scope="module")
def small(postgres: DisposableServer) -> Dump:
    return Dump(new_database(postgres, SMALL))


def is_empty(url: str) -> bool:
    with psycopg.connect(url) as connection:
        return contents(connection) == ()


def test_everything_comes_back(postgres: DisposableServer, dump: Dump) -> None:
    url = new_database(postgres)
    done = restore(io.BytesIO(dump.content), url, expected=dump.inventory)
    assert difference(dump.inventory, inventory_of_copy(url, dump.inventory)) == ()
    assert done.inventory.tables == dump.inventory.tables and done.seconds > 0
    assert ask(url, "select nextval('ticket')") == 102


def test_several_jobs_from_a_file(postgres: DisposableServer, dump: Dump, tmp_path: Path) -> None:
    url = new_database(postgres)
    file = tmp_path / "a.dump"
    file.write_bytes(dump.content)
    restore_file(file, url, jobs=2, expected=dump.inventory)
    assert difference(dump.inventory, inventory_of_copy(url, dump.inventory)) == ()


def test_several_jobs_write_nothing_of_a_damaged_file(
    postgres: DisposableServer, dump: Dump, tmp_path: Path
) -> None:
    url = new_database(postgres)
    file = tmp_path / "a.dump"
    file.write_bytes(dump.content[:-100])
    with pytest.raises(Failed) as caught:
        restore_file(file, url, jobs=2)
    assert caught.value.code == "SLP122" and is_empty(url)


def test_t2_a_flipped_byte_that_pg_restore_takes_is_not_committed(
    postgres: DisposableServer, small: Dump
) -> None:
    """Without the record it ends with 0, and the rows count right: only the content is wrong."""
    flipped = small.content.replace(b"2\ttwo\n", b"2\ttwp\n")
    assert flipped != small.content
    unaware = new_database(postgres)
    restore(io.BytesIO(flipped), unaware)
    assert ask(unaware, "select count(*) from t") == 2

    url = new_database(postgres)
    with pytest.raises(Failed) as caught:
        restore(io.BytesIO(flipped), url, expected=small.inventory)
    assert caught.value.code == "SLP122" and "content is not what was saved" in caught.value.cause
    assert is_empty(url)


@pytest.mark.parametrize("kept", [0.0, 0.3, 0.6, 0.99])
def test_t2_a_truncated_archive_leaves_nothing(
    postgres: DisposableServer, dump: Dump, kept: float
) -> None:
    url = new_database(postgres)
    with pytest.raises(Failed) as caught:
        restore(io.BytesIO(dump.content[: int(len(dump.content) * kept)]), url)
    assert caught.value.code == "SLP122" and is_empty(url)


def test_an_archive_that_ends_between_two_tables_leaves_nothing(
    postgres: DisposableServer, small: Dump
) -> None:
    url = new_database(postgres)
    with pytest.raises(Failed) as caught:
        restore(io.BytesIO(small.sample.to_bytes(blocks=-1)), url)
    assert "without the data of public.t" in caught.value.cause and is_empty(url)


def test_an_archive_that_cannot_be_read_on_leaves_nothing(
    postgres: DisposableServer, dump: Dump
) -> None:
    class Torn(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            if self.tell() > 1 << 20:
                raise ConnectionResetError("the store went away")
            return super().read(size)

    url = new_database(postgres)
    with pytest.raises(ConnectionResetError):
        restore(Torn(dump.content), url)
    assert is_empty(url)


@pytest.mark.parametrize(
    ("there", "named"),
    [
        ("create table old (n int)", "table public.old"),
        ("create schema empty_one", "schema empty_one"),
        ("create function f() returns int language sql as 'select 1'", "function public.f"),
        ("create type e as enum ('a')", "type public.e"),
        ("select lo_create(77)", "large object 77"),
        ("create view v as select 1", "table public.v"),
    ],
)
def test_a_target_that_is_not_empty_is_refused(
    postgres: DisposableServer, small: Dump, there: str, named: str
) -> None:
    url = new_database(postgres, there)
    with pytest.raises(UsageError) as caught:
        restore(io.BytesIO(small.content), url)
    assert caught.value.code == "SLP123" and named in caught.value.cause


def test_an_extension_alone_is_not_in_the_way(postgres: DisposableServer, dump: Dump) -> None:
    url = new_database(postgres, "create extension vector")
    restore(io.BytesIO(dump.content), url)
    assert difference(dump.inventory, inventory_of_copy(url, dump.inventory)) == ()


def test_an_error_of_the_server_undoes_all(postgres: DisposableServer, small: Dump) -> None:
    broken = small.content.replace(b"2\ttwo\n", b"x\ttwo\n")
    url = new_database(postgres)
    with pytest.raises(Failed) as caught:
        restore(io.BytesIO(broken), url)
    assert caught.value.code == "SLP124" and "invalid input syntax" in caught.value.cause
    assert is_empty(url)


def test_replacing_keeps_the_old_database_and_what_belongs_to_it(
    postgres: DisposableServer, small: Dump
) -> None:
    run(postgres.url, "drop role if exists app; create role app login password 'app'")
    url = new_database(postgres, "create table old (n int)")
    name = Login(url).database
    run(
        url,
        f"alter database {name} owner to app; alter database {name} set search_path = a, public;"
        f"alter database {name} set work_mem = '5MB'; alter database {name} connection limit 9;"
        f"alter role app in database {name} set statement_timeout = '7s';"
        f"revoke all on database {name} from public",
    )
    about = (
        "select row(datdba::regrole, datconnlimit, datacl, (select array_agg(setconfig::text) from"
        " pg_db_role_setting where setdatabase = d.oid))::text from pg_database d where datname ="
    )
    before = ask(postgres.url, f"{about} '{name}'")
    with psycopg.connect(url):  # somebody who is still in it
        done = restore(io.BytesIO(small.content), url, replace=True, expected=small.inventory)
    assert done.kept is not None and done.kept.startswith(f"{name}__replaced_")
    assert ask(postgres.url, f"{about} '{name}'") == before
    assert ask(url, "select count(*) from t") == 2
    assert ask(postgres.url_of(done.kept), "select count(*) from old") == 0


def test_replacing_with_a_damaged_archive_changes_nothing(
    postgres: DisposableServer, small: Dump
) -> None:
    url = new_database(postgres, "create table old (n int)")
    with pytest.raises(Failed):
        restore(io.BytesIO(small.content[:-20]), url, replace=True)
    assert ask(url, "select count(*) from old") == 0
    left = "select count(*) from pg_database where datname like '%__restoring_%'"
    assert ask(postgres.url, left) == 0


def test_replacing_needs_a_login_that_may_create_databases(
    postgres: DisposableServer, small: Dump
) -> None:
    run(postgres.url, "drop role if exists meek; create role meek login password 'meek'")
    url = new_database(postgres, "create table old (n int)")
    meek = psycopg.conninfo.make_conninfo(url, user="meek", password="meek")
    with pytest.raises(Failed) as caught:
        restore(io.BytesIO(small.content), meek, replace=True)
    assert caught.value.code == "SLP124" and "permission denied" in caught.value.cause
    assert ask(url, "select count(*) from old") == 0


# An older server


def test_a_server_before_17_gets_sql_without_what_it_does_not_know(
    postgres: DisposableServer, dump: Dump, small: Dump, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The way for old servers, driven against the server that is here."""
    monkeypatch.setattr("blocks.postgres_restore.server_version", lambda _: (16, "16.9"))
    url = new_database(postgres)
    restore(io.BytesIO(dump.content), url, expected=dump.inventory)
    monkeypatch.undo()
    assert difference(dump.inventory, inventory_of_copy(url, dump.inventory)) == ()

    monkeypatch.setattr("blocks.postgres_restore.server_version", lambda _: (16, "16.9"))
    for damage in (
        lambda content: content[:-20],
        lambda content: content.replace(b"2\ttwo\n", b"2\ttwp\n"),
        lambda content: content.replace(b"2\ttwo\n", b"x\ttwo\n"),
    ):
        url = new_database(postgres)
        with pytest.raises(Failed) as caught:
            restore(io.BytesIO(damage(small.content)), url, expected=small.inventory)
        assert caught.value.code in ("SLP122", "SLP124") and is_empty(url)


def test_an_error_on_the_way_for_old_servers_stops_both_programs(
    postgres: DisposableServer, dump: Dump, monkeypatch: pytest.MonkeyPatch
) -> None:
    """psql stops at the first statement, with megabytes still to come."""
    monkeypatch.setattr("blocks.postgres_restore.server_version", lambda _: (16, "16.9"))
    broken = dump.content.replace(b"CREATE SCHEMA shop;", b"CREATE SCHEMO shop;")
    assert broken != dump.content
    url = new_database(postgres)
    with pytest.raises(Failed) as caught:
        restore(io.BytesIO(broken), url)
    assert "SCHEMO" in caught.value.cause and is_empty(url)


KILLED = """
import sys
from blocks import postgres_restore
if sys.argv[3] == "old":
    postgres_restore.server_version = lambda _: (16, "16.9")
postgres_restore.PIECE_BYTES = 1000
class Half:
    def __init__(self): self.file, self.left = open(sys.argv[1], "rb"), int(sys.argv[4])
    def read(self, size):
        if self.left <= 0:
            print("half", flush=True)
            sys.stdin.read()
        piece = self.file.read(min(size, self.left))
        self.left -= len(piece)
        return piece
postgres_restore.restore(Half(), sys.argv[2])
"""


@pytest.mark.parametrize("server", ["new", "old"])
@pytest.mark.parametrize("part", [0.5, 0.999])
def test_a_restore_that_is_killed_leaves_nothing(
    postgres: DisposableServer, tmp_path: Path, server: str, part: float
) -> None:
    """psql would commit where its input ends; large objects have transactions of their own."""
    many = "create table t{0} (n int); insert into t{0} values (1);"
    statements = "".join(many.format(n) for n in range(200))
    saved = Dump(new_database(postgres, f"{statements} select lo_from_bytea(0, 'content')"))
    file, url = tmp_path / "a.dump", new_database(postgres)
    file.write_bytes(saved.content)
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, file, url, server, str(int(len(saved.content) * part))],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert process.stdin is not None and process.stdout is not None
    try:
        assert process.stdout.readline() == b"half\n"
        if part > 0.9:
            wait_for(lambda: ask(postgres.url, _WORKING.format(Login(url).database)) != 0, "work")
    finally:
        process.kill()
        process.communicate()
    wait_for(lambda: ask(postgres.url, _WORKING.format(Login(url).database)) == 0, "its end")
    assert is_empty(url)


_WORKING = "select count(*) from pg_stat_activity where datname = '{}'"


def test_every_installed_server_can_be_restored_into(dump: Dump, tmp_path: Path) -> None:
    """Whatever versions this machine has; 18 it always has."""
    tried = []
    for folder in folders_with("postgres"):
        major, version = version_of(folder / "postgres")
        if not (folder / "initdb").is_file():
            continue
        with DisposableServer(binaries=folder) as server:
            url = server.database("shop")
            run(url, SMALL)
            saved = Dump(url)
            restore(io.BytesIO(saved.content), server.database("copy"), expected=saved.inventory)
            again = Dump(server.url_of("copy")).inventory
            assert difference(saved.inventory, again) == (), version
        tried.append(major)
    assert 18 in tried


def test_pg_restore_is_as_new_as_the_archive_s_pg_dump() -> None:
    assert find("pg_restore", server=18, same=True).major == 18


# Roles


def text_of_globals(url: str) -> str:
    with GlobalsSource(url).open() as stream:
        pieces = []
        while piece := stream.read(1 << 16):
            pieces.append(piece)
        stream.facts()
        return b"".join(pieces).decode()


def test_roles_come_back_in_another_server(postgres: DisposableServer) -> None:
    run(
        postgres.url,
        'drop role if exists clerk; drop role if exists "Odd; \'name"; drop role if exists staff;'
        "create role staff; create role clerk login connection limit 3 in role staff;"
        'create role "Odd; \'name"; grant staff to "Odd; \'name" with admin option;'
        "alter role clerk set search_path = 'x;y', public;"
        "comment on role staff is 'who works; here'",
    )
    text = text_of_globals(postgres.url)
    with DisposableServer(major=18) as other:
        assert restore_globals(text, other.url) == ()
        again = text_of_globals(other.url)
        members = "select count(*) from pg_auth_members where roleid = 'staff'::regrole"
        assert ask(other.url, members) == 2
        assert restore_globals(text, other.url) == ()  # also where they are
    wanted = re.compile(r"^(?:CREATE|ALTER) ROLE .*$", re.M)
    assert set(wanted.findall(text)) <= set(wanted.findall(again))


def test_what_a_provider_refuses_is_told_and_a_missing_role_is_not_passed_over(
    postgres: DisposableServer,
) -> None:
    refused = restore_globals(
        "CREATE ROLE fine_one;\nALTER ROLE fine_one SET no_such_setting TO '1';\n", postgres.url
    )
    assert len(refused) == 1 and "no_such_setting" in refused[0]
    for text in ("", "-- nothing\n", "CREATE ROLE pg_reserved_name;\n"):
        with pytest.raises(Failed) as caught:
            restore_globals(text, postgres.url)
        assert caught.value.code == "SLP126"
