"""Sentry: where errors are reported to, when a DSN is configured.

The DSN is ``SLIPWAY_SENTRY_DSN``, else ``SENTRY_DSN``; without one nothing is imported and
nothing happens. Each report makes its own client and closes it again: a hook runs in another
process than its flow, and nothing of the program that reports is changed (no global state, no
patched library, no handler at exit).

Only what is built here leaves, and only after ``domain.redaction`` has been over all of it. Of
local variables that is the plain values (text, numbers, names, times); of anything else its type.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import date, timedelta
from enum import Enum
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path, PurePath
from traceback import walk_tb
from types import FrameType
from typing import TYPE_CHECKING, Any
from uuid import UUID

from domain.errors import AwaitingApproval, SlipwayError, UsageError
from domain.redaction import Redactor, secrets_in

if TYPE_CHECKING:
    from sentry_sdk.types import Event

VARIABLES = ("SLIPWAY_SENTRY_DSN", "SENTRY_DSN")
"""Environment variables that hold the DSN; the first one that is set counts, be it empty."""

FLUSH_SECONDS = 2.0
"""How long a report may hold up its caller, whatever the Sentry server does."""

_EXPECTED = (UsageError, AwaitingApproval)  # somebody's mistake or turn, not a failure
_OURS = frozenset({"domain", "blocks", "tasks", "flows", "deployments", "load", "sandbox"})
_ROOT = Path(__file__).resolve().parent.parent
_PERSONAL = frozenset({"actor"})  # names of local variables that hold who a person is
_PLAIN = (str, bool, int, float, type(None), Enum, PurePath, UUID, date, timedelta)
_TAG_CHARACTERS, _TEXT_CHARACTERS, _LOCAL_CHARACTERS = 200, 4000, 300
_FRAMES, _CAUSES = 60, 8

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class About:
    """What an error is about. ``environment`` is Sentry's own, the rest are tags.

    Attributes:
        environment: such as production.
        version: of the application that was shipped.
        release: its number in the journal.
        flow_run: id of the Prefect run; a link when ``url`` is given.
        command: of the command line, instead of a flow.
    """

    application: str = ""
    environment: str = ""
    version: str = ""
    release: int | None = None
    flow: str = ""
    flow_run: str = ""
    command: str = ""


def dsn(environ: Mapping[str, str] = os.environ) -> str:
    """Where to report to; empty: nowhere."""
    return next((environ[name] for name in VARIABLES if name in environ), "").strip()


def report(
    error: BaseException | str,
    about: About = About(),
    *,
    crumbs: Iterable[str] = (),
    environ: Mapping[str, str] = os.environ,
) -> bool:
    """Report an error; True when it was handed to the transport. Never raises.

    Usage errors (exit 2) and waiting for approval (exit 5) are expected, and stay here.

    Args:
        error: what happened; a text where there is no exception, as after a crash.
        crumbs: what was done before, oldest first.
    """
    target = dsn(environ)
    if not target or isinstance(error, _EXPECTED):
        return False
    try:
        return _send(target, _event(error, about, crumbs), _redactor(error, environ))
    except Exception as trouble:
        # The DSN may be what is wrong, and a DSN is not shown.
        _log.warning("the error could not be reported to Sentry: %s", type(trouble).__name__)
        return False


def _send(target: str, event: Event, redactor: Redactor) -> bool:
    import sentry_sdk

    client = sentry_sdk.Client(
        dsn=target,
        before_send=lambda event, hint: _short(redactor.tree(event)),
        release=f"slipway@{_our_version()}",
        # `send_default_pii` stays at its default, off: to say so is deprecated in newer versions.
        default_integrations=False,
        auto_enabling_integrations=False,
        auto_session_tracking=False,
        send_client_reports=False,
        include_source_context=False,
        spotlight=False,
        # As plain text, so that whoever guards the way out can read what leaves.
        _experiments={"transport_compression_level": 0},
    )
    try:
        return client.capture_event(event) is not None
    finally:
        client.close(timeout=FLUSH_SECONDS)


def _redactor(error: BaseException | str, environ: Mapping[str, str]) -> Redactor:
    """Knows the secrets of the environment and of every frame that the error went through."""
    found = set(secrets_in(environ))
    for one in _chain(error):
        for frame in _frames(one):
            found |= secrets_in(frame.f_locals)
    return Redactor(found)


# --- the event ------------------------------------------------------------------------------


def _event(error: BaseException | str, about: About, crumbs: Iterable[str]) -> Event:
    event: Event = {
        "level": "error",
        "environment": about.environment or "unspecified",
        "tags": _tags(error, about),
        "extra": _extra(error),
        "breadcrumbs": {"values": [{"message": text, "level": "info"} for text in crumbs]},
    }
    if isinstance(error, str):
        event["message"] = error
    else:
        # Sentry wants the first cause first.
        event["exception"] = {"values": [_exception(one) for one in reversed([*_chain(error)])]}
    return event


def _tags(error: BaseException | str, about: About) -> dict[str, str]:
    told = {
        "application": about.application,
        "application_version": about.version,
        "release_number": "" if about.release is None else str(about.release),
        "flow": about.flow,
        "flow_run": about.flow_run,
        "command": about.command,
        "code": error.code if isinstance(error, SlipwayError) else "",
    }
    return {name: value[:_TAG_CHARACTERS] for name, value in told.items() if value}


def _extra(error: BaseException | str) -> dict[str, object]:
    """``detail`` stays here: it holds log lines of applications, and so their users' data."""
    if not isinstance(error, SlipwayError):
        return {}
    return {"help": error.help, "where": error.where, "exit_code": error.exit_code}


def _exception(error: BaseException) -> dict[str, Any]:
    return {
        "type": type(error).__name__,
        "module": type(error).__module__,
        "value": str(error),
        "stacktrace": {"frames": [_frame(frame, line) for frame, line in _lines(error)]},
    }


def _frame(frame: FrameType, line: int) -> dict[str, Any]:
    module = str(frame.f_globals.get("__name__", ""))
    place = _place(frame, module)
    return {
        "module": module,
        "filename": place.as_posix(),
        "function": frame.f_code.co_name,
        "lineno": line,
        "in_app": place.parts[0] in _OURS,
        "vars": {n: _shown(v) for n, v in frame.f_locals.items() if n not in _PERSONAL},
    }


def _place(frame: FrameType, module: str) -> PurePath:
    """Where the code is in our house; by its file, for Prefect gives flows other module names."""
    try:
        return Path(frame.f_code.co_filename).relative_to(_ROOT)
    except ValueError:
        return PurePath(f"{module.replace('.', '/')}.py")


def _shown(value: object) -> str:
    return str(value) if isinstance(value, _PLAIN) else f"<{type(value).__name__}>"


def _chain(error: BaseException | str) -> Iterator[BaseException]:
    """The error and what it came from, newest first."""
    current = None if isinstance(error, str) else error
    seen: set[int] = set()
    while current is not None and id(current) not in seen and len(seen) < _CAUSES:
        seen.add(id(current))
        yield current
        hidden = current.__suppress_context__
        current = current.__cause__ or (None if hidden else current.__context__)


def _lines(error: BaseException) -> list[tuple[FrameType, int]]:
    return list(walk_tb(error.__traceback__))[-_FRAMES:]


def _frames(error: BaseException) -> list[FrameType]:
    return [frame for frame, _ in _lines(error)]


def _short(event: Event) -> Event:
    """Cut only after the secrets are gone: half a secret is not recognised as one."""
    for one in event.get("exception", {}).get("values", ()):
        one["value"] = _cut(one["value"], _TEXT_CHARACTERS)
        for frame in one["stacktrace"]["frames"]:
            frame["vars"] = {k: _cut(v, _LOCAL_CHARACTERS) for k, v in frame["vars"].items()}
    return event


def _cut(text: str, characters: int) -> str:
    return text if len(text) <= characters else f"{text[:characters]}..."


def _our_version() -> str:
    try:
        return version("slipway")
    except PackageNotFoundError:
        return "unknown"
