"""What a run about backups tells: report, artifact, event and alert, whatever ends it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from prefect import get_run_logger
from prefect.artifacts import create_markdown_artifact
from prefect.client.schemas.objects import State
from prefect.events import emit_event
from prefect.states import Completed, Failed

from blocks import sentry
from blocks.platform import Platform
from blocks.records import Records
from blocks.sentry import About
from domain.backup_report import BackupOutcome, BackupReport, CopyReport, KeyReport
from domain.errors import SlipwayError
from domain.recovery import Member
from domain.verdict import Verdict
from tasks.releasing import run_id
from tasks.reporting import interrupted


@dataclass
class Account:
    """Collects what a run did while it does it."""

    platform: Platform
    application: str
    environment: str
    kind: str
    outcome: BackupOutcome = BackupOutcome.FAILED
    reason: str = "it was interrupted"
    point: str | None = None
    data_time: datetime | None = None
    skew_seconds: float | None = None
    members: list[Member] = field(default_factory=list)
    copies: list[CopyReport] = field(default_factory=list)
    keys: list[KeyReport] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    started: float = field(default_factory=time.monotonic)

    def report(self, error: SlipwayError | None) -> BackupReport:
        return BackupReport(
            kind=self.kind,
            application=self.application,
            environment=self.environment,
            run=run_id(),
            outcome=self.outcome,
            reason=error.cause if error else self.reason,
            point=self.point,
            data_time=self.data_time,
            skew_seconds=self.skew_seconds,
            seconds=round(time.monotonic() - self.started, 3),
            members=tuple(self.members),
            copies=tuple(self.copies),
            keys=tuple(self.keys),
            lines=tuple(self.lines),
            facts=self.facts,
            error=error.to_dict() if error else None,
        )

    def state(self) -> State[Any]:
        """What the flow ends with: completed only for what was asked for."""
        report = self.report(None)
        kind = Completed if report.exit_code == 0 else Failed
        return kind(message=report.sentence())


@contextmanager
def accounted(account: Account) -> Iterator[Account]:
    """Whatever ends the block, a report of it is kept, shown and sent out as an event."""
    try:
        yield account
    except SlipwayError as error:
        account.outcome = (
            BackupOutcome.REFUSED if error.exit_code in (2, 4) else BackupOutcome.FAILED
        )
        _tell(account, error)
        raise
    except BaseException as error:
        account.outcome = BackupOutcome.FAILED
        _tell(account, interrupted(error))
        raise
    else:
        _tell(account, None)


def _tell(account: Account, error: SlipwayError | None) -> None:
    """Everybody is told, each even when another cannot be."""
    log, report = get_run_logger(), account.report(error)
    (log.info if report.exit_code == 0 else log.error)(report.sentence())
    for tell in (_keep, _show, _emit):
        try:
            tell(account.platform, report)
        except Exception as failed:  # of telling alone: what was done stays done
            log.error("not told: %s", failed)
    if report.exit_code != 0:
        about = About(
            application=account.application,
            environment=account.environment,
            flow=account.kind,
            flow_run=report.run,
        )
        sentry.report(error or report.sentence(), about)


def _keep(platform: Platform, report: BackupReport) -> None:
    Records(platform.store).keep_backup_report(report)


def _show(platform: Platform, report: BackupReport) -> None:
    create_markdown_artifact(
        markdown=report.markdown(),
        key=f"{report.kind}-{report.application}-{report.environment}",
        description=report.sentence(),
    )


def _emit(platform: Platform, report: BackupReport) -> None:
    """One event for the run, and one for each copy: what the staleness alarm listens to."""
    subject = f"{report.application}.{report.environment}"
    emit_event(
        event=f"slipway.{report.kind}.{report.outcome.lower()}",
        resource={
            "prefect.resource.id": f"slipway.environment.{subject}",
            "prefect.resource.name": f"{report.application} in {report.environment}",
        },
        payload=report.model_dump(mode="json", exclude={"error", "members"}),
    )
    for copy in report.copies:
        word = "proved" if copy.verdict is Verdict.PASS else "red"
        emit_event(
            event=f"slipway.copy.{word}",
            resource={
                "prefect.resource.id": f"slipway.copy.{subject}.{copy.location}",
                "prefect.resource.name": f"backups of {report.application} in "
                f"{report.environment} at {copy.location}",
            },
            payload={"point": report.point, **copy.model_dump(mode="json")},
        )
