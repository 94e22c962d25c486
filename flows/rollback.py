"""Roll back: the version before, or a chosen release, serves again."""

from __future__ import annotations

from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed

from blocks.platform import load_platform
from domain.application import Strategy
from domain.errors import SlipwayError
from flows.verify import verify
from tasks.alerts import ALERTS
from tasks.naming import run_name
from tasks.releasing import (
    begin,
    error_of,
    holding,
    on_trial,
    open_journal,
    release_of,
    take_over,
    target_release,
)
from tasks.reporting import Telling, told
from tasks.sourcing import read_record


@flow(name="rollback", flow_run_name=run_name,
      timeout_seconds=3600, on_failure=ALERTS, on_crashed=ALERTS)  # fmt: skip
def rollback(
    environment: str,
    application: str,
    to_release: int = 0,
    actor: str = "",
    platform: str = "sandbox",
) -> State[Any]:
    """Go back to an earlier version; instant while its replicas are still kept.

    No migration is undone: the older version runs on the newer schema, as it did while both
    served.

    Args:
        environment: Where to go back.
        application: Name of the application.
        to_release: Number of the release to go back to; 0 is the version before the live one.
        actor: Who asked for it, for the journal.
        platform: Slipway Platform block it runs on.
    """
    target = load_platform(platform)
    telling = Telling(target, application, environment, "rollback", ("deploy", "verify"),
                      strategy="blue-green", actor=actor)  # fmt: skip
    try:
        with (
            told(telling),
            holding(target, application, environment),
        ):
            journal = open_journal(target, application, environment, actor)
            take_over(target, journal)  # first: it may change what is live
            goal = target_release(journal, to_release)
            telling.version, telling.digest = goal.version, goal.digest
            record = read_record(target, goal.digest)
            with telling.stage("deploy"):
                rollout = begin(target, record, environment, strategy=Strategy.BLUE_GREEN,
                                actor=actor, back_to=goal)  # fmt: skip
                telling.release = rollout.number
                rollout.drive(until=on_trial)
            ended = release_of(rollout.journal, rollout.number)
            if ended.outcome is not None:
                raise error_of(rollout.journal, ended)
            with telling.stage("verify"):
                verify(environment, application, platform)
    except SlipwayError as error:
        return Failed(message=telling.sentence or str(error))
    return Completed(message=telling.sentence)
