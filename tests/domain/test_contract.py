"""When a schema may be contracted, and what cannot come back after it."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from domain.contract import (
    Contraction,
    check_contract,
    check_way_back,
    contracted_at,
    contraction_of,
)
from domain.errors import Failed, UsageError
from domain.journal import Entry, Kind, next_entry, releases


def entries(*told: tuple[int, Kind, dict[str, Any]]) -> list[Entry]:
    found: list[Entry] = []
    for release, kind, data in told:
        found.append(
            next_entry(found, at=datetime(2026, 1, 1, tzinfo=UTC), application="shop",
                       environment="production", release=release, kind=kind, actor="t", run="r",
                       data=data)
        )  # fmt: skip
    return found


def shipped(number: int, ended: bool = True) -> list[tuple[int, Kind, dict[str, Any]]]:
    start = {"version": f"1.{number}", "digest": str(number), "workloads": {"web": f"r{number}"}}
    done = [(number, Kind.FINISHED, {"outcome": "PROMOTED"})] if ended else []
    return [(number, Kind.STARTED, start), *done]


CONTRACT = (2, Kind.INTENT, {"action": "Contract"})


def test_it_runs_when_the_live_version_is_alone() -> None:
    history = releases(entries(*shipped(1), *shipped(2)))
    assert check_contract(history, ["r2"], "drop", "shop").number == 2


@pytest.mark.parametrize(
    ("told", "workloads", "command", "code"),
    [
        ([], [], "drop", "SLP006"),
        (shipped(2), ["r2"], None, "SLP064"),
        ([*shipped(1), *shipped(2)], ["r1", "r2"], "drop", "SLP063"),
        ([*shipped(2), *shipped(3, ended=False)], ["r2"], "drop", "SLP063"),
    ],
    ids=["nothing-live", "none-declared", "an-old-one-is-kept", "a-release-under-way"],
)
def test_flagger_555_it_waits_while_somebody_may_come_back(
    told: Any, workloads: list[str], command: str | None, code: str
) -> None:
    """There a canary migrates, and the rollback leaves the primary on the new schema."""
    with pytest.raises((Failed, UsageError)) as caught:
        check_contract(releases(entries(*told)), workloads, command, "shop")
    assert caught.value.code == code


def test_after_it_earlier_versions_are_refused_and_later_ones_are_not() -> None:
    found = entries(*shipped(1), *shipped(2), CONTRACT, *shipped(3))
    first, second, third = releases(found)
    assert contracted_at(found) == 2
    with pytest.raises(UsageError, match="cannot run on it any more") as caught:
        check_way_back(found, first, "shop")
    assert caught.value.code == "SLP065" and "go forward" in caught.value.help
    check_way_back(found, second, "shop")
    check_way_back(found, third, "shop")


ASKS = (2, Kind.STARTED, {"policy": {"contract": True}, "version": "1.2"})
DONE = (2, Kind.DONE, {"action": "Contract"})


@pytest.mark.parametrize(
    ("told", "known"),
    [
        ([ASKS], Contraction.DUE),
        ([ASKS, CONTRACT], Contraction.BEGUN),
        ([ASKS, CONTRACT, CONTRACT, DONE], Contraction.DONE),
        (shipped(2), Contraction.NOT_ASKED),
        ([*shipped(2), CONTRACT], Contraction.BEGUN),
        ([ASKS, CONTRACT, DONE, *shipped(3)], Contraction.DONE),
    ],
)
def test_a_contraction_is_done_only_when_its_end_was_written(told: Any, known: Contraction) -> None:
    assert contraction_of(entries(*told), 2) is known
