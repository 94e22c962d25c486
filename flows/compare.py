"""Compare: did this version get slower than an accepted one?"""

from __future__ import annotations

from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State

from blocks.platform import load_platform
from tasks.alerts import ALERTS
from tasks.limits import accepted_version, compare_versions
from tasks.loading import LoadAccount, folder_of, load_accounted, plan_comparison
from tasks.naming import run_name


@flow(name="compare", flow_run_name=run_name, timeout_seconds=4 * 3600,
      on_failure=ALERTS, on_crashed=ALERTS)  # fmt: skip
def compare(
    environment: str,
    application: str,
    against: int = 0,
    runs: int = 5,
    actor: str = "",
    platform: str = "sandbox",
) -> State[Any]:
    """Load what is live and an earlier release in turn, each by itself, and compare their runs.

    Both run on databases of their own; users meet neither of them. What counts is the run and
    not the request, against the noise that equal versions show on this machine.

    Args:
        environment: Whose live release to look at.
        application: Name of the application.
        against: Number of the accepted release; 0 takes the one that was live before.
        runs: Of each version, at least 5.
        actor: Who asked for it.
        platform: Slipway Platform block it runs on.
    """
    where = load_platform(platform)
    with load_accounted(LoadAccount(where, application, environment, actor)) as account:
        before = accepted_version(where, application, environment, against)
        record, plan = plan_comparison(where, application, environment)
        account.record, account.plan = record, plan
        account.compared(*compare_versions(where, before, record, plan, runs, folder_of(where)))
    return account.state()
