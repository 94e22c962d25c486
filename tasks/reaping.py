"""Removing what a drill made, also when the drill is dead; and looking whether it is gone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE

from blocks import disposable_postgres, drill_processes, replication
from blocks.epochs import Epochs
from blocks.platform import Platform
from domain.drill import DrillRecord
from domain.errors import SlipwayError
from tasks.drill_backups import forget_line, left_of_line
from tasks.drill_world import key_of


@task(name="reap", task_run_name="reap {record.id}", cache_policy=NO_CACHE)
def reap(primary: Platform, standby: Platform, record: DrillRecord) -> list[str]:
    """Remove everything of one drill, and close its record when nothing is left.

    Every part is tried, whatever happens to another; run again, it goes on with the rest.

    Returns:
        What is left, a clause each; empty when all is gone.
    """
    for what, remove in _removals(primary, standby, record):
        try:
            remove()
        except SlipwayError as error:
            get_run_logger().warning("could not remove %s: %s", what, error.cause)
    left = leftovers(primary, standby, record)
    if not left:
        closed = record.model_copy(update={"closed_at": datetime.now(UTC)})
        primary.store.replace(key_of(record), closed.model_dump_json().encode())
    return left


def _removals(
    primary: Platform, standby: Platform, record: DrillRecord
) -> Iterator[tuple[str, Callable[[], object]]]:
    application, environment = record.application, record.side_environment
    for platform in (primary, standby):
        yield (
            f"routes at {platform.side}",
            lambda p=platform: p.edge.remove(  # type: ignore[misc]
                application, environment
            ),
        )
        yield f"replicas at {platform.side}", lambda p=platform: _stop(p, record)  # type: ignore[misc]
        yield (
            f"flags at {platform.side}",
            lambda p=platform: p.flags.remove(  # type: ignore[misc]
                application, environment
            ),
        )
        yield (
            f"cache at {platform.side}",
            lambda p=platform: p.redis.release(  # type: ignore[misc]
                f"{application}/{environment}-{p.side}"
            ),
        )
    yield (
        "processes",
        lambda: drill_processes.kill(drill_processes.of_drill(record.id, record.folder)),
    )
    yield "the twin's server", lambda: disposable_postgres.remove_all(Path(record.folder))
    yield "the standby's database", lambda: _drop(standby, record)
    yield "the name", lambda: standby.name_service().remove(record.host)
    yield "epochs", lambda: Epochs(standby.epoch_store(), application, environment).forget()
    yield "backups", lambda: forget_line(standby, record)


def _stop(platform: Platform, record: DrillRecord) -> None:
    for workload in platform.cluster.workloads(record.application, record.side_environment):
        drill_processes.thaw(
            process
            for replica in workload.replicas
            if replica.pid
            for process in drill_processes.family(replica.pid)
        )
        platform.cluster.stop(workload.name)


def _drop(platform: Platform, record: DrillRecord) -> None:
    if record.database in platform.database.databases():
        replication.forget_subscriptions(platform.database.admin_url(record.database))
        platform.database.drop(record.database)


def leftovers(primary: Platform, standby: Platform, record: DrillRecord) -> list[str]:
    """What there still is of a drill; what could not be looked at counts as being there."""
    left: list[str] = []
    for what, look in _looks(primary, standby, record):
        try:
            found = look()
        except SlipwayError as error:
            left.append(f"{what}: could not look ({error.cause})")
            continue
        if found:
            left.append(f"{what}: {', '.join(str(f) for f in found)}")
    return left


def _looks(
    primary: Platform, standby: Platform, record: DrillRecord
) -> Iterator[tuple[str, Callable[[], list[object]]]]:
    application, environment = record.application, record.side_environment
    for platform in (primary, standby):
        yield (
            f"replicas at {platform.side}",
            lambda p=platform: [  # type: ignore[misc]
                w.name for w in p.cluster.workloads(application, environment)
            ],
        )
        yield (
            f"routes at {platform.side}",
            lambda p=platform: (  # type: ignore[misc]
                [environment] if p.edge.read(application, environment) else []
            ),
        )
    yield "processes", lambda: [p.pid for p in drill_processes.of_drill(record.id, record.folder)]
    yield "the twin's server", lambda: [record.folder] if Path(record.folder).exists() else []
    yield (
        "the standby's database",
        lambda: [name for name in standby.database.databases() if name == record.database],
    )
    yield "the name", lambda: [n for n in standby.name_service().names() if n == record.host]
    yield "epochs", lambda: list(Epochs(standby.epoch_store(), application, environment).every())
    yield "backups", lambda: left_of_line(standby, record)


@task(name="find dead drills", cache_policy=NO_CACHE)
def open_records(store_of: Platform, *, expired: bool) -> list[DrillRecord]:
    """Drills that were never closed; with ``expired`` only those whose time is over."""
    now, found = datetime.now(UTC), []
    for key in store_of.store.list("drills"):
        content = store_of.store.read(key)
        if content is None:
            continue
        record = DrillRecord.model_validate_json(content)
        if record.closed_at is None and (record.expires_at < now or not expired):
            found.append(record)
    return found
