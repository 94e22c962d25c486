"""Failback: what the other cloud has comes home, to the last row; then users do."""

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
    require_away,
    require_no_divergence,
    reverse,
    told_loss,
    watching,
)
from tasks.naming import run_name
from tasks.recovery_accounts import RecoveryAccount, recovery_accounted
from tasks.standing_by import pair_of


@flow(name="failback", flow_run_name=run_name, timeout_seconds=6 * 3600,
      on_failure=ALERTS, on_crashed=ALERTS)  # fmt: skip
def failback(
    environment: str,
    application: str,
    plan: str = "",
    apply: bool = False,
    accept_loss: str = "",
    platform: str = "sandbox",
) -> State[Any]:
    """Move users back to the side that application.yaml names. Refused while that loses rows.

    Args:
        environment: What is protected, as application.yaml says under `recovery`.
        application: Name of the application.
        plan: Digest of the plan that was approved.
        apply: Do it. Without, the plan is only shown.
        accept_loss: Reason to leave behind what only the old side holds; it is set aside.
        platform: Slipway Platform block that the environment runs on.
    """
    account = RecoveryAccount(load_platform(platform), application, environment, "failback")
    with recovery_accounted(account):
        pair = pair_of(platform, application, environment)
        account.tier = pair.policy.tier
        require_away(pair)
        wanted = plan_move(pair, planned=True)
        account.lines += wanted.lines()
        source, target = pair.side(wanted.source), pair.side(wanted.target)
        account.lines += require_no_divergence(pair, wanted, accept_loss)
        if not apply:
            account.outcome, account.reason = RecoveryOutcome.PASSED, f"plan {wanted.digest}"
        else:
            with exclusively(pair, wanted):
                account.moving(pair)
                reason = require_approval(pair, wanted, plan)
                account.lines += reverse(pair, wanted)
                with watching(pair) as clients:
                    move, began = move_of(pair, wanted, clients, reason), time.time()
                    account.phases = move.reports
                    move.run()
                    done, fault_at = measure_move(pair, clients, target, began)
                account.lines.append(clear_away(pair, source))
                lost = told_loss(pair, wanted, source, target)
                account.judge_move(clients, done, fault_at, lost)
    return account.state()
