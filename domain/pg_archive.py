"""Reads PostgreSQL's custom archive format while it passes, and says what is in it.

``pg_dump -Fc -Z0`` writes, in this order: a header, a table of contents (TOC) with the SQL of
every object, and one block of data for each table. The layout is that of
``src/bin/pg_dump/pg_backup_archiver.c`` and ``pg_backup_custom.c``, versions 1.14 (PostgreSQL 12
to 15), 1.15 (16) and 1.16 (17 and 18)::

    integer = sign byte, then ``integer size`` bytes, little end first
    string  = integer length (negative: NULL), then the bytes
    block   = type byte (1 table, 3 large objects), integer entry, chunks, integer 0
    chunk   = integer length, then the bytes

Hashing costs the database nothing: the bytes are on their way to the store anyhow. In the usual
archive each row of COPY text is one chunk. That text holds no NUL, so ``newline, NUL, four bytes``
ends each row and nothing else, and one regular expression splits a block faster than a loop over
its rows could; the lengths that it passed over are then compared with what it found. Archives
whose chunks are not rows take the slow way, which follows the lengths alone.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice

import numpy as np
import xxhash
from numpy.typing import NDArray

from domain.errors import Failed
from domain.pg_inventory import (
    Inventory,
    LargeObjects,
    SequenceValue,
    TableData,
    major_version,
    readable,
    sql_name,
)

VERSIONS = ((1, 14), (1, 15), (1, 16))
_CUSTOM = 1
_TABLE, _LARGE_OBJECTS = 1, 3
_BETWEEN_ROWS = re.compile(rb"\n\x00[\s\S]{4}")
_NO_MORE_ROWS = b"\n\x00\x00\x00\x00\x00"
_END_MARK = b"\\."
_END_TEXT = _END_MARK + b"\n\n"  # its chunk, without the last newline
_END_MARK_HASH = xxhash.xxh3_128_intdigest(_END_MARK)
_LONG_ROW_BYTES = 1 << 20
_WINDOW_BYTES = 1 << 17  # rows that are split at once: what stays in the processor's cache
_LONGEST_TEXT_BYTES = 1 << 26
_MODULUS = 1 << 128
_POSITION_NOT_SET, _POSITION_SET, _NO_DATA = 1, 2, 3

# Of the archive itself or of the machine it was made on, not of what was saved.
_NOT_DEFINITIONS = frozenset(
    {
        "ENCODING", "STDSTRINGS", "SEARCHPATH", "DATABASE", "DATABASE PROPERTIES", "EXTENSION",
        "TABLE DATA", "SEQUENCE SET", "BLOB", "BLOBS", "BLOB METADATA", "STATISTICS DATA",
    }
)  # fmt: skip
_SETVAL = re.compile(r"setval\('(?:[^']|'')*', (-?\d+), (true|false)\)")

_Steps = Generator[None, None, None]


@dataclass(frozen=True)
class Entry:
    """One object of the table of contents.

    Attributes:
        raw: its bytes, with no position of its data.
        needs: numbers of the entries that must be restored before it.
    """

    number: int
    has_data: bool
    kind: str
    tag: str
    namespace: str | None
    definition: str
    copy: str
    owner: str
    needs: tuple[int, ...]
    raw: bytes

    @property
    def name(self) -> str:
        return sql_name(self.namespace, self.tag)


@dataclass(frozen=True)
class Sample:
    """An archive with the first rows of each table: small, whole, and restorable.

    Attributes:
        head: the bytes before the number of entries.
        rows: the rows of each entry with data, without the newline that ends them.
    """

    head: bytes
    entries: tuple[Entry, ...]
    rows: dict[int, tuple[bytes, ...]]

    def to_bytes(self, *, blocks: int | None = None) -> bytes:
        """As pg_dump would have written it.

        Args:
            blocks: end after so many blocks of data; a negative number leaves out the last ones.
        """
        toc = [self.head, _integer(len(self.entries)), *(entry.raw for entry in self.entries)]
        data = [self._block(entry) for entry in self.entries if entry.has_data]
        return b"".join([*toc, *data[:blocks]])

    def _block(self, entry: Entry) -> bytes:
        texts = [row + b"\n" for row in self.rows[entry.number]] + [_END_TEXT + b"\n"]
        chunks = [_integer(len(text)) + text for text in texts]
        return b"".join([bytes([_TABLE]), _integer(entry.number), *chunks, _integer(0)])


def with_definition(entry: Entry, definition: str) -> Entry:
    """The same entry with other SQL."""
    raw = entry.raw.replace(_text(entry.definition), _text(definition), 1)
    return replace(entry, definition=definition, raw=raw)


class ArchiveReader:
    """Takes an archive in pieces of any size and ends with its inventory.

    Memory holds the table of contents and at most one piece with one row of a megabyte, however
    large the archive. One that is damaged or of an unknown kind raises; it never gives an
    inventory that is only empty.

    Args:
        rows: look at each row. Without, a table has only the hash of its bytes as they lie in the
            archive, which costs next to nothing and says as much about the archive itself; what
            a restored copy must have is then learned by reading that archive again.
        sample_rows: rows of each table to keep for ``sample``.
        sample_bytes: what these may weigh together for each table.
    """

    def __init__(
        self, *, rows: bool = True, sample_rows: int = 0, sample_bytes: int = 1 << 16
    ) -> None:
        self._looks_at_rows = rows or sample_rows > 0
        self._raw = xxhash.xxh3_128()  # of the data of one table
        self._pieces: list[bytes] = []
        self._held = 0  # bytes in the pieces that are not in the buffer yet
        self._buffer, self._at = b"", 0
        self._needed = 0
        self._taken = 0  # bytes of all buffers before this one
        self._contents = xxhash.xxh3_128()  # of everything before the data
        self._in_contents = True
        self._may_end = False
        self._error: Failed | None = None
        self._rows_are_chunks = True
        self._sample_rows, self._sample_bytes = sample_rows, sample_bytes
        self._version, self._server, self._dump = (0, 0), "", ""
        self._offset_bytes = 8
        self._head = b""
        self._entries: list[Entry] = []
        self._waiting: dict[int, Entry] = {}
        self._tables: dict[str, TableData] = {}
        self._sampled: dict[int, tuple[bytes, ...]] = {}
        self._objects, self._objects_sum = 0, 0
        self._steps = self._archive()
        next(self._steps)

    def feed(self, data: bytes) -> None:
        """The next bytes of the archive.

        Raises:
            Failed: SLP122, what these bytes say cannot be.
        """
        if self._error is not None:
            raise self._error
        if not data:
            return
        self._pieces.append(data)
        self._held += len(data)
        if len(self._buffer) - self._at + self._held < self._needed:
            return  # joined only once there is enough, so that a long text is not copied often
        self._taken += self._at
        self._buffer = b"".join([self._buffer[self._at :], *self._pieces])
        self._at, self._held = 0, 0
        self._pieces.clear()
        try:
            next(self._steps)
        except Failed as error:
            self._error = error
            raise

    def close(self) -> Inventory:
        """What was in the archive, which is at its end.

        Raises:
            Failed: SLP122, it is cut short, or lacks data that its table of contents names.
        """
        if self._error is not None:
            raise self._error
        seen = self._taken + len(self._buffer) + self._held
        if not seen:
            raise _broken("it is empty")
        if not self._may_end or self._at < len(self._buffer):
            raise _broken(f"it ends after {seen} bytes in the middle of what it was saying")
        if self._waiting:
            missing = ", ".join(sorted(entry.name for entry in self._waiting.values())[:5])
            raise _broken(f"it ends after {seen} bytes, without the data of {missing}")
        return self._inventory()

    def sample(self) -> Sample:
        """The small copy, after ``close``: what must be able to be restored without the rest.

        Foreign keys are left out, since the first rows of one table may refer to later ones of
        another; materialised views stay empty, since they may want rows that are not there; and
        there are no large objects.
        """
        left_out = {
            "FK CONSTRAINT", "MATERIALIZED VIEW DATA",
            "BLOB", "BLOBS", "BLOB METADATA", "BLOB COMMENTS",
        }  # fmt: skip
        entries = tuple(
            entry
            for entry in self._entries
            if entry.kind not in left_out and not entry.tag.startswith("LARGE OBJECT")
        )
        return Sample(self._head, entries, self._sampled)

    @property
    def dump_major(self) -> int:
        """Major version of the pg_dump that wrote it; 0 before the header was read."""
        return major_version(self._dump)

    # Bytes

    def _fill(self, size: int) -> _Steps:
        """Go on once ``size`` bytes are there."""
        while len(self._buffer) - self._at < size:
            self._needed = size
            yield
        self._needed = 0

    def _bytes(self, size: int) -> Generator[None, None, bytes]:
        yield from self._fill(size)
        start, self._at = self._at, self._at + size
        taken = self._buffer[start : self._at]
        if self._in_contents:
            self._contents.update(taken)
        return taken

    def _byte(self) -> Generator[None, None, int]:
        return (yield from self._bytes(1))[0]

    def _integer(self) -> Generator[None, None, int]:
        raw = yield from self._bytes(5)
        if raw[0] > 1:
            raise self._cannot_be(f"a number's sign is {raw[0]}")
        value = int.from_bytes(raw[1:], "little")
        return -value if raw[0] else value

    def _text(self) -> Generator[None, None, str | None]:
        size = yield from self._integer()
        if size < 0:
            return None
        if size > _LONGEST_TEXT_BYTES:
            raise self._cannot_be(f"a text of {size} bytes")
        raw = yield from self._bytes(size)
        # Any server encoding: what is not UTF-8 must only be told apart.
        return raw.decode("utf-8", "surrogateescape")

    def _cannot_be(self, what: str) -> Failed:
        return _broken(f"{what} at byte {self._taken + self._at} cannot be")

    # Structure

    def _archive(self) -> _Steps:
        yield from self._header()
        count = yield from self._integer()
        if count < 0:
            raise self._cannot_be(f"{count} entries")
        for _ in range(count):
            entry = yield from self._entry()
            self._entries.append(entry)
            if entry.has_data:
                if entry.number in self._waiting:
                    raise self._cannot_be(f"a second entry {entry.number}")
                self._waiting[entry.number] = entry
        self._in_contents = False
        while True:
            self._may_end = True
            yield from self._fill(1)
            self._may_end = False
            yield from self._block()

    def _header(self) -> _Steps:
        magic = yield from self._bytes(5)
        if magic != b"PGDMP":
            raise _broken("it does not begin as an archive in PostgreSQL's custom format does")
        version = yield from self._bytes(3)
        self._version = version[0], version[1]
        if self._version not in VERSIONS:
            known = ", ".join(f"{a}.{b}" for a, b in VERSIONS)
            raise _broken(f"its format is version {version[0]}.{version[1]}, known are {known}")
        integer_bytes, self._offset_bytes, kind = yield from self._bytes(3)
        if integer_bytes != 4 or self._offset_bytes not in (4, 8) or kind != _CUSTOM:
            raise self._cannot_be("a header of such sizes and such a kind")
        head = [magic, version, bytes([integer_bytes, self._offset_bytes, kind])]
        if self._version >= (1, 15):
            compression = yield from self._byte()
            head.append(bytes([compression]))
        else:
            compression = yield from self._integer()
            head.append(_integer(compression))
        if compression != 0:
            raise _broken("its data is compressed; Slipway hashes what `pg_dump -Fc -Z0` writes")
        for _ in range(7):  # seconds to years and summer time, as the dumping machine saw them
            head.append(_integer((yield from self._integer())))
        for name in ("database", "server", "dump"):
            said = yield from self._text()
            head.append(_text(said))
            if name == "server":
                self._server = said or ""
            elif name == "dump":
                self._dump = said or ""
        self._head = b"".join(head)

    def _entry(self) -> Generator[None, None, Entry]:
        """Read as WriteToc writes; each field is written again without the data's position."""
        number = yield from self._integer()
        has_data = yield from self._integer()
        catalogue, oid, tag, kind = yield from self._texts(4)
        section = yield from self._integer()
        texts = yield from self._texts(6)
        definition, _drop, copy, namespace, _space, _method = texts
        raw = [_integer(number), _integer(has_data)]
        raw += [_text(one) for one in (catalogue, oid, tag, kind)]
        raw += [_integer(section), *(_text(one) for one in texts)]
        if self._version >= (1, 16):
            raw.append(_integer((yield from self._integer())))
        owner, with_oids = yield from self._texts(2)
        raw += [_text(owner), _text(with_oids)]
        needs: list[str] = []
        while (need := (yield from self._text())) is not None:
            needs.append(need)
        raw += [*map(_text, needs), _text(None)]
        flag = yield from self._byte()
        yield from self._bytes(self._offset_bytes)
        if (
            number < 1 or has_data not in (0, 1) or not kind or tag is None
            or flag not in (_POSITION_NOT_SET, _POSITION_SET, _NO_DATA)
            or not all(need.isascii() and need.isdigit() for need in needs)
        ):  # fmt: skip
            raise self._cannot_be(f"the entry {number} ({kind} {tag}) before it")
        flag = _POSITION_NOT_SET if has_data else _NO_DATA
        raw.append(bytes([flag]) + bytes(self._offset_bytes))
        return Entry(
            number=number, has_data=bool(has_data), kind=kind, tag=tag, namespace=namespace or None,
            definition=definition or "", copy=copy or "", owner=owner or "",
            needs=tuple(map(int, needs)), raw=b"".join(raw),
        )  # fmt: skip

    def _texts(self, count: int) -> Generator[None, None, list[str | None]]:
        found = []
        for _ in range(count):
            found.append((yield from self._text()))
        return found

    def _block(self) -> _Steps:
        kind = yield from self._byte()
        number = yield from self._integer()
        entry = self._waiting.pop(number, None)
        if entry is None:
            raise self._cannot_be(f"data of entry {number}, which has none left,")
        if kind == _TABLE and entry.kind == "TABLE DATA":
            if not entry.copy.startswith("COPY "):
                raise _broken(
                    f"{entry.name} was dumped as INSERT statements, which cannot be hashed"
                )
            yield from self._table(entry)
        elif kind == _LARGE_OBJECTS and entry.kind in ("BLOBS", "BLOB"):
            yield from self._large_objects()
        else:
            raise self._cannot_be(f"a block of type {kind} for {entry.kind} {entry.name}")

    def _table(self, entry: Entry) -> _Steps:
        self._raw.reset()
        if not self._looks_at_rows:
            yield from self._skip_rows()
            self._tables[entry.name] = TableData(
                raw=self._raw.hexdigest(), columns=_columns(entry.copy)
            )
            return
        rows = _Rows(self._sample_rows, self._sample_bytes)
        while (length := (yield from self._chunk_length())) > 0:
            if self._rows_are_chunks and length < _LONG_ROW_BYTES and rows.between:
                yield from self._fill(5 + length + 5)  # with the header of the chunk after it
                if self._split(length, rows):
                    continue
            self._consume(5)
            yield from self._chunk(length, rows)
        self._consume(5)
        if not rows.ended:
            raise self._cannot_be(f"the end of {entry.name} without its end mark")
        self._tables[entry.name] = TableData(
            rows=rows.count,
            digest=f"{rows.sum % _MODULUS:032x}",
            raw=self._raw.hexdigest(),
            columns=_columns(entry.copy),
        )
        if self._sample_rows:
            self._sampled[entry.number] = tuple(rows.first)

    def _skip_rows(self) -> _Steps:
        """To the end of a table's data: a newline and a chunk of no length, and nothing else.

        COPY text has no NUL, and the four bytes of a length that is not nothing are never all 0.
        """
        overlap = len(_NO_MORE_ROWS) - 1
        while True:
            yield from self._fill(len(_NO_MORE_ROWS))
            end = self._buffer.find(_NO_MORE_ROWS, self._at)
            if end >= 0:
                self._consume(end + len(_NO_MORE_ROWS) - self._at)
                return
            self._consume(len(self._buffer) - self._at - overlap)

    def _consume(self, count: int) -> None:
        """Pass over data of a table."""
        self._raw.update(memoryview(self._buffer)[self._at : self._at + count])
        self._at += count

    def _chunk_length(self) -> Generator[None, None, int]:
        """Of the chunk whose header is next; the header stays where it is."""
        yield from self._fill(5)
        if self._buffer[self._at]:
            raise self._cannot_be("a chunk of negative length")
        return int.from_bytes(self._buffer[self._at + 1 : self._at + 5], "little")

    def _split(self, length: int, rows: _Rows) -> bool:
        """Take the whole rows of the next piece of the buffer, the first of ``length`` bytes.

        Returns:
            Whether each was a chunk of its own. If not, nothing is taken.
        """
        start = self._at + 5
        stop = start + max(length + 5, _WINDOW_BYTES)
        end = self._buffer.find(_NO_MORE_ROWS, self._at, stop)
        text = self._buffer[start : end + len(_NO_MORE_ROWS) if end >= 0 else stop]
        found = _BETWEEN_ROWS.split(text)
        rest = found.pop()
        counted = np.fromiter(map(len, found), np.int64, len(found)) + 1
        heads = np.cumsum(counted + 5) - 4  # where the length after each row is
        # Every four bytes of the text as a number, at any position, and nothing is copied.
        numbers = np.ndarray((len(text) - 3,), "<u4", buffer=text, strides=(1,))
        said = numbers[heads[:-1]]
        if not (
            found
            and counted[0] == length
            and np.array_equal(said, counted[1:])
            and _one_line_each(found, text.count(b"\n", 0, int(heads[-1])), said)
        ):
            self._rows_are_chunks = False
            return False
        # The header of the rest may be that of the table's end.
        self._consume(start + len(text) - len(rest) - 5 - self._at)
        rows.add_whole(found)
        return True

    def _chunk(self, length: int, rows: _Rows) -> _Steps:
        while length:
            yield from self._fill(1)
            piece = self._buffer[self._at : self._at + length]
            self._consume(len(piece))
            length -= len(piece)
            if not rows.add(piece):
                raise self._cannot_be("data after the end mark of a table")

    def _large_objects(self) -> _Steps:
        while (oid := (yield from self._integer())) != 0:
            hasher = xxhash.xxh3_128(oid.to_bytes(8, "little", signed=True))
            while (length := (yield from self._chunk_length())) > 0:
                self._at += 5
                while length:
                    yield from self._fill(1)
                    piece = self._buffer[self._at : self._at + length]
                    self._at += len(piece)
                    length -= len(piece)
                    hasher.update(piece)
            self._at += 5
            self._objects += 1
            self._objects_sum += hasher.intdigest()

    # Result

    def _inventory(self) -> Inventory:
        definitions: defaultdict[str, defaultdict[str, int]] = defaultdict(lambda: defaultdict(int))
        sequences: dict[str, SequenceValue] = {}
        for entry in self._entries:
            if entry.kind == "SEQUENCE SET":
                found = _SETVAL.search(entry.definition)
                if found is None:
                    raise _broken(f"the value of sequence {entry.name} cannot be read")
                sequences[entry.name] = SequenceValue(
                    value=int(found[1]), is_called=found[2] == "true"
                )
            elif entry.kind not in _NOT_DEFINITIONS and not _is_of_database(entry):
                # A sum, since operators of one name share their tag.
                text = entry.definition.encode("utf-8", "surrogateescape")
                definitions[entry.kind][entry.name] += xxhash.xxh3_128_intdigest(text)
        return Inventory(
            archive_version=f"{self._version[0]}.{self._version[1]}",
            server_version=self._server,
            dump_version=self._dump,
            tables=self._tables,
            sequences=sequences,
            extensions={readable(e.tag): None for e in self._entries if e.kind == "EXTENSION"},
            definitions={
                kind: {name: f"{value % _MODULUS:032x}" for name, value in names.items()}
                for kind, names in definitions.items()
            },
            encoding=self._encoding(),
            contents=self._contents.hexdigest(),
            large_objects=LargeObjects(
                count=self._objects, digest=f"{self._objects_sum % _MODULUS:032x}"
            ),
            roles=tuple(sorted({readable(entry.owner) for entry in self._entries if entry.owner})),
        )

    def _encoding(self) -> str:
        for entry in self._entries:
            found = re.search(r"client_encoding = '(\w+)'", entry.definition)
            if entry.kind == "ENCODING" and found:
                return found[1]
        raise _broken("it does not say in which encoding its text is")


@dataclass
class _Rows:
    """The rows of one table so far."""

    sample_rows: int
    sample_bytes: int
    count: int = 0
    sum: int = 0
    ended: bool = False
    first: list[bytes] = field(default_factory=list)
    _open: xxhash.xxh3_128 | None = None  # a row whose end has not come

    @property
    def between(self) -> bool:
        """Whether the next byte begins a row."""
        return self._open is None and not self.ended

    def add_whole(self, rows: list[bytes]) -> None:
        """Rows that were chunks of their own; the end mark is the last of them."""
        if rows[-1] == _END_TEXT:
            self.ended = True
            rows.pop()
        self._count(rows)

    def add(self, piece: bytes) -> bool:
        """Text that may begin and end in the middle of a row; False when it cannot be there."""
        *whole, rest = piece.split(b"\n")
        if whole and self._open is not None:
            self._open.update(whole.pop(0))
            hashed, self._open = self._open.intdigest(), None
            if self.ended:
                return False
            if hashed == _END_MARK_HASH:
                self.ended = True
            else:
                self.count, self.sum = self.count + 1, self.sum + hashed
        if not self.ended and _END_MARK in whole:
            end = whole.index(_END_MARK)
            whole, after = whole[:end], whole[end + 1 :]
            self._count(whole)
            self.ended = True
        elif self.ended:
            after = whole
        else:
            after = []
            self._count(whole)
        if self.ended and (any(after) or rest):
            return False
        if rest:
            self._open = self._open or xxhash.xxh3_128()
            self._open.update(rest)
        return True

    def _count(self, rows: list[bytes]) -> None:
        self.count += len(rows)
        # Quarters of the hashes, summed apart: twice as fast as sums of Python's long integers.
        hashes = np.frombuffer(b"".join(map(xxhash.xxh3_128_digest, rows)), ">u4").reshape(-1, 4)
        a, b, c, d = map(int, hashes.sum(axis=0, dtype=np.uint64))
        self.sum += (a << 96) + (b << 64) + (c << 32) + d
        self._keep(rows)

    def _keep(self, rows: Sequence[bytes]) -> None:
        for row in islice(rows, max(0, self.sample_rows - len(self.first))):
            if len(row) > self.sample_bytes:
                break
            self.sample_bytes -= len(row)
            self.first.append(row)


def _is_of_database(entry: Entry) -> bool:
    """Grants and comments of the database itself, which no restore into another one makes."""
    return entry.tag.startswith("DATABASE ") and entry.namespace is None


def digest_of_rows(lines: Iterable[bytes], columns: str) -> TableData:
    """The digest of a table from its COPY text.

    Args:
        lines: pieces of it, which may end in the middle of a row.
    """
    rows = _Rows(0, 0)
    for line in lines:
        rows.add(line)
    return TableData(rows=rows.count, digest=f"{rows.sum % _MODULUS:032x}", columns=columns)


def _one_line_each(found: list[bytes], newlines: int, lengths: NDArray[np.uint32]) -> bool:
    """Whether each text is one row, and none holds several or is a part of the end mark.

    Args:
        newlines: those in the texts, in the newline that ends each, and in the lengths between.
    """
    in_lengths = int(np.count_nonzero(lengths.view(np.uint8) == ord("\n")))
    of_end = 2 if found[-1] == _END_TEXT else 0
    return newlines - in_lengths == len(found) + of_end and _END_MARK not in found[-3:]


def _columns(copy: str) -> str:
    """``COPY shop.person (id, name) FROM stdin;`` -> ``(id, name)``."""
    found = re.search(r"(\(.*\))\s+FROM stdin;\s*$", copy, re.S)
    return readable(found[1]) if found else ""


def _integer(value: int) -> bytes:
    return bytes([value < 0]) + abs(value).to_bytes(4, "little")


def _text(value: str | None) -> bytes:
    if value is None:
        return _integer(-1)
    raw = value.encode("utf-8", "surrogateescape")
    return _integer(len(raw)) + raw


def _broken(what: str) -> Failed:
    return Failed(
        "SLP122",
        f"this is no whole PostgreSQL archive: {what}",
        help="use another copy of this recovery point, or another point",
    )
