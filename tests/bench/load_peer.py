"""The same players by Locust alone; it tells what a request cost its process in CPU."""

from __future__ import annotations

import importlib.util
import json
import random
import time
from pathlib import Path
from typing import Any

import gevent
from locust import events

ROOT = Path(__file__).resolve().parents[2]
SETTLED_SECONDS, MEASURED_SECONDS = 60, 50

_spec = importlib.util.spec_from_file_location(
    "diet_game_traffic", ROOT / "examples" / "traffic" / "diet_game.py"
)
assert _spec is not None and _spec.loader is not None
_module = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_module)


class Peer(_module.Player):  # type: ignore[name-defined,misc]
    """One thing each ten seconds, at independent times."""

    def wait_time(self) -> float:
        return random.expovariate(1 / 10)


@events.init.add_listener
def measure(environment: Any, **_: Any) -> None:
    def after_the_ramp() -> None:
        gevent.sleep(SETTLED_SECONDS)
        cpu, sent = time.process_time(), environment.stats.total.num_requests
        gevent.sleep(MEASURED_SECONDS)
        requests = environment.stats.total.num_requests - sent
        told = {
            "cost_ms": 1000 * (time.process_time() - cpu) / max(1, requests),
            "requests": requests,
            "p95_ms": environment.stats.total.get_current_response_time_percentile(0.95),
            "failures": environment.stats.total.num_failures,
        }
        print("PEER " + json.dumps(told), flush=True)

    gevent.spawn(after_the_ramp)
