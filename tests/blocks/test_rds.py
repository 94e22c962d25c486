"""RDS snapshots against a strict stand-in, and the calls themselves against moto."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import boto3
import pytest
from moto import mock_aws

from blocks.rds import RdsSnapshots, facts
from domain.errors import Failed, SlipwayError, Unauthorised, UsageError
from domain.rds_snapshots import HOLD, Owner
from tests.blocks.rds_fake import FakeClock, FakeRds

OWNER = Owner("shop", "production")
POINT = "00000042"
NAME = "slipway-shop-production-main-00000042"


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def rds(clock: FakeClock) -> FakeRds:
    return FakeRds(clock)


def ours(rds: FakeRds, owner: Owner = OWNER, **options: Any) -> RdsSnapshots:
    return RdsSnapshots(rds, owner, now=rds.clock, pause=rds.clock.pause, **options)


def test_a_snapshot_is_waited_for_with_its_progress(rds: FakeRds, clock: FakeClock) -> None:
    began = clock.now
    snapshots = ours(rds)
    assert snapshots.create("shop-db", POINT).status == "creating"
    seen: list[int] = []
    done = snapshots.wait(NAME, lambda s: seen.append(s.percent))
    assert seen[0] == 0 and seen[-1] == 100 and seen == sorted(seen) and len(set(seen)) > 10
    said = facts(done)
    assert said.data_time == began  # not the time at which it was ready
    assert said.tools == {"rds": "postgres 18.1"} and said.inventory["instance"] == "shop-db"


def test_no_facts_before_it_is_there(rds: FakeRds) -> None:
    with pytest.raises(ValueError, match="is creating"):
        facts(ours(rds).create("shop-db", POINT))


def test_a_second_attempt_finds_the_snapshot_of_the_first(rds: FakeRds) -> None:
    """After SIGKILL at any moment: the name comes from the point."""
    first = ours(rds).create("shop-db", POINT)
    ours(rds).wait(first.identifier)
    again = ours(rds).create("shop-db", POINT)
    assert again.arn == first.arn and again.is_available and len(rds.snapshots) == 1


def test_an_acknowledgement_that_was_lost_makes_no_second_snapshot(rds: FakeRds) -> None:
    rds.lose = "create_db_snapshot"
    with pytest.raises(Failed):
        ours(rds).create("shop-db", POINT)
    assert ours(rds).create("shop-db", POINT).identifier == NAME
    assert len(rds.snapshots) == 1


def test_a_snapshot_that_is_not_listed_at_once_is_looked_for_again(rds: FakeRds) -> None:
    rds.unlisted = 3
    assert ours(rds).create("shop-db", POINT).identifier == NAME
    assert rds.calls["create_db_snapshot"] == 1


def test_a_failed_attempt_is_replaced(rds: FakeRds) -> None:
    rds.fate = "failed"
    ours(rds).create("shop-db", POINT)
    with pytest.raises(Failed, match="ended failed"):
        ours(rds).wait(NAME)
    rds.fate = "available"
    ours(rds).create("shop-db", POINT)
    assert ours(rds).wait(NAME).is_available


def test_an_instance_in_its_own_backup_is_asked_again(rds: FakeRds, clock: FakeClock) -> None:
    rds.busy_until = clock.now + timedelta(minutes=20)
    assert ours(rds).create("shop-db", POINT).identifier == NAME
    assert clock.now >= rds.busy_until


def test_an_instance_that_stays_busy_is_an_error_in_the_end(rds: FakeRds, clock: FakeClock) -> None:
    rds.busy_until = clock.now + timedelta(days=1)
    with pytest.raises(Failed, match="InvalidDBInstanceState") as raised:
        ours(rds, patience=timedelta(hours=1)).create("shop-db", POINT)
    assert raised.value.code == "SLP137"


def test_a_snapshot_that_takes_too_long_is_an_error_and_goes_on(rds: FakeRds) -> None:
    ours(rds).create("shop-db", POINT)
    with pytest.raises(Failed, match=r"still creating, \d+%"):
        ours(rds, patience=timedelta(minutes=2)).wait(NAME)
    assert ours(rds).wait(NAME).is_available


def test_a_snapshot_that_is_deleted_meanwhile_is_an_error(rds: FakeRds) -> None:
    ours(rds).create("shop-db", POINT)
    with pytest.raises(Failed, match="was deleted"):
        ours(rds).wait(NAME, lambda _: rds.snapshots.clear())


def test_a_snapshot_that_was_never_there_is_an_error_in_the_end(rds: FakeRds) -> None:
    with pytest.raises(Failed, match="not to be seen"):
        ours(rds).wait("nobody")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda rds: setattr(rds, "quota", 0), "raise the quota"),
        (lambda rds: rds.instances.clear(), "correct the name"),
        (lambda rds: setattr(rds, "error", "InternalFailure"), "run it again"),
    ],
)
def test_a_refusal_says_what_to_do(
    rds: FakeRds, change: Callable[[FakeRds], None], says: str
) -> None:
    change(rds)
    with pytest.raises(Failed) as raised:
        ours(rds).create("shop-db", POINT)
    assert raised.value.code == "SLP137" and says in raised.value.help


def test_a_refused_login_is_told_apart(rds: FakeRds) -> None:
    rds.error = "AccessDenied"
    for call in (lambda s: s.create("shop-db", POINT), lambda s: s.list()):
        with pytest.raises(Unauthorised) as raised:
            call(ours(rds))
        assert raised.value.code == "SLP139"


@pytest.mark.parametrize("owner", [Owner("other", "production"), Owner("shop", "staging")])
def test_a_snapshot_of_somebody_else_with_our_name_is_not_taken_for_ours(
    rds: FakeRds, owner: Owner
) -> None:
    rds.create_db_snapshot(
        DBSnapshotIdentifier=NAME, DBInstanceIdentifier="shop-db",
        Tags=[{"Key": k, "Value": v} for k, v in owner.tags(POINT).items()],
    )  # fmt: skip
    with pytest.raises(Failed, match="somebody else"):
        ours(rds).create("shop-db", POINT)


def test_a_snapshot_of_another_instance_is_not_taken_for_this_one(rds: FakeRds) -> None:
    rds.instances.add("other-db")
    ours(rds).create("other-db", POINT)
    with pytest.raises(Failed, match="of other-db"):
        ours(rds).create("shop-db", POINT)


@pytest.fixture
def abroad(rds: FakeRds, clock: FakeClock) -> FakeRds:
    return FakeRds(clock, region="eu-west-1", others=(rds,), keys={"key-west": True})


def made(rds: FakeRds) -> Any:
    ours(rds).create("shop-db", POINT)
    return ours(rds).wait(NAME)


def test_a_copy_keeps_the_time_of_its_data(rds: FakeRds, abroad: FakeRds) -> None:
    source = made(rds)
    copying = ours(abroad)
    assert copying.copy(source, "key-west").status == "creating"
    done = copying.wait(NAME)
    assert facts(done).data_time == facts(source).data_time
    assert (done.region, done.source, done.kms_key) == ("eu-west-1", source.arn, "key-west")
    assert copying.copy(source, "key-west").arn == done.arn and len(abroad.snapshots) == 1


def test_a_copy_that_fails_does_not_hide_behind_its_green_source(
    rds: FakeRds, abroad: FakeRds
) -> None:
    """AWS Backup: job and copy job have states of their own, and nobody looked at the second."""
    source = made(rds)
    abroad.fate = "failed"
    ours(abroad).copy(source, "key-west")
    with pytest.raises(Failed, match="ended failed"):
        ours(abroad).wait(NAME)
    abroad.fate = "available"
    ours(abroad).copy(source, "key-west")
    assert ours(abroad).wait(NAME).is_available


def test_a_disabled_key_stops_a_copy(rds: FakeRds, abroad: FakeRds) -> None:
    source = made(rds)
    abroad.keys["key-west"] = False
    with pytest.raises(Failed) as raised:
        ours(abroad).copy(source, "key-west")
    assert "enable the key" in raised.value.help and not abroad.snapshots


def test_what_cannot_be_copied_is_refused_before_rds_is_asked(
    rds: FakeRds, abroad: FakeRds
) -> None:
    begun = ours(rds).create("shop-db", POINT)
    with pytest.raises(UsageError, match="is creating") as raised:
        ours(abroad).copy(begun, "key-west")
    assert raised.value.code == "SLP138"
    with pytest.raises(UsageError, match="encrypted"):
        ours(abroad).copy(ours(rds).wait(NAME), None)
    assert not abroad.calls


def test_a_list_has_all_pages_and_only_ours(rds: FakeRds) -> None:
    rds.page_size = 3
    for n in range(10):
        ours(rds).create("shop-db", f"{n:08}")
        ours(rds, Owner("other", "production")).create("shop-db", f"{n:08}")
    assert [s.point for s in ours(rds).list()] == [f"{n:08}" for n in range(10)]


def test_a_list_that_fails_is_no_empty_list(rds: FakeRds) -> None:
    rds.error = "Throttling"
    with pytest.raises(Failed):
        ours(rds).list()


def test_ours_are_deleted_and_again_is_no_error(rds: FakeRds) -> None:
    made(rds)
    ours(rds).delete(NAME, {})
    ours(rds).delete(NAME, {})
    assert not rds.snapshots


@pytest.mark.parametrize(
    ("change", "held", "says"),
    [
        ({"SnapshotType": "automated"}, {}, "automated"),
        ({"SnapshotType": "awsbackup"}, {}, "awsbackup"),
        ({"TagList": []}, {}, "tags"),
        ({"TagList": [{"Key": k, "Value": v}
                      for k, v in Owner("shop", "staging").tags(POINT).items()]}, {}, "tags"),
        ({"TagList": [{"Key": k, "Value": v}
                      for k, v in {**OWNER.tags(POINT), HOLD: "audit"}.items()]}, {}, "audit"),
        ({}, {POINT: "lawyers"}, "lawyers"),
    ],
)  # fmt: skip
def test_what_is_not_ours_or_is_held_is_never_deleted(
    rds: FakeRds, change: dict[str, Any], held: dict[str, str], says: str
) -> None:
    """wal-g#1768: a hold has to be seen on every path that deletes."""
    made(rds)
    rds.snapshots[NAME] |= change
    with pytest.raises(UsageError, match=says) as raised:
        ours(rds).delete(NAME, held)
    assert raised.value.code == "SLP138"
    assert NAME in rds.snapshots and not rds.calls["delete_db_snapshot"]


def test_a_snapshot_in_the_making_is_not_deleted(rds: FakeRds) -> None:
    """pgbackrest#2622: expiry deleted a backup that was being made."""
    ours(rds).create("shop-db", POINT)
    with pytest.raises(UsageError, match="is creating"):
        ours(rds).delete(NAME, {})


def test_a_moment_outside_of_the_window_is_refused(rds: FakeRds, clock: FakeClock) -> None:
    """An emulator restores to 1999."""
    snapshots = ours(rds)
    snapshots.check_restorable("shop-db", clock.now - timedelta(days=3))
    for at in (clock.now, clock.now - timedelta(days=8)):
        with pytest.raises(UsageError, match="cannot be restored to"):
            snapshots.check_restorable("shop-db", at)
    with pytest.raises(SlipwayError):
        snapshots.window("nobody")


def test_the_calls_are_those_of_boto3(monkeypatch: pytest.MonkeyPatch) -> None:
    """moto has no states, but it has the protocol: requests, answers, times and tags."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    with mock_aws():
        here = boto3.client("rds", region_name="eu-central-1")
        there = boto3.client("rds", region_name="eu-west-1")
        key = boto3.client("kms", region_name="eu-west-1").create_key()["KeyMetadata"]["KeyId"]
        here.create_db_instance(
            DBInstanceIdentifier="shop-db", DBInstanceClass="db.t4g.micro", Engine="postgres",
            AllocatedStorage=20, MasterUsername="root", MasterUserPassword="hunter2hunter2",
            StorageEncrypted=True,
        )  # fmt: skip
        options: Any = {"patience": timedelta(0)}  # what moto makes is there at once
        snapshots = RdsSnapshots(here, OWNER, **options)
        made = snapshots.create("shop-db", POINT)
        assert snapshots.create("shop-db", POINT).arn == made.arn
        source = snapshots.wait(NAME)
        assert facts(source).data_time.tzinfo is not None
        copies = RdsSnapshots(there, OWNER, **options)
        copies.copy(source, key)
        assert copies.wait(NAME).source == source.arn
        assert [s.identifier for s in copies.list()] == [NAME]
        assert RdsSnapshots(there, Owner("other", "production")).list() == ()
        copies.delete(NAME, {})
        assert copies.find(NAME) is None and snapshots.find(NAME) is not None
        with pytest.raises(Failed, match="DBInstanceNotFound"):
            snapshots.create("nobody", "00000043")
