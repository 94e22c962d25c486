"""The journal's chain and what is read out of it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from domain.journal import (
    GENESIS,
    Entry,
    Kind,
    Outcome,
    live,
    next_entry,
    previous_live,
    releases,
    unfinished,
    verify,
)

START = datetime(2026, 1, 1, tzinfo=UTC)
TEXTS = st.text(max_size=20)


def chain(*steps: tuple[int, Kind, dict[str, Any]]) -> list[Entry]:
    entries: list[Entry] = []
    for number, (release, kind, data) in enumerate(steps):
        entries.append(
            next_entry(
                entries, at=START + timedelta(minutes=number), application="shop",
                environment="test", release=release, kind=kind, actor="ann", run="r", data=data,
            )
        )  # fmt: skip
    return entries


def started(number: int, content: str) -> tuple[int, Kind, dict[str, Any]]:
    data = {"version": f"v{number}", "digest": content, "workloads": {"web": f"web.r{number}"}}
    return number, Kind.STARTED, data


def ended(number: int, outcome: Outcome) -> tuple[int, Kind, dict[str, Any]]:
    return number, Kind.FINISHED, {"outcome": outcome.value, "reason": "so it was"}


def promoted(*contents: str) -> list[Entry]:
    steps = [
        step
        for number, content in enumerate(contents, start=1)
        for step in (started(number, content), ended(number, Outcome.PROMOTED))
    ]
    return chain(*steps)


def stored(entries: list[Entry]) -> dict[int, bytes]:
    return {entry.sequence: entry.to_bytes() for entry in entries}


@st.composite
def journals(draw: st.DrawFn) -> list[Entry]:
    data = st.dictionaries(TEXTS, st.one_of(TEXTS, st.integers(), st.booleans(), st.none()))
    steps = draw(
        st.lists(st.tuples(st.integers(1, 5), st.sampled_from(Kind), data), min_size=2, max_size=6)
    )
    return chain(*steps)


@given(journals())
def test_a_whole_chain_verifies_and_reads_back_as_it_was(entries: list[Entry]) -> None:
    raw = stored(entries)
    assert verify(raw, "shop", "test") == ()
    assert [Entry.model_validate_json(raw[n]) for n in sorted(raw)] == entries
    assert entries[0].previous == GENESIS
    assert all(b.previous == a.digest for a, b in pairwise(entries))


@settings(max_examples=300)
@given(journals(), st.data())
def test_any_changed_byte_but_the_newest_entry_s_is_found(
    entries: list[Entry], data: st.DataObject
) -> None:
    raw = stored(entries)
    number = data.draw(st.integers(1, len(raw) - 1))
    at = data.draw(st.integers(0, len(raw[number]) - 1))
    other = data.draw(st.integers(1, 255))
    content = bytearray(raw[number])
    content[at] ^= other
    raw[number] = bytes(content)
    assert verify(raw)


@given(journals(), st.data())
def test_a_missing_entry_is_found_unless_it_is_the_newest(
    entries: list[Entry], data: st.DataObject
) -> None:
    raw = stored(entries)
    del raw[data.draw(st.integers(1, len(raw) - 1))]
    assert verify(raw)


@given(journals(), st.data())
def test_swapped_entries_are_found(entries: list[Entry], data: st.DataObject) -> None:
    raw = stored(entries)
    one = data.draw(st.integers(1, len(raw)))
    two = data.draw(st.integers(1, len(raw)).filter(lambda n: n != one))
    raw[one], raw[two] = raw[two], raw[one]
    assert verify(raw)


@given(journals(), st.data())
def test_an_inserted_entry_is_found(entries: list[Entry], data: st.DataObject) -> None:
    at = data.draw(st.integers(1, len(entries)))
    extra = chain((9, Kind.REFUSED, {"reason": "never happened"}))[0].to_bytes()
    contents = [entry.to_bytes() for entry in entries]
    contents.insert(at - 1, extra)
    assert verify(dict(enumerate(contents, start=1)))


def test_the_newest_entry_is_guarded_by_its_form() -> None:
    entries = promoted("a")
    raw = stored(entries)
    for content in (b"", b"{}", raw[2].replace(b'","', b'", "', 1), raw[2][:-1]):
        assert verify({**raw, 2: content})


def test_a_rewritten_newest_entry_changes_the_head_that_was_noted() -> None:
    entries = promoted("a")
    forged = entries[-1].model_copy(update={"actor": "eve"})
    assert verify({**stored(entries), 2: forged.to_bytes()}) == ()
    assert forged.digest != entries[-1].digest


def test_a_journal_of_another_environment_is_found() -> None:
    raw = stored(promoted("a"))
    assert verify(raw) == ()
    assert "belongs to test, not to production" in verify(raw, "shop", "production")[0].problem
    assert "belongs to shop, not to till" in verify(raw, "till", "test")[0].problem


def test_an_empty_journal_is_whole() -> None:
    assert verify({}) == () and releases([]) == () and live([]) is None


def test_a_release_is_told_from_its_entries() -> None:
    entries = chain(
        started(1, "a"),
        (1, Kind.INTENT, {"action": "Scale"}),
        (2, Kind.REFUSED, {"version": "v2", "reason": "a test failed"}),
        (1, Kind.DONE, {"action": "Scale"}),
        ended(1, Outcome.ROLLED_BACK),
    )
    first, second = releases(entries)
    assert (first.outcome, first.reason) == (Outcome.ROLLED_BACK, "so it was")
    assert first.finished_at == START + timedelta(minutes=4) and first.workloads["web"] == "web.r1"
    assert (second.outcome, second.reason) == (Outcome.REFUSED, "a test failed")
    assert not second.unfinished and live([first, second]) is None


def test_an_unfinished_release_is_found_behind_later_notes() -> None:
    entries = chain(*[started(1, "a")], (2, Kind.REFUSED, {}))
    found = unfinished(releases(entries))
    assert found is not None and found.number == 1


def test_only_a_promoted_release_is_live() -> None:
    entries = chain(
        started(1, "a"), ended(1, Outcome.PROMOTED),
        started(2, "b"), ended(2, Outcome.ROLLED_BACK),
        started(3, "c"), ended(3, Outcome.ROLLBACK_FAILED),
        (4, Kind.REFUSED, {}), started(5, "d"),
    )  # fmt: skip
    now = live(releases(entries))
    assert now is not None and now.number == 1


@pytest.mark.parametrize(
    ("contents", "back"),
    [("", None), ("a", None), ("ab", 1), ("aa", None), ("abb", 1), ("abc", 2), ("aba", 2)],
)
def test_a_rollback_goes_to_the_newest_other_content(contents: str, back: int | None) -> None:
    found = previous_live(releases(promoted(*contents)))
    assert (found.number if found else None) == back


def test_going_back_twice_returns_to_where_one_was() -> None:
    contents = ["a", "b"]
    for _ in range(4):
        found = previous_live(releases(promoted(*contents)))
        assert found is not None
        contents.append(found.digest)
    assert contents == ["a", "b", "a", "b", "a", "b"]
