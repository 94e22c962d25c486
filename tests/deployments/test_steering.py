"""pause, resume, promote, abort and retry: requests in the journal, with names and reasons."""

from __future__ import annotations

import json
from typing import Any

import pytest

from blocks.file_store import FileStore
from blocks.journal import Journal
from domain.journal import Kind
from sandbox.home import Home

WHERE = ("shop", "--environment", "production")


@pytest.fixture
def under_way(write: Any) -> None:
    write("shop", "production", ("1", "PROMOTED"), ("2", None))


def asked(home: Home) -> list[tuple[str, str]]:
    entries = Journal(FileStore(home.store), "shop", "production").entries
    return [(e.data["verb"], e.data["reason"]) for e in entries if e.kind is Kind.ASKED]


def test_a_pause_is_an_entry_of_the_release_and_can_be_undone(
    slipway: Any, home: Home, under_way: None
) -> None:
    ended = slipway("pause", *WHERE, "--reason", "lunch")
    assert ended.code == 0 and "asked release 2 (2) to pause" in ended.out
    assert "slipway resume shop --environment production" in ended.err
    assert asked(home) == [("pause", "lunch")]
    assert "paused by" in slipway("status").out
    again = slipway("pause", *WHERE)
    assert again.code == 2 and "is paused already" in again.err
    assert slipway("resume", *WHERE).code == 0
    assert "paused by" not in slipway("status").out


@pytest.mark.parametrize("verb", ["promote", "abort"])
def test_what_decides_in_place_of_evidence_needs_a_reason(
    slipway: Any, home: Home, under_way: None, verb: str
) -> None:
    ended = slipway(verb, *WHERE)
    assert ended.code == 2 and "error[SLP061]" in ended.err
    assert asked(home) == []
    done = slipway(verb, *WHERE, "--reason", "an outage", "--json", "-q")
    document = json.loads(done.out)
    assert (document["verb"], document["release"]) == (verb, 2)
    assert asked(home) == [(verb, "an outage")]


@pytest.mark.parametrize("verb", ["pause", "resume", "promote", "abort"])
def test_nothing_under_way_is_said_and_nothing_written(
    slipway: Any, home: Home, write: Any, verb: str
) -> None:
    write("shop", "production", ("1", "PROMOTED"))
    ended = slipway(verb, *WHERE, "--reason", "x")
    assert ended.code == 2 and "none is under way; release 1 ended PROMOTED" in ended.err
    assert asked(home) == []


def test_a_replay_of_nothing_says_so(slipway: Any, under_way: None) -> None:
    ended = slipway("audit", "replay", *WHERE)
    assert ended.code == 2 and "was judged by evidence" in ended.err
