"""Verify: the public address answers as it should, or traffic goes back."""

from __future__ import annotations

from prefect import flow

from blocks.platform import load_platform
from domain.journal import Outcome
from tasks.alerts import ALERTS
from tasks.contracting import require_whole
from tasks.naming import run_name
from tasks.releasing import (
    check_live,
    error_of,
    holding,
    open_journal,
    release_of,
    trial,
)


@flow(name="verify", flow_run_name=run_name, timeout_seconds=3600,
      on_failure=ALERTS, on_crashed=ALERTS)  # fmt: skip
def verify(environment: str, application: str, platform: str = "sandbox") -> None:
    """Judge a release that is on trial and end it; with none on trial, check what is live.

    Args:
        environment: Where to look.
        application: Name of the application.
        platform: Slipway Platform block it runs on.
    """
    target = load_platform(platform)
    with holding(target, application, environment):
        journal = open_journal(target, application, environment)
        rollout = trial(target, journal)
        if rollout is None:
            check_live(target, journal)
            return
        rollout.drive()
        ended = release_of(journal, rollout.number)
        if ended.outcome is not Outcome.PROMOTED:
            raise error_of(journal, ended)
        require_whole(journal, ended.number)
