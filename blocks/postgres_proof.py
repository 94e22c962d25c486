"""Proves an archive by restoring it, and proves the prover with damaged twins.

The rungs of ``domain.recovery.Rung`` that are PostgreSQL's own: PARSED (the archive is whole and
is what was recorded when it was made), RESTORED (a server took all of it) and CONTENT_HASHED
(the restored copy, dumped again and hashed by the same reader, is what was saved). Each needs the
one below.
"""

from __future__ import annotations

import io
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta

import psycopg
from pydantic import AwareDatetime, BaseModel, ConfigDict

from blocks.disposable_postgres import DisposableServer
from blocks.postgres_dump import PostgresSource, newest_beat
from blocks.postgres_programs import Login
from blocks.postgres_restore import PIECE_BYTES, Reader, restore, restore_globals
from domain.errors import Failed
from domain.pg_archive import ArchiveReader, Sample, digest_of_rows
from domain.pg_damage import Twin, damaged
from domain.pg_inventory import (
    Difference,
    Inventory,
    TableData,
    archive_differences,
    difference,
    same_columns,
    told,
)
from domain.recovery import Rung
from domain.verdict import Verdict, worst

_WHOLE = "undamaged"


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class RungSeen(_Model):
    """One rung: whether it holds, why, and how long it took."""

    rung: Rung
    verdict: Verdict
    seconds: float
    reason: str


class PostgresProof(_Model):
    """What was seen of one archive.

    Attributes:
        rungs: from the lowest; the one that failed is the last that ran.
        differences: between what was saved and the restored copy.
        code: of the error that ended it, where one did.
        newest_beat: time of the newest heartbeat in the restored copy, by its server's clock.
        beat_sequence: its number.
        beat_age: ``data_time`` less ``newest_beat``: what the copy lacks at least, and the
            recovery point actually achieved if the system was lost at ``data_time``.
        notes: what was left out or refused without being a fault.
    """

    rungs: tuple[RungSeen, ...]
    differences: tuple[Difference, ...] = ()
    code: str | None = None
    newest_beat: AwareDatetime | None = None
    beat_sequence: int | None = None
    beat_age: timedelta | None = None
    notes: tuple[str, ...] = ()

    @property
    def verdict(self) -> Verdict:
        """``pass`` only when all three rungs were climbed."""
        return worst(seen.verdict for seen in self.rungs)

    @property
    def proved(self) -> tuple[Rung, ...]:
        return tuple(seen.rung for seen in self.rungs if seen.verdict.advances)

    @property
    def restore_seconds(self) -> float | None:
        """For the recovery time: of the restore alone."""
        return next((s.seconds for s in self.rungs if s.rung is Rung.RESTORED), None)


class TwinSeen(_Model):
    """What the verifier said of one twin.

    Attributes:
        verdict: ``pass`` when it refused the twin for one of the right reasons (and took the
            undamaged one), ``fail`` when it did not: alarm. ``not_run``: this database has
            nothing that could be damaged so.
    """

    name: str
    verdict: Verdict
    reason: str
    seconds: float


def prove(
    archive: Reader,
    expected: Inventory,
    server: DisposableServer,
    *,
    data_time: datetime,
    globals_text: str | None = None,
    keep: str | None = None,
) -> PostgresProof:
    """Climb the three rungs with an archive.

    Args:
        archive: read once, from its beginning.
        expected: the inventory recorded at dump time.
        server: of at least ``expected``'s version; see ``server_for``.
        globals_text: the saved roles; without them owners and grants are neither restored nor
            compared, which the notes say.
        keep: name under which the restored database stays in ``server`` for the application's
            own probe; without it, it is dropped.
    """
    return _Climb(server, expected, data_time).climb(archive, globals_text, keep, whole=True)


def server_for(
    expected: Inventory, *, tcp: bool = False, lifetime_seconds: float = 3600
) -> DisposableServer:
    """A server that can take the archive: of the dumped server's version or that of its pg_dump."""
    major = max(expected.server_major, expected.dump_major)
    return DisposableServer(major=major, tcp=tcp, lifetime_seconds=lifetime_seconds)


def prove_verifier(sample: Sample, server: DisposableServer) -> tuple[TwinSeen, ...]:
    """Feed the verifier a small whole archive, which it must take, and twins, which it must not.

    The check of the archive against its record would find nearly all of them before the restore.
    Here that is done apart, and the restored copy is then hashed all the same, so that both nets
    are tried.

    Args:
        sample: of the archive whose proof is to be believed.
    """
    whole = sample.to_bytes()
    expected = inventory_of(whole)
    seen = [_whole_twin(whole, expected, server)]
    for twin in damaged(sample):
        if twin.content is None:
            seen.append(
                TwinSeen(name=twin.name, verdict=Verdict.NOT_RUN, reason=twin.why_not, seconds=0)
            )
        else:
            seen.append(_judged(twin, twin.content, expected, server))
    return tuple(seen)


def verifier_verdict(seen: tuple[TwinSeen, ...]) -> Verdict:
    """Whether the verifier may be believed: no twin passed, and enough of them were tried.

    A database with no sequence has no swapped one to find, and that is no fault; without a flipped
    byte or a missing table, though, nothing was shown.
    """
    ran = {twin.name for twin in seen if twin.verdict is not Verdict.NOT_RUN}
    if not {_WHOLE, "empty file", "truncated", "flipped byte", "missing table"} <= ran:
        return Verdict.TOO_FEW
    return worst(twin.verdict for twin in seen if twin.verdict is not Verdict.NOT_RUN)


def inventory_of(archive: bytes) -> Inventory:
    """Of an archive in memory.

    Raises:
        Failed: SLP122.
    """
    reader = ArchiveReader()
    reader.feed(archive)
    return reader.close()


def _whole_twin(whole: bytes, expected: Inventory, server: DisposableServer) -> TwinSeen:
    proof, seconds = _proved(whole, expected, server)
    good = proof.verdict is Verdict.PASS
    return TwinSeen(
        name=_WHOLE,
        verdict=Verdict.PASS if good else Verdict.FAIL,
        reason="taken, as it must be" if good else f"refused although whole: {_last(proof)}",
        seconds=seconds,
    )


def _judged(twin: Twin, content: bytes, expected: Inventory, server: DisposableServer) -> TwinSeen:
    proof, seconds = _proved(content, expected, server)
    found = {d.kind.value for d in proof.differences} | ({proof.code} if proof.code else set())
    missed = [] if found & twin.reasons else ["the restored copy"]
    if twin.at_restore and not archive_differences(expected, inventory_of(content)):
        missed.append("the archive's record")
    if proof.verdict is Verdict.PASS or missed:
        reason = f"PASSED or was not understood by {' and '.join(missed)}: {_last(proof)}"
        return TwinSeen(name=twin.name, verdict=Verdict.FAIL, reason=reason, seconds=seconds)
    return TwinSeen(
        name=twin.name, verdict=Verdict.PASS, reason=f"refused: {_last(proof)}", seconds=seconds
    )


def _proved(
    content: bytes, expected: Inventory, server: DisposableServer
) -> tuple[PostgresProof, float]:
    began = time.monotonic()
    climb = _Climb(server, expected, None)
    proof = climb.climb(io.BytesIO(content), None, None, whole=False)
    return proof, time.monotonic() - began


def _last(proof: PostgresProof) -> str:
    return proof.rungs[-1].reason


@dataclass
class _Climb:
    server: DisposableServer
    expected: Inventory
    data_time: datetime | None

    def climb(
        self, archive: Reader, globals_text: str | None, keep: str | None, *, whole: bool
    ) -> PostgresProof:
        """With ``whole``, the archive must be what was recorded before anything is committed."""
        notes: list[str] = []
        if globals_text is None:
            notes.append("owners and grants were not restored: there are no saved roles")
        else:
            try:
                notes += restore_globals(globals_text, self.server.url)
            except Failed as error:
                return _failed([], Rung.RESTORED, 0.0, error, notes)
        with self._database(keep) as url:
            began = time.monotonic()
            try:
                restored = restore(
                    archive, url,
                    expected=self.expected if whole else None, owners=globals_text is not None,
                )  # fmt: skip
            except Failed as error:
                return self._not_restored(error, time.monotonic() - began, notes)
            rungs = [
                _passed(Rung.PARSED, restored.parse_seconds, _summary(restored.inventory)),
                _passed(
                    Rung.RESTORED, restored.seconds, f"by pg_restore {restored.program} into "
                    f"PostgreSQL {self.server.version}",
                ),
            ]  # fmt: skip
            # It is what was recorded, to the byte; now its rows are known too.
            expected = restored.inventory if whole else self.expected
            return self._compared(url, expected, rungs, notes, privileges=globals_text is not None)

    @contextmanager
    def _database(self, keep: str | None) -> Iterator[str]:
        name = keep or "proof"
        self.server.drop(name)
        yield self.server.database(name, encoding=self.expected.encoding)
        if not keep:
            self.server.drop(name)

    def _not_restored(self, error: Failed, seconds: float, notes: list[str]) -> PostgresProof:
        if error.code == "SLP122":
            return _failed([], Rung.PARSED, seconds, error, notes)
        parsed = _passed(Rung.PARSED, 0.0, "what was read before the restore ended is whole")
        return _failed([parsed], Rung.RESTORED, seconds, error, notes)

    def _compared(
        self, url: str, expected: Inventory, rungs: list[RungSeen], notes: list[str], *,
        privileges: bool,
    ) -> PostgresProof:  # fmt: skip
        began = time.monotonic()
        try:
            found = inventory_of_copy(url, expected)
            newest = newest_beat(url)
        except Failed as error:
            return _failed(rungs, Rung.CONTENT_HASHED, time.monotonic() - began, error, notes)
        differences = difference(expected, found, privileges=privileges)
        seconds = time.monotonic() - began
        if differences:
            last = RungSeen(
                rung=Rung.CONTENT_HASHED, verdict=Verdict.FAIL, seconds=seconds,
                reason=told(differences),
            )  # fmt: skip
        else:
            last = _passed(Rung.CONTENT_HASHED, seconds, f"{_summary(found)}, all as saved")
        age = self.data_time - newest.at if newest and self.data_time else None
        return PostgresProof(
            rungs=(*rungs, last),
            differences=differences,
            newest_beat=newest.at if newest else None,
            beat_sequence=newest.sequence if newest else None,
            beat_age=age,
            notes=tuple(notes),
        )


def _passed(rung: Rung, seconds: float, reason: str) -> RungSeen:
    return RungSeen(rung=rung, verdict=Verdict.PASS, seconds=seconds, reason=reason)


def _failed(
    below: list[RungSeen], rung: Rung, seconds: float, error: Failed, notes: list[str]
) -> PostgresProof:
    seen = RungSeen(rung=rung, verdict=Verdict.FAIL, seconds=seconds, reason=error.cause)
    return PostgresProof(rungs=(*below, seen), code=error.code, notes=tuple(notes))


def _summary(inventory: Inventory) -> str:
    return (
        f"{len(inventory.tables)} tables, {inventory.rows} rows, "
        f"{len(inventory.sequences)} sequences"
    )


def inventory_of_copy(url: str, expected: Inventory) -> Inventory:
    """What a restored copy holds, dumped again by the way of a backup.

    Tables whose columns came back in another order are hashed in that of ``expected``: those that
    inherit columns get these in the order of a new table, and so another text of the same rows.
    """
    found = _dumped(url)
    tables = dict(found.tables)
    for name, was in expected.tables.items():
        now = tables.get(name)
        if now and now.columns != was.columns and same_columns(now.columns, was.columns):
            tables[name] = _hashed(url, name, was.columns, expected.encoding)
    return found.model_copy(update={"tables": tables})


def _dumped(url: str) -> Inventory:
    with PostgresSource(url).open() as stream:
        while stream.read(PIECE_BYTES):
            pass
        return stream.inventory()


def _hashed(url: str, name: str, columns: str, encoding: str) -> TableData:
    login = Login(url)
    with login.connect() as connection:
        try:
            # As pg_dump sets them, and as the environment of its program does.
            connection.execute(
                "SET datestyle = ISO; SET intervalstyle = postgres; SET extra_float_digits = 3;"
                "SET timezone = 'UTC'; SET bytea_output = hex; SET xmlbinary = base64;"
                "SET search_path = ''"
            )
            connection.execute("SELECT set_config('client_encoding', %s, false)", [encoding])
            # Both names are as pg_dump quoted them.
            statement = f"COPY {name} {columns} TO STDOUT".encode()
            with connection.cursor().copy(statement) as rows:
                return digest_of_rows((bytes(row) for row in rows), columns)
        except psycopg.Error as error:
            raise login.refused(error) from error
