"""The ``prefect`` command, with a server whose SQLite transactions wait for each other.

Prefect opens them as ``DEFERRED``. One that reads first and then writes, while another has written
in between, fails at once with "database is locked", whatever the busy timeout: SQLite cannot give
it a newer snapshot. The API answers 503 and the client tries again after two seconds, once or
twice in a release. ``IMMEDIATE``, which Prefect has for a few of its own, waits instead.

    python -m sandbox.prefect_server server start --port 4200
"""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from typing import Any

from prefect.cli import app
from prefect.server.database.configurations import AioSqliteConfiguration

_begin = AioSqliteConfiguration.begin_transaction


def _begin_and_wait(
    self: AioSqliteConfiguration, session: Any, with_for_update: bool = False
) -> AbstractAsyncContextManager[Any]:
    return _begin(self, session, with_for_update=True)


def wait_for_each_other() -> None:
    """Make every transaction of Prefect's SQLite database ``IMMEDIATE``, in this process."""
    AioSqliteConfiguration.begin_transaction = _begin_and_wait  # type: ignore[assignment,method-assign]


if __name__ == "__main__":
    wait_for_each_other()
    app()
