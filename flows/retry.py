"""Retry: the version that was taken back is tried again, with fresh evidence."""

from __future__ import annotations

from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed

from blocks.platform import load_platform
from domain.application import Strategy
from domain.errors import SlipwayError
from domain.steering import last_attempt
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
)
from tasks.reporting import Telling, told
from tasks.sourcing import read_record


@flow(name="retry", flow_run_name=run_name, timeout_seconds=7200,
      on_failure=ALERTS, on_crashed=ALERTS)  # fmt: skip
def retry(
    environment: str, application: str, actor: str = "", platform: str = "sandbox"
) -> State[Any]:
    """Try the release that was taken back last once more: same bundles, new evidence.

    Args:
        environment: Where to try again.
        application: Name of the application.
        actor: Who asked for it, for the journal.
        platform: Slipway Platform block it runs on.
    """
    target = load_platform(platform)
    telling = Telling(target, application, environment, "retry", ("deploy", "verify"), actor=actor)
    try:
        with (
            told(telling),
            holding(target, application, environment),
        ):
            journal = open_journal(target, application, environment, actor)
            last = last_attempt(journal.history(), f"{application} in {environment}")
            telling.version, telling.digest = last.version, last.digest
            telling.strategy = last.strategy
            record = read_record(target, last.digest)
            with telling.stage("deploy"):
                rollout = begin(target, record, environment, strategy=Strategy(last.strategy),
                                actor=actor)  # fmt: skip
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
