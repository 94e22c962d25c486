"""Archives written by hand, read by the reader: what it finds, and what it must refuse.

The writer below follows PostgreSQL's own, and shares nothing with the reader under test. Archives
of real servers are read in tests/blocks/test_postgres_dump.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from domain.errors import Failed
from domain.pg_archive import ArchiveReader, digest_of_rows
from domain.pg_inventory import DifferenceKind, Inventory, archive_differences, difference

COPY_TEXT = st.binary(max_size=40).map(lambda raw: raw.replace(b"\0", b"").replace(b"\n", b"\\n"))
ROWS = st.lists(COPY_TEXT.filter(lambda row: row != b"\\."), max_size=12)
TABLES = st.lists(ROWS, min_size=1, max_size=4)
VERSIONS = ((1, 14), (1, 15), (1, 16))


def integer(value: int) -> bytes:
    return bytes([value < 0]) + abs(value).to_bytes(4, "little")


def text(value: str | None) -> bytes:
    return integer(-1) if value is None else integer(len(value.encode())) + value.encode()


@dataclass
class Archive:
    """What is written; ``chunks`` cuts the data of a table into pieces, None means by rows."""

    tables: Sequence[Sequence[bytes]]
    version: tuple[int, int] = (1, 16)
    chunks: int | None = None
    offset_bytes: int = 8
    compression: int = 0
    copy: str = "COPY public.t{} (a) FROM stdin;\n"
    entries: list[bytes] = field(default_factory=list)

    def to_bytes(self) -> bytes:
        entries = [
            *[self.entry(n, "TABLE", f"t{n}", f"CREATE TABLE t{n};") for n in self.numbers],
            *[self.entry(100 + n, "TABLE DATA", f"t{n}", data=True) for n in self.numbers],
            self.entry(500, "ENCODING", "ENCODING", "SET client_encoding = 'UTF8';\n", None),
            self.entry(501, "SEQUENCE SET", "s", "SELECT pg_catalog.setval('public.s', 7, true);"),
            *self.entries,
        ]
        blocks = [self.block(n, rows) for n, rows in zip(self.numbers, self.tables, strict=True)]
        return b"".join([self.head(), integer(len(entries)), *entries, *blocks])

    @property
    def numbers(self) -> range:
        return range(1, len(self.tables) + 1)

    def head(self) -> bytes:
        compression = (
            bytes([self.compression]) if self.version >= (1, 15) else integer(self.compression)
        )
        return b"".join(
            [b"PGDMP", bytes([*self.version, 0, 4, self.offset_bytes, 1]), compression,
             *map(integer, (1, 2, 3, 4, 10, 126, 0)), text("shop"), text("18.4"), text("18.4")]
        )  # fmt: skip

    def entry(
        self, number: int, kind: str, tag: str, sql: str = "", schema: str | None = "public",
        *, data: bool = False,
    ) -> bytes:  # fmt: skip
        copy = self.copy.format(number - 100) if data else None
        return b"".join(
            [integer(number), integer(data), text("0"), text("0"), text(tag), text(kind),
             integer(2), text(sql), text(""), text(copy), text(schema), text(None), text(None),
             integer(0) if self.version >= (1, 16) else b"", text("owner"), text("false"),
             text(None), bytes([1 if data else 3]), bytes(self.offset_bytes)]
        )  # fmt: skip

    def block(self, number: int, rows: Sequence[bytes]) -> bytes:
        lines = [row + b"\n" for row in rows] + [b"\\.\n\n\n"]
        if self.chunks is not None:
            whole = b"".join(lines)
            lines = [whole[i : i + self.chunks] for i in range(0, len(whole), self.chunks)]
        chunks = [integer(len(line)) + line for line in lines]
        return b"".join([b"\x01", integer(100 + number), *chunks, integer(0)])


def read(content: bytes, piece: int = 1 << 16, *, rows: bool = True) -> Inventory:
    reader = ArchiveReader(rows=rows)
    for start in range(0, len(content), piece):
        reader.feed(content[start : start + piece])
    return reader.close()


def refusal(content: bytes) -> str:
    with pytest.raises(Failed) as caught:
        read(content)
    assert caught.value.code == "SLP122"
    return caught.value.cause


@given(
    TABLES, st.sampled_from(VERSIONS), st.one_of(st.none(), st.integers(1, 60)),
    st.integers(1, 200), st.sampled_from((4, 8)),
)  # fmt: skip
def test_rows_and_digests_are_those_of_what_was_written(
    tables: list[list[bytes]], version: tuple[int, int], chunks: int | None, piece: int, offset: int
) -> None:
    """Whether chunks are rows (to PostgreSQL 18) or buffers, and however the bytes arrive."""
    archive = Archive(tables, version, chunks, offset)
    found = read(archive.to_bytes(), piece)
    for number, rows in zip(archive.numbers, tables, strict=True):
        table = found.tables[f"public.t{number}"]
        assert table.rows == len(rows)
        assert int(table.digest, 16) == sum(map(xxhash.xxh3_128_intdigest, rows)) % 2**128
    assert found.sequences["public.s"].value == 7
    assert (found.server_version, found.encoding, found.roles) == ("18.4", "UTF8", ("owner",))


@given(st.permutations([b"a", b"b", b"b", b"c\td"]))
def test_the_order_of_rows_does_not_matter(rows: list[bytes]) -> None:
    other = read(Archive([[b"a", b"b", b"b", b"c\td"]]).to_bytes())
    assert looked_at(read(Archive([rows]).to_bytes())) == looked_at(other)


@given(
    TABLES, st.sampled_from(VERSIONS), st.one_of(st.none(), st.integers(1, 60)),
    st.integers(1, 200),
)  # fmt: skip
def test_a_reader_that_skips_rows_finds_the_same_tables_and_bytes(
    tables: list[list[bytes]], version: tuple[int, int], chunks: int | None, piece: int
) -> None:
    content = Archive(tables, version, chunks).to_bytes()
    full, light = read(content, piece), read(content, piece, rows=False)
    assert {n: t.raw for n, t in light.tables.items()} == {n: t.raw for n, t in full.tables.items()}
    assert all(t.rows is None and t.digest is None for t in light.tables.values())
    assert archive_differences(light, full) == archive_differences(full, light) == ()
    assert (light.sequences, light.contents) == (full.sequences, full.contents)


@given(TABLES.filter(lambda tables: sum(map(len, tables)) > 1), st.data())
def test_a_reader_that_skips_rows_sees_every_other_row(
    tables: list[list[bytes]], data: st.DataObject
) -> None:
    number = data.draw(st.sampled_from([n for n, rows in enumerate(tables) if rows]))
    other = [list(rows) for rows in tables]
    other[number][0] += b"x"
    light = read(Archive(tables).to_bytes(), rows=False)
    found = archive_differences(light, read(Archive(other).to_bytes()))
    assert [one.name for one in found] == [f"public.t{number + 1}"]


def test_what_was_not_looked_at_is_never_the_same() -> None:
    light = read(Archive([[b"a"]]).to_bytes(), rows=False)
    assert [one.kind for one in difference(light, light)] == [DifferenceKind.NOTHING_COMPARED]


def looked_at(inventory: Inventory) -> dict[str, tuple[object, ...]]:
    return {name: (t.rows, t.digest, t.columns) for name, t in inventory.tables.items()}


def test_a_chunk_of_several_rows_is_not_taken_for_one() -> None:
    """Its length fits, and so does the newline at its end."""
    rows = [b"a", b"b", b"c", b"d", b"0123456789", b"0123456789"]
    expected = looked_at(read(Archive([rows]).to_bytes()))
    for chunks in range(1, 40):
        assert looked_at(read(Archive([rows], chunks=chunks).to_bytes())) == expected


@given(ROWS.filter(bool), st.data())
def test_a_row_that_comes_twice_or_not_at_all_changes_the_digest(
    rows: list[bytes], data: st.DataObject
) -> None:
    one = data.draw(st.sampled_from(rows))
    assert digest_of_rows([r + b"\n" for r in rows], "") != digest_of_rows(
        [r + b"\n" for r in [*rows, one, one]], ""
    )


@settings(max_examples=10)
@given(TABLES, st.one_of(st.none(), st.integers(1, 30)))
def test_no_beginning_of_an_archive_is_an_archive(
    tables: list[list[bytes]], chunks: int | None
) -> None:
    """Also where it ends between two tables, or just before the first."""
    whole = Archive(tables, chunks=chunks).to_bytes()
    reader = ArchiveReader()
    for at in range(len(whole)):
        with pytest.raises(Failed) as caught:
            reader.close()
        assert caught.value.code == "SLP122"
        reader.feed(whole[at : at + 1])
    assert len(reader.close().tables) == len(tables)


@settings(max_examples=400)
@given(TABLES, st.data())
def test_a_damaged_archive_is_refused_or_reads_otherwise(
    tables: list[list[bytes]], data: st.DataObject
) -> None:
    """No byte of it can change unseen, and none makes any other error."""
    archive = Archive(tables, chunks=data.draw(st.one_of(st.none(), st.integers(1, 30))))
    whole = archive.to_bytes()
    at = data.draw(st.integers(0, len(whole) - 1))
    byte = data.draw(st.integers(0, 255).filter(lambda value: value != whole[at]))
    damaged = whole[:at] + bytes([byte]) + whole[at + 1 :]
    try:
        found = read(damaged, data.draw(st.integers(1, 100)))
    except Failed as error:
        assert error.code == "SLP122"
    else:
        assert archive_differences(read(whole), found)


def test_a_row_larger_than_any_buffer_is_hashed_as_it_passes() -> None:
    rows = [b"short", b"x" * 3_000_000, b"short"]
    found = read(Archive([rows]).to_bytes())
    expected = digest_of_rows([b"\n".join(rows), b"\n"], "(a)")
    table = found.tables["public.t1"]
    assert (table.rows, table.digest) == (expected.rows, expected.digest)


def test_many_rows_are_read_over_several_windows() -> None:
    rows = [b"%d\t%s" % (n, b"x" * (n % 90)) for n in range(20_000)]
    expected = sum(map(xxhash.xxh3_128_intdigest, rows)) % 2**128
    for piece in (1000, 65_536, 1 << 22):
        table = read(Archive([rows]).to_bytes(), piece).tables["public.t1"]
        assert (table.rows, int(table.digest, 16)) == (20_000, expected)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "it is empty"),
        (b"-- PostgreSQL database dump\n" * 9, "does not begin as"),
        (Archive([[b"a"]], version=(1, 17)).to_bytes(), "version 1.17"),
        (Archive([[b"a"]], compression=1).to_bytes(), "compressed"),
        (Archive([[b"a"]], version=(1, 14), compression=-1).to_bytes(), "compressed"),
        (Archive([[b"a"]], copy="").to_bytes(), "INSERT"),
        (Archive([[b"a"]]).to_bytes() + b"\x01", "in the middle"),
        (Archive([[b"a"]]).to_bytes() + b"\x07\x00\x65\x00\x00\x00", "which has none left"),
        (Archive([[b"a"]]).to_bytes().replace(b"\\.\n\n\n", b"b.\n\n\n"), "without its end mark"),
    ],
)
def test_what_is_no_archive_is_named(content: bytes, why: str) -> None:
    assert why in refusal(content)


def test_a_length_that_does_not_fit_its_row_is_refused() -> None:
    """The fast way looks for ends of rows, so it must compare what the lengths say."""
    whole = Archive([[b"aaa", b"bbb", b"ccc"]]).to_bytes()
    refusal(whole.replace(integer(4) + b"bbb", integer(5) + b"bbb"))


def test_a_text_of_absurd_length_does_not_fill_the_memory() -> None:
    whole = bytearray(Archive([[b"a"]]).to_bytes())
    at = whole.index(text("shop"))
    whole[at : at + 5] = integer(2_000_000_000)
    assert "a text of 2000000000 bytes" in refusal(bytes(whole))


def test_an_error_stays() -> None:
    reader = ArchiveReader()
    for _ in range(2):
        with pytest.raises(Failed):
            reader.feed(b"not an archive")
    with pytest.raises(Failed):
        reader.close()


def test_the_sample_is_an_archive_of_the_first_rows() -> None:
    reader = ArchiveReader(sample_rows=2, sample_bytes=100)
    archive = Archive([[b"a", b"b", b"c"], [], [b"x" * 200, b"y"]])
    archive.entries = [archive.entry(600, "FK CONSTRAINT", "t1 fk", "ALTER TABLE ...")]
    reader.feed(archive.to_bytes())
    reader.close()
    found = read(reader.sample().to_bytes())
    assert {name: table.rows for name, table in found.tables.items()} == {
        "public.t1": 2, "public.t2": 0, "public.t3": 0,
    }  # fmt: skip
    assert "FK CONSTRAINT" not in found.definitions and len(found.definitions["TABLE"]) == 3
