"""The reader of RDBs against values written by hand; whole files are tested with real servers."""

from __future__ import annotations

import io
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain.rdb import Entry, NotRdb, Reader, Writer, from_dump, to_dump
from domain.redis_inventory import Count, RedisInventory, differences


def written(text: bytes) -> bytes:
    return b"\x80" + struct.pack(">I", len(text)) + text


def value(code: int, body: bytes) -> tuple[str, tuple[bytes, ...]]:
    reader = Reader(io.BytesIO(body).read)
    kind, raw, content = reader.value(code)
    reader.expect_nothing()
    assert raw == body
    return kind, content


def listpack(*elements: bytes) -> bytes:
    """Strings of fewer than 64 bytes, or numbers of one byte."""
    packed = b""
    for element in elements:
        item = (
            bytes([int(element)]) if element.isdigit() else bytes([0x80 | len(element)]) + element
        )
        packed += item + bytes([len(item)])
    return struct.pack("<IH", len(packed) + 7, len(elements)) + packed + b"\xff"


def test_a_set_of_redis_7_2_is_the_set_it_was_before() -> None:
    before = value(2, b"\x03" + written(b"b") + written(b"7") + written(b"a"))
    assert value(20, written(listpack(b"a", b"b", b"7"))) == before == ("set", (b"7", b"a", b"b"))


def test_a_sorted_set_has_the_same_scores_in_every_form() -> None:
    as_text = value(3, b"\x02" + written(b"b") + b"\x03" + b"2.5" + written(b"a") + b"\xfe")
    binary = struct.pack("<d", float("inf")), struct.pack("<d", 2.5)
    assert value(5, b"\x02" + written(b"a") + binary[0] + written(b"b") + binary[1]) == as_text
    assert value(17, written(listpack(b"b", b"2.5", b"a", b"inf"))) == as_text


def test_a_list_may_mix_packed_and_single_nodes() -> None:
    nodes = b"\x02" + b"\x02" + written(listpack(b"a", b"1")) + b"\x01" + written(b"long")
    assert value(18, nodes) == ("list", (b"a", b"1", b"long"))


def test_numbers_in_a_listpack_have_all_widths() -> None:
    numbers = {
        b"\x7f": 127, b"\xdf\xff": -1, b"\xd0\x00": -4096, b"\xcf\xff": 4095,
        b"\xf1\x00\x80": -32768, b"\xf2\xff\xff\x7f": 2**23 - 1,
        b"\xf3\x00\x00\x00\x80": -(2**31), b"\xf4" + b"\xff" * 7 + b"\x7f": 2**63 - 1,
    }  # fmt: skip
    packed = b"".join(n + bytes([len(n)]) for n in numbers)
    whole = struct.pack("<IH", len(packed) + 7, len(numbers)) + packed + b"\xff"
    _, content = value(18, b"\x01\x02" + written(whole))
    assert content == tuple(b"%d" % n for n in numbers.values())


def test_a_modules_value_is_kept_as_it_is() -> None:
    body = b"\x81" + bytes(8) + b"\x02\x05" + b"\x05" + written(b"x") + b"\x04" + bytes(8) + b"\x00"
    assert value(7, body) == ("module", (body,))


@pytest.mark.parametrize("code", [6, 8, 9, 22, 24, 25, 99])
def test_what_is_not_known_is_refused(code: int) -> None:
    """A hash whose fields expire, among others: skipped, it would be missing in the restore."""
    with pytest.raises(NotRdb, match="not known"):
        value(code, written(b"x"))


@pytest.mark.parametrize(
    "packed",
    [listpack(b"a")[:-1], listpack(b"a", b"b")[:6] + b"\xff", b"", listpack(b"a") + b"\xff",
     b"\x09\x00\x00\x00\x02\x00" + listpack(b"a")[6:]],
)  # fmt: skip
def test_a_packed_value_that_lies_about_its_size_is_damaged(packed: bytes) -> None:
    with pytest.raises(NotRdb):
        value(20, written(packed))


def packed_string(literals: bytes, references: bytes, size: int) -> bytes:
    packed = bytes([len(literals) - 1]) + literals + references
    return b"\xc3" + bytes([len(packed), size]) + packed


def test_a_packed_string_may_copy_what_it_is_making() -> None:
    run = packed_string(b"ab", bytes([7 << 5, 11, 1]), 22)
    assert value(0, run) == ("string", (b"ab" * 11,))
    with pytest.raises(NotRdb, match="before its beginning"):
        value(0, packed_string(b"ab", bytes([7 << 5, 11, 2]), 22))
    with pytest.raises(NotRdb, match="another length"):
        value(0, packed_string(b"ab", bytes([7 << 5, 11, 1]), 23))


entries = st.builds(
    lambda key, text, expires: Entry(0, key, 0, "string", written(text), (text,), expires),
    st.binary(max_size=100),
    st.binary(max_size=200),
    st.none() | st.integers(0, 2**60),
)


def file_of(found: list[Entry], version: int = 9) -> bytes:
    writer = Writer(version)
    begin = writer.begin({"ctime": "1"})
    return begin + b"".join(writer.entry(e) for e in found) + writer.end()


@given(st.lists(entries))
def test_what_is_written_is_read(found: list[Entry]) -> None:
    reader = Reader(io.BytesIO(file_of(found)).read)
    assert list(reader.entries()) == found
    assert reader.header.checksum and reader.header.aux == {"ctime": "1"}


@given(st.lists(entries, min_size=1), st.data())
def test_no_damage_is_read(found: list[Entry], data: st.DataObject) -> None:
    whole = file_of(found)
    at = data.draw(st.integers(0, len(whole) - 1))
    bit = 1 << data.draw(st.integers(0, 7))
    flipped = whole[:at] + bytes([whole[at] ^ bit]) + whole[at + 1 :]
    for damaged in (flipped, whole[:at]):
        reader = Reader(io.BytesIO(damaged).read)
        with pytest.raises(NotRdb):
            list(reader.entries())
            reader.expect_nothing()
            if not reader.header.checksum:  # of a version that had none: ours all have one
                raise NotRdb("no checksum")
            raise AssertionError("damage was read as sound")


@given(entries, st.binary(min_size=1, max_size=3))
def test_a_dumped_value_is_taken_whole_or_not_at_all(entry: Entry, more: bytes) -> None:
    payload = to_dump(entry, 9)
    assert from_dump(entry.key, payload, entry.expires_ms) == (entry, 9)
    with pytest.raises(NotRdb):
        from_dump(entry.key, payload + more, None)
    with pytest.raises(NotRdb):
        from_dump(entry.key, bytes([payload[0] ^ 1]) + payload[1:], None)


def counted(found: list[Entry]) -> RedisInventory:
    count = Count()
    for entry in found:
        count.add(entry)
    return RedisInventory(rdb_version=9, persistent=count.persistent, volatile=count.volatile)


by_key = st.dictionaries(
    st.binary(max_size=4), st.tuples(st.binary(max_size=4), st.none() | st.integers(0, 9))
).map(lambda d: [Entry(0, k, 0, "string", written(v), (v,), e) for k, (v, e) in d.items()])


def told(found: list[Entry]) -> set[tuple[bytes, tuple[bytes, ...], bool]]:
    return {(e.key, e.content, e.expires_ms is None) for e in found}


@given(by_key, by_key)
def test_inventories_are_equal_when_what_they_count_is(a: list[Entry], b: list[Entry]) -> None:
    assert differences(counted(a), counted(a[::-1])) == ()
    assert (differences(counted(a), counted(b)) == ()) == (told(a) == told(b))


@given(by_key)
def test_keys_may_be_gone_only_when_they_have_expired(found: list[Entry]) -> None:
    left = [e for e in found if e.expires_ms is None]
    gone = len(found) - len(left)
    assert differences(counted(found), counted(left), expired=gone) == ()
    if gone:
        assert differences(counted(found), counted(left))
    assert differences(counted(found), counted(left), expired=gone + 1)
