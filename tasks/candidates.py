"""A running candidate with its own database, for tests and scans, before any user meets it."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from blocks import commands
from blocks.platform import Platform
from domain.errors import Failed
from domain.release import BuildRecord, routing_for, targets, workload_name, workload_spec
from domain.rollout import Target
from domain.workload import Phase, Workload
from tasks.databases import prepare_database
from tasks.environs import peer_environ
from tasks.flags import preview_flags

PREVIEW = "preview-"
LIFETIME = timedelta(minutes=30)
"""After a killed run, the cluster stops the candidate by itself when this has passed."""


@dataclass(frozen=True)
class Candidate:
    """Base URLs of the public services, straight to a replica, by service."""

    urls: Mapping[str, str]

    @property
    def url(self) -> str:
        return next(iter(self.urls.values()), "")


@contextmanager
def backing(platform: Platform, record: BuildRecord) -> Iterator[dict[str, str]]:
    """DATABASE_URL and REDIS_URL of disposable databases, gone afterwards."""
    application = record.application
    with ExitStack() as stack:
        environ: dict[str, str] = {}
        if application.database:
            database = platform.database.disposable(application.name)
            environ["DATABASE_URL"] = stack.enter_context(database)
        if application.cache:
            environ["REDIS_URL"] = stack.enter_context(platform.redis.disposable())
        yield environ


@contextmanager
def candidate(platform: Platform, record: BuildRecord) -> Iterator[Candidate]:
    """Run one replica of every service on migrated, seeded, disposable databases.

    Raises:
        Failed: SLP050 or SLP051 with the log of the replica that did not come up; SLP052.
    """
    application, environment = record.application, f"{PREVIEW}{uuid.uuid4().hex[:8]}"
    names = {s: workload_name(application.name, environment, s, 1) for s in application.services}
    with backing(platform, record) as environ, ExitStack() as stack:
        prepare_database(platform, record, environ)
        if application.flags:
            stack.callback(platform.flags.remove, application.name, environment)
            forget_killed(platform, application.name)
            environ |= preview_flags(platform, record, environment)
        stack.callback(platform.edge.remove, application.name, environment)
        for target in targets(record, environment, names):
            spec = workload_spec(
                record,
                target,
                environment,
                1,
                {
                    **environ,
                    **peer_environ(platform, record, environment, target.service, names),
                    **application.services[target.service].environ,
                },
            ).model_copy(
                # Nobody is connected to it, so there is nothing to drain.
                update={"expires_at": datetime.now(UTC) + LIFETIME, "drain_seconds": 0}
            )
            stack.callback(platform.cluster.stop, target.workload)
            platform.cluster.apply(spec)
            wait_until_ready(platform, target, spec.start_seconds)
            _list_privately(platform, record, environment, names)
        yield Candidate(_addresses(platform, record, environment))


def forget_killed(platform: Platform, application: str) -> None:
    """Flags of previews whose run was killed: the cluster has stopped their replicas by now."""
    stale = datetime.now(UTC) - LIFETIME - timedelta(minutes=5)
    platform.flags.remove_stale(application, PREVIEW, stale)


def wait_until_ready(platform: Platform, target: Target, seconds: float) -> Workload:
    """Poll until all replicas are ready; an exit ends the waiting at once."""
    deadline = time.monotonic() + seconds + 5
    while True:
        workload = platform.cluster.get(target.workload)
        if workload is not None and workload.is_ready:
            return workload
        if workload is not None and (failure := exit_of(workload)):
            raise Failed(
                "SLP050",
                f"{target.workload} exited: {failure}",
                help="its last lines follow; start it by hand with the same command to see more",
                detail=platform.cluster.log_tail(target.workload),
            )
        if time.monotonic() > deadline:
            reason = waiting_for(workload) if workload else "the cluster does not know it"
            raise Failed(
                "SLP051",
                f"{target.workload} was not ready within {seconds:g} s: {reason}",
                help="correct `ready` in application.yaml, or raise `start` if it needs longer; "
                "a worker that listens to nobody has `port: null`",
                detail=platform.cluster.log_tail(target.workload),
            )
        commands.raise_if_given_up()
        time.sleep(0.1)


def exit_of(workload: Workload) -> str | None:
    """Why the workload is not coming up: a replica that exited, and again after its restart.

    One exit alone may be a port that somebody took between choice and bind; the cluster heals
    that with another port.
    """
    for replica in workload.replicas:
        given_up = replica.phase is Phase.EXITED
        again = replica.restarts >= 1 and replica.phase in (Phase.BACKOFF, Phase.STARTING)
        if replica.exit_code is not None and (given_up or again):
            return replica.reason or f"code {replica.exit_code}"
    return None


def waiting_for(workload: Workload) -> str:
    return next((replica.reason for replica in workload.replicas if replica.reason), "")


def _list_privately(
    platform: Platform, record: BuildRecord, environment: str, names: Mapping[str, str]
) -> None:
    """Let the services of this candidate reach each other."""
    application = record.application
    parts = [
        (target, application.services[target.service], platform.cluster.get(target.workload))
        for target in targets(record, environment, names)
    ]
    routing = routing_for(
        f"{environment}.{application.name}.localhost", application.name, environment, parts, {}
    )
    if len(application.services) > 1 and routing.routes:
        platform.edge.write(routing)


def _addresses(platform: Platform, record: BuildRecord, environment: str) -> dict[str, str]:
    found = {}
    for workload in platform.cluster.workloads(record.application.name, environment):
        if not record.application.services[workload.service].is_public:
            continue
        if not workload.addresses:
            raise Failed(
                "SLP051",
                f"{workload.name} was ready and is not any more: {waiting_for(workload)}",
                help="its last lines follow",
                detail=platform.cluster.log_tail(workload.name),
            )
        found[workload.service] = f"http://{workload.addresses[0]}"
    order = list(record.application.services)
    return dict(sorted(found.items(), key=lambda item: order.index(item[0])))
