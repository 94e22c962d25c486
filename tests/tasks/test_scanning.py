from __future__ import annotations

import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from prefect import flow
from prefect.artifacts import Artifact

from blocks.osv import OsvApi
from blocks.scanners import dependencies
from domain.findings import Finding, Scanner, ScannerReport, ScanPolicy, Severity, judge
from domain.verdict import Verdict
from tasks import scanning

TODAY = date(2026, 11, 23)
EXAMPLES = Path(__file__).parents[2] / "examples"
LOCAL = ScanPolicy(advisories="advisories", advisories_max_age_days=36500)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "app.py").write_text("import subprocess\nsubprocess.call(input(), shell=True)\n")
    (tmp_path / "Containerfile").write_text("FROM debian\n")
    (tmp_path / "requirements.lock").write_text("requests==2.30.0\njinja2==3.1.6\n")
    return tmp_path


class _Unavailable(BaseHTTPRequestHandler):
    asked = 0

    def do_POST(self) -> None:
        type(self).asked += 1
        self.send_error(503)

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def unavailable(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[_Unavailable]]:
    """An OSV API that always answers 503, in the place of the real one."""
    _Unavailable.asked = 0
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Unavailable)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(dependencies, "OsvApi", partial(OsvApi, address, timeout_seconds=5))
    yield _Unavailable
    server.shutdown()
    server.server_close()
    thread.join(5)


def finding(number: int, severity: Severity = Severity.HIGH) -> Finding:
    return Finding(
        scanner=Scanner.BANDIT,
        id=f"B{number:03}",
        severity=severity,
        title="a title much longer than the forty characters that a cell may hold",
        where=f"application/with/a/rather/deep/folder/module_{number}.py:{number}",
        fix="do something that takes quite a few words to tell",
    )


def worked(scanner: Scanner, *findings: Finding) -> ScannerReport:
    return ScannerReport(
        scanner=scanner, checked=3, checked_against="3 files against rules", findings=findings
    )


def check_table(rows: list[dict[str, str]]) -> None:
    assert 0 < len(rows) <= 10
    assert len({tuple(row) for row in rows}) == 1 and len(rows[0]) <= 6
    assert all(isinstance(cell, str) and 0 < len(cell) <= 40 for r in rows for cell in r.values())


def test_each_task_reports_its_scanner_alone(source: Path) -> None:
    reports = {
        Scanner.BANDIT: scanning.static_analysis.fn(source, "api"),
        Scanner.DETECT_SECRETS: scanning.secrets.fn(source, "api"),
        Scanner.HADOLINT: scanning.container_file.fn(source, "api"),
        Scanner.OSV: scanning.dependencies_of.fn(
            LOCAL, EXAMPLES, lock=source / "requirements.lock", service="api"
        ),
        Scanner.SCHEMATHESIS: scanning.fuzz.fn("http://127.0.0.1:9", None, LOCAL, "api"),
    }
    for scanner, report in reports.items():
        assert report.scanner is scanner and report.scope == "api" and report.problem is None
    verdict = judge(reports.values(), LOCAL, TODAY)
    assert verdict.verdict is Verdict.FAIL and not verdict.missing
    assert [f.id for f in verdict.refused] == ["B602"]
    assert {f.id for f in verdict.tolerated} >= {"CVE-2023-32681", "DL3006"}


def test_scanners_run_side_by_side(source: Path) -> None:
    with ThreadPoolExecutor(6) as pool:
        static = [pool.submit(scanning.static_analysis.fn, source) for _ in range(3)]
        secret = [pool.submit(scanning.secrets.fn, source) for _ in range(3)]
        assert {r.result().findings for r in static} == {static[0].result().findings}
        assert all(r.result().problem is None for r in static + secret)


def test_an_online_lookup_that_fails_is_an_error_outside_of_prefect(
    source: Path, unavailable: type[_Unavailable]
) -> None:
    report = scanning.dependencies_of.fn(ScanPolicy(), EXAMPLES, lock=source / "requirements.lock")
    assert report.evidence is Verdict.ERROR and "503" in str(report.problem)
    assert unavailable.asked == 1


def test_the_table_shows_the_worst_ten_first() -> None:
    found = [finding(n, Severity.LOW) for n in range(12)] + [finding(99, Severity.CRITICAL)]
    verdict = judge([worked(Scanner.BANDIT, *found)], ScanPolicy(), TODAY, [Scanner.BANDIT])
    rows = scanning.table(verdict)
    check_table(rows)
    assert len(rows) == 10
    assert rows[0]["id"] == "B099" and rows[0]["severity"] == "critical"
    assert "and 3 more findings" in scanning.description(verdict)
    assert scanning.description(verdict).startswith("**✖ fail: 1 critical, 12 low")


def test_what_could_not_be_scanned_stands_before_what_was_found() -> None:
    broken = ScannerReport(scanner=Scanner.OSV, problem="error[SLP041]: no answer\nfrom there")
    scan = [worked(Scanner.BANDIT, finding(1)), broken]
    verdict = judge(scan, ScanPolicy(), TODAY)
    rows = scanning.table(verdict)
    check_table(rows)
    assert rows[0]["severity"] == "error" and rows[0]["what"].startswith("error[SLP041]")
    assert [row["severity"] for row in rows].count("not_run") == 3
    assert rows[-1]["id"] == "B001"


def test_a_pass_shows_what_it_stands_on() -> None:
    nothing = ScannerReport(scanner=Scanner.HADOLINT, not_applicable="there is no Containerfile")
    scan = [worked(s) for s in Scanner if s is not Scanner.HADOLINT] + [nothing]
    verdict = judge(scan, ScanPolicy(), TODAY)
    rows = scanning.table(verdict)
    check_table(rows)
    assert verdict.verdict is Verdict.PASS and len(rows) == 5
    assert {row["severity"] for row in rows} == {"none", "-"}
    assert "3 files against rules" in scanning.description(verdict)


@pytest.mark.usefixtures("prefect_harness")
def test_a_flow_scans_side_by_side_and_publishes_the_verdict(source: Path) -> None:
    @flow(name="scan-under-test")
    def scan() -> Verdict:
        futures = [
            scanning.static_analysis.submit(source, "api"),
            scanning.secrets.submit(source, "api"),
            scanning.container_file.submit(source, "api"),
            scanning.dependencies_of.submit(
                LOCAL, EXAMPLES, lock=source / "requirements.lock", service="api"
            ),
            scanning.fuzz.submit("http://127.0.0.1:9", None, LOCAL, "api"),
        ]
        verdict = judge([f.result() for f in futures], LOCAL, TODAY)
        scanning.publish(verdict, "shop", "staging")
        return verdict.verdict

    assert scan() is Verdict.FAIL
    artifact = Artifact.get("scan-shop-staging")
    assert artifact is not None and artifact.type == "table"
    rows = json.loads(str(artifact.data))
    check_table(rows)
    assert rows[0]["id"] == "B602"
    assert re.search(r"2 locked packages against 8 advisories", str(artifact.description))


@pytest.mark.usefixtures("prefect_harness")
def test_prefect_retries_a_failed_lookup_and_then_reports_the_error(
    source: Path, unavailable: type[_Unavailable]
) -> None:
    lookup = scanning.dependencies_of.with_options(retry_delay_seconds=0)

    @flow(name="lookup-under-test")
    def scan() -> ScannerReport:
        return lookup(ScanPolicy(), EXAMPLES, lock=source / "requirements.lock")

    report = scan()
    assert report.evidence is Verdict.ERROR and "503" in str(report.problem)
    assert unavailable.asked == 1 + scanning.LOOKUP_RETRIES


def test_only_the_lookup_is_retried() -> None:
    assert scanning.dependencies_of.retries == scanning.LOOKUP_RETRIES
    for step in (scanning.static_analysis, scanning.secrets, scanning.fuzz, scanning.publish):
        assert step.retries == 0
