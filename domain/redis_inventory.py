"""What a saved Redis database holds, and how what was restored differs from it.

The digest is the sum, modulo 2**256, of the SHA-256 of each key with its type, its value and
whether it expires. A sum does not depend on the order of keys, which no two servers share.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from domain.rdb import Entry

Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Keys(_Model):
    """A set of keys.

    Attributes:
        types: how many of each type.
    """

    types: Mapping[str, int] = {}
    digest: Digest = "0" * 64

    @property
    def total(self) -> int:
        return sum(self.types.values())


class RedisInventory(_Model):
    """All that a restored copy must have again.

    Attributes:
        consistency: ``snapshot``: all keys at one moment. ``per-key``: each key at its own.
        why: it is not a snapshot.
        persistent, volatile: keys without and with an expiry. The second may be gone before
            anybody can compare them, so they are counted apart.
        left_out: what the server holds beside them and the dump does not: functions, data of
            modules, keys of other logical databases.
        source_checksum: whether the server protected what it sent (``rdbchecksum yes``).
    """

    rdb_version: int = Field(ge=1)
    consistency: Literal["snapshot", "per-key"] = "snapshot"
    why: str = ""
    persistent: Keys = Keys()
    volatile: Keys = Keys()
    left_out: Mapping[str, int] = {}
    source_checksum: bool = True

    @property
    def total(self) -> int:
        return self.persistent.total + self.volatile.total


class Count:
    """An inventory in the making; its size does not depend on the number of keys."""

    def __init__(self) -> None:
        self._types: dict[bool, Counter[str]] = {False: Counter(), True: Counter()}
        self._sums = {False: 0, True: 0}

    def add(self, entry: Entry) -> None:
        volatile = entry.expires_ms is not None
        self._types[volatile][entry.kind] += 1
        self._sums[volatile] = (self._sums[volatile] + entry.digest) % (1 << 256)

    @property
    def persistent(self) -> Keys:
        return self._keys(False)

    @property
    def volatile(self) -> Keys:
        return self._keys(True)

    def _keys(self, volatile: bool) -> Keys:
        types = dict(sorted(self._types[volatile].items()))
        return Keys(types=types, digest=f"{self._sums[volatile]:064x}")


def differences(
    saved: RedisInventory, restored: RedisInventory, *, expired: int = 0
) -> tuple[str, ...]:
    """In what the restored database is not the saved one; empty when it is.

    Args:
        expired: keys that the restore left out because their time was over. Without any, the
            volatile keys must be the same too; with some, only their number can be.
    """
    return (
        *_compare("persistent", saved.persistent, restored.persistent),
        *_compare_volatile(saved.volatile, restored.volatile, expired),
    )


def _compare(name: str, saved: Keys, restored: Keys) -> Iterator[str]:
    for kind in sorted({*saved.types, *restored.types}):
        had, has = saved.types.get(kind, 0), restored.types.get(kind, 0)
        if had != has:
            yield f"{had} {name} keys of type {kind} were saved, {has} are there"
    if saved.total == restored.total and saved.digest != restored.digest:
        yield f"the {name} keys have other names or values than those that were saved"


def _compare_volatile(saved: Keys, restored: Keys, expired: int) -> Iterator[str]:
    if not expired:
        yield from _compare("volatile", saved, restored)
    elif saved.total - expired != restored.total:
        yield (
            f"{saved.total} volatile keys were saved and {expired} have expired, "
            f"but {restored.total} are there"
        )
