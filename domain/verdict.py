"""Verdicts: what a check says, and how several become one.

Only ``pass`` advances anything. A check that did not run, saw nothing or saw too little has a
name of its own, so that no reader can mistake silence for health (design: "Verdicts fail
closed"). The order below is the order of ``worst``: the further right, the less we may trust
the thing that was checked.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field


class Verdict(StrEnum):
    """Outcome of one check."""

    PASS = "pass"
    TOO_FEW = "too_few"
    NO_DATA = "no_data"
    NOT_RUN = "not_run"
    ERROR = "error"
    FAIL = "fail"

    @property
    def advances(self) -> bool:
        return self is Verdict.PASS

    @property
    def symbol(self) -> str:
        return {"pass": "✔", "fail": "✖", "error": "!"}.get(self.value, "?")


_SEVERITY = {verdict: rank for rank, verdict in enumerate(Verdict)}


def worst(verdicts: Iterable[Verdict]) -> Verdict:
    """The verdict of a whole made of parts: its worst part; of no parts at all, ``not_run``.

    The empty case is the point: a scorer that returns its best mark for "nothing was counted"
    lets a crashed judge promote a canary.
    """
    return max(verdicts, key=_SEVERITY.__getitem__, default=Verdict.NOT_RUN)


class Check(BaseModel):
    """One check with the numbers that a person needs to believe it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    verdict: Verdict
    reason: Annotated[str, Field(description="One sentence: what was seen, against what limit.")]
    value: float | str | None = None
    limit: float | str | None = None
    samples: int | None = Field(None, ge=0)
