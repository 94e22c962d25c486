"""Feature flags as a release meets them: carried in, on in a preview, and killed first."""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from typing import Any

from prefect import runtime

from blocks.journal import Journal
from blocks.platform import Platform
from domain.flags import Definition, parse
from domain.ramp import Did
from domain.release import BuildRecord


def carry_in(platform: Platform, record: BuildRecord, environment: str) -> None:
    """Bring the flags that a release carries into an environment, off; idempotent.

    It comes before the first replica of the new version. Flags that are there keep their share.

    Raises:
        UsageError: SLP080, one of them is no on/off switch in the environment.
        Failed: SLP014 or SLP015, the flags could not be written.
    """
    application = record.application
    if application.flags is None:
        return
    source, carried = parse(record.flags, application.flags.file), tuple(application.flags.carry)
    known = platform.flags.read(application.name, environment)
    if known is not None and known.carrying(source, carried) == known:
        return
    new = [name for name in carried if known is None or name not in known.flags]
    journal = journal_of_flags(platform, application.name, environment)
    for flag in new:
        journal.flag(_entry(flag, Did.CARRIED, version=record.version))
    platform.flags.change(application.name, environment, lambda now: now.carrying(source, carried))


def kill_carried(
    platform: Platform, application: str, environment: str, flags: Iterable[str]
) -> list[str]:
    """Turn flags off for everybody; the names of those that were on for somebody. Idempotent.

    What a release tries before it moves traffic back: a fault behind a flag ends within a second
    of this. The file is read back; what users meet afterwards is for the release to judge.

    Raises:
        Failed: SLP014 or SLP015, the flags could not be read or written.
    """
    known = platform.flags.read(application, environment)
    on = [flag for flag in flags if known is not None and is_on(known, flag)]
    if not on:
        return []
    journal = journal_of_flags(platform, application, environment)
    for flag in on:
        journal.flag(_entry(flag, Did.SETTING, share=0.0, reason="its release goes back"))
    platform.flags.change(application, environment, lambda now: now.killed(on))
    return on


def journal_of_flags(
    platform: Platform, application: str, environment: str, actor: str = ""
) -> Journal:
    """A journal of its own: what it reads on the way must not reach a release's."""
    run = str(runtime.flow_run.root_flow_run_id or "none")
    return Journal(platform.store, application, environment, actor=actor or "prefect", run=run)


def is_on(known: Definition, flag: str) -> bool:
    """Whether anybody may get ``on``; of a flag that is no switch nobody can say, so yes."""
    found = known.flags.get(flag)
    if found is None or found.is_killed:
        return False
    try:
        return found.share > 0
    except ValueError:
        return True


def preview_flags(platform: Platform, record: BuildRecord, environment: str) -> dict[str, str]:
    """FLAGD_* of a preview: the source's own file, with every carried flag on for everybody."""
    application = record.application
    if application.flags is None:
        return {}
    found = parse(record.flags, application.flags.file)
    for flag in application.flags.carry:
        found = found.with_share(flag, 1.0)
    platform.flags.change(application.name, environment, lambda now: found)
    return platform.flags.environ(application.name, environment)


def _entry(flag: str, did: Did, **data: Any) -> dict[str, Any]:
    """Of one that is no ramp; its writer is like no other's, so that a ramp sees it."""
    return {"flag": flag, "did": did.value, "writer": uuid.uuid4().hex, **data}
