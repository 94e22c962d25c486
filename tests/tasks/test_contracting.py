"""A contraction that a release brings along: last, alone, written down before, and finished."""

from __future__ import annotations

from typing import Any

import pytest

from domain.application import Strategy
from domain.contract import Contraction, contraction_of
from domain.errors import Failed, UsageError
from domain.journal import Kind, Outcome, live
from tasks import contracting, rollout
from tasks.contracting import contract_when_due, require_whole
from tasks.releasing import restore_live, take_over, target_release
from tests.tasks.world import Killed, World

OLD, NEW = "shop.test.web.r1", "shop.test.web.r2"
SHOP = """
services: {web: {command: run, replicas: {default: 2}}}
database: {contract: drop, contract_after: release}
canary: {steps: [25%], requests: 20}
environments: {test: {keep_previous: KEEP}}
"""
AT_ONCE, KEPT = SHOP.replace("KEEP", "0s"), SHOP.replace("KEEP", "10m")


@pytest.fixture
def contracted(world: World, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Versions whose contraction ran."""
    found: list[str] = []

    def contract(platform: Any, record: Any, environment: str) -> None:
        world.outside()
        intents = [e for e in world.journal().entries if e.kind is Kind.INTENT]
        assert intents[-1].data["action"] == "Contract", "it runs before it is written down"
        versions = {spec.version for spec in world.specs.values()}
        assert versions == {record.version}, f"{versions} run while the schema is contracted"
        found.append(record.version)

    monkeypatch.setattr(rollout, "contract_database", contract)
    monkeypatch.setattr(contracting, "contract_database", contract)
    return found


@pytest.mark.parametrize("strategy", Strategy)
def test_it_runs_at_the_end_of_a_release_that_keeps_nothing(
    world: World, contracted: list[str], strategy: Strategy
) -> None:
    world.ship("1", strategy, AT_ONCE)
    assert world.ship("2", strategy, AT_ONCE).outcome is Outcome.PROMOTED
    assert contracted == ["1", "2"] and set(world.specs) == {NEW}
    assert contraction_of(world.journal().entries, 2) is Contraction.DONE
    with pytest.raises(UsageError) as caught:
        target_release(world.journal(), 0)
    assert caught.value.code == "SLP065"


def test_it_waits_for_what_is_kept_and_recover_runs_it_then(
    world: World, contracted: list[str]
) -> None:
    world.ship("1", text=KEPT)
    assert world.ship("2", text=KEPT).outcome is Outcome.PROMOTED
    assert contracted == ["1"]
    assert f"not contracted yet, since {OLD}" in world.journal().history()[-1].reason
    assert f"{OLD} still runs" in contract_when_due(world.platform, world.journal())
    assert target_release(world.journal(), 0).number == 1
    world.stop(OLD)
    assert contract_when_due(world.platform, world.journal()) == "the schema was contracted"
    assert contract_when_due(world.platform, world.journal()) == ""
    assert contracted == ["1", "2"]


def test_off_unless_it_is_declared(world: World, contracted: list[str]) -> None:
    by_hand = AT_ONCE.replace(", contract_after: release", "")
    world.ship("1", text=by_hand)
    world.ship("2", text=by_hand)
    assert contract_when_due(world.platform, world.journal()) == "" and contracted == []


def test_killed_at_any_call_recover_ends_it(world: World, contracted: list[str]) -> None:
    back = world.start_over(lambda new: new.ship("1", text=AT_ONCE))
    world.calls = 0
    world.ship("2", text=AT_ONCE)
    for call in range(1, world.calls + 1):
        back()
        contracted.clear()
        world.run = "hurt"
        world.kill_at(call)
        with pytest.raises(Killed):
            world.ship("2", text=AT_ONCE)
        world.run, world.seconds = "next", world.seconds + 7200
        journal = world.journal()
        take_over(world.platform, journal, go_on=True)
        restore_live(world.platform, journal)
        world.specs = {n: s for n, s in world.specs.items() if s.expires_at is None}
        contract_when_due(world.platform, journal)
        now = live(journal.history())
        assert now is not None and world.weights() == {now.workloads["web"]: 100}
        assert contraction_of(journal.entries, now.number) is Contraction.DONE
        assert (contracted[-1:] == ["2"]) == (now.version == "2")


def test_one_that_fails_leaves_the_version_serving_and_is_told(
    world: World, contracted: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    world.ship("1", text=AT_ONCE)
    works, attempts = rollout.contract_database, 0

    def fail(*args: Any) -> None:
        nonlocal attempts
        attempts += 1
        raise Failed("SLP052", "the contraction `drop` ended with code 1", help="look")

    monkeypatch.setattr(rollout, "contract_database", fail)
    assert world.ship("2", text=AT_ONCE).outcome is Outcome.PROMOTED
    assert world.weights() == {NEW: 100} and attempts == 1
    with pytest.raises(Failed, match="ended with code 1") as caught:
        require_whole(world.journal(), 2)
    assert "slipway recover shop" in caught.value.help
    with pytest.raises(UsageError, match="cannot run on it any more"):
        target_release(world.journal(), 1)
    monkeypatch.setattr(rollout, "contract_database", works)
    assert contract_when_due(world.platform, world.journal()) == "the schema was contracted"
    require_whole(world.journal(), 2)
