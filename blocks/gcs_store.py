"""An object store in a bucket on Google Cloud Storage.

Conditions are generations: 0 means that nothing may be there. Large objects are parts, each an
object that no listing shows, composed at the end by the service itself: of an upload session
nobody else could go on with what a killed process had sent.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import httpx
from google.api_core import exceptions
from google.auth.credentials import AnonymousCredentials
from google.auth.exceptions import GoogleAuthError
from google.cloud import storage
from google.cloud.storage.retry import DEFAULT_RETRY
from google.oauth2 import service_account
from requests.exceptions import RequestException

from blocks.object_store import (
    AlreadyExists,
    Changed,
    Content,
    Locked,
    Stat,
    UploadedPart,
    folder_of,
)
from domain.errors import Failed, SlipwayError, Unauthorised, UsageError

_HIDDEN = ".slipway-parts"
_MOST_COMPOSED = 32
_PUBLIC = "https://storage.googleapis.com"


class GcsStore:
    """Objects in one bucket."""

    def __init__(
        self, client: Any, bucket: str, *, endpoint: str = "", patience_seconds: float = 60
    ) -> None:
        self._client, self.bucket = client, bucket
        # Google's own patience is two minutes for each call.
        self._retry = DEFAULT_RETRY.with_timeout(patience_seconds)
        self._endpoint = endpoint or _PUBLIC
        self._bucket = client.bucket(bucket)

    @classmethod
    def connect(
        cls,
        bucket: str,
        *,
        endpoint: str = "",
        project: str = "",
        account: Any = None,
        patience_seconds: float = 60,
    ) -> GcsStore:
        """Nothing is asked of the service yet.

        Args:
            endpoint: of an emulator; without, Google's own.
            account: the JSON of a service account; without, the machine's own credentials.
            patience_seconds: how long a call is tried again.
        """
        given: dict[str, Any] = {}
        if endpoint:
            given = {
                "credentials": AnonymousCredentials(),
                "client_options": {"api_endpoint": endpoint},
            }
        elif account:
            given = {"credentials": service_account.Credentials.from_service_account_info(account)}
        client = storage.Client(project=project or "slipway", **given)
        return cls(client, bucket, endpoint=endpoint, patience_seconds=patience_seconds)

    def create_bucket(self) -> None:
        """Make the bucket where it is missing."""
        with self._asking("create the bucket"):
            try:
                self._client.create_bucket(self.bucket, retry=self._retry)
            except exceptions.Conflict:
                return

    def create(self, key: str, content: bytes) -> None:
        # Google refuses a second one by its generation; an emulator may not even look.
        if self.stat(key) is not None:
            raise AlreadyExists(key)
        self._put(key, content, 0, AlreadyExists(key))

    def replace(self, key: str, content: bytes, *, expected: str | None = None) -> None:
        if expected is not None:
            self._require(key, expected)
        self._put(key, content, int(expected) if expected else None, Changed(key))

    def _put(self, key: str, content: bytes, generation: int | None, lost: Exception) -> None:
        token, blob = uuid.uuid4().hex, self._bucket.blob(key)
        blob.metadata = {"sha256": hashlib.sha256(content).hexdigest(), "write": token}
        with self._asking(f"write {key}"):
            try:
                blob.upload_from_string(
                    content, content_type="application/octet-stream", checksum="crc32c",
                    if_generation_match=generation, retry=self._retry,
                )  # fmt: skip
            except exceptions.PreconditionFailed:
                # The answer to our own write may have been lost, and the retry met it.
                found = self._blob(key)
                if found is None or (found.metadata or {}).get("write") != token:
                    raise lost from None

    def read(self, key: str) -> bytes | None:
        with self._asking(f"read {key}"):
            try:
                return bytes(
                    self._bucket.blob(key).download_as_bytes(checksum="crc32c", retry=self._retry)
                )
            except exceptions.NotFound:
                pass
        self._require_bucket()
        return None

    def list(self, prefix: str) -> tuple[str, ...]:
        return tuple(stat.key for stat in self.scan(prefix))

    def scan(self, prefix: str) -> Iterator[Stat]:
        """The whole listing is fetched before the first entry is given out."""
        with self._asking(f"list {prefix}", listing=True):
            found = [
                _stat(blob)
                for blob in self._client.list_blobs(
                    self._bucket, prefix=folder_of(prefix), retry=self._retry
                )
                # Parts of unfinished uploads are no objects, but where they are asked for.
                if prefix.startswith(_HIDDEN) or not blob.name.startswith(f"{_HIDDEN}/")
            ]
        return iter(sorted(found, key=lambda stat: stat.key))

    def stat(self, key: str) -> Stat | None:
        blob = self._blob(key)
        return None if blob is None else _stat(blob)

    @contextmanager
    def open(self, key: str, *, start: int = 0, end: int | None = None) -> Iterator[Content]:
        stat = self.stat(key)
        if stat is None:
            raise KeyError(key)
        last = stat.bytes if end is None else min(end, stat.bytes)
        yield _Ranges(self, key, stat.version, start, last)

    def upload(self, key: str, *, locked_until: datetime | None = None) -> GcsUpload:
        return GcsUpload(self, key, locked_until)

    def delete(self, key: str, version: str) -> None:
        if self.stat(key) is None:
            return
        self._require(key, version)
        with self._asking(f"delete {key}"):
            try:
                self._bucket.blob(key).delete(if_generation_match=int(version), retry=self._retry)
            except exceptions.NotFound:
                return
            except exceptions.PreconditionFailed:
                raise Changed(key) from None
            except exceptions.Forbidden as error:
                if "retention" in str(error).lower() or "hold" in str(error).lower():
                    raise Locked(key) from None
                raise

    def clock(self) -> datetime:
        try:
            answer = httpx.get(self._endpoint, timeout=10.0)
        except httpx.HTTPError as error:
            raise self._silent(f"asked for the time: {error}", listing=False) from error
        return parsedate_to_datetime(answer.headers["date"]).astimezone(UTC)

    def _require(self, key: str, version: str) -> None:
        found = self.stat(key)
        if found is None or found.version != version:
            raise Changed(key)

    def _blob(self, key: str) -> Any:
        with self._asking(f"look at {key}"):
            blob = self._bucket.get_blob(key, retry=self._retry)
        if blob is None:
            self._require_bucket()
        return blob

    def _require_bucket(self) -> None:
        """A missing bucket has missing objects, too; that must not look like an empty one."""
        with self._asking("look at the bucket"):
            if not self._bucket.exists(retry=self._retry):
                raise self._no_bucket("look at it")

    @contextmanager
    def _asking(self, what: str, *, listing: bool = False) -> Iterator[None]:
        try:
            yield
        except (exceptions.Unauthorized, exceptions.Forbidden, GoogleAuthError) as error:
            raise Unauthorised(
                "SLP100",
                f"tried to {what}: Google Cloud Storage refuses it ({_first_line(error)})",
                help="give the location the JSON of a service account with that right",
                where=f"bucket {self.bucket}",
            ) from error
        except exceptions.NotFound as error:
            raise self._no_bucket(what) from error
        except (exceptions.GoogleAPIError, RequestException) as error:
            raise self._silent(f"tried to {what}: {_first_line(error)}", listing) from error

    def _no_bucket(self, what: str) -> SlipwayError:
        return UsageError(
            "SLP102",
            f"tried to {what}: there is no bucket {self.bucket}",
            help="create it, with a retention policy, or correct the location's name",
            where=f"bucket {self.bucket}",
        )

    def _silent(self, cause: str, listing: bool) -> Failed:
        return Failed(
            "SLP101" if listing else "SLP104",
            cause,
            help="run it again when the service is back; what was finished is not done twice",
            where=f"bucket {self.bucket}",
        )


class _Ranges:
    """Reads one generation of an object in ranges: a cut connection costs one range."""

    _CHUNK_BYTES = 8 << 20

    def __init__(self, store: GcsStore, key: str, version: str, start: int, end: int) -> None:
        self._store, self._key, self._version = store, key, version
        self._at, self._end = start, end

    def read(self, size: int = -1, /) -> bytes:
        left = self._end - self._at
        wanted = left if size < 0 else min(size, left, self._CHUNK_BYTES)
        if wanted <= 0:
            return b""
        blob = self._store._bucket.blob(self._key, generation=int(self._version))
        with self._store._asking(f"read {self._key}"):
            data = bytes(
                blob.download_as_bytes(
                    start=self._at,
                    end=self._at + wanted - 1,
                    checksum=None,
                    raw_download=True,
                    retry=self._store._retry,
                )
            )
        self._at += len(data)
        return data


class GcsUpload:
    """Parts as hidden objects, composed by 32 until one is left."""

    part_bytes = 16 << 20

    def __init__(self, store: GcsStore, key: str, locked_until: datetime | None) -> None:
        self._store, self._key, self._until = store, key, locked_until
        self._folder = f"{_HIDDEN}/{hashlib.sha256(key.encode()).hexdigest()[:32]}"
        self._seen, self._count = hashlib.sha256(), 0

    @property
    def done(self) -> tuple[UploadedPart, ...]:
        return tuple(
            UploadedPart(int(stat.key.rsplit("/", 1)[-1]), stat.bytes, stat.sha256)
            for stat in self._store.scan(self._folder)
            if stat.key.rsplit("/", 1)[-1].isdigit()
        )

    def put(self, number: int, content: bytes) -> None:
        self._count += 1
        self._seen.update(content)
        self._store._put(f"{self._folder}/{number:06d}", content, None, Changed(self._key))

    def complete(self, sha256: str) -> Stat:
        parts = self.done
        if [part.number for part in parts] != list(range(1, len(parts) + 1)) or (
            self._count == len(parts) and self._seen.hexdigest() != sha256
        ):
            raise self._damaged()
        if self._store.stat(self._key) is not None:
            raise AlreadyExists(self._key)
        names = [f"{self._folder}/{part.number:06d}" for part in parts]
        level = 0
        while len(names) > _MOST_COMPOSED:
            level += 1
            groups = [names[i : i + _MOST_COMPOSED] for i in range(0, len(names), _MOST_COMPOSED)]
            names = [
                self._compose(group, f"{self._folder}/level-{level}-{index:06d}", {})
                for index, group in enumerate(groups)
            ]
        self._compose(names, self._key, {"sha256": sha256}, generation=0)
        stat = self._store.stat(self._key)
        if stat is None or stat.bytes != sum(part.bytes for part in parts):
            raise self._damaged()
        self.abort()
        return stat

    def abort(self) -> None:
        for stat in self._store.scan(self._folder):
            self._store.delete(stat.key, stat.version)

    def _compose(
        self, names: list[str], key: str, metadata: dict[str, str], generation: int | None = None
    ) -> str:
        bucket = self._store._bucket
        blob = bucket.blob(key)
        blob.metadata, blob.content_type = metadata, "application/octet-stream"
        with self._store._asking(f"compose {key}"):
            try:
                blob.compose([bucket.blob(name) for name in names], if_generation_match=generation)
            except exceptions.PreconditionFailed:
                raise AlreadyExists(self._key) from None
        if generation == 0 and self._until is not None:
            self._lock(blob)
        return key

    def _lock(self, blob: Any) -> None:
        """A bucket without object retention promises nothing; that is no reason to fail."""
        blob.retention.mode = "Locked"
        blob.retention.retain_until_time = self._until
        try:
            blob.patch()
        except exceptions.GoogleAPIError:
            return

    def _damaged(self) -> Failed:
        return Failed(
            "SLP103",
            f"the parts of {self._key} are not what was sent",
            help="run it again; the parts that are there are replaced",
            where=f"bucket {self._store.bucket}",
        )


def _stat(blob: Any) -> Stat:
    return Stat(
        key=blob.name,
        bytes=int(blob.size or 0),
        version=str(blob.generation),
        modified_at=blob.updated.astimezone(UTC),
        sha256=(blob.metadata or {}).get("sha256"),
        locked_until=blob.retention_expiration_time,
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
