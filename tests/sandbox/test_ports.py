"""Ports are chosen, remembered, and given up when somebody else has them."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from sandbox import ports


@pytest.fixture
def occupied() -> Iterator[int]:
    with socket.socket() as server:
        server.bind((ports.LOOPBACK, 0))
        server.listen()
        yield int(server.getsockname()[1])


def test_a_remembered_port_that_is_free_is_kept() -> None:
    port = ports.choose("redis")
    assert ports.settle(["redis"], {"redis": port}) == ({"redis": port}, [])


def test_a_remembered_port_that_is_taken_is_replaced_and_said(occupied: int) -> None:
    chosen, lost = ports.settle(["redis"], {"redis": occupied})
    assert chosen["redis"] != occupied
    assert ports.is_free(chosen["redis"])
    assert lost == [ports.lost_port("redis", occupied, chosen["redis"])]


def test_a_preferred_port_is_used_only_while_it_is_free(
    monkeypatch: pytest.MonkeyPatch, occupied: int
) -> None:
    free = ports.choose("redis")
    monkeypatch.setattr(ports, "PREFERRED", {"web": free, "prefect": occupied})
    assert ports.choose("web") == free
    assert ports.choose("web", taken=[free]) != free
    assert ports.choose("prefect") != occupied


def test_no_two_names_get_one_port() -> None:
    chosen, _ = ports.settle([f"n{i}" for i in range(200)], {})
    assert len(set(chosen.values())) == 200


def test_a_listener_is_seen(occupied: int) -> None:
    assert ports.answers(occupied)
    assert not ports.is_free(occupied)
