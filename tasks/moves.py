"""Showing in Prefect what a rollout did, from its own journal entries."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from prefect.artifacts import create_table_artifact
from prefect.events import emit_event

from blocks.journal import Journal
from domain.journal import Entry, Kind
from tasks.tables import cell

_SHOWN = (Kind.STARTED, Kind.DONE, Kind.STEP_PASSED, Kind.ABORTING, Kind.TAKEN_OVER, Kind.FINISHED)


def publish_moves(journal: Journal, number: int) -> None:
    """A table artifact ``rollout-APPLICATION-ENVIRONMENT`` and an event: the moves so far."""
    entries = [e for e in journal.entries if e.release == number and e.kind in _SHOWN]
    last = entries[-1]
    where = f"{journal.application} in {journal.environment}"
    create_table_artifact(
        key=f"rollout-{journal.application}-{journal.environment}",
        table=list(rows(entries)),
        description=f"**release {number}** of {where}: {_what(last)}",
    )
    emit_event(
        event=f"slipway.rollout.{last.kind}",
        resource={
            "prefect.resource.id": "slipway.environment."
            f"{journal.application}.{journal.environment}",
            "prefect.resource.name": where,
        },
        payload={"release": number, "entry": last.sequence, "what": _what(last)},
    )


def rows(entries: Iterable[Entry]) -> Iterable[dict[str, str]]:
    """One row a move; the checks of a step each get their own."""
    for entry in entries:
        yield _row(entry, _what(entry), str(entry.data.get("reason", "")))
        for check in entry.data.get("checks", ()):
            yield _row(entry, f"check: {check['verdict']}", str(check["reason"] or check["name"]))


def _what(entry: Entry) -> str:
    data = entry.data
    match entry.kind:
        case Kind.DONE:
            return f"{str(data['action']).lower()} {_object(data)}".strip()
        case Kind.FINISHED:
            return str(data["outcome"])
        case Kind.STARTED:
            return f"started {data['version']}, {data['strategy']}"
        case _:
            return str(entry.kind)


def _object(data: dict[str, Any] | Any) -> str:
    if sizes := data.get("sizes"):
        return ", ".join(f"{_short(w)} to {n}" for w, n in sizes.items())
    if weights := data.get("weights"):
        return ", ".join(f"{n}% {_short(w)}" for ws in weights.values() for w, n in ws.items())
    return ", ".join(_short(w) for w in data.get("workloads") or ())


def _short(workload: str) -> str:
    """Service and release: ``api.r7``."""
    return ".".join(workload.split(".")[-2:])


def _row(entry: Entry, what: str, why: str) -> dict[str, str]:
    return {
        "entry": str(entry.sequence),
        "at": f"{entry.at:%H:%M:%S} UTC",
        "what": cell(what),
        "why": cell(why),
    }
