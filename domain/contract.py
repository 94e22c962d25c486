"""Schema changes that an older version cannot live with: when they may run, and what they end.

A migration before traffic only *expands* the schema: both versions run on it, so traffic can go
back at any moment. What *contracts* it (a column dropped, a constraint tightened) waits until
nobody can go back any more, and from then on nobody may.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import StrEnum

from domain.errors import Failed, UsageError
from domain.journal import Entry, Kind, Release, live, unfinished

ACTION = "Contract"


class Contraction(StrEnum):
    """How far the contraction of one release is."""

    NOT_ASKED = "not asked"  # for `slipway contract` alone to run
    DUE = "due"  # its release asks for it, and something may still be gone back to
    BEGUN = "begun"  # and not known to have ended: it has to run again
    DONE = "done"


def contraction_of(entries: Iterable[Entry], release: int) -> Contraction:
    """By the journal alone; an end that nobody wrote down was none."""
    found = Contraction.NOT_ASKED
    for entry in (e for e in entries if e.release == release):
        ours = entry.data.get("action") == ACTION
        if entry.kind is Kind.STARTED and entry.data.get("policy", {}).get("contract"):
            found = Contraction.DUE
        elif ours and entry.kind is Kind.INTENT:
            found = Contraction.BEGUN
        elif ours and entry.kind is Kind.DONE:
            found = Contraction.DONE
    return found


def contracted_at(entries: Iterable[Entry]) -> int | None:
    """Number of the release whose contraction has begun last: before it lies no way back.

    The intent counts, not the end of it: a command that died half-way may have dropped something.
    """
    found = [e.release for e in entries if e.kind is Kind.INTENT and e.data.get("action") == ACTION]
    return max(found, default=None)


def check_contract(
    history: Sequence[Release], workloads: Iterable[str], command: str | None, where: str
) -> Release:
    """The live release, if its contraction may run now.

    Args:
        workloads: all that the cluster has of the application in the environment.
        command: the contraction that the live release declares.

    Raises:
        UsageError: SLP006, nothing is live; SLP064, the live version declares no contraction.
        Failed: SLP063, a version that needs the old schema serves, is kept, or is on its way.
    """
    current = live(history)
    if current is None:
        raise UsageError("SLP006", f"nothing is live of {where}", help="release it first")
    if not command:
        raise UsageError(
            "SLP064",
            f"{current.version}, which is live in {where}, declares no contraction",
            help="add `contract` to `database` in application.yaml and release that first",
        )
    if under_way := unfinished(history):
        raise Failed(
            "SLP063",
            f"release {under_way.number} ({under_way.version}) of {where} is under way, and may "
            f"still go back",
            help="wait until it has ended",
        )
    if others := sorted(set(workloads) - set(current.workloads.values())):
        raise Failed(
            "SLP063",
            f"{', '.join(others)} still runs, and needs the schema as it is",
            help="what is kept for a way back goes by itself after `keep_previous`; run this again",
        )
    return current


def check_way_back(entries: Iterable[Entry], release: Release, where: str) -> None:
    """Raises UsageError SLP065 for a release that the schema has left behind."""
    point = contracted_at(entries)
    if point is not None and release.number < point:
        raise UsageError(
            "SLP065",
            f"the schema of {where} was contracted with release {point}, so release "
            f"{release.number} ({release.version}) cannot run on it any more",
            help="go forward: correct the fault and release that; or restore a backup from before",
        )
