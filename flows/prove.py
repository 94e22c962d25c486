"""Prove: every copy of one recovery point climbs the ladder again."""

from __future__ import annotations

from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State

from blocks.platform import load_platform
from domain.backup_report import BackupOutcome, verdict_on
from tasks.accounts import Account, accounted
from tasks.alerts import ALERTS
from tasks.naming import run_name
from tasks.proving import choose_point, needed_rung, prove_copies
from tasks.saving import live_release, try_keys, vaults_of


@flow(name="prove", flow_run_name=run_name, timeout_seconds=6 * 3600,
      on_failure=ALERTS, on_crashed=ALERTS)  # fmt: skip
def prove(
    environment: str,
    application: str,
    point: str = "newest",
    platform: str = "sandbox",
) -> State[Any]:
    """Restore one recovery point from every location into a disposable server, and compare.

    Args:
        environment: Whose backups.
        application: Name of the application.
        point: Number of a point, or "newest", or "random": any older one.
        platform: Slipway Platform block it runs on.
    """
    target = load_platform(platform)
    with accounted(Account(target, application, environment, "prove")) as account:
        account.keys = try_keys(target)
        _, record = live_release(target, application, environment)
        vaults = vaults_of(target, application, environment)
        account.point = choose_point(vaults, point)
        needed = needed_rung(record.application.backups)
        account.copies = prove_copies(target, vaults, account.point, needed)
        verdict, account.reason = verdict_on(account.copies, account.keys)
        proved = verdict.advances
        account.outcome = BackupOutcome.PROVED if proved else BackupOutcome.UNPROVED
    return account.state()
