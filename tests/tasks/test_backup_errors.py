"""Bad input to backups and restores: one clear sentence, before anything is changed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import pytest
from prefect.logging import disable_run_logger
from pydantic import SecretStr

from blocks.platform import Platform
from blocks.sealing import damaged
from blocks.vault import Vault, manifest_sha256
from deployments import backing
from deployments.console import Console
from domain.application import Backups
from domain.errors import Failed, SlipwayError, UsageError
from domain.recovery import Lineage, Member, MemberKind, Proof, Rung, RungResult
from domain.units import parse_duration
from domain.verdict import Verdict
from sandbox.home import Home
from tasks.nightly import age_of
from tasks.proving import choose_point
from tasks.restoring import (
    Chosen,
    choose_copy,
    copies_to_try,
    first_whole,
    restore_database,
    target_url,
)
from tasks.saving import Saving, check_clock, commit_point
from tests.kit.faulty_store import Fault, FaultyStore
from tests.kit.memory_store import MemoryStore
from tests.tasks.test_points import LINEAGE, START, make, vault_of

pytestmark = pytest.mark.usefixtures("prefect_harness")


@pytest.fixture
def platform(tmp_path: Path) -> Platform:
    return Platform(
        store_root=str(tmp_path), bundles_root=str(tmp_path), cluster_socket="", edge_dynamic="",
        edge_web="", edge_internal="", edge_api="", edge_metrics="",
        database_url=SecretStr("postgresql://a:planted@127.0.0.1:1/postgres"),
        redis_url=SecretStr("redis://127.0.0.1:1/0"),
    )  # fmt: skip


def code(caught: pytest.ExceptionInfo[SlipwayError]) -> str:
    assert len(caught.value.cause) > 20 and len(caught.value.help) > 15
    return caught.value.code


def test_a_platform_without_locations(platform: Platform) -> None:
    with pytest.raises(UsageError) as caught:
        platform.vaults(Lineage("shop", "production"))
    assert code(caught) == "SLP145"


@pytest.mark.parametrize("apart", [timedelta(days=1), -timedelta(days=1), timedelta(minutes=6)])
def test_a_clock_that_is_wrong(apart: timedelta) -> None:
    vault = vault_of(MemoryStore(START))
    check_clock(START + timedelta(minutes=4), vault)
    with pytest.raises(Failed) as caught:
        check_clock(START + apart, vault)
    assert code(caught) == "SLP146"


def test_an_application_that_keeps_nothing() -> None:
    vault = vault_of(MemoryStore(START))
    claim = vault.claim(1, START, "test", "run")
    release = type("Release", (), {"version": "1", "number": 1, "digest": "d"})()
    saving = Saving(
        record=cast(Any, None), release=release, vaults=(vault,),
        claim=claim, recipients={"aws": "age1x"}, locked_until=START, pace=cast(Any, None),
        holder=cast(Any, None),
    )  # fmt: skip
    skipped = [Member(kind=MemberKind.POSTGRES, skipped="the application declares no database")]
    with pytest.raises(UsageError) as caught:
        commit_point.fn(saving, skipped, "somebody")
    assert code(caught) == "SLP147"
    assert vault.copies()[0].manifest is None


def test_a_point_that_is_not_there() -> None:
    vault = vault_of(MemoryStore(START))
    make(vault, 1, START)
    with pytest.raises(UsageError) as caught:
        vault.copy("9")
    assert code(caught) == "SLP144"
    for wanted in ("9", "yesterday", ""):
        with pytest.raises(UsageError) as chosen:
            choose_point.fn([vault], wanted)
        assert code(chosen) == "SLP144"
    assert choose_point.fn([vault], "newest") == choose_point.fn([vault], "random") == "00000001"


def proved(vault: Vault, sequence: int) -> None:
    manifest = make(vault, sequence, START + timedelta(hours=sequence))
    rungs = tuple(RungResult(rung=rung, verdict=Verdict.PASS, reason="") for rung in Rung)
    vault.prove(
        Proof(
            application=LINEAGE.application, environment=LINEAGE.environment,
            lineage=LINEAGE.name, point=manifest.point, location=vault.location,
            manifest_sha256=manifest_sha256(manifest), at=START, run="run", rungs=rungs,
        )
    )  # fmt: skip


def chosen(found: Iterable[Chosen]) -> list[tuple[str, str]]:
    return [(one.vault.location, one.copy.point) for one in found]


def test_copies_are_tried_the_newest_first_and_a_silent_location_has_none() -> None:
    near, far = vault_of(MemoryStore(START), "gcp"), vault_of(MemoryStore(START), "aws")
    for vault, sequences in ((near, (1, 2)), (far, (1, 2, 3))):
        for sequence in sequences:
            proved(vault, sequence)
    silent = Vault("lost", FaultyStore(MemoryStore(), lambda call, n: Fault.ERROR), LINEAGE)
    with disable_run_logger():
        # The preferred location first, whatever newer ones others have: they may be lost.
        assert chosen(copies_to_try([near, far, silent], Rung.CONTENT_HASHED)) == [
            ("gcp", "00000002"), ("aws", "00000003"), ("aws", "00000002"),
            ("gcp", "00000001"), ("aws", "00000001"),
        ]  # fmt: skip
        assert chosen(copies_to_try([silent, far], Rung.CONTENT_HASHED))[0] == ("aws", "00000003")
        assert chosen(copies_to_try([silent], Rung.CONTENT_HASHED)) == []


def test_a_damaged_copy_is_passed_over_and_told_and_nothing_else_is() -> None:
    vault = vault_of(MemoryStore(START))
    for sequence in (1, 2):
        proved(vault, sequence)

    def bring_back(one: Chosen) -> float:
        if one.copy.point == "00000002":
            raise damaged("aws", "noise")
        return 1.0

    def no_server(one: Chosen) -> float:
        raise Failed("SLP128", "the standby does not answer", help="see whether it runs")

    def nothing(one: Chosen) -> float:
        raise damaged("aws", "noise")

    with disable_run_logger():
        copies = list(copies_to_try([vault], Rung.CONTENT_HASHED))
        best, told = first_whole(copies, bring_back)
        assert best.copy.point == "00000001"
        assert "point 2" in told[0] and "is of no use" in told[0] and "restored point 1" in told[1]
        with pytest.raises(Failed) as caught:  # of the target, not of the copy
            first_whole(copies, no_server)
        assert code(caught) == "SLP128"
        with pytest.raises(Failed) as caught:
            first_whole(copies, nothing)
        assert code(caught) == "SLP149" and "point 1" in caught.value.cause


def test_a_copy_that_was_never_proved_is_not_restored_unasked() -> None:
    vault = vault_of(MemoryStore(START))
    make(vault, 1, START)
    away = Vault("gcp", FaultyStore(MemoryStore(), lambda call, n: Fault.ERROR), LINEAGE)
    with pytest.raises(Failed) as caught:
        choose_copy.fn([vault, away], "1", Rung.CONTENT_HASHED)
    assert code(caught) == "SLP149"
    assert "aws: complete" in caught.value.cause and "gcp:" in caught.value.cause
    with disable_run_logger():
        chosen = choose_copy.fn([vault, away], "1", Rung.CONTENT_HASHED, unproved=True)
    assert chosen.vault.location == "aws"


def test_a_point_without_a_database_restores_none(platform: Platform) -> None:
    vault = vault_of(MemoryStore(START))
    manifest = make(vault, 1, START)
    only = manifest.model_copy(
        update={"members": tuple(m for m in manifest.members if m.kind is MemberKind.REDIS)}
    )
    chosen = Chosen(vault, replace(vault.copies()[0], manifest=only))
    with pytest.raises(Failed) as caught:
        restore_database.fn(platform, chosen, "copy")
    assert code(caught) == "SLP148"


@pytest.mark.parametrize(
    "to", ["postgresql://u:planted@host/db", "Upper Case", "", "secret:nobody-made-this", "ok_name"]
)
def test_nowhere_to_restore_to(platform: Platform, to: str) -> None:
    with pytest.raises(UsageError) as caught:
        target_url(platform, to)
    assert code(caught) == "SLP150"
    assert "planted" not in str(caught.value)


def test_a_hold_without_a_reason(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        backing.hold(Home.at(tmp_path), Console(), "shop", "production", "1", "  ", release=False)
    assert code(caught) == "SLP111"


def test_a_held_point_is_not_purged_by_anybody() -> None:
    vault = vault_of(MemoryStore(START))
    make(vault, 1, START)
    vault.hold("00000001", "audit")
    with pytest.raises(Failed) as caught:
        vault.purge("00000001")
    assert code(caught) == "SLP112"
    vault.unhold("00000001")
    with pytest.raises(Failed) as alive:
        vault.purge("00000001")
    assert code(alive) == "SLP112"


def test_staleness_is_an_alarm_of_its_own() -> None:
    """Nothing failed, since nothing ran."""
    vault = vault_of(MemoryStore(START))
    day = timedelta(days=1).total_seconds()
    nothing = age_of(vault, Rung.PARSED, START, day)
    assert nothing.verdict == "no_data"
    away = Vault("aws", FaultyStore(MemoryStore(), lambda call, n: Fault.ERROR), LINEAGE)
    assert age_of(away, Rung.PARSED, START, day).verdict == "error"
    assert datetime.now(UTC) > START


def test_a_policy_that_keeps_nothing_is_refused_as_it_is_read() -> None:
    for wrong in ({"retention": "0s"}, {"keep_proved": 0}, {"stale_after": "0s"}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            Backups.model_validate(wrong)
    assert Backups().retention == parse_duration("30d")
