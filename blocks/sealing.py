"""Stored bytes of a backup: zstd, then age, then an object with a known SHA-256.

Anybody with the standard tools opens them again: ``age -d -i KEY < FILE | zstd -d``. Everything
streams, so that the memory used does not depend on the size of what is saved.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import IO, Protocol, cast

import pyrage
import zstandard

from blocks.object_store import ObjectStore, Upload
from domain.errors import Failed, UsageError
from domain.recovery import Part

LEVEL = 3
_READ_BYTES = 1 << 20
_CANARY = b"slipway: whoever reads this holds the key\n"

Progress = Callable[[int, int], None]
"""Told the plain and the stored bytes so far."""


class Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


class Writable(Protocol):
    def write(self, data: bytes, /) -> int: ...


class Pace:
    """A limit of bytes a second over everything that shares it; waits, never fails.

    Args:
        bytes_per_second: 0 for no limit.
    """

    def __init__(
        self,
        bytes_per_second: int = 0,
        *,
        now: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._rate, self._now, self._sleep = bytes_per_second, now, sleep
        self._free_at, self._turn = 0.0, threading.Lock()

    def spend(self, count: int) -> None:
        """Return when ``count`` more bytes may go out."""
        if not self._rate:
            return
        with self._turn:
            start = max(self._now(), self._free_at)
            self._free_at = start + count / self._rate
        self._sleep(max(0.0, start - self._now()))


UNLIMITED = Pace()


def recipients(texts: Sequence[str]) -> list[pyrage.x25519.Recipient]:
    """Public keys, as age prints them.

    Raises:
        UsageError: SLP140, there is none, or one is not a public age key.
    """
    found = []
    for text in texts:
        try:
            found.append(pyrage.x25519.Recipient.from_str(text))
        except pyrage.RecipientError as error:
            raise UsageError(
                "SLP140",
                f"{text[:12]}... is not the public key of an age identity: {error}",
                help="give keys that start with age1, as `age-keygen` prints them",
            ) from error
    if not found:
        raise UsageError(
            "SLP140",
            "no key is named that a backup could be encrypted for",
            help="name at least one public age key for the platform, better one for each cloud "
            "and one that is kept offline",
        )
    return found


def identity(secret: str, name: str) -> pyrage.x25519.Identity:
    """The private key called ``name``.

    Raises:
        UsageError: SLP141, it is not one; the text is never repeated.
    """
    lines = [line.strip() for line in secret.splitlines() if not line.startswith("#")]
    try:
        return pyrage.x25519.Identity.from_str("".join(lines))
    except pyrage.IdentityError:
        raise UsageError(
            "SLP141",
            f"the key {name!r} is not a private age key",
            help="store the line that starts with AGE-SECRET-KEY-1",
        ) from None


def identities(secrets: Mapping[str, object], names: Iterable[str]) -> list[pyrage.x25519.Identity]:
    """The private keys of those names, as far as ``secrets`` holds them.

    Raises:
        UsageError: SLP141, one of them is no key.
    """
    return [identity(str(secrets[name]), name) for name in names if name in secrets]


@dataclass(frozen=True)
class Sealed:
    """One stored object, and how large it was before."""

    part: Part
    plain_bytes: int


def seal(
    source: Readable,
    store: ObjectStore,
    key: str,
    recipients: Sequence[pyrage.x25519.Recipient],
    *,
    locked_until: datetime | None = None,
    pace: Pace = UNLIMITED,
    progress: Progress = lambda plain, stored: None,
) -> Sealed:
    """Store all of ``source`` under ``key``, which nobody may have used.

    An unfinished upload of that key is dropped: another encryption of the same bytes differs.

    Raises:
        domain.errors.SlipwayError: what the source or the store raised.
        blocks.object_store.AlreadyExists: the key is taken.
    """
    upload = _fresh_upload(store, key, locked_until)
    plain, stored = _Counted(source), _Uploading(upload, pace)

    def tell(data: bytes) -> int:
        written = stored.write(data)
        progress(plain.count, stored.count)
        return written

    try:
        # Some zstd frames hide that a stream was cut; with a checksum at its end none does.
        compressor = zstandard.ZstdCompressor(level=LEVEL, threads=-1, write_checksum=True)
        compressed = compressor.stream_reader(cast(IO[bytes], plain), read_size=_READ_BYTES)
        sink = _Sink(tell)
        try:
            pyrage.encrypt_io(compressed, sink, list(recipients))
        except Exception as error:
            raise (plain.error or sink.error or error) from None
        sha256 = stored.finish()
        upload.complete(sha256)
    except BaseException:
        with contextlib.suppress(Exception):  # what went wrong first is what to say
            upload.abort()
        raise
    progress(plain.count, stored.count)
    return Sealed(Part(key=key, bytes=stored.count, sha256=sha256), plain.count)


def _fresh_upload(store: ObjectStore, key: str, locked_until: datetime | None) -> Upload:
    upload = store.upload(key, locked_until=locked_until)
    if upload.done:
        upload.abort()
        upload = store.upload(key, locked_until=locked_until)
    return upload


def unseal(
    source: Readable,
    sink: Writable,
    identities: Sequence[pyrage.x25519.Identity],
    where: str,
    *,
    plain_bytes: int | None = None,
) -> None:
    """Write the plain bytes of a stored object to ``sink``.

    Args:
        plain_bytes: how many there must be; a zstd frame cut at a block's end does not tell.

    Raises:
        Failed: SLP142, no key fits; SLP143, the bytes are not what was stored.
    """
    counted, plain = _Counted(source), _Sink(sink.write)
    decompressor = zstandard.ZstdDecompressor().stream_writer(cast(IO[bytes], plain), closefd=False)
    unpacked = _Sink(decompressor.write)
    try:
        pyrage.decrypt_io(counted, unpacked, list(identities))
    except Exception as error:
        raise _cause(error, counted.error or plain.error or unpacked.error, where) from error
    if plain_bytes is not None and plain.count != plain_bytes:
        raise damaged(where, f"it holds {plain.count:,} bytes, not the {plain_bytes:,} saved")


def _cause(error: Exception, ours: BaseException | None, where: str) -> BaseException:
    """What a failed decryption means: a side of ours failed, no key fits, or it is damaged."""
    if isinstance(ours, zstandard.ZstdError):
        return damaged(where, f"zstd refuses it: {ours}")
    if ours is not None:
        return ours
    if isinstance(error, pyrage.DecryptError) and "No matching keys" in str(error):
        return Failed(
            "SLP142",
            "none of the keys at hand opens the backup",
            help="give the private key of one of the recipients that its manifest lists",
            where=where,
        )
    return damaged(where, f"age refuses it: {error}")


@contextmanager
def unsealed(
    source: Readable,
    identities: Sequence[pyrage.x25519.Identity],
    where: str,
    *,
    plain_bytes: int | None = None,
) -> Iterator[IO[bytes]]:
    """The plain bytes as a file to read from; damage raises at the latest when it is left.

    Raises:
        Failed: as ``unseal``. An error of the reader itself wins over the damage it met.
    """
    read_end, write_end = os.pipe()
    failure: list[BaseException] = []

    def work() -> None:
        try:
            with os.fdopen(write_end, "wb") as sink:
                unseal(source, sink, identities, where, plain_bytes=plain_bytes)
        except BrokenPipeError:
            pass  # the reader has seen enough
        except BaseException as error:
            failure.append(error)

    worker = threading.Thread(target=work, name="unseal", daemon=True)
    reader = os.fdopen(read_end, "rb")
    worker.start()
    try:
        try:
            yield reader
        finally:
            reader.close()
            worker.join()
    except Exception as error:
        # A reader that got half of it complains about that half; this is why.
        if failure and isinstance(failure[0], Failed):
            raise failure[0] from error
        raise
    if failure:
        raise failure[0]


def try_key(recipient: str, secret: str, name: str) -> None:
    """Encrypt and decrypt a canary: the private key at hand belongs to the public one.

    Raises:
        UsageError: SLP140, SLP141. Failed: SLP142, they do not belong together.
    """
    box = pyrage.encrypt(_CANARY, recipients([recipient]))
    try:
        found = pyrage.decrypt(box, [identity(secret, name)])
    except pyrage.DecryptError as error:
        found = str(error).encode()
    if found != _CANARY:
        raise Failed(
            "SLP142",
            f"the private key {name!r} does not open what is encrypted for {recipient[:12]}...",
            help="put the right private key into its block before the old one is destroyed: "
            "backups made for it cannot be opened by this one",
        )


def damaged(where: str, what: str) -> Failed:
    return Failed(
        "SLP143",
        f"a stored backup is damaged: {what}",
        help="restore from another copy (`slipway backups APP` lists them); keep this one for "
        "whoever finds out what damaged it",
        where=where,
    )


class _Uploading:
    """Cuts what is written into the parts of an upload, and hashes all of it."""

    def __init__(self, upload: Upload, pace: Pace) -> None:
        self._upload, self._pace = upload, pace
        self._pending, self._number = bytearray(), 0
        self._sha256, self.count = hashlib.sha256(), 0

    def write(self, data: bytes) -> int:
        self._sha256.update(data)
        self._pending += data
        self.count += len(data)
        while len(self._pending) >= self._upload.part_bytes:
            self._send(self._upload.part_bytes)
        return len(data)

    def finish(self) -> str:
        """Send the rest; the SHA-256 of everything in hex."""
        if self._pending or not self._number:
            self._send(len(self._pending))
        return self._sha256.hexdigest()

    def _send(self, count: int) -> None:
        content = bytes(self._pending[:count])
        del self._pending[:count]
        self._pace.spend(count)
        self._number += 1
        self._upload.put(self._number, content)


class _Counted:
    """Counts what is read, and keeps the error that a foreign library would swallow."""

    def __init__(self, source: Readable) -> None:
        self._source, self.count = source, 0
        self.error: BaseException | None = None

    def read(self, size: int = -1) -> bytes:
        try:
            data = self._source.read(size if size > 0 else _READ_BYTES)
        except BaseException as error:
            self.error = error
            raise
        self.count += len(data)
        return data


class _Sink:
    """Passes on what is written, and keeps the error that a foreign library would swallow."""

    def __init__(self, write: Callable[[bytes], int]) -> None:
        self._write, self.count = write, 0
        self.error: BaseException | None = None

    def write(self, data: bytes) -> int:
        try:
            self._write(data)
        except BaseException as error:
            self.error = error
            raise
        self.count += len(data)
        return len(data)

    def flush(self) -> None:
        pass
