"""One release of an environment at a time: the polite queue in front of the journal's lock."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from prefect.client.orchestration import get_client
from prefect.concurrency.sync import concurrency

from domain.errors import Failed

LEASE_SECONDS = 60
"""How long the slot of a killed process stays taken; the server's lower limit."""
QUEUE_SECONDS = 3600

_held: ContextVar[frozenset[str]] = ContextVar("held", default=frozenset())


@contextmanager
def environment_lock(application: str, environment: str) -> Iterator[None]:
    """Wait for the environment's slot; free again at the end. Held once, it may be asked again.

    A lost lease does not stop the holder: the journal is what keeps two releases apart, and a
    release that stops half-way because the Prefect server restarts would be the worse end.

    Raises:
        Failed: SLP054 when no slot became free within an hour.
    """
    name = f"slipway-{application}-{environment}"
    if name in _held.get():
        yield
        return
    with get_client(sync_client=True) as client:
        client.upsert_global_concurrency_limit_by_name(name, 1)
    slot = concurrency(
        name,
        strict=True,
        lease_duration=LEASE_SECONDS,
        timeout_seconds=QUEUE_SECONDS,
        raise_on_lease_renewal_failure=False,
    )
    try:
        slot.__enter__()
    except TimeoutError as error:
        raise Failed(
            "SLP054",
            f"waited {QUEUE_SECONDS // 60} minutes for another release of {application} in "
            f"{environment} to end",
            help="see who it is in `slipway status`; cancel that run if it hangs",
        ) from error
    token = _held.set(_held.get() | {name})
    try:
        yield
    finally:
        _held.reset(token)
        # A server that is away must not turn a release that succeeded into one that crashed;
        # the lease then runs out by itself.
        with contextlib.suppress(Exception):
            slot.__exit__(None, None, None)
