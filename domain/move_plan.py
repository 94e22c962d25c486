"""A failover as it is approved: what would be done, and what that loses."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass

_CHANGES = ("losing", "waiting", "ready", "resumes")
"""What may differ between a plan that was approved and the same one a moment later."""


@dataclass(frozen=True)
class MovePlan:
    """What would be done, and what is lost by it: approved by its digest.

    Attributes:
        epoch: in force when the move begins.
        losing: what going now loses, and ``waiting``: what waiting does.
        ready: what the last look at the standby found, and when.
        resumes: a run that died has claimed the epoch for the target already. The same plan, and
            so the same approvals.
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
    ready: str = ""
    resumes: bool = False

    @property
    def digest(self) -> str:
        """Of what is done, without what changes by the second."""
        fixed = {k: v for k, v in self.__dict__.items() if k not in _CHANGES}
        return hashlib.sha256(json.dumps(fixed, sort_keys=True).encode()).hexdigest()[:16]

    def lines(self) -> list[str]:
        """For whoever decides."""
        how = "planned, with both sides working" if self.planned else "the old side is given up"
        if self.resumes:
            how += "; goes on with a move that was begun and died"
        return [
            f"move {self.application} in {self.environment} from {self.source} to {self.target}: "
            f"{how}; tier {self.tier}" + (f", {self.copy}" if self.copy else ""),
            f"going now: {self.losing}",
            f"waiting: {self.waiting}",
            f"the standby: {self.ready}",
            f"approve it: slipway failover {self.application} -e {self.environment} --approve "
            f"{self.digest}",
        ]
