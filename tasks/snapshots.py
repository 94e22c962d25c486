"""RDS snapshots beside the recovery points: fast recovery inside AWS, where there is an instance.

They cannot leave AWS and are not proved by restoring, so no point counts as proved by one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE

from blocks import rds
from blocks.platform import Platform
from blocks.rds import RdsSnapshots
from blocks.vault import Vault
from domain.backup_report import CopyReport
from domain.errors import SlipwayError
from domain.rds_snapshots import Owner, Snapshot
from domain.recovery import Lineage, Member, MemberKind
from domain.retention import ALL
from domain.verdict import Verdict
from tasks.saving import Saving


@dataclass(frozen=True)
class Regions:
    """Where a platform's instance has snapshots: its own region, and those of the copies."""

    instance: str
    home: RdsSnapshots
    copies: dict[str, tuple[RdsSnapshots, str | None]]

    @property
    def everywhere(self) -> list[RdsSnapshots]:
        return [self.home, *(snapshots for snapshots, _ in self.copies.values())]


def regions_of(platform: Platform, lineage: Lineage) -> Regions | None:
    """None where the platform has no instance."""
    declared = platform.rds
    if declared is None:
        return None
    secrets = platform.backup_credentials.get_secret_value().get("rds") or {}
    owner = Owner(lineage.application, lineage.environment, lineage.name)
    found = {r: declared.snapshots(r, owner, secrets) for r in declared.keys()}  # noqa: SIM118
    home = found.pop(declared.region)
    keys = declared.keys()
    copies = {region: (snapshots, keys[region]) for region, snapshots in found.items()}
    return Regions(declared.instance, home, copies)


@task(name="begin snapshot", cache_policy=NO_CACHE)
def begin_snapshot(platform: Platform, saving: Saving) -> Snapshot | str:
    """Ask RDS first and wait later, so that its moment is near that of the dump.

    Returns:
        What was begun, or why there is none. A snapshot that fails keeps nobody from the dump.
    """
    regions = regions_of(platform, saving.primary.lineage)
    if regions is None:
        return "the platform names no RDS instance"
    try:
        return regions.home.create(regions.instance, saving.point)
    except SlipwayError as error:
        get_run_logger().error("no RDS snapshot: %s", error)
        return f"failed: {error.cause}"


@task(name="finish snapshot", cache_policy=NO_CACHE)
def finish_snapshot(platform: Platform, saving: Saving, begun: Snapshot | str) -> Member:
    """Wait until it is there; the member says of which moment it is, or why there is none."""
    regions = regions_of(platform, saving.primary.lineage)
    if isinstance(begun, str) or regions is None:
        return Member(kind=MemberKind.RDS, skipped=str(begun))
    try:
        return Member(kind=MemberKind.RDS, facts=rds.facts(regions.home.wait(begun.identifier)))
    except SlipwayError as error:
        get_run_logger().error("no RDS snapshot: %s", error)
        return Member(kind=MemberKind.RDS, skipped=f"failed: {error.cause}")


@task(name="copy snapshot", cache_policy=NO_CACHE)
def copy_snapshot(
    platform: Platform, saving: Saving, begun: Snapshot | str, member: Member
) -> tuple[list[str], list[CopyReport]]:
    """Copy it to every region that the platform names; all are begun before any is waited for.

    Returns:
        What there is now, a sentence each, and a red report for each that there is not.
    """
    regions = regions_of(platform, saving.primary.lineage)
    if regions is None:
        return [], []
    if isinstance(begun, str) or member.facts is None:
        return [], [_red("its own region", member.skipped)]
    done, red, waiting = [f"RDS snapshot {begun.identifier} in {begun.region}"], [], []
    source = regions.home.find(begun.identifier)
    for region, (snapshots, key) in regions.copies.items():
        try:
            if source is None:
                raise LookupError
            waiting.append((region, snapshots, snapshots.copy(source, key).identifier))
        except LookupError:
            red.append(_red(region, "the snapshot to copy is gone"))
        except SlipwayError as error:
            red.append(_red(region, error.cause))
    for region, snapshots, identifier in waiting:
        try:
            snapshots.wait(identifier)
            done.append(f"RDS snapshot {identifier} copied to {region}")
        except SlipwayError as error:
            red.append(_red(region, error.cause))
    return done, red


def _red(region: str, reason: str) -> CopyReport:
    return CopyReport(location=f"RDS {region}", verdict=Verdict.ERROR, reason=reason)


@task(name="expire snapshots", cache_policy=NO_CACHE)
def expire_snapshots(
    platform: Platform, vaults: Sequence[Vault], *, apply: bool
) -> tuple[list[str], list[CopyReport]]:
    """Snapshots of points that no location has any more; what is expired but not purged stays.

    Nothing goes when a location could not be listed, or everything is held.

    Returns:
        What went or would go, a sentence each, and a red report for each failure.
    """
    regions = regions_of(platform, vaults[0].lineage)
    if regions is None:
        return [], []
    try:
        if any(vault.held(ALL) for vault in vaults):
            return ["RDS snapshots stay: everything is held"], []
        copies = [copy for vault in vaults for copy in vault.copies()]
    except SlipwayError as error:
        return [], [_red("snapshots", f"nothing was deleted: {error.cause}")]
    held = {copy.point: copy.held for copy in copies if copy.held}
    kept = {copy.point for copy in copies}
    done: list[str] = []
    red: list[CopyReport] = []
    for snapshots in regions.everywhere:
        try:
            for one in snapshots.list():
                if one.point in kept:
                    continue
                if apply:
                    snapshots.delete(one.identifier, held)
                what = "deleted" if apply else "would be deleted"
                done.append(f"RDS snapshot {one.identifier} in {one.region} {what}")
        except SlipwayError as error:
            red.append(_red("snapshots", error.cause))
    return done, red
