from __future__ import annotations

from typing import LiteralString
from urllib.parse import quote

import psycopg
import pytest
from alembic import command
from alembic.config import Config
from conftest import ROOT

from diet_game.seed import seed


def test_migrations_go_up_down_and_up_again(
    database: str, sql: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    tables: LiteralString = "SELECT tablename FROM pg_tables WHERE schemaname = 'scratch'"
    sql.execute("CREATE SCHEMA scratch")
    try:
        options = quote("-c search_path=scratch")
        url = f"{database}{'&' if '?' in database else '?'}options={options}"
        monkeypatch.setenv("DATABASE_URL", url)
        config = Config(ROOT / "alembic.ini")
        command.upgrade(config, "head")
        first = set(sql.execute(tables).fetchall())
        assert len(first) >= 6
        command.downgrade(config, "base")
        assert set(sql.execute(tables).fetchall()) == {("alembic_version",)}
        command.upgrade(config, "head")
        assert set(sql.execute(tables).fetchall()) == first
        sql.execute("UPDATE scratch.alembic_version SET version_num = 'newer'")
        command.upgrade(config, "head")  # an older version, released again
        assert sql.execute("SELECT version_num FROM scratch.alembic_version").fetchall() == [
            ("newer",)
        ]
    finally:
        sql.execute("DROP SCHEMA scratch CASCADE")


def test_seeding_again_mends_and_then_changes_nothing(
    database: str, sql: psycopg.Connection
) -> None:
    assert sql.execute("SELECT count(*) FROM food").fetchone() == (300,)
    sql.execute("UPDATE food SET category = 'wrong' WHERE id IN (10, 11)")
    assert [seed(database), seed(database)] == [2, 0]
