"""A fault comes about, whatever clients do meanwhile."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest

from tasks.drill_faults import drop


class Contended:
    """A connection that loses so many deadlocks before a statement passes."""

    def __init__(self, losses: int) -> None:
        self.losses = losses
        self.passed: list[bytes] = []

    def execute(self, statement: bytes) -> None:
        if self.losses:
            self.losses -= 1
            raise psycopg.errors.DeadlockDetected("deadlock detected")
        self.passed.append(statement)


def test_a_migration_that_loses_a_deadlock_is_made_again() -> None:
    """Seed 161 of the drills under fire ended as FAILED: its fault was the victim."""
    connection: Any = Contended(3)
    drop(connection, "public.meals")
    assert connection.passed == [b"DROP TABLE IF EXISTS public.meals CASCADE"]


def test_one_that_always_loses_says_so() -> None:
    connection: Any = Contended(1000)
    with pytest.raises(psycopg.errors.DeadlockDetected):
        drop(connection, "public.meals")
    assert connection.passed == [] and connection.losses > 900
