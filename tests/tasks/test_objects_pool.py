"""An application's objects through backup, copy, proof, expiry and restore, killed at every call.

The stores are in memory and the encryption is real; the steps are those of the flows.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from contextlib import nullcontext, suppress
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pyrage
import pytest

from blocks import objects_dump, sealing
from blocks.object_store import ObjectStore
from blocks.objects_pool import Pool
from blocks.sealing import UNLIMITED
from blocks.vault import Vault
from domain.application import ObjectsToSave
from domain.errors import Failed, SlipwayError, UsageError
from domain.recovery import Claim, CopyState, Lineage, Manifest, Member, MemberKind, Rung
from domain.retention import Policy, plan
from tasks import proving
from tasks.expiring import apply, snapshot
from tasks.saving import Saving, _objects_source, copy_contents
from tests.kit.faulty_store import Fault, FaultyStore, Killed
from tests.kit.memory_store import MemoryStore
from tests.tasks.test_points import KEY, copy_part, every_call, faults_at

LINEAGE = Lineage("shop", "production")
START = datetime(2026, 1, 1, 2, tzinfo=UTC)
DAY = timedelta(days=1)
RECIPIENTS = {"aws": str(KEY.to_public())}
DECLARED = ObjectsToSave(store="uploads", prefix="img/")
PICTURES = {f"img/{n}": bytes([n]) * 900 for n in range(5)} | {"other/x": b"not ours"}


def app_store(contents: Mapping[str, bytes] = PICTURES) -> MemoryStore:
    store = MemoryStore(START)
    for key, content in contents.items():
        store.create(key, content)
    return store


def platform_of(objects: ObjectStore, key: pyrage.x25519.Identity = KEY) -> Any:
    keys = SimpleNamespace(get_secret_value=lambda: {"aws": str(key)})
    return SimpleNamespace(object_store=lambda name: objects, backup_keys=keys)


def saving_of(vault: Vault, sequence: int, now: datetime) -> Saving:
    record = SimpleNamespace(application=SimpleNamespace(name="shop"))
    claim = Claim(sequence=sequence, at=now, actor="test", run="run")
    return Saving(record=record, release=SimpleNamespace(version="1", number=1, digest="d"),  # type: ignore[arg-type]
                  vaults=(vault,), claim=claim, recipients=RECIPIENTS,
                  locked_until=now, pace=UNLIMITED,
                  holder=None)  # type: ignore[arg-type]  # fmt: skip


def save(vault: Vault, objects: ObjectStore, sequence: int, now: datetime = START) -> Manifest:
    """A whole point that holds objects, by the flow's own calls; goes on with what is there."""
    saving = saving_of(vault, sequence, now)
    if vault.claim_of(sequence) is None:
        vault.claim(sequence, now, "test", "run")
    member = vault.recorded(saving.point, MemberKind.OBJECTS)
    if member is None:
        source = _objects_source(platform_of(objects), saving, DECLARED)
        key = LINEAGE.member(saving.point, MemberKind.OBJECTS)
        if there := vault.store.stat(key):
            vault.store.delete(key, there.version)
        with source.open() as stream:
            sealed = sealing.seal(stream, vault.store, key, [KEY.to_public()])
            facts = stream.facts()
        Pool(vault).keep_needs(saving.point, source.needed)
        member = vault.record(saving.point, Member(kind=MemberKind.OBJECTS, part=sealed.part,
                              plain_bytes=sealed.plain_bytes, facts=facts))  # fmt: skip
    return vault.commit(
        Manifest(application="shop", environment="production", lineage="main", sequence=sequence,
                 started_at=now, finished_at=now, version="1", release=1, digest="d",
                 members=(member,), recipients=RECIPIENTS, actor="test", run="run")
    )  # fmt: skip


def copied(source: Vault, target: Vault, manifest: Manifest) -> None:
    for member in manifest.stored:
        assert member.part is not None
        copy_part(source, target, member.part)
    copy_contents(saving_of(source, manifest.sequence, START), target, manifest)
    target.commit(manifest)


def restored(vault: Vault, manifest: Manifest) -> dict[str, bytes]:
    member, target = manifest.member(MemberKind.OBJECTS), MemoryStore(START)
    assert member is not None
    with vault.plain(member, [KEY]) as index:
        objects_dump.restore(index, lambda sha256: Pool(vault).fetch(sha256, [KEY]), target)
    return {stat.key: target.read(stat.key) or b"" for stat in target.scan("")}


def ours(contents: Mapping[str, bytes] = PICTURES) -> dict[str, bytes]:
    return {key: content for key, content in contents.items() if key.startswith("img/")}


def vault_of(store: ObjectStore, location: str = "aws") -> Vault:
    return Vault(location, store, LINEAGE)


def check(vault: Vault, manifest: Manifest) -> None:
    """As a proof looks at the member."""
    climb = proving.Climb.__new__(proving.Climb)
    climb._vault, climb._manifest, climb._keys = vault, manifest, [KEY]
    member = manifest.member(MemberKind.OBJECTS)
    assert member is not None
    climb._check_objects(member)


def test_what_was_saved_comes_back_and_nothing_else() -> None:
    vault = vault_of(MemoryStore(START))
    manifest = save(vault, app_store(), 1)
    assert restored(vault, manifest) == ours()
    check(vault, manifest)


def test_unchanged_objects_are_listed_and_not_read() -> None:
    vault, objects = vault_of(MemoryStore(START)), app_store()
    save(vault, objects, 1)
    watched = FaultyStore(objects)
    second = save(vault, watched, 2, START + DAY)
    assert not [call for call in watched.calls if call[0] in ("open", "read")], watched.calls
    member = second.member(MemberKind.OBJECTS)
    assert member is not None and member.facts is not None
    assert member.facts.inventory["since_before"]["unchanged"] == 5
    assert restored(vault, second) == ours()


def test_equal_contents_are_stored_once() -> None:
    vault = vault_of(MemoryStore(START))
    twice = {f"img/{n}": b"the same" for n in range(9)}
    manifest = save(vault, app_store(twice), 1)
    assert len(Pool(vault).contents()) == 1
    assert restored(vault, manifest) == twice


def test_a_changed_and_a_deleted_object_are_as_they_were_in_each_point() -> None:
    vault, objects = vault_of(MemoryStore(START)), app_store()
    first = save(vault, objects, 1)
    objects.replace("img/0", b"new")
    there = objects.stat("img/1")
    assert there is not None
    objects.delete("img/1", there.version)
    second = save(vault, objects, 2, START + DAY)
    assert restored(vault, first) == ours()
    now = {key: content for key, content in ours().items() if key != "img/1"}
    assert restored(vault, second) == now | {"img/0": b"new"}


@pytest.mark.parametrize("fault", [Fault.KILL, Fault.KILL_AFTER, Fault.ERROR])
def test_a_backup_killed_or_failed_at_any_call_goes_on(fault: Fault) -> None:
    few = {"img/a": b"a" * 400, "img/b": b"b" * 400}

    def act(store: ObjectStore) -> object:
        return save(vault_of(store), app_store(few), 1)

    for number in every_call(act):
        memory = MemoryStore(START)
        with pytest.raises((Killed, SlipwayError)):
            act(FaultyStore(memory, faults_at(number, fault)))
        vault = vault_of(memory)
        manifest = save(vault, app_store(few), 1)
        check(vault, manifest)
        assert restored(vault, manifest) == few


@pytest.mark.parametrize("fault", [Fault.KILL, Fault.KILL_AFTER, Fault.ERROR])
def test_a_copy_killed_or_failed_at_any_call_goes_on_and_nothing_half_counts(fault: Fault) -> None:
    few = {"img/a": b"a" * 400, "img/b": b"b" * 400}
    source = vault_of(MemoryStore(START))
    manifest = save(source, app_store(few), 1)

    def act(store: ObjectStore) -> object:
        return copied(source, vault_of(store, "gcp"), manifest)

    for number in every_call(act):
        memory = MemoryStore(START)
        with pytest.raises((Killed, SlipwayError)):
            act(FaultyStore(memory, faults_at(number, fault)))
        target = vault_of(memory, "gcp")
        if any(copy.state is CopyState.COMPLETE for copy in target.copies()):
            assert restored(target, manifest) == few
        copied(source, target, manifest)
        check(target, manifest)
        assert restored(target, manifest) == few


def test_contents_that_a_location_has_are_not_copied_again() -> None:
    source, target = vault_of(MemoryStore(START)), vault_of(MemoryStore(START), "gcp")
    objects = app_store()
    copied(source, target, save(source, objects, 1))
    second = save(source, objects, 2, START + DAY)
    watched = FaultyStore(source.store)
    copied(vault_of(watched), target, second)
    pool = [call for call in watched.calls if "/pool/" in str(call[1:])]
    assert pool == []
    assert restored(target, second) == ours()


def test_a_source_that_does_not_know_what_it_needs_is_not_copied() -> None:
    source, target = vault_of(MemoryStore(START)), vault_of(MemoryStore(START), "gcp")
    manifest = save(source, app_store(), 1)
    remove(source, LINEAGE.needs(manifest.point))
    with pytest.raises(Failed, match="list of the contents"):
        copied(source, target, manifest)
    assert all(copy.state is not CopyState.COMPLETE for copy in target.copies())


def remove(vault: Vault, key: str) -> None:
    there = vault.store.stat(key)
    assert there is not None
    vault.store.delete(key, there.version)


@pytest.mark.parametrize("what", ["record", "bytes", "needs", "flip"])
def test_damage_to_the_pool_is_found_by_the_proof(what: str) -> None:
    memory = MemoryStore(START)
    vault = vault_of(memory)
    manifest = save(vault, app_store(), 1)
    sha256 = next(iter(Pool(vault).contents()))
    key = LINEAGE.pool(sha256)
    if what == "flip":
        content = bytearray(memory.read(key) or b"")
        content[-1] ^= 1
        memory.replace(key, bytes(content))
    else:
        remove(vault, {"record": f"{key}.json", "bytes": key}.get(what, LINEAGE.needs("00000001")))
    with pytest.raises(Failed) as found:
        check(vault, manifest)
    assert found.value.code == "SLP143"


def later(memory: MemoryStore, now: datetime) -> None:
    memory.now = now


def nights(memory: MemoryStore, count: int) -> MemoryStore:
    """One point a night, each with a picture of its own that the next night has no more."""
    vault, objects = vault_of(memory), MemoryStore(START)
    for night in range(count):
        now = START + DAY * night
        later(memory, now)
        later(objects, now)
        for stat in list(objects.scan("")):
            objects.delete(stat.key, stat.version)
        objects.create("img/lasting", b"lasting")
        objects.create(f"img/of-{night}", f"of {night}".encode())
        save(vault, objects, night + 1, now)
    return objects


POLICY = Policy(retention=DAY * 3, grace=timedelta(0), keep_proved=1)


def expire(vault: Vault, now: datetime) -> list[str]:
    location = snapshot(vault, Rung.UPLOADED, lambda run: False, now)
    from dataclasses import replace

    points = [replace(point, proved=True) for point in location.points]
    planned = plan(replace(location, points=points), POLICY, now)
    return list(apply(vault, planned, now, warn=lambda *_: None))


@pytest.mark.parametrize("fault", [None, Fault.KILL, Fault.KILL_AFTER])
def test_contents_go_when_the_last_point_that_needs_them_has_gone(fault: Fault | None) -> None:
    memory = MemoryStore(START)
    nights(memory, 8)
    vault, now = vault_of(memory), START + DAY * 9
    later(memory, now)
    if fault is not None:
        for number in (3, 9, 17, 30, 44, 58):
            with suppress(Killed):
                expire(vault_of(FaultyStore(memory, faults_at(number, fault))), now)
            for copy in vault.copies():
                if copy.state is CopyState.COMPLETE and copy.manifest:
                    check(vault, copy.manifest)
    for _ in range(3):  # hidden, then purged, then the contents
        expire(vault, now)
    points = [copy for copy in vault.copies() if copy.state is CopyState.COMPLETE]
    assert 0 < len(points) < 8
    needed = frozenset[str]().union(*(Pool(vault).needs(p.point) or () for p in points))
    assert Pool(vault).contents().keys() == needed
    for copy in points:
        assert copy.manifest is not None
        check(vault, copy.manifest)


def test_nothing_of_the_pool_goes_while_a_point_does_not_say_what_it_needs() -> None:
    memory = MemoryStore(START)
    nights(memory, 8)
    vault, now = vault_of(memory), START + DAY * 9
    later(memory, now)
    remove(vault, LINEAGE.needs("00000008"))
    before = Pool(vault).contents().keys()
    for _ in range(3):
        expire(vault, now)
    assert Pool(vault).contents().keys() == before


def test_a_store_that_the_platform_does_not_have_is_named(tmp_path: Any) -> None:
    from blocks.backup_locations import BackupLocation
    from blocks.platform import Platform

    platform = Platform.model_construct(
        object_stores=[BackupLocation(name="pictures", kind="file", bucket=str(tmp_path))],
        backup_credentials=SimpleNamespace(get_secret_value=dict),
    )
    platform.object_store("pictures").create("a", b"b")
    with pytest.raises(UsageError, match="'uploads'; it has pictures") as refused:
        platform.object_store("uploads")
    assert refused.value.code == "SLP151"


def test_a_content_is_there_only_with_its_record() -> None:
    vault = vault_of(MemoryStore(START))
    pool = Pool(vault)
    pool.put("ab" * 32, lambda: nullcontext(io.BytesIO(b"x")), [KEY.to_public()])
    assert list(pool.contents()) == ["ab" * 32]
    remove(vault, LINEAGE.pool("ab" * 32) + ".json")
    assert pool.contents() == {} and pool.sizes() == {}
    pool.put("ab" * 32, lambda: nullcontext(io.BytesIO(b"x")), [KEY.to_public()])
    with pool.fetch("ab" * 32, [KEY]) as content:
        assert content.read() == b"x"
