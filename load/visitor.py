"""What an application's users are made of: a class with weighted tasks, as Locust has them.

::

    from load.visitor import Visitor, task

    class Player(Visitor):
        def on_start(self):
            self.client.post("/sign-in", json={"player": "anna"})

        @task(5)
        def search(self):
            self.client.get("/foods?q=oat", name="/foods")
"""

from __future__ import annotations

import random
from time import monotonic
from typing import Any, ClassVar

import gevent
from gevent.queue import Queue
from locust import User, task
from locust.exception import StopUser

from domain.load_profile import Model
from load.recorder import Recorder
from load.session import Connections, Session

__all__ = ["Visitor", "task"]


class Schedule:
    """When the things of one worker are due; shared by its users.

    Attributes:
        arrivals: due times of the open model, for whoever is free.
    """

    def __init__(self, model: Model, pause_seconds: float, chance: random.Random) -> None:
        self.model, self.pause_seconds, self.chance = model, pause_seconds, chance
        self.arrivals: Queue = Queue()


class Visitor(User):
    """A user who comes independently of all others, and pauses for an exponential time.

    Subclasses have tasks and may have ``on_start`` and ``on_stop``; ``self.client`` sends.
    """

    abstract = True
    recorder: ClassVar[Recorder]
    schedule: ClassVar[Schedule]
    connections: ClassVar[Connections]
    timeout_seconds: ClassVar[float]

    def __init__(self, environment: Any) -> None:
        super().__init__(environment)
        self.client = Session(self.connections, self.recorder, self.timeout_seconds)
        self.stays: list[tuple[float, float]] = []
        self._began: float | None = None
        self._first = True

    def start(self, group: Any) -> Any:
        """Locust starts users in batches of a second; each of ours waits for a time of its own."""
        self._group = group
        self._greenlet = group.spawn(self._arrive)
        return self._greenlet

    def _arrive(self) -> None:
        gevent.sleep(0)  # until its stays are set
        try:
            gevent.sleep(self._begin(self._first_due()))
        except StopUser:
            return
        self.recorder.users += 1
        if type(self).on_start is not User.on_start:
            # To come is a thing of its own, with a pause after it: else a ramp is twice the load.
            self.on_start = self._come_and_pause  # type: ignore[method-assign]
        try:
            self.run()  # type: ignore[no-untyped-call]
        finally:
            self.recorder.users -= 1
            self.client.close()

    def _come_and_pause(self) -> None:
        type(self).on_start(self)
        gevent.sleep(self.wait_time())

    def wait_time(self) -> float:
        """Asked by Locust between two tasks; seconds until the next thing is due."""
        now = monotonic()
        if self._began is not None:
            self.recorder.did(now - self._began)
        if self.schedule.model is Model.OPEN:
            return self._begin(self._next_arrival())
        pause = self.schedule.chance.expovariate(1 / self.schedule.pause_seconds)
        return self._begin(self._within_a_stay(now + pause))

    def _first_due(self) -> float:
        if self.schedule.model is Model.OPEN:
            return self._next_arrival()
        if not self.stays:
            raise StopUser
        return self.recorder.start + self.stays[0][0]

    def _next_arrival(self) -> float:
        """Waits for it; who is free takes the next one, so a slow server delays nobody else."""
        due = self.schedule.arrivals.get()
        if due is None:
            self.schedule.arrivals.put(None)  # the end, for the others too
            raise StopUser
        return float(due)

    def _within_a_stay(self, due: float) -> float:
        """The due time itself, or the begin of the next stay when he has left by then."""
        for begin, end in self.stays:
            if due < self.recorder.start + end:
                return max(due, self.recorder.start + begin)
        # Nothing more is due. He is there to the end of his stay, and with the last one until
        # the worker ends him, so that every second of the load has all of its users.
        gevent.sleep(max(0.0, self.recorder.leaves_at(self.stays[-1][1]) - monotonic()))
        raise StopUser

    def _begin(self, due: float) -> float:
        """Note when the next thing should begin; returns the seconds until then."""
        self.client.due = self._began = due
        return max(0.0, due - monotonic())
