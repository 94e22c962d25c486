"""Standby: the side that serves is under a lease, the other cloud is kept as ready as declared."""

from __future__ import annotations

from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State

from blocks.platform import load_platform
from domain.failover import Tier
from tasks.alerts import ALERTS
from tasks.naming import run_name
from tasks.readiness import Readiness, readiness
from tasks.recovery_accounts import RecoveryAccount, recovery_accounted
from tasks.recovery_plans import send_bundles
from tasks.standing_by import arm, follow, pair_of, require_settled, run_standby


@flow(name="standby", flow_run_name=run_name, timeout_seconds=6 * 3600,
      on_failure=ALERTS, on_crashed=ALERTS)  # fmt: skip
def standby(
    environment: str, application: str, check_only: bool = False, platform: str = "sandbox"
) -> State[Any]:
    """Bring the standby to its tier and say whether it could take over now.

    Args:
        environment: What is protected, as application.yaml says under `recovery`.
        application: Name of the application.
        check_only: Change nothing, only look.
        platform: Slipway Platform block that the environment runs on.
    """
    account = RecoveryAccount(load_platform(platform), application, environment, "standby")
    with recovery_accounted(account):
        pair = pair_of(platform, application, environment)
        require_settled(pair)
        source, target = pair.primary(), pair.standby()
        account.tier = pair.policy.tier
        if not check_only:
            send_bundles(source.platform, target.platform, pair.record)
            account.lines.append(arm(pair))
            if pair.policy.tier is not Tier.BACKUP:
                account.lines += [follow(pair), run_standby(pair)]
        looks = Readiness(source.platform, target.platform, pair.record, pair.policy,
                          pair.policy.tier, pair)  # fmt: skip
        account.judge_readiness(readiness(looks))
    return account.state()
