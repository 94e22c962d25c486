"""Find limit: how many users what is live can take within its objectives, and what ends it."""

from __future__ import annotations

from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State

from blocks.platform import load_platform
from tasks.alerts import ALERTS
from tasks.limits import find_limit as search
from tasks.loading import (
    LoadAccount,
    calibrate,
    check_reachable,
    folder_of,
    load_accounted,
    plan_load,
)
from tasks.naming import run_name


@flow(name="find-limit", flow_run_name=run_name, timeout_seconds=4 * 3600,
      on_failure=ALERTS, on_crashed=ALERTS)  # fmt: skip
def find_limit(
    environment: str,
    application: str,
    users: int = 0,
    target: str = "",
    actor: str = "",
    platform: str = "sandbox",
) -> State[Any]:
    """Search for the greatest number of users within the objectives.

    Load grows in steps until one fails, then the gap is halved; a longer hold at 90 % confirms
    the answer, which is an interval.

    Args:
        environment: Where to test.
        application: Name of the application.
        users: Of the first step; 0 begins with those of the profile.
        target: Base URL instead of the environment's own; a host that the application names.
        actor: Who asked for it.
        platform: Slipway Platform block it runs on.
    """
    where = load_platform(platform)
    with load_accounted(LoadAccount(where, application, environment, actor)) as account:
        record, plan = plan_load(where, application, environment, "breakpoint", users, target)
        account.record, account.plan = record, plan
        check_reachable(plan, record.application)
        account.ceiling = calibrate(plan, folder_of(where))
        found = search(where, record, environment, plan, account.ceiling, folder_of(where))
        account.limit_found(*found)
    return account.state()
