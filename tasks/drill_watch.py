"""Looking, all the time, which sides of a drill may write."""

from __future__ import annotations

import contextlib
import threading
import time

from blocks import fence
from blocks.fence import Fence
from domain.errors import SlipwayError
from domain.verdict import Check, Verdict

_WATCH_PAUSE_SECONDS = 0.1


class Watch:
    """Looks ten times a second which sides may write; a look that fails says nothing."""

    def __init__(self, fences: dict[str, Fence]) -> None:
        self._over = threading.Event()
        self.seen: dict[str, list[tuple[float, float, bool]]] = {name: [] for name in fences}
        self._threads = [
            threading.Thread(target=self._look, args=(name, fences[name]), daemon=True)
            for name in fences
        ]
        for thread in self._threads:
            thread.start()

    def _look(self, name: str, watched: Fence) -> None:
        while not self._over.is_set():
            with contextlib.suppress(SlipwayError), watched.connection() as connection:
                while not self._over.wait(_WATCH_PAUSE_SECONDS):
                    began = time.monotonic()
                    state = fence.state(connection)
                    self.seen[name].append((began, time.monotonic(), state.writable))
            self._over.wait(_WATCH_PAUSE_SECONDS)

    def close(self) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(1.0)  # one that asks a frozen server stays behind

    def verdict(self) -> Check:
        """Never two: no look at the old side that began after the new side's first finds it open.

        The two looks' own times are compared, so a slow answer accuses nobody.
        """
        standby = [look for look in self.seen["standby"] if look[2]]
        primary = [look for look in self.seen["primary"] if look[2]]
        samples = sum(len(looks) for looks in self.seen.values())
        name = "one writable side"
        if not standby:
            return Check(name=name, verdict=Verdict.NO_DATA, samples=samples,
                         reason="the standby was never seen writable")  # fmt: skip
        opened = min(look[1] for look in standby)
        both = [look for look in primary if look[0] > opened]
        if both:
            return Check(name=name, verdict=Verdict.FAIL, samples=samples,
                         reason=f"the old side could be written {both[0][0] - opened:.2f} s after "
                         "the new one")  # fmt: skip
        return Check(name=name, verdict=Verdict.PASS, samples=samples,
                     reason=f"{samples} looks, never both")  # fmt: skip
