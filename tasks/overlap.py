"""Independent work side by side, so that all of it ends when the run does.

Prefect and Python bring a signal to the main thread alone. What runs here in other threads is told
by ``commands.ended_together``, and is waited for before the block is left: nothing goes on behind
a run that has ended, and what was opened is closed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from contextvars import copy_context
from typing import TypeVar

from blocks.commands import ended_together

T = TypeVar("T")


def together(first: Callable[[], None], *others: Callable[[], None]) -> None:
    """Run all at once, the first in this thread.

    The order is that of importance: an error of an earlier one is raised and ends the later ones,
    while an error of a later one waits for the verdict of those before it.
    """
    with ThreadPoolExecutor(max(1, len(others)), "beside") as pool, ended_together():
        waiting = [pool.submit(copy_context().run, work) for work in others]
        first()
        for future in waiting:
            future.result()


@contextmanager
def ahead(resource: AbstractContextManager[T]) -> Iterator[Callable[[], T]]:
    """Begin to open a resource now; what is yielded waits for it, and raises what it raised."""
    with ExitStack() as stack, ThreadPoolExecutor(1, "ahead") as pool, ended_together():
        yield pool.submit(copy_context().run, stack.enter_context, resource).result
