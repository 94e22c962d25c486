"""Restore: one recovery point is brought back into a place of its own."""

from __future__ import annotations

from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State

from blocks.platform import load_platform
from domain.backup_report import BackupOutcome
from domain.recovery import MAIN
from tasks.accounts import Account, accounted
from tasks.alerts import ALERTS
from tasks.naming import run_name
from tasks.proving import needed_rung
from tasks.restoring import OBJECTS, choose_copy, restore_database, restore_objects
from tasks.saving import live_release, vaults_of


@flow(name="restore", flow_run_name=run_name, timeout_seconds=6 * 3600,
      on_failure=ALERTS, on_crashed=ALERTS)  # fmt: skip
def restore(
    environment: str,
    application: str,
    to: str,
    point: str = "newest",
    replace: bool = False,
    accept_unproved: bool = False,
    platform: str = "sandbox",
) -> State[Any]:
    """Bring a recovery point back into a database, from whichever location has it proved.

    What is restored gets a line of backups of its own, so that it cannot touch production's.

    Args:
        environment: Whose backups.
        application: Name of the application.
        to: Name of a new database on the platform's restore server, or secret:BLOCK, or
            objects:STORE for the objects of the point.
        point: Number of a point, or "newest": the newest that is proved. Those of a restored
            database are named with their lineage: "restored-00000042/3".
        replace: Take the place of a database that is not empty; it is kept under another name.
        accept_unproved: Take a copy that was never restored before, when there is no other.
        platform: Slipway Platform block it runs on.
    """
    target = load_platform(platform)
    with accounted(Account(target, application, environment, "restore")) as account:
        _, record = live_release(target, application, environment)
        lineage, _, number = point.rpartition("/")
        vaults = vaults_of(target, application, environment, lineage or MAIN)
        needed = needed_rung(record.application.backups)
        chosen = choose_copy(vaults, number, needed, unproved=accept_unproved)
        manifest = chosen.copy.manifest
        account.point, account.data_time = (
            chosen.copy.point,
            manifest.data_time if manifest else None,
        )
        if to.startswith(OBJECTS):
            account.lines = restore_objects(target, chosen, to.removeprefix(OBJECTS))
        else:
            account.lines = restore_database(target, chosen, to, replace=replace)
        account.reason = f"restored {chosen.sentence()}, into {to}"
        account.outcome = BackupOutcome.RESTORED
    return account.state()
