"""Drill: the primary's twin is lost, its users are moved to the other cloud, all is measured."""

from __future__ import annotations

from typing import Any, Literal

from prefect import flow
from prefect.client.schemas.objects import State

from blocks.platform import load_platform
from tasks.alerts import ALERTS
from tasks.drill_faults import inject
from tasks.drill_measuring import measure, rehearse
from tasks.drill_world import world
from tasks.drilling import begin, build_standby, build_twin, failover_of, send_clients
from tasks.isolation import look_at_production, prove_isolation, untouched
from tasks.naming import run_name
from tasks.reaping import reap
from tasks.recovery_accounts import RecoveryAccount, recovery_accounted
from tasks.recovery_plans import plan_drill, require_ready, send_bundles


@flow(name="drill", flow_run_name=run_name, timeout_seconds=3600,
      on_failure=ALERTS, on_crashed=ALERTS)  # fmt: skip
def drill(
    environment: str,
    application: str,
    tier: Literal["", "backup", "warm", "hot"] = "",
    scenario: str = "",
    fault: str = "kill",
    seed: int = 0,
    platform: str = "sandbox",
) -> State[Any]:
    """Rehearse the loss of a cloud on a twin, and leave nothing of it behind.

    Args:
        environment: What is protected, as application.yaml says under `recovery`.
        application: Name of the application.
        tier: Of the standby; empty takes what application.yaml declares.
        scenario: A game day of the library; it says which fault.
        fault: What is done to the twin: kill, freeze, cut, credentials, or random.
        seed: Of the moment of the fault.
        platform: Slipway Platform block that the environment runs on.
    """
    account = RecoveryAccount(load_platform(platform), application, environment, "drill")
    with recovery_accounted(account):
        wanted = plan_drill(platform, application, environment, tier, scenario, fault, seed)
        account.plan(wanted)
        send_bundles(wanted.primary, wanted.standby, wanted.record)
        account.readiness = require_ready(wanted)
        record = begin(wanted)
        account.drill = record.id
        try:
            with world(wanted, record) as here:
                account.follow(here)
                build_twin(here)
                build_standby(here)
                here.production = look_at_production(here)
                send_clients(here)
                account.isolation = prove_isolation(here)
                inject(here)
                failover = failover_of(here)
                account.phases = failover.reports
                stopped = rehearse(here, failover)
                done, checks = measure(here, stopped)
                checks.append(untouched(here.production, look_at_production(here)))
        finally:
            account.leftovers = reap(wanted.primary, wanted.standby, record)
        account.judge(done, checks, stopped)
    return account.state()
