"""The steps of a scan: one task a scanner, safe to run side by side, and one that tells people.

Each task returns the evidence of its scanner as a ``ScannerReport``, also when the scanner could
not work; the flow hands all of them to ``domain.findings.judge``.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID

from prefect import get_run_logger, task
from prefect.artifacts import create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.events import emit_event
from prefect.exceptions import MissingContextError
from prefect.runtime import task_run

from blocks.scanners import bandit, dependencies, detect_secrets, hadolint, schemathesis
from domain.errors import Failed
from domain.findings import ONLINE, Finding, JudgedReport, ScannerReport, ScanPolicy, ScanVerdict
from domain.verdict import Verdict
from tasks.tables import cell

LOOKUP_RETRIES = 2
STATIC_SECONDS = 300.0
ROWS = 10


def _named(step: str) -> Callable[[], str]:
    """Run name of a step: the step, and the service where there are several."""
    return lambda: f"{step} {task_run.parameters.get('service', '')}".strip()


# Nothing of a scan is cached: the tools and the advisories change while the source does not.
# A task's own timeout does not end a subprocess, so each scanner bounds its program itself.


@task(name="static-analysis", task_run_name=_named("static analysis"), cache_policy=NO_CACHE)
def static_analysis(source: Path, service: str = "") -> ScannerReport:
    """Dangerous code in the Python files of a source (bandit)."""
    return _told(bandit.scan(source, scope=service, seconds=STATIC_SECONDS))


@task(name="secrets", task_run_name=_named("secrets"), cache_policy=NO_CACHE)
def secrets(source: Path, service: str = "") -> ScannerReport:
    """Secrets in the files of a source (detect-secrets)."""
    return _told(detect_secrets.scan(source, scope=service, seconds=STATIC_SECONDS))


@task(name="container-file", task_run_name=_named("container file"), cache_policy=NO_CACHE)
def container_file(source: Path, service: str = "") -> ScannerReport:
    """The container files of a source (hadolint)."""
    return _told(hadolint.scan(source, scope=service, seconds=STATIC_SECONDS))


@task(
    name="dependencies",
    task_run_name=_named("dependencies"),
    cache_policy=NO_CACHE,
    retries=LOOKUP_RETRIES,  # a lookup changes nothing, and a public API has bad moments
    retry_delay_seconds=[1, 4],
    retry_jitter_factor=0.5,
)
def dependencies_of(
    policy: ScanPolicy,
    base: Path,
    venv: Path | None = None,
    lock: Path | None = None,
    service: str = "",
) -> ScannerReport:
    """Known vulnerabilities of what ships (OSV).

    Args:
        base: folder of application.yaml; a directory of advisories is relative to it.
        venv: virtual environment of the built bundle, preferred: it holds what really ships.
        lock: requirements lock, for a source that is not built. Neither: no packages.
    """
    advisories = dependencies.advisories_of(policy, base)
    today, max_age_days = datetime.now(UTC).date(), policy.advisories_max_age_days
    if venv is not None:
        report = dependencies.scan_installed(
            venv, advisories, today=today, max_age_days=max_age_days, scope=service
        )
    else:
        report = dependencies.scan_lock(
            lock, advisories, today=today, max_age_days=max_age_days, scope=service
        )
    if report.problem and policy.advisories == ONLINE and _may_try_again():
        raise Failed("SLP041", report.problem, help=report.remedy)
    return _told(report)


@task(name="fuzz", task_run_name=_named("fuzz"), cache_policy=NO_CACHE)
def fuzz(
    base_url: str, openapi_path: str | None, policy: ScanPolicy, service: str = ""
) -> ScannerReport:
    """Generated requests to a running candidate (schemathesis).

    It writes to whatever the candidate writes to: give it a candidate with a disposable database.
    It is not retried, because a second run meets what the first one wrote.
    """
    return _told(
        schemathesis.scan(
            base_url,
            openapi_path,
            max_examples=policy.fuzz_max_examples,
            seconds=policy.fuzz_seconds,
            scope=service,
        )
    )


@task(name="publish-scan", task_run_name="publish scan of {application}", cache_policy=NO_CACHE)
def publish(verdict: ScanVerdict, application: str, environment: str) -> UUID:
    """Show a verdict in Prefect: a table artifact ``scan-APPLICATION-ENVIRONMENT`` and an event."""
    artifact = create_table_artifact(
        table=table(verdict),
        key=f"scan-{application}-{environment}",
        description=description(verdict),
    )
    emit_event(
        event="slipway.scan.judged",
        resource={
            "prefect.resource.id": f"slipway.environment.{application}.{environment}",
            "prefect.resource.name": f"{application} in {environment}",
        },
        payload={
            "application": application,
            "environment": environment,
            "verdict": str(verdict.verdict),
            "summary": verdict.summary,
            "counts": {str(severity): number for severity, number in verdict.counts.items()},
            "reasons": list(verdict.reasons),
        },
    )
    assert isinstance(artifact, UUID)  # a coroutine only where the caller is asynchronous
    return artifact


def table(verdict: ScanVerdict) -> list[dict[str, str]]:
    """At most ten rows, the worst first: what could not be scanned, then what was found.

    A scan without either has one row for each scanner, so that a pass shows what it stands on.
    """
    trouble = [_scanner_row(one) for one in verdict.scanners if _could_not_work(one)]
    trouble += [
        _row("not_run", str(scanner), scanner.looks_at, "SLP041", "handed in no report", "scan")
        for scanner in verdict.missing
    ]
    found = [_finding_row(finding) for finding in verdict.worst_first]
    return (trouble + found or [_scanner_row(one) for one in verdict.scanners])[:ROWS]


def description(verdict: ScanVerdict) -> str:
    """Markdown beside the table: the verdict as a sentence, then the evidence of each scanner."""
    lines = [f"**{verdict.verdict.symbol} {verdict.summary}**", ""]
    lines += [f"- {' '.join(reason.split())}" for reason in verdict.reasons]
    lines += [
        f"- allowed until {one.allowance.expires}: {one.finding.id} in {one.finding.where} "
        f"({one.allowance.reason})"
        for one in verdict.allowed
    ]
    lines += [f"- expired on {e.expires}: the allowance of {e.id}" for e in verdict.expired]
    lines += [f"- not needed any more: the allowance of {e.id}" for e in verdict.unused]
    hidden = len(verdict.worst_first) - ROWS
    return "\n".join(lines + ([f"- and {hidden} more findings"] if hidden > 0 else []))


def _could_not_work(judged: JudgedReport) -> bool:
    return judged.report.not_applicable is None and not judged.report.evidence.advances


def _scanner_row(judged: JudgedReport) -> dict[str, str]:
    report = judged.report
    if report.not_applicable is not None:
        return _row("-", report.label, report.scanner.looks_at, "-", report.not_applicable, "-")
    if _could_not_work(judged):
        what = report.problem or "it looked at nothing"
        return _row(report.evidence, report.label, report.scanner.looks_at, "SLP041", what, "scan")
    return _row("none", report.label, report.scanner.looks_at, "-", report.checked_against, "-")


def _finding_row(finding: Finding) -> dict[str, str]:
    severity = finding.severity if finding.rated else f"{finding.severity} (unrated)"
    return _row(
        severity, finding.scanner, finding.where, finding.id, finding.title, finding.fix or "-"
    )


def _row(severity: str, scanner: str, where: str, id: str, what: str, fix: str) -> dict[str, str]:
    cells = {
        "severity": severity,
        "scanner": scanner,
        "where": where,
        "id": id,
        "what": what,
        "fix": fix,
    }
    return {key: cell(text) for key, text in cells.items()}


def _may_try_again() -> bool:
    """Whether Prefect would run this task once more; False outside of a task run."""
    count = task_run.run_count
    return bool(count) and count <= LOOKUP_RETRIES


def _told(report: ScannerReport) -> ScannerReport:
    with suppress(MissingContextError):  # called as a plain function
        log = get_run_logger()
        say = log.error if report.evidence is Verdict.ERROR else log.info
        found = f"{len(report.findings)} findings; {report.checked_against}"
        if report.problem or report.not_applicable:
            found = report.problem or f"not applicable, {report.not_applicable}"
        say("%s: %s", report.label, found)
    return report
