"""The journal in its store: appending is the lock."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest

from blocks.file_store import FileStore
from blocks.journal import Journal
from domain.errors import Failed, NeedsPerson
from domain.journal import Kind, verify


@pytest.fixture
def store(tmp_path: Path) -> FileStore:
    return FileStore(tmp_path)


@pytest.fixture
def opened(store: FileStore) -> Callable[..., Journal]:
    def open_as(actor: str = "ann", environment: str = "test") -> Journal:
        return Journal(store, "shop", environment, actor=actor, run=f"run-of-{actor}")

    return open_as


Open = Callable[..., Journal]


def test_what_was_appended_is_read_by_the_next(opened: Open) -> None:
    ours = opened()
    ours.append(1, Kind.STARTED, {"version": "1", "sizes": (1, 2)})
    ours.append(1, Kind.FINISHED, {"outcome": "PROMOTED"})
    theirs = opened("bob")
    assert [e.to_bytes() for e in theirs.entries] == [e.to_bytes() for e in ours.entries]
    assert theirs.next_release() == 2 and theirs.history()[0].version == "1"


def test_environments_do_not_share_a_journal(opened: Open) -> None:
    opened().append(1, Kind.STARTED, {})
    assert opened(environment="live").entries == ()
    opened(environment="live").append(1, Kind.STARTED, {})


def test_who_comes_second_stops_and_is_told_who_was_first(opened: Open) -> None:
    ours, theirs = opened(), opened("bob")
    theirs.append(1, Kind.STARTED, {})
    for _ in range(2):
        with pytest.raises(
            Failed, match=r"bob wrote `started` for release 1 .*run-of-bob"
        ) as caught:
            ours.append(1, Kind.STARTED, {})
        assert caught.value.code == "SLP054"
    assert len(opened().entries) == 1


def test_a_zombie_that_wakes_up_cannot_append(opened: Open) -> None:
    zombie = opened("zombie")
    zombie.append(1, Kind.STARTED, {})
    zombie.confirm_ours()
    opened("bob").append(1, Kind.TAKEN_OVER, {})
    with pytest.raises(Failed, match="taken-over"):
        zombie.confirm_ours()
    with pytest.raises(Failed, match="taken-over"):
        zombie.append(1, Kind.INTENT, {"action": "Route"})
    assert [e.kind for e in opened().entries] == [Kind.STARTED, Kind.TAKEN_OVER]


def test_a_note_stops_nobody_and_nobody_stops_a_note(opened: Open) -> None:
    ours, theirs = opened(), opened("bob")
    ours.append(1, Kind.STARTED, {})
    assert theirs.note(Kind.REFUSED, {"version": "2"}) == 2
    ours.confirm_ours()
    ours.append(1, Kind.INTENT, {})
    assert theirs.note(Kind.REFUSED, {"version": "3"}) == 3
    ours.append(1, Kind.FINISHED, {"outcome": "PROMOTED"})
    entries = opened().entries
    assert [(e.release, e.kind) for e in entries] == [
        (1, Kind.STARTED), (2, Kind.REFUSED), (1, Kind.INTENT), (3, Kind.REFUSED),
        (1, Kind.FINISHED),
    ]  # fmt: skip


def test_two_releases_never_share_a_number(opened: Open) -> None:
    ours, theirs = opened(), opened("bob")
    assert theirs.note(Kind.REFUSED, {}) == 1
    with pytest.raises(Failed) as caught:
        ours.append(1, Kind.STARTED, {})
    assert caught.value.code == "SLP054" and ours.next_release() == 2
    ours.append(2, Kind.STARTED, {})
    assert theirs.note(Kind.REFUSED, {}) == 3


def test_interrupted_after_it_was_stored_an_entry_is_still_ours(
    opened: Open, store: FileStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cancellation can arrive while the directory is synced; going back must then be possible."""

    class Cancelled(BaseException): ...

    ours = opened()
    ours.append(1, Kind.STARTED, {})
    fsync, left = os.fsync, [2]

    def interrupted(handle: int) -> None:
        left[0] -= 1
        if not left[0]:
            raise Cancelled
        fsync(handle)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", interrupted)
        with pytest.raises(Cancelled):
            ours.append(1, Kind.INTENT, {"action": "Route"})
    assert len(ours.entries) == 1 and len(store.list("journal")) == 2
    ours.append(1, Kind.ABORTING, {"reason": "cancelled"})
    assert [e.kind for e in ours.entries] == [Kind.STARTED, Kind.INTENT, Kind.ABORTING]
    assert verify(ours.raw(), "shop", "test") == ()


def test_a_broken_chain_needs_a_person(opened: Open, store: FileStore) -> None:
    ours = opened()
    for kind in (Kind.STARTED, Kind.INTENT, Kind.DONE):
        ours.append(1, kind, {"note": "x"})
    key = store.list("journal")[1]
    content = store.read(key)
    assert content is not None
    store.replace(key, content.replace(b'"x"', b'"y"'))
    with pytest.raises(NeedsPerson, match="entry 3: its link does not fit") as caught:
        opened()
    assert caught.value.code == "SLP060" and "slipway audit verify shop" in caught.value.help


@pytest.mark.parametrize("name", ["notes.txt", "2.json", "00000002.json.bak", "deep/00000001.json"])
def test_what_no_journal_wrote_needs_a_person(opened: Open, store: FileStore, name: str) -> None:
    opened().append(1, Kind.STARTED, {})
    store.create(f"journal/shop/test/{name}", b"{}")
    with pytest.raises(NeedsPerson, match="somebody else put it there"):
        opened()


def test_a_journal_copied_from_another_environment_needs_a_person(
    opened: Open, store: FileStore
) -> None:
    opened().append(1, Kind.STARTED, {})
    content = store.read("journal/shop/test/00000001.json")
    assert content is not None
    store.create("journal/shop/live/00000001.json", content)
    with pytest.raises(NeedsPerson, match="belongs to test, not to live"):
        opened(environment="live")


def test_its_clock_does_not_go_back(opened: Open) -> None:
    journal = opened()
    times = [journal.now() for _ in range(100)]
    assert times == sorted(times) and times[-1] - times[0] < timedelta(seconds=10)
    assert times[0].utcoffset() == timedelta()


def test_a_full_disk_changes_nothing(
    opened: Open, store: FileStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = opened()
    ours.append(1, Kind.STARTED, {})

    def full(key: str, content: bytes) -> None:
        raise Failed("SLP015", "no space", help="free some")

    with monkeypatch.context() as patch:
        patch.setattr(store, "create", full)
        with pytest.raises(Failed, match="no space"):
            ours.append(1, Kind.INTENT, {})
        ours.confirm_ours()
    ours.append(1, Kind.INTENT, {})
    assert len(opened().entries) == 2
