"""Nightly: everything that is live is backed up, proved, expired or watched, one after another."""

from __future__ import annotations

from typing import Any, Literal

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed

from blocks.platform import load_platform
from domain.verdict import Verdict
from flows.backup import backup
from flows.drill import drill
from flows.expire import expire
from flows.prove import prove
from flows.standby import standby
from tasks.alerts import ALERTS
from tasks.nightly import Subject, each, readiness_is_fresh, staleness, subjects
from tasks.recovery_plans import is_protected


@flow(name="nightly", timeout_seconds=12 * 3600, on_failure=ALERTS, on_crashed=ALERTS)
def nightly(
    what: Literal["backup", "prove", "expire", "watch", "readiness", "drill"],
    application: str = "",
    platform: str = "sandbox",
) -> State[Any]:
    """Do one thing for every environment of every application that keeps data.

    Args:
        what: "backup"; "prove" (a random older point); "expire"; "watch", which alarms where the
            newest proved copy or the last look at the standby is too old, even when nothing failed
            because nothing ran;
            "readiness" of the standby in the other cloud; or "drill", with a fault at random.
        application: Only this one; all when it is empty.
        platform: Slipway Platform block it runs on.
    """
    target = load_platform(platform)

    def act(subject: Subject) -> bool:
        where = {"environment": subject.environment, "application": subject.application}
        match what:
            case "backup":
                state = backup(**where, actor="schedule", platform=platform, return_state=True)
            case "prove":
                state = prove(**where, point="random", platform=platform, return_state=True)
            case "expire":
                state = expire(**where, apply=True, platform=platform, return_state=True)
            case "watch":
                found = staleness(target, subject.application, subject.environment)
                fresh = readiness_is_fresh(target, subject.application, subject.environment)
                return fresh and all(copy.verdict is Verdict.PASS for copy in found)
            case "readiness":
                state = standby(**where, check_only=True, platform=platform, return_state=True)
            case "drill":
                state = drill(**where, fault="random", platform=platform, return_state=True)
        return state.is_completed()

    live = [s for s in subjects(target) if application in ("", s.application)]
    if what in ("readiness", "drill"):
        live = [s for s in live if is_protected(target, s.application, s.environment)]
    if failed := each(live, act):
        return Failed(message=f"{what}: not well: {failed}")
    return Completed(message=f"{what}: well for {len(live)} environments")
