"""From a scanner's work to its report: what it saw, or why it could not see."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from pydantic import ValidationError

from domain.errors import Failed, SlipwayError
from domain.findings import Finding, Scanner, ScannerReport


@dataclass(frozen=True)
class Seen:
    """What a scanner saw when it could do its work."""

    checked: int
    checked_against: str
    findings: tuple[Finding, ...]
    tool: str


@dataclass(frozen=True)
class NothingToDo:
    """The fact for which there is nothing to scan."""

    reason: str


def report(
    scanner: Scanner, scope: str, tool: str, work: Callable[[], Seen | NothingToDo]
) -> ScannerReport:
    """Do the work and report it; whatever stops the scanner becomes its ``problem``.

    A scanner that ran into an error is never a reason to lose the reports of the others, so
    expected errors end here as evidence and not as exceptions.
    """
    started = time.monotonic()
    try:
        seen = work()
    except (SlipwayError, OSError, ValueError) as error:
        told = _told(scanner, error)
        return ScannerReport(
            scanner=scanner,
            scope=scope,
            tool=tool,
            problem=f"{told.cause} ({told.where})" if told.where else told.cause,
            remedy=told.help,
            detail=told.detail,
            seconds=time.monotonic() - started,
        )
    if isinstance(seen, NothingToDo):
        return ScannerReport(
            scanner=scanner,
            scope=scope,
            tool=tool,
            not_applicable=seen.reason,
            seconds=time.monotonic() - started,
        )
    return ScannerReport(
        scanner=scanner,
        scope=scope,
        tool=seen.tool,
        checked=seen.checked,
        checked_against=seen.checked_against,
        findings=seen.findings,
        seconds=time.monotonic() - started,
    )


def blind(cause: str, *, help: str, where: str | None = None, detail: str = "") -> Failed:
    """The error of a scanner that could not do its work."""
    return Failed("SLP041", cause, help=help, where=where, detail=detail)


def _told(scanner: Scanner, error: Exception) -> SlipwayError:
    if isinstance(error, SlipwayError):
        return error
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"])) or "document"
        return blind(
            f"the output of {scanner} is not what it should be: {place}: {first['msg']}",
            help=f"check that the installed version of {scanner} is a supported one",
        )
    return blind(
        f"{scanner} could not work: {type(error).__name__}: {error}",
        help="repair the cause and scan again",
    )
