"""Contract: drop from the schema what only older versions needed, once none can come back."""

from __future__ import annotations

from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.states import Completed

from blocks.platform import load_platform
from tasks.alerts import ALERTS
from tasks.contracting import contract_schema
from tasks.locks import environment_lock
from tasks.naming import run_name
from tasks.releasing import open_journal


@flow(name="contract", flow_run_name=run_name, timeout_seconds=3600,
      on_failure=ALERTS, on_crashed=ALERTS)  # fmt: skip
def contract(
    environment: str, application: str, actor: str = "", platform: str = "sandbox"
) -> State[Any]:
    """Run the contraction that the live version declares; no earlier version can serve after it.

    Args:
        environment: Whose database to contract.
        application: Name of the application.
        actor: Who asked for it, for the journal.
        platform: Slipway Platform block it runs on.
    """
    target = load_platform(platform)
    with environment_lock(application, environment):
        journal = open_journal(target, application, environment, actor)
        release = contract_schema(target, journal)
    where = f"{application} in {environment}"
    return Completed(message=f"the schema of {where} fits {release.version} and later alone")
