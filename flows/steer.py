"""Steer: what a person asks of a release that is under way."""

from __future__ import annotations

from typing import Any, Literal

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.states import Completed

from blocks.platform import load_platform
from domain.steering import Verb
from tasks.alerts import ALERTS
from tasks.naming import run_name
from tasks.releasing import open_journal
from tasks.steering import ask


@flow(name="steer", flow_run_name=run_name, timeout_seconds=60,
      on_failure=ALERTS, on_crashed=ALERTS)  # fmt: skip
def steer(
    environment: str,
    application: str,
    verb: Literal["pause", "resume", "promote", "abort"],
    reason: str = "",
    actor: str = "",
    platform: str = "sandbox",
) -> State[Any]:
    """Pause, resume, promote or abort the release that is under way.

    Args:
        environment: Where the release is under way.
        application: Name of the application.
        verb: What it should do. Promote skips the evidence that is still missing.
        reason: Why; promote and abort need it, and the journal keeps it.
        actor: Who asks, for the journal.
        platform: Slipway Platform block it runs on.
    """
    journal = open_journal(load_platform(platform), application, environment, actor)
    release = ask(journal, Verb(verb), reason)
    what = f"release {release.number} ({release.version}) of {application} in {environment}"
    return Completed(message=f"asked {what} to {verb}")
