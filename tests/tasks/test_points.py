"""A point is made, copied, damaged, expired and purged, killed at every call of the store.

The store is in memory, the encryption is real, the sources are small.
"""

from __future__ import annotations

import io
import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pyrage
import pytest

from blocks import sealing
from blocks.object_store import AlreadyExists, ObjectStore
from blocks.vault import Vault, copy_part
from domain.errors import Failed, SlipwayError
from domain.recovery import (
    Claim,
    CopyState,
    Facts,
    Lineage,
    Manifest,
    Member,
    MemberKind,
    Rung,
    Tombstone,
    point_id,
)
from domain.retention import Act, Plan, Point, Policy, Step, plan
from tasks.expiring import apply, snapshot
from tests.kit.faulty_store import Fault, FaultyStore, Killed
from tests.kit.memory_store import MemoryStore, Version

KEY = pyrage.x25519.Identity.generate()
OTHER = pyrage.x25519.Identity.generate()
LINEAGE = Lineage("shop", "production")
START = datetime(2026, 1, 1, 2, tzinfo=UTC)
CONTENTS = {
    MemberKind.POSTGRES: b"PGDMP " + bytes(range(256)) * 800,
    MemberKind.REDIS: b"REDIS0011" + b"k" * 500,
}


def vault_of(store: ObjectStore, location: str = "aws") -> Vault:
    return Vault(location, store, LINEAGE)


def make(vault: Vault, sequence: int, now: datetime, run: str = "run") -> Manifest:
    """A whole point, by the same calls as the backup flow; goes on with what is there."""
    claim = vault.claim_of(sequence)
    if claim is None:
        claim = vault.claim(sequence, now, "test", run)
    members = [_saved(vault, claim, kind, now) for kind in CONTENTS]
    return vault.commit(manifest_of(claim, members, now), now + timedelta(days=33))


def _saved(vault: Vault, claim: Claim, kind: MemberKind, now: datetime) -> Member:
    point = point_id(claim.sequence)
    if whole := vault.recorded(point, kind):
        return whole
    key = LINEAGE.member(point, kind)
    if there := vault.store.stat(key):
        vault.store.delete(key, there.version)
    # Without a lock: what a killed attempt left is replaced here.
    sealed = sealing.seal(io.BytesIO(CONTENTS[kind]), vault.store, key, [KEY.to_public()])
    facts = Facts(data_time=now, inventory={"bytes": len(CONTENTS[kind])})
    return vault.record(
        point, Member(kind=kind, part=sealed.part, plain_bytes=sealed.plain_bytes, facts=facts)
    )


def manifest_of(claim: Claim, members: list[Member], now: datetime) -> Manifest:
    return Manifest(
        application="shop", environment="production", lineage="main", sequence=claim.sequence,
        started_at=claim.at, finished_at=now, version="1.0.0", release=1, digest="sha256:1",
        members=tuple(members), recipients={"aws": str(KEY.to_public())}, actor="test",
        run=claim.run,
    )  # fmt: skip


def copy_all(source: Vault, target: Vault, manifest: Manifest) -> None:
    for member in manifest.stored:
        assert member.part is not None
        copy_part(source, target, member.part)
    target.commit(manifest)


def opened(vault: Vault, manifest: Manifest, key: pyrage.x25519.Identity = KEY) -> None:
    """Everything is there, opens, and is what was saved."""
    for member in manifest.stored:
        with vault.plain(member, [key]) as plain:
            assert plain.read() == CONTENTS[member.kind]


def states(vault: Vault) -> dict[int, CopyState]:
    return {int(copy.point): copy.state for copy in vault.copies()}


def faults_at(number: int, fault: Fault) -> Callable[[str, int], Fault | None]:
    return lambda call, count: fault if count == number else None


def every_call(act: Callable[[FaultyStore], object]) -> Iterator[int]:
    """Numbers of all calls of an undisturbed run."""
    quiet = FaultyStore(MemoryStore(START))
    act(quiet)
    yield from range(1, len(quiet.calls) + 1)


@pytest.mark.parametrize("fault", [Fault.KILL, Fault.KILL_AFTER, Fault.ERROR, Fault.LOST_ANSWER])
def test_a_backup_killed_or_failed_at_any_call_goes_on_and_nothing_half_counts(
    fault: Fault,
) -> None:
    def act(store: ObjectStore) -> object:
        return make(vault_of(store), 1, START)

    for number in every_call(act):
        memory = MemoryStore(START)
        with pytest.raises((Killed, SlipwayError)) as caught:
            act(FaultyStore(memory, faults_at(number, fault)))
        assert not isinstance(caught.value, AlreadyExists)
        seen = states(vault_of(memory)).get(1)
        if seen is CopyState.COMPLETE:  # only its last answer was lost
            opened(vault_of(memory), vault_of(memory).copies()[0].manifest)  # type: ignore[arg-type]
        manifest = make(vault_of(memory), 1, START)
        assert states(vault_of(memory)) == {1: CopyState.COMPLETE}
        opened(vault_of(memory), manifest)


@pytest.mark.parametrize("fault", [Fault.KILL, Fault.KILL_AFTER, Fault.ERROR, Fault.LOST_ANSWER])
def test_a_copy_killed_or_failed_at_any_call_goes_on(fault: Fault) -> None:
    source = vault_of(MemoryStore(START))
    manifest = make(source, 1, START)

    def act(store: ObjectStore) -> None:
        copy_all(source, vault_of(store, "gcp"), manifest)

    for number in every_call(act):
        memory = MemoryStore(START)
        with pytest.raises((Killed, SlipwayError)):
            act(FaultyStore(memory, faults_at(number, fault)))
        copy_all(source, vault_of(memory, "gcp"), manifest)
        assert states(vault_of(memory, "gcp")) == {1: CopyState.COMPLETE}
        opened(vault_of(memory, "gcp"), manifest)


def test_a_damaged_source_is_never_copied() -> None:
    memory = MemoryStore(START)
    source, target = vault_of(memory), vault_of(MemoryStore(START), "gcp")
    manifest = make(source, 1, START)
    flip(memory, LINEAGE.member("00000001", MemberKind.POSTGRES), 100)
    with pytest.raises(Failed, match="damaged"):
        copy_all(source, target, manifest)
    assert states(target) == {}


def test_a_zombie_that_goes_on_changes_nothing() -> None:
    """Its point was finished by another run; all that it writes is create-only."""
    memory = MemoryStore(START)
    vault = vault_of(memory)
    claim = vault.claim(1, START, "test", "zombie")
    slow = [_saved(vault, claim, MemberKind.POSTGRES, START)]
    first = make(vault, 1, START)
    late = vault.commit(manifest_of(claim, slow, START + timedelta(hours=1)))
    assert late == first
    opened(vault, first)


def test_two_runs_never_take_one_number() -> None:
    vault = vault_of(MemoryStore(START))
    vault.claim(1, START, "a", "one")
    with pytest.raises(AlreadyExists):
        vault.claim(1, START, "b", "two")
    assert vault.newest_sequence() == 1


# Expiry


def with_points(memory: MemoryStore, count: int) -> Vault:
    vault = vault_of(memory)
    for number in range(1, count + 1):
        memory.now = START + timedelta(days=number)
        make(vault, number, memory.now)
    return vault


def forced(vault: Vault, numbers: dict[int, Act]) -> Plan:
    """A plan that deletes what the test says; the rules have tests of their own."""
    points = {int(c.point): c for c in vault.copies()}
    steps = [
        Step(Point(point_id(n), n, points[n].state, START, START), act, "for a test")
        for n, act in numbers.items()
        if n in points
    ]
    return Plan("aws", tuple(steps))


@pytest.mark.parametrize("fault", [Fault.KILL, Fault.KILL_AFTER])
def test_expiry_killed_at_any_call_converges(fault: Fault) -> None:
    def prepared() -> MemoryStore:
        memory = MemoryStore(START)
        vault = with_points(memory, 3)
        memory.now += timedelta(days=60)
        vault.bury(Tombstone(point="00000001", at=START, plan="p", reason="r"))
        vault.claim(4, START, "test", "dead")
        return memory

    acts = {1: Act.PURGE, 2: Act.TOMBSTONE, 4: Act.SWEEP}

    def act(store: FaultyStore) -> None:
        vault = vault_of(store)
        apply(vault, forced(vault_of(store.inner), acts), START, warn=lambda *_: None)

    quiet = FaultyStore(prepared())
    act(quiet)
    expected = {2: CopyState.TOMBSTONED, 3: CopyState.COMPLETE}
    assert states(vault_of(quiet.inner)) == expected
    assert [k for k in quiet.inner.list(LINEAGE.root) if "00000001" in k or "00000004" in k] == []
    for number in range(1, len(quiet.calls) + 1):
        memory = prepared()
        with pytest.raises(Killed):
            act(FaultyStore(memory, faults_at(number, fault)))
        assert states(vault_of(memory))[3] is CopyState.COMPLETE
        act(FaultyStore(memory))
        assert states(vault_of(memory)) == expected


def test_a_hold_that_comes_after_the_plan_wins() -> None:
    vault = with_points(MemoryStore(START), 3)
    vault.bury(Tombstone(point="00000001", at=START, plan="p", reason="r"))
    planned = forced(vault, {1: Act.PURGE, 2: Act.TOMBSTONE})
    vault.hold("00000001", "audit")
    vault.hold("00000002", "audit")
    left = apply(vault, planned, START, warn=lambda *_: None)
    assert len(left) == 2 and "audit" in left[0]
    assert states(vault)[2] is CopyState.COMPLETE
    vault.unhold("00000001")
    vault.unbury("00000001")
    opened(vault, vault.copy("1").manifest)  # type: ignore[arg-type]


def test_an_incident_stops_every_delete() -> None:
    vault = with_points(MemoryStore(START), 2)
    planned = forced(vault, {1: Act.TOMBSTONE})
    vault.hold("all", "the primary is being investigated")
    assert len(apply(vault, planned, START, warn=lambda *_: None)) == 1
    assert states(vault)[1] is CopyState.COMPLETE


def test_what_the_store_locks_stays_until_the_lock_is_over() -> None:
    memory = MemoryStore(START)
    vault = with_points(memory, 1)
    vault.bury(Tombstone(point="00000001", at=START, plan="p", reason="r"))
    left = apply(vault, forced(vault, {1: Act.PURGE}), START, warn=lambda *_: None)
    assert len(left) == 1 and "locked" in left[0]
    memory.now += timedelta(days=40)
    assert apply(vault, forced(vault, {1: Act.PURGE}), START, warn=lambda *_: None) == []
    assert states(vault) == {}


def test_a_point_that_is_finished_just_before_it_is_swept_stays() -> None:
    vault = vault_of(MemoryStore(START))
    claim = vault.claim(1, START, "test", "slow")
    planned = forced(vault, {1: Act.SWEEP})
    make(vault, 1, START)
    assert claim.sequence == 1
    assert len(apply(vault, planned, START, warn=lambda *_: None)) == 1
    assert states(vault) == {1: CopyState.COMPLETE}


def test_a_point_that_was_swept_is_not_committed() -> None:
    vault = vault_of(MemoryStore(START))
    claim = vault.claim(1, START, "test", "slow")
    members = [_saved(vault, claim, kind, START) for kind in CONTENTS]
    vault.bury(Tombstone(point="00000001", at=START, plan="p", reason="r"))
    with pytest.raises(Failed) as caught:
        vault.commit(manifest_of(claim, members, START))
    assert caught.value.code == "SLP113"


def test_a_failed_listing_becomes_a_snapshot_on_which_nothing_is_decided() -> None:
    memory = MemoryStore(START)
    with_points(memory, 2)
    vault = vault_of(FaultyStore(memory, lambda call, _: Fault.ERROR if call == "scan" else None))
    seen = snapshot(vault, Rung.PARSED, lambda run: False, START)
    assert seen.problem and plan(seen, Policy(), START).deletes == ()


# Damage


def flip(memory: MemoryStore, key: str, at: int) -> None:
    content = memory.objects[key].content
    at %= len(content)
    memory.objects[key] = _changed(memory, key, content[:at] + bytes([content[at] ^ 1])
                                   + content[at + 1 :])  # fmt: skip


def _changed(memory: MemoryStore, key: str, content: bytes) -> Version:
    there = memory.objects[key]
    return replace(there, stat=replace(there.stat, bytes=len(content)), content=content)


def detected(vault: Vault, key: pyrage.x25519.Identity = KEY) -> str:
    """Why point 1 is not believed, as listing, reading back and opening find out."""
    copy = next((c for c in vault.copies() if c.point == "00000001"), None)
    if copy is None or copy.state is not CopyState.COMPLETE or copy.manifest is None:
        return f"state: {copy.state if copy else 'gone'}: {copy.reason if copy else ''}"
    if copy.reason:
        return f"noted: {copy.reason}"
    try:
        for member in copy.manifest.stored:
            with vault.plain(member, [key]) as plain:
                while plain.read(1 << 16):
                    pass
    except SlipwayError as error:
        return f"{error.code}: {error.cause}"
    return ""


def test_a_thousand_damages_are_all_found_and_named() -> None:
    """Flips, cuts, growth, swaps between points and members, missing parts, wrong keys, stale
    and forged manifests."""
    chance = random.Random(7)
    whole = MemoryStore(START)
    with_points(whole, 2)
    assert detected(vault_of(whole)) == ""
    folder = LINEAGE.folder("00000001")
    parts = [LINEAGE.member("00000001", kind) for kind in CONTENTS]
    manifests = [f"{folder}/manifest.json", f"{folder}/manifest.twin.json"]
    found: dict[str, int] = {}
    for turn in range(1_050):
        memory = MemoryStore(START)
        memory.objects = dict(whole.objects)
        kind = DAMAGES[turn % len(DAMAGES)]
        key = OTHER if kind == "wrong key" else KEY
        _damage(memory, kind, chance, parts, manifests)
        reason = detected(vault_of(memory), key)
        assert reason, (kind, turn)
        assert any(word in reason for word in EXPECTED[kind]), (kind, reason)
        found[kind] = found.get(kind, 0) + 1
    assert sum(found.values()) >= 1_000 and set(found) == set(DAMAGES)


EXPECTED = {
    "flip": ("SLP143",),
    "cut": ("state: damaged",),
    "grow": ("state: damaged",),
    "empty": ("state: damaged",),
    "missing part": ("state: damaged",),
    "swapped members": ("state: damaged",),
    "part of another point": ("SLP143", "state: damaged"),
    "wrong key": ("SLP142",),
    "flipped manifest": ("noted",),
    "cut manifests": ("state: damaged",),
    "no manifest": ("state: partial", "noted"),
    "manifest of another point": ("noted", "state: damaged"),
    "both of another point": ("state: damaged",),
    "forged twin": ("state: damaged",),
    "forged size": ("state: damaged",),
}
DAMAGES = tuple(EXPECTED)


def _damage(
    memory: MemoryStore, kind: str, chance: random.Random, parts: list[str], manifests: list[str]
) -> None:
    part, one = chance.choice(parts), chance.choice(manifests)
    content = memory.objects[part].content
    other = {key: key.replace("00000001", "00000002") for key in (*parts, *manifests)}

    def put(key: str, content: bytes) -> None:
        memory.objects[key] = _changed(memory, key, content)

    match kind:
        case "flip":
            flip(memory, part, chance.randrange(len(content)))
        case "cut":
            put(part, content[: chance.randrange(len(content))])
        case "grow":
            put(part, content + chance.randbytes(chance.randint(1, 50)))
        case "empty":
            put(part, b"")
        case "missing part":
            del memory.objects[part]
        case "swapped members":
            first, second = (memory.objects[key].content for key in parts)
            put(parts[0], second)
            put(parts[1], first)
        case "part of another point":
            put(part, memory.objects[other[part]].content)
        case "flipped manifest":
            flip(memory, one, chance.randrange(len(memory.objects[one].content)))
        case "cut manifests":
            for key in manifests:
                put(key, memory.objects[key].content[: chance.randrange(1, 400)])
        case "no manifest":
            del memory.objects[one]
        case "manifest of another point":
            put(one, memory.objects[other[one]].content)
        case "both of another point":
            for key in manifests:
                put(key, memory.objects[other[key]].content)
        case "forged twin" | "forged size":
            _forge(put, memory, manifests, kind)


def _forge(
    put: Callable[[str, bytes], None], memory: MemoryStore, manifests: list[str], kind: str
) -> None:
    """A whole manifest that says something else, with a right hash of itself."""
    manifest = Manifest.from_bytes(memory.objects[manifests[0]].content)
    if kind == "forged twin":
        put(manifests[1], manifest.model_copy(update={"actor": "mallory"}).to_bytes())
        return
    first, *rest = manifest.members
    assert first.part is not None
    smaller = first.part.model_copy(update={"bytes": first.part.bytes - 1})
    forged = manifest.model_copy(
        update={"members": (first.model_copy(update={"part": smaller}), *rest)}
    )
    for key in manifests:
        put(key, forged.to_bytes())
