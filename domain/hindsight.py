"""What the entries of one release tell of it afterwards."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from domain.journal import Entry, Kind
from domain.judge import Judgement, Limits, Look, judge
from domain.steering import Verb
from domain.verdict import Verdict


@dataclass(frozen=True)
class Hindsight:
    """Of one release.

    Attributes:
        verdicts: one of each step that was judged by evidence and each service, in order; with
            ``step``, ``weight``, ``service``, ``verdict``, ``reason`` and ``numbers``.
        detected_after_requests: requests to both versions until the evidence spoke against the
            new one; None when it did not.
        rollback_seconds: from the decision to go back until all traffic was on the old version;
            None when it did not go back, or had no traffic to give back.
        overrides: decisions of people in place of the evidence, each with a name and a reason.
    """

    verdicts: tuple[Mapping[str, Any], ...] = ()
    detected_after_requests: int | None = None
    rollback_seconds: float | None = None
    overrides: tuple[str, ...] = ()


def look_back(entries: Iterable[Entry]) -> Hindsight:
    """Read the entries of one release."""
    entries = list(entries)
    verdicts = tuple(v for e in entries for v in e.data.get("judgements", ()))
    return Hindsight(
        verdicts=verdicts,
        detected_after_requests=_detected(verdicts),
        rollback_seconds=_rollback_seconds(entries),
        overrides=tuple(
            f"promoted by {e.actor}: {e.data.get('reason')}"
            for e in entries
            if e.kind is Kind.ASKED and e.data.get("verb") == Verb.PROMOTE
        ),
    )


def _detected(verdicts: Sequence[Mapping[str, Any]]) -> int | None:
    if not any(v["verdict"] == Verdict.FAIL for v in verdicts):
        return None
    arms = ("candidate_requests", "stable_requests")
    return sum(int(v["numbers"].get(arm) or 0) for v in verdicts for arm in arms)


def _rollback_seconds(entries: Sequence[Entry]) -> float | None:
    aborted = next((e for e in entries if e.kind is Kind.ABORTING), None)
    if aborted is None:
        return None
    back = next(
        (
            e
            for e in entries
            if e.sequence > aborted.sequence
            and e.kind is Kind.DONE
            and e.data.get("action") == "Route"
        ),
        None,
    )
    return round((back.at - aborted.at).total_seconds(), 3) if back else None


def judged_again(document: Mapping[str, Any]) -> dict[str, Judgement]:
    """The verdicts by service, from the evidence that was kept of a step."""
    limits = Limits.model_validate(document["limits"])
    return {
        service: judge([Look.model_validate(look) for look in looks], limits)
        for service, looks in document["looks"].items()
    }
