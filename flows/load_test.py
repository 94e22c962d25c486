"""Load test: so many users on what is live, and a verdict that says whether to believe it."""

from __future__ import annotations

from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State

from blocks.platform import load_platform
from domain.load_profile import ProfileName
from tasks.alerts import ALERTS
from tasks.loading import (
    LoadAccount,
    calibrate,
    check_reachable,
    folder_of,
    load_accounted,
    plan_load,
    put_load,
)
from tasks.naming import run_name


@flow(name="load-test", flow_run_name=run_name, timeout_seconds=8 * 3600,
      on_failure=ALERTS, on_crashed=ALERTS)  # fmt: skip
def load_test(
    environment: str,
    application: str,
    profile: ProfileName = "baseline",
    users: int = 0,
    target: str = "",
    actor: str = "",
    platform: str = "sandbox",
) -> State[Any]:
    """Put users on what is live, and say whether it holds its objectives.

    The measuring is judged before the application: an overloaded generator, a lost worker or
    bunched arrivals end as "unsound" with the cause, never as a number.

    Args:
        environment: Where to test.
        application: Name of the application.
        profile: How many users, over which time.
        users: Peak instead of the profile's own; 0 keeps that.
        target: Base URL instead of the environment's own; a host that the application names.
        actor: Who asked for it.
        platform: Slipway Platform block it runs on.
    """
    where = load_platform(platform)
    with load_accounted(LoadAccount(where, application, environment, actor)) as account:
        record, plan = plan_load(where, application, environment, profile, users, target)
        account.record, account.plan = record, plan
        check_reachable(plan, record.application)
        account.ceiling = calibrate(plan, folder_of(where))
        account.judged(put_load(where, record, environment, plan, folder_of(where)))
    return account.state()
