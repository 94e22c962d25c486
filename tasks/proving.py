"""Climbing the proof ladder with one copy of one recovery point."""

from __future__ import annotations

import hashlib
import random
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE

from blocks import sealing
from blocks.commands import Ended
from blocks.disposable_postgres import DisposableServer
from blocks.objects_dump import read_index
from blocks.objects_pool import Pool
from blocks.platform import Platform
from blocks.postgres_proof import PostgresProof, prove, prove_verifier, server_for, verifier_verdict
from blocks.records import Records
from blocks.redis_dump import compare as redis_compare
from blocks.redis_dump import inspect
from blocks.redis_dump import restore as redis_restore
from blocks.redis_programs import disposable, find_server
from blocks.sealing import Readable, damaged
from blocks.vault import Vault, manifest_sha256
from domain.application import Backups
from domain.backup_report import CopyReport, copy_of_proof
from domain.errors import Failed, SlipwayError, UsageError
from domain.pg_archive import ArchiveReader, Sample
from domain.recovery import (
    CopyState,
    Manifest,
    Member,
    MemberKind,
    Proof,
    Rung,
    RungResult,
    TwinResult,
    point_id,
)
from domain.redis_inventory import RedisInventory, differences
from domain.verdict import Verdict
from tasks.databases import run_probe
from tasks.releasing import run_id
from tasks.restoring import recorded_inventory

_PIECE_BYTES = 1 << 20
_SAMPLED_CONTENTS = 50
_HOLD = timedelta(hours=1)
"""No restored key expires while it is compared."""
"""Read whole and hashed in each proof; that all of them are there is seen from the listing."""
_SAMPLE_ROWS = 20
_NOT_AS_SAVED = frozenset({"SLP122", "SLP131", "SLP142", "SLP143"})


def needed_rung(policy: Backups) -> Rung:
    """How high a copy must climb to count: as high as there is a way to."""
    return Rung.PROBED if policy.probe else Rung.CONTENT_HASHED


@task(name="choose point", cache_policy=NO_CACHE)
def choose_point(vaults: Sequence[Vault], wanted: str) -> str:
    """The number of the point that is meant.

    Args:
        wanted: a number, ``newest``, or ``random``: any complete one but the newest.

    Raises:
        UsageError: SLP144, there is none. Failed: SLP101.
    """
    seen = set[str]()
    for vault in vaults:
        try:
            seen |= {c.point for c in vault.copies() if c.state is CopyState.COMPLETE}
        except SlipwayError as error:
            get_run_logger().error("%s: %s", vault.location, error)
    points = sorted(seen)
    if wanted == "newest" and points:
        return points[-1]
    if wanted == "random" and points:
        return random.choice(points[:-1] or points)
    if wanted.isdigit() and point_id(int(wanted)) in seen:
        return point_id(int(wanted))
    there = ", ".join(points[-5:]) or "none"
    raise UsageError(
        "SLP144",
        f"looked for recovery point {wanted}; complete at some location are: {there}",
        help="see `slipway backups APP`",
    )


def prove_copies(
    platform: Platform, vaults: Sequence[Vault], point: str, needed: Rung
) -> list[CopyReport]:
    """Every copy of a point climbs; the verifier is tried with twins of the first one restored."""
    twins: tuple[TwinResult, ...] = ()
    reports = []
    for vault in vaults:
        report, twins = prove_copy(platform, vault, point, needed, twins)
        reports.append(report)
    return reports


@task(name="prove", task_run_name="prove {point} at {vault.location}", cache_policy=NO_CACHE)
def prove_copy(
    platform: Platform,
    vault: Vault,
    point: str,
    needed: Rung,
    twins: tuple[TwinResult, ...] = (),
) -> tuple[CopyReport, tuple[TwinResult, ...]]:
    """Climb as high as it goes, keep the proof at the location, say how it ended.

    An error is a verdict: one location that cannot be read must not keep the others unproved.

    Args:
        twins: what the verifier made of damaged twins in this run; without, it is tried first.
    """
    began = time.monotonic()
    try:
        copy = vault.copy(point)
        if copy.manifest is None or copy.state is not CopyState.COMPLETE:
            raise damaged(f"{vault.location}: point {point}", copy.reason or copy.state)
        proof = Climb(platform, vault, copy.manifest, twins).proof()
        vault.prove(proof)
    except SlipwayError as error:
        red = CopyReport(
            location=vault.location,
            verdict=Verdict.ERROR,
            reason=f"not proved: {error.cause}",
            seconds=round(time.monotonic() - began, 3),
        )
        return red, twins
    report = copy_of_proof(proof, needed, copy.manifest.stored_bytes, time.monotonic() - began)
    log = get_run_logger()
    (log.info if report.verdict is Verdict.PASS else log.error)(
        "%s: %s, %s", vault.location, report.verdict, report.reason
    )
    return report, proof.twins


class Climb:
    """One climb; the first rung that does not hold ends it."""

    def __init__(
        self,
        platform: Platform,
        vault: Vault,
        manifest: Manifest,
        twins: tuple[TwinResult, ...] = (),
    ) -> None:
        self._platform, self._vault, self._manifest = platform, vault, manifest
        secrets = platform.backup_keys.get_secret_value()
        self._keys = sealing.identities(secrets, manifest.recipients)
        self._rungs: list[RungResult] = []
        self._twins = twins
        self._restored: float | None = None
        self._lost: float | None = None

    def proof(self) -> Proof:
        """Everything that was found out, whatever that was."""
        self._passed(Rung.UPLOADED, "all parts are listed with their sizes", 0.0)
        try:
            self._read_back()
            postgres = self._manifest.member(MemberKind.POSTGRES)
            if postgres is None:
                self._opened()
            else:
                self._restore(postgres)
        except SlipwayError as error:
            self._failed(error)
        lineage = self._vault.lineage
        return Proof(
            application=lineage.application,
            environment=lineage.environment,
            lineage=lineage.name,
            point=self._manifest.point,
            location=self._vault.location,
            manifest_sha256=manifest_sha256(self._manifest),
            at=datetime.now(UTC),
            run=run_id(),
            rungs=tuple(self._rungs),
            twins=self._twins,
            restore_seconds=self._restored,
            lost_seconds=self._lost,
        )

    def _read_back(self) -> None:
        began, count = time.monotonic(), 0
        for member in self._manifest.stored:
            assert member.part is not None
            with self._vault.open(member.part) as content:
                while data := content.read(_PIECE_BYTES):
                    count += len(data)
        self._passed(Rung.READ_BACK, f"{count:,} bytes with the right SHA-256", _since(began))

    def _opened(self) -> None:
        """A point without a database: every member opens, and holds what was saved."""
        began = time.monotonic()
        self._open_others()
        self._passed(Rung.PARSED, "every member opens and holds what was saved", _since(began))
        raise Failed("SLP148", "there is no database in this point that could be restored",
                     help="nothing to do: such a point is proved up to `parsed`")  # fmt: skip

    def _open_others(self) -> None:
        """Members that no PostgreSQL takes.

        Raises:
            Failed: SLP131, SLP142, SLP143, one of them is not what was saved.
        """
        for member in self._manifest.stored:
            if member.kind is MemberKind.REDIS:
                self._count_keys(member)
            elif member.kind is MemberKind.OBJECTS:
                self._check_objects(member)
            elif member.kind not in (MemberKind.POSTGRES, MemberKind.GLOBALS):
                self._read_whole(member)

    def _count_keys(self, member: Member) -> None:
        assert member.facts is not None
        saved = RedisInventory.model_validate(dict(member.facts.inventory))
        with self._vault.plain(member, self._keys) as plain:
            found = inspect(plain.read)
            while plain.read(_PIECE_BYTES):
                pass
        if apart := differences(saved, found):
            raise damaged(f"{self._vault.location}: redis", apart[0])
        self._restore_keys(member, saved)

    def _restore_keys(self, member: Member, saved: RedisInventory) -> None:
        """Every key into a server of its own, dumped again and compared.

        Raises:
            Failed: SLP143, it is not what was saved; SLP130, SLP131.
        """
        program = find_server()
        if program is None:
            get_run_logger().warning("no redis-server is here: Redis was only read and counted")
            return
        with disposable(program) as url:
            with self._vault.plain(member, self._keys) as plain:
                done = redis_restore(plain.read, url, hold_expiry=_HOLD)
                while plain.read(_PIECE_BYTES):
                    pass
            if apart := redis_compare(saved, url, expired=done.expired):
                raise damaged(f"{self._vault.location}: redis", apart[0])

    def _check_objects(self, member: Member) -> None:
        """The index is the one that was saved, its contents are there, and a sample is whole."""
        where = f"{self._vault.location}: objects"
        with self._vault.plain(member, self._keys) as plain:
            wanted = {saved.sha256: saved.bytes for saved in read_index(plain)}
        pool = Pool(self._vault)
        there = pool.sizes()
        if missing := sorted(wanted.keys() - there.keys()):
            raise damaged(where, f"{len(missing)} of {len(wanted)} contents are missing in the "
                          f"pool, {missing[0][:12]} among them")  # fmt: skip
        if pool.needs(self._manifest.point) != wanted.keys():
            raise damaged(where, "what retention keeps for it is not what its index needs")
        chance = random.Random(self._manifest.sequence)
        for sha256 in chance.sample(sorted(wanted), min(_SAMPLED_CONTENTS, len(wanted))):
            self._check_content(pool, sha256, wanted[sha256], where)

    def _check_content(self, pool: Pool, sha256: str, size: int, where: str) -> None:
        hashed, count = hashlib.sha256(), 0
        with pool.fetch(sha256, self._keys) as content:
            while piece := content.read(_PIECE_BYTES):
                hashed.update(piece)
                count += len(piece)
        if (count, hashed.hexdigest()) != (size, sha256):
            raise damaged(where, f"content {sha256[:12]} is not what was saved")

    def _read_whole(self, member: Member) -> bytes:
        assert member.part is not None
        pieces = []
        with self._vault.plain(member, self._keys) as plain:
            while piece := plain.read(_PIECE_BYTES):
                pieces.append(piece if member.plain_bytes <= 64 << 20 else b"")
        return b"".join(pieces)

    def _restore(self, postgres: Member) -> None:
        assert postgres.facts is not None
        where = f"{self._vault.location}: point {self._manifest.sequence}"
        expected = recorded_inventory(postgres, where)
        self._open_others()
        roles = self._manifest.member(MemberKind.GLOBALS)
        text = self._read_whole(roles).decode() if roles else None
        probe = self._probe()
        with server_for(expected, tcp=probe is not None) as server:
            with self._vault.plain(postgres, self._keys) as plain:
                sampled = _Sampled(plain)
                seen = prove(sampled, expected, server, globals_text=text,
                             data_time=postgres.facts.data_time,
                             keep="probed" if probe else None)  # fmt: skip
            self._take(seen)
            if seen.verdict is Verdict.PASS:
                self._twins = self._twins or _twins(sampled.sample(), server)
            if probe and seen.verdict is Verdict.PASS:
                self._probed(probe, server)

    def _take(self, seen: PostgresProof) -> None:
        self._rungs += [
            RungResult(rung=r.rung, verdict=r.verdict, reason=r.reason, seconds=r.seconds)
            for r in seen.rungs
        ]
        self._restored = seen.restore_seconds
        self._lost = seen.beat_age.total_seconds() if seen.beat_age is not None else None

    def _probe(self) -> Callable[[str], Ended] | None:
        """Runs the application's own check against the URL of a restored copy."""
        record = Records(self._platform.store).record(self._manifest.digest)
        policy = record.application.backups
        if policy.probe is None:
            return None
        command = policy.probe
        return lambda url: run_probe(self._platform, record, command, url)

    def _probed(self, probe: Callable[[str], Ended], server: DisposableServer) -> None:
        began = time.monotonic()
        ended = probe(server.url_of("probed"))
        last = ended.tail.strip().splitlines()[-1:] or ["it said nothing"]
        code = ended.code
        if code == 0:
            self._passed(Rung.PROBED, f"the application works with it: {last[0]}", _since(began))
            return
        how = "did not end in time" if code is None else f"ended with {code}"
        self._rungs.append(
            RungResult(rung=Rung.PROBED, verdict=Verdict.FAIL, seconds=_since(began),
                       reason=f"its probe {how}: {last[0]}")
        )  # fmt: skip

    def _passed(self, rung: Rung, reason: str, seconds: float) -> None:
        self._rungs.append(
            RungResult(rung=rung, verdict=Verdict.PASS, reason=reason, seconds=seconds)
        )

    def _failed(self, error: SlipwayError) -> None:
        rung = Rung(min(len(self._rungs) + 1, max(Rung)))
        verdict = (
            Verdict.FAIL
            if error.code in ("SLP122", "SLP131", "SLP142", "SLP143")
            else Verdict.ERROR
        )
        if error.code == "SLP148":
            verdict = Verdict.NOT_RUN
        self._rungs.append(RungResult(rung=rung, verdict=verdict, reason=error.cause, seconds=0.0))


class _Sampled:
    """Keeps a small copy of the archive that passes, for the damaged twins."""

    def __init__(self, archive: Readable) -> None:
        self._archive, self._reader = archive, ArchiveReader(sample_rows=_SAMPLE_ROWS)
        self._ended = False

    def read(self, size: int, /) -> bytes:
        data = self._archive.read(size)
        if data:
            self._reader.feed(data)
        elif not self._ended:
            self._ended = True
            self._reader.close()
        return data

    def sample(self) -> Sample:
        return self._reader.sample()


def _twins(sample: Sample, server: DisposableServer) -> tuple[TwinResult, ...]:
    """What the verifier says of damaged twins; one that could not be made was not caught."""
    seen = prove_verifier(sample, server)
    if verifier_verdict(seen) is Verdict.TOO_FEW:
        return (TwinResult(name="any", caught=False, reason="too few twins could be made"),)
    return tuple(
        TwinResult(name=twin.name, caught=twin.verdict is Verdict.PASS, reason=twin.reason)
        for twin in seen
        if twin.verdict is not Verdict.NOT_RUN
    )


def _since(began: float) -> float:
    return round(time.monotonic() - began, 3)
