"""The Edge protocol: what every traffic splitter must do.

Each implementation passes the contract suite in tests/blocks/test_edge_contract.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

from domain.routing import Counts, Routing


@runtime_checkable
class Edge(Protocol):
    """Splits traffic by weight; every call is idempotent and bounded in time.

    Errors: ``domain.errors.Failed`` SLP014 when the edge cannot be reached, or did not take a
    change within its deadline.
    """

    def read(self, application: str, environment: str) -> Routing | None:
        """What the edge really does now (its own view, not the file we once wrote)."""
        ...

    def write(self, routing: Routing) -> None:
        """Switch as one; returns when the edge serves by it."""
        ...

    def remove(self, application: str, environment: str) -> None: ...

    def counts(self, application: str, environment: str) -> Mapping[str, Counts]:
        """Requests by workload so far. Raises rather than answer zero when it cannot see."""
        ...

    def public_url(self, routing: Routing) -> str:
        """The address a person opens in a browser."""
        ...

    def request_target(self, routing: Routing) -> tuple[str, Mapping[str, str]]:
        """Base URL and headers with which a program reaches the public address from here."""
        ...

    def private_url(self, application: str, environment: str, workload: str) -> str:
        """Base URL (no trailing slash, may hold a path prefix) of one backend, weight or not."""
        ...
