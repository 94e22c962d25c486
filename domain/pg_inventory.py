"""What a PostgreSQL archive holds, and how what was restored differs from it.

The digest of a table is the number of its rows and the sum, modulo 2**128, of the XXH3-128 of
each row's COPY text. A sum does not depend on the order of rows, which a restore may change, and
unlike XOR it is changed by a row that comes twice. XXH3 finds accidents, not adversaries: against
those stands the SHA-256 of the stored archive.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from enum import StrEnum
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]

PRIVILEGES = frozenset({"ACL", "DEFAULT ACL"})
"""Kinds of definition that a restore without roles leaves out."""


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class TableData(_Model):
    """Rows of one table, partition or materialised copy, as they were in the snapshot.

    Attributes:
        rows, digest: whatever their order; None where the archive was read without a look at each.
        raw: of the table's bytes as they lie in the archive; None for what is in no archive.
        columns: the column list of its COPY, which fixes the text that was hashed.
    """

    rows: int | None = Field(None, ge=0)
    digest: Digest | None = None
    raw: Digest | None = None
    columns: str = ""


class SequenceValue(_Model):
    """As ``setval`` takes it: the next number is ``value`` itself when it was never called."""

    value: int
    is_called: bool

    @property
    def next(self) -> tuple[int, bool]:
        return self.value, self.is_called

    def __str__(self) -> str:
        return f"{self.value}{'' if self.is_called else ' (not used yet)'}"


class LargeObjects(_Model):
    count: int = Field(default=0, ge=0)
    digest: Digest = "0" * 32


class Inventory(_Model):
    """All that a restored copy must have again. Names are written as SQL writes them.

    Attributes:
        archive_version: of the format, such as ``1.16``.
        server_version: of the server that was dumped, as its archive says.
        dump_version: of the pg_dump that did it.
        encoding: of the database, and so of the text that was hashed.
        contents: digest of the header and the table of contents, byte by byte; it tells one
            archive from another, and is never the same for a copy that was dumped again.
        extensions: by name; the version is None where only the archive was asked.
        definitions: kind (``INDEX``, ``FUNCTION``, ...) -> name -> digest of its SQL text.
        roles: owners that the archive names; a restore that keeps owners needs them.
    """

    archive_version: str
    server_version: str
    dump_version: str
    encoding: str
    contents: Digest
    tables: Mapping[str, TableData] = {}
    sequences: Mapping[str, SequenceValue] = {}
    extensions: Mapping[str, str | None] = {}
    definitions: Mapping[str, Mapping[str, Digest]] = {}
    large_objects: LargeObjects = LargeObjects()
    roles: tuple[str, ...] = ()

    @property
    def server_major(self) -> int:
        return major_version(self.server_version)

    @property
    def dump_major(self) -> int:
        return major_version(self.dump_version)

    @property
    def rows(self) -> int:
        """Of all tables; 0 where they were not looked at."""
        return sum(table.rows or 0 for table in self.tables.values())


class DifferenceKind(StrEnum):
    NOTHING_COMPARED = "nothing compared"
    MISSING_TABLE = "missing table"
    EXTRA_TABLE = "extra table"
    ROWS = "rows"
    CONTENT = "content"
    COLUMNS = "columns"
    SEQUENCE = "sequence"
    EXTENSION = "extension"
    MISSING_DEFINITION = "missing definition"
    EXTRA_DEFINITION = "extra definition"
    DEFINITION = "definition"
    LARGE_OBJECTS = "large objects"
    CONTENTS = "contents"


class Difference(_Model):
    """One thing that is not as it was saved, and a sentence that says so."""

    kind: DifferenceKind
    name: str
    sentence: str

    def __str__(self) -> str:
        return self.sentence


def difference(
    expected: Inventory, found: Inventory, *, privileges: bool = True
) -> tuple[Difference, ...]:
    """All that ``found`` has otherwise than ``expected``; empty means the same.

    The text of definitions is compared only between servers and pg_dumps of one major version,
    since each writes them in its own way; that a definition is there is compared always.

    Args:
        privileges: whether grants were restored, so that they must be there again.
    """
    return tuple(_differences(expected, found, privileges))


def archive_differences(expected: Inventory, found: Inventory) -> tuple[Difference, ...]:
    """The same between what was recorded of an archive and what is read of it later.

    An archive without a table is what an empty database gives, and is no mistake here.
    """
    found_so = (
        *_raw_tables(expected.tables, found.tables),
        *_apart_from_tables(expected, found, True),
    )
    if found_so or expected.contents == found.contents:
        return found_so
    return (
        Difference(
            kind=DifferenceKind.CONTENTS,
            name="table of contents",
            sentence="the archive's table of contents is not the one that was written",
        ),
    )


def _differences(expected: Inventory, found: Inventory, privileges: bool) -> Iterator[Difference]:
    if not expected.tables:
        # A verifier that compared nothing must not say that all is well (Sefaria-Project#3637).
        yield Difference(
            kind=DifferenceKind.NOTHING_COMPARED,
            name="tables",
            sentence="no table was recorded in the archive, so there is nothing to compare",
        )
    yield from _tables(expected.tables, found.tables)
    yield from _apart_from_tables(expected, found, privileges)


def _apart_from_tables(
    expected: Inventory, found: Inventory, privileges: bool
) -> Iterator[Difference]:
    yield from _sequences(expected.sequences, found.sequences)
    for name in sorted(expected.extensions.keys() - found.extensions.keys()):
        yield Difference(
            kind=DifferenceKind.EXTENSION, name=name, sentence=f"extension {name} is missing"
        )
    if expected.large_objects != found.large_objects:
        was, now = expected.large_objects, found.large_objects
        told = (
            f"{was.count} were saved, {now.count} are there"
            if was.count != now.count
            else f"the content of the {was.count} is not what was saved"
        )
        yield Difference(
            kind=DifferenceKind.LARGE_OBJECTS,
            name="large objects",
            sentence=f"large objects: {told}",
        )
    yield from _definitions(expected, found, privileges)


def _tables(
    expected: Mapping[str, TableData], found: Mapping[str, TableData]
) -> Iterator[Difference]:
    for name in sorted(expected.keys() | found.keys()):
        was, now = expected.get(name), found.get(name)
        if was is None:
            # Counting what was there before as restored hid a restore of nothing (ayunis-core#118).
            kind, told = DifferenceKind.EXTRA_TABLE, "was not in the archive, and is there"
        elif now is None:
            kind, told = DifferenceKind.MISSING_TABLE, _missing(was)
        elif was.rows is None or now.rows is None:
            kind, told = DifferenceKind.NOTHING_COMPARED, "was not looked at row by row"
        elif was.rows != now.rows:
            kind, told = DifferenceKind.ROWS, f"has {now.rows} rows, {was.rows} were saved"
        elif was.columns != now.columns:
            kind = DifferenceKind.COLUMNS
            told = f"has the columns {now.columns or '()'}, saved were {was.columns or '()'}"
        elif was.digest != now.digest:
            kind = DifferenceKind.CONTENT
            told = f"has {now.rows} rows as saved, but their content is not what was saved"
        else:
            continue
        yield Difference(kind=kind, name=name, sentence=f"table {name} {told}")


def _missing(table: TableData) -> str:
    return "is missing" if table.rows is None else f"is missing, with {table.rows} rows"


def _raw_tables(
    expected: Mapping[str, TableData], found: Mapping[str, TableData]
) -> Iterator[Difference]:
    """Of one archive read twice: the rows tell most, and the bytes all."""
    known = all(table.rows is not None for table in (*expected.values(), *found.values()))
    if known:
        yield from _tables(expected, found)
    for name in sorted(expected.keys() | found.keys()):
        was, now = expected.get(name), found.get(name)
        if was is None or now is None:
            if not known:
                kind = DifferenceKind.EXTRA_TABLE if was is None else DifferenceKind.MISSING_TABLE
                told = "was not in the archive, and is there" if was is None else "is missing"
                yield Difference(kind=kind, name=name, sentence=f"table {name} {told}")
        elif (was.raw, was.columns) != (now.raw, now.columns) and (
            not known or (was.rows, was.digest) == (now.rows, now.digest)
        ):
            yield Difference(
                kind=DifferenceKind.CONTENT, name=name,
                sentence=f"table {name} is not stored as it was saved",
            )  # fmt: skip


def _sequences(
    expected: Mapping[str, SequenceValue], found: Mapping[str, SequenceValue]
) -> Iterator[Difference]:
    for name, was in sorted(expected.items()):
        now = found.get(name)
        if now is None:
            told = f"is missing, it stood at {was}"
        elif now == was:
            continue
        elif now.next < was.next:
            told = f"is behind: it stands at {now}, saved was {was}, so it would give numbers twice"
        else:
            told = f"is ahead: it stands at {now}, saved was {was}"
        yield Difference(
            kind=DifferenceKind.SEQUENCE, name=name, sentence=f"sequence {name} {told}"
        )


def _definitions(expected: Inventory, found: Inventory, privileges: bool) -> Iterator[Difference]:
    same_writer = (expected.server_major, expected.dump_major) == (
        found.server_major,
        found.dump_major,
    )
    for kind in sorted(expected.definitions.keys() | found.definitions.keys()):
        if kind in PRIVILEGES and not privileges:
            continue
        was, now = expected.definitions.get(kind, {}), found.definitions.get(kind, {})
        for name in sorted(was.keys() - now.keys()):
            yield Difference(
                kind=DifferenceKind.MISSING_DEFINITION,
                name=name,
                sentence=f"{_spoken(kind)} {name} is missing",
            )
        if not same_writer:
            continue
        for name in sorted(now.keys() - was.keys()):
            yield Difference(
                kind=DifferenceKind.EXTRA_DEFINITION,
                name=name,
                sentence=f"{_spoken(kind)} {name} was not in the archive, and is there",
            )
        for name in sorted(was.keys() & now.keys()):
            if was[name] != now[name]:
                yield Difference(
                    kind=DifferenceKind.DEFINITION,
                    name=name,
                    sentence=f"{_spoken(kind)} {name} is defined otherwise than it was saved",
                )


def _spoken(kind: str) -> str:
    return kind if kind in PRIVILEGES else kind.lower()


def major_version(version: str) -> int:
    """``15.18 (Debian)`` -> 15; 0 for what begins with no number."""
    found = re.match(r"\d+", version)
    return int(found[0]) if found else 0


def sql_name(*parts: str | None) -> str:
    """``shop.person``, ``"my shop"."a.b"``: no two objects are written alike."""
    return ".".join(_identifier(part) for part in parts if part)


def readable(text: str) -> str:
    """Text that JSON can carry: bytes that were no UTF-8 as ``\\xe9``."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _identifier(name: str) -> str:
    name = readable(name)
    if re.fullmatch(r"[a-z_][a-z0-9_$]*", name):
        return name
    return '"' + name.replace('"', '""') + '"'


def same_columns(one: str, other: str) -> bool:
    """Whether two column lists name the same columns, in whatever order."""
    return _column_names(one) == _column_names(other)


def _column_names(columns: str) -> list[str]:
    return sorted(re.findall(r'"(?:[^"]|"")*"|[^\s,()"]+', columns))


def told(differences: Iterable[Difference], most: int = 5) -> str:
    """The first ``most`` of them in one line."""
    sentences = [str(one) for one in differences]
    rest = f"; and {len(sentences) - most} more" if len(sentences) > most else ""
    return "; ".join(sentences[:most]) + rest
