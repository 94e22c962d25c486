"""What a side has committed and its follower never got: the changes that wait in its slot.

Decoded from PostgreSQL's logical replication messages (documentation, "Logical Replication
Message Formats", protocol version 1). Looking takes nothing out of the slot.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import psycopg

from blocks.postgres_programs import Login
from domain.errors import Failed

SHOWN = 100
_OWN_SCHEMA = "slipway"


@dataclass
class Unshipped:
    """Changes by table and kind, and the first of them in words.

    Attributes:
        counts: ``{"public.meal": {"insert": 3}}``.
        rows: a line each, at most ``SHOWN``.
    """

    counts: dict[str, dict[str, int]] = field(default_factory=dict)
    rows: list[str] = field(default_factory=list)

    @property
    def total(self) -> int:
        return sum(n for kinds in self.counts.values() for n in kinds.values())

    def sentence(self) -> str:
        told = [
            f"{n} {kind}{'s' if n != 1 else ''} in {table}"
            for table, kinds in sorted(self.counts.items())
            for kind, n in sorted(kinds.items())
        ]
        return ", ".join(told) or "nothing"


def unshipped(url: str, slot: str, publication: str) -> Unshipped | None:
    """What waits in a slot; None when the server has no such slot.

    Args:
        url: of the database that was followed, as a role that may replicate.

    Raises:
        Failed: SLP207, it cannot be read. SLP128. Unauthorised: SLP129.
    """
    login = Login(url)
    with login.connect() as connection:
        try:
            there = connection.execute(
                "SELECT 1 FROM pg_replication_slots WHERE slot_name = %s", [slot]
            ).fetchone()
            if there is None:
                return None
            rows = connection.execute(
                "SELECT data FROM pg_logical_slot_peek_binary_changes(%s, NULL, NULL, "
                "'proto_version', '1', 'publication_names', %s)",
                [slot, publication],
            ).fetchall()
        except psycopg.Error as error:
            said = login.without_secrets(" ".join(str(error).split()))
            raise Failed(
                "SLP207",
                f"what {login.place} has and its follower lacks cannot be read: {said}",
                help="see that nobody else reads the slot",
            ) from error
    return decode(bytes(row[0]) for row in rows)


def decode(messages: Iterable[bytes]) -> Unshipped:
    """Count and name the changes of a stream of messages; our own tables are left out."""
    found = Unshipped()
    tables: dict[int, tuple[str, str, list[str]]] = {}
    kinds = {b"I": "insert", b"U": "update", b"D": "delete"}
    for message in messages:
        reader = _Reader(message)
        tag = reader.take(1)
        if tag == b"R":
            oid = reader.integer(4)
            schema, table = reader.text(), reader.text()
            reader.take(1)
            columns = []
            for _ in range(reader.integer(2)):
                reader.take(1)
                columns.append(reader.text())
                reader.take(8)
            tables[oid] = (schema, table, columns)
        elif tag in kinds:
            schema, table, columns = tables[reader.integer(4)]
            if schema == _OWN_SCHEMA:
                continue
            _count(found, f"{schema}.{table}", kinds[tag])
            if len(found.rows) < SHOWN:
                reader.take(1)  # N, K or O: which tuple follows
                values = ", ".join(
                    f"{name}={value}"
                    for name, value in zip(columns, reader.values(), strict=False)
                    if value is not None
                )
                found.rows.append(f"{kinds[tag]} {schema}.{table}: {values}"[:300])
        elif tag == b"T":
            many = reader.integer(4)
            reader.take(1)
            for _ in range(many):
                schema, table, _ = tables[reader.integer(4)]
                _count(found, f"{schema}.{table}", "truncate")
    return found


def _count(found: Unshipped, table: str, kind: str) -> None:
    kinds = found.counts.setdefault(table, {})
    kinds[kind] = kinds.get(kind, 0) + 1


class _Reader:
    """Takes a message apart from left to right."""

    def __init__(self, content: bytes) -> None:
        self._content, self._at = content, 0

    def take(self, count: int) -> bytes:
        piece = self._content[self._at : self._at + count]
        self._at += count
        return piece

    def integer(self, size: int) -> int:
        return int.from_bytes(self.take(size), "big")

    def text(self) -> str:
        end = self._content.index(0, self._at)
        piece = self._content[self._at : end]
        self._at = end + 1
        return piece.decode()

    def values(self) -> list[str | None]:
        """A tuple; None for null and for what was stored apart and did not change."""
        values: list[str | None] = []
        for _ in range(self.integer(2)):
            if self.take(1) == b"t":
                values.append(self.take(self.integer(4)).decode(errors="replace"))
            else:
                values.append(None)
        return values
