"""A failover as it is approved: what would be done, and what that loses."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass


@dataclass(frozen=True)
class MovePlan:
    """What would be done, and what is lost by it: approved by its digest.

    Attributes:
        losing: what going now loses, and ``waiting``: what waiting does.
    """

    application: str
    environment: str
    source: str
    target: str
    tier: str
    version: str
    epoch: int
    planned: bool
    copy: str
    losing: str
    waiting: str

    @property
    def digest(self) -> str:
        """Of what is done, without what changes by the second."""
        fixed = {k: v for k, v in self.__dict__.items() if k not in ("losing", "waiting")}
        return hashlib.sha256(json.dumps(fixed, sort_keys=True).encode()).hexdigest()[:16]

    def lines(self) -> list[str]:
        """For whoever decides."""
        how = "planned, with both sides working" if self.planned else "the old side is given up"
        return [
            f"move {self.application} in {self.environment} from {self.source} to {self.target}: "
            f"{how}; tier {self.tier}" + (f", {self.copy}" if self.copy else ""),
            f"going now: {self.losing}",
            f"waiting: {self.waiting}",
            f"approve it: slipway failover {self.application} -e {self.environment} --approve "
            f"{self.digest}",
        ]
