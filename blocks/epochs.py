"""Epochs in an object store outside of both clouds' failure: who may write, claimed once each."""

from __future__ import annotations

from blocks.object_store import AlreadyExists, ObjectStore
from domain.errors import Failed
from domain.failover import Epoch

_DIGITS = 8


class Epochs:
    """The epochs of one protected environment.

    The store must keep a create-only write: two claims of one number never both succeed.
    """

    def __init__(self, store: ObjectStore, application: str, environment: str) -> None:
        self._store = store
        self._prefix = f"epochs/{application}/{environment}"

    def newest(self) -> Epoch | None:
        """The epoch in force; None before the first."""
        keys = sorted(self._store.list(self._prefix))
        if not keys:
            return None
        content = self._store.read(keys[-1])
        if content is None:
            raise Failed("SLP203", f"the epoch {keys[-1]} was listed and cannot be read",
                         help="look at the store; nobody deletes epochs")  # fmt: skip
        return Epoch.model_validate_json(content)

    def claim(self, epoch: Epoch) -> None:
        """Claim the epoch after the newest for a side.

        Raises:
            Failed: SLP203, somebody else was first, or it is not the next one.
        """
        newest = self.newest()
        expected = newest.number + 1 if newest else 1
        if epoch.number != expected:
            raise _lost(epoch, newest)
        try:
            self._store.create(self._key(epoch.number), epoch.model_dump_json().encode())
        except AlreadyExists:
            found = self.newest()
            if found != epoch:  # an acknowledgement that was lost is no lost race
                raise _lost(epoch, found) from None

    def every(self) -> list[Epoch]:
        """All, oldest first."""
        found = (self._store.read(key) for key in sorted(self._store.list(self._prefix)))
        return [Epoch.model_validate_json(content) for content in found if content]

    def forget(self) -> None:
        """Remove all: for what a drill made."""
        for key in self._store.list(self._prefix):
            if (stat := self._store.stat(key)) is not None:
                self._store.delete(key, stat.version)

    def _key(self, number: int) -> str:
        return f"{self._prefix}/{number:0{_DIGITS}}.json"


def _lost(wanted: Epoch, newest: Epoch | None) -> Failed:
    seen = (
        f"epoch {newest.number} is {newest.side}'s since {newest.claimed_at:%Y-%m-%d %H:%M:%S} UTC "
        f"({newest.actor})"
        if newest
        else "there is none"
    )
    return Failed(
        "SLP203",
        f"tried to claim epoch {wanted.number} for {wanted.side}: {seen}",
        help="somebody else moves this application; look with `slipway readiness`",
    )
