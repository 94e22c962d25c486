"""What is under protection: written by the flow ``standby``, read by the keepers of both sides."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from domain.failover import Tier


class Protection(BaseModel):
    """One protected environment.

    Attributes:
        databases: name of the database on each side, by the side's name.
        lease_seconds: of each renewal.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    application: str
    environment: str
    tier: Tier
    databases: Mapping[str, str]
    lease_seconds: float = Field(gt=0)
    since: AwareDatetime

    @property
    def key(self) -> str:
        return f"protected/{self.application}/{self.environment}.json"
