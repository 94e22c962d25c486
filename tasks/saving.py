"""Making a recovery point: a number, its members one by one, its manifest, its copies."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from uuid import UUID

from prefect import get_run_logger, task
from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import get_client
from prefect.exceptions import ObjectNotFound

from blocks import sealing
from blocks.dump import Source
from blocks.epochs import Epochs
from blocks.kubernetes_dump import LocalClusterSource, SecretsSource, prefect_secret
from blocks.object_store import AlreadyExists
from blocks.objects_dump import ObjectsSource, Open
from blocks.objects_pool import Pool
from blocks.platform import Platform, load_platform
from blocks.postgres import database_name
from blocks.postgres_dump import GlobalsSource, PostgresSource, beat
from blocks.records import Records
from blocks.redis_dump import RedisSource
from blocks.sealing import Pace, damaged
from blocks.vault import Vault, copy_part
from domain.application import ObjectsToSave
from domain.backup_report import CopyReport, KeyReport, described
from domain.errors import Failed, SlipwayError, UsageError
from domain.journal import Release, live
from domain.recovery import (
    MAIN,
    Claim,
    CopyState,
    Lineage,
    Manifest,
    Member,
    MemberKind,
    Rung,
    newest_proved,
    point_id,
)
from domain.release import BuildRecord
from domain.units import format_bytes, format_duration
from domain.verdict import Verdict
from tasks.releasing import open_journal, run_id
from tasks.restoring import lineage_of

GO_ON_WITHIN = timedelta(hours=1)
"""How old the members of an interrupted attempt may be: older ones would not fit the new ones."""
_SHOW_EVERY_SECONDS = 2.0


@dataclass(frozen=True)
class Holder:
    """Where the data is that users write: since a failover in the other cloud.

    Attributes:
        environment: under which database, cache and cluster know it there.
    """

    platform: Platform
    environment: str


@dataclass(frozen=True)
class Saving:
    """A recovery point that is being made."""

    record: BuildRecord
    holder: Holder
    release: Release
    vaults: tuple[Vault, ...]
    claim: Claim
    recipients: dict[str, str]
    locked_until: datetime
    pace: Pace

    @property
    def primary(self) -> Vault:
        return self.vaults[0]

    @property
    def point(self) -> str:
        return point_id(self.claim.sequence)


def live_release(
    platform: Platform, application: str, environment: str
) -> tuple[Release, BuildRecord]:
    """What is live, whose application.yaml says what to save.

    Raises:
        UsageError: SLP006, nothing is live.
    """
    current = live(open_journal(platform, application, environment).history())
    if current is None:
        raise UsageError(
            "SLP006",
            f"nothing of {application} is live in {environment}, so there is nothing to save",
            help=f"release it first; see `slipway history {application} -e {environment}`",
        )
    return current, Records(platform.store).record(current.digest)


def vaults_of(
    platform: Platform, application: str, environment: str, lineage: str = MAIN
) -> tuple[Vault, ...]:
    return platform.vaults(Lineage(application, environment, lineage))


@task(name="try keys", cache_policy=NO_CACHE)
def try_keys(platform: Platform) -> list[KeyReport]:
    """Encrypt and decrypt a canary with every key that is at hand.

    A key that is kept offline cannot be tried, and is no reason to fail as long as another one
    can; without any, nothing could be proved.
    """
    secrets = platform.backup_keys.get_secret_value()
    sealing.recipients(tuple(platform.backup_recipients.values()))
    found = []
    for name, recipient in platform.backup_recipients.items():
        if name not in secrets:
            get_run_logger().info("key %s is kept offline: not tried", name)
            continue
        try:
            sealing.try_key(recipient, str(secrets[name]), name)
            found.append(KeyReport(name=name, verdict=Verdict.PASS, reason="opens a canary"))
        except SlipwayError as error:
            found.append(KeyReport(name=name, verdict=Verdict.FAIL, reason=error.cause))
    if not found:
        reason = "no private key is at hand, so no backup can be proved"
        found.append(KeyReport(name="any", verdict=Verdict.NOT_RUN, reason=reason))
    return found


def holder_of(platform: Platform, record: BuildRecord, environment: str) -> Holder:
    """Who holds the newest epoch, or the platform itself where nothing is protected.

    Since the epochs leave one side that may write, the points of both are one line.

    Raises:
        Failed: SLP203, the epoch is nobody's that is known here. Whatever else keeps the epochs
            from being read: what was saved then might be what nobody writes to any more.
    """
    application, policy = record.application, record.application.recovery
    home = Holder(platform, environment)
    if platform.epochs is None or policy is None or policy.environment != environment:
        return home
    newest = Epochs(platform.epoch_store(), application.name, environment).newest()
    if newest is None or newest.side == platform.side:
        return home
    away = load_platform(application.environment(policy.standby).platform)
    if away.side != newest.side:
        raise Failed(
            "SLP203",
            f"epoch {newest.number} of {application.name} in {environment} is {newest.side}'s, and "
            f"its standby is {away.side}",
            help="correct `recovery` in application.yaml, or the `side` of the platform block",
        )
    return Holder(away, policy.standby)


@task(name="begin point", cache_policy=NO_CACHE)
def begin_point(platform: Platform, application: str, environment: str, actor: str) -> Saving:
    """Take the next number, or go on with the point of an attempt that was interrupted.

    Raises:
        UsageError: SLP006, SLP140, SLP145. Failed: SLP101, SLP146.
    """
    release, record = live_release(platform, application, environment)
    recipients = dict(platform.backup_recipients)
    sealing.recipients(tuple(recipients.values()))
    lineage, holder = MAIN, holder_of(platform, record, environment)
    if record.application.database:
        name = database_name(application, holder.environment)
        lineage = lineage_of(holder.platform.database.admin_url(name))
    if holder.platform is not platform:
        get_run_logger().info("saving from %s, which users write to", holder.platform.side)
    vaults = vaults_of(platform, application, environment, lineage)
    now = datetime.now(UTC)
    check_clock(now, vaults[0])
    policy = record.application.backups
    return Saving(
        record=record,
        holder=holder,
        release=release,
        vaults=vaults,
        claim=_interrupted(vaults[0], now) or _claim(vaults, now, actor),
        recipients=recipients,
        locked_until=now + policy.retention + policy.grace,
        pace=Pace(platform.backup_bytes_per_second),
    )


def check_clock(now: datetime, vault: Vault, most: timedelta = timedelta(minutes=5)) -> None:
    """A point of a wrong time would displace the right ones.

    Raises:
        Failed: SLP146, our clock and the store's differ.
    """
    theirs = vault.store.clock()
    apart = abs(now - theirs)
    if apart > most:
        raise Failed(
            "SLP146",
            f"this machine's clock says {now:%Y-%m-%d %H:%M:%S} UTC, that of {vault.location} "
            f"{theirs:%Y-%m-%d %H:%M:%S}: {format_duration(apart)} apart",
            help="set the clock that is wrong, then run it again; nothing was saved or deleted",
        )


def _claim(vaults: Sequence[Vault], now: datetime, actor: str) -> Claim:
    """A number that no location has seen: one of them may have lost everything."""
    newest = 0
    for vault in vaults:
        try:
            newest = max(newest, vault.newest_sequence())
        except SlipwayError as error:
            if vault is vaults[0]:
                raise
            get_run_logger().warning("%s was not asked for its numbers: %s", vault.location, error)
    while True:
        newest += 1
        try:
            return vaults[0].claim(newest, now, actor or "unknown", run_id())
        except AlreadyExists:
            continue


def _interrupted(vault: Vault, now: datetime) -> Claim | None:
    """The newest claim, when it has no manifest and its run has ended."""
    newest = vault.newest_sequence()
    claim = vault.claim_of(newest) if newest else None
    if claim is None or vault.store.stat(vault.lineage.manifest(point_id(newest))):
        return None
    if not timedelta(0) <= now - claim.at <= GO_ON_WITHIN or is_running(claim.run):
        return None
    get_run_logger().info("going on with point %s of run %s", newest, claim.run)
    return claim


def is_running(run: str) -> bool:
    """Whether the Prefect server thinks so; a run that it does not know has ended."""
    if run == run_id():
        return False
    try:
        with get_client(sync_client=True) as client:
            state = client.read_flow_run(UUID(run)).state
    except (ValueError, ObjectNotFound):
        return False
    return state is not None and not state.is_final()


def sources(platform: Platform, saving: Saving) -> list[Source | Member]:
    """What to save, and for what is not there the reason, in the order in which it is saved.

    The database comes first: its snapshot is the point's moment, and the rest follows quickly.

    Args:
        platform: that the environment is declared for; its object stores are used on both sides.
    """
    application, environment = saving.record.application, saving.holder.environment
    there = saving.holder.platform
    found: list[Source | Member] = []
    if application.database:
        url = there.database.admin_url(database_name(application.name, environment))
        found += [PostgresSource(url, rows=False), GlobalsSource(url)]
    else:
        reason = "the application declares no database"
        found += [_skipped(MemberKind.POSTGRES, reason), _skipped(MemberKind.GLOBALS, reason)]
    if application.cache:
        found.append(RedisSource(there.redis.ensure(f"{application.name}/{environment}")))
    else:
        found.append(_skipped(MemberKind.REDIS, "the application declares no cache"))
    found.append(LocalClusterSource(there.cluster, there.edge, application.name, environment))
    declared = application.environments.get(environment)
    if declared and declared.secrets:
        found.append(SecretsSource(dict(declared.secrets), prefect_secret))
    else:
        found.append(_skipped(MemberKind.SECRETS, "the environment names no secrets"))
    if application.backups.objects:
        found.append(_objects_source(platform, saving, application.backups.objects))
    else:
        found.append(_skipped(MemberKind.OBJECTS, "the application declares no object storage"))
    return found


def _objects_source(platform: Platform, saving: Saving, declared: ObjectsToSave) -> ObjectsSource:
    """Built upon the newest index that can be read; without a key at hand all is read again.

    Raises:
        UsageError: SLP151.
    """
    pool = Pool(saving.primary)
    to = sealing.recipients(tuple(saving.recipients.values()))
    there = frozenset(pool.contents())

    def store(sha256: str, content: Open) -> None:
        pool.put(sha256, content, to, locked_until=saving.locked_until, pace=saving.pace)

    return ObjectsSource(
        platform.object_store(declared.store),
        declared.prefix,
        place=f"{declared.store}/{declared.prefix}",
        store=store,
        previous=_index_before(platform, saving.primary),
        pooled=there.__contains__,
    )


def _index_before(platform: Platform, vault: Vault) -> Open | None:
    secrets = platform.backup_keys.get_secret_value()
    for copy in reversed(vault.copies()):
        manifest = copy.manifest
        member = manifest.member(MemberKind.OBJECTS) if manifest else None
        if copy.state is not CopyState.COMPLETE or manifest is None or member is None:
            continue
        keys = sealing.identities(secrets, manifest.recipients)
        if keys:
            return partial(vault.plain, member, keys)
    return None


def _skipped(kind: MemberKind, reason: str) -> Member:
    return Member(kind=kind, skipped=reason)


@task(name="save", task_run_name="save {source.kind}", cache_policy=NO_CACHE)
def save_member(saving: Saving, source: Source) -> Member:
    """Stream one member into its place: dump | zstd | age | upload.

    What an earlier attempt of this point finished is taken as it is.

    Raises:
        SlipwayError: what the source or the store said; nothing is left under the member's key.
    """
    vault, kind = saving.primary, source.kind
    if whole := vault.recorded(saving.point, kind):
        get_run_logger().info("%s was saved before this attempt", kind)
        return whole
    if kind is MemberKind.POSTGRES:
        holder = saving.holder
        name = database_name(saving.record.application.name, holder.environment)
        beat(holder.platform.database.admin_url(name), saving.claim.sequence)
    key = vault.lineage.member(saving.point, kind)
    _drop_unrecorded(vault, key)
    to = sealing.recipients(tuple(saving.recipients.values()))
    with Shown(f"{kind} of {saving.record.application.name}") as shown, source.open() as stream:
        sealed = sealing.seal(
            stream, vault.store, key, to,
            locked_until=saving.locked_until, pace=saving.pace, progress=shown.told,
        )  # fmt: skip
        facts = stream.facts()
    if isinstance(source, ObjectsSource):
        Pool(vault).keep_needs(saving.point, source.needed)
    member = Member(kind=kind, part=sealed.part, plain_bytes=sealed.plain_bytes, facts=facts)
    get_run_logger().info(
        "%s: %s saved as %s",
        kind,
        format_bytes(member.plain_bytes),
        format_bytes(sealed.part.bytes),
    )
    return vault.record(saving.point, member)


def _drop_unrecorded(vault: Vault, key: str) -> None:
    """Bytes whose record was never written: killed in between. Their hash is not known."""
    if there := vault.store.stat(key):
        vault.store.delete(key, there.version)


@task(name="commit point", cache_policy=NO_CACHE)
def commit_point(saving: Saving, members: Sequence[Member], actor: str) -> Manifest:
    """With this the point is there."""
    lineage = saving.primary.lineage
    manifest = Manifest(
        application=lineage.application,
        environment=lineage.environment,
        lineage=lineage.name,
        sequence=saving.claim.sequence,
        started_at=saving.claim.at,
        finished_at=datetime.now(UTC),
        version=saving.release.version,
        release=saving.release.number,
        digest=saving.release.digest,
        members=tuple(members),
        recipients=saving.recipients,
        heartbeat=saving.claim.sequence if _has_beat(members) else None,
        actor=actor or "unknown",
        run=run_id(),
    )
    if not manifest.stored:
        raise UsageError(
            "SLP147",
            f"{lineage.application} declares nothing that could be saved",
            help="declare its database, cache or `backups.objects` in application.yaml",
        )
    committed = saving.primary.commit(manifest, saving.locked_until)
    get_run_logger().info("point %s: %s", committed.sequence, described(committed))
    return committed


def _has_beat(members: Sequence[Member]) -> bool:
    return any(m.kind is MemberKind.POSTGRES and m.is_stored for m in members)


@task(name="copy", task_run_name="copy to {target.location}", cache_policy=NO_CACHE)
def copy_point(saving: Saving, target: Vault, manifest: Manifest) -> CopyReport | None:
    """Bring a point to another location, manifest last.

    Returns:
        Why the copy is red, or None when all of it is there.
    """
    began = time.monotonic()
    try:
        with Shown(f"copy to {target.location}") as shown:
            for member in manifest.stored:
                assert member.part is not None
                copy_part(saving.primary, target, member.part, locked_until=saving.locked_until,
                          pace=saving.pace, progress=shown.told)  # fmt: skip
            copy_contents(saving, target, manifest)
            target.commit(manifest, saving.locked_until)
    except SlipwayError as error:
        get_run_logger().error("copy to %s: %s", target.location, error)
        return CopyReport(
            location=target.location,
            verdict=Verdict.ERROR,
            reason=f"not copied: {error.cause}",
            seconds=round(time.monotonic() - began, 3),
        )
    return None


def copy_contents(saving: Saving, target: Vault, manifest: Manifest) -> None:
    """The contents that a point needs, as far as the location lacks them; then what it needs.

    Raises:
        Failed: SLP143, the source lacks one, or does not know what the point needs.
    """
    if manifest.member(MemberKind.OBJECTS) is None:
        return
    source, here = Pool(saving.primary), Pool(target)
    needed = source.needs(manifest.point)
    if needed is None:
        where = f"{saving.primary.location}: {saving.primary.lineage.needs(manifest.point)}"
        raise damaged(where, "the list of the contents that the point needs is missing")
    for sha256 in sorted(needed - here.contents().keys()):
        here.copy_from(source, sha256, locked_until=saving.locked_until, pace=saving.pace)
    here.keep_needs(manifest.point, needed)


class Shown:
    """A progress artifact with bytes, rate and time left; updated every two seconds.

    Args:
        expected_bytes: of the whole, as far as the last time tells; 0 when nothing does.
    """

    def __init__(
        self, what: str, expected_bytes: int = 0, *, now: Callable[[], float] = time.monotonic
    ) -> None:
        self._what, self._expected, self._now = what, expected_bytes, now
        self._began, self._told = now(), now()
        self._artifact: UUID | None = None
        self._last = (0, 0)

    def __enter__(self) -> Shown:
        created = create_progress_artifact(progress=0.0, description=self._what)
        self._artifact = created if isinstance(created, UUID) else None
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self._show(100.0)

    def told(self, plain: int, stored: int) -> None:
        self._last = plain, stored
        if self._now() - self._told >= _SHOW_EVERY_SECONDS:
            self._told = self._now()
            self._show(min(99.0, 100 * plain / self._expected) if self._expected else 0.0)

    def sentence(self) -> str:
        plain, stored = self._last
        seconds = max(self._now() - self._began, 1e-3)
        text = (
            f"{self._what}: {format_bytes(plain)} read, {format_bytes(stored)} stored, "
            f"{format_bytes(plain / seconds)}/s"
        )
        if plain and self._expected > plain:
            left = (self._expected - plain) * seconds / plain
            text += f", about {format_duration(timedelta(seconds=round(left)))} left"
        return text

    def _show(self, percent: float) -> None:
        if self._artifact is None:
            return
        try:
            update_progress_artifact(self._artifact, progress=percent, description=self.sentence())
        except Exception as error:  # a server that is away must not end a backup
            get_run_logger().debug("progress not shown: %s", error)


def restorable(vaults: Sequence[Vault], needed: Rung) -> str:
    """One line about what can be brought back now, from wherever it is proved."""
    copies = [copy for vault in vaults for copy in vault.copies()]
    best = newest_proved(copies, needed)
    if best is None or best.manifest is None:
        return "nothing is proved yet"
    return f"{best.manifest.data_time:%Y-%m-%d %H:%M:%S} UTC, point {best.point} at {best.location}"
