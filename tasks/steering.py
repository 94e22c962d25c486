"""What a newer release does to one that is under way."""

from __future__ import annotations

from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.exceptions import ObjectNotFound

from blocks.platform import Platform
from domain.application import Application, Superseding
from domain.errors import UsageError
from domain.journal import unfinished
from domain.steering import Verb
from tasks.releasing import open_journal, run_id


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
    journal.ask(Verb.ABORT, reason)


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
