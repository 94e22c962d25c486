"""What is stored opens again with the standard tools' formats, and damage never passes."""

from __future__ import annotations

import io
import os
import resource
from pathlib import Path

import pyrage
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from blocks import sealing
from blocks.file_store import FileStore
from domain.errors import Failed, SlipwayError, UsageError

KEY = pyrage.x25519.Identity.generate()
OTHER = pyrage.x25519.Identity.generate()
TO = [KEY.to_public()]


def opened(store: FileStore, key: str, keys: list[object], plain_bytes: int | None = None) -> bytes:
    sink = io.BytesIO()
    with store.open(key) as source:
        sealing.unseal(source, sink, keys, key, plain_bytes=plain_bytes)
    return sink.getvalue()


@pytest.mark.parametrize("size", [0, 1, 65_536, FileStore(Path()).upload("k").part_bytes * 2 + 7])
def test_what_is_sealed_opens_again(tmp_path: Path, size: int) -> None:
    store, content = FileStore(tmp_path), os.urandom(size)
    sealed = sealing.seal(io.BytesIO(content), store, "a/b", TO)
    stat = store.stat("a/b")
    assert stat is not None and stat.bytes == sealed.part.bytes
    assert sealed.plain_bytes == size
    assert opened(store, "a/b", [KEY], size) == content
    assert store.list("a") == ("a/b",)


def test_any_of_several_keys_opens_it_with_nothing_but_age_and_zstd(tmp_path: Path) -> None:
    store = FileStore(tmp_path)
    sealing.seal(io.BytesIO(b"meals"), store, "k", [KEY.to_public(), OTHER.to_public()])
    for key in (KEY, OTHER):
        compressed = pyrage.decrypt(store.read("k") or b"", [key])
        assert zstandard.ZstdDecompressor().decompressobj().decompress(compressed) == b"meals"


def test_a_source_that_fails_at_its_very_end_leaves_nothing(tmp_path: Path) -> None:
    class Dump(io.RawIOBase):
        left = 3

        def read(self, size: int = -1) -> bytes:
            self.left -= 1
            if self.left:
                return os.urandom(9_000_000)
            raise Failed("SLP121", "pg_dump ended with 1", help="look")

    store = FileStore(tmp_path)
    with pytest.raises(Failed, match="pg_dump ended with 1"):
        sealing.seal(Dump(), store, "k", TO)
    assert list(tmp_path.rglob("*")) == []


def test_a_store_that_fails_says_so_itself(tmp_path: Path) -> None:
    store = FileStore(tmp_path)

    class Full(type(store.upload("k"))):  # type: ignore[misc]
        def put(self, number: int, content: bytes) -> None:
            raise Failed("SLP015", "no space left", help="free some")

    store.upload = lambda key, *, locked_until=None: Full(  # type: ignore[method-assign]
        store, key, tmp_path / key, tmp_path / ".tmp-k"
    )
    with pytest.raises(Failed, match="no space left"):
        sealing.seal(io.BytesIO(os.urandom(20_000_000)), store, "k", TO)


def test_an_unfinished_upload_is_not_mixed_with_the_next(tmp_path: Path) -> None:
    store, content = FileStore(tmp_path), os.urandom(100)
    left = store.upload("k")
    left.put(1, os.urandom(left.part_bytes))
    sealing.seal(io.BytesIO(content), store, "k", TO)
    assert opened(store, "k", [KEY]) == content


def test_a_wrong_key_is_told_from_damage(tmp_path: Path) -> None:
    store = FileStore(tmp_path)
    sealing.seal(io.BytesIO(b"meals"), store, "k", TO)
    with pytest.raises(Failed) as caught:
        opened(store, "k", [OTHER])
    assert caught.value.code == "SLP142"


@given(st.data())
def test_any_damage_is_found(data: st.DataObject) -> None:
    store_bytes = SEALED
    kind = data.draw(st.sampled_from(["flip", "cut", "grow", "empty"]))
    at = data.draw(st.integers(0, len(store_bytes) - 1))
    match kind:
        case "flip":
            bit = 1 << data.draw(st.integers(0, 7))
            broken = store_bytes[:at] + bytes([store_bytes[at] ^ bit]) + store_bytes[at + 1 :]
        case "cut":
            broken = store_bytes[:at]
        case "grow":
            broken = store_bytes + data.draw(st.binary(min_size=1, max_size=20))
        case _:
            broken = b""
    with pytest.raises(SlipwayError) as caught:
        sealing.unseal(io.BytesIO(broken), io.BytesIO(), [KEY], "k", plain_bytes=len(PLAIN))
    # A flip in the header's own key stanza reads as "not for this key".
    assert caught.value.code in ("SLP143", "SLP142")


def test_a_stream_cut_between_two_frames_is_found() -> None:
    cut = zstandard.ZstdCompressor().compress(PLAIN[: len(PLAIN) // 2])
    box = pyrage.encrypt(cut, TO)
    with pytest.raises(Failed, match="it holds"):
        sealing.unseal(io.BytesIO(box), io.BytesIO(), [KEY], "k", plain_bytes=len(PLAIN))


def test_what_is_read_as_a_file_raises_its_damage_at_the_end() -> None:
    broken = SEALED[:-20]
    with (
        pytest.raises(Failed, match="damaged"),
        sealing.unsealed(io.BytesIO(broken), [KEY], "k") as file,
    ):
        while file.read(10_000):
            pass


def test_a_reader_that_has_seen_enough_may_leave() -> None:
    with sealing.unsealed(io.BytesIO(SEALED), [KEY], "k") as file:
        assert file.read(5) == PLAIN[:5]


def test_a_gigabyte_of_nothing_needs_no_memory() -> None:
    class Zeros(io.RawIOBase):
        left = 1 << 30

        def read(self, size: int = -1) -> bytes:
            count = min(size, self.left, 1 << 20)
            self.left -= count
            return bytes(count)

    class Sink:
        count = 0

        def write(self, data: bytes) -> int:
            self.count += len(data)
            return len(data)

    box, sink = io.BytesIO(), Sink()
    pyrage.encrypt_io(zstandard.ZstdCompressor().stream_reader(Zeros()), box, TO)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    box.seek(0)
    sealing.unseal(box, sink, [KEY], "k", plain_bytes=1 << 30)
    grown_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert sink.count == 1 << 30
    assert grown_kib < 64 << 10


def test_a_key_is_tried_with_a_canary() -> None:
    sealing.try_key(str(KEY.to_public()), str(KEY), "aws")
    with pytest.raises(Failed, match="does not open"):
        sealing.try_key(str(KEY.to_public()), str(OTHER), "aws")


def test_bad_keys_are_refused_and_never_repeated() -> None:
    secret = str(KEY)[:-4] + "AAAA"
    with pytest.raises(UsageError) as caught:
        sealing.identity(secret, "aws")
    assert caught.value.code == "SLP141" and secret not in str(caught.value)
    for wrong in ([], ["age1nobody"], [str(KEY)]):
        with pytest.raises(UsageError) as refused:
            sealing.recipients(wrong)
        assert refused.value.code == "SLP140"
        assert str(KEY) not in str(refused.value)


def test_a_pace_spreads_bytes_over_time() -> None:
    waited: list[float] = []
    clock = [100.0]
    pace = sealing.Pace(1000, now=lambda: clock[0], sleep=waited.append)
    for _ in range(3):
        pace.spend(500)
    assert waited == [0.0, 0.5, 1.0]


PLAIN = b"".join(f"{n}\tapple\t{n * 7 % 1000}\n".encode() for n in range(20_000))
_STORE_BOX = io.BytesIO()
pyrage.encrypt_io(
    zstandard.ZstdCompressor(write_checksum=True).stream_reader(io.BytesIO(PLAIN)), _STORE_BOX, TO
)
SEALED = _STORE_BOX.getvalue()
