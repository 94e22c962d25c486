"""From a folder with an application.yaml to a stored build record."""

from __future__ import annotations

from pathlib import Path

from prefect import task
from prefect.cache_policies import NO_CACHE

from blocks.application_file import application_file, read_application, read_flags
from blocks.builder import BuildRequest, BuildResult
from blocks.platform import Platform
from blocks.records import Records
from domain.application import Application
from domain.artifact import Artifact, digest_of
from domain.errors import Failed
from domain.release import BuildRecord, version_of


@task(name="read-application", task_run_name="read application.yaml", cache_policy=NO_CACHE)
def load_application(source: str, environment: str = "") -> Application:
    """Parse application.yaml, check its flags and, when one is given, the environment's name."""
    application = read_application(source)
    read_flags(application, source)
    if environment:
        application.environment(environment)
    return application


def build_request(application: Application, service: str, source: str) -> BuildRequest:
    """What to build, with paths made absolute. Raises Failed SLP020 for a missing folder."""
    build = application.services[service].build
    root = application_file(source).parent
    folder = (root / build.source).resolve()
    if not folder.is_dir():
        raise Failed(
            "SLP020",
            f"services.{service}.build.source is {build.source!r}, and {folder} is no folder",
            help="correct `source` in application.yaml",
        )
    return BuildRequest(
        application=application.name,
        service=service,
        source=folder,
        lock=_lock_of(folder, build.lock),
        python=build.python,
        commands=build.commands,
        exclude=build.exclude,
    )


def _lock_of(folder: Path, declared: str | None) -> Path | None:
    if declared:
        return folder / declared
    usual = folder / "requirements.lock"
    return usual if usual.exists() else None


@task(name="keep-record", task_run_name="keep the build record", cache_policy=NO_CACHE)
def keep_record(
    platform: Platform,
    application: Application,
    source: str,
    version: str,
    results: dict[str, BuildResult],
) -> BuildRecord:
    """Store what was built, under its digest, together with its application.yaml and flags."""
    revision = str(next(iter(results.values())).revision)
    services = {name: result.bundle for name, result in results.items()}
    content = digest_of({name: bundle.digest for name, bundle in services.items()})
    artifact = Artifact(
        application=application.name,
        version=version_of(application, version, revision, content),
        services=services,
    )
    record = BuildRecord.of(application, artifact, revision, read_flags(application, source))
    Records(platform.store).keep(record)
    return record


def read_record(platform: Platform, digest: str) -> BuildRecord:
    return Records(platform.store).record(digest)
