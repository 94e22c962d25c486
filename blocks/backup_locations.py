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


def open_store(where: BackupLocation, secrets: Mapping[str, Any] | None) -> ObjectStore:
    """The store of a location; nothing is asked of it yet."""
    match where.kind:
        case "file":
            return FileStore(Path(where.bucket))
        case _:
            raise NotImplementedError(where.kind)
