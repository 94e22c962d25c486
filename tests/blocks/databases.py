"""Databases on a real server, for the tests of backups."""

from __future__ import annotations

import uuid
from pathlib import Path

import psycopg

from blocks.disposable_postgres import DisposableServer
from blocks.postgres_dump import PostgresSource
from domain.pg_archive import Sample
from domain.pg_inventory import Inventory
from domain.recovery import Facts

RICH = (Path(__file__).parent / "rich_database.sql").read_text()


def new_database(server: DisposableServer, statements: str = "", *, name: str = "") -> str:
    """The URL of a database of its own, with what the statements make."""
    url = server.database(name or f"shop_{uuid.uuid4().hex[:8]}")
    if statements:
        run(url, statements)
    return url


def run(url: str, statements: str) -> None:
    with psycopg.connect(url, autocommit=True, client_encoding="UTF8") as connection:
        connection.execute(statements.encode())


def ask(url: str, question: str) -> object:
    """The one value of the one row."""
    with psycopg.connect(url) as connection:
        row = connection.execute(question.encode()).fetchone()
    assert row is not None
    return row[0]


class Dump:
    """A whole dump in memory."""

    def __init__(self, url: str, *, sample_rows: int = 20) -> None:
        with PostgresSource(url, sample_rows=sample_rows).open() as stream:
            pieces = []
            while piece := stream.read(1 << 20):
                pieces.append(piece)
            self.content = b"".join(pieces)
            self.facts: Facts = stream.facts()
            self.inventory: Inventory = stream.inventory()
            self.sample: Sample = stream.sample()
