"""A TCP proxy whose network can be cut: what is under way is lost, and nobody gets through."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from types import TracebackType
from typing import Self


class CutProxy:
    """Passes on to one address until it is cut.

    Args:
        cut_after_bytes: cuts itself when clients have sent so much.
        seconds: mends itself so long after that.
    """

    def __init__(self, host: str, port: int, *, cut_after_bytes: int, seconds: float) -> None:
        self._to, self._after, self._seconds = (host, port), cut_after_bytes, seconds
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = self._listening.getsockname()[1]
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._sent = 0
        self._until = 0.0
        self.cuts = 0
        self.refused = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._listening.close()
        self._drop()

    @property
    def is_cut(self) -> bool:
        return time.monotonic() < self._until

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listening.accept()
            except OSError:
                return
            if self.is_cut:
                self.refused += 1
                client.close()
                continue
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        try:
            server = socket.create_connection(self._to, timeout=10)
        except OSError:
            client.close()
            return
        with self._lock:
            self._open |= {client, server}
        threading.Thread(target=self._pass, args=(server, client, False), daemon=True).start()
        self._pass(client, server, True)

    def _pass(self, source: socket.socket, target: socket.socket, counts: bool) -> None:
        with contextlib.suppress(OSError):
            while piece := source.recv(65_536):
                if counts and self._is_too_much(len(piece)):
                    return
                target.sendall(piece)
        for each in (source, target):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            if counts:  # one of the two directions closes both
                each.close()

    def _is_too_much(self, count: int) -> bool:
        with self._lock:
            self._sent += count
            if self.cuts or self._sent < self._after:
                return False
            self.cuts += 1
            self._until = time.monotonic() + self._seconds
        self._drop()
        return True

    def _drop(self) -> None:
        with self._lock:
            left, self._open = self._open, set()
        for each in left:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()
