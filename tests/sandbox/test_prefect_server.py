"""The server's transactions wait for each other instead of answering 503."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path

import pytest
from prefect.server.database.configurations import AioSqliteConfiguration
from sqlalchemy import text
from sqlalchemy.exc import OperationalError

from sandbox import prefect_server


async def _read_then_write_while_another_writes(database: Path) -> None:
    configuration = AioSqliteConfiguration(f"sqlite+aiosqlite:///{database}")
    engine = await configuration.engine()

    async def other_writes() -> None:
        def write() -> None:
            with sqlite3.connect(database, timeout=0.1) as other:
                other.execute("UPDATE counted SET n = n + 1")

        try:
            await asyncio.to_thread(write)
        except sqlite3.OperationalError:  # it is told to wait, as it should be
            return

    async with (
        await configuration.session(engine) as session,
        configuration.begin_transaction(session),
    ):
        n = (await session.execute(text("SELECT n FROM counted"))).scalar_one()
        await other_writes()
        await session.execute(text(f"UPDATE counted SET n = {n + 10}"))
    await engine.dispose()


@pytest.mark.parametrize("waits", [False, True])
def test_a_transaction_that_reads_first_is_not_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, waits: bool
) -> None:
    """The first half is Prefect as it is: when that passes, the module is not needed any more."""
    database = tmp_path / "prefect.db"
    with sqlite3.connect(database) as made:
        made.execute("PRAGMA journal_mode = WAL")
        made.execute("CREATE TABLE counted AS SELECT 0 AS n")
    monkeypatch.setattr(
        AioSqliteConfiguration, "begin_transaction", AioSqliteConfiguration.begin_transaction
    )
    if waits:
        prefect_server.wait_for_each_other()
        asyncio.run(_read_then_write_while_another_writes(database))
        with sqlite3.connect(database) as seen:
            assert seen.execute("SELECT n FROM counted").fetchone() == (10,)
    else:
        with pytest.raises(OperationalError, match="database is locked"):
            asyncio.run(_read_then_write_while_another_writes(database))
