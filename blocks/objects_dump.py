"""An application's object storage, saved incrementally: an index, and a pool of contents.

Each recovery point has a whole index (see ``domain.object_index``). An object of which the store
says the same as the index before (size, version, time) is carried over without reading a byte of
it. The others are read, hashed and given to the pool, where equal contents exist once. What was
deleted is in no new index, and stays in the older ones and so in the pool.

Each object is of its own moment: no object store has a snapshot of all. The data time is the
store's own clock before the listing began, so everything written before it is in the index.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import datetime

from blocks.object_store import AlreadyExists, Content, ObjectStore, Stat
from blocks.pieces import Pieces
from domain.errors import Failed, SlipwayError, UsageError
from domain.object_index import BadIndex, ChangeKind, IndexReader, IndexWriter, Saved, changes
from domain.recovery import Facts, MemberKind

SMALL_BYTES = 8 << 20
"""Up to this size an object is read once and held; a larger one is read to be hashed, and again
to be stored, with its hash checked."""

READ_BYTES = 1 << 20
INDEX_READ_BYTES = 1 << 16
TRIES = 5

Open = Callable[[], AbstractContextManager[Content]]
Store = Callable[[str, Open], None]
"""Put the content with this SHA-256 into the pool, unless it is there. Reads what ``Open`` gives
to its end, or does not open it; lets errors of reading through, and keeps nothing then."""

Fetch = Callable[[str], AbstractContextManager[Content]]
"""The plain content with this SHA-256 from the pool. Raises KeyError when it is not there."""


@dataclass
class Tally:
    """What a dump did."""

    unchanged: int = 0
    new: int = 0
    changed: int = 0
    deleted: int = 0
    vanished: int = 0
    """Listed, and gone before they were read."""
    read_bytes: int = 0


class ObjectsSource:
    """Objects below a prefix. The dump itself is the index; contents go to ``store`` meanwhile.

    Args:
        place: names the store and the prefix; an index of another place is not built upon.
        store: see ``Store``.
        previous: opens the plain bytes of the index before, if there is one.
        pooled: whether a content is still in the pool; one that is not is read again. Without
            it the pool is believed to hold what the index before says.
    """

    kind = MemberKind.OBJECTS

    def __init__(
        self,
        objects: ObjectStore,
        prefix: str,
        *,
        place: str,
        store: Store,
        previous: Open | None = None,
        pooled: Callable[[str], bool] = lambda _: True,
        tries: int = TRIES,
    ) -> None:
        self._objects, self._prefix, self._place = objects, prefix, place
        self._store, self._previous, self._pooled = store, previous, pooled
        self._tries = tries
        self.needed: set[str] = set()
        """Hashes of the contents that the last dump refers to; whole when it has ended."""

    @contextmanager
    def open(self) -> Iterator[ObjectsStream]:
        """See ``blocks.dump.Source.open``."""
        at = self._objects.clock()
        tally = Tally()
        writer = IndexWriter(self._place)
        self.needed = set()
        yield ObjectsStream(self._pieces(writer, tally), writer, tally, at)

    def _pieces(self, writer: IndexWriter, tally: Tally) -> Iterator[bytes]:
        yield writer.begin()
        with self._before() as before:
            for change in changes(before, self._objects.scan(self._prefix)):
                saved, seen = change.saved, change.seen
                if seen is None:
                    tally.deleted += 1
                    continue
                if change.kind is ChangeKind.UNCHANGED and saved and self._pooled(saved.sha256):
                    tally.unchanged += 1
                    self.needed.add(saved.sha256)
                    yield writer.add(saved)
                elif (read := self._save(seen, tally)) is None:
                    tally.vanished += 1
                else:
                    tally.new += change.kind is ChangeKind.NEW
                    tally.changed += change.kind is not ChangeKind.NEW
                    self.needed.add(read.sha256)
                    yield writer.add(read)
        yield writer.end()

    @contextmanager
    def _before(self) -> Iterator[Iterator[Saved]]:
        if self._previous is None:
            yield iter(())
            return
        with self._previous() as content:
            index = IndexReader(_chunks(content, size=INDEX_READ_BYTES))
            yield iter(index) if index.place == self._place else iter(())

    def _save(self, listed: Stat, tally: Tally) -> Saved | None:
        """One content that is known to be whole: the same version before and after it was read.

        The index has the version and time of the *listing*, as the next listing will tell them
        again: S3's names another version there than of a single object. When the object was
        changed after it was listed, the next dump just reads it once more.
        """
        seen = self._objects.stat(listed.key)
        for _ in range(self._tries):
            if seen is None:
                return None
            try:
                sha256 = self._read(seen, tally)
            except (_Moved, KeyError):
                sha256 = ""
            after = self._objects.stat(seen.key)
            if sha256 and after is not None and after.version == seen.version:
                return Saved(listed.key, seen.bytes, listed.version, listed.modified_at, sha256)
            seen = after
        if seen is None:
            return None
        raise Failed(
            "SLP133",
            f"the object changed each of the {self._tries} times that it was read",
            help="run it again when less is being written",
            where=listed.key,
        )

    def _read(self, seen: Stat, tally: Tally) -> str:
        """Raises _Moved when it is not what was seen."""
        if seen.bytes > SMALL_BYTES:
            checked = _Hashed(seen.bytes)
            with self._reading(seen.key) as content:
                checked.drain(content)
            tally.read_bytes += seen.bytes
            sha256 = checked.sha256
            self._store(sha256, lambda: self._again(seen, sha256, tally))
            return sha256
        with self._reading(seen.key) as content:
            held = b"".join(_chunks(content, limit=SMALL_BYTES + READ_BYTES))
        tally.read_bytes += len(held)
        if len(held) != seen.bytes:
            raise _Moved
        sha256 = hashlib.sha256(held).hexdigest()
        self._store(sha256, lambda: nullcontext(io.BytesIO(held)))
        return sha256

    @contextmanager
    def _reading(self, key: str) -> Iterator[Content]:
        """Raises KeyError also for an object that goes away after it was opened."""
        try:
            with self._objects.open(key) as content:
                yield content
        except SlipwayError as error:
            if self._objects.stat(key) is not None:
                raise
            raise KeyError(key) from error

    @contextmanager
    def _again(self, seen: Stat, sha256: str, tally: Tally) -> Iterator[Content]:
        tally.read_bytes += seen.bytes
        with self._objects.open(seen.key) as content:
            yield _Checked(content, _Hashed(seen.bytes), sha256)


class ObjectsStream:
    """An index under way; see ``blocks.dump.Stream``."""

    def __init__(
        self, pieces: Iterator[bytes], writer: IndexWriter, tally: Tally, at: datetime
    ) -> None:
        self._pieces = Pieces(pieces)
        self._writer, self._tally, self._at = writer, tally, at

    def read(self, size: int) -> bytes:
        """See ``blocks.dump.Stream.read``.

        Raises:
            Failed: SLP133, an object changes all the time; SLP134, the index before is damaged;
                what the store raises when it cannot be listed or read.
        """
        try:
            return self._pieces.read(size)
        except BadIndex as error:
            raise _bad_index(error) from error

    def facts(self) -> Facts:
        if not self._pieces.ended:
            raise RuntimeError("the dump has not ended")
        return Facts(
            data_time=self._at,
            inventory={
                "objects": self._writer.objects,
                "bytes": self._writer.bytes,
                "digest": self._writer.digest,
                "since_before": {**vars(self._tally)},
            },
        )


@dataclass
class Restored:
    """What a restore did, and the digest of what is there now (of all, without a prefix).

    Attributes:
        present: objects that were there already with the same content, as after a first run that
            was interrupted.
    """

    written: int = 0
    present: int = 0
    bytes: int = 0
    digest: str = ""


def restore(index: Content, fetch: Fetch, target: ObjectStore, prefix: str = "") -> Restored:
    """Write every object of an index below ``prefix``; a second run goes on with the rest.

    Raises:
        UsageError: SLP132, an object is there with another content. It was left as it is.
        Failed: SLP134, the index is damaged; SLP135, a content is missing or is another.
    """
    done, counted = Restored(), IndexWriter("")
    for saved in read_index(index):
        if not saved.key.startswith(prefix):
            continue
        counted.add(saved)
        done.bytes += saved.bytes
        if _is_there(target, saved):
            done.present += 1
        else:
            _write(saved, fetch, target)
            done.written += 1
    done.digest = counted.digest
    return done


def compare(index: Content, target: ObjectStore, prefix: str = "") -> Iterator[str]:
    """Read all of a restored store; in what it differs from the index, a sentence each.

    Raises:
        Failed: SLP134, the index is damaged, so nothing is known.
    """
    wanted = (saved for saved in read_index(index) if saved.key.startswith(prefix))
    try:
        for change in changes(wanted, target.scan(prefix)):
            if change.saved is None and change.seen is not None:
                yield f"{change.seen.key} is there and was not saved"
            elif change.seen is None and change.saved is not None:
                yield f"{change.saved.key} is missing"
            elif change.saved and _content_of(target, change.saved.key) != change.saved.sha256:
                yield f"{change.saved.key} has another content"
    except BadIndex as error:
        raise _bad_index(error) from error


def read_index(content: Content) -> Iterator[Saved]:
    """Raises Failed SLP134, at its end for an index that is cut."""
    try:
        yield from IndexReader(_chunks(content, size=INDEX_READ_BYTES))
    except BadIndex as error:
        raise _bad_index(error) from error


def _is_there(target: ObjectStore, saved: Saved) -> bool:
    if target.stat(saved.key) is None:
        return False
    if _content_of(target, saved.key) == saved.sha256:
        return True
    raise UsageError(
        "SLP132",
        "an object of that name is there with another content",
        help="restore into an empty store; this object was left as it is",
        where=saved.key,
    )


def _content_of(store: ObjectStore, key: str) -> str:
    hashed = hashlib.sha256()
    with store.open(key) as content:
        for chunk in _chunks(content):
            hashed.update(chunk)
    return hashed.hexdigest()


def _write(saved: Saved, fetch: Fetch, target: ObjectStore) -> None:
    """Nothing appears under its name before all of it was found to be right."""
    try:
        with fetch(saved.sha256) as content:
            checked = _Checked(content, _Hashed(saved.bytes), saved.sha256)
            if saved.bytes <= SMALL_BYTES:
                target.create(saved.key, b"".join(_chunks(checked)))
            else:
                _upload(saved, checked, target)
    except KeyError as error:
        raise _not_restored(saved, "its content is not in the pool") from error
    except _Moved as error:
        raise _not_restored(saved, "its content in the pool is not what was saved") from error
    except AlreadyExists as error:
        raise _not_restored(saved, "somebody else wrote it at the same time") from error


def _upload(saved: Saved, content: Content, target: ObjectStore) -> None:
    upload = target.upload(saved.key)
    try:
        number, part = 0, b""
        for chunk in _chunks(content):
            part += chunk
            while len(part) >= upload.part_bytes:
                number += 1
                upload.put(number, part[: upload.part_bytes])
                part = part[upload.part_bytes :]
        if part:
            upload.put(number + 1, part)
        upload.complete(saved.sha256)
    except BaseException:
        upload.abort()
        raise


class _Moved(Exception):
    """What was read is not what was announced."""


class _Hashed:
    """Hashes content of a known size.

    Args:
        size: in bytes.
    """

    def __init__(self, size: int) -> None:
        self._left, self._hash = size, hashlib.sha256()

    def add(self, chunk: bytes) -> None:
        """Raises _Moved when there is more than was announced: a file may grow without end."""
        self._left -= len(chunk)
        if self._left < 0:
            raise _Moved
        self._hash.update(chunk)

    def drain(self, content: Content) -> None:
        for chunk in _chunks(content):
            self.add(chunk)
        if self._left:
            raise _Moved

    @property
    def sha256(self) -> str:
        return self._hash.hexdigest()

    @property
    def is_whole(self) -> bool:
        return self._left == 0


class _Checked:
    """Content that raises at its end, before it says so, unless it is the one expected."""

    def __init__(self, content: Content, hashed: _Hashed, sha256: str) -> None:
        self._content, self._hashed, self._sha256 = content, hashed, sha256

    def read(self, size: int = -1, /) -> bytes:
        chunk = self._content.read(size)
        self._hashed.add(chunk)
        ends = size < 0 or (size > 0 and not chunk)
        if ends and not (self._hashed.is_whole and self._hashed.sha256 == self._sha256):
            raise _Moved
        return chunk


def _chunks(
    content: Content, *, size: int = READ_BYTES, limit: int | None = None
) -> Iterator[bytes]:
    have = 0
    while chunk := content.read(size):
        yield chunk
        have += len(chunk)
        if limit is not None and have > limit:
            return


def _bad_index(error: object) -> Failed:
    return Failed(
        "SLP134",
        f"the index of objects cannot be used: {error}",
        help="use another copy of it, or make a backup without it, which reads every object",
    )


def _not_restored(saved: Saved, seen: str) -> Failed:
    return Failed(
        "SLP135",
        f"the object could not be restored: {seen}",
        help="use another copy of the recovery point; objects before this one are restored",
        where=saved.key,
    )
