"""One logical Redis database, saved as an RDB and restored key by key.

What is stored is always a standard RDB with the application's keys as database 0, so a plain
``redis-server`` loads it. There are two ways to read it, and the facts say which one was used:

- **Replication.** Slipway asks for a full synchronisation as a replica would (``PSYNC``). The
  server forks, which needs memory for what changes meanwhile, as its own backup does; all keys
  are of one moment, and the server keeps its own files. A dump that is read too slowly is ended
  by the server (``client-output-buffer-limit replica``), and is then an error. What comes
  holds every logical database of the server, and functions; keys of the others are read past and
  never stored: they belong to other applications.
- **Key by key** (``SCAN``, ``DUMP``), where the server refuses the first: ElastiCache and
  Memorystore do, and so does a login without the right to replicate. Each key is then of its own
  moment. ``SCAN`` promises every key that was there from its begin to its end, and so does this
  dump; the data time is the begin. Remembers the hashes of all names (about 100 bytes a key),
  since ``SCAN`` may give a key twice and a server refuses to load a file with a key twice.

Not ``BGSAVE`` and the server's dump.rdb: that needs its file system, replaces its own backup, and
its checksum may be switched off. Not ``MIGRATE`` or ``KEYS``: they change or block the server.

A restore sends ``RESTORE`` for each key to a server that runs. It needs no file system and no
restart, so a server with an append-only file, which would ignore an RDB at its start
(redis#1826), is filled like any other.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import redis
import xxhash
from redis.connection import parse_url
from redis.exceptions import NoPermissionError

from blocks.pieces import Pieces
from domain import rdb
from domain.errors import Failed, SlipwayError, Unauthorised, UsageError
from domain.rdb import Entry, Header, NotRdb, Reader, Writer
from domain.recovery import Facts, MemberKind
from domain.redis_inventory import Count, RedisInventory, differences

SILENCE_SECONDS = 60
"""A server that prepares a synchronisation sends a sign of life every 10 seconds."""

_KEYS_PER_CALL = 256
_VALUES_PER_CALL = 32
_LARGE_BYTES = 4 << 20
_RESTORE_BYTES = 4 << 20
_MARK_BYTES = 40


class RedisSource:
    """The logical database of a URL.

    Args:
        url: ``redis://``, ``rediss://`` or ``unix://``, with the number of the database.
        snapshot_only: raise where the server refuses replication, instead of going key by key.
    """

    kind = MemberKind.REDIS

    def __init__(self, url: str, *, snapshot_only: bool = False) -> None:
        self._url, self._snapshot_only = url, snapshot_only

    @contextmanager
    def open(self) -> Iterator[RedisStream]:
        """Start a dump.

        Raises:
            Failed: SLP130, the server does not answer or refuses.
            Unauthorised: SLP139, it refuses the login.
        """
        with contextlib.ExitStack() as stack:
            with _told(self._url):
                client = stack.enter_context(_client(self._url))
                version, at = _server_version(client), _server_time(client)
                try:
                    wire = stack.enter_context(_replica(self._url))
                except _Refused as refusal:
                    if self._snapshot_only:
                        raise _failed(self._url, f"it refuses replication: {refusal}") from None
                    yield RedisStream(self._url, _PerKey(client, version, at, str(refusal)))
                    return
            yield RedisStream(self._url, _Snapshot(wire, _database(self._url), version, at))


class RedisStream:
    """One dump under way; see ``blocks.dump.Stream``."""

    def __init__(self, url: str, dump: _Snapshot | _PerKey) -> None:
        self._url, self._dump = url, dump
        self._pieces = Pieces(dump.pieces())

    def read(self, size: int) -> bytes:
        """See ``blocks.dump.Stream.read``.

        Raises:
            Failed: SLP130, the connection broke; SLP131, a value cannot be read.
        """
        with _told(self._url):
            return self._pieces.read(size)

    def inventory(self) -> RedisInventory:
        """Raises RuntimeError before the end."""
        if self._dump.inventory is None or not self._pieces.ended:
            raise RuntimeError("the dump has not ended")
        return self._dump.inventory

    def facts(self) -> Facts:
        inventory = self.inventory().model_dump(mode="json")
        return Facts(
            data_time=self._dump.data_time,
            tools={"redis": self._dump.version},
            inventory=inventory,
        )


class _Snapshot:
    """What a replica is sent, with the keys of one logical database alone."""

    def __init__(self, wire: _Wire, database: int, version: str, at: datetime) -> None:
        self._wire, self._database = wire, database
        self.version, self.data_time = version, at
        self.inventory: RedisInventory | None = None

    def pieces(self) -> Iterator[bytes]:
        reader = Reader(self._wire.receive)
        header, count, others = reader.header, Count(), 0
        writer: Writer | None = None
        for entry in reader.entries():
            if writer is None:
                writer, begin = self._begin(header)
                yield begin
            if entry.database != self._database:
                others += 1
                continue
            count.add(entry)
            yield writer.entry(entry)
        if writer is None:
            writer, begin = self._begin(header)
            yield begin
        self._wire.check_end(reader)
        self.inventory = RedisInventory(
            rdb_version=header.version,
            persistent=count.persistent,
            volatile=count.volatile,
            left_out=header.left_out | ({"keys of other databases": others} if others else {}),
            source_checksum=header.checksum,
        )
        yield writer.end()

    def _begin(self, header: Header) -> tuple[Writer, bytes]:
        """By the server's own word on when the snapshot was made, in whole seconds."""
        if header.aux.get("ctime", "").isdigit():
            self.data_time = datetime.fromtimestamp(int(header.aux["ctime"]), UTC)
        writer = Writer(header.version)
        return writer, writer.begin(_aux(self.version, self.data_time))


class _PerKey:
    """Each key at its own moment; for servers that let nobody replicate."""

    def __init__(self, client: redis.Redis, version: str, at: datetime, why: str) -> None:
        self._client, self._why = client, why
        self.version, self.data_time = version, at
        self.inventory: RedisInventory | None = None

    def pieces(self) -> Iterator[bytes]:
        count = Count()
        writer: Writer | None = None
        rdb_version = 9  # of an empty database, where nothing says
        for entry, version in self._entries():
            if writer is None:
                rdb_version, writer = version, Writer(version)
                yield writer.begin(_aux(self.version, self.data_time))
            if version != rdb_version:
                raise NotRdb(f"its values change from RDB version {rdb_version} to {version}")
            count.add(entry)
            yield writer.entry(entry)
        if writer is None:
            writer = Writer(rdb_version)
            yield writer.begin(_aux(self.version, self.data_time))
        self.inventory = RedisInventory(
            rdb_version=rdb_version,
            consistency="per-key",
            why=f"the server refuses replication: {self._why}",
            persistent=count.persistent,
            volatile=count.volatile,
        )
        yield writer.end()

    def _entries(self) -> Iterator[tuple[Entry, int]]:
        seen: set[bytes] = set()
        cursor = -1
        while cursor:
            cursor, found = self._scan(max(cursor, 0))
            names = {xxhash.xxh3_128_digest(key): key for key in found}
            fresh = [key for name, key in names.items() if name not in seen]
            seen.update(names)
            yield from self._values(fresh)

    def _scan(self, cursor: int) -> tuple[int, list[bytes]]:
        answer: Any = self._client.scan(cursor, count=_KEYS_PER_CALL)
        return int(answer[0]), answer[1]

    def _values(self, keys: list[bytes]) -> Iterator[tuple[Entry, int]]:
        """Some keys a call; one a call right after large ones, as large ones come together."""
        at, together = 0, _VALUES_PER_CALL
        while at < len(keys):
            some = keys[at : at + together]
            at += len(some)
            with self._client.pipeline(transaction=True) as call:
                call.time()
                for key in some:
                    call.pttl(key)
                    call.dump(key)
                (seconds, micros), *told = call.execute()
            now = seconds * 1000 + micros // 1000
            size = 0
            for key, left, payload in zip(some, told[::2], told[1::2], strict=True):
                if payload is not None:  # else deleted, or expired, since it was listed
                    size += len(payload)
                    yield rdb.from_dump(key, payload, now + left if left >= 0 else None)
            together = 1 if size > _LARGE_BYTES else _VALUES_PER_CALL


def _aux(version: str, at: datetime) -> dict[str, str]:
    return {"redis-ver": version, "ctime": str(int(at.timestamp()))}


@dataclass(frozen=True)
class Restored:
    """What a restore did.

    Attributes:
        keys: that were written.
        expired: keys whose time was over before the restore began; they were left out.
    """

    inventory: RedisInventory
    keys: int
    expired: int


def inspect(read: Callable[[int], bytes]) -> RedisInventory:
    """Read a stored RDB to its end, and count what it holds.

    Raises:
        Failed: SLP131, it is cut, damaged, or not one of ours.
    """
    return _drain(Reader(read), lambda _entry, _version: None)


def restore(
    read: Callable[[int], bytes], url: str, *, hold_expiry: timedelta | None = None
) -> Restored:
    """Fill an empty logical database.

    Args:
        read: gives the plain bytes of a stored RDB.
        hold_expiry: no key expires for so long. For a copy that is compared with what was saved:
            keys that go away meanwhile would hide keys that were lost.

    Raises:
        UsageError: SLP132, the database holds keys. Nothing was changed.
        Failed: SLP131, the RDB is damaged, or SLP130, the server refused a key. The database is
            then partly filled.
    """
    with _told(url), _client(url) as client:
        if found := int(client.dbsize()):
            raise UsageError(
                "SLP132",
                f"the Redis database already holds {found} keys",
                help="restore into an empty one; nothing was changed",
                where=_place(url),
            )
        now = int(_server_time(client).timestamp() * 1000)
        hold = None if hold_expiry is None else now + int(hold_expiry.total_seconds() * 1000)
        filling = _Filling(client, now, hold)
        inventory = _drain(Reader(read), filling.add)
        filling.flush()
        return Restored(inventory, filling.keys, filling.expired)


def compare(saved: RedisInventory, url: str, *, expired: int = 0) -> tuple[str, ...]:
    """Dump a restored database again; in what it differs from what was saved.

    Raises:
        Failed: SLP130, it could not be read, so nothing was compared.
    """
    with RedisSource(url).open() as stream:
        while stream.read(1 << 20):
            pass
        return differences(saved, stream.inventory(), expired=expired)


class _Filling:
    def __init__(self, client: redis.Redis, now: int, hold: int | None) -> None:
        self._pipe = client.pipeline(transaction=False)
        self._now, self._hold = now, hold
        self._waiting_bytes = 0
        self.keys, self.expired = 0, 0

    def add(self, entry: Entry, version: int) -> None:
        expires = entry.expires_ms
        if expires is not None and self._hold is not None:
            expires = max(expires, self._hold)
        if expires is not None and expires <= self._now:
            self.expired += 1
            return
        self._pipe.restore(entry.key, expires or 0, rdb.to_dump(entry, version), absttl=True)
        self.keys += 1
        self._waiting_bytes += len(entry.raw) + len(entry.key) + 64
        if self._waiting_bytes >= _RESTORE_BYTES:
            self.flush()

    def flush(self) -> None:
        self._pipe.execute()
        self._waiting_bytes = 0


def _drain(reader: Reader, use: Callable[[Entry, int], None]) -> RedisInventory:
    count = Count()
    try:
        for entry in reader.entries():
            if entry.database:
                raise NotRdb(f"it has keys in database {entry.database}")
            count.add(entry)
            use(entry, reader.header.version)
        if not reader.header.checksum:
            raise NotRdb("it has no checksum, so it cannot be told whether it is whole")
        reader.expect_nothing()
    except NotRdb as error:
        raise _damaged(error) from error
    return RedisInventory(
        rdb_version=reader.header.version, persistent=count.persistent, volatile=count.volatile
    )


class _Refused(Exception):
    """The server lets this login not replicate, or nobody."""


class _Wire:
    """A connection that plays a replica during its first synchronisation.

    redis-py has no word for this: what comes is neither a reply nor of a known length.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._buffer = b""
        self._left: int | None = None
        self._mark = b""

    def ask(self, *words: str) -> str:
        self._socket.sendall(
            b"*%d\r\n" % len(words)
            + b"".join(b"$%d\r\n%s\r\n" % (len(w.encode()), w.encode()) for w in words)
        )
        return self.line()

    def line(self) -> str:
        """The next line that is not empty: empty ones are signs of life."""
        while True:
            line, found, rest = self._buffer.partition(b"\n")
            if found:
                self._buffer = rest
                if text := line.strip():
                    return text.decode("utf-8", "replace")
            else:
                if len(self._buffer) > 1 << 16:
                    raise NotRdb("it does not speak the protocol of Redis")
                self._buffer += self._more()

    def begin(self) -> None:
        """Raises NotRdb when no synchronisation follows."""
        line = self.line()
        if line.startswith("$EOF:") and len(line) == 5 + _MARK_BYTES:
            self._mark = line[5:].encode()
        elif line[:1] == "$" and line[1:].isdigit():
            self._left = int(line[1:])
        else:
            raise NotRdb(f"instead of its data it sent {line[:80]!r}")

    def receive(self, size: int) -> bytes:
        if self._left == 0:
            return b""
        if not self._buffer:
            self._buffer = self._more()
        limit = size if self._left is None else min(size, self._left)
        found, self._buffer = self._buffer[:limit], self._buffer[limit:]
        if self._left is not None:
            self._left -= len(found)
        return found

    def check_end(self, reader: Reader) -> None:
        """What follows the RDB is the end that was announced.

        Raises:
            NotRdb: the server gave up, or went on.
        """
        if self._left is None:
            if reader.take(_MARK_BYTES) != self._mark:
                raise NotRdb("the server did not confirm the end of its data")
        else:
            reader.expect_nothing()

    def _more(self) -> bytes:
        found = self._socket.recv(1 << 16)
        if not found:
            raise ConnectionError("the server closed the connection")
        return found


@contextmanager
def _replica(url: str) -> Iterator[_Wire]:
    with _connected(url) as connection:
        wire = _Wire(connection)
        told = _parsed(url)
        if told.get("password") is not None:
            login = [told["username"]] if told.get("username") else []
            _refuse(wire.ask("AUTH", *login, told["password"]), redis.AuthenticationError)
        _refuse(wire.ask("REPLCONF", "capa", "eof"), _Refused)
        answer = wire.ask("PSYNC", "?", "-1")
        _refuse(answer, _Refused)
        if not answer.startswith("+FULLRESYNC"):
            raise NotRdb(f"to the request for its data it answered {answer[:80]!r}")
        wire.begin()
        yield wire


def _refuse(answer: str, kind: type[Exception]) -> None:
    """Only a refusal in principle is one: a server that cannot *now* is a failed dump."""
    if not answer.startswith("-"):
        return
    reason = answer[1:]
    in_principle = reason.startswith("NOPERM") or "unknown command" in reason.lower()
    if kind is _Refused and not in_principle:
        raise redis.ResponseError(reason)
    raise kind(reason.partition(", with args")[0])


@contextmanager
def _connected(url: str) -> Iterator[socket.socket]:
    told = _parsed(url)
    with contextlib.ExitStack() as stack:
        if "path" in told:
            plain = stack.enter_context(socket.socket(socket.AF_UNIX))
            plain.settimeout(SILENCE_SECONDS)
            plain.connect(told["path"])
        else:
            host = told.get("host", "localhost")
            address = (host, told.get("port", 6379))
            plain = stack.enter_context(socket.create_connection(address, SILENCE_SECONDS))
            if url.startswith("rediss:"):
                trust = _trust(told)
                plain = stack.enter_context(trust.wrap_socket(plain, server_hostname=host))
        yield plain


def _trust(told: dict[str, Any]) -> ssl.SSLContext:
    """As redis-py makes it of the same URL."""
    trust = ssl.create_default_context(cafile=told.get("ssl_ca_certs"))
    if str(told.get("ssl_cert_reqs", "required")).lower() == "none":
        trust.check_hostname, trust.verify_mode = False, ssl.CERT_NONE
    if certificate := told.get("ssl_certfile"):
        trust.load_cert_chain(certificate, told.get("ssl_keyfile"))
    return trust


def _parsed(url: str) -> dict[str, Any]:
    told: dict[str, Any] = parse_url(url)  # type: ignore[no-untyped-call]
    return told


def _client(url: str) -> redis.Redis:
    return redis.Redis.from_url(url, socket_timeout=SILENCE_SECONDS, socket_connect_timeout=5)


def _database(url: str) -> int:
    return int(_parsed(url).get("db") or 0)


def _server_version(client: redis.Redis) -> str:
    said: Any = client.info("server")
    return str(said.get("redis_version", "unknown"))


def _server_time(client: redis.Redis) -> datetime:
    seconds, micros = client.time()
    return datetime.fromtimestamp(seconds, UTC) + timedelta(microseconds=micros)


def _place(url: str) -> str:
    """Without the login."""
    told = _parsed(url)
    server = told.get("path") or f"{told.get('host', 'localhost')}:{told.get('port', 6379)}"
    return f"{server}, database {_database(url)}"


@contextmanager
def _told(url: str) -> Iterator[None]:
    """Errors of Redis and of the connection as ours."""
    try:
        yield
    except SlipwayError:
        raise
    except (redis.AuthenticationError, NoPermissionError) as error:
        raise Unauthorised(
            "SLP139",
            f"Redis refuses the login: {error}",
            help="correct it; it needs the rights to scan, dump and restore, and best psync",
            where=_place(url),
        ) from error
    except (redis.RedisError, OSError) as error:
        raise _failed(url, f"{error or type(error).__name__}") from error
    except NotRdb as error:
        raise _damaged(error, _place(url)) from error


def _failed(url: str, seen: str) -> Failed:
    return Failed(
        "SLP130",
        f"Redis could not be read or written: {seen}",
        help="correct what the server says, then run it again",
        where=_place(url),
    )


def _damaged(error: NotRdb, where: str | None = None) -> Failed:
    return Failed(
        "SLP131",
        f"this is no whole Redis database that can be read: {error}",
        help="use another copy or point; of a live server, see its version and run it again",
        where=where,
    )
