"""Bringing a recovery point back, into a place of its own."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import psycopg
from prefect import get_run_logger, task
from prefect.blocks.system import Secret
from prefect.cache_policies import NO_CACHE
from pydantic import ValidationError

from blocks import objects_dump, sealing
from blocks.objects_pool import Pool
from blocks.platform import Platform
from blocks.postgres import PostgresServer
from blocks.postgres_programs import Login
from blocks.postgres_proof import inventory_of_copy
from blocks.postgres_restore import Restored, restore
from blocks.vault import Vault
from domain.errors import Failed, SlipwayError, UsageError
from domain.pg_inventory import Inventory, difference, told
from domain.recovery import (
    MAIN,
    Copy,
    CopyState,
    Member,
    MemberKind,
    Rung,
    newest_proved,
    point_id,
    proved_copies,
)
from domain.units import format_bytes

_SECRET = "secret:"
OBJECTS = "objects:"


@dataclass(frozen=True)
class Chosen:
    """The copy that a point is brought back from."""

    vault: Vault
    copy: Copy

    def sentence(self) -> str:
        manifest = self.copy.manifest
        assert manifest is not None
        return (
            f"point {manifest.sequence} of {manifest.data_time:%Y-%m-%d %H:%M:%S} UTC "
            f"({manifest.version}), from {self.vault.location}"
        )


@task(name="choose copy", cache_policy=NO_CACHE)
def choose_copy(
    vaults: Sequence[Vault], point: str, needed: Rung, *, unproved: bool = False
) -> Chosen:
    """The copy to restore from: a proved one; where several are, the most recently proved.

    Args:
        point: a number, or ``newest``.
        unproved: take a complete copy that was never restored before, when no other is there.

    Raises:
        Failed: SLP149, no such copy; the message has what each location has.
    """
    copies, seen = [], []
    by_name = {vault.location: vault for vault in vaults}
    for vault in vaults:
        try:
            here = [c for c in vault.copies() if point == "newest" or _is(c, point)]
        except SlipwayError as error:
            seen.append(f"{vault.location}: {error.cause}")
            continue
        copies += here
        if point != "newest":
            seen.append(f"{vault.location}: {here[0].reason or here[0].state if here else 'none'}")
    best = newest_proved(copies, needed)
    if best is None and unproved:
        whole = [c for c in copies if c.state is CopyState.COMPLETE]
        best = max(whole, key=lambda c: c.point, default=None)
    if best is not None:
        chosen = Chosen(by_name[best.location], best)
        get_run_logger().info("restoring %s", chosen.sentence())
        return chosen
    raise Failed(
        "SLP149",
        f"no copy of point {point} is proved up to {needed.label} ({'; '.join(seen) or 'none'})",
        help="prove it first: `slipway verify APP --point ID`; or accept one that is not with "
        "--accept-unproved",
    )


@task(name="restore objects", cache_policy=NO_CACHE)
def restore_objects(platform: Platform, chosen: Chosen, to: str) -> list[str]:
    """Write the objects of a point into another store; a second run goes on with the rest.

    Args:
        to: name of a store of the platform block.

    Raises:
        UsageError: SLP151, no such store; SLP132, another object has its name.
        Failed: SLP148, the point holds no objects; SLP134, SLP135, SLP142, SLP143.
    """
    manifest = chosen.copy.manifest
    assert manifest is not None
    member = manifest.member(MemberKind.OBJECTS)
    if member is None:
        raise Failed("SLP148", f"point {manifest.sequence} holds no objects",
                     help="see `slipway backups APP` for what each point holds")  # fmt: skip
    target = platform.object_store(to)
    secrets = platform.backup_keys.get_secret_value()
    keys = sealing.identities(secrets, manifest.recipients)
    pool = Pool(chosen.vault)
    with chosen.vault.plain(member, keys) as index:
        done = objects_dump.restore(index, lambda sha256: pool.fetch(sha256, keys), target)
    return [
        f"{done.written} objects written to {to}, {done.present} were there already",
        f"{format_bytes(done.bytes)} in all",
    ]


DAMAGES_OF_COPIES = ("SLP101", "SLP142", "SLP143")
"""It could not be read, is for other keys, or is not what was saved: another one may be well."""


def copies_to_try(vaults: Sequence[Vault], needed: Rung) -> Iterator[Chosen]:
    """Every proved copy, the best first; a location that does not answer has none.

    Lazy, so that nobody waits for a second location when the first one's copy is whole.

    Args:
        vaults: in the order of preference; the first that has a proved copy gives the first copy,
            whatever newer ones others have. After that the newest data counts.
    """
    given: set[tuple[str, str]] = set()
    for vault in vaults:
        for copy in proved_copies(_copies(vault), needed)[:1]:
            given.add((copy.location, copy.point))
            yield Chosen(vault, copy)
        if given:
            break
    by_name = {vault.location: vault for vault in vaults}
    everywhere = [copy for vault in vaults for copy in _copies(vault)]
    for copy in proved_copies(everywhere, needed):
        if (copy.location, copy.point) not in given:
            yield Chosen(by_name[copy.location], copy)


def _copies(vault: Vault) -> tuple[Copy, ...]:
    try:
        return vault.copies()
    except SlipwayError as error:
        get_run_logger().warning("%s was not asked for its copies: %s", vault.location, error)
        return ()


def first_whole(
    copies: Iterable[Chosen], bring_back: Callable[[Chosen], float]
) -> tuple[Chosen, list[str]]:
    """Restore the first copy that turns out to be whole.

    Args:
        bring_back: restores one into a place that is as it was when it raises; seconds.

    Returns:
        The copy, and a sentence for each that was tried.

    Raises:
        Failed: SLP149, none was; or what ``bring_back`` raises for another reason than the copy.
    """
    told: list[str] = []
    for chosen in copies:
        try:
            seconds = bring_back(chosen)
        except Failed as error:
            if error.code not in DAMAGES_OF_COPIES:
                raise
            told.append(f"{chosen.sentence()} is of no use: {error.cause}")
            get_run_logger().error(told[-1])
            continue
        return chosen, [*told, f"restored {chosen.sentence()} in {seconds:.1f} s"]
    raise Failed("SLP149", f"no copy could be restored: {'; '.join(told) or 'none is proved'}",
                 help="see `slipway backups APP` for what each location has")  # fmt: skip


def _is(copy: Copy, point: str) -> bool:
    return point.isdigit() and copy.point == point_id(int(point))


@task(name="restore", cache_policy=NO_CACHE)
def restore_database(
    platform: Platform, chosen: Chosen, to: str, *, replace: bool = False
) -> list[str]:
    """Restore the database, mark it as a restored one, compare it with what was saved.

    Args:
        to: name of a database on the platform's restore server, which is made; or
            ``secret:BLOCK``, a Prefect Secret that holds the URL of an empty database.

    Returns:
        What was done, a sentence each.

    Raises:
        UsageError: SLP123, it is not empty; SLP133, there is no such place.
        Failed: SLP122, SLP124, SLP142, SLP143: the target is as it was.
    """
    manifest = chosen.copy.manifest
    assert manifest is not None
    member = manifest.member(MemberKind.POSTGRES)
    if member is None or member.facts is None:
        raise Failed("SLP148", f"point {manifest.sequence} holds no database",
                     help="see `slipway backups APP` for what each point holds")  # fmt: skip
    url, admin = target_url(platform, to)
    secrets = platform.backup_keys.get_secret_value()
    keys = sealing.identities(secrets, manifest.recipients)
    expected = recorded_inventory(member, f"{chosen.vault.location}: point {manifest.sequence}")
    with chosen.vault.plain(member, keys) as plain:
        restored = restore(plain, url, expected=expected, owners=False, replace=replace,
                           admin_url=admin)  # fmt: skip
    compared = _compared(url, restored.inventory)
    lineage = f"restored-{manifest.point}"
    set_lineage(url, lineage)
    place = Login(url).place
    return [
        f"{place}: {format_bytes(member.plain_bytes)} in {restored.seconds:.1f} s",
        compared,
        f"its own backups go to lineage {lineage}, never to that of {manifest.application}",
        *_kept(restored),
    ]


def recorded_inventory(member: Member, where: str) -> Inventory:
    """What a restored copy must have again.

    Raises:
        Failed: SLP143, the record is not understood.
    """
    try:
        return Inventory.model_validate(dict(member.facts.inventory) if member.facts else {})
    except ValidationError as error:
        first = error.errors()[0]
        what = f"its inventory is not understood ({first['loc']}: {first['msg']})"
        raise sealing.damaged(where, what) from error


def _kept(restored: Restored) -> list[str]:
    return [f"what was there before is kept as database {restored.kept}"] if restored.kept else []


def _compared(url: str, saved: Inventory) -> str:
    """The restored database, dumped once more, against the archive that it was made of."""
    found = inventory_of_copy(url, saved)
    if differences := difference(saved, found, privileges=False):
        raise Failed(
            "SLP124",
            f"the restored database is not what was saved: {told(differences)}",
            help="use another copy of the point; do not give this database to an application",
        )
    return f"{len(found.tables)} tables and {found.rows} rows are as they were saved"


def target_url(platform: Platform, to: str) -> tuple[str, str | None]:
    """The URL to restore into, and that of a role that may make databases there.

    Raises:
        UsageError: SLP150, ``to`` names no place, or would show a password to everybody.
    """
    if to.startswith(_SECRET):
        block = to.removeprefix(_SECRET)
        try:
            return str(Secret.load(block).get()), None  # type: ignore[union-attr]
        except ValueError as error:
            raise _nowhere(f"the Prefect server has no secret block {block!r}") from error
    if "://" in to or "@" in to:
        raise _nowhere("a URL would be stored in clear with the run")
    if not re.fullmatch(r"[a-z][a-z0-9_]{0,62}", to):
        raise _nowhere(f"{to!r} is no name of a database: use lower-case letters, digits and _")
    server = platform.restore_url.get_secret_value()
    if not server:
        raise _nowhere("the platform names no server to restore to (restore_url)")
    return PostgresServer(server).ensure(to), PostgresServer(server).admin_url("postgres")


def _nowhere(seen: str) -> UsageError:
    return UsageError(
        "SLP150",
        f"there is nowhere to restore to: {seen}",
        help="give the name of a new database, or secret:BLOCK, a Prefect Secret that holds the "
        "URL of an empty one",
    )


# A restored database has a line of recovery points of its own

_LINEAGE = """
CREATE SCHEMA IF NOT EXISTS slipway;
CREATE TABLE IF NOT EXISTS slipway.lineage (
    name text NOT NULL, since timestamptz NOT NULL DEFAULT clock_timestamp()
);
"""


def set_lineage(url: str, name: str) -> None:
    """From now on backups of this database are kept apart from those it was restored from.

    Two databases that write one line of points have destroyed backups elsewhere
    (plugin-barman-cloud#263).
    """
    login = Login(url)
    with login.connect() as connection:
        try:
            connection.execute(_LINEAGE)
            connection.execute("INSERT INTO slipway.lineage (name) VALUES (%s)", [name])
        except psycopg.Error as error:
            raise login.refused(error) from error


def lineage_of(url: str) -> str:
    """The line that backups of a database belong to; ``main`` for one never restored."""
    login = Login(url)
    with login.connect() as connection:
        try:
            there = connection.execute("SELECT to_regclass('slipway.lineage')").fetchone()
            if there is None or there[0] is None:
                return MAIN
            row = connection.execute(
                "SELECT name FROM slipway.lineage ORDER BY since DESC LIMIT 1"
            ).fetchone()
        except psycopg.Error as error:
            raise login.refused(error) from error
    return str(row[0]) if row else MAIN
