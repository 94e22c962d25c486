"""What a drill is asked for, and what it has made so far."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from prefect import get_run_logger

from blocks import drill_processes
from blocks.disposable_postgres import DisposableServer
from blocks.drill_clients import DrillClients
from blocks.epochs import Epochs
from blocks.keeper import KeeperProcess
from blocks.names import Names
from blocks.platform import Platform
from blocks.replication import Replication
from domain.application import Recovery
from domain.drill import DrillRecord, Fault, Scenario
from domain.evidence_chain import Event, chained
from domain.failover import Tier
from domain.release import BuildRecord
from tasks.drill_watch import Watch
from tasks.restoring import Chosen
from tasks.sides import Side


@dataclass
class Wanted:
    """What was asked for, resolved: nothing has been made yet.

    Attributes:
        primary: platform of the protected environment; ``standby``: of the other cloud.
    """

    record: BuildRecord
    policy: Recovery
    tier: Tier
    fault: Fault
    primary: Platform
    standby: Platform
    chosen: Chosen
    seed: int
    run: str
    platforms: tuple[str, str]
    actor: str
    scenario: Scenario | None = None

    @property
    def names(self) -> Names:
        return self.standby.name_service()


@dataclass
class World:
    """What a drill has made so far; ``record`` says what there may be of it."""

    wanted: Wanted
    record: DrillRecord
    logs: Path
    stack: ExitStack
    events: list[Event] = field(default_factory=list)
    server: DisposableServer | None = None
    primary: Side | None = None
    standby: Side | None = None
    replication: Replication | None = None
    keeper: KeeperProcess | None = None
    clients: DrillClients | None = None
    watch: Watch | None = None
    fault_at: float = 0.0
    production: dict[str, Any] = field(default_factory=dict)

    def tell(self, what: str, **data: Any) -> None:
        """One line of the evidence."""
        self.events.append(chained(self.events, datetime.now(UTC), what, data))
        said = ", ".join(f"{key} {value}" for key, value in data.items())
        get_run_logger().info("%s%s", what, f": {said}" if said else "")

    @property
    def marks(self) -> dict[str, str]:
        return {drill_processes.MARKER: self.record.id}

    @property
    def epochs(self) -> Epochs:
        store = self.wanted.standby.epoch_store()
        return Epochs(store, self.record.application, self.record.side_environment)


def key_of(record: DrillRecord) -> str:
    return f"drills/{record.application}/{record.id}.json"


@contextmanager
def world(wanted: Wanted, record: DrillRecord) -> Iterator[World]:
    """The drill's world; whatever ends it, its processes end with it.

    What they leave in servers and services is ``reap``'s to remove, which needs no world.
    """
    logs = Path(wanted.primary.store_root).parent / "logs" / f"drill-{record.id}"
    with ExitStack() as stack:
        yield World(wanted, record, logs, stack)
