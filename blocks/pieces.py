"""Bytes that a generator makes, read in sizes; shared by the sources that make them in Python."""

from __future__ import annotations

from collections.abc import Iterator


class Pieces:
    """Reads an iterator of bytes, none of them empty, as ``blocks.dump.Stream`` wants it.

    A generator that raised looks, when it is asked again, as if it had ended well. So the error
    is kept and raised again: ``b""`` always means that everything was read.
    """

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces, self._rest = pieces, memoryview(b"")
        self._error: BaseException | None = None
        self.ended = False

    def read(self, size: int) -> bytes:
        """Up to ``size`` bytes; raises what the iterator raised."""
        if self._error is not None:
            raise self._error
        parts, have = [], 0
        while have < size and (self._rest or self._next()):
            part, self._rest = self._rest[: size - have], self._rest[size - have :]
            parts.append(part)
            have += len(part)
        return b"".join(parts)

    def _next(self) -> bool:
        try:
            self._rest = memoryview(next(self._pieces))
        except StopIteration:
            self.ended = True
        except BaseException as error:
            self._error = error
            raise
        return not self.ended
