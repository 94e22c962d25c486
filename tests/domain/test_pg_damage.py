"""Damaged twins: each is what its name says, and the reader alone finds it."""

from __future__ import annotations

import pytest

from domain.errors import Failed
from domain.pg_archive import ArchiveReader, Sample, with_definition
from domain.pg_damage import Twin, damaged
from domain.pg_inventory import Inventory, archive_differences
from tests.domain.test_pg_archive import Archive, read


def sample_of(archive: Archive) -> Sample:
    reader = ArchiveReader(sample_rows=100)
    reader.feed(archive.to_bytes())
    reader.close()
    return reader.sample()


SAMPLE = sample_of(Archive([[b"1\talpha", b"2\tbeta"], [b"3\t\\N"], []]))
WHOLE = read(SAMPLE.to_bytes())
TWINS = {twin.name: twin for twin in damaged(SAMPLE)}


def inventory(twin: Twin) -> Inventory:
    assert twin.content is not None
    return read(twin.content)


def test_the_sample_itself_is_whole() -> None:
    assert {n: t.rows for n, t in WHOLE.tables.items()} == {
        "public.t1": 2, "public.t2": 1, "public.t3": 0,
    }  # fmt: skip


@pytest.mark.parametrize("name", ["empty file", "truncated", "without its last table"])
def test_a_twin_that_is_no_archive_cannot_be_read(name: str) -> None:
    with pytest.raises(Failed) as caught:
        inventory(TWINS[name])
    assert TWINS[name].reasons == {caught.value.code} and not TWINS[name].at_restore


@pytest.mark.parametrize("name", [n for n, twin in TWINS.items() if twin.at_restore])
def test_a_twin_that_can_be_read_differs_by_its_own_reason(name: str) -> None:
    kinds = {one.kind.value for one in archive_differences(WHOLE, inventory(TWINS[name]))}
    assert kinds & TWINS[name].reasons


def test_a_flipped_byte_leaves_the_counts_right() -> None:
    found = inventory(TWINS["flipped byte"])
    assert {n: t.rows for n, t in found.tables.items()} == {
        n: t.rows for n, t in WHOLE.tables.items()
    }


def test_one_table_is_missing_and_only_one_with_rows() -> None:
    found = inventory(TWINS["missing table"])
    (gone,) = WHOLE.tables.keys() - found.tables.keys()
    assert WHOLE.tables[gone].rows > 0


def test_every_sort_of_sequence_can_be_swapped() -> None:
    for before, after in (
        ("7, true", (6, True)),
        ("1, true", (1, False)),
        ("1, false", (1, True)),
        ("-3, true", (-3, False)),
    ):
        entry = next(e for e in SAMPLE.entries if e.kind == "SEQUENCE SET")
        changed = with_definition(entry, f"SELECT pg_catalog.setval('public.s', {before});")
        others = tuple(changed if e is entry else e for e in SAMPLE.entries)
        twin = {t.name: t for t in damaged(Sample(SAMPLE.head, others, SAMPLE.rows))}[
            "swapped sequence"
        ]
        value = inventory(twin).sequences["public.s"]
        assert (value.value, value.is_called) == after


def test_what_cannot_be_damaged_says_why() -> None:
    entries = tuple(e for e in SAMPLE.entries if e.kind not in ("SEQUENCE SET", "TABLE DATA"))
    bare = {twin.name: twin for twin in damaged(Sample(SAMPLE.head, entries, {}))}
    for name in ("flipped byte", "older data", "no rows", "missing table", "swapped sequence"):
        assert bare[name].content is None and bare[name].why_not
