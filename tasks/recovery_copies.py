"""Which copy is restored on the day, and restoring it."""

from __future__ import annotations

import time
from collections.abc import Iterator

from blocks import sealing
from blocks.platform import Platform
from blocks.postgres_restore import restore
from domain.application import Recovery
from domain.errors import Failed
from domain.recovery import MemberKind
from domain.release import BuildRecord
from tasks.proving import needed_rung
from tasks.restoring import Chosen, choose_copy, copies_to_try, recorded_inventory
from tasks.saving import vaults_of


def restore_copy(platform: Platform, chosen: Chosen, url: str) -> float:
    """The database of a point into an empty one; returns how many seconds it took."""
    manifest = chosen.copy.manifest
    assert manifest is not None
    member = manifest.member(MemberKind.POSTGRES)
    if member is None or member.facts is None:
        raise Failed("SLP148", f"point {manifest.sequence} holds no database",
                     help="see `slipway backups APP` for what each point holds")  # fmt: skip
    secrets = platform.backup_keys.get_secret_value()
    keys = sealing.identities(secrets, manifest.recipients)
    expected = recorded_inventory(member, f"{chosen.vault.location}: point {manifest.sequence}")
    began = time.monotonic()
    with chosen.vault.plain(member, keys) as plain:
        restore(plain, url, expected=expected, owners=False)
    return time.monotonic() - began


def candidates(
    lost: Platform, platform: Platform, record: BuildRecord, environment: str
) -> Iterator[Chosen]:
    """The proved copies in the order in which they are tried: from outside of the cloud that is
    lost first.

    Args:
        platform: whose locations and credentials are used.
    """
    vaults = vaults_of(platform, record.application.name, environment)
    outside = [v for v in vaults if not v.location.startswith(lost.side)]
    inside = [v for v in vaults if v not in outside]
    return copies_to_try([*outside, *inside], needed_rung(record.application.backups))


def choose(platform: Platform, record: BuildRecord, policy: Recovery) -> Chosen:
    """The first of ``candidates``.

    Raises:
        Failed: SLP149, nothing is proved.
    """
    found = next(candidates(platform, platform, record, policy.environment), None)
    if found is not None:
        return found
    vaults = vaults_of(platform, record.application.name, policy.environment)
    return choose_copy(vaults, "newest", needed_rung(record.application.backups))  # says why
