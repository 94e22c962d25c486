"""Expire: what no promise needs any more is hidden, and after a grace period removed."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State

from blocks.platform import load_platform
from domain.backup_report import BackupOutcome, verdict_on
from domain.retention import Policy
from tasks.accounts import Account, accounted
from tasks.alerts import ALERTS
from tasks.expiring import carry_out, decide
from tasks.naming import run_name
from tasks.proving import needed_rung
from tasks.saving import is_running, live_release, vaults_of
from tasks.snapshots import expire_snapshots


@flow(name="expire", flow_run_name=run_name, timeout_seconds=3600,
      on_failure=ALERTS, on_crashed=ALERTS)  # fmt: skip
def expire(
    environment: str,
    application: str,
    apply: bool = False,
    approve: str = "",
    platform: str = "sandbox",
) -> State[Any]:
    """Plan what may be deleted, with a reason for each point, and on demand do it.

    Args:
        environment: Whose backups.
        application: Name of the application.
        apply: Do it. Without, the plan is only shown.
        approve: Digest of a plan that somebody has read; lifts the limit on how much may go.
        platform: Slipway Platform block it runs on.
    """
    target = load_platform(platform)
    with accounted(Account(target, application, environment, "expire")) as account:
        _, record = live_release(target, application, environment)
        policy, now = Policy.of(record.application.backups), datetime.now(UTC)
        needed = needed_rung(record.application.backups)
        vaults = vaults_of(target, application, environment)
        for vault in vaults:
            decided = decide(vault, policy, needed, is_running, now, approve)
            account.lines += decided.plan.lines(now)
            account.facts[vault.location] = decided.plan.digest
            if apply or decided.refusal is not None:
                account.copies.append(carry_out(vault, decided, now))
            else:
                account.lines.append(decided.plan.summary())
        told, red = expire_snapshots(target, vaults, apply=apply)
        account.lines += told
        account.copies += red
        done = verdict_on(account.copies, ())[0].advances
        account.reason = "; ".join(c.reason for c in account.copies) or "only planned"
        account.outcome = BackupOutcome.PLANNED if not apply else BackupOutcome.EXPIRED
        if account.copies and not done:
            account.outcome = BackupOutcome.FAILED
    return account.state()
