"""Ports are chosen, not assumed: a preferred one when it is free, else any free one."""

from __future__ import annotations

import errno
import random
import socket
from collections.abc import Iterable, Mapping

from domain.errors import Failed

LOOPBACK = "127.0.0.1"
OTHER_LOOPBACK = "127.0.0.2"
"""The other cloud's: its edge listens on the same ports, as names lead to one port anywhere."""

PREFERRED: Mapping[str, int] = {"prefect": 4200, "web": 8080}
"""Ports whose address a person types; the others are never seen."""

RANGE = range(20_000, 32_000)
"""Below the ports that Linux (32768 and up) and macOS (49152 and up) lend to outgoing
connections. In that region any client can take a port that we remember, and a client that polls
a port before its server listens there can end up connected to itself."""


def is_free(port: int) -> bool:
    """Nobody listens on this loopback port, at the address of either side, and we could."""
    return _can_bind(LOOPBACK, port) and _can_bind(OTHER_LOOPBACK, port) and not answers(port)


def _can_bind(address: str, port: int) -> bool:
    with socket.socket() as probe:
        # A port in TIME_WAIT is free for a server, which sets this option too.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
        except OSError as error:
            # A system that has only one loopback address says so when the part starts.
            return address == OTHER_LOOPBACK and error.errno == errno.EADDRNOTAVAIL
    return True


def answers(port: int) -> bool:
    """Somebody accepts connections on this loopback port."""
    with socket.socket() as probe:
        probe.settimeout(1.0)
        return probe.connect_ex((LOOPBACK, port)) == 0


def choose(name: str, taken: Iterable[int] = ()) -> int:
    """A free port for ``name`` that is not among ``taken``."""
    used = set(taken)
    preferred = PREFERRED.get(name)
    candidates = [preferred] if preferred is not None else []
    candidates += random.sample(RANGE, k=200)
    for port in candidates:
        if port not in used and is_free(port):
            return port
    raise Failed(
        "SLP011",
        f"no free port for {name}: 200 between {RANGE.start} and {RANGE.stop} are all taken",
        help="see which processes listen there: ss -ltnp",
        where=LOOPBACK,
    )


def settle(names: Iterable[str], remembered: Mapping[str, int]) -> tuple[dict[str, int], list[str]]:
    """Keep what is remembered and free, choose the rest.

    Returns:
        The ports by name, and one sentence for each remembered port that was lost.
    """
    ports: dict[str, int] = {}
    lost: list[str] = []
    for name in names:
        known = remembered.get(name)
        if known is not None and is_free(known):
            ports[name] = known
            continue
        ports[name] = choose(name, [*ports.values(), *remembered.values()])
        if known is not None:
            lost.append(lost_port(name, known, ports[name]))
    return ports, lost


def lost_port(name: str, known: int, fresh: int) -> str:
    return f"port {known} ({name}) is taken by another process; using {fresh} instead"
