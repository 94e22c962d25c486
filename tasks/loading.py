"""Steps of a load test: plan it, look whether it can be done, do it, judge it, tell it."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import copy_context
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit
from uuid import UUID

import httpx
import psutil
from prefect import get_run_logger, task
from prefect.artifacts import (
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.events import emit_event
from prefect.states import Completed
from prefect.states import Failed as FailedState

from blocks import sentry
from blocks.load_workers import LocalWorkers, check_limits
from blocks.platform import Platform
from blocks.records import Records
from blocks.sentry import About
from domain.application import Application
from domain.errors import Failed, SlipwayError, UsageError
from domain.latency import Histogram
from domain.load_history import watch
from domain.load_plan import (
    LoadPlan,
    Operation,
    Target,
    calibration_of,
    check_ceiling,
    check_host,
    operations_of,
    workers_for,
)
from domain.load_profile import PROFILES, Profile, ramp
from domain.load_report import (
    ComparisonFigures,
    LimitFigures,
    LoadOutcome,
    LoadReport,
    figures_of,
    outcome_of,
)
from domain.load_run import Run, Second, Series
from domain.load_verdict import LoadVerdict, hopeless, judge
from domain.release import BuildRecord
from domain.verdict import Verdict
from tasks.load_page import page_of
from tasks.releasing import run_id
from tasks.reporting import interrupted
from tasks.saving import live_release

_SHOW_EVERY_SECONDS = 5
_MOST_SECONDS = 10.0


@dataclass
class LoadAccount:
    """Collects what a load test did while it does it."""

    platform: Platform
    application: str
    environment: str
    actor: str
    record: BuildRecord | None = None
    plan: LoadPlan | None = None
    outcome: LoadOutcome = LoadOutcome.UNSOUND
    reason: str = "it was interrupted"
    ceiling: float | None = None
    figures: dict[str, Any] = field(default_factory=dict)
    began: float = field(default_factory=time.monotonic)
    started_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    error: SlipwayError | None = None

    def judged(self, run: Run) -> None:
        """Take over what was measured, and what it means."""
        assert self.record is not None
        verdict = judge(run, self.record.application.objectives)
        self.figures = figures_of(run, verdict)
        self.outcome, self.reason = self.figures.pop("outcome"), self.figures.pop("reason")
        generator = self.figures["generator"]
        self.figures["generator"] = generator.model_copy(
            update={"ceiling_per_second": self.ceiling and round(self.ceiling, 1)}
        )
        self.figures["watch"] = watch(Records(self.platform.store).load_reports(), self.report())

    def limit_found(self, found: LimitFigures, last: Run, judged_last: LoadVerdict) -> None:
        """Take over the answer of a search; the figures are those of its last step."""
        self._answered(last, judged_last, found.verdict, found.reason)
        self.figures["limit"] = found

    def compared(self, found: ComparisonFigures, last: Run, judged_last: LoadVerdict) -> None:
        """Take over a comparison; the figures are those of its last run."""
        self._answered(last, judged_last, found.verdict, found.reason)
        self.figures["comparison"] = found

    def _answered(self, run: Run, judged_run: LoadVerdict, verdict: Verdict, reason: str) -> None:
        self.figures = {**figures_of(run, judged_run), "partial": False}
        del self.figures["outcome"], self.figures["reason"]
        self.outcome, self.reason = outcome_of(verdict), reason

    def report(self) -> LoadReport:
        plan, record = self.plan, self.record
        return LoadReport(
            application=self.application,
            environment=self.environment,
            version=record.version if record else "",
            digest=record.digest if record else "",
            run=run_id(),
            actor=self.actor,
            started_at=self.started_at,
            seconds=round(time.monotonic() - self.began, 1),
            target=plan.target.url if plan else "",
            behaviours=_behaviours_said(plan, record),
            profile=plan.profile if plan else None,
            outcome=self.outcome,
            reason=self.error.cause if self.error else self.reason,
            error=self.error.to_dict() if self.error else None,
            **self.figures,
        )

    def state(self) -> State[Any]:
        report = self.report()
        kind = Completed if report.exit_code == 0 else FailedState
        return kind(message=report.sentence())


def _behaviours_said(plan: LoadPlan | None, record: BuildRecord | None) -> str:
    if plan is None or record is None:
        return ""
    if plan.behaviours:
        return record.application.load.behaviours or Path(plan.behaviours).name
    return f"{len(plan.operations)} operations that anybody may do"


@contextmanager
def load_accounted(account: LoadAccount) -> Iterator[LoadAccount]:
    """Whatever ends the block, a report of it is kept, shown and sent out as an event."""
    try:
        yield account
    except SlipwayError as error:
        account.error = error
        account.outcome = LoadOutcome.REFUSED
        _tell(account)
        raise
    except BaseException as error:
        account.error = interrupted(error)
        _tell(account)
        raise
    else:
        _tell(account)


def _tell(account: LoadAccount) -> None:
    """Everybody is told, each even when another cannot be."""
    log, report = get_run_logger(), account.report()
    (log.info if report.exit_code == 0 else log.error)(report.sentence())
    for tell in (_keep, _show, _emit):
        try:
            tell(account.platform, report)
        except Exception as failed:  # of telling alone: what was measured stays measured
            log.error("not told: %s", failed)
    if report.exit_code != 0:
        about = About(application=report.application, environment=report.environment,
                      flow="load", flow_run=report.run)  # fmt: skip
        sentry.report(account.error or report.sentence(), about)


def _keep(platform: Platform, report: LoadReport) -> None:
    Records(platform.store).keep_load_report(report, page_of(report))


def _show(platform: Platform, report: LoadReport) -> None:
    create_markdown_artifact(
        markdown=report.markdown(),
        key=f"load-{report.application}-{report.environment}",
        description=report.sentence(),
    )


def _emit(platform: Platform, report: LoadReport) -> None:
    emit_event(
        event=f"slipway.load.{report.outcome.lower().replace('_', '-')}",
        resource={
            "prefect.resource.id": f"slipway.environment.{report.application}.{report.environment}",
            "prefect.resource.name": f"{report.application} in {report.environment}",
        },
        payload={
            "reason": report.reason,
            "version": report.version,
            "profile": report.profile.name if report.profile else None,
            "total": report.total.model_dump(mode="json") if report.total else None,
        },
    )


# --- before any load ------------------------------------------------------------------------


def plan_load(
    platform: Platform, application: str, environment: str, profile: str, users: int, target: str
) -> tuple[BuildRecord, LoadPlan]:
    """Decide what is sent, to whom, by how many workers; nothing is sent yet.

    Args:
        users: peak of the profile instead of its own; 0 keeps that.
        target: base URL instead of the environment's own; must be a host of the application.

    Raises:
        UsageError: SLP006, SLP182, SLP183, SLP184, SLP186.
    """
    wanted = profile_of(profile, users)
    _, record = live_release(platform, application, environment)
    aim = _target(platform, record.application, environment, target)
    check_host(record.application, aim)
    file = _behaviours(platform, record)
    plan = LoadPlan(
        profile=wanted,
        target=aim,
        workers=workers_for(wanted, os.cpu_count() or 1),
        seed=int(time.time()),
        behaviours=str(file) if file else "",
        operations=() if file else tuple(_operations(record.application, aim)),
    )
    check_limits(plan)
    return record, plan


def plan_comparison(
    platform: Platform, application: str, environment: str
) -> tuple[BuildRecord, LoadPlan]:
    """One run of a comparison: short, since the run and not the request is the unit.

    The target is set for each run: a candidate of one version or of the other.
    """
    record, plan = plan_load(platform, application, environment, "smoke", 0, "")
    profile = ramp(100, 2, 20, name="compare", pause_seconds=0.4,
                   description="100 quick users for 20 seconds, in each run")  # fmt: skip
    return record, replace(plan, profile=profile)


def profile_of(name: str, users: int) -> Profile:
    """A profile of the library, with another peak where one is asked for.

    Raises:
        UsageError: SLP186.
    """
    if name not in PROFILES:
        raise UsageError(
            "SLP186",
            f"there is no load profile {name!r}; there are {', '.join(PROFILES)}",
            help="choose one of these; --users changes how many users it has",
        )
    try:
        return PROFILES[name].scaled(users) if users else PROFILES[name]
    except ValueError as error:
        raise UsageError(
            "SLP186",
            f"{users} users make no load: {str(error).splitlines()[0]}",
            help="give a number of users from 1 to 200000",
        ) from error


def _target(platform: Platform, application: Application, environment: str, asked: str) -> Target:
    if asked:
        try:
            return Target.of(asked)
        except ValueError as error:
            raise UsageError("SLP183", str(error), help="give a base URL, http://HOST") from error
    routing = platform.edge.read(application.name, environment)
    if routing is None:
        raise UsageError(
            "SLP006",
            f"the edge has no route to {application.name} in {environment}",
            help="release it first",
        )
    url, headers = platform.edge.request_target(routing)
    host = next((v for k, v in headers.items() if k.lower() == "host"), None)
    return Target.of(url, host)


def _behaviours(platform: Platform, record: BuildRecord) -> Path | None:
    """The file in the live bundle: what users do belongs to the version they do it with."""
    declared = record.application.load
    if declared.behaviours is None:
        return None
    service = declared.service or record.application.first_service
    bundle = platform.bundles.materialize(record.artifact.services[service].digest)
    file = bundle / "app" / declared.behaviours
    if not file.is_file():
        raise UsageError(
            "SLP182",
            f"version {record.version} has no file {declared.behaviours}, which its "
            "application.yaml names under `load.behaviours`",
            help="correct the name, relative to the folder of the service, and release again",
        )
    return file


def _operations(application: Application, target: Target) -> Iterator[Operation]:
    """From the OpenAPI of the first public service that has one, else its smoke checks."""
    for service in application.services.values():
        if service.openapi and service.is_public:
            answer = _ask(target, service.openapi)
            try:
                found = list(operations_of(answer.json()))
            except ValueError:
                found = []
            if found:
                yield from found
                return
    for check in application.smoke_checks():
        yield Operation("GET", check.path, check.path, expect=(check.status,))


def _ask(target: Target, path: str) -> httpx.Response:
    """One request, before any load.

    Raises:
        Failed: SLP180.
    """
    url = f"{target.scheme}://{target.connect_to}:{target.port}{path}"
    try:
        return httpx.get(url, headers={"Host": target.host}, timeout=_MOST_SECONDS,
                         verify=target.verify)  # fmt: skip
    except httpx.HTTPError as error:
        raise Failed(
            "SLP180",
            f"tried GET {url} before any load and saw: {error or type(error).__name__}",
            help="look at the address and at `slipway status`; no load was sent",
        ) from error


def check_reachable(plan: LoadPlan, application: Application) -> None:
    """The target answers, and does not lead away.

    Raises:
        Failed: SLP180. UsageError: SLP183.
    """
    path = application.smoke_checks()[0].path
    answer = _ask(plan.target, path)
    location = answer.headers.get("location")
    if answer.is_redirect and location:
        to = urlsplit(urljoin(f"{plan.target.scheme}://{plan.target.host}{path}", location))
        if to.hostname != plan.target.host:
            raise UsageError(
                "SLP183",
                f"{plan.target.host}{path} leads away to {to.scheme}://{to.netloc}",
                help="test the host that it leads to, if it is yours",
            )


# --- the load -------------------------------------------------------------------------------


@task(name="calibrate", timeout_seconds=120, cache_policy=NO_CACHE)
def calibrate(plan: LoadPlan, folder: Path) -> float:
    """Measure what a request costs the generator; the most it can do a second.

    Raises:
        UsageError: SLP185, the profile wants more than 60 % of that.
    """
    small = replace(plan, profile=calibration_of(plan.profile), most_in_flight=500)
    run = LocalWorkers(folder).run(small, lambda run, at: None)
    cost = run.cost_seconds()
    if cost is None or run.lost:
        raise Failed(
            "SLP181",
            f"calibration sent nothing: {run.stopped or 'no user did anything'}",
            help="read the log of the worker",
            where=str(folder),
        )
    ceiling = check_ceiling(plan.profile, cost, plan.workers)
    get_run_logger().info(
        "calibration: %.2f ms of CPU for each thing a user does, so at most %.0f a second; "
        "the profile wants %.0f", 1000 * cost, ceiling, plan.profile.expected_rate(),
    )  # fmt: skip
    return ceiling


@task(name="put load on it", timeout_seconds=6 * 3600, cache_policy=NO_CACHE)
def put_load(
    platform: Platform, record: BuildRecord, environment: str, plan: LoadPlan, folder: Path
) -> Run:
    """The load itself, with a view of it every few seconds."""
    tiers = _tiers(platform, plan, record.application.name, environment)
    workers = LocalWorkers(folder, tiers=tiers)
    with _View(plan) as view:

        def look(run: Run, at: int) -> None:
            run.hopeless = run.hopeless or hopeless(run, at - 1, record.application.objectives)
            view.show(run, at)

        return workers.run(plan, look)


def _tiers(
    platform: Platform, plan: LoadPlan, application: str, environment: str
) -> dict[str, Sequence[int]]:
    """Process ids of what the application consists of, as far as it runs on this machine."""
    tiers: dict[str, Sequence[int]] = {}
    for workload in platform.cluster.workloads(application, environment):
        pids = [replica.pid for replica in workload.replicas if replica.pid is not None]
        if pids:
            tiers["application"] = [*tiers.get("application", ()), *pids]
    ports = {"edge": plan.target.port}
    database = urlsplit(platform.database_url.get_secret_value())
    if database.hostname in ("127.0.0.1", "localhost") and database.port:
        ports["database"] = database.port
    return tiers | _listeners(ports)


def _listeners(ports: Mapping[str, int]) -> dict[str, Sequence[int]]:
    found: dict[str, Sequence[int]] = {}
    try:
        sockets = psutil.net_connections("tcp")
    except psutil.Error:
        return found
    for tier, port in ports.items():
        listening = (s for s in sockets if s.status == psutil.CONN_LISTEN and s.laddr)
        pids = {s.pid for s in listening if s.laddr.port == port}  # type: ignore[union-attr]
        if known := sorted(pid for pid in pids if pid):
            found[tier] = known[:1]  # the first is the parent of the others
    return found


class _View:
    """Progress and a table in the Prefect UI, and a line in the log.

    A thread of its own tells the server, one view at a time. On a full machine the server is slow
    to answer, and whoever waited for it gave the workers no beat and took them for dead.
    """

    def __init__(self, plan: LoadPlan) -> None:
        self._plan, self._shown = plan, 0
        self._teller = ThreadPoolExecutor(1, thread_name_prefix="load-view")
        self._telling: Future[None] | None = None
        self._artifact: UUID | None = None
        self._log = get_run_logger()

    def __enter__(self) -> _View:
        made = create_progress_artifact(progress=0.0, description=self._plan.profile.description)
        self._artifact = made if isinstance(made, UUID) else None
        return self

    def __exit__(self, *_: object) -> None:
        self._teller.shutdown()

    def show(self, run: Run, at: int) -> None:
        if at - self._shown < _SHOW_EVERY_SECONDS:
            return
        told = [s for s in run.within(self._shown, at) if s.workers == run.workers]
        seconds, self._shown = told, at
        if not seconds:
            return
        row = _row(run, at, seconds)
        line = ", ".join(f"{key} {value}" for key, value in row.items())
        self._log.info("%s", line)
        if self._telling is None or self._telling.done():
            share = min(100.0, 100 * at / self._plan.profile.seconds)
            self._telling = self._teller.submit(copy_context().run, self._tell, row, line, share)

    def _tell(self, row: dict[str, str], line: str, share: float) -> None:
        try:
            if self._artifact is not None:
                update_progress_artifact(self._artifact, progress=share, description=line)
            create_table_artifact(table=[row], key="load-live", description="the last 5 seconds")
        except Exception as error:  # a server that is away must not end a load test
            self._log.debug("progress not shown: %s", error)


def _row(run: Run, at: int, seconds: Sequence[Second]) -> dict[str, str]:
    whole, lag = Series(), Histogram()
    for second in seconds:
        whole.merge(second.series)
        lag.merge(second.lag)
    return {
        "at": _clock(at),
        "phase": run.profile.phase_at(at - 0.5).name,
        "users": str(seconds[-1].users),
        "requests/s": f"{whole.requests / len(seconds):.0f}",
        "failed": str(whole.failed),
        "p50": _shown_ms(whole.response, 0.5),
        "p95": _shown_ms(whole.response, 0.95),
        "p99": _shown_ms(whole.response, 0.99),
        "generator late by": _shown_ms(lag, 0.99),
    }


def _clock(seconds: int) -> str:
    return f"{seconds // 60}:{seconds % 60:02d}"


def _shown_ms(seen: Histogram, share: float) -> str:
    us = seen.percentile(share)
    return "-" if us is None else f"{us / 1000:.1f} ms"


def folder_of(platform: Platform) -> Path:
    """Where the logs of a run's workers go."""
    return Path(platform.store_root).parent / "logs" / f"load-{run_id()}"
