"""Backup: one recovery point is saved, copied everywhere, and proved by restoring it."""

from __future__ import annotations

from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State

from blocks.platform import load_platform
from domain.backup_report import BackupOutcome, verdict_on
from domain.recovery import Member
from tasks.accounts import Account, accounted
from tasks.alerts import ALERTS
from tasks.naming import run_name
from tasks.proving import needed_rung, prove_copies
from tasks.saving import begin_point, commit_point, copy_point, save_member, sources, try_keys
from tasks.snapshots import begin_snapshot, copy_snapshot, finish_snapshot


@flow(name="backup", flow_run_name=run_name, timeout_seconds=6 * 3600,
      on_failure=ALERTS, on_crashed=ALERTS)  # fmt: skip
def backup(
    environment: str, application: str, actor: str = "", platform: str = "sandbox"
) -> State[Any]:
    """Save what an application keeps, copy it to every location, prove each copy.

    A location that fails keeps neither the others from their copy nor itself out of the report.

    Args:
        environment: Whose data to save.
        application: Name of the application.
        actor: Who asked for it.
        platform: Slipway Platform block it runs on.
    """
    target = load_platform(platform)
    with accounted(Account(target, application, environment, "backup")) as account:
        account.keys = try_keys(target)
        saving = begin_point(target, application, environment, actor)
        account.point = saving.point
        snapshot = begin_snapshot(saving.holder.platform, saving)
        for source in sources(target, saving):
            found = source if isinstance(source, Member) else save_member(saving, source)
            account.members.append(found)
        account.members.append(finish_snapshot(saving.holder.platform, saving, snapshot))
        manifest = commit_point(saving, account.members, actor)
        account.data_time = manifest.data_time
        account.skew_seconds = manifest.skew.total_seconds()
        needed = needed_rung(saving.record.application.backups)
        red = [copy_point(saving, vault, manifest) for vault in saving.vaults[1:]]
        there = [v for v, bad in zip(saving.vaults, [None, *red], strict=True) if bad is None]
        account.copies = prove_copies(target, there, saving.point, needed)
        account.copies += [bad for bad in red if bad is not None]
        account.lines, bad_snapshots = copy_snapshot(
            saving.holder.platform, saving, snapshot, account.members[-1]
        )
        account.lines.insert(0, f"from {saving.holder.platform.side}, which users write to")
        account.copies += bad_snapshots
        verdict, account.reason = verdict_on(account.copies, account.keys)
        proved = verdict.advances
        account.outcome = BackupOutcome.PROVED if proved else BackupOutcome.UNPROVED
    return account.state()
