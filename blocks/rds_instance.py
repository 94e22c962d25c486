"""Which RDS instance a platform has, and the snapshots of it in each region."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from blocks.rds import RdsSnapshots
from domain.rds_snapshots import Owner


class RdsRegion(BaseModel):
    """Where snapshots are copied to."""

    model_config = ConfigDict(extra="forbid")

    region: str = Field(min_length=1)
    kms_key: str | None = Field(None, description="Of that region; an encrypted one needs it.")


class RdsInstance(BaseModel):
    """An instance whose snapshots are taken beside every recovery point."""

    model_config = ConfigDict(extra="forbid")

    instance: str = Field(min_length=1)
    region: str = Field(min_length=1)
    endpoint: str = Field("", description="Other than AWS's own.")
    copies: list[RdsRegion] = Field(default_factory=list)

    def keys(self) -> dict[str, str | None]:
        """The KMS key of each region, the instance's own first."""
        return {self.region: None, **{copy.region: copy.kms_key for copy in self.copies}}

    def snapshots(self, region: str, owner: Owner, secrets: Mapping[str, Any]) -> RdsSnapshots:
        """Those of one owner in one region."""
        import boto3  # slow to import

        client = boto3.client(
            "rds",
            region_name=region,
            endpoint_url=self.endpoint or None,
            aws_access_key_id=secrets.get("access_key"),
            aws_secret_access_key=secrets.get("secret_key"),
        )
        return RdsSnapshots(client, owner)
