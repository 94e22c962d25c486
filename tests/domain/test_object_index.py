"""The index of saved objects and what has changed since the one before."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain.object_index import BadIndex, ChangeKind, IndexReader, IndexWriter, Saved, changes

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
keys = st.text(min_size=1, max_size=5)
contents = st.builds(
    lambda version, size: (str(version), size), st.integers(0, 3), st.integers(0, 3)
)
listings = st.dictionaries(keys, contents).map(
    lambda found: [
        Saved(key, size, version, NOON, sha256(f"{key}{version}".encode()).hexdigest())
        for key, (version, size) in sorted(found.items())
    ]
)


def lines(found: list[Saved], place: str = "here") -> list[bytes]:
    writer = IndexWriter(place)
    return [writer.begin(), *(writer.add(saved) for saved in found), writer.end()]


def chunks(whole: bytes, size: int) -> Iterator[bytes]:
    return (whole[at : at + size] for at in range(0, len(whole), size))


@given(listings, st.integers(1, 50))
def test_what_is_written_is_read_in_pieces_of_any_size(found: list[Saved], size: int) -> None:
    index = IndexReader(chunks(b"".join(lines(found)), size))
    assert (index.place, list(index)) == ("here", found)


@given(listings, st.data())
def test_no_damage_is_read_to_the_end(found: list[Saved], data: st.DataObject) -> None:
    whole = b"".join(lines(found))
    at = data.draw(st.integers(0, len(whole) - 1))
    flipped = whole[:at] + bytes([whole[at] ^ 1 << data.draw(st.integers(0, 7))]) + whole[at + 1 :]
    for damaged in (whole[:at], flipped, whole + b"x\n", whole + whole):
        with pytest.raises(BadIndex):
            list(IndexReader([damaged]))


@given(listings, st.data())
def test_a_line_more_or_less_is_found(found: list[Saved], data: st.DataObject) -> None:
    said = lines(found)
    at = data.draw(st.integers(0, len(said) - 1))
    for damaged in (said[:at] + said[at + 1 :], [*said[:at], said[at], *said[at:]]):
        with pytest.raises(BadIndex):
            list(IndexReader(damaged))


@given(listings, listings)
def test_changes_lead_from_one_listing_to_the_other(before: list[Saved], now: list[Saved]) -> None:
    found = list(changes(before, now))
    after = {saved.key: saved for saved in before}
    for change in found:
        if change.kind is ChangeKind.DELETED:
            assert change.saved
            del after[change.saved.key]
        elif change.kind is not ChangeKind.UNCHANGED:
            assert change.seen
            after[change.seen.key] = change.seen
    assert after == {saved.key: saved for saved in now}
    carried = [c for c in found if c.kind is ChangeKind.UNCHANGED]
    assert all(c.saved and c.seen and c.saved.is_still(c.seen) for c in carried)


@given(listings.filter(lambda found: len(found) > 1), st.data())
def test_a_listing_out_of_order_is_refused(found: list[Saved], data: st.DataObject) -> None:
    """Keys would be missed without a word."""
    at = data.draw(st.integers(1, len(found) - 1))
    wrong = [*found[: at - 1], found[at], found[at - 1], *found[at + 1 :]]
    twice = [*found[:at], found[at - 1], *found[at:]]
    for bad in (wrong, twice):
        for before, now in ((bad, found), (found, bad)):
            with pytest.raises(BadIndex, match="does not come after"):
                list(changes(before, now))
        with pytest.raises(BadIndex, match="does not come after"):
            lines(bad)


@pytest.mark.parametrize(
    "change",
    [{"bytes": 4}, {"version": "2"}, {"modified_at": datetime(2026, 3, 2, tzinfo=UTC)}],
)
def test_an_object_that_changed_in_one_way_is_not_carried_over(change: dict[str, object]) -> None:
    saved = Saved("a", 3, "1", NOON, "0" * 64)
    ((found),) = changes([saved], [replace(saved, **change)])  # type: ignore[arg-type]
    assert found.kind is ChangeKind.CHANGED


@pytest.mark.parametrize(
    "line",
    [b"7", b"[]", b"{}", b'{"key":"a","bytes":1,"version":"1","modified_at":"2026-03-01","sha256":"'
     + b"0" * 64 + b'"}', b'{"key":"a","bytes":-1,"version":"1","modified_at":'
     b'"2026-03-01T00:00:00+00:00","sha256":"' + b"0" * 64 + b'"}', b"nonsense"],
)  # fmt: skip
def test_a_line_that_is_no_object_is_refused(line: bytes) -> None:
    with pytest.raises(BadIndex):
        list(IndexReader([lines([])[0], line + b"\n"]))


@given(listings, listings)
def test_the_digest_is_of_keys_and_contents_alone(a: list[Saved], b: list[Saved]) -> None:
    def digest(found: list[Saved]) -> str:
        writer = IndexWriter("anywhere")
        for saved in found:
            writer.add(saved)
        return writer.digest

    told = [[(s.key, s.sha256) for s in found] for found in (a, b)]
    assert (digest(a) == digest(b)) == (told[0] == told[1])
    assert digest(a) == digest([replace(s, version=s.version + "!") for s in a])
