"""Whose an RDS snapshot is, and which may be deleted."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from domain.rds_snapshots import HOLD, Owner, Snapshot, Window, why_kept

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
names = st.from_regex(r"[a-z][a-z0-9-]{0,38}[a-z0-9]", fullmatch=True)
owners = st.builds(Owner, names, names, st.sampled_from(["main", "restored-7"]))
points = st.integers(1, 10**8 - 1).map("{:08}".format)
kinds = st.sampled_from(["manual", "automated", "awsbackup", "shared", "public"])
statuses = st.sampled_from(["available", "creating", "failed", "copying", "deleting"])


@st.composite
def snapshots(draw: st.DrawFn) -> Snapshot:
    owner, point = draw(owners), draw(points)
    tags = owner.tags(point)
    for lost in draw(st.sets(st.sampled_from(sorted(tags)), max_size=1)):
        del tags[lost]
    if draw(st.booleans()):
        tags[HOLD] = "audit"
    return Snapshot(
        identifier=owner.identifier(point), arn="arn:aws:rds:eu-west-1:1:snapshot:x",
        instance="shop-db", kind=draw(kinds), status=draw(statuses), percent=100, taken_at=NOON,
        tags=tags,
    )  # fmt: skip


@given(owners, points)
def test_every_identifier_is_one_that_rds_takes(owner: Owner, point: str) -> None:
    found = owner.identifier(point)
    assert len(found) <= 255 and "--" not in found
    assert re.fullmatch(r"[a-z][a-z0-9-]*[a-z0-9]", found)
    assert found == owner.identifier(point) and found.endswith(point)


@given(snapshots(), owners, st.dictionaries(points, st.just("lawyers"), max_size=3), st.booleans())
def test_nothing_is_deleted_that_is_held_foreign_or_in_use(
    snapshot: Snapshot, other: Owner, held: dict[str, str], same: bool
) -> None:
    told = snapshot.tags
    owner = (
        Owner(told.get("slipway:application", "x1"), told.get("slipway:environment", "x1"),
              told.get("slipway:lineage", "x1")) if same else other
    )  # fmt: skip
    if why_kept(snapshot, owner, held) == "":
        assert snapshot.kind == "manual" and HOLD not in told
        assert owner.tags(told["slipway:point"]).items() <= told.items()
        assert snapshot.point not in held
        assert snapshot.status in ("available", "failed")


def test_our_own_snapshot_may_be_deleted() -> None:
    owner = Owner("shop", "production")
    ours = Snapshot("a", "arn:aws:rds:eu-west-1:1:snapshot:a", "db", "manual", "available",
                    100, NOON, tags=owner.tags("00000007"))  # fmt: skip
    assert why_kept(ours, owner, {"00000008": "audit"}) == ""
    assert why_kept(replace(ours, status="failed"), owner, {}) == ""
    assert why_kept(ours, owner, {"00000007": "audit"}) == "point 00000007 is held: audit"
    assert why_kept(ours, replace(owner, lineage="restored"), {})


def test_a_snapshot_without_its_time_is_not_there_yet() -> None:
    there = Snapshot("a", "arn:aws:rds:eu-west-1:1:snapshot:a", "db", "manual", "available", 100)
    assert not there.is_available
    assert replace(there, taken_at=NOON).is_available
    assert not replace(there, taken_at=NOON, percent=99).is_available
    assert there.region == "eu-west-1"


@given(st.integers(-100, 100))
def test_a_window_holds_its_ends_and_what_is_between(minutes: int) -> None:
    window = Window(NOON - timedelta(minutes=50), NOON)
    assert window.holds(NOON + timedelta(minutes=minutes)) == (-50 <= minutes <= 0)
