"""An open-loop load of a fixed rate: requests go out when they are due, answered or not.

    python tests/bench/traffic.py --url http://127.0.0.1:8080 --host NAME --rate 500

Runs until SIGTERM (or ``--seconds``), then prints one JSON document. A request fails when it gets
no answer, or one of 500 or above. Only loopback addresses are accepted.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import ipaddress
import itertools
import json
import random
import signal
import sys
import time
import uuid
from collections import Counter
from urllib.parse import urlsplit

import aiohttp

CONNECTIONS = 100
WORDS = ("oat", "app", "rice", "bean", "milk", "egg")


async def main() -> None:
    arguments = _arguments()
    if not ipaddress.ip_address(urlsplit(arguments.url).hostname or "").is_loopback:
        sys.exit(f"{arguments.url} is not a loopback address; this load goes nowhere else")
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    loop.call_later(arguments.seconds, stop.set)
    connector = aiohttp.TCPConnector(limit=CONNECTIONS)
    timeout = aiohttp.ClientTimeout(total=10)
    headers = {"Host": arguments.host}
    async with aiohttp.ClientSession(
        arguments.url, connector=connector, timeout=timeout, headers=headers
    ) as session:
        await _sign_in(session)
        outcome = await _load(session, arguments.rate, stop)
    print(json.dumps(outcome))


async def _load(
    session: aiohttp.ClientSession, rate: float, stop: asyncio.Event
) -> dict[str, object]:
    counted: Counter[str] = Counter()
    seconds: list[float] = []
    pending: set[asyncio.Task[None]] = set()
    began = time.monotonic()
    print("running", file=sys.stderr, flush=True)
    for number in itertools.count():
        due = began + number / rate
        early = due - time.monotonic()
        if early > 0:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), early)
        if stop.is_set():
            break
        request = asyncio.create_task(_one(session, number, due, counted, seconds))
        pending.add(request)
        request.add_done_callback(pending.discard)
    elapsed = time.monotonic() - began
    await asyncio.gather(*pending)
    seconds.sort()
    return {
        "requests": counted.total(),
        "failed": sum(n for what, n in counted.items() if what != "ok"),
        "failures": {what: n for what, n in counted.items() if what != "ok"},
        "per_second": round(counted.total() / elapsed, 1),
        "p95_ms": round(1000 * seconds[int(len(seconds) * 0.95)], 1) if seconds else None,
    }


async def _one(
    session: aiohttp.ClientSession,
    number: int,
    due: float,
    counted: Counter[str],
    seconds: list[float],
) -> None:
    """Its time begins when it was due, so that a caller that falls behind flatters nobody."""
    try:
        if number % 5 == 0:
            answer = await session.post(
                "/api/meals",
                json={"food_id": 1 + number % 300, "grams": 100},
                headers={"Idempotency-Key": uuid.uuid4().hex},
            )
        else:
            answer = await session.get(f"/api/foods?q={random.choice(WORDS)}")
        async with answer:
            await answer.read()
            counted["ok" if answer.status < 500 else f"status {answer.status}"] += 1
    except (aiohttp.ClientError, TimeoutError) as error:
        counted[type(error).__name__] += 1
    seconds.append(time.monotonic() - due)


async def _sign_in(session: aiohttp.ClientSession) -> None:
    async with session.post("/api/sign-in", json={"player": "bench"}) as answer:
        answer.raise_for_status()
        session.headers["Authorization"] = f"Bearer {(await answer.json())['token']}"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--url", required=True)
    parser.add_argument("--host", required=True)
    parser.add_argument("--rate", type=float, default=500)
    parser.add_argument("--seconds", type=float, default=600)
    return parser.parse_args()


if __name__ == "__main__":
    asyncio.run(main())
