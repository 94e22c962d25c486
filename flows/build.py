"""Build: source to an immutable bundle per service, with its SBOM and provenance."""

from __future__ import annotations

from prefect import flow

from blocks.platform import load_platform
from tasks.alerts import ALERTS
from tasks.building import build_service, publish_build
from tasks.naming import run_name
from tasks.sourcing import build_request, keep_record, load_application


@flow(name="build", flow_run_name=run_name, timeout_seconds=3600,
      on_failure=ALERTS, on_crashed=ALERTS)  # fmt: skip
def build(source: str, version: str = "", platform: str = "sandbox") -> str:
    """Build the application in a folder. The same source is not built twice.

    Args:
        source: Folder that holds application.yaml.
        version: Name of the version; empty takes the one in application.yaml.
        platform: Slipway Platform block to build for.

    Returns:
        The digest of the build record, which the other flows take.
    """
    target = load_platform(platform)
    application = load_application(source)
    requests = {name: build_request(application, name, source) for name in application.services}
    results = {
        name: build_service(request, target.bundles.root) for name, request in requests.items()
    }
    record = keep_record(target, application, source, version, results)
    publish_build(record.artifact, list(results.values()))
    return record.digest
