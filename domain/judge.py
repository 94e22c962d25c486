"""Stand-in until the judge lands: the shapes alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from pydantic import BaseModel, ConfigDict

from domain.routing import Counts
from domain.verdict import Verdict


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Limits(_Frozen):
    alpha: float = 0.01
    requests: int = 200
    error_rate: float | None = None
    p95_seconds: float | None = None


class Look(_Frozen):
    at: datetime
    candidate: Counts
    stable: Counts | None


@dataclass(frozen=True)
class Judgement:
    verdict: Verdict
    reason: str
    numbers: Mapping[str, Any]


class Trial:
    def __init__(self, limits: Limits) -> None:
        self.limits = limits

    def add(self, look: Look) -> Judgement:
        raise NotImplementedError


def judge(looks: Sequence[Look], limits: Limits) -> Judgement:
    raise NotImplementedError
