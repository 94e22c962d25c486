"""What people, and newer releases, ask of a release that is under way."""

from __future__ import annotations

from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.exceptions import ObjectNotFound

from blocks.journal import Journal
from blocks.platform import Platform
from domain.application import Application, Superseding
from domain.errors import UsageError
from domain.journal import Release, unfinished
from domain.rollout import replay
from domain.steering import Verb, check_request
from tasks.releasing import open_journal, run_id


def ask(journal: Journal, verb: Verb, reason: str) -> Release:
    """Write a request into the journal; the release acts on it within a second.

    Raises:
        UsageError: SLP061.
    """
    where = f"{journal.application} in {journal.environment}"
    left = unfinished(journal.history())
    paused = left is not None and _is_paused(journal, left)
    release = check_request(journal.history(), verb, reason, paused=paused, where=where)
    journal.ask(release.number, {"verb": verb.value, "reason": reason.strip()})
    return release


def _is_paused(journal: Journal, release: Release) -> bool:
    state = replay(e for e in journal.entries if e.release == release.number)
    return state.paused is not None


def make_way(
    platform: Platform, application: Application, environment: str, version: str, actor: str = ""
) -> None:
    """Before a newer release queues: what the declared policy says of one that is under way.

    One whose process has died is nobody's; whoever comes next puts back what it left.

    Raises:
        UsageError: SLP062, the policy is ``refuse``.
    """
    if application.superseding is Superseding.QUEUE:
        return
    journal = open_journal(platform, application.name, environment, actor)
    left = unfinished(journal.history())
    if left is None or left.run == run_id() or not _is_alive(left.run):
        return
    what = f"release {left.number} ({left.version}) of {application.name} in {environment}"
    if application.superseding is Superseding.REFUSE:
        raise UsageError(
            "SLP062",
            f"{what} is under way since {left.started_at:%H:%M} UTC, by {left.actor}",
            help=f"wait for it, or end it: slipway abort {application.name} --environment "
            f'{environment} --reason "..."',
        )
    reason = f"replaced by {version or 'a newer release'}"
    journal.ask(left.number, {"verb": Verb.ABORT.value, "reason": reason})


def _is_alive(run: str) -> bool:
    try:
        identity = UUID(run)
    except ValueError:
        return False
    with get_client(sync_client=True) as client:
        try:
            state = client.read_flow_run(identity).state
        except ObjectNotFound:
            return False
    return state is not None and not state.is_final()


def last_attempt(journal: Journal) -> Release:
    """The release that a retry tries again: the newest, if it was taken back.

    Raises:
        UsageError: SLP061 when there is nothing to try again.
    """
    history = [r for r in journal.history() if r.data.get("workloads")]
    last = history[-1] if history else None
    if last is None or last.outcome is None or last.outcome.value == "PROMOTED":
        seen = (
            f"release {last.number} is {last.outcome or 'under way'}" if last else "there is none"
        )
        raise UsageError(
            "SLP061",
            f"looked for a release of {journal.application} in {journal.environment} that was "
            f"taken back, to try it again; {seen}",
            help="see `slipway history`",
        )
    return last
