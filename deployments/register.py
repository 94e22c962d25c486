"""Put prefect.yaml, the platform block and the automations on the sandbox's Prefect server.

Run as ``python -m deployments.register --home DIR``, because it imports Prefect and all flows.
Prints one JSON line: the ids of the deployments, or the error. Idempotent: everything is found
by name and replaced, and what is ours and no longer declared is removed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shlex
import sys
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

from deployments.manifest import FILE_NAME, Deployment, Manifest, read
from domain.errors import Failed, SlipwayError
from sandbox import control
from sandbox.home import AWS, GCP, Home
from sandbox.keys import OFFLINE, ensure

if TYPE_CHECKING:
    from prefect.client.orchestration import PrefectClient
    from prefect.flows import Flow

    from blocks.backup_locations import BackupLocation
    from blocks.platform import Platform

PLATFORM = "sandbox"
STANDBY_PLATFORM = "sandbox-gcp"
ZONE = "slipway.test"
AUTOMATIONS_PREFIX = "slipway: "
RECOVERY = f"{AUTOMATIONS_PREFIX}recover crashed releases"
STALENESS = f"{AUTOMATIONS_PREFIX}backups went stale"

# The automation's actor: it acts when nobody looks.
_ROBOT = "slipway automation"
_RECOVERED = ("release", "rollback", "retry")
_APPLICATION = (
    "{{ flow_run.parameters.application }}"
    "{% if not flow_run.parameters.application %}"
    "{% for tag in flow_run.tags if tag.startswith('app:') %}{{ tag[4:] }}{% endfor %}"
    "{% endif %}"
)


async def register(
    manifest: Manifest,
    addresses: Mapping[str, str],
    root: Path,
    keys: Mapping[str, tuple[str, str]],
) -> list[str]:
    """Bring the server to what the manifest says; returns the ids of the deployments.

    Raises:
        Failed: SLP078, a flow does not load or lacks a parameter that the manifest sets.
    """
    from prefect.client.orchestration import get_client

    flows: list[tuple[Deployment, Flow[..., Any]]] = [
        (entry, load(entry)) for entry in manifest.deployments
    ]
    for name, block in platforms(addresses, keys).items():
        await block.save(name, overwrite=True)
    await offer_blocks()
    async with get_client() as client:
        for pool in sorted({entry.work_pool.name for entry in manifest.deployments}):
            await ensure_pool(client, pool)
        known = {
            flow.name: await deploy(client, flow, entry, manifest, root) for entry, flow in flows
        }
        await prune(client, set(known.values()))
        if "recover" in known:
            await ensure_automation(client, recovery_automation(known["recover"]))
        await ensure_automation(client, staleness_automation())
    return [str(identity) for identity in known.values()]


def load(entry: Deployment) -> Flow[..., Any]:
    """The flow itself, with its imports: a broken one must fail here, not in its first run."""
    from prefect.flows import load_flow_from_entrypoint

    try:
        flow: Flow[..., Any] = load_flow_from_entrypoint(
            entry.entrypoint, use_placeholder_flow=False
        )
    except Exception as error:
        raise _refused(entry, f"it does not load: {type(error).__name__}: {error}") from error
    unknown = set(entry.parameters) - set(flow.parameters.properties)
    if unknown:
        raise _refused(entry, f"the flow has no parameter {', '.join(sorted(unknown))}")
    return flow


def platforms(
    addresses: Mapping[str, str], keys: Mapping[str, tuple[str, str]]
) -> dict[str, Platform]:
    """The blocks that flows load by name, one a cloud; the only place where they learn an address.

    Args:
        keys: public and private age keys by name; the offline one's private part stays here.
    """
    from prefect.blocks.fields import SecretDict
    from pydantic import SecretStr

    from blocks.backup_locations import BackupLocation
    from blocks.cloud_sql import CloudSqlInstance
    from blocks.names import NameService
    from blocks.platform import Platform
    from sandbox.google_apis import INSTANCE, PROJECT

    aws, gcp = addresses["database_aws_url"], addresses["database_gcp_url"]
    found = {}
    instance = CloudSqlInstance(
        project=PROJECT, instance=INSTANCE, endpoint=addresses["google_apis"]
    )
    for side, block, here, there in (
        (AWS, PLATFORM, aws, gcp),
        (GCP, STANDBY_PLATFORM, gcp, aws),
    ):
        edge = {
            key: addresses[key + side.suffix.replace("-", "_")]
            for key in ("bundles", "cluster_socket", "edge_dynamic", "edge_web", "edge_internal",
                        "edge_api", "edge_metrics")
        }  # fmt: skip
        found[block] = Platform(
            side=side.name,
            public_address=side.address,
            store_root=addresses["store"],
            bundles_root=edge["bundles"],
            flags_root=addresses["flags"],
            cluster_socket=edge["cluster_socket"],
            edge_dynamic=edge["edge_dynamic"],
            edge_web=edge["edge_web"],
            edge_internal=edge["edge_internal"],
            edge_api=edge["edge_api"].removesuffix("/api"),
            edge_metrics=edge["edge_metrics"],
            database_url=SecretStr(here),
            redis_url=SecretStr(addresses["redis_url"]),
            ui_url=addresses["prefect_ui"],
            restore_url=SecretStr(there),
            backup_locations=backup_locations(addresses),
            object_stores=object_stores(addresses),
            backup_recipients={name: public for name, (public, _) in keys.items()},
            backup_keys=SecretDict(
                {name: key for name, (_, key) in keys.items() if name not in OFFLINE}
            ),
            names=NameService(zone=ZONE, endpoint=addresses["s3_endpoint"],
                              resolver=addresses["nameserver"], create=True),
            cloud_sql=instance if side is GCP else None,
            epochs=BackupLocation(name="epochs", kind="file", bucket=addresses["epochs"]),
        )  # fmt: skip
    return found


def backup_locations(addresses: Mapping[str, str]) -> list[BackupLocation]:
    """Where the sandbox keeps recovery points: two regions of "aws", and "gcp"."""
    from blocks.backup_locations import BackupLocation

    def s3(name: str, bucket: str, region: str) -> BackupLocation:
        return BackupLocation(name=name, kind="s3", bucket=bucket, region=region,
                              endpoint=addresses["s3_endpoint"], create=True)  # fmt: skip

    return [
        s3("aws", "slipway-backups", "eu-west-1"),
        s3("aws-second-region", "slipway-backups-2", "us-west-2"),
        BackupLocation(name="gcp", kind="gcs", bucket="slipway-backups-gcp",
                       endpoint=addresses["gcs_endpoint"], create=True),
    ]  # fmt: skip


def object_stores(addresses: Mapping[str, str]) -> list[BackupLocation]:
    """What applications of the sandbox may keep their objects in."""
    from blocks.backup_locations import BackupLocation

    return [
        BackupLocation(name=name, kind="s3", bucket=f"slipway-{name}", region="eu-west-1",
                       endpoint=addresses["s3_endpoint"], create=True)
        for name in ("uploads", "uploads-restored")
    ]  # fmt: skip


async def offer_blocks() -> None:
    """The kinds of block that a person may save in the UI, which knows only registered ones."""
    from blocks.observing import CloudWatchAccount, PrometheusServer

    await PrometheusServer.register_type_and_schema()
    await CloudWatchAccount.register_type_and_schema()


async def ensure_pool(client: PrefectClient, name: str) -> None:
    """The worker makes its pool when it starts; this covers a registration before that."""
    from prefect.client.schemas.actions import WorkPoolCreate
    from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound
    from prefect.workers.process import ProcessWorker

    try:
        await client.read_work_pool(name)
    except ObjectNotFound:
        template = ProcessWorker.get_default_base_job_template()
        pool = WorkPoolCreate(name=name, type="process", base_job_template=template)
        try:
            await client.create_work_pool(pool)
        except ObjectAlreadyExists:
            return


async def deploy(
    client: PrefectClient, flow: Flow[..., Any], entry: Deployment, manifest: Manifest, root: Path
) -> UUID:
    from prefect.client.schemas.actions import DeploymentScheduleCreate
    from prefect.client.schemas.objects import ConcurrencyOptions
    from prefect.client.schemas.schedules import CronSchedule

    limit = entry.concurrency_limit
    variables = dict(entry.work_pool.job_variables)
    variables["env"] = {**variables.get("env", {}), "SLIPWAY_ROOT": str(root)}
    # Without a command the worker starts one more interpreter a run, only to find the folder.
    variables.setdefault("command", shlex.join([sys.executable, "-m", "prefect.engine"]))
    return await client.create_deployment(
        flow_id=await client.create_flow(flow),
        name=entry.name,
        description=entry.description,
        entrypoint=entry.entrypoint,
        tags=list(entry.tags),
        parameters=dict(entry.parameters),
        parameter_openapi_schema=flow.parameters.model_dump(),
        enforce_parameter_schema=True,
        work_pool_name=entry.work_pool.name,
        job_variables=variables,
        pull_steps=[{step: dict(given) for step, given in p.items()} for p in manifest.pull],
        concurrency_limit=limit.limit if limit else None,
        concurrency_options=(
            ConcurrencyOptions(collision_strategy=limit.collision_strategy) if limit else None
        ),
        schedules=[
            DeploymentScheduleCreate(
                schedule=CronSchedule(cron=s.cron, timezone=s.timezone),
                active=s.active,
                slug=s.slug,
                parameters=dict(s.parameters),
            )
            for s in entry.schedules
        ],
    )


async def prune(client: PrefectClient, wanted: set[UUID]) -> None:
    """Remove deployments of ours that prefect.yaml no longer has."""
    from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterName

    ours = DeploymentFilter(name=DeploymentFilterName(any_=["slipway"]))
    for found in await client.read_deployments(deployment_filter=ours, limit=200):
        if found.id not in wanted:
            await client.delete_deployment(found.id)


async def ensure_automation(client: PrefectClient, raw: Mapping[str, Any]) -> None:
    """One automation of that name: `create` alone would make one more every time."""
    from prefect.events.schemas.automations import AutomationCore

    wanted = AutomationCore.model_validate(raw)
    first, *others = [*await client.read_automations_by_name(wanted.name), None]
    for surplus in others:
        if surplus is not None:
            await client.delete_automation(surplus.id)
    if first is None:
        await client.create_automation(wanted)
    else:
        await client.update_automation(first.id, wanted)


def staleness_automation() -> dict[str, Any]:
    """The server itself misses a proof that did not come, also when no worker runs any more."""
    return {
        "name": STALENESS,
        "description": "A location whose copies were proved before has had none proved for 26 "
        "hours. See `slipway backups APP -e E` and the runs of `nightly`.",
        "enabled": True,
        "trigger": {
            "type": "event",
            "posture": "Proactive",
            "after": ["slipway.copy.proved"],
            "expect": ["slipway.copy.proved"],
            "match": {"prefect.resource.id": "slipway.copy.*"},
            "for_each": ["prefect.resource.id"],
            "threshold": 1,
            "within": timedelta(hours=26),
        },
        "actions": [{"type": "do-nothing"}],
    }


def recovery_automation(recover: UUID) -> dict[str, Any]:
    """When the process of a release, rollback or retry died, end what it left half done.

    `recover` itself is not watched: what crashes must not start itself again.
    """
    return {
        "name": RECOVERY,
        "description": "A release or rollback whose process died is ended: it is finished when "
        "all of its steps had passed, and taken back otherwise.",
        "enabled": True,
        "trigger": {
            "type": "event",
            "posture": "Reactive",
            "expect": ["prefect.flow-run.Crashed"],
            "match": {"prefect.resource.id": "prefect.flow-run.*"},
            "match_related": {
                "prefect.resource.role": "tag",
                "prefect.resource.id": [f"prefect.tag.kind:{kind}" for kind in _RECOVERED],
            },
            "for_each": ["prefect.resource.id"],
            "threshold": 1,
            "within": timedelta(0),
        },
        "actions": [
            {
                "type": "run-deployment",
                "source": "selected",
                "deployment_id": str(recover),
                "parameters": {
                    "environment": _jinja("{{ flow_run.parameters.environment }}"),
                    "application": _jinja(_APPLICATION),
                    "platform": _jinja("{{ flow_run.parameters.platform or 'sandbox' }}"),
                    "actor": _ROBOT,
                },
            }
        ],
    }


def _jinja(template: str) -> dict[str, str]:
    return {"__prefect_kind": "jinja", "template": template}


def _refused(entry: Deployment, why: str) -> Failed:
    return Failed(
        "SLP078",
        f"{entry.entrypoint} cannot be deployed: {why}",
        help="correct the flow or prefect.yaml, then run `slipway up` again",
        where=entry.entrypoint.partition(":")[0],
    )


def _act(home: Home) -> list[str]:
    status = control.require(home)
    # Read by Prefect when it is imported, which happens below and nowhere before.
    os.environ |= {
        "PREFECT_API_URL": status.addresses["prefect_api"],
        "PREFECT_HOME": str(home.prefect),
        "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "false",
        "PREFECT_LOGGING_LEVEL": "ERROR",
    }
    os.chdir(home.project)
    manifest = read(home.project / FILE_NAME)
    return asyncio.run(register(manifest, status.addresses, home.project, ensure(home)))


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--home", type=Path, required=True)
    home = Home.at(parser.parse_args().home)
    try:
        print(json.dumps({"deployments": _act(home)}))
        return 0
    except SlipwayError as error:
        print(json.dumps({"error": error.to_dict()}))
        return error.exit_code


if __name__ == "__main__":
    raise SystemExit(main())
