"""What a person may ask of a release that is under way, and when."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum

from domain.errors import UsageError
from domain.journal import Release, unfinished


class Verb(StrEnum):
    """A request; it is an entry of the journal, and the release acts on it when it reads it."""

    PAUSE = "pause"
    RESUME = "resume"
    PROMOTE = "promote"
    ABORT = "abort"


_NEEDS_REASON = (Verb.PROMOTE, Verb.ABORT)


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
