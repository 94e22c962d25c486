"""What a member of a recovery point is read from: a dump that arrives as a stream of bytes.

One implementation for each kind of member (PostgreSQL, Redis, objects, ...), all behind the same
two protocols, so that the pipeline that compresses, encrypts and uploads knows none of them.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Protocol

from domain.recovery import Facts, MemberKind


class Stream(Protocol):
    """One dump under way; read once, from the front to the end."""

    def read(self, size: int) -> bytes:
        """Up to ``size`` bytes, and ``b""`` only when the whole dump was read and is sound.

        A dump that failed raises, also when it does so after its last byte: whoever saw ``b""``
        holds all of it.

        Raises:
            domain.errors.SlipwayError: the dump failed; the message says at what.
        """
        ...

    def facts(self) -> Facts:
        """What is known of the dump once ``read`` has returned ``b""``.

        Raises:
            RuntimeError: the stream has not ended, so its inventory would lack the rest.
        """
        ...


class Source(Protocol):
    """Where one member comes from; may be opened any number of times, each a dump of its own."""

    kind: MemberKind

    def open(self) -> AbstractContextManager[Stream]:
        """Start a dump. Leaving the context early ends whatever was started for it."""
        ...
