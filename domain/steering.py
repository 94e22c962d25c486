"""What a person may ask of a release that is under way, and when."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import StrEnum

from domain.errors import UsageError
from domain.journal import Entry, Kind, Outcome, Release, unfinished


class Verb(StrEnum):
    """A request; it is an entry of the journal, and the release acts on it when it reads it."""

    PAUSE = "pause"
    RESUME = "resume"
    PROMOTE = "promote"
    ABORT = "abort"


_NEEDS_REASON = (Verb.PROMOTE, Verb.ABORT)


def said(entry: Entry) -> str:
    """Who asked, and why."""
    return f"{entry.actor}: {entry.data.get('reason') or 'no reason given'}"


def paused_by(entries: Iterable[Entry]) -> str | None:
    """Who holds a release, from its entries; None when nobody does."""
    who = None
    for entry in entries:
        match entry.data.get("verb") if entry.kind is Kind.ASKED else None:
            case Verb.PAUSE:
                who = said(entry)
            case Verb.RESUME | Verb.PROMOTE:
                who = None
    return who


def check_request(
    history: Sequence[Release], verb: Verb, reason: str, *, paused: bool, where: str
) -> Release:
    """The release that the request is for.

    Raises:
        UsageError: SLP061, nothing is under way, the request has no effect, or it lacks the
            reason that the journal keeps for it.
    """
    release = unfinished(history)
    if release is None:
        last = history[-1] if history else None
        ended = f"; release {last.number} ended {last.outcome}" if last else ""
        raise UsageError(
            "SLP061",
            f"tried to {verb} a release of {where}, and none is under way{ended}",
            help="see `slipway status`",
        )
    if verb in _NEEDS_REASON and not reason.strip():
        raise UsageError(
            "SLP061",
            f"{verb} decides in place of the evidence, and no reason is given",
            help=f'say why: slipway {verb} ... --reason "..."; the journal keeps it',
        )
    if (verb is Verb.PAUSE and paused) or (verb is Verb.RESUME and not paused):
        state = "paused already" if paused else "not paused"
        raise UsageError(
            "SLP061", f"release {release.number} of {where} is {state}", help="see `slipway status`"
        )
    return release


def last_attempt(history: Sequence[Release], where: str) -> Release:
    """The release that a retry tries again: the newest that moved anything, if it was taken back.

    Raises:
        UsageError: SLP061 when there is nothing to try again.
    """
    last = next((r for r in reversed(history) if r.workloads), None)
    if last is None or last.outcome is None or last.outcome is Outcome.PROMOTED:
        seen = f"{last.number} is {last.outcome or 'under way'}" if last else "there is none"
        raise UsageError(
            "SLP061",
            f"looked for a release of {where} that was taken back, to try it again; {seen}",
            help="see `slipway history`",
        )
    return last
