"""The keeper of one side of the sandbox: ``python -m sandbox.keeper``.

Keeps every environment that the store names as protected; in production one ``blocks.keeper``
runs in each cloud for each of them.
"""

from __future__ import annotations

import argparse
import threading
import time
from pathlib import Path

from blocks.backup_locations import BackupLocation
from blocks.file_store import FileStore
from blocks.keeper import Assignment, Keeper
from blocks.postgres import PostgresServer
from domain.protection import Protection
from sandbox import postgres
from sandbox.home import Home, Memory

_LOOK_SECONDS = 0.5


class Keepers:
    """A thread for each protected environment; one that is no more protected ends."""

    def __init__(self, side: str, server: PostgresServer, store: FileStore, epochs: Path) -> None:
        self._side, self._server, self._store = side, server, store
        self._epochs = BackupLocation(name="epochs", kind="file", bucket=str(epochs))
        self._over: dict[bytes, threading.Event] = {}

    def look(self) -> None:
        """Begin and end keeping, as the store says now."""
        found = {
            content for key in self._store.list("protected") if (content := self._store.read(key))
        }
        for gone in self._over.keys() - found:
            self._over.pop(gone).set()
        for new in found - self._over.keys():
            over = self._over[new] = threading.Event()
            threading.Thread(target=self._keep, args=(new, over), daemon=True).start()

    def _keep(self, content: bytes, over: threading.Event) -> None:
        protection = Protection.model_validate_json(content)
        given = Assignment(
            database_url=self._server.admin_url(protection.databases[self._side]),
            epochs=self._epochs,
            credentials={},
            application=protection.application,
            environment=protection.environment,
            side=self._side,
            lease_seconds=protection.lease_seconds,
        )
        Keeper(given).keep(over.wait)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m sandbox.keeper", description=__doc__)
    parser.add_argument("--side", required=True)
    parser.add_argument("--home", required=True)
    parser.add_argument("--port", type=int, required=True, help="of the side's PostgreSQL")
    wanted = parser.parse_args(argv)
    home = Home.at(wanted.home)
    server = PostgresServer(postgres.url(wanted.port, Memory.load(home).secrets["database"]))
    keepers = Keepers(wanted.side, server, FileStore(home.store), home.epochs)
    while True:
        keepers.look()
        time.sleep(_LOOK_SECONDS)


if __name__ == "__main__":
    main()
