"""RDS snapshots beside recovery points, on the strict stand-in: two regions, and their failures."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from blocks.rds import RdsSnapshots
from blocks.rds_instance import RdsInstance, RdsRegion
from blocks.vault import Vault
from domain.backup_report import verdict_on
from domain.rds_snapshots import Owner
from domain.recovery import CopyState, Lineage, Member, MemberKind, Tombstone
from domain.retention import ALL
from domain.verdict import Verdict
from tasks import snapshots
from tasks.snapshots import begin_snapshot, copy_snapshot, expire_snapshots, finish_snapshot
from tests.blocks.rds_fake import FakeClock, FakeRds
from tests.kit.faulty_store import Fault, FaultyStore
from tests.kit.memory_store import MemoryStore
from tests.tasks.test_points import make

LINEAGE = Lineage("shop", "production")
HOME, AWAY = "eu-central-1", "us-west-2"
START = datetime(2026, 3, 1, 2, tzinfo=UTC)


class Place:
    """A platform with an instance in one region and a copy in another, and one vault."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        clock = FakeClock(START)
        self.home = FakeRds(clock, HOME)
        self.away = FakeRds(clock, AWAY, others=(self.home,), keys={"key-us": True})
        self.memory = MemoryStore(START)
        self.vault = Vault("aws", self.memory, LINEAGE)
        self.rds: RdsInstance | None = RdsInstance(
            instance="shop-db", region=HOME, copies=[RdsRegion(region=AWAY, kms_key="key-us")]
        )
        self.backup_credentials = SimpleNamespace(get_secret_value=dict)
        monkeypatch.setattr(RdsInstance, "snapshots", self.snapshots)
        monkeypatch.setattr(snapshots, "get_run_logger", lambda: SimpleNamespace(error=print))

    def snapshots(self, region: str, owner: Owner, secrets: Any) -> RdsSnapshots:
        fake = {HOME: self.home, AWAY: self.away}[region]
        return RdsSnapshots(fake, owner, now=fake.clock, pause=fake.clock.pause)

    def saving(self, sequence: int = 1) -> Any:
        return SimpleNamespace(primary=self.vault, point=f"{sequence:08d}")

    def night(self, sequence: int = 1) -> tuple[Member, list[str], list[Any]]:
        saving = self.saving(sequence)
        begun = begin_snapshot.fn(self, saving)  # type: ignore[arg-type]
        member = finish_snapshot.fn(self, saving, begun)  # type: ignore[arg-type]
        make(self.vault, sequence, self.memory.now)
        return member, *copy_snapshot.fn(self, saving, begun, member)  # type: ignore[arg-type]

    def names(self) -> list[tuple[str, str]]:
        return [(fake.region, name[-8:]) for fake in (self.home, self.away)
                for name in sorted(fake.snapshots)]  # fmt: skip


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> Place:
    return Place(monkeypatch)


def test_a_snapshot_is_taken_copied_and_told_with_its_moment(place: Place) -> None:
    member, done, red = place.night()
    assert member.kind is MemberKind.RDS and member.facts is not None
    assert member.facts.data_time == START
    assert not member.is_stored  # it lies in no vault, and can bring back nothing from there
    assert place.names() == [(HOME, "00000001"), (AWAY, "00000001")]
    assert [HOME in line or AWAY in line for line in done] == [True, True]
    assert red == []


def test_without_an_instance_there_is_none_and_the_reason(place: Place) -> None:
    place.rds = None
    member, done, red = place.night()
    assert member.skipped == "the platform names no RDS instance"
    assert (done, red) == ([], [])


def test_a_snapshot_that_fails_is_red_and_keeps_nobody_from_the_dump(place: Place) -> None:
    place.home.fate = "failed"
    member, _, red = place.night()
    assert member.skipped.startswith("failed: ") and member.facts is None
    assert place.vault.copies()[0].state is CopyState.COMPLETE
    assert verdict_on(red, ())[0] is Verdict.ERROR


def test_an_instance_that_is_not_there_is_red(place: Place) -> None:
    place.home.instances.clear()
    member, _, red = place.night()
    assert "failed: " in member.skipped and len(red) == 1


def test_a_copy_without_a_key_is_red_and_the_snapshot_stays(place: Place) -> None:
    assert place.rds is not None
    place.rds = place.rds.model_copy(update={"copies": [RdsRegion(region=AWAY)]})
    _, done, red = place.night()
    assert place.names() == [(HOME, "00000001")]
    assert len(done) == 1 and "encrypted" in red[0].reason


def test_a_second_attempt_goes_on_with_the_snapshot_of_the_first(place: Place) -> None:
    begin_snapshot.fn(place, place.saving())  # type: ignore[arg-type]
    place.night()  # killed in between
    assert place.names() == [(HOME, "00000001"), (AWAY, "00000001")]


def expire(place: Place, *, apply: bool = True) -> tuple[list[str], list[Any]]:
    return expire_snapshots.fn(place, [place.vault], apply=apply)  # type: ignore[arg-type]


def three_nights(place: Place) -> None:
    for number in (1, 2, 3):
        place.night(number)
        place.memory.now += timedelta(days=1)


def bury(place: Place, point: str) -> None:
    place.vault.bury(Tombstone(point=point, at=START, plan="p", reason="r"))


def test_snapshots_go_with_the_purge_of_their_point_and_not_before(place: Place) -> None:
    three_nights(place)
    bury(place, "00000001")
    assert expire(place) == ([], [])
    place.memory.now += timedelta(days=60)
    place.vault.purge("00000001")
    assert len(expire(place, apply=False)[0]) == 2 and len(place.names()) == 6
    done, red = expire(place)
    assert len(done) == 2 and red == []
    assert {name for _, name in place.names()} == {"00000002", "00000003"}


def test_nothing_goes_while_everything_is_held(place: Place) -> None:
    three_nights(place)
    bury(place, "00000001")
    place.memory.now += timedelta(days=60)
    place.vault.purge("00000001")
    place.vault.hold(ALL, "incident")
    expire(place)
    assert len(place.names()) == 6


def test_nothing_goes_when_a_location_cannot_be_listed(place: Place) -> None:
    three_nights(place)
    faulty = FaultyStore(
        place.memory, lambda call, count: Fault.ERROR if call in ("scan", "list") else None
    )
    place.vault = Vault("aws", faulty, LINEAGE)
    done, red = expire(place)
    assert done == [] and "nothing was deleted" in red[0].reason
    assert len(place.names()) == 6


def test_snapshots_of_somebody_else_stay(place: Place) -> None:
    other = place.snapshots(HOME, Owner("other", "production"), {})
    other.create("shop-db", "00000009")
    expire(place)
    assert place.names() == [(HOME, "00000009")]


def test_regions_are_named_once_the_own_one_first() -> None:
    made = RdsInstance(instance="a", region=HOME, copies=[RdsRegion(region=AWAY, kms_key="k")])
    assert list(made.keys().items()) == [(HOME, None), (AWAY, "k")]
