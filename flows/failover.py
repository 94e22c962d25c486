"""Failover: the application moves to the other cloud, by the same steps as every drill."""

from __future__ import annotations

import time
from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State

from blocks.platform import load_platform
from domain.drill_report import RecoveryOutcome
from tasks.alerts import ALERTS
from tasks.moving import (
    clear_away,
    exclusively,
    measure_move,
    move_of,
    plan_move,
    require_approval,
    told_loss,
    watching,
)
from tasks.naming import run_name
from tasks.recovery_accounts import RecoveryAccount, recovery_accounted
from tasks.recovery_plans import send_bundles
from tasks.standing_by import pair_of


@flow(name="failover", flow_run_name=run_name, timeout_seconds=6 * 3600,
      on_failure=ALERTS, on_crashed=ALERTS)  # fmt: skip
def failover(
    environment: str,
    application: str,
    plan: str = "",
    apply: bool = False,
    planned: bool = False,
    platform: str = "sandbox",
) -> State[Any]:
    """Move users to the side that does not hold the epoch. Without `apply`, say what that loses.

    Args:
        environment: What is protected, as application.yaml says under `recovery`.
        application: Name of the application.
        plan: Digest of the plan that was approved.
        apply: Do it. Without, the plan is only shown.
        planned: Both sides work: nothing may be lost.
        platform: Slipway Platform block that the environment runs on.
    """
    account = RecoveryAccount(load_platform(platform), application, environment, "failover")
    with recovery_accounted(account):
        pair = pair_of(platform, application, environment)
        account.tier = pair.policy.tier
        wanted = plan_move(pair, planned=planned)
        account.lines += wanted.lines()
        if not apply:
            account.outcome, account.reason = RecoveryOutcome.PASSED, f"plan {wanted.digest}"
        else:
            with exclusively(pair, wanted):
                account.moving(pair)
                reason = require_approval(pair, wanted, plan)
                source, target = pair.side(wanted.source), pair.side(wanted.target)
                send_bundles(pair.home.platform, target.platform, pair.record)
                with watching(pair) as clients:
                    move, began = move_of(pair, wanted, clients, reason), time.time()
                    account.phases = move.reports
                    move.run()
                    done, fault_at = measure_move(pair, clients, target, began)
                account.lines.append(clear_away(pair, source))
                lost = told_loss(pair, wanted, source, target)
                account.judge_move(clients, done, fault_at, lost)
    return account.state()
