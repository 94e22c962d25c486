"""What is done every night for everything that is live, and whether it was done at all."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.events import emit_event

from blocks.platform import Platform
from blocks.vault import Vault
from domain.backup_report import CopyReport
from domain.errors import SlipwayError
from domain.recovery import Rung, newest_proved
from domain.units import format_duration
from domain.verdict import Verdict
from tasks.proving import needed_rung
from tasks.readiness import last_readiness
from tasks.recovery_plans import is_protected
from tasks.saving import live_release, vaults_of

_MINUTE = timedelta(minutes=1)


@dataclass(frozen=True)
class Subject:
    """One environment of one application that has something to keep."""

    application: str
    environment: str


@task(name="find what is live", cache_policy=NO_CACHE)
def subjects(platform: Platform) -> list[Subject]:
    """Every environment in which something with data is live; previews have nothing to keep."""
    return list(_live(platform))


def _live(platform: Platform) -> Iterator[Subject]:
    keys = (key.split("/") for key in platform.store.list("journal"))
    for application, environment in sorted({(k[1], k[2]) for k in keys if len(k) == 4}):
        if environment.startswith("preview-"):
            continue
        try:
            _, record = live_release(platform, application, environment)
        except SlipwayError as error:
            get_run_logger().info("%s in %s: %s", application, environment, error.cause)
            continue
        if record.application.database or record.application.cache:
            yield Subject(application, environment)


def each(subjects: list[Subject], act: Callable[[Subject], bool]) -> str:
    """Do it for all of them; one that fails keeps no other from its turn.

    Returns:
        What did not go well, empty when all did.
    """
    failed = [f"{s.application} in {s.environment}" for s in subjects if not act(s)]
    return ", ".join(failed)


@task(name="look for stale backups", cache_policy=NO_CACHE)
def staleness(platform: Platform, application: str, environment: str) -> list[CopyReport]:
    """Whether every location has a proved copy that is young enough.

    It needs no backup to have failed: where none ran, nothing is young.
    """
    _, record = live_release(platform, application, environment)
    policy = record.application.backups
    found = [
        age_of(vault, needed_rung(policy), datetime.now(UTC), policy.stale_after.total_seconds())
        for vault in vaults_of(platform, application, environment)
    ]
    for copy in found:
        if copy.verdict is not Verdict.PASS:
            _alarm(application, environment, copy)
    return found


@task(name="look for stale readiness", cache_policy=NO_CACHE)
def readiness_is_fresh(platform: Platform, application: str, environment: str) -> bool:
    """Whether somebody has looked at the standby lately; alarms when nobody has."""
    if not is_protected(platform, application, environment):
        return True
    look = last_readiness(platform, application, environment)
    if look.verdict is not Verdict.PASS:
        where = f"standby of {application} in {environment}"
        _tell(
            "readiness", f"standby.{application}.{environment}", where, look.model_dump(mode="json")
        )
    return look.verdict is Verdict.PASS


def age_of(vault: Vault, needed: Rung, now: datetime, limit_seconds: float) -> CopyReport:
    """How old the newest proved copy at a location is, against the limit."""
    try:
        best = newest_proved(vault.copies(), needed)
    except SlipwayError as error:
        return CopyReport(location=vault.location, verdict=Verdict.ERROR, reason=error.cause)
    if best is None or best.manifest is None:
        reason = f"nothing is proved up to {needed.label}"
        return CopyReport(location=vault.location, verdict=Verdict.NO_DATA, reason=reason)
    age = now - best.manifest.data_time
    stale = age.total_seconds() > limit_seconds
    reason = (
        f"the newest proved data is {format_duration(age - age % _MINUTE)} old, "
        f"the limit is {format_duration(_MINUTE * (limit_seconds // 60))}"
    )
    return CopyReport(
        location=vault.location,
        verdict=Verdict.FAIL if stale else Verdict.PASS,
        reason=reason,
        rung=needed.label,
    )


def _alarm(application: str, environment: str, copy: CopyReport) -> None:
    _tell("backup", f"copy.{application}.{environment}.{copy.location}",
          f"backups of {application} in {environment} at {copy.location}",
          copy.model_dump(mode="json"))  # fmt: skip


def _tell(what: str, resource: str, name: str, payload: dict[str, Any]) -> None:
    emit_event(
        event=f"slipway.{what}.stale",
        resource={"prefect.resource.id": f"slipway.{resource}", "prefect.resource.name": name},
        payload=payload,
    )
