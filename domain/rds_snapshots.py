"""RDS snapshots: which are ours, when their data is from, and which may be deleted.

Whose a snapshot is, says its tags: a name is free for anybody to choose.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import NamedTuple

HOLD = "slipway:hold"
"""Tag of a snapshot that must stay; its value is the reason."""

COPY_OF = "slipway:copy-of"
"""Tag of a copy; its value is the ARN of the source."""

_POINT = "slipway:point"
_LONGEST = 255


@dataclass(frozen=True)
class Owner:
    """Whose snapshots they are."""

    application: str
    environment: str
    lineage: str = "main"

    def tags(self, point: str) -> dict[str, str]:
        return {
            "slipway:application": self.application,
            "slipway:environment": self.environment,
            "slipway:lineage": self.lineage,
            _POINT: point,
        }

    def identifier(self, point: str) -> str:
        """The same for every attempt at the same point, so that a second attempt goes on.

        RDS takes letters, digits and single hyphens, at most 255. Two owners that differ in
        hyphens alone get one name; the tags tell them apart.
        """
        text = f"slipway-{self.application}-{self.environment}-{self.lineage}-{point}"
        name = re.sub(r"-+", "-", re.sub(r"[^a-z0-9-]", "-", text.lower()))
        return name[-_LONGEST:].strip("-")

    def owns(self, snapshot: Snapshot) -> bool:
        wanted = self.tags("").items() - {(_POINT, "")}
        return wanted <= snapshot.tags.items() and _POINT in snapshot.tags


@dataclass(frozen=True)
class Snapshot:
    """What RDS says of one.

    Attributes:
        kind: ``manual``, ``automated``, ``awsbackup``, ``shared`` or ``public``.
        percent: how much of it is done.
        taken_at: when the data is from; a copy keeps the time of its source. None at first.
        source: ARN of what it is a copy of.
    """

    identifier: str
    arn: str
    instance: str
    kind: str
    status: str
    percent: int = 0
    taken_at: datetime | None = None
    encrypted: bool = False
    kms_key: str | None = None
    engine: str = ""
    gibibytes: int = 0
    source: str | None = None
    tags: Mapping[str, str] = field(default_factory=dict)

    @property
    def point(self) -> str:
        return self.tags.get(_POINT, "")

    @property
    def is_available(self) -> bool:
        return self.status == "available" and self.percent >= 100 and self.taken_at is not None

    @property
    def has_failed(self) -> bool:
        return self.status == "failed" or self.status.startswith("incompatible-")

    @property
    def region(self) -> str:
        return self.arn.split(":")[3]


def why_kept(snapshot: Snapshot, owner: Owner, held: Mapping[str, str]) -> str:
    """Why it may not be deleted; empty when it may.

    Args:
        held: points that must stay, with the reason.
    """
    if snapshot.kind != "manual":
        return f"it is {snapshot.kind}: RDS or another service made it and removes it"
    if not owner.owns(snapshot):
        return "it does not have the tags of this application's backups"
    if HOLD in snapshot.tags:
        return f"it is held: {snapshot.tags[HOLD]}"
    if snapshot.point in held:
        return f"point {snapshot.point} is held: {held[snapshot.point]}"
    if not (snapshot.status == "available" or snapshot.has_failed):
        return f"it is {snapshot.status}, so something is using it"
    return ""


class Window(NamedTuple):
    """Between which moments an instance can be restored to any."""

    earliest: datetime
    latest: datetime

    def holds(self, at: datetime) -> bool:
        return self.earliest <= at <= self.latest
