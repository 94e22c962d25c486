"""How a restored copy differs from what was saved, each difference with its sentence."""

from __future__ import annotations

from typing import Any

import pytest

from domain.pg_inventory import (
    Difference,
    DifferenceKind,
    Inventory,
    LargeObjects,
    SequenceValue,
    TableData,
    archive_differences,
    difference,
    same_columns,
    sql_name,
    told,
)

ONE, TWO = "1" * 32, "2" * 32
SAVED = Inventory(
    archive_version="1.16",
    server_version="18.4",
    dump_version="18.4",
    encoding="UTF8",
    contents=ONE,
    tables={"public.a": TableData(rows=12, digest=ONE, columns="(x, y)")},
    sequences={"public.s": SequenceValue(value=100, is_called=True)},
    extensions={"vector": "0.8.5"},
    definitions={"INDEX": {"public.i": ONE}, "ACL": {"public.TABLE a": ONE}},
    large_objects=LargeObjects(count=2, digest=ONE),
)


def changed(**fields: Any) -> Inventory:
    return SAVED.model_copy(update=fields)


def only(found: tuple[Difference, ...]) -> Difference:
    (one,) = found
    return one


def test_the_same_is_the_same_also_after_json() -> None:
    assert difference(SAVED, Inventory.model_validate_json(SAVED.model_dump_json())) == ()


TABLE = SAVED.tables["public.a"]


@pytest.mark.parametrize(
    ("found", "kind", "sentence"),
    [
        (changed(tables={}), "missing table", "table public.a is missing, with 12 rows"),
        (
            changed(tables={"public.a": TableData(rows=10, digest=ONE, columns="(x, y)")}),
            "rows",
            "table public.a has 10 rows, 12 were saved",
        ),
        (
            changed(tables={"public.a": TableData(rows=12, digest=TWO, columns="(x, y)")}),
            "content",
            "table public.a has 12 rows as saved, but their content is not what was saved",
        ),
        (
            changed(tables={"public.a": TableData(rows=12, digest=ONE, columns="(y, x)")}),
            "columns",
            "table public.a has the columns (y, x), saved were (x, y)",
        ),
        (
            changed(sequences={"public.s": SequenceValue(value=99, is_called=True)}),
            "sequence",
            "sequence public.s is behind: it stands at 99, saved was 100, so it would give "
            "numbers twice",
        ),
        (
            changed(sequences={"public.s": SequenceValue(value=100, is_called=False)}),
            "sequence",
            "sequence public.s is behind: it stands at 100 (not used yet), saved was 100, so it "
            "would give numbers twice",
        ),
        (
            changed(sequences={"public.s": SequenceValue(value=101, is_called=True)}),
            "sequence",
            "sequence public.s is ahead: it stands at 101, saved was 100",
        ),
        (changed(sequences={}), "sequence", "sequence public.s is missing, it stood at 100"),
        (changed(extensions={}), "extension", "extension vector is missing"),
        (
            changed(definitions={"ACL": SAVED.definitions["ACL"]}),
            "missing definition",
            "index public.i is missing",
        ),
        (
            changed(definitions={**SAVED.definitions, "INDEX": {"public.i": TWO}}),
            "definition",
            "index public.i is defined otherwise than it was saved",
        ),
        (
            changed(large_objects=LargeObjects(count=1, digest=ONE)),
            "large objects",
            "large objects: 2 were saved, 1 are there",
        ),
        (
            changed(large_objects=LargeObjects(count=2, digest=TWO)),
            "large objects",
            "large objects: the content of the 2 is not what was saved",
        ),
    ],
)
def test_each_difference_has_its_kind_and_its_sentence(
    found: Inventory, kind: str, sentence: str
) -> None:
    one = only(difference(SAVED, found))
    assert (one.kind.value, str(one)) == (kind, sentence)


def test_nothing_compared_is_no_pass() -> None:
    """Sefaria-Project#3637: 0 = 0 for thirty tables, and SUCCESS was printed."""
    nothing = changed(tables={})
    assert only(difference(nothing, nothing)).kind is DifferenceKind.NOTHING_COMPARED


def test_what_was_there_before_is_not_counted_as_restored() -> None:
    """ayunis-core#118: the tables that were there already were counted, and the restore passed."""
    before = changed(tables={**SAVED.tables, "public.old": TABLE})
    assert only(difference(SAVED, before)).kind is DifferenceKind.EXTRA_TABLE


def test_grants_are_compared_only_where_they_were_restored() -> None:
    without = changed(definitions={"INDEX": SAVED.definitions["INDEX"]})
    assert difference(SAVED, without, privileges=False) == ()
    assert str(only(difference(SAVED, without))) == "ACL public.TABLE a is missing"


def test_another_major_version_writes_the_same_object_in_other_words() -> None:
    newer = changed(
        server_version="19.0",
        definitions={**SAVED.definitions, "INDEX": {"public.i": TWO, "public.more": ONE}},
    )
    assert difference(SAVED, newer) == ()
    gone = changed(server_version="19.0", definitions={"ACL": SAVED.definitions["ACL"]})
    assert only(difference(SAVED, gone)).kind is DifferenceKind.MISSING_DEFINITION


def test_an_empty_database_s_archive_is_what_was_recorded() -> None:
    empty = changed(tables={})
    assert archive_differences(empty, empty) == ()
    assert archive_differences(SAVED, empty) != ()


def test_an_archive_with_another_table_of_contents_is_another_archive() -> None:
    """A copy that was dumped again has another one, and is the same all the same."""
    other = changed(contents=TWO)
    assert only(archive_differences(SAVED, other)).kind is DifferenceKind.CONTENTS
    assert difference(SAVED, other) == ()


def test_names_are_written_so_that_no_two_are_alike() -> None:
    names = [("a.b", "c"), ("a", "b.c"), ("a", "b", "c"), ("A", "b"), ("a", "b"), ('a"', "b")]
    assert len({sql_name(*parts) for parts in names}) == len(names)
    assert sql_name(None, "x") == "x" and sql_name("My", 'q"') == '"My"."q"""'


def test_columns_in_another_order_are_the_same_columns() -> None:
    assert same_columns('(a, "b, c", d)', '(d, a, "b, c")')
    assert not same_columns("(a, b)", "(a, c)")


def test_a_long_list_is_cut() -> None:
    many = difference(SAVED, changed(tables={}, sequences={}, extensions={}))
    assert told(many, most=2).endswith("; and 1 more")
