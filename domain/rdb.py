"""Redis database files (RDB): read entry by entry, and written again for one logical database.

The bytes of a value in an RDB are those that ``DUMP`` gives and ``RESTORE`` takes, so one reader
serves a file, a replication stream and single keys. Values are also decoded, because the same
list, set or hash has other bytes on another server (a hash table keeps its own order, a list its
own nodes): only what a client would read can be compared.

Read are RDB versions 1 to 12 with all encodings since Redis 2.6. A value of another type (hashes
whose fields expire, of Redis 7.4) raises: what cannot be read cannot be proved.

The format is that of Redis' own rdb.c, ziplist.c, listpack.c, intset.c and lzf_d.c.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import anycrc

NEWEST_VERSION = 12
CHUNK_BYTES = 1 << 16
LONGEST_STRING_BYTES = 512 << 20
"""Redis' own default limit; a greater length is a damaged file."""

_CRC = anycrc.Model("CRC64-REDIS")
_MAGIC = b"REDIS"

_AUX, _SELECT, _EOF, _EXPIRE_MS = 0xFA, 0xFE, 0xFF, 0xFC
_EXPIRE_SECONDS, _RESIZE, _FREQUENCY, _IDLE = 0xFD, 0xFB, 0xF9, 0xF8
_MODULE_AUX, _FUNCTION, _SLOTS = 0xF7, 0xF5, 0xF4

_MODULE_END, _MODULE_FLOAT, _MODULE_DOUBLE, _MODULE_STRING = 0, 3, 4, 5


class NotRdb(ValueError):
    """The bytes are no whole RDB of a kind that is understood; says what was met."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One key.

    Attributes:
        database: number of its logical database in the file.
        type: RDB's number of the encoding.
        kind: what ``TYPE`` says: string, list, set, hash, zset, stream or module.
        raw: the value as the file has it, which is also the body of a ``DUMP``.
        content: the value without its encoding, in a fixed order.
        expires_ms: Unix time in milliseconds.
    """

    database: int
    key: bytes
    type: int
    kind: str
    raw: bytes
    content: tuple[bytes, ...]
    expires_ms: int | None = None

    @property
    def digest(self) -> int:
        """SHA-256 of key, kind, value and whether it expires; the moment of that is left out."""
        told = hashlib.sha256()
        volatile = b"volatile" if self.expires_ms is not None else b"persistent"
        for part in (self.kind.encode(), volatile, self.key, *self.content):
            told.update(len(part).to_bytes(8, "big"))
            told.update(part)
        return int.from_bytes(told.digest(), "big")


@dataclass(slots=True)
class Header:
    """What an RDB says of itself; complete once its entries were read.

    Attributes:
        version: of the format.
        aux: fields such as ``redis-ver`` and ``ctime`` (Unix seconds of the snapshot).
        left_out: what belongs to the server and to no logical database, by its name.
        checksum: whether the file has one. ``rdbchecksum no`` writes none.
    """

    version: int = 0
    aux: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, int] = field(default_factory=dict)
    checksum: bool = False


class Reader:
    """An RDB under way.

    Args:
        read: up to so many bytes of it, and ``b""`` at the end.
    """

    def __init__(self, read: Callable[[int], bytes]) -> None:
        self._read = read
        self._buffer, self._at, self._summed, self._crc = b"", 0, 0, 0
        self._raw: list[bytes] | None = None
        self.header = Header()

    def entries(self) -> Iterator[Entry]:
        """All keys, in the order of the file; returns only when the whole file was sound.

        Raises:
            NotRdb: it is cut, damaged, or holds what is not understood.
        """
        self._begin()
        database, expires = 0, None
        while (code := self._byte()) != _EOF:
            if code == _SELECT:
                database = self._length()
            elif code == _EXPIRE_MS:
                expires = int.from_bytes(self.take(8), "little")
            elif code == _EXPIRE_SECONDS:
                expires = int.from_bytes(self.take(4), "little") * 1000
            elif code == _FREQUENCY:
                self.take(1)
            elif code == _IDLE:
                self._length()
            elif code >= _SLOTS:
                self._about_the_server(code)
            else:
                yield self._entry(database, code, expires)
                expires = None
        self._end()

    def take(self, size: int) -> bytes:
        """Exactly so many bytes.

        Raises:
            NotRdb: there are fewer.
        """
        if size > LONGEST_STRING_BYTES:
            raise NotRdb(f"a length of {size} bytes is impossible")
        end = self._at + size
        if end > len(self._buffer):
            self._fill(size)
            end = size
        taken = self._buffer[self._at : end]
        self._at = end
        if self._raw is not None:
            self._raw.append(taken)
        return taken

    def expect_nothing(self) -> None:
        """Raises NotRdb when something follows."""
        if self._at < len(self._buffer) or self._read(1):
            raise NotRdb("something follows after its end")

    def _fill(self, size: int) -> None:
        self._sum()
        pieces = [self._buffer[self._at :]]
        have = len(pieces[0])
        while have < size:
            piece = self._read(max(CHUNK_BYTES, min(size - have, 1 << 20)))
            if not piece:
                raise NotRdb("it is cut short")
            pieces.append(piece)
            have += len(piece)
        self._buffer, self._at, self._summed = b"".join(pieces), 0, 0

    def _sum(self) -> None:
        if self._at > self._summed:
            self._crc = _CRC.calc(self._buffer[self._summed : self._at], self._crc)
            self._summed = self._at

    def _begin(self) -> None:
        magic = self.take(9)
        if magic[:5] != _MAGIC or not magic[5:].isdigit():
            raise NotRdb("it does not begin as an RDB does")
        self.header.version = int(magic[5:])
        if not 1 <= self.header.version <= NEWEST_VERSION:
            raise NotRdb(f"RDB version {self.header.version} is not known")

    def _end(self) -> None:
        if self.header.version < 5:
            return
        self._sum()
        computed = self._crc
        said = int.from_bytes(self.take(8), "little")
        self.header.checksum = said != 0
        if said not in (0, computed):
            raise NotRdb("its checksum does not fit its content")

    def _about_the_server(self, code: int) -> None:
        if code == _AUX:
            name, value = self._string(), self._string()
            self.header.aux[_text(name)] = _text(value)
        elif code == _RESIZE:
            self._length(), self._length()
        elif code == _SLOTS:
            self._length(), self._length(), self._length()
        elif code == _FUNCTION:
            self._string()
            self._leave_out("functions")
        elif code == _MODULE_AUX:
            self._length()
            self._module()
            self._leave_out("data of modules")
        else:
            raise NotRdb(f"section {code} is not known")

    def _leave_out(self, name: str) -> None:
        self.header.left_out[name] = self.header.left_out.get(name, 0) + 1

    def _entry(self, database: int, code: int, expires: int | None) -> Entry:
        key = self._string()
        kind, raw, content = self.value(code)
        return Entry(database, key, code, kind, raw, content, expires)

    def value(self, code: int) -> tuple[str, bytes, tuple[bytes, ...]]:
        """Kind, bytes and content of a value of that type.

        Raises:
            NotRdb: its type is not known, or the bytes are not of that type.
        """
        if code not in _VALUES:
            raise NotRdb(f"a value of type {code} is not known")
        kind, decode = _VALUES[code]
        self._raw = []
        try:
            content = decode(self)
            raw = b"".join(self._raw)
        except (IndexError, struct.error, ValueError, OverflowError) as error:
            if isinstance(error, NotRdb):
                raise
            raise NotRdb(f"a {kind} is damaged: {error}") from error
        finally:
            self._raw = None
        return kind, raw, content or (raw,)

    def _byte(self) -> int:
        return self.take(1)[0]

    def _length(self) -> int:
        size, special = self._length_or_special()
        if special:
            raise NotRdb("a string stands where a number should")
        return size

    def _length_or_special(self) -> tuple[int, bool]:
        first = self._byte()
        top = first >> 6
        if top == 0:
            return first, False
        if top == 1:
            return (first & 0x3F) << 8 | self._byte(), False
        if first == 0x80:
            return int.from_bytes(self.take(4), "big"), False
        if first == 0x81:
            return int.from_bytes(self.take(8), "big"), False
        if top == 3:
            return first & 0x3F, True
        raise NotRdb(f"a length begins with {first:#x}")

    def _string(self) -> bytes:
        size, special = self._length_or_special()
        if not special:
            return self.take(size)
        if size < 3:
            return b"%d" % int.from_bytes(self.take(1 << size), "little", signed=True)
        if size == 3:
            packed, plain = self._length(), self._length()
            return _unpacked(self.take(packed), plain)
        raise NotRdb(f"a string of form {size} is not known")

    def _strings(self, count: int) -> list[bytes]:
        return [self._string() for _ in range(count)]

    def _score(self) -> float:
        """As text, before RDB 8."""
        size = self._byte()
        special = {253: "nan", 254: "inf", 255: "-inf"}
        return float(special[size] if size in special else self.take(size))

    def _module(self) -> tuple[bytes, ...]:
        """A value that only its module understands; its pieces can be told apart all the same."""
        while (code := self._length()) != _MODULE_END:
            if code in (_MODULE_FLOAT, _MODULE_DOUBLE):
                self.take(4 if code == _MODULE_FLOAT else 8)
            elif code == _MODULE_STRING:
                self._string()
            elif code in (1, 2):
                self._length()
            else:
                raise NotRdb(f"a piece {code} of a module's value is not known")
        return ()

    def _stream(self, form: int) -> tuple[bytes, ...]:
        """Its entries, groups and pending entries; not when a consumer was last seen."""
        said = self._strings(2 * self._length())
        said += [b"%d" % self._length() for _ in range(3)]  # how many, and the last ID
        if form >= 2:
            for _ in range(5):  # first and greatest deleted ID, and how many ever
                self._length()
        for _ in range(self._length()):
            said += [b"group", self._string(), b"%d-%d" % (self._length(), self._length())]
            if form >= 2:
                self._length()
            for _ in range(self._length()):
                said += [self.take(16), self.take(8), b"%d" % self._length()]
            for _ in range(self._length()):
                said += [b"consumer", self._string()]
                self.take(8 if form < 3 else 16)
                said += [self.take(16) for _ in range(self._length())]
        return tuple(said)

    def _nodes(self, form: int) -> tuple[bytes, ...]:
        """A list in nodes: packed ones, and since form 2 also single long elements."""
        found: list[bytes] = []
        for _ in range(self._length()):
            if form == 1:
                found += _ziplist(self._string())
            elif (container := self._length()) == 2:
                found += _listpack(self._string())
            elif container == 1:
                found.append(self._string())
            else:
                raise NotRdb(f"a node of a list has form {container}")
        return tuple(found)


_Decode = Callable[[Reader], tuple[bytes, ...]]


def _text(value: bytes) -> str:
    return value.decode("utf-8", "replace")


def _pairs(flat: list[bytes]) -> tuple[bytes, ...]:
    if len(flat) % 2:
        raise NotRdb("a field has no value")
    return tuple(part for pair in sorted(zip(flat[::2], flat[1::2], strict=True)) for part in pair)


def _scored(flat: list[bytes]) -> tuple[bytes, ...]:
    """Members with their scores as text."""
    scores = [struct.pack(">d", float(score)) for score in flat[1::2]]
    return _pairs([part for pair in zip(flat[::2], scores, strict=True) for part in pair])


def _zset(reader: Reader, score: Callable[[Reader], float]) -> tuple[bytes, ...]:
    flat = []
    for _ in range(reader._length()):
        flat += [reader._string(), struct.pack(">d", score(reader))]
    return _pairs(flat)


def _binary_score(reader: Reader) -> float:
    return float(struct.unpack("<d", reader.take(8))[0])


def _set(elements: list[bytes]) -> tuple[bytes, ...]:
    return tuple(sorted(elements))


_VALUES: dict[int, tuple[str, _Decode]] = {
    0: ("string", lambda r: (r._string(),)),
    1: ("list", lambda r: tuple(r._strings(r._length()))),
    2: ("set", lambda r: _set(r._strings(r._length()))),
    3: ("zset", lambda r: _zset(r, Reader._score)),
    4: ("hash", lambda r: _pairs(r._strings(2 * r._length()))),
    5: ("zset", lambda r: _zset(r, _binary_score)),
    7: ("module", lambda r: (r._length(), r._module())[1]),
    10: ("list", lambda r: tuple(_ziplist(r._string()))),
    11: ("set", lambda r: _set(_intset(r._string()))),
    12: ("zset", lambda r: _scored(_ziplist(r._string()))),
    13: ("hash", lambda r: _pairs(_ziplist(r._string()))),
    14: ("list", lambda r: r._nodes(1)),
    15: ("stream", lambda r: r._stream(1)),
    16: ("hash", lambda r: _pairs(_listpack(r._string()))),
    17: ("zset", lambda r: _scored(_listpack(r._string()))),
    18: ("list", lambda r: r._nodes(2)),
    19: ("stream", lambda r: r._stream(2)),
    20: ("set", lambda r: _set(_listpack(r._string()))),
    21: ("stream", lambda r: r._stream(3)),
}


def _unpacked(packed: bytes, size: int) -> bytes:
    """LZF."""
    if size > LONGEST_STRING_BYTES:
        raise NotRdb(f"a length of {size} bytes is impossible")
    out, at = bytearray(), 0
    while at < len(packed):
        control = packed[at]
        at += 1
        if control < 32:
            out += packed[at : at + control + 1]
            at += control + 1
            continue
        length = control >> 5
        if length == 7:
            length += packed[at]
            at += 1
        start = len(out) - ((control & 0x1F) << 8) - packed[at] - 1
        at += 1
        if start < 0:
            raise NotRdb("a packed string refers to before its beginning")
        length += 2
        while length > 0:  # a copy may overlap what it makes
            piece = out[start : start + length]
            out += piece
            start, length = start + len(piece), length - len(piece)
    if len(out) != size:
        raise NotRdb("a packed string has another length than it says")
    return bytes(out)


def _intset(packed: bytes) -> list[bytes]:
    width, count = struct.unpack_from("<II", packed)
    if width not in (2, 4, 8) or len(packed) != 8 + width * count:
        raise NotRdb("a set of numbers has another size than it says")
    form = {2: "h", 4: "i", 8: "q"}[width]
    return [b"%d" % number for number in struct.unpack_from(f"<{count}{form}", packed, 8)]


def _number(packed: bytes, at: int, size: int) -> bytes:
    found = packed[at : at + size]
    if len(found) != size:
        raise NotRdb("a number is cut short")
    return b"%d" % int.from_bytes(found, "little", signed=True)


def _slice(packed: bytes, at: int, size: int) -> bytes:
    found = packed[at : at + size]
    if len(found) != size:
        raise NotRdb("an element is cut short")
    return found


_ZIPLIST_NUMBERS = {0xC0: 2, 0xD0: 4, 0xE0: 8, 0xF0: 3, 0xFE: 1}
_LISTPACK_NUMBERS = {0xF1: 2, 0xF2: 3, 0xF3: 4, 0xF4: 8}


def _ziplist(packed: bytes) -> list[bytes]:
    found, at = [], 10
    while (before := packed[at]) != 0xFF:
        at += 5 if before == 0xFE else 1
        code = packed[at]
        at += 1
        if code in _ZIPLIST_NUMBERS:
            size = _ZIPLIST_NUMBERS[code]
            found.append(_number(packed, at, size))
        elif 0xF1 <= code <= 0xFD:
            size = 0
            found.append(b"%d" % ((code & 0x0F) - 1))
        else:
            if code >> 6 == 0:
                size = code
            elif code >> 6 == 1:
                size, at = (code & 0x3F) << 8 | packed[at], at + 1
            elif code == 0x80:
                size, at = int.from_bytes(packed[at : at + 4], "big"), at + 4
            else:
                raise NotRdb(f"an element begins with {code:#x}")
            found.append(_slice(packed, at, size))
        at += size
    return _whole(packed, at, found, *struct.unpack_from("<IxxxxH", packed))


def _listpack(packed: bytes) -> list[bytes]:
    found, at = [], 6
    while (code := packed[at]) != 0xFF:
        start = at
        at += 1
        size = 0
        if code < 0x80:
            found.append(b"%d" % code)
        elif code >> 5 == 0b110:
            number, at = (code & 0x1F) << 8 | packed[at], at + 1
            found.append(b"%d" % (number - 0x2000 if number >= 0x1000 else number))
        elif code in _LISTPACK_NUMBERS:
            size = _LISTPACK_NUMBERS[code]
            found.append(_number(packed, at, size))
        else:
            if code >> 6 == 0b10:
                size = code & 0x3F
            elif code >> 4 == 0b1110:
                size, at = (code & 0x0F) << 8 | packed[at], at + 1
            elif code == 0xF0:
                size, at = int.from_bytes(packed[at : at + 4], "little"), at + 4
            else:
                raise NotRdb(f"an element begins with {code:#x}")
            found.append(_slice(packed, at, size))
        at += size
        at += _width_of_backward_length(at - start)
    return _whole(packed, at, found, *struct.unpack_from("<IH", packed))


def _width_of_backward_length(size: int) -> int:
    return next((n for n in range(1, 5) if size < 1 << 7 * n), 5)


def _whole(packed: bytes, at: int, found: list[bytes], size: int, count: int) -> list[bytes]:
    """65,535 in a header means: more than fit, count them."""
    if size != len(packed) or at != size - 1 or count not in (len(found), 0xFFFF):
        raise NotRdb("a packed value has another size than it says")
    return found


class Writer:
    """Makes an RDB of one logical database, which it has as number 0.

    It always has a checksum, also where the server that it is from writes none.

    Args:
        version: of the format that the values are in.
    """

    def __init__(self, version: int) -> None:
        self._version, self._crc = version, 0

    def begin(self, aux: dict[str, str]) -> bytes:
        said = b"".join(
            bytes([_AUX]) + _written(name.encode()) + _written(value.encode())
            for name, value in aux.items()
        )
        return self._told(_MAGIC + b"%04d" % self._version + said + bytes([_SELECT, 0]))

    def entry(self, entry: Entry) -> bytes:
        expires = b""
        if entry.expires_ms is not None:
            expires = bytes([_EXPIRE_MS]) + entry.expires_ms.to_bytes(8, "little")
        return self._told(expires + bytes([entry.type]) + _written(entry.key) + entry.raw)

    def end(self) -> bytes:
        last = self._told(bytes([_EOF]))
        return last + (self._crc.to_bytes(8, "little") if self._version >= 5 else b"")

    def _told(self, content: bytes) -> bytes:
        self._crc = _CRC.calc(content, self._crc)
        return content


def _written(text: bytes) -> bytes:
    size = len(text)
    if size < 1 << 6:
        return bytes([size]) + text
    if size < 1 << 14:
        return bytes([0x40 | size >> 8, size & 0xFF]) + text
    return b"\x80" + size.to_bytes(4, "big") + text


def from_dump(key: bytes, payload: bytes, expires_ms: int | None) -> tuple[Entry, int]:
    """The entry that ``DUMP`` gave, and the RDB version it is in.

    Raises:
        NotRdb: its checksum does not fit, or its type is not known.
    """
    if len(payload) < 11 or _CRC.calc(payload[:-8]) != int.from_bytes(payload[-8:], "little"):
        raise NotRdb("the value of a key has a wrong checksum")
    body = payload[1:-10]
    pieces = iter((body,))
    kind, raw, content = Reader(lambda _: next(pieces, b"")).value(payload[0])
    if raw != body:
        raise NotRdb("the value of a key has more bytes than it needs")
    version = int.from_bytes(payload[-10:-8], "little")
    return Entry(0, key, payload[0], kind, raw, content, expires_ms), version


def to_dump(entry: Entry, version: int) -> bytes:
    """What ``RESTORE`` takes."""
    body = bytes([entry.type]) + entry.raw + version.to_bytes(2, "little")
    return body + int(_CRC.calc(body)).to_bytes(8, "little")
