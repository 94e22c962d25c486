"""Making the bundles of an application, one task run a service."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prefect import get_run_logger, runtime, task
from prefect.artifacts import create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.events import emit_event
from prefect.tasks import exponential_backoff

from blocks import builder
from blocks.builder import BuildRequest, BuildResult
from blocks.bundles import BundleStore
from domain.artifact import Artifact
from domain.errors import SlipwayError


def _may_get_better(_task: Any, _run: TaskRun, state: State[Any]) -> bool:
    """Only a package index that did not answer can answer next time; a build that failed once
    fails again, and repeating it hides its message."""
    error = state.data
    return isinstance(error, SlipwayError) and error.code == "SLP014"


# No caching by Prefect: the store's own index knows the same source again, and checks on the way
# that the bundle is still there and whole.
@task(
    name="build-service",
    task_run_name="build {request.service}",
    cache_policy=NO_CACHE,
    retries=3,
    retry_delay_seconds=exponential_backoff(backoff_factor=2),
    retry_jitter_factor=0.5,
    retry_condition_fn=_may_get_better,
)
def build_service(request: BuildRequest, bundles_root: Path) -> BuildResult:
    """Build one service into the store below ``bundles_root``, or find what it became before.

    Raises:
        As ``blocks.builder.build``.
    """
    log = get_run_logger()
    result = builder.build(
        request, BundleStore(bundles_root), invocation=str(runtime.flow_run.id or "local")
    )
    log.info("%s: %s (%.1f s)", result.name, result.reason, result.seconds)
    if result.unhashed:
        log.warning(
            "%s: the lock has no hash for %s, so the index decides what is installed; make it "
            "with `uv pip compile --generate-hashes`",
            result.name,
            ", ".join(result.unhashed[:5]) + (" ..." if len(result.unhashed) > 5 else ""),
        )
    _tell(request, result)
    return result


def _tell(request: BuildRequest, result: BuildResult) -> None:
    emit_event(
        event="slipway.bundle.built" if result.rebuilt else "slipway.bundle.reused",
        resource={
            "prefect.resource.id": f"slipway.bundle.{result.bundle.digest}",
            "prefect.resource.name": f"{result.name} {result.bundle.short}",
        },
        payload={
            "application": request.application,
            "service": request.service,
            "digest": result.bundle.digest,
            "size_bytes": result.bundle.size_bytes,
            "revision": str(result.revision),
            "rebuilt": result.rebuilt,
            "reason": result.reason,
            "seconds": round(result.seconds, 3),
        },
    )


@task(
    name="publish-build",
    task_run_name="publish build of {artifact.application}",
    cache_policy=NO_CACHE,
)
def publish_build(artifact: Artifact, results: Sequence[BuildResult]) -> None:
    """Show what was built in Prefect: a table artifact ``build-APPLICATION``, one row a service."""
    built = sum(result.rebuilt for result in results)
    create_table_artifact(
        key=f"build-{artifact.application}",
        table=[row(result) for result in results],
        description=f"**{artifact.application} {artifact.version} is `{artifact.short}`**: "
        f"{built} of {len(results)} bundles built, {len(results) - built} known from before",
    )


def row(result: BuildResult) -> dict[str, str]:
    """One service in the table; "no rebuild" is said in words."""
    return {
        "service": result.name.rpartition("/")[2],
        "bundle": result.bundle.short,
        "built": "yes" if result.rebuilt else "no rebuild: same inputs",
        "MB": f"{result.bundle.size_bytes / 1e6:.1f}",
        "packages": f"{result.packages}"
        + (f" ({len(result.unhashed)} without hash)" if result.unhashed else ""),
        "revision": str(result.revision)[:12] + (" + changes" if result.revision.dirty else ""),
        "seconds": f"{result.seconds:.1f}",
        "log": str(result.logs or ""),
    }
