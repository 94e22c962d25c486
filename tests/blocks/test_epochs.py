"""Epochs are claimed once each."""

from __future__ import annotations

import threading
from datetime import UTC, datetime
from pathlib import Path

import pytest

from blocks.epochs import Epochs
from blocks.file_store import FileStore
from blocks.object_store import AlreadyExists
from domain.errors import Failed
from domain.failover import Epoch


def epoch(number: int, side: str) -> Epoch:
    return Epoch(number=number, side=side, claimed_at=datetime.now(UTC), actor=side, reason="r")


def test_of_many_that_claim_one_number_one_wins(tmp_path: Path) -> None:
    store = FileStore(tmp_path)
    start, won, lost = threading.Barrier(8), [], []

    def claim(side: str) -> None:
        epochs = Epochs(store, "shop", "production")
        start.wait()
        try:
            epochs.claim(epoch(1, side))
            won.append(side)
        except Failed as error:
            lost.append(error.code)

    threads = [threading.Thread(target=claim, args=(f"side-{n}",)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    newest = Epochs(store, "shop", "production").newest()
    assert len(won) == 1 and lost == ["SLP203"] * 7
    assert newest is not None and newest.side == won[0]


def test_only_the_next_number_can_be_claimed(tmp_path: Path) -> None:
    epochs = Epochs(FileStore(tmp_path), "shop", "production")
    with pytest.raises(Failed, match="there is none"):
        epochs.claim(epoch(2, "gcp"))
    epochs.claim(epoch(1, "aws"))
    with pytest.raises(Failed, match="epoch 1 is aws's"):
        epochs.claim(epoch(3, "gcp"))


def test_an_acknowledgement_that_was_lost_is_no_lost_race(tmp_path: Path) -> None:
    class Forgetful(FileStore):
        def create(self, key: str, content: bytes) -> None:
            super().create(key, content)
            raise AlreadyExists(key)  # as a client sees it that tried again

    mine = epoch(1, "aws")
    Epochs(Forgetful(tmp_path), "shop", "production").claim(mine)
    with pytest.raises(Failed):
        Epochs(Forgetful(tmp_path), "shop", "production").claim(epoch(1, "gcp"))


def test_ten_come_after_nine(tmp_path: Path) -> None:
    epochs = Epochs(FileStore(tmp_path), "shop", "production")
    for number in range(1, 12):
        epochs.claim(epoch(number, "aws"))
    newest = epochs.newest()
    assert newest is not None and newest.number == 11
    assert [e.number for e in epochs.every()] == list(range(1, 12))
    epochs.forget()
    assert epochs.newest() is None
