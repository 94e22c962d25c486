"""Reap: what dead drills left behind is found by their records and removed."""

from __future__ import annotations

from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed

from blocks.platform import load_platform
from tasks.alerts import ALERTS
from tasks.reaping import open_records
from tasks.reaping import reap as remove


@flow(name="reap", timeout_seconds=1800, on_failure=ALERTS, on_crashed=ALERTS)
def reap(all_drills: bool = False, platform: str = "sandbox") -> State[Any]:
    """Remove everything of drills whose time is over.

    Args:
        all_drills: Also of those that may still be running: they end.
        platform: Slipway Platform block whose store has the drills' records.
    """
    target = load_platform(platform)
    left = []
    for record in open_records(target, expired=not all_drills):
        primary, standby = (load_platform(name) for name in record.platforms)
        left += [f"{record.id}: {what}" for what in remove(primary, standby, record)]
    if left:
        return Failed(message=f"left over: {'; '.join(left)}")
    return Completed(message="nothing is left over")
