"""Where recovery points are kept: a directory, a bucket on S3, a bucket on Google Cloud."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from blocks.file_store import FileStore
from blocks.object_store import ObjectStore


class BackupLocation(BaseModel):
    """One place; its secrets are kept apart, in the platform's `backup_credentials`."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,30}$")
    kind: Literal["file", "s3", "gcs"]
    bucket: str = Field(description="Name of the bucket, or path of the directory.")
    region: str = ""
    endpoint: str = Field("", description="Other than the cloud's own.")
    owner: str = Field("", description="AWS account that must own the bucket.")
    project: str = Field("", description="Google Cloud project.")
    patience_seconds: float = Field(60, gt=0, description="How long a call is tried (gcs).")
    create: bool = Field(False, description="Make the bucket where it is missing (emulators).")


def open_store(where: BackupLocation, secrets: Mapping[str, Any] | None) -> ObjectStore:
    """The store of a location.

    Args:
        secrets: `access_key` and `secret_key` (S3), or the JSON of a service account (GCS);
            without, the machine's own credentials.
    """
    given = dict(secrets or {})
    match where.kind:
        case "file":
            return FileStore(Path(where.bucket))
        case "s3":
            from blocks.s3_store import S3Store  # boto3 is slow to import

            # An emulator takes any key, but boto3 refuses to have none.
            spare = "emulator" if where.create else ""
            store = S3Store.connect(
                where.bucket,
                region=where.region,
                endpoint=where.endpoint,
                access_key=str(given.get("access_key", spare)),
                secret_key=str(given.get("secret_key", spare)),
                owner=where.owner,
            )
            if where.create:
                store.create_bucket()
            return store
        case "gcs":
            from blocks.gcs_store import GcsStore  # and so is Google's library

            bucket = GcsStore.connect(
                where.bucket,
                endpoint=where.endpoint,
                project=where.project,
                account=given,
                patience_seconds=where.patience_seconds,
            )
            if where.create:
                bucket.create_bucket()
            return bucket
