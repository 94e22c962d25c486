"""Run one process: `python -m diet_game`.

Granian's own command stops listening the moment it gets SIGTERM. Here the order is: /readyz turns
503, new requests are still answered while the router takes the process out, then the listener
closes, what is in flight finishes, and the exit code is 0.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
import sys
import time

from granian.constants import HTTPModes, Interfaces
from granian.http import HTTP1Settings
from granian.server.embed import Server

from diet_game.app import create_app
from diet_game.http import Traffic
from diet_game.settings import Settings, SettingsError

log = logging.getLogger("diet_game")

# A router polls /readyz about once a second; stay at least two polls, then until it is quiet.
LINGER_SECONDS = 2.0
QUIET_SECONDS = 1.0
FINISH_SECONDS = 4.5


async def drain(traffic: Traffic, linger_seconds: float, at_most_seconds: float) -> None:
    """Serve on as "not ready" until no request has come for a while, or the time is up."""
    traffic.draining = True
    started = time.monotonic()
    while (now := time.monotonic()) - started < at_most_seconds:
        quiet = now - traffic.last_request >= QUIET_SECONDS and traffic.in_flight == 0
        if quiet and now - started >= linger_seconds:
            return
        await asyncio.sleep(0.05)


async def serve(settings: Settings) -> int:
    """Serve until a signal.

    Returns:
        The exit code: 0 after a drain, 1 when the server ended by itself.
    """
    app = create_app(settings)
    # What is loaded by now stays. Python's own threshold of 700 objects is reached over and over
    # by hundreds of requests that wait at once: collections took an eighth of an overloaded process.
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)
    server = Server(
        app,
        address=settings.host,
        port=settings.port,
        interface=Interfaces.ASGI,
        http=HTTPModes.http1,
        http1_settings=HTTP1Settings(header_read_timeout=15_000, max_buffer_size=65_536),
        websockets=False,
        backlog=4096,
        backpressure=8192,
        log_access=False,
    )
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    serving = asyncio.create_task(server.serve())
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait({serving, stopping}, return_when=asyncio.FIRST_COMPLETED)
    if not stop.is_set():
        stopping.cancel()
        await serving
        return 1
    log.info("draining for at most %d s", settings.drain_seconds)
    traffic: Traffic = app.state.traffic
    await drain(traffic, min(LINGER_SECONDS, settings.drain_seconds), settings.drain_seconds)
    server.stop()  # type: ignore[no-untyped-call]  # Granian does not annotate it
    done, _ = await asyncio.wait({serving}, timeout=FINISH_SECONDS)
    log.info("stopped with %d in flight", traffic.in_flight)
    return 0 if done else 1


def main() -> int:
    """Read the settings and serve."""
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    try:
        settings = Settings.from_environment()
    except SettingsError as error:
        log.error("%s", error)
        return 2
    if sys.platform == "win32":
        return asyncio.run(serve(settings))
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(serve(settings))


if __name__ == "__main__":
    sys.exit(main())
