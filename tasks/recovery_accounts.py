"""What a drill, a failover or a failback tells: report, page, artifact, event and alert."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from prefect import get_run_logger
from prefect.artifacts import create_link_artifact, create_markdown_artifact
from prefect.client.schemas.objects import State
from prefect.events import emit_event
from prefect.states import Completed, Failed

from blocks import sentry
from blocks.drill_clients import DrillClients
from blocks.platform import Platform
from blocks.records import Records
from blocks.sentry import About
from domain.drill_report import (
    Moment,
    PhaseReport,
    RecoveryOutcome,
    RecoveryReport,
    judged,
    of_checks,
    timeline,
)
from domain.errors import SlipwayError
from domain.evidence_chain import Event
from domain.failover import Achieved, Tier
from domain.readiness import score
from domain.verdict import Check, Verdict, worst
from tasks.drill_page import page_of
from tasks.drill_world import Wanted, World
from tasks.releasing import run_id
from tasks.reporting import interrupted
from tasks.standing_by import Pair


@dataclass
class RecoveryAccount:
    """Collects what a run did while it does it."""

    platform: Platform
    application: str
    environment: str
    kind: str
    outcome: RecoveryOutcome = RecoveryOutcome.FAILED
    reason: str = "it was interrupted"
    drill: str = ""
    tier: Tier | None = None
    fault: str = ""
    scenario: str = ""
    rto_seconds: float | None = None
    rpo_seconds: float | None = None
    done: Achieved | None = None
    phases: list[PhaseReport] = field(default_factory=list)
    readiness: list[Check] = field(default_factory=list)
    isolation: list[Check] = field(default_factory=list)
    checks: tuple[Check, ...] = ()
    leftovers: list[str] = field(default_factory=list)
    timeline: tuple[Moment, ...] = ()
    fault_at: float | None = None
    lines: list[str] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    world: World | None = None
    changed: bool = False
    started_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    started: float = field(default_factory=time.monotonic)

    def report(self, error: SlipwayError | None) -> RecoveryReport:
        done = self.done
        return RecoveryReport(
            kind=self.kind,
            application=self.application,
            environment=self.environment,
            run=run_id(),
            drill=self.drill,
            tier=self.tier,
            fault=self.fault,
            scenario=self.scenario,
            started_at=self.started_at,
            outcome=self.outcome,
            reason=error.cause if error else self.reason,
            phases=tuple(self.phases),
            rta_seconds=done.rta_seconds if done else None,
            rpa_seconds=done.rpa_seconds if done else None,
            rto_seconds=self.rto_seconds,
            rpo_seconds=self.rpo_seconds,
            acknowledged=done.acknowledged if done else 0,
            lost_transactions=done.lost if done else (),
            readiness=tuple(self.readiness),
            isolation=tuple(self.isolation),
            checks=self.checks,
            leftovers=tuple(self.leftovers),
            timeline=self.timeline,
            fault_at=self.fault_at,
            earlier=self._earlier(),
            lines=tuple(self.lines),
            events=tuple(self.events),
            seconds=round(time.monotonic() - self.started, 3),
            error=error.to_dict() if error else None,
        )

    def state(self) -> State[Any]:
        """What the flow ends with: completed only for what was asked for."""
        report = self.report(None)
        kind = Completed if report.exit_code == 0 else Failed
        return kind(message=report.sentence())

    def plan(self, wanted: Wanted) -> None:
        """Before anything is made."""
        self.tier, self.fault = wanted.tier, wanted.fault
        self.scenario = wanted.scenario.name if wanted.scenario else ""
        self.rto_seconds = wanted.policy.rto.total_seconds()
        self.rpo_seconds = wanted.policy.rpo.total_seconds()

    def follow(self, world: World) -> None:
        """What the world tells from now on becomes part of the account."""
        self.world, self.events = world, world.events

    def moving(self, pair: Pair) -> None:
        """From here on something may be changed."""
        self.rto_seconds = pair.policy.rto.total_seconds()
        self.rpo_seconds = pair.policy.rpo.total_seconds()
        self.changed = True

    def judge_move(self, clients: DrillClients, done: Achieved, fault_at: float, lost: str) -> None:
        """Of the real names: readers saw it; what was lost is told by what the old side holds."""
        assert self.rto_seconds is not None and self.rpo_seconds is not None
        attempts = clients.attempts()
        self.timeline = timeline(attempts)
        self.fault_at = round(fault_at - min(a.sent for a in attempts), 3)
        self.done = done.model_copy(update={"acknowledged": 0})  # readers were told of no write
        self.outcome, _, self.checks = judged(
            done, self.rto_seconds, self.rpo_seconds, self.phases, ()
        )
        back = "users were not served again"
        if done.rta_seconds is not None:
            back = f"users were served again after {done.rta_seconds:.1f} s"
        self.reason = f"{back}; {lost}"

    def judge_readiness(self, checks: list[Check]) -> None:
        """One score with its reasons."""
        self.readiness = checks
        percent, said = score(checks)
        good = worst(c.verdict for c in checks) is Verdict.PASS
        self.outcome = RecoveryOutcome.PASSED if good else RecoveryOutcome.MISSED
        self.reason = f"{percent} % ready: {said}"

    def judge(self, done: Achieved, checks: list[Check], stopped: Check | None) -> None:
        """After everything was removed.

        Args:
            stopped: of a scenario in which the failover must not come about.
        """
        assert self.world is not None and self.world.clients is not None
        assert self.rto_seconds is not None and self.rpo_seconds is not None
        attempts = self.world.clients.attempts()
        self.timeline = timeline(attempts)
        self.fault_at = round(self.world.fault_at - min(a.sent for a in attempts), 3)
        left = Check(
            name="nothing left over",
            verdict=Verdict.FAIL if self.leftovers else Verdict.PASS,
            reason="; ".join(self.leftovers) or "the inventory is empty",
        )
        self.done = done
        if stopped is not None:
            self.checks = (stopped, *checks, left)
            self.outcome, self.reason = of_checks(self.checks)
            return
        self.outcome, self.reason, self.checks = judged(
            done, self.rto_seconds, self.rpo_seconds, self.phases, [*checks, left]
        )

    def _earlier(self) -> tuple[float, ...]:
        """RTA of the drills before this one, of the same application and tier, oldest first."""
        if self.kind != "drill":
            return ()
        found = [
            report
            for report in Records(self.platform.store).recovery_reports()
            if (report.kind, report.application, report.tier)
            == (self.kind, self.application, self.tier)
            and report.rta_seconds is not None
            and report.started_at < self.started_at
        ]
        found.sort(key=lambda report: report.started_at)
        return tuple(report.rta_seconds or 0.0 for report in found)[-20:]


@contextmanager
def recovery_accounted(account: RecoveryAccount) -> Iterator[RecoveryAccount]:
    """Whatever ends the block, a report of it is kept, shown and sent out as an event."""
    try:
        yield account
    except SlipwayError as error:
        refused = error.exit_code in (2, 4, 5) or not (account.events or account.changed)
        account.outcome = RecoveryOutcome.REFUSED if refused else RecoveryOutcome.FAILED
        _tell(account, error)
        raise
    except BaseException as error:
        account.outcome = RecoveryOutcome.FAILED
        _tell(account, interrupted(error))
        raise
    else:
        _tell(account, None)


def _tell(account: RecoveryAccount, error: SlipwayError | None) -> None:
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


def _keep(platform: Platform, report: RecoveryReport) -> None:
    key = Records(platform.store).keep_recovery_report(report, page_of(report))
    create_link_artifact(
        key=f"{report.kind}-page-{report.application}-{report.environment}",
        link=f"file://{platform.store_root}/{key}",
        link_text="the report with its timeline",
    )


def _show(platform: Platform, report: RecoveryReport) -> None:
    create_markdown_artifact(
        markdown=report.markdown(),
        key=f"{report.kind}-{report.application}-{report.environment}",
        description=report.sentence(),
    )


def _emit(platform: Platform, report: RecoveryReport) -> None:
    emit_event(
        event=f"slipway.{report.kind}.{report.outcome.lower()}",
        resource={
            "prefect.resource.id": f"slipway.environment.{report.application}.{report.environment}",
            "prefect.resource.name": f"{report.application} in {report.environment}",
        },
        payload=report.model_dump(
            mode="json",
            include={"outcome", "reason", "drill", "tier", "fault", "rta_seconds", "rpa_seconds",
                     "lost_transactions", "leftovers"},
        ),
    )  # fmt: skip
