"""One process of load: ``python -m load.worker``, started and fed by ``blocks.load_workers``.

It reads one assignment (JSON) from stdin, then a line every half second: that is its lease. It
writes JSON lines to stdout: ``ready``, one ``tick`` a second, ``end``. With stdin closed, or
silent for longer than the lease, all load of this process ends at once: a dead coordinator must
not leave load behind (locust#2008).
"""

from __future__ import annotations

import gc
import importlib.util
import json
import logging
import os
import random
import resource
import sys
from pathlib import Path
from time import monotonic
from types import ModuleType
from typing import Any

import gevent
from gevent.fileobject import FileObjectPosix
from locust.env import Environment

from domain.arrivals import PoissonSchedule, Segment
from domain.load_plan import Target
from domain.load_profile import Model, Profile
from load import generated
from load.recorder import Recorder
from load.session import Connections
from load.visitor import Schedule, Visitor

LEASE_SECONDS = 3.0
TICK_SECONDS = 1.0
_SPARE_DESCRIPTORS = 200


class Worker:
    """Runs its share of a profile.

    Args:
        assignment: as ``blocks.load_workers.Assignment`` writes it.
        out: where the JSON lines go.
    """

    def __init__(self, assignment: dict[str, Any], out: Any) -> None:
        self._given, self._out = assignment, out
        self.profile = Profile.model_validate(assignment["profile"])
        self.index, self.workers = int(assignment["index"]), int(assignment["workers"])
        self.chance = random.Random(assignment["seed"] * 1009 + self.index)
        random.seed(assignment["seed"] * 2003 + self.index)  # what behaviours draw from
        self.last_beat = monotonic()
        self.wanted = True

    def run(self, stdin: FileObjectPosix) -> None:
        """To the end of the profile, of the lease, or of the patience of whoever reads us."""
        classes = self._classes()
        environment = Environment(user_classes=[*classes], catch_exceptions=True)
        runner = environment.create_local_runner()
        say(self._out, {"kind": "ready"})
        start = float(json.loads(stdin.readline() or b"null") or 0.0)
        self.recorder = Recorder(self.profile, start)
        environment.events.user_error.add_listener(  # type: ignore[no-untyped-call]
            lambda user_instance, exception, tb, **_: self.recorder.script_failed(exception)
        )
        self._equip(environment)
        self._spawn(runner, classes)
        self.real_time = take_precedence()
        gc.collect()
        gc.freeze()  # a full collection of what is here now would pause all users
        gc.set_threshold(50_000, 20, 1000)
        watchers = [
            gevent.spawn(self._read_lease, stdin),
            gevent.spawn(self.recorder.watch_loop),
        ]
        if self.profile.model is Model.OPEN:
            watchers.append(gevent.spawn(self._arrivals))
        self._tick_until(start + self.profile.seconds)
        gevent.killall(watchers)
        self._end(runner, start)

    def _classes(self) -> list[type[Visitor]]:
        if file := self._given.get("behaviours"):
            module = _load(Path(file))
            found = [
                value
                for value in vars(module).values()
                if isinstance(value, type) and issubclass(value, Visitor) and not value.abstract
            ]
            if not found:
                raise Unusable(f"{file} has no subclass of load.visitor.Visitor")
            if idle := [cls.__name__ for cls in found if not cls.tasks]:
                raise Unusable(f"{idle[0]} in {file} has no method with @task")
            return found
        return [generated.visitor(self._given["operations"])]

    def _equip(self, environment: Environment) -> None:
        where = {**self._given["target"], "source": tuple(self._given["target"]["source"])}
        Visitor.recorder = self.recorder
        Visitor.schedule = Schedule(self.profile.model, self.profile.pause_seconds, self.chance)
        Visitor.connections = Connections(Target(**where), self.profile.timeout_seconds)
        Visitor.timeout_seconds = self.profile.timeout_seconds

    def _spawn(self, runner: Any, classes: list[type[Visitor]]) -> None:
        """All users before the start; each of them then comes at a time of his own.

        Ranks are dealt out in turn and moved by a random part of one: several workers make one
        even ramp, and nobody comes exactly when somebody else does.
        """
        open_model = self.profile.model is Model.OPEN
        wanted = self._given["most_in_flight"] if open_model else int(self.profile.peak)
        ranks = range(self.index, wanted, self.workers)
        shares = _shares(classes, len(ranks))
        users = [
            user for name, count in shares.items() for user in runner.spawn_users({name: count})
        ]
        self.chance.shuffle(users)
        for rank, user in zip(ranks, users, strict=True):
            if not open_model:
                user.stays = self.profile.presence(rank + self.chance.random())

    def _arrivals(self) -> None:
        """Give each arrival to the queue at its due time, which is absolute."""
        segments = [Segment(phase.seconds, phase.start, phase.end) for phase in self.profile.phases]
        for due in PoissonSchedule(segments, self.chance, 1 / self.workers):
            at = self.recorder.start + due
            gevent.sleep(max(0.0, at - monotonic()))
            Visitor.schedule.arrivals.put(at)
        Visitor.schedule.arrivals.put(None)

    def _read_lease(self, stdin: FileObjectPosix) -> None:
        while line := stdin.readline():
            self.last_beat = monotonic()
            if line.strip() == b"stop":
                break
        self.wanted = False

    def _tick_until(self, end: float) -> None:
        at = self.recorder.start
        while self.wanted and at < end:
            at += TICK_SECONDS
            while self.wanted and (left := min(at, end) - monotonic()) > 0:
                gevent.sleep(min(left, 0.25))
                if monotonic() - self.last_beat > LEASE_SECONDS:
                    self.wanted = False
            say(self._out, self.recorder.tick())

    def _end(self, runner: Any, start: float) -> None:
        """Who waits leaves at once; who has asked may wait for his answer until it is too late."""
        if self.wanted:
            Visitor.schedule.arrivals.put(None)
            until, told = monotonic() + self.profile.timeout_seconds + 0.5, monotonic()
            while self.recorder.in_flight and monotonic() < until and self.wanted:
                gevent.sleep(0.05)
                if monotonic() - told >= TICK_SECONDS:
                    told = monotonic()
                    say(self._out, self.recorder.tick())
        runner.user_greenlets.kill(block=True, timeout=5)
        say(self._out, self.recorder.tick(last=True))
        ended = {"requests": self.recorder.requests, "second": round(monotonic() - start, 3)}
        how = {"complete": self.wanted, "real_time": self.real_time}
        say(self._out, {"kind": "end", **how, **ended})


class Unusable(Exception):
    """The behaviours cannot be run; one sentence."""


def _shares(classes: list[type[Visitor]], users: int) -> dict[str, int]:
    """Users of each class by its weight, at least one where there are enough."""
    total = sum(cls.weight for cls in classes)
    shares = {cls.__name__: int(users * cls.weight / total) for cls in classes}
    first = classes[0].__name__
    shares[first] += users - sum(shares.values())
    return shares


def _load(path: Path) -> ModuleType:
    """The file of behaviours, whose own folder it may import from."""
    sys.path.insert(0, str(path.parent))
    spec = importlib.util.spec_from_file_location("slipway_behaviours", path)
    if spec is None or spec.loader is None:
        raise Unusable(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def say(out: Any, document: dict[str, Any]) -> None:
    out.write(json.dumps(document, separators=(",", ":")).encode() + b"\n")
    out.flush()


def raise_descriptors(wanted: int) -> None:
    """Up to the hard limit; the coordinator has checked that it suffices."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, wanted)), hard))


def take_precedence() -> bool:
    """Run before everything else that this machine runs, as far as that is allowed.

    What is measured often shares the machine. A worker that queues for a processor measures that
    queue: on two full cores its timers were late by up to 23 ms (99 %), and by 0.1 ms as a
    real-time process. The kernel leaves others 5 % of a core at least (sched(7)), and a worker
    that uses 90 % of one is unsound anyway.

    Returns:
        Whether it was.
    """
    try:
        os.sched_setscheduler(0, os.SCHED_RR | os.SCHED_RESET_ON_FORK, os.sched_param(1))
    except (AttributeError, OSError):  # not Linux; or not allowed, and then as one of many
        return False
    return True


def main() -> int:
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what behaviours print is talk; our lines are the protocol
    logging.basicConfig(level=logging.WARNING)
    stdin = FileObjectPosix(0, "rb")
    assignment = json.loads(stdin.readline() or b"null")
    if assignment is None:
        return 2
    raise_descriptors(int(assignment["profile"]["phases"] and 1e6))
    try:
        Worker(assignment, out).run(stdin)
    except Exception as error:  # of the behaviours' file, too: whatever it raises when imported
        logging.exception("the worker cannot go on")
        say(out, {"kind": "unusable", "reason": f"{type(error).__name__}: {error}"})
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
