"""A drill's own line of backups, for the fault that damages them: production's are only read."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator

from blocks.platform import Platform
from blocks.vault import Vault, copy_part, manifest_sha256
from domain.drill import DrillRecord, Fault
from domain.recovery import MAIN, MemberKind
from tasks.drill_world import Wanted
from tasks.proving import needed_rung
from tasks.recovery_copies import candidates
from tasks.restoring import Chosen
from tasks.saving import vaults_of


def line_of(platform: Platform, record: DrillRecord) -> tuple[Vault, ...]:
    """Production's locations, under the drill's own name."""
    return vaults_of(platform, record.application, record.side_environment)


def begin_line(wanted: Wanted, record: DrillRecord) -> None:
    """The copy that the twin was made of becomes the newest point of its own line, everywhere."""
    manifest = wanted.chosen.copy.manifest
    proof = wanted.chosen.copy.proved(needed_rung(wanted.record.application.backups))
    assert manifest is not None and proof is not None
    member = manifest.member(MemberKind.POSTGRES)
    assert member is not None and member.part is not None
    for vault in line_of(wanted.standby, record):
        key = vault.lineage.member(manifest.point, member.kind)
        part = copy_part(wanted.chosen.vault, vault, member.part, key=key)
        own = {"environment": record.side_environment, "lineage": MAIN}
        twin = manifest.model_copy(
            update={**own, "members": (member.model_copy(update={"part": part}),)}
        )
        vault.commit(twin)
        told = {**own, "location": vault.location, "manifest_sha256": manifest_sha256(twin)}
        vault.prove(proof.model_copy(update=told))


def copies(wanted: Wanted, record: DrillRecord) -> Iterator[Chosen]:
    """What the failover of a drill may restore: its own line, or what its twin was made of."""
    if wanted.fault is Fault.CORRUPT:
        yield from _own(wanted, record)
        return
    yield wanted.chosen
    environment = wanted.policy.environment
    for other in candidates(wanted.primary, wanted.standby, wanted.record, environment):
        if (other.vault.location, other.copy.point) != (
            wanted.chosen.vault.location,
            wanted.chosen.copy.point,
        ):
            yield other


def encrypt_newest(wanted: Wanted, record: DrillRecord) -> str:
    """What ransomware does: the copy that would be restored keeps its name and its size, and is
    noise; returns which."""
    first = next(_own(wanted, record))
    manifest = first.copy.manifest
    assert manifest is not None
    member = manifest.member(MemberKind.POSTGRES)
    assert member is not None and member.part is not None
    key, left, store = member.part.key, member.part.bytes, first.vault.store
    there = store.stat(key)
    assert there is not None
    store.delete(key, there.version)
    upload, digest, number = store.upload(key), hashlib.sha256(), 0
    while left > 0:
        noise = os.urandom(min(left, upload.part_bytes))
        number, left = number + 1, left - len(noise)
        digest.update(noise)
        upload.put(number, noise)
    upload.complete(digest.hexdigest())
    return f"{first.vault.location}: {key}"


def forget_line(platform: Platform, record: DrillRecord) -> None:
    """Remove the drill's own line everywhere."""
    for vault, key in _keys(platform, record):
        if (there := vault.store.stat(key)) is not None:
            vault.store.delete(key, there.version)


def left_of_line(platform: Platform, record: DrillRecord) -> list[object]:
    """What there still is of it."""
    return [f"{vault.location}: {key}" for vault, key in _keys(platform, record)]


def _keys(platform: Platform, record: DrillRecord) -> Iterator[tuple[Vault, str]]:
    for vault in line_of(platform, record):
        for key in vault.store.list(vault.lineage.root):
            yield vault, key


def _own(wanted: Wanted, record: DrillRecord) -> Iterator[Chosen]:
    return candidates(wanted.primary, wanted.standby, wanted.record, record.side_environment)
