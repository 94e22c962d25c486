"""What a drill breaks: the twin of the primary, never the primary."""

from __future__ import annotations

import random
import time
from typing import Any

import psycopg
from prefect import task
from prefect.cache_policies import NO_CACHE

from blocks import disposable_postgres, drill_processes
from domain.drill import Fault
from tasks import drill_backups
from tasks.drill_world import World

_DEADLOCKS = 10
"""So often in a row a statement may be the victim; each one takes the server a second to find."""


@task(name="inject fault", cache_policy=NO_CACHE)
def inject(world: World) -> None:
    """Break the twin, at a moment of the seed's choosing."""
    time.sleep(random.Random(world.wanted.seed).uniform(0, 1))
    world.fault_at = time.time()
    FAULTS[world.wanted.fault](world)
    world.tell("fault", fault=world.wanted.fault, at=world.fault_at)


def _kill(world: World) -> None:
    drill_processes.kill(region(world))


def _encrypt(world: World) -> None:
    world.tell("backup damaged", which=drill_backups.encrypt_newest(world.wanted, world.record))
    world.fault_at = time.time()  # users are met by what follows
    _kill(world)


def _freeze(world: World) -> None:
    drill_processes.freeze(region(world))


def _cut(world: World) -> None:
    """The keeper cannot reach the epochs, nor users the edge; the database does not know."""
    assert world.keeper is not None and world.primary is not None
    world.keeper.process.kill()
    platform, record = world.wanted.primary, world.record
    platform.edge.remove(record.application, record.side_environment)


def _revoke(world: World) -> None:
    assert world.server is not None
    with psycopg.connect(world.server.url, autocommit=True) as connection:
        connection.execute(f'ALTER ROLE "{disposable_postgres.USER}" NOLOGIN')
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE pid <> pg_backend_pid() AND backend_type IN ('client backend', 'walsender')"
        )


def _migrate_badly(world: World) -> None:
    assert world.server is not None
    with psycopg.connect(world.server.url_of(world.record.database), autocommit=True) as connection:
        tables = connection.execute(
            "SELECT quote_ident(schemaname) || '.' || quote_ident(tablename) FROM pg_tables "
            "WHERE schemaname NOT IN ('pg_catalog', 'information_schema', 'slipway')"
        ).fetchall()
        for (table,) in tables:
            drop(connection, str(table))


def drop(connection: psycopg.Connection, table: str) -> None:
    """One that loses a deadlock against what clients do is made again, as migrations are: a drill
    is not over because its fault was the victim.

    Raises:
        psycopg.errors.DeadlockDetected: it lost every time.
    """
    for left in reversed(range(_DEADLOCKS)):
        try:
            connection.execute(f"DROP TABLE IF EXISTS {table} CASCADE".encode())
            return
        except psycopg.errors.DeadlockDetected:
            if not left:
                raise


FAULTS = {
    Fault.MIGRATION: _migrate_badly,
    Fault.KILL: _kill,
    Fault.FREEZE: _freeze,
    Fault.CUT: _cut,
    Fault.CREDENTIALS: _revoke,
    Fault.CORRUPT: _encrypt,
}


def region(world: World) -> list[Any]:
    """Everything that runs on the twin's side: database, keeper, replicas."""
    assert world.server is not None and world.keeper is not None and world.primary is not None
    roots = [world.server.pid, world.keeper.pid, *world.primary.pids()]
    return [process for root in roots for process in drill_processes.family(root)]
