"""Running an application's test suites against what was built."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from prefect import get_run_logger, task
from prefect.artifacts import create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.events import emit_event

from blocks import builder, commands
from blocks.platform import Platform
from domain.application import Suite
from domain.errors import Failed
from domain.release import BuildRecord
from domain.suites import SuiteResult, overall, read_junit
from domain.verdict import Verdict
from tasks.tables import cell

ROWS = 50


class SuiteFailed(Exception):
    """Carries a result that is not a pass through Prefect's retries."""

    def __init__(self, result: SuiteResult) -> None:
        super().__init__(result.sentence)
        self.result = result


@task(name="suite", task_run_name="suite {name}", cache_policy=NO_CACHE)
def _run_suite(
    platform: Platform, record: BuildRecord, name: str, environ: Mapping[str, str]
) -> SuiteResult:
    """Run one suite in a fresh writable copy of the source that was built."""
    suite = record.application.tests[name]
    service = suite.service or record.application.first_service
    digest = record.artifact.services[service].digest
    work = work_folder(Path(platform.store_root).parent / "suites", name)
    try:
        source = platform.bundles.copy_source(digest, work / "source")
        result = _run_in(platform, record, name, source, work, environ)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    get_run_logger().info("%s %s", result.verdict.symbol, result.sentence)
    if result.verdict is not Verdict.PASS and suite.retries:
        raise SuiteFailed(result)
    return result


def work_folder(root: Path, name: str) -> Path:
    """A new folder; what lies above it decides nothing for a pytest that runs below it.

    pytest looks for its configuration in all folders above, and the sandbox's home may lie in a
    project that has one: a suite without its own would be run with the options of another project.
    """
    root.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=root))
    (work / "pytest.ini").write_text("[pytest]\n")
    return work


def _run_in(
    platform: Platform,
    record: BuildRecord,
    name: str,
    source: Path,
    work: Path,
    environ: Mapping[str, str],
) -> SuiteResult:
    suite = record.application.tests[name]
    service = suite.service or record.application.first_service
    build = record.application.services[service].build
    test_lock = source / build.test_lock if build.test_lock else None
    venv = builder.test_environment(
        platform.bundles, record.artifact.services[service].digest, test_lock
    )
    junit = work / "junit.xml"
    ended = commands.run(
        suite.command,
        cwd=source,
        venv=venv,
        environ={
            **environ,
            "JUNIT_XML": str(junit),
            "PYTEST_ADDOPTS": f"--junitxml={junit} --rootdir={source} -p no:cacheprovider",
        },
        seconds=suite.timeout.total_seconds(),
        log=_log_of(platform, record, name),
    )
    xml = junit.read_bytes() if junit.exists() else None
    return read_junit(name, suite.kind, xml, ended.code)


def run_suite(
    platform: Platform, record: BuildRecord, name: str, environ: Mapping[str, str]
) -> SuiteResult:
    """A suite's result; its declared retries are Prefect's, so that a flaky one shows as such."""
    suite: Suite = record.application.tests[name]
    step = _run_suite.with_options(retries=suite.retries, retry_delay_seconds=1)
    try:
        return step(platform, record, name, environ)
    except SuiteFailed as error:
        return error.result


@task(name="publish-tests", task_run_name="publish tests", cache_policy=NO_CACHE)
def publish_tests(record: BuildRecord, results: list[SuiteResult]) -> None:
    """A table artifact ``tests-APPLICATION``: failures first, then one row a suite."""
    failures = [
        _row(test.name, result.suite, "failed", test.message)
        for result in results
        for test in result.failures
    ]
    suites = [
        _row(r.suite, r.kind, str(r.verdict), r.reason or f"{r.passed} passed in {r.seconds:.1f} s")
        for r in results
    ]
    create_table_artifact(
        key=f"tests-{record.application.name}",
        table=(failures + suites)[:ROWS],
        description=f"**{overall(results)}**: {'; '.join(r.sentence for r in results)}",
    )
    emit_event(
        event="slipway.tests.judged",
        resource={
            "prefect.resource.id": f"slipway.build.{record.digest}",
            "prefect.resource.name": f"{record.application.name} {record.version}",
        },
        payload={"verdict": overall(results), "suites": [r.sentence for r in results]},
    )


def raise_unless_passed(
    platform: Platform, record: BuildRecord, results: list[SuiteResult]
) -> None:
    """Raises Failed SLP030 (a test failed), SLP031 (no test ran) or SLP032 (time limit)."""
    for result in results:
        if result.verdict is Verdict.PASS:
            continue
        log = _log_of(platform, record, result.suite)
        code = {Verdict.FAIL: "SLP030"}.get(result.verdict, "SLP031")
        if "time limit" in result.reason:
            code = "SLP032"
        first = result.failures[0] if result.failures else None
        cause = (
            f"suite {result.suite}: {result.failed} of {result.failed + result.passed} tests "
            f"failed; the first: {first.name}: {first.message}"
            if first
            else f"suite {result.suite}: {result.reason}"
        )
        raise Failed(
            code,
            cause,
            help=f"run `{record.application.tests[result.suite].command}` in the source to see "
            "it; its output is in the log",
            where=str(log),
            detail=commands.tail(log),
        )


def _log_of(platform: Platform, record: BuildRecord, suite: str) -> Path:
    folder = Path(platform.store_root).parent / "logs" / "suites"
    return folder / f"{record.application.name}-{suite}-{record.digest[7:19]}.log"


def _row(name: str, where: str, outcome: str, message: str) -> dict[str, str]:
    return {
        "what": cell(name, keep_end=True),
        "suite": cell(where),
        "outcome": outcome,
        "message": cell(message),
    }
