"""What a service is told through its environment."""

from __future__ import annotations

from collections.abc import Mapping

from prefect.blocks.system import Secret

from blocks.platform import Platform
from blocks.postgres import database_name
from domain.errors import UsageError
from domain.release import BuildRecord, url_variable


def service_environ(
    platform: Platform,
    record: BuildRecord,
    environment: str,
    service: str,
    workloads: Mapping[str, str],
) -> dict[str, str]:
    """Addresses of what it uses, then its own variables, the environment's, and secrets.

    Services reach each other inside one version: a candidate never calls the old version's.
    """
    application = record.application
    backing = backing_environ(platform, record, environment)
    peers = peer_environ(platform, record, environment, service, workloads)
    declared = application.environments.get(environment)
    secrets = dict(declared.secrets) if declared else {}
    return {
        **backing,
        **peers,
        **application.services[service].environ,
        **(declared.environ if declared else {}),
        **{variable: _secret(name) for variable, name in secrets.items()},
    }


def peer_environ(
    platform: Platform,
    record: BuildRecord,
    environment: str,
    service: str,
    workloads: Mapping[str, str],
) -> dict[str, str]:
    """Where a service finds the others of its own version."""
    application = record.application
    return {
        url_variable(name): platform.edge.private_url(application.name, environment, workload)
        for name, workload in workloads.items()
        if name != service and application.services[name].port is not None
    }


def backing_environ(platform: Platform, record: BuildRecord, environment: str) -> dict[str, str]:
    """DATABASE_URL and REDIS_URL of an environment, made when they are not there; FLAGD_*."""
    application = record.application
    found: dict[str, str] = {}
    if application.database:
        database = database_name(application.name, environment)
        found["DATABASE_URL"] = platform.database.ensure(database)
    if application.cache:
        found["REDIS_URL"] = platform.redis.ensure(f"{application.name}/{environment}")
    if application.flags:
        found |= platform.flags.environ(application.name, environment)
    return found


def _secret(block: str) -> str:
    try:
        value: object = Secret.load(block).get()  # type: ignore[union-attr]
    except ValueError as error:
        raise UsageError(
            "SLP009",
            f"application.yaml names the Prefect secret block {block!r}, which does not exist",
            help=f"make a Secret block named {block} in the Prefect UI, or correct the name",
        ) from error
    return str(value)
