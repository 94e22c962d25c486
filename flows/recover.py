"""Recover: put right what killed processes left behind, and start again what should be live."""

from __future__ import annotations

from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.states import Completed

from blocks.platform import load_platform
from tasks.alerts import ALERTS
from tasks.candidates import forget_killed
from tasks.contracting import contract_when_due
from tasks.locks import environment_lock
from tasks.naming import run_name
from tasks.releasing import open_journal, restore_live, take_over
from tasks.switching import end_ramps


@flow(name="recover", flow_run_name=run_name, timeout_seconds=3600,
      on_failure=ALERTS, on_crashed=ALERTS)  # fmt: skip
def recover(
    environment: str, application: str, actor: str = "", platform: str = "sandbox"
) -> State[Any]:
    """Finish or reverse an unfinished release, then make sure that the live version serves.

    A flag whose ramp was killed goes off, and a contraction that is owed is run.

    Args:
        environment: Where to recover.
        application: Name of the application.
        actor: Who asked for it, for the journal.
        platform: Slipway Platform block it runs on.
    """
    target = load_platform(platform)
    with environment_lock(application, environment):
        journal = open_journal(target, application, environment, actor)
        ended = take_over(target, journal, go_on=True)
        restored = restore_live(target, journal)
        ramps = end_ramps(target, application, environment, actor)
        contracted = contract_when_due(target, journal)
    forget_killed(target, application)
    first = f"release {ended.number} ended {ended.outcome}" if ended else "no unfinished release"
    return Completed(message="; ".join(filter(None, (first, restored, ramps, contracted))))
