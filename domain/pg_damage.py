"""Damaged twins of an archive: what a verifier must refuse, or it proves nothing.

Each twin is made from the sample of the archive at hand (``ArchiveReader.sample``: its schema
with the first rows of each table), so that it is small enough to be tried each night, and of the
very database whose backups are trusted to the verifier. A twin that passes is a fault of the
verifier, and an alarm.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace

from domain.pg_archive import Entry, Sample, with_definition
from domain.pg_inventory import DifferenceKind

BROKEN, NOT_RESTORED = "SLP122", "SLP124"
_SETVAL = re.compile(r"(setval\('(?:[^']|'')*', )(-?\d+), (true|false)\)")
_HEARTBEAT = "slipway.heartbeat"


@dataclass(frozen=True)
class Twin:
    """One damaged archive.

    Attributes:
        content: None when this database has nothing to damage so; ``why_not`` says what is missing.
        reasons: kinds of difference, or codes of errors; a verifier that refuses it for another
            one has not understood it.
        at_restore: the damage lets the archive be read, so it must be found in what was restored.
    """

    name: str
    content: bytes | None
    reasons: frozenset[str]
    at_restore: bool
    why_not: str = ""


def damaged(sample: Sample) -> tuple[Twin, ...]:
    """The twins of a sample. Pure: the same sample gives the same twins."""
    whole = sample.to_bytes()
    return (
        Twin("empty file", b"", frozenset({BROKEN}), at_restore=False),
        Twin("truncated", whole[: len(whole) * 3 // 5], frozenset({BROKEN}), at_restore=False),
        Twin(
            "without its last table",
            sample.to_bytes(blocks=-1),
            frozenset({BROKEN}),
            at_restore=False,
        ),
        _twin("flipped byte", sample, _flipped, DifferenceKind.CONTENT, NOT_RESTORED),
        _twin("older data", sample, _older, DifferenceKind.ROWS),
        _twin("no rows", sample, _emptied, DifferenceKind.ROWS),
        _twin("missing table", sample, _without_table, DifferenceKind.MISSING_TABLE),
        _twin("swapped sequence", sample, _other_sequence, DifferenceKind.SEQUENCE),
    )


def _twin(
    name: str, sample: Sample, damage: Callable[[Sample], Sample | str], *reasons: str
) -> Twin:
    made = damage(sample)
    if isinstance(made, str):
        return Twin(name, None, frozenset(reasons), at_restore=True, why_not=made)
    return Twin(name, made.to_bytes(), frozenset(reasons), at_restore=True)


def _flipped(sample: Sample) -> Sample | str:
    """Another letter or digit in the last row of a table: restores, and counts right (T2)."""
    for entry in _with_rows(sample):
        *before, row = sample.rows[entry.number]
        for found in reversed(list(re.finditer(rb"[0-9A-Za-z]", row))):
            at, byte = found.start(), row[found.start()]
            if row[at - 1 : at] == b"\\":
                continue  # a part of \N or of an escape, which another letter would break
            other = byte - 1 if chr(byte) in "9zZ" else byte + 1
            flipped = row[:at] + bytes([other]) + row[at + 1 :]
            return replace(sample, rows={**sample.rows, entry.number: (*before, flipped)})
    return "no table has a letter or a digit"


def _older(sample: Sample) -> Sample | str:
    if not _with_rows(sample):
        return "no table has a row"
    return replace(sample, rows={number: rows[:-1] for number, rows in sample.rows.items()})


def _emptied(sample: Sample) -> Sample | str:
    if not _with_rows(sample):
        return "no table has a row"
    return replace(sample, rows={number: () for number in sample.rows})


def _without_table(sample: Sample) -> Sample | str:
    """One table less, with all that needs it: the one that fewest need."""
    choices = [_needing(sample, entry) for entry in sample.entries if entry.kind == "TABLE DATA"]
    if not choices:
        return "no table has data"
    gone = min(choices, key=lambda numbers: (not _has_rows(sample, numbers), len(numbers)))
    return replace(sample, entries=tuple(e for e in sample.entries if e.number not in gone))


def _has_rows(sample: Sample, numbers: frozenset[int]) -> bool:
    return any(sample.rows.get(number) for number in numbers)


def _needing(sample: Sample, data: Entry) -> frozenset[int]:
    """The table of this data and everything that needs it, however indirectly."""
    gone = {data.number} | {
        entry.number
        for entry in sample.entries
        if entry.kind == "TABLE" and entry.name == data.name
    }
    while True:
        more = {e.number for e in sample.entries if gone & set(e.needs)} - gone
        if not more:
            return frozenset(gone)
        gone |= more


def _other_sequence(sample: Sample) -> Sample | str:
    for entry in sample.entries:
        if entry.kind == "SEQUENCE SET" and (found := _SETVAL.search(entry.definition)):
            value = int(found[2])
            other = f"{value - 1}, true" if value > 1 else f"{value}, {_not(found[3])}"
            text = entry.definition.replace(found[0], f"{found[1]}{other})")
            changed = with_definition(entry, text)
            return replace(
                sample, entries=tuple(changed if e is entry else e for e in sample.entries)
            )
    return "the database has no sequence"


def _not(word: str) -> str:
    return "false" if word == "true" else "true"


def _with_rows(sample: Sample) -> list[Entry]:
    """Entries with rows: the heartbeat first, which has no rule that a damaged row could break."""
    found = [e for e in sample.entries if e.has_data and sample.rows.get(e.number)]
    return sorted(found, key=lambda e: (e.name != _HEARTBEAT, -len(sample.rows[e.number])))
