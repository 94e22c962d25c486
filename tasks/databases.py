"""Bringing a database's schema up to date."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from pathlib import Path

from prefect import task
from prefect.cache_policies import NO_CACHE

from blocks import commands
from blocks.commands import Ended
from blocks.platform import Platform
from domain.errors import Failed
from domain.release import BuildRecord
from tasks.environs import backing_environ


@task(name="migrate", task_run_name="migrate {environment}", cache_policy=NO_CACHE)
def migrate_database(platform: Platform, record: BuildRecord, environment: str) -> None:
    """Migrate and seed the database of an environment. Raises Failed SLP052."""
    prepare_database(platform, record, backing_environ(platform, record, environment))


def prepare_database(platform: Platform, record: BuildRecord, environ: Mapping[str, str]) -> None:
    """Run the application's migrate and seed commands from the bundle that is shipped.

    Raises:
        Failed: SLP052 with the last lines of the command that failed.
    """
    database = record.application.database
    if database is None:
        return
    for what, command in (("migration", database.migrate), ("seed", database.seed)):
        if command is not None:
            _run(platform, record, environ, what, command)


@task(name="contract", task_run_name="contract {environment}", cache_policy=NO_CACHE)
def contract_database(platform: Platform, record: BuildRecord, environment: str) -> None:
    """Run the contraction of the database of an environment. Raises Failed SLP052."""
    database = record.application.database
    assert database is not None and database.contract is not None
    environ = backing_environ(platform, record, environment)
    _run(platform, record, environ, "contraction", database.contract)


def run_probe(platform: Platform, record: BuildRecord, command: str, url: str) -> Ended:
    """Run the application's own check of a restored copy in the bundle that saved it."""
    application = record.application
    service = application.backups.service or application.first_service
    environ = {**application.services[service].environ, "DATABASE_URL": url}
    seconds = application.database.timeout.total_seconds() if application.database else 300.0
    return _in_bundle(platform, record, service, "probe", command, environ, seconds)[0]


def _run(
    platform: Platform, record: BuildRecord, environ: Mapping[str, str], what: str, command: str
) -> None:
    database = record.application.database
    assert database is not None
    service = database.service or record.application.first_service
    seconds = database.timeout.total_seconds()
    ended, log = _in_bundle(platform, record, service, what, command, environ, seconds)
    if ended.code != 0:
        how = "did not end in time" if ended.code is None else f"ended with code {ended.code}"
        raise Failed(
            "SLP052",
            f"the {what} `{command}` of {record.application.name} {record.version} {how}",
            help="read its last lines; make it rerunnable, the next release runs it again",
            where=str(log),
            detail=ended.tail,
        )


def _in_bundle(
    platform: Platform,
    record: BuildRecord,
    service: str,
    what: str,
    command: str,
    environ: Mapping[str, str],
    seconds: float,
) -> tuple[Ended, Path]:
    """Run a command of the application as its service would be run; with the log it wrote."""
    bundle = platform.bundles.materialize(record.artifact.services[service].digest)
    venv = bundle / "venv"
    log = Path(platform.store_root).parent / "logs" / f"{what}-{uuid.uuid4().hex[:12]}.log"
    ended = commands.run(
        command,
        cwd=bundle / "app",
        venv=venv if venv.exists() else None,
        environ=environ,
        seconds=seconds,
        log=log,
    )
    return ended, log
