"""What people and programs are told of a run: stages, events, artifacts, the report."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Lock
from typing import Any, cast
from uuid import UUID

from prefect import get_run_logger
from prefect.artifacts import create_markdown_artifact, create_progress_artifact
from prefect.artifacts import update_progress_artifact as update_progress
from prefect.events import emit_event
from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings

from blocks import sentry
from blocks.commands import Stopped
from blocks.journal import Journal
from blocks.platform import Platform
from blocks.records import Records
from blocks.sentry import About
from domain.errors import Failed, SlipwayError
from domain.findings import ScanVerdict
from domain.hindsight import Hindsight, look_back
from domain.journal import Kind, Outcome, Release, live
from domain.release import Report, Stage
from domain.verdict import Verdict
from tasks.releasing import open_journal, run_id

RELEASE_STAGES = ("build", "test", "scan", "deploy", "verify")
_VERDICT_OF = {"SLP031": Verdict.NOT_RUN, "SLP041": Verdict.ERROR, "SLP014": Verdict.ERROR}


@dataclass
class Mark:
    """How a stage that raised nothing ended; a stage with nothing to do has not passed."""

    outcome: Verdict = Verdict.PASS
    summary: str = ""


@dataclass
class Telling:
    """Collects what a release did while it does it.

    Attributes:
        expected: names of its stages in their order, which is also that of the report. Two may
            run side by side.
    """

    platform: Platform
    application: str
    environment: str
    kind: str
    expected: tuple[str, ...]
    version: str = ""
    strategy: str = ""
    digest: str = ""
    actor: str = ""
    findings: Mapping[str, int] = field(default_factory=dict)
    override: str = ""
    stages: list[Stage] = field(default_factory=list)
    release: int | None = None
    sentence: str = ""
    started: float = field(default_factory=time.monotonic)
    _broken: set[str] = field(default_factory=set)
    _lock: Lock = field(default_factory=Lock)

    @contextmanager
    def stage(self, name: str) -> Iterator[Mark]:
        """Time a stage, show it, and record how it ended, whatever ends it."""
        log, began = get_run_logger(), time.monotonic()
        log.info("stage %s: started", name)
        outcome, summary = Verdict.ERROR, "interrupted"
        try:
            mark = Mark()
            with one_heart():
                yield mark
            outcome, summary = mark.outcome, mark.summary
        except SlipwayError as error:
            outcome, summary = _VERDICT_OF.get(error.code, Verdict.FAIL), error.cause
            self._broken.add(name)
            raise
        except Stopped as error:
            outcome, summary = Verdict.NOT_RUN, str(error)
            raise
        except BaseException:
            self._broken.add(name)
            raise
        finally:
            seconds = round(time.monotonic() - began, 3)
            self._add(Stage(name=name, outcome=outcome, seconds=seconds, summary=summary))
            log.info("stage %s: %s after %.1f s%s", name, outcome, seconds,
                     f": {summary}" if summary else "")  # fmt: skip
            with _logged("the progress is not shown"):
                done = 100 * len(self.stages) / len(self.expected)
                update_progress(self._progress, progress=min(done, 100.0))

    def _add(self, stage: Stage) -> None:
        with self._lock:
            self.stages.append(stage)
            self.stages.sort(key=lambda one: self.expected.index(one.name))

    @property
    def stopped_in(self) -> str:
        """The first stage, in order, that an error ended; else the last one that there was."""
        broken = (name for name in self.expected if name in self._broken)
        return next(broken, self.stages[-1].name if self.stages else "plan")

    def __post_init__(self) -> None:
        self._progress = cast(
            UUID,
            create_progress_artifact(
                progress=0.0,
                key=f"progress-{self.application}-{self.environment}",
                description=f"{self.kind} of {self.application} in {self.environment}",
            ),
        )

    def test(self, run: Callable[[], tuple[Verdict, str]]) -> None:
        with self.stage("test") as mark:
            mark.outcome, mark.summary = run()

    def scan(self, run: Callable[[], ScanVerdict], accepted: str) -> None:
        """A gap that was accepted keeps its own verdict."""
        with self.stage("scan") as mark:
            found = run()
            self.findings = {str(severity): n for severity, n in found.counts.items()}
            if not found.verdict.advances:
                who = self.actor or "prefect"
                self.override = f"scan {found.verdict}, accepted by {who}: {accepted}"
                mark.outcome, mark.summary = found.verdict, self.override

    def report(self, error: SlipwayError | None) -> Report:
        """The report; a release that reached the journal is told from the journal."""
        began, ended, past = self._journalled()
        outcome = (ended.outcome if ended else None) or (
            Outcome.ROLLBACK_FAILED if began else Outcome.REFUSED
        )
        data = ended.data if ended else {}
        reason = (ended.reason if ended and ended.outcome else "") or (error.cause if error else "")
        return Report(
            application=self.application,
            environment=self.environment,
            version=self.version,
            digest=self.digest,
            strategy=self.strategy,
            release=self.release,
            previous=ended.previous if ended else None,
            outcome=outcome,
            reason=reason,
            seconds=round(time.monotonic() - self.started, 3),
            stages=tuple(self.stages),
            requests=data.get("requests"),
            failed_requests=data.get("failed_requests"),
            findings=self.findings,
            verdicts=past.verdicts,
            detected_after_requests=past.detected_after_requests,
            rollback_seconds=past.rollback_seconds,
            override="; ".join([*([self.override] if self.override else []), *past.overrides]),
            url=self._public_url(),
            undo=f"slipway rollback {self.application} --environment {self.environment}"
            if outcome is Outcome.PROMOTED and ended and ended.previous
            else "",
            run=run_id(),
            error=error.to_dict() if error else None,
        )

    def _journalled(self) -> tuple[bool, Release | None, Hindsight]:
        """Whether traffic may have been touched, and the release as the journal tells it."""
        try:
            journal = open_journal(self.platform, self.application, self.environment)
        except (SlipwayError, OSError) as error:
            get_run_logger().error("the journal could not be read: %s", error)
            return any(stage.name == "deploy" for stage in self.stages), None, Hindsight()
        self.release = self.release or begun_by(journal, run_id())
        found = next((r for r in journal.history() if r.number == self.release), None)
        past = look_back(e for e in journal.entries if e.release == self.release)
        return found is not None, found, past

    def _public_url(self) -> str:
        try:
            routing = self.platform.edge.read(self.application, self.environment)
        except SlipwayError:  # its address is a courtesy; that it is silent is told elsewhere
            return ""
        return self.platform.edge.public_url(routing) if routing else ""


def begun_by(journal: Journal, run: str) -> int | None:
    """Number of the release that a run began. A flow that failed could not return it."""
    return next((r.number for r in reversed(journal.history()) if r.run == run), None)


@contextmanager
def one_heart() -> Iterator[None]:
    """Subflows inside have no heartbeat of their own: their parent's beats for all of them.

    Prefect's heartbeat thread sleeps in steps of a second and is joined at the end of each sync
    flow run, which costs a release of five stages five seconds for nothing.
    """
    with temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}):
        yield


@contextmanager
def told(telling: Telling) -> Iterator[Telling]:
    """Whatever ends the block, a report of it is kept, shown and sent out as an event.

    A release that was stopped before anything was changed is written into the journal as
    refused, so that history tells of it too.
    """
    try:
        yield telling
    except SlipwayError as error:
        try:
            _end(telling, error)
        finally:
            _alert(telling, error)
        raise
    except BaseException as error:
        # Cancelled or broken: the cause is told by whoever catches it; the report still exists.
        _end(telling, interrupted(error))
        raise
    else:
        _end(telling, None)


def _end(telling: Telling, error: SlipwayError | None) -> None:
    """Tell everybody, each of them even when another cannot be told."""
    log = get_run_logger()
    if error is not None:
        with _logged("the journal was not told"):
            _refuse(telling, error)
    report = telling.report(error)
    telling.sentence = report.sentence()
    log.info(telling.sentence)
    with _logged("the report was not kept"):
        Records(telling.platform.store).keep_report(report)
    with _logged("the run has no artifact"):
        _publish(telling, report)


@contextmanager
def _logged(failed: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # of telling alone: what was done stays done
        get_run_logger().error("%s: %s", failed, error)


def _alert(telling: Telling, error: SlipwayError) -> None:
    about = About(
        application=telling.application,
        environment=telling.environment,
        version=telling.version,
        release=telling.release,
        flow=telling.kind,
        flow_run=run_id(),
    )
    crumbs = [f"stage {s.name}: {s.outcome} after {s.seconds:.1f} s" for s in telling.stages]
    sentry.report(error, about, crumbs=crumbs)


def interrupted(error: BaseException) -> SlipwayError:
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return Failed(
            "SLP015",
            f"a file could not be written: {error}",
            help="free some space on that disk and run it again",
        )
    if isinstance(error, Exception):
        return Failed(
            "SLP099",
            f"{type(error).__name__}: {error}",
            help="run the command with --debug and report what it prints",
        )
    return Failed(
        "SLP057",
        "the run was cancelled",
        help="run it again when you are ready",
    )


def _refuse(telling: Telling, error: SlipwayError) -> None:
    if error.code == "SLP004":
        return
    journal = open_journal(telling.platform, telling.application, telling.environment,
                           telling.actor)  # fmt: skip
    telling.release = telling.release or begun_by(journal, run_id())
    if telling.release is not None:
        return
    telling.release = journal.note(
        Kind.REFUSED,
        {
            "version": telling.version,
            "digest": telling.digest,
            "strategy": telling.strategy,
            "reason": error.cause,
            "code": error.code,
            "stage": telling.stopped_in,
            "previous": getattr(live(journal.history()), "number", None),
        },
    )


def _publish(telling: Telling, report: Report) -> None:
    create_markdown_artifact(
        markdown=to_markdown(report),
        key=f"{telling.kind}-{report.application}-{report.environment}",
        description=report.sentence(),
    )
    emit_event(
        event=f"slipway.{telling.kind}.{report.outcome.lower().replace('_', '-')}",
        resource={
            "prefect.resource.id": f"slipway.environment.{report.application}.{report.environment}",
            "prefect.resource.name": f"{report.application} in {report.environment}",
        },
        payload=report.model_dump(mode="json", exclude={"error"}),
    )


def to_markdown(report: Report) -> str:
    """Verdict first, then numbers, then links, then the way back."""
    lines = [f"**{report.outcome}**: {report.sentence()}", ""]
    lines += ["| stage | outcome | seconds | note |", "|---|---|---|---|"]
    lines += [
        f"| {s.name} | {s.outcome.symbol} {s.outcome} | {s.seconds:.1f} | {_flat(s.summary)} |"
        for s in report.stages
    ]
    facts = {
        "version": report.version,
        "digest": report.digest[7:19],
        "strategy": report.strategy,
        "release": report.release,
        "requests while it moved": report.requests,
        "failed requests": report.failed_requests,
        "findings": ", ".join(f"{n} {s}" for s, n in report.findings.items() if n) or "none",
    }
    lines += ["", "| fact | value |", "|---|---|"]
    lines += [f"| {name} | {'not counted' if v is None else v} |" for name, v in facts.items()]
    lines += _evidence_lines(report)
    if report.override:
        lines += ["", f"Accepted without a pass: {_flat(report.override)}"]
    if report.error and report.error.get("detail"):
        lines += ["", "```", str(report.error["detail"])[-4000:], "```"]
    if report.url:
        lines += ["", f"Address: <{report.url}>"]
    if report.undo:
        lines += ["", f"To undo: `{report.undo}`"]
    return "\n".join(lines) + "\n"


def _evidence_lines(report: Report) -> list[str]:
    """One row a step and service: requests, errors and p95, new against old."""
    if not report.verdicts:
        return []
    lines = [
        "",
        "| step | verdict | new: requests, errors, p95 | old | why |",
        "|---|---|---|---|---|",
    ]
    for verdict in report.verdicts:
        numbers = verdict["numbers"]
        new, old = (_arm(numbers, arm) for arm in ("candidate", "stable"))
        where = f"{verdict['step']}: {verdict['weight']}% {verdict['service']}"
        lines.append(
            f"| {where} | {verdict['verdict']} | {new} | {old} | {_flat(verdict['reason'])} |"
        )
    if report.detected_after_requests is not None:
        back = report.rollback_seconds
        then = "" if back is None else f"; traffic was back {back:.1f} s later"
        lines += ["", f"Found after {report.detected_after_requests} requests{then}."]
    return lines


def _arm(numbers: Mapping[str, Any], arm: str) -> str:
    p95 = numbers.get(f"{arm}_p95_seconds")
    shown = "" if p95 is None else f", {1000 * p95:.0f} ms"
    return f"{numbers.get(f'{arm}_requests')}, {numbers.get(f'{arm}_errors')}{shown}"


def _flat(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")[:160]
