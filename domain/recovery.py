"""Recovery points: what was saved together, what a manifest says of it, and how far it is proved.

A point is whatever its manifest says; a point without one does not exist. The manifest is
written last and removed first, so that no crash leaves half a point that looks whole.

Layout at every location, below ``backups/APPLICATION/ENVIRONMENT/LINEAGE/``::

    claims/00000042.json            who makes point 42; create-only, so two cannot
    points/00000042/manifest.json   the commit mark, and ``manifest.twin.json`` with the same bytes
    points/00000042/postgres.0001   parts of members, each an age file of its own or a piece of one
    pool/ab/ab12...                 contents of the application's objects, shared between points
    proofs/00000042/LOCATION/...    one record for each climb of the ladder; create-only
    holds/00000042.json             never delete, with name and reason
    tombstones/00000042.json        deleted logically, purged after the grace period
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum, StrEnum
from typing import Annotated, Any

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class MemberKind(StrEnum):
    """What a recovery point may hold; every point says of each whether and why not."""

    POSTGRES = "postgres"
    GLOBALS = "globals"
    OBJECTS = "objects"
    REDIS = "redis"
    KUBERNETES = "kubernetes"
    SECRETS = "secrets"
    RDS = "rds"


class Rung(IntEnum):
    """The proof ladder: each rung says more than the one below, and none is climbed without it."""

    UPLOADED = 1
    READ_BACK = 2
    PARSED = 3
    RESTORED = 4
    CONTENT_HASHED = 5
    PROBED = 6

    @property
    def label(self) -> str:
        return self.name.lower()


class Facts(_Model):
    """What a member's source knows once its stream has ended.

    Attributes:
        data_time: the moment whose state was saved. Of a pg_dump that is its *start*.
        tools: programs and servers by name, with versions.
        inventory: what a restored copy must have again; compared, never trusted.
    """

    data_time: AwareDatetime
    tools: Mapping[str, str] = {}
    inventory: Mapping[str, Any] = {}


class Part(_Model):
    """One stored object: the key below the lineage, and the hash of its stored bytes."""

    key: str = Field(min_length=1)
    bytes: int = Field(ge=0)
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
