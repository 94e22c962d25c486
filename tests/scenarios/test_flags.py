"""A flag on the real sandbox: carried in off, ramped under users, caught when it is bad, killed."""

from __future__ import annotations

import json
from functools import partial
from typing import Any

import pytest
from prefect.client.schemas.objects import State

from domain.ramp import Ramp
from flows.flag import flag
from tasks.ramping import Ramping, meter_of
from tests.scenarios.apps import App, service
from tests.scenarios.world import World, error_in, wait_until

pytestmark = pytest.mark.sandbox

SWITCH = {"state": "ENABLED", "variants": {"on": True, "off": False}, "defaultVariant": "off"}
KEY = "basket"

# As little as follows the convention: the file is read as the provider does, twice a second.
FLAGGED = r"""
import hashlib, json, os, signal, threading, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

with open("knobs.json", encoding="utf-8") as file:
    KNOBS = json.load(file)
PATH, STARTED = os.environ["FLAGD_OFFLINE_FLAG_SOURCE_PATH"], time.time()
share, asked, counts, lock = 0.0, 0, {}, threading.Lock()


def watch():
    global share
    known = 0.0
    while True:
        if os.path.exists(PATH) and os.path.getmtime(PATH) > known:
            known = os.path.getmtime(PATH)
            with open(PATH, encoding="utf-8") as file:
                flag = json.load(file)["flags"]["basket"]
            split = flag.get("targeting", {}).get("fractional")
            share = split[0][1] / 10000 if split else float(flag["defaultVariant"] == "on")
        time.sleep(0.5)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        global asked
        status, text = 200, os.environ["SLIPWAY_VERSION"]
        if self.path == "/metrics":
            text = metrics()
        elif self.path == "/version":
            with lock:
                asked += 1
                digest = hashlib.sha256(str(asked).encode()).digest()
                variant = "on" if digest[0] / 256 + digest[1] / 65536 < share else "off"
                if variant == "on" and digest[2] / 256 < KNOBS.get("faulty", 0):
                    status = 500
                counts[variant, status] = counts.get((variant, status), 0) + 1
        self.send_response(status)
        self.send_header("Content-Type", "text/plain; version=0.0.4")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_):
        pass


def metrics():
    lines = ["# TYPE feature_flag_requests_total counter"]
    with lock:
        found = dict(counts)
    for (variant, code), n in found.items():
        labels = f'flag="basket",variant="{variant}",code="{code}"'
        lines.append(f"feature_flag_requests_total{{{labels}}} {n}")
    name = "feature_flag_request_duration_seconds"
    lines.append(f"# TYPE {name} histogram")
    for variant in ("on", "off"):
        n = sum(c for (v, _), c in found.items() if v == variant)
        for bound in ("0.1", "2.5", "+Inf"):
            lines.append(f'{name}_bucket{{flag="basket",variant="{variant}",le="{bound}"}} {n}')
    lines += ["# TYPE process_start_time_seconds gauge", f"process_start_time_seconds {STARTED}"]
    return "\n".join(lines) + "\n"


class Server(ThreadingHTTPServer):
    request_queue_size = 512


server = Server(("127.0.0.1", int(os.environ["PORT"])), Handler)
signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown).start())
threading.Thread(target=watch, daemon=True).start()
server.serve_forever(0.05)
"""


def ship(world: World, app: App, **knobs: Any) -> None:
    web = service(command="python -IS flagged.py", replicas={"default": 2})
    document = {
        "version": "1.0.0",
        "services": {"web": web},
        "flags": {"file": "flags.json", "carry": {KEY: ["20%", "50%", "100%"]}},
        "canary": {"requests": 100},
        "objectives": {"availability": "99%", "p95": "2s", "error_rate": "1%"},
    }
    files = {"flags.json": json.dumps({"flags": {KEY: SWITCH}}), "flagged.py": FLAGGED}
    world.ship(app.write(document, files, **knobs))


def run(app: App, verb: Any, steps: str = "") -> State[Any]:
    state: State[Any] = flag("production", app.name, KEY, verb, steps, "ann", return_state=True)
    return state


def share(world: World, app: App) -> float:
    known = world.platform.flags.read(app.name, "production")
    assert known is not None
    return known.share(KEY)


def test_a_good_flag_is_ramped_to_everybody_and_killed_by_hand(world: World, app: App) -> None:
    ship(world, app)
    assert share(world, app) == 0
    with world.users(app.name, rate=200) as users:
        users.wait_for(50)
        ended = run(app, "ramp")
        assert ended.is_completed(), ended.message
        assert share(world, app) == 1
        killed = run(app, "kill")
        assert killed.is_completed(), killed.message
        assert "none got it" in str(killed.message)
    assert (share(world, app), users.failed) == (0, [])


def test_a_bad_flag_is_caught_and_killed_on_its_own(world: World, app: App) -> None:
    ship(world, app, faulty=0.4)
    with world.users(app.name, rate=200) as users:
        users.wait_for(50)
        ended = run(app, "ramp")
        assert error_in(ended).code == "SLP081", ended.message
        assert share(world, app) == 0
        before, met = users.served, len(users.failed)
        wait_until(lambda: users.served > before + 200, "users after the kill")
    assert met and len(users.failed) == met, "after the kill nobody meets the fault"


@pytest.mark.slow
def test_a_kill_does_not_wait_for_a_ramp_and_stops_it(world: World, app: App) -> None:
    ship(world, app)
    result = world.in_thread(lambda: run(app, "ramp", "10%, 90%"))  # no users: it waits
    wait_until(lambda: share(world, app) == 0.1, "the first step", 60)
    killed = run(app, "kill")
    assert killed.is_completed(), killed.message
    assert "the ramp of basket ended: ann wrote `setting`" in error_in(result()).cause
    assert share(world, app) == 0


class Died(BaseException):
    """As SIGKILL: nothing of the ramp runs any more."""


def test_recover_turns_off_a_flag_whose_ramp_was_killed(world: World, app: App) -> None:
    ship(world, app)

    def die(seconds: float) -> None:
        raise Died

    place = world.platform, app.name, "production", KEY
    flags, journal = world.platform.flags, world.journal(app.name)
    ramp = Ramping(flags, journal, KEY, partial(meter_of, *place), pause=die)
    ramp.begin(Ramp.model_validate({"flag": KEY, "steps": ["20%", "100%"]}))
    with pytest.raises(Died):
        ramp.drive()
    assert share(world, app) == 0.2
    with world.users(app.name, rate=100) as users:
        assert "turned off basket, whose ramp was left" in world.recover(app.name)
    assert (share(world, app), users.failed) == (0, [])
    assert "ramp" not in world.recover(app.name)
