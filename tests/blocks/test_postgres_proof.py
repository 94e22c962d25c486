"""The proof: a whole archive climbs all rungs, and no damaged one does, for the right reason."""

from __future__ import annotations

import io
from collections.abc import Iterator
from datetime import timedelta

import pytest

from blocks import postgres_proof
from blocks.disposable_postgres import DisposableServer
from blocks.postgres_dump import beat
from blocks.postgres_programs import Login
from blocks.postgres_proof import (
    PostgresProof,
    prove,
    prove_verifier,
    server_for,
    verifier_verdict,
)
from domain.pg_inventory import DifferenceKind, Inventory
from domain.recovery import Rung
from domain.verdict import Verdict
from tests.blocks.databases import Dump, ask, new_database, run
from tests.blocks.test_postgres_restore import text_of_globals

LADDER = (Rung.PARSED, Rung.RESTORED, Rung.CONTENT_HASHED)


@pytest.fixture(scope="module")
def server() -> Iterator[DisposableServer]:
    """Where proofs are made; the dumped databases are on another one."""
    with DisposableServer(major=18) as one:
        yield one


@pytest.fixture(scope="module")
def dump(rich: str) -> Dump:
    return Dump(rich)


def proof_of(dump: Dump, server: DisposableServer, content: bytes | None = None) -> PostgresProof:
    content = dump.content if content is None else content
    return prove(io.BytesIO(content), dump.inventory, server, data_time=dump.facts.data_time)


def test_a_whole_archive_climbs_all_rungs(server: DisposableServer, dump: Dump) -> None:
    proof = proof_of(dump, server)
    assert proof.verdict is Verdict.PASS, proof.rungs
    assert proof.proved == LADDER and proof.differences == ()
    assert proof.restore_seconds and proof.newest_beat is None
    assert "owners and grants were not restored" in proof.notes[0]
    assert PostgresProof.model_validate_json(proof.model_dump_json()) == proof


def test_with_its_roles_owners_and_grants_are_proved_too(
    postgres: DisposableServer, server: DisposableServer
) -> None:
    run(
        postgres.url,
        "drop role if exists app_owner; drop role if exists app_reader; drop role if exists lost;"
        "create role app_owner; create role app_reader",
    )
    url = new_database(
        postgres,
        "create table t (n int); alter table t owner to app_owner;"
        "grant select on t to app_reader; create policy p on t to app_reader using (n > 0);"
        "insert into t values (1)",
    )
    run(url, f"revoke all on database {Login(url).database} from public")
    dump = Dump(url)
    text = text_of_globals(url)
    proof = prove(
        io.BytesIO(dump.content), dump.inventory, server, data_time=dump.facts.data_time,
        globals_text=text, keep="kept",
    )  # fmt: skip
    assert proof.verdict is Verdict.PASS and proof.notes == (), proof
    assert ask(server.url_of("kept"), "select tableowner from pg_tables where tablename = 't'") == (
        "app_owner"
    )
    server.drop("kept")


def test_a_policy_whose_role_was_not_saved_fails_the_restore(
    postgres: DisposableServer, server: DisposableServer
) -> None:
    run(postgres.url, "drop role if exists lost_role; create role lost_role")
    url = new_database(
        postgres, "create table t (n int); create policy p on t to lost_role using (true)"
    )
    proof = proof_of(Dump(url), server)
    assert proof.proved == (Rung.PARSED,) and proof.code == "SLP124"
    assert "lost_role" in proof.rungs[-1].reason


def test_the_newest_heartbeat_is_found_in_the_copy(
    postgres: DisposableServer, server: DisposableServer
) -> None:
    url = new_database(postgres, "create table t (n int); insert into t values (1)")
    beat(url, 6)
    written = beat(url, 7)
    dump = Dump(url)
    beat(url, 8)
    proof = proof_of(dump, server)
    assert (proof.newest_beat, proof.beat_sequence) == (written.at, 7)
    assert proof.beat_age == dump.facts.data_time - written.at >= timedelta(0)


def test_columns_that_come_back_in_another_order_are_no_fault(
    postgres: DisposableServer, server: DisposableServer
) -> None:
    """A table that inherits gets the inherited columns first, when it is made again."""
    url = new_database(
        postgres,
        'create table parent (a int); create table child (c timestamptz, "q, x" bytea)'
        " inherits (parent); alter table parent add column d float8 default 0.1;"
        "insert into child values (1, now(), '\\xff', 0.3)",
    )
    dump = Dump(url)
    assert proof_of(dump, server).verdict is Verdict.PASS
    changed = dump.content.replace(b"\t0.3\n", b"\t0.4\n")
    assert changed != dump.content
    inventory = dump.inventory
    proof = postgres_proof._Climb(server, inventory, None).climb(
        io.BytesIO(changed), None, None, whole=False
    )
    assert {one.kind for one in proof.differences} == {DifferenceKind.CONTENT}


@pytest.mark.parametrize("encoding", ["LATIN1", "SQL_ASCII", "EUC_JP"])
def test_other_encodings_are_proved_in_their_own(
    postgres: DisposableServer, server: DisposableServer, encoding: str
) -> None:
    url = postgres.database(f"in_{encoding.lower()}", encoding=encoding)
    names = "é" if encoding == "LATIN1" else "日本" if encoding == "EUC_JP" else "plain"
    run(url, f'create table t (w text); create table "{names}" (n int)')
    if encoding == "SQL_ASCII":  # bytes that are no text in any encoding
        run(url, "insert into t select convert_from('\\xff80'::bytea, 'SQL_ASCII')")
    else:
        run(url, f"insert into t values ('{'é' if encoding == 'LATIN1' else '日本'}')")
    dump = Dump(url)
    assert Inventory.model_validate_json(dump.inventory.model_dump_json()) == dump.inventory
    proof = proof_of(dump, server)
    assert proof.verdict is Verdict.PASS, proof.rungs


@pytest.mark.parametrize(
    ("start", "end", "rung"), [(0, 0, 3), (0, 100, 3), (0, -1, 3), (1, None, 3)]
)
def test_a_damaged_archive_stops_at_the_first_rung(
    server: DisposableServer, dump: Dump, start: int, end: int | None, rung: int
) -> None:
    proof = proof_of(dump, server, dump.content[start:end])
    assert proof.verdict is Verdict.FAIL and proof.code == "SLP122"
    assert proof.proved == () and [seen.rung for seen in proof.rungs] == [rung]


def test_the_archive_of_another_database_is_not_this_one(
    postgres: DisposableServer, server: DisposableServer, dump: Dump
) -> None:
    other = Dump(new_database(postgres, "create table other (n int)"))
    proof = proof_of(dump, server, other.content)
    assert proof.code == "SLP122" and "missing" in proof.rungs[-1].reason


def test_an_archive_without_a_table_proves_nothing(
    postgres: DisposableServer, server: DisposableServer
) -> None:
    """Sefaria-Project#3637."""
    proof = proof_of(Dump(new_database(postgres)), server)
    assert proof.verdict is Verdict.FAIL and proof.proved == (Rung.PARSED, Rung.RESTORED)
    assert "nothing to compare" in proof.rungs[-1].reason


def test_an_extension_that_the_server_lacks_fails_the_restore(
    server: DisposableServer, dump: Dump
) -> None:
    content = dump.content.replace(b"EXISTS vector WITH", b"EXISTS vectox WITH")
    proof = postgres_proof._Climb(server, dump.inventory, None).climb(
        io.BytesIO(content), None, None, whole=False
    )
    assert proof.code == "SLP124" and "vectox" in proof.rungs[-1].reason


# The verifier is verified


def test_the_verifier_takes_the_whole_and_refuses_every_twin(
    server: DisposableServer, dump: Dump
) -> None:
    seen = {twin.name: twin for twin in prove_verifier(dump.sample, server)}
    assert {name for name, twin in seen.items() if twin.verdict is not Verdict.PASS} == set()
    assert len(seen) == 9
    assert verifier_verdict(tuple(seen.values())) is Verdict.PASS
    for name, words in (
        ("empty file", "it is empty"), ("truncated", "in the middle"),
        ("without its last table", "without the data of"), ("flipped byte", "content"),
        ("older data", "were saved"), ("no rows", "has 0 rows"), ("missing table", "is missing"),
        ("swapped sequence", "sequence"),
    ):  # fmt: skip
        assert words in seen[name].reason, seen[name]


def test_a_view_that_needs_all_rows_does_not_make_a_twin_look_wrong(
    postgres: DisposableServer, server: DisposableServer
) -> None:
    url = new_database(
        postgres,
        "create table big (n int primary key); insert into big select generate_series(1, 99);"
        "create table small (n int references big); insert into small values (99);"
        "create materialized view ratio as select 1 / (count(*) - 20) as r, 1 / count(*) as q"
        " from big; create sequence s",
    )
    dump = Dump(url, sample_rows=20)
    assert proof_of(dump, server).verdict is Verdict.PASS
    assert verifier_verdict(prove_verifier(dump.sample, server)) is Verdict.PASS


def test_a_verifier_that_compares_nothing_is_found_out(
    server: DisposableServer, dump: Dump, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres_proof, "difference", lambda *_, **__: ())
    seen = prove_verifier(dump.sample, server)
    assert verifier_verdict(seen) is Verdict.FAIL
    passed = {twin.name for twin in seen if twin.verdict is Verdict.FAIL}
    assert passed == {
        "flipped byte", "older data", "no rows", "missing table", "swapped sequence",
    }  # fmt: skip


def test_a_verifier_that_only_counts_rows_is_found_out(
    server: DisposableServer, dump: Dump, monkeypatch: pytest.MonkeyPatch
) -> None:
    """T2: after a flipped byte the restore ends well, and the rows count right."""

    real = postgres_proof.difference

    def counting(expected: Inventory, found: Inventory, *, privileges: bool) -> object:
        return tuple(
            one
            for one in real(expected, found, privileges=privileges)
            if one.kind is not DifferenceKind.CONTENT
        )

    monkeypatch.setattr(postgres_proof, "difference", counting)
    seen = prove_verifier(dump.sample, server)
    assert [twin.name for twin in seen if twin.verdict is Verdict.FAIL] == ["flipped byte"]


def test_a_verifier_that_refuses_everything_is_found_out(
    server: DisposableServer, dump: Dump, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost = dump.inventory.model_copy(update={"tables": {}})
    monkeypatch.setattr(postgres_proof, "_dumped", lambda _: lost)
    seen = prove_verifier(dump.sample, server)
    assert seen[0].name == "undamaged" and seen[0].verdict is Verdict.FAIL
    assert verifier_verdict(seen) is Verdict.FAIL


def test_a_database_with_nothing_to_damage_proves_no_verifier(
    postgres: DisposableServer, server: DisposableServer
) -> None:
    seen = prove_verifier(Dump(new_database(postgres)).sample, server)
    assert not verifier_verdict(seen).advances


def test_too_few_twins_are_no_proof_of_the_verifier(server: DisposableServer, dump: Dump) -> None:
    seen = prove_verifier(dump.sample, server)
    assert verifier_verdict(seen[:3]) is Verdict.TOO_FEW
    assert verifier_verdict(()) is Verdict.TOO_FEW


def test_the_server_for_a_proof_takes_what_the_newer_of_server_and_pg_dump_wrote(
    dump: Dump,
) -> None:
    old = dump.inventory.model_copy(update={"server_version": "15.18 (Debian)"})
    with server_for(old) as server:
        assert int(server.version.split(".")[0]) >= 18
