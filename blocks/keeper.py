"""The keeper of a side: renews the lease of its database for as long as the epoch is its own.

``python -m blocks.keeper`` reads one assignment (JSON) from stdin and keeps until stdin is closed,
which is what happens when whoever started it dies; the lease then runs out by itself. Every round
it also writes a heartbeat, records the sequences, and fences tables that have come since. When it
sees another side's epoch it closes its own, and waits until its side is opened under a newer one.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import IO, Any

import psycopg
from psycopg import sql

from blocks import fence
from blocks.backup_locations import BackupLocation, open_store
from blocks.epochs import Epochs
from blocks.fence import Fence
from domain.errors import Failed, SlipwayError
from domain.failover import may_renew

ROUNDS_PER_LEASE = 5
_COVER_SECONDS = 5.0
_HEARTBEATS_KEPT = "1 hour"


@dataclass(frozen=True)
class Assignment:
    """What a keeper is told.

    Attributes:
        database_url: of the side's database, as a role that owns its tables.
        epochs: where the epochs are.
        lease_seconds: of each renewal.
    """

    database_url: str
    epochs: BackupLocation
    credentials: dict[str, str]
    application: str
    environment: str
    side: str
    lease_seconds: float

    def to_json(self) -> str:
        return json.dumps({**self.__dict__, "epochs": self.epochs.model_dump()})

    @classmethod
    def from_json(cls, text: str) -> Assignment:
        raw = json.loads(text)
        return cls(**{**raw, "epochs": BackupLocation.model_validate(raw["epochs"])})


class Keeper:
    """Keeps one side."""

    def __init__(self, given: Assignment) -> None:
        store = open_store(given.epochs, given.credentials)
        self._epochs = Epochs(store, given.application, given.environment)
        self._fence = Fence(given.database_url)
        self._side = given.side
        self._lease = timedelta(seconds=given.lease_seconds)
        self._closed_for = 0
        self._beats = 0
        self._covered = 0.0

    def round(self, connection: psycopg.Connection) -> None:
        """One look at the epochs, and what follows from it.

        The order is the safety: the server's clock first, then the epochs, then the lease.
        """
        begun = fence.clock(connection)
        newest = self._epochs.newest()
        if newest is None:
            return
        if newest.side != self._side:
            self._close(connection, newest.number)
            return
        if not may_renew(self._side, newest, fence.epoch(connection)):
            return  # claimed and not opened yet
        fence.renew(connection, newest.number, begun, self._lease)
        self._closed_for = 0
        self._beats += 1
        connection.execute(
            "INSERT INTO slipway.heartbeat (sequence, source) VALUES (%s, %s)",
            [self._beats, f"keeper-{self._side}"],
        )
        record_sequences(connection)
        if time.monotonic() - self._covered > _COVER_SECONDS:
            fence.cover(connection)
            connection.execute(
                "DELETE FROM slipway.heartbeat WHERE source LIKE 'keeper-%%' AND at < "
                "clock_timestamp() - %s::interval",
                [_HEARTBEATS_KEPT],
            )
            self._covered = time.monotonic()

    def _close(self, connection: psycopg.Connection, number: int) -> None:
        """Once for each epoch that is another's: what reads may go on."""
        if self._closed_for != number:
            fence.close(connection, number)
            self._closed_for = number

    def keep(self, ended: Callable[[float], bool]) -> None:
        """Until ``ended``, which is given the seconds it may wait, says so.

        A round that fails grants nothing; the next one tries again.
        """
        pause = self._lease.total_seconds() / ROUNDS_PER_LEASE
        said = ""
        while True:
            try:
                with self._fence.connection() as connection:
                    while True:
                        self.round(connection)
                        said = ""
                        if ended(pause):
                            return
            except (SlipwayError, psycopg.Error, OSError) as error:
                if str(error) != said:
                    said = str(error)
                    print(f"{type(error).__name__}: {said}", file=sys.stderr, flush=True)
            if ended(pause):
                return


def record_sequences(connection: psycopg.Connection) -> None:
    """Write where every sequence of the application is into a table, which is replicated."""
    connection.execute(
        """
        INSERT INTO slipway.sequences (name, last_value, increment_by)
        SELECT format('%I.%I', schemaname, sequencename), last_value, increment_by
        FROM pg_sequences WHERE schemaname <> 'slipway' AND last_value IS NOT NULL
        ON CONFLICT (name) DO UPDATE SET last_value = excluded.last_value
        WHERE slipway.sequences.last_value IS DISTINCT FROM excluded.last_value
        """
    )


def advance_sequences(connection: psycopg.Connection, margin: int) -> list[str]:
    """Set every sequence past what was recorded and past what its column holds.

    Args:
        margin: how many values may have been drawn since the last record.

    Returns:
        The sequences that were moved, each with its new value.
    """
    moved = []
    rows = connection.execute(
        "SELECT s.name, s.last_value, s.increment_by, "
        "pg_sequence_last_value(to_regclass(s.name)) FROM slipway.sequences s "
        "WHERE to_regclass(s.name) IS NOT NULL ORDER BY 1"
    ).fetchall()
    owned = {
        str(name): sql.SQL("SELECT max({})::bigint FROM {}").format(
            sql.Identifier(str(column)), sql.Identifier(str(schema), str(table))
        )
        for name, schema, table, column in connection.execute(_OWNED).fetchall()
    }
    for name, recorded, step, here in rows:
        step = int(step)
        values = [int(recorded) + margin * step]
        if here is not None:
            values.append(int(here))
        if str(name) in owned:
            row = connection.execute(owned[str(name)]).fetchone()
            if row and row[0] is not None:
                values.append(int(row[0]) + step)
        wanted = max(values) if step > 0 else min(values)
        connection.execute("SELECT setval(to_regclass(%s), %s)", [name, wanted])
        moved.append(f"{name} to {wanted}")
    return moved


_OWNED = """
SELECT format('%I.%I', sn.nspname, s.relname), tn.nspname, t.relname, a.attname
FROM pg_class s JOIN pg_namespace sn ON sn.oid = s.relnamespace
JOIN pg_depend d ON d.objid = s.oid AND d.classid = 'pg_class'::regclass AND d.deptype IN ('a', 'i')
JOIN pg_class t ON t.oid = d.refobjid JOIN pg_namespace tn ON tn.oid = t.relnamespace
JOIN pg_attribute a ON a.attrelid = t.oid AND a.attnum = d.refobjsubid
WHERE s.relkind = 'S'
"""


def _ended(stdin: IO[str], seconds: float) -> bool:
    readable, _, _ = select.select([stdin], [], [], seconds)
    return bool(readable) and not stdin.readline()


# Starting one


class KeeperProcess:
    """A keeper as a process of its own, which ends when this one does.

    Raises:
        Failed: SLP204, it does not start.
    """

    def __init__(
        self, given: Assignment, log: Path, environ: Mapping[str, str] | None = None
    ) -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "blocks.keeper"],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                text=True,
                env={**os.environ, **(environ or {})},
                start_new_session=True,
                cwd=Path(__file__).resolve().parents[1],
            )
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(given.to_json() + "\n")
            self.process.stdin.flush()
        except BrokenPipeError as error:
            raise Failed("SLP204", f"the keeper of {given.side} ended at once",
                         help=f"read {log}") from error  # fmt: skip

    @property
    def pid(self) -> int:
        return self.process.pid

    def close(self) -> None:
        """End it; its lease runs out by itself."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        try:
            self.process.wait(2)
        except subprocess.TimeoutExpired:  # frozen, or waiting for a frozen server
            self.process.kill()
            self.process.wait()


def main() -> None:
    first: Any = sys.stdin.readline()
    Keeper(Assignment.from_json(first)).keep(lambda seconds: _ended(sys.stdin, seconds))


if __name__ == "__main__":
    main()
