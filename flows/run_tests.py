"""Test: the suites that application.yaml names, against what was built."""

from __future__ import annotations

from contextlib import nullcontext

from prefect import flow

from blocks.platform import load_platform
from domain.verdict import Verdict
from flows.build import build
from tasks.alerts import ALERTS
from tasks.candidates import Candidate, backing, candidate
from tasks.naming import run_name
from tasks.overlap import ahead
from tasks.sourcing import read_record
from tasks.testing import publish_tests, raise_unless_passed, run_suite


@flow(name="test", flow_run_name=run_name, timeout_seconds=3600,
      on_failure=ALERTS, on_crashed=ALERTS)  # fmt: skip
def test(
    source: str = "", version: str = "", digest: str = "", platform: str = "sandbox"
) -> tuple[Verdict, str]:
    """Run an application's tests: unit, then integration, then end-to-end.

    Integration suites get a disposable database on the real server; end-to-end suites get the
    address of a candidate that no user can reach.

    Args:
        source: Folder that holds application.yaml; it is built first.
        version: Name of the version; empty takes the one in application.yaml.
        digest: Build record to test, instead of a source.
        platform: Slipway Platform block to test on.

    Returns:
        The verdict, and a sentence about it: no suite declared is ``not_run``, never a pass.
    """
    target = load_platform(platform)
    record = read_record(target, digest or build(source, version, platform))
    suites = record.application.tests
    end_to_end = [n for n, s in suites.items() if s.kind == "end-to-end"]
    wanted = candidate(target, record) if end_to_end else nullcontext(Candidate({}))
    with ahead(wanted) as running:  # it comes up while the other suites run
        results = [run_suite(target, record, n, {}) for n, s in suites.items() if s.kind == "unit"]
        for name in (n for n, s in suites.items() if s.kind == "integration"):
            with backing(target, record) as environ:
                results.append(run_suite(target, record, name, environ))
        environ = {"BASE_URL": running().url}
        results += [run_suite(target, record, name, environ) for name in end_to_end]
    if not results:
        return Verdict.NOT_RUN, "application.yaml declares no suite"
    publish_tests(record, results)
    raise_unless_passed(target, record, results)
    return Verdict.PASS, ""
