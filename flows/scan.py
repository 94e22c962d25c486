"""Scan: code, dependencies, secrets, container file, and the API of a running candidate."""

from __future__ import annotations

from contextlib import nullcontext
from datetime import UTC, datetime

from prefect import flow

from blocks.application_file import application_file
from blocks.commands import ended_together
from blocks.platform import load_platform
from domain.findings import ScanVerdict, judge
from domain.verdict import Verdict
from flows.build import build
from tasks.alerts import ALERTS
from tasks.candidates import Candidate, candidate
from tasks.naming import run_name
from tasks.scanning import (
    container_file,
    dependencies_of,
    fuzz,
    publish,
    secrets,
    static_analysis,
)
from tasks.sourcing import load_application, read_record


@flow(name="scan", flow_run_name=run_name, timeout_seconds=3600,
      on_failure=ALERTS, on_crashed=ALERTS)  # fmt: skip
def scan(
    environment: str,
    source: str,
    version: str = "",
    digest: str = "",
    accept_incomplete: str = "",
    platform: str = "sandbox",
) -> ScanVerdict:
    """Scan what was built, by the policy of an environment; anything but a pass raises.

    Args:
        environment: Whose thresholds and allow-list hold.
        source: Folder that holds application.yaml.
        version: Name of the version; empty takes the one in application.yaml.
        digest: Build record to scan; empty builds the source first.
        accept_incomplete: Reason to go on although a scanner could not do its work. Findings
            over the limit stop it all the same.
        platform: Slipway Platform block to scan on.
    """
    target = load_platform(platform)
    load_application(source, environment)
    record = read_record(target, digest or build(source, version, platform))
    policy, base = record.application.scan_in(environment), application_file(source).parent
    services = record.application.services
    waiting = []
    with ended_together():
        for name, bundle in record.artifact.services.items():
            unpacked = target.bundles.materialize(bundle.digest)
            app, venv = unpacked / "app", unpacked / "venv"
            waiting += [
                look.submit(app, name) for look in (static_analysis, secrets, container_file)
            ]
            installed = venv if venv.exists() else None
            waiting.append(dependencies_of.submit(policy, base, installed, None, name))
        asked = any(service.openapi for service in services.values())
        with candidate(target, record) if asked else nullcontext(Candidate({})) as running:
            reports = [
                fuzz(running.urls.get(name, ""), service.openapi, policy, name)
                for name, service in services.items()
            ]
        reports += [step.result() for step in waiting]
    verdict = judge(reports, policy, datetime.now(UTC).date())
    publish(verdict, record.application.name, environment)
    error = verdict.as_error()
    if error and not (accept_incomplete and verdict.verdict is not Verdict.FAIL):
        raise error
    return verdict
