"""A generator read in sizes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blocks.pieces import Pieces

made = st.lists(st.binary(min_size=1, max_size=20))


@given(made, st.integers(1, 30))
def test_all_that_was_made_is_read(pieces: list[bytes], size: int) -> None:
    reading = Pieces(iter(pieces))
    found = []
    while piece := reading.read(size):
        assert not reading.ended or len(piece) <= size
        found.append(piece)
    assert reading.ended and b"".join(found) == b"".join(pieces)
    assert all(len(piece) == size for piece in found[:-1])
    assert reading.read(size) == b""


@given(made, st.integers(1, 30))
def test_what_failed_never_ends_well(pieces: list[bytes], size: int) -> None:
    def failing() -> Iterator[bytes]:
        yield from pieces
        raise ConnectionError("cut")

    reading = Pieces(failing())
    with pytest.raises(ConnectionError):
        while reading.read(size):
            pass
    for _ in range(2):
        with pytest.raises(ConnectionError):
            reading.read(size)
    assert not reading.ended
