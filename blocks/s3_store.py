"""An object store in a bucket on S3.

Create-only and conditional writes are S3's own (``If-None-Match``, ``If-Match``). Every upload
carries its SHA-256, and what the bucket says it has is compared with it again, since not every
service that speaks S3 checks what it is sent.
"""

from __future__ import annotations

import base64
import hashlib
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

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

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

_TAKEN = frozenset({"PreconditionFailed", "412", "ConditionalRequestConflict"})
_NO_LOCK = frozenset({"InvalidRequest", "MalformedXML", "ObjectLockConfigurationNotFoundError"})
_MISSING = frozenset({"NoSuchKey", "404", "NotFound"})
_REFUSED = frozenset(
    {
        "AccessDenied", "403", "Forbidden", "InvalidAccessKeyId", "SignatureDoesNotMatch",
        "ExpiredToken", "InvalidToken",
    }
)  # fmt: skip


class S3Store:
    """Objects in one bucket.

    Args:
        owner: account that must own the bucket; a bucket of that name elsewhere is refused.
    """

    def __init__(self, client: S3Client, bucket: str, *, owner: str = "") -> None:
        self._s3, self.bucket = client, bucket
        self._there: dict[str, Any] = {"Bucket": bucket}
        if owner:
            self._there["ExpectedBucketOwner"] = owner

    @classmethod
    def connect(
        cls,
        bucket: str,
        *,
        region: str = "",
        endpoint: str = "",
        access_key: str = "",
        secret_key: str = "",
        owner: str = "",
        retries: int = 8,
    ) -> S3Store:
        """Nothing is asked of S3 yet. Without keys the machine's own credentials are used."""
        client = boto3.client(
            "s3",
            region_name=region or None,
            endpoint_url=endpoint or None,
            aws_access_key_id=access_key or None,
            aws_secret_access_key=secret_key or None,
            config=Config(
                retries={"mode": "standard", "total_max_attempts": retries},
                connect_timeout=5,
                read_timeout=60,
                s3={"addressing_style": "path" if endpoint else "auto"},
            ),
        )
        return cls(client, bucket, owner=owner)

    def create_bucket(self) -> None:
        """Make the bucket where it is missing: versioned, and with object lock."""
        region = self._s3.meta.region_name
        where: Any = (
            {} if region == "us-east-1"
            else {"CreateBucketConfiguration": {"LocationConstraint": region}}
        )  # fmt: skip
        with self._asking("create"):
            try:
                self._s3.create_bucket(Bucket=self.bucket, ObjectLockEnabledForBucket=True, **where)
            except ClientError as error:
                if _code(error) not in ("BucketAlreadyOwnedByYou", "BucketAlreadyExists"):
                    raise

    def create(self, key: str, content: bytes) -> None:
        self._put(key, content, {"IfNoneMatch": "*"}, AlreadyExists(key))

    def replace(self, key: str, content: bytes, *, expected: str | None = None) -> None:
        condition: dict[str, Any] = {}
        if expected is not None:
            found = self._head(key)
            if found is None or _version(found) != expected:
                raise Changed(key)
            condition = {"IfMatch": found["ETag"]}
        self._put(key, content, condition, Changed(key))

    def _put(self, key: str, content: bytes, condition: dict[str, Any], lost: Exception) -> None:
        token = uuid.uuid4().hex
        digest = hashlib.sha256(content)
        with self._asking(f"write {key}"):
            try:
                self._s3.put_object(
                    **self._there, Key=key, Body=content, **condition,
                    ChecksumSHA256=base64.b64encode(digest.digest()).decode(),
                    Metadata={"sha256": digest.hexdigest(), "write": token},
                )  # fmt: skip
            except ClientError as error:
                if _code(error) not in _TAKEN:
                    raise
                # The answer to our own write may have been lost, and the retry met it.
                found = self._head(key)
                if found is None or found["Metadata"].get("write") != token:
                    raise lost from None
        damaged = self.read(key) != content
        # Somebody may have replaced it since; then it is no damage.
        if damaged and (found := self._head(key)) and found["Metadata"].get("write") == token:
            raise self._damaged(key)

    def read(self, key: str) -> bytes | None:
        try:
            with self.open(key) as content:
                return content.read()
        except KeyError:
            return None

    def list(self, prefix: str) -> tuple[str, ...]:
        return tuple(stat.key for stat in self.scan(prefix))

    def scan(self, prefix: str) -> Iterator[Stat]:
        """The whole listing is fetched before the first entry is given out."""
        found: list[Stat] = []
        asked: dict[str, Any] = {**self._there, "Prefix": folder_of(prefix)}
        while True:
            with self._asking(f"list {prefix}", listing=True):
                page = self._s3.list_objects_v2(**asked)
            found += [
                Stat(
                    key=one["Key"],
                    bytes=one["Size"],
                    version=one["ETag"].strip('"'),
                    modified_at=one["LastModified"].astimezone(UTC),
                )
                for one in page.get("Contents", ())
            ]
            if not page["IsTruncated"]:
                return iter(found)
            token = page.get("NextContinuationToken")
            if not token or token == asked.get("ContinuationToken"):
                raise self._cut(prefix, len(found))
            asked["ContinuationToken"] = token

    def stat(self, key: str) -> Stat | None:
        found = self._head(key)
        return None if found is None else _stat(key, found)

    @contextmanager
    def open(self, key: str, *, start: int = 0, end: int | None = None) -> Iterator[Content]:
        part: dict[str, Any] = {}
        if start or end is not None:
            part = {"Range": f"bytes={start}-{'' if end is None else end - 1}"}
        with self._asking(f"read {key}"):
            try:
                answer = self._s3.get_object(**self._there, Key=key, **part)
            except ClientError as error:
                if _code(error) in _MISSING:
                    raise KeyError(key) from None
                raise
            body = answer["Body"]
            with body:
                yield body

    def upload(self, key: str, *, locked_until: datetime | None = None) -> S3Upload:
        with self._asking(f"look for an unfinished upload of {key}"):
            pages = self._s3.get_paginator("list_multipart_uploads").paginate(
                **self._there, Prefix=key
            )
            left = [u for page in pages for u in page.get("Uploads", ()) if u["Key"] == key]
        return S3Upload(self, key, locked_until, left[0]["UploadId"] if left else "")

    def delete(self, key: str, version: str) -> None:
        """With everything that it replaced: else an older version would come to light."""
        found = self._head(key)
        if found is None:
            return
        if _version(found) != version:
            raise Changed(key)
        for exact in [*self._older(key, version), version] if _has_versions(found) else [""]:
            self._delete(key, exact)

    def _older(self, key: str, version: str) -> Iterator[str]:
        with self._asking(f"list the versions of {key}"):
            pages = self._s3.get_paginator("list_object_versions").paginate(
                **self._there, Prefix=key
            )
            found = [one for page in pages for one in page.get("Versions", ())]
        for one in found:
            if one["Key"] == key and one["VersionId"] != version:
                yield one["VersionId"]

    def _delete(self, key: str, version: str) -> None:
        exact: dict[str, Any] = {"VersionId": version} if version else {}
        with self._asking(f"delete {key}"):
            try:
                self._s3.delete_object(**self._there, Key=key, **exact)
            except ClientError as error:
                found = self._head(key) or {}
                until = found.get("ObjectLockRetainUntilDate")
                if until is not None and _code(error) in _REFUSED:
                    raise Locked(f"{key} until {until:%Y-%m-%d %H:%M} UTC") from None
                raise

    def clock(self) -> datetime:
        with self._asking("ask for the time"):
            answer = self._s3.head_bucket(**self._there)
        said = answer["ResponseMetadata"]["HTTPHeaders"]["date"]
        return parsedate_to_datetime(said).astimezone(UTC)

    def _head(self, key: str) -> Any:
        with self._asking(f"look at {key}"):
            try:
                return self._s3.head_object(**self._there, Key=key, ChecksumMode="ENABLED")
            except ClientError as error:
                if _code(error) not in _MISSING:
                    raise
        with self._asking("look at the bucket"):
            self._s3.head_bucket(**self._there)  # a missing bucket has missing objects, too
        return None

    @contextmanager
    def _asking(self, what: str, *, listing: bool = False) -> Iterator[None]:
        try:
            yield
        except ClientError as error:
            raise self._meaning(error, what, listing) from error
        except BotoCoreError as error:
            raise self._silent(f"tried to {what}: {error}", listing) from error

    def _meaning(self, error: ClientError, what: str, listing: bool) -> SlipwayError:
        code, said = _code(error), error.response.get("Error", {}).get("Message", "")
        place = f"bucket {self.bucket}"
        if code == "NoSuchBucket" or (code in _MISSING and "bucket" in what):
            return UsageError(
                "SLP102",
                f"tried to {what}: there is no bucket {self.bucket}",
                help="create it, with versioning and object lock, or correct the location's name",
                where=place,
            )
        if code in _REFUSED:
            owner = self._there.get("ExpectedBucketOwner")
            of = f" (expected of account {owner})" if owner else ""
            return Unauthorised(
                "SLP100",
                f"tried to {what}: S3 refuses it ({code} {said.rstrip('.')}){of}",
                help="give the location credentials with that right, or correct its owner",
                where=place,
            )
        return self._silent(f"tried to {what}: S3 answered {code} {said.rstrip('.')}", listing)

    def _silent(self, cause: str, listing: bool) -> Failed:
        help = "run it again when S3 is back; what was finished is not done twice"
        return Failed(
            "SLP101" if listing else "SLP104", cause, help=help, where=f"bucket {self.bucket}"
        )

    def _cut(self, prefix: str, count: int) -> Failed:
        return Failed(
            "SLP101",
            f"the listing of {prefix} was cut after {count} objects",
            help="run it again; nothing was decided on half a listing",
            where=f"bucket {self.bucket}",
        )

    def _damaged(self, key: str) -> Failed:
        return Failed(
            "SLP103",
            f"what S3 has under {key} is not what was sent",
            help="run it again; if it happens twice, look at what is between here and S3",
            where=f"bucket {self.bucket}",
        )


class S3Upload:
    """A multipart upload; S3 keeps its parts until it is completed or aborted."""

    part_bytes = 16 << 20

    def __init__(
        self, store: S3Store, key: str, locked_until: datetime | None, upload_id: str
    ) -> None:
        self._store, self._key, self._until, self._id = store, key, locked_until, upload_id
        self._parts: dict[int, tuple[str, str]] = {}  # number -> ETag, SHA-256 in base64
        self._done: tuple[UploadedPart, ...] = ()
        self._seen, self._in_order = hashlib.sha256(), not upload_id
        if upload_id:
            self._find_parts()

    @property
    def done(self) -> tuple[UploadedPart, ...]:
        return self._done

    def put(self, number: int, content: bytes) -> None:
        self._begin()
        self._in_order = self._in_order and number == len(self._parts) + 1
        self._seen.update(content)
        checksum = base64.b64encode(hashlib.sha256(content).digest()).decode()
        with self._store._asking(f"upload part {number} of {self._key}"):
            answer = self._store._s3.upload_part(
                **self._store._there, Key=self._key, UploadId=self._id, PartNumber=number,
                Body=content, ChecksumSHA256=checksum,
            )  # fmt: skip
        md5 = hashlib.md5(content, usedforsecurity=False).hexdigest()
        # With a key of its own (SSE-KMS) the ETag is no MD5; S3 then checked the SHA-256.
        is_md5 = not answer.get("ServerSideEncryption", "").startswith("aws:kms")
        if is_md5 and answer["ETag"].strip('"') != md5:
            raise self._store._damaged(self._key)
        self._parts[number] = answer["ETag"], checksum

    def complete(self, sha256: str) -> Stat:
        self._begin()
        if self._in_order and self._seen.hexdigest() != sha256:
            raise self._store._damaged(self._key)
        parts: Any = [
            {
                "PartNumber": number,
                "ETag": etag,
                **({"ChecksumSHA256": checksum} if checksum else {}),
            }
            for number, (etag, checksum) in sorted(self._parts.items())
        ]
        if self._store.stat(self._key) is not None and not self._is_ours():
            raise AlreadyExists(self._key)
        with self._store._asking(f"complete {self._key}"):
            try:
                self._store._s3.complete_multipart_upload(
                    **self._store._there, Key=self._key, UploadId=self._id, IfNoneMatch="*",
                    MultipartUpload={"Parts": parts},
                )  # fmt: skip
            except ClientError as error:
                if _code(error) in _TAKEN:
                    raise AlreadyExists(self._key) from None
                if _code(error) != "NoSuchUpload" or not self._is_ours():
                    raise
        if not self._is_ours():
            raise self._store._damaged(self._key)
        stat = self._store.stat(self._key)
        assert stat is not None
        if self._until is not None and stat.locked_until is None:
            return self._lock(stat, self._until)
        return stat

    def _lock(self, stat: Stat, until: datetime) -> Stat:
        """Where it was not locked as it was made; a bucket without object lock cannot."""
        with self._store._asking(f"lock {self._key}"):
            try:
                self._store._s3.put_object_retention(
                    **self._store._there, Key=self._key,
                    Retention={"Mode": "COMPLIANCE", "RetainUntilDate": until},
                )  # fmt: skip
            except ClientError as error:
                if _code(error) not in _NO_LOCK:
                    raise
                return stat
        return replace(stat, locked_until=until)

    def abort(self) -> None:
        if not self._id:
            return
        with self._store._asking(f"abort the upload of {self._key}"):
            try:
                self._store._s3.abort_multipart_upload(
                    **self._store._there, Key=self._key, UploadId=self._id
                )
            except ClientError as error:
                if _code(error) != "NoSuchUpload":
                    raise
        self._id, self._parts, self._done = "", {}, ()

    def _begin(self) -> None:
        if self._id:
            return
        lock: dict[str, Any] = {}
        if self._until is not None:
            lock = {"ObjectLockMode": "COMPLIANCE", "ObjectLockRetainUntilDate": self._until}
        with self._store._asking(f"begin the upload of {self._key}"):
            try:
                answer = self._create(lock)
            except ClientError as error:
                # A bucket without object lock promises nothing, and says so only now.
                if not lock or _code(error) not in _NO_LOCK:
                    raise
                answer = self._create({})
        self._id = answer["UploadId"]

    def _create(self, lock: dict[str, Any]) -> Any:
        return self._store._s3.create_multipart_upload(
            **self._store._there, Key=self._key, ChecksumAlgorithm="SHA256", **lock
        )

    def _find_parts(self) -> None:
        with self._store._asking(f"look for parts of {self._key}"):
            pages = self._store._s3.get_paginator("list_parts").paginate(
                **self._store._there, Key=self._key, UploadId=self._id
            )
            found = [part for page in pages for part in page.get("Parts", ())]
        # Services that only speak S3 may not tell the hash; S3 does.
        self._parts = {p["PartNumber"]: (p["ETag"], p.get("ChecksumSHA256", "")) for p in found}
        self._done = tuple(
            UploadedPart(p["PartNumber"], p["Size"], _hex(p.get("ChecksumSHA256"))) for p in found
        )

    def _is_ours(self) -> bool:
        """The object that is there is made of exactly our parts."""
        found = self._store._head(self._key)
        if found is None:
            return False
        said = str(found.get("ChecksumSHA256", ""))
        hashes = [base64.b64decode(checksum) for _, (_, checksum) in sorted(self._parts.items())]
        if said and all(hashes):
            whole = base64.b64encode(hashlib.sha256(b"".join(hashes)).digest()).decode()
            return bool(said.partition("-")[0] == whole)
        md5 = hashlib.md5(usedforsecurity=False)
        for _, (etag, _) in sorted(self._parts.items()):
            md5.update(bytes.fromhex(etag.strip('"')))
        return str(found["ETag"]).strip('"') == f"{md5.hexdigest()}-{len(self._parts)}"


def _code(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))


def _has_versions(head: Any) -> bool:
    return bool(head.get("VersionId", "null") != "null")


def _version(head: Any) -> str:
    return str(head["VersionId"]) if _has_versions(head) else str(head["ETag"]).strip('"')


def _stat(key: str, head: Any) -> Stat:
    return Stat(
        key=key,
        bytes=head["ContentLength"],
        version=_version(head),
        modified_at=head["LastModified"].astimezone(UTC),
        sha256=head["Metadata"].get("sha256"),
        locked_until=head.get("ObjectLockRetainUntilDate"),
    )


def _named(number: int, etag: str, checksum: str) -> dict[str, Any]:
    """A part as the completion names it; its hash only where it is known."""
    named = {"PartNumber": number, "ETag": etag, "ChecksumSHA256": checksum}
    return {key: value for key, value in named.items() if value}


def _hex(checksum: str | None) -> str | None:
    return base64.b64decode(checksum).hex() if checksum else None
