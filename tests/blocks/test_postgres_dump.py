"""PostgreSQL as a source: real servers, real dumps, and what can go wrong with them."""

from __future__ import annotations

import os
import random
import signal
import subprocess
from datetime import datetime, timedelta
from pathlib import Path

import psutil
import psycopg
import pytest

from blocks.disposable_postgres import USER, DisposableServer
from blocks.dump import Source, Stream
from blocks.postgres_dump import GlobalsSource, PostgresSource, beat, newest_beat
from blocks.postgres_programs import Login, find
from blocks.postgres_server_process import packaged_binaries
from domain.errors import Failed, SlipwayError, Unauthorised, UsageError
from domain.pg_inventory import archive_differences
from domain.recovery import MemberKind
from tests.blocks.databases import RICH, Dump, ask, new_database, run
from tests.domain.test_pg_archive import read

BIG = "create table big as select g, repeat('x', 200) as t from generate_series(1, 20000) g"


def drain(stream: Stream) -> bytes:
    pieces = []
    while piece := stream.read(1 << 16):
        pieces.append(piece)
    return b"".join(pieces)


def server_now(url: str) -> datetime:
    now = ask(url, "select clock_timestamp()")
    assert isinstance(now, datetime)
    return now


def test_the_inventory_is_what_the_server_has(rich: str) -> None:
    dump = Dump(rich)
    found = dump.inventory
    for name, table in found.tables.items():
        assert table.rows == ask(rich, f"select count(*) from only {name}"), name
    assert {"shop.person", "public.event_2025", 'public."Empty Table"', "public.no_columns"} <= set(
        found.tables
    )
    assert found.tables["public.only_text"].rows == 5
    assert found.sequences["public.ticket"].next == (101, True)
    assert found.sequences["public.never_called"].next == (1, False)
    assert found.sequences["shop.person_id_seq"].next == (3, True)
    assert found.extensions["vector"] == ask(
        rich, "select extversion from pg_extension where extname = 'vector'"
    )
    assert found.large_objects.count == 3
    assert {"INDEX", "CONSTRAINT", "FK CONSTRAINT", "FUNCTION", "VIEW", "TRIGGER", "TYPE"} <= set(
        found.definitions
    )
    assert (found.server_major, found.encoding) == (18, "UTF8")


def test_facts_are_json_and_name_the_tools(rich: str) -> None:
    dump = Dump(rich)
    facts = type(dump.facts).model_validate_json(dump.facts.model_dump_json())
    assert type(dump.inventory).model_validate(facts.inventory) == dump.inventory
    assert facts.tools["postgresql"].startswith("18") and facts.tools["pg_dump"].startswith("18")


def test_the_stream_is_an_archive_that_reads_the_same_later(rich: str) -> None:
    dump = Dump(rich)
    later = read(dump.content, 12_345)
    assert later.tables == dump.inventory.tables
    assert later.definitions == dump.inventory.definitions


def test_a_source_may_be_opened_again_and_has_the_kind_of_its_member(rich: str) -> None:
    source: Source = PostgresSource(rich)
    assert source.kind is MemberKind.POSTGRES
    seen = []
    for _ in range(2):
        with source.open() as stream:
            drain(stream)
            seen.append(stream.facts().inventory)
    # An archive's header has the second in which it was made.
    first, second = ({**inventory, "contents": ""} for inventory in seen)
    assert first == second and first["tables"]


def test_t1_listing_an_archive_proves_nothing_and_the_reader_does(
    rich: str, tmp_path: Path
) -> None:
    """`pg_restore --list` takes an archive that was cut to 60 percent."""
    content = Dump(rich).content
    cut = tmp_path / "cut.dump"
    cut.write_bytes(content[: len(content) * 6 // 10])
    listed = subprocess.run(
        [packaged_binaries() / "pg_restore", "--list", cut], capture_output=True
    )
    assert listed.returncode == 0
    with pytest.raises(Failed) as caught:
        read(cut.read_bytes())
    assert caught.value.code == "SLP122"


def test_a_thousand_damages_of_a_real_archive_are_all_found(postgres: DisposableServer) -> None:
    """Flips, cuts, and pieces that were swapped, doubled or left out: each of them, by reading."""
    small = RICH.replace("repeat('x', 3000000)", "'x'").replace("repeat('x', 100000)", "'x'")
    dump = Dump(new_database(postgres, small))
    chance = random.Random(4)
    for number in range(1000):
        damaged = damage(dump.content, chance)
        if damaged == dump.content:
            continue
        try:
            found = read(damaged)
        except Failed as error:
            assert error.code == "SLP122"
        else:
            assert archive_differences(dump.inventory, found), f"damage {number} was not found"


def damage(content: bytes, chance: random.Random) -> bytes:
    a, b, c = sorted(chance.randrange(len(content)) for _ in range(3))
    b, c = min(b, a + 500), min(c, b + 500) if chance.random() < 0.5 else c
    return chance.choice(
        [
            content[:a] + bytes([content[a] ^ 1 << chance.randrange(8)]) + content[a + 1 :],
            content[:a],
            content[:a] + content[b:],
            content[:b] + content[a:],
            content[:a] + bytes(b - a) + content[b:],
            content[:a] + content[b:c] + content[a:b] + content[c:],
        ]
    )


def test_t3_the_moment_of_the_data_is_the_start_by_the_server_s_clock(
    postgres: DisposableServer,
) -> None:
    """A row written while the dump runs is not in it, so no later moment may be claimed."""
    url = new_database(postgres, f"create table seen (n int); insert into seen values (1); {BIG}")
    before = server_now(url)
    with PostgresSource(url).open() as stream:
        after = server_now(url)
        run(url, "insert into seen values (2)")
        drain(stream)
        facts = stream.facts()
    assert before <= facts.data_time <= after
    assert facts.inventory["tables"]["public.seen"]["rows"] == 1


def test_a_database_dropped_in_mid_dump_is_a_failed_dump(postgres: DisposableServer) -> None:
    # More than all the buffers on the way hold, or the dump is over before the drop.
    url = new_database(postgres, BIG.replace("20000", "300000"))
    with PostgresSource(url).open() as stream:
        assert stream.read(1000)
        postgres.drop(Login(url).database)
        with pytest.raises(Failed) as caught:
            drain(stream)
        assert caught.value.code == "SLP121" and "pg_dump" in caught.value.cause
        with pytest.raises(RuntimeError):
            stream.facts()


def test_a_killed_pg_dump_is_a_failed_dump(postgres: DisposableServer, tmp_path: Path) -> None:
    """Also where it is killed after its last byte but one: an end is not an end."""
    url = new_database(postgres, BIG)
    with PostgresSource(url).open() as stream:
        assert stream.read(1000)
        os.kill(stream._process.pid, signal.SIGKILL)
        with pytest.raises(Failed) as caught:
            drain(stream)
    assert caught.value.code == "SLP121" and "signal 9" in caught.value.cause


def test_a_pg_dump_that_fails_after_its_last_byte_raises(rich: str, tmp_path: Path) -> None:
    """Its output is whole, so only its exit code tells (and only whoever waits for it sees)."""
    real = packaged_binaries()
    script = tmp_path / "pg_dump"
    script.write_text(
        f'#!/bin/sh\n"{real}/pg_dump" "$@"\n'
        '[ "$1" = --version ] || { echo "cannot sync: $PGPASSWORD" >&2; exit 1; }\n'
    )
    script.chmod(0o755)
    with PostgresSource(rich, folder=tmp_path).open() as stream, pytest.raises(Failed) as caught:
        drain(stream)
    assert caught.value.code == "SLP121" and "cannot sync" in caught.value.cause
    password = str(Login(rich)._parts["password"])
    assert password not in str(caught.value) + caught.value.detail


@pytest.mark.parametrize("said", ["pg_dump (PostgreSQL) 9.2.18", "pg_dump (PostgreSQL) 17.1", ""])
def test_a_pg_dump_that_is_older_than_the_server_is_refused_at_once(
    rich: str, tmp_path: Path, said: str
) -> None:
    """GitLab, 2017: pg_dump 9.2 against 9.6 failed each night, and nobody heard of it."""
    script = tmp_path / "pg_dump"
    script.write_text(f"#!/bin/sh\necho '{said}'\n")
    script.chmod(0o755)
    with pytest.raises(UsageError) as caught, PostgresSource(rich, folder=tmp_path).open():
        pass
    assert caught.value.code == "SLP120" and str(tmp_path) in caught.value.cause


def test_without_any_pg_dump_the_error_says_what_to_install(rich: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught, PostgresSource(rich, folder=tmp_path).open():
        pass
    assert caught.value.code == "SLP120" and "seen: none" in caught.value.cause


def test_an_old_program_on_path_does_not_hide_a_newer_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "pg_dump"
    script.write_text("#!/bin/sh\necho 'pg_dump (PostgreSQL) 9.2.18'\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert find("pg_dump", server=18).major >= 18


def wrong(url: str, **parts: str) -> str:
    return psycopg.conninfo.make_conninfo(url, **parts)


def test_a_wrong_password_is_a_refused_login(rich: str) -> None:
    with (
        pytest.raises(Unauthorised) as caught,
        PostgresSource(wrong(rich, password="guess-it")).open(),
    ):
        pass
    assert caught.value.code == "SLP129" and "guess-it" not in str(caught.value)


def test_a_database_that_is_not_there_is_named(rich: str) -> None:
    with pytest.raises(Failed) as caught, PostgresSource(wrong(rich, dbname="nowhere")).open():
        pass
    assert caught.value.code == "SLP128" and "nowhere" in caught.value.cause


def test_a_table_that_may_not_be_read_fails_the_dump(postgres: DisposableServer) -> None:
    url = new_database(
        postgres,
        "create table secret (n int); drop role if exists reader;"
        "create role reader login password 'reader'",
    )
    with (
        PostgresSource(wrong(url, user="reader", password="reader")).open() as stream,
        pytest.raises(Failed) as caught,
    ):
        drain(stream)
    assert caught.value.code == "SLP121" and "permission denied" in caught.value.cause


def test_a_table_that_stays_locked_fails_the_dump_in_time(postgres: DisposableServer) -> None:
    url = new_database(postgres, "create table t (n int)")
    with psycopg.connect(url) as migration:
        migration.execute("lock table t in access exclusive mode")
        source = PostgresSource(url, lock_wait=timedelta(milliseconds=200))
        with source.open() as stream, pytest.raises(Failed) as caught:
            drain(stream)
    assert caught.value.code == "SLP121" and "timeout" in caught.value.cause
    assert "lock of a table" in caught.value.help


def test_no_argument_shows_the_password(rich: str) -> None:
    password = str(Login(rich)._parts["password"])
    with PostgresSource(rich).open() as stream:
        assert stream.read(1)  # so it runs
        command = "\n".join(psutil.Process(stream._process.pid).cmdline())
    assert "--snapshot" in command and password not in command
    assert password not in repr(Login(rich)) + repr(stream)


def test_what_no_environment_can_carry_is_refused(rich: str) -> None:
    with pytest.raises(Failed) as caught:
        _ = Login(wrong(rich, sslpassword="hidden-one")).environ
    assert "sslpassword" in caught.value.cause and "hidden-one" not in str(caught.value)


def test_what_has_no_variable_and_is_no_secret_is_passed_on(rich: str) -> None:
    login = Login(wrong(rich, keepalives_idle="7"))
    assert "keepalives_idle=7" in login.argument
    assert str(login._parts["password"]) not in login.argument
    assert Dump(wrong(rich, keepalives_idle="7")).inventory.rows > 0


def test_an_address_that_cannot_be_read_is_refused_without_being_shown() -> None:
    with pytest.raises(Failed) as caught:
        Login("postgresql://me:my-secret@host:port:extra/x?nonsense")
    assert "my-secret" not in str(caught.value)


def test_leaving_early_ends_the_program(postgres: DisposableServer) -> None:
    url = new_database(postgres, BIG)
    with PostgresSource(url).open() as stream:
        stream.read(100)
    assert stream._process.poll() is not None
    assert ask(url, "select count(*) from pg_stat_activity where application_name = 'pg_dump'") == 0


def test_settings_of_a_database_do_not_change_what_is_hashed(
    postgres: DisposableServer,
) -> None:
    """A restored copy lacks them, so a hash that depended on them could never be found again."""
    url = new_database(
        postgres,
        "create table t (at timestamptz, raw bytea, f float8, i interval, d date);"
        "insert into t values"
        " ('2026-01-02 03:04:05.6+07', '\\x00ff', 0.1, '1 day -2:03', '2026-03-04')",
    )
    before = Dump(url).inventory.tables
    name = Login(url).database
    for setting in (
        "timezone = 'Asia/Tokyo'", "bytea_output = escape", "extra_float_digits = -5",
        "intervalstyle = sql_standard", "datestyle = 'SQL, DMY'",
    ):  # fmt: skip
        run(url, f"alter database {name} set {setting}")
    assert Dump(url).inventory.tables == before


# Roles


def test_roles_are_saved_without_passwords(postgres: DisposableServer) -> None:
    url = new_database(
        postgres,
        "drop role if exists clerk; drop role if exists staff; create role staff;"
        "create role clerk login password 'never-to-be-saved' in role staff",
    )
    source: Source = GlobalsSource(url)
    assert source.kind is MemberKind.GLOBALS
    with source.open() as stream:
        text = drain(stream).decode()
        facts = stream.facts()
    assert "CREATE ROLE clerk" in text and "GRANT staff TO clerk" in text
    assert "never-to-be-saved" not in text and "PASSWORD" not in text
    assert facts.inventory["roles"] == text.count("CREATE ROLE")
    assert facts.inventory["passwords"] == "never saved"


def test_the_owner_of_a_database_can_back_it_up_and_needs_no_superuser(
    postgres: DisposableServer,
) -> None:
    """As an application's own role is, and the best there is at RDS and Cloud SQL."""
    run(postgres.url, "create role db_owner login password 'db_owner'")
    name = Login(new_database(postgres, name="owned_by_other")).database
    run(postgres.url, f"alter database {name} owner to db_owner")
    url = wrong(postgres.url_of(name), user="db_owner", password="db_owner")
    run(url, "create table t as select 1 as n")
    beat(url, 1)
    assert Dump(url).inventory.rows == 2
    with GlobalsSource(url).open() as stream:
        assert b"CREATE ROLE db_owner" in drain(stream)


def test_roles_that_may_not_be_read_fail(rich: str, tmp_path: Path) -> None:
    script = tmp_path / "pg_dumpall"
    script.write_text(
        "#!/bin/sh\n"
        'if [ "$1" = --version ]; then echo "pg_dumpall (PostgreSQL) 18.4"; else '
        "echo 'permission denied for table pg_authid' >&2; exit 1; fi\n"
    )
    script.chmod(0o755)
    with GlobalsSource(rich, folder=tmp_path).open() as stream:
        with pytest.raises(Failed) as caught:
            drain(stream)
        with pytest.raises(RuntimeError):
            stream.facts()
    assert caught.value.code == "SLP126" and "permission denied" in caught.value.cause


# Heartbeat


def test_beats_are_numbered_and_timed_by_the_server(postgres: DisposableServer) -> None:
    url = new_database(postgres)
    assert newest_beat(url) is None
    before = server_now(url)
    first, second = beat(url, 41), beat(url, 42, source="nightly")
    assert before <= first.at < second.at <= server_now(url)
    assert newest_beat(url) == second and second.source == "nightly"


def test_the_beat_before_a_dump_is_in_it(postgres: DisposableServer) -> None:
    url = new_database(postgres)
    written = beat(url, 7)
    dump = Dump(url)
    assert dump.inventory.tables["slipway.heartbeat"].rows == 1
    assert written.at <= dump.facts.data_time


def test_a_login_that_may_not_write_is_told_what_it_needs(postgres: DisposableServer) -> None:
    url = new_database(
        postgres, "drop role if exists watcher; create role watcher login password 'watcher'"
    )
    with pytest.raises(SlipwayError) as caught:
        beat(wrong(url, user="watcher", password="watcher"), 1)
    assert caught.value.code == "SLP127" and "slipway" in caught.value.help
    assert USER not in caught.value.help
