"""Whole rollouts in memory: what each strategy does with each kind of version."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from domain.application import Canary, CanaryStep, Strategy
from domain.journal import Outcome
from domain.judge import Limits
from domain.rollout import Policy, Target, steps_for
from domain.simulation import SCENARIOS, Behaviour, Scenario, Story, simulate

OLD = (Target(service="web", workload="web.r1", replicas=4),)
NEW = (Target(service="web", workload="web.r2", replicas=4),)


def policy(canary: Canary | None = None, **changes: object) -> Policy:
    return Policy(
        strategy=Strategy.CANARY,
        steps=steps_for(Strategy.CANARY, 4, canary=canary or Canary(requests=200)),
        limits=Limits(requests=200, error_rate=0.01, p95_seconds=0.2),
        patience=timedelta(minutes=10),
        **changes,  # type: ignore[arg-type]
    )


def run(scenario: str | Scenario, seed: int = 1, **changes: object) -> Story:
    found = SCENARIOS[scenario] if isinstance(scenario, str) else scenario
    return simulate(policy(**changes), NEW, OLD, found, seed)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("scenario", "outcome", "why"),
    [
        ("good", Outcome.PROMOTED, "all steps passed"),
        ("bad", Outcome.ROLLED_BACK, "errors"),
        ("slow", Outcome.ROLLED_BACK, "slower"),
        ("no-users", Outcome.ROLLED_BACK, "has not got its evidence within 10m"),
        ("never-ready", Outcome.ROLLED_BACK, "not ready within"),
        ("exits", Outcome.ROLLED_BACK, "exited: code 1"),
        ("blind", Outcome.ROLLED_BACK, "could not be seen"),
        ("killed", Outcome.ROLLED_BACK, "interrupted"),
    ],
)
def test_each_scenario_ends_as_it_should(scenario: str, outcome: Outcome, why: str) -> None:
    story = run(scenario)
    assert story.outcome is outcome, story
    assert why in story.reason


def test_a_killed_canary_that_may_go_on_does() -> None:
    assert run("killed", interrupted="continue").outcome is Outcome.PROMOTED


def test_an_outage_that_both_share_is_no_reason_to_go_back() -> None:
    """Argo and Flagger compare with a fixed number, and blame whoever is new."""
    assert run("both-bad").outcome is Outcome.PROMOTED


def test_flagger_1011_a_canary_does_not_advance_when_traffic_stops() -> None:
    story = run(replace(SCENARIOS["no-users"], requests_per_second=0.05))
    assert story.outcome is Outcome.ROLLED_BACK
    assert max(m.get("web.r2", 0) for m in story.moments) == 5


def test_a_bad_version_meets_few_users() -> None:
    stories = [run("bad", seed) for seed in range(5)]
    assert {s.outcome for s in stories} == {Outcome.ROLLED_BACK}
    assert all(s.errors < 40 for s in stories), [s.errors for s in stories]


def test_argo_4j_a_canary_of_one_replica_has_one_at_any_weight() -> None:
    """Without a router Argo gives 0 canary pods at n=2 w=75, n=10 w=95, n=50 w=99."""
    canary = Canary(steps=(CanaryStep(weight=99),), requests=50)
    one = (Target(service="web", workload="web.r2", replicas=1),)
    story = simulate(policy(canary), one, OLD, SCENARIOS["good"])
    assert all(m.get("web.r2", 0) in (0, 99, 100) for m in story.moments)
    assert story.outcome in (Outcome.PROMOTED, Outcome.ROLLED_BACK)


def test_the_same_seed_tells_the_same_story() -> None:
    assert run("worse", 7) == run("worse", 7)


def test_a_copy_of_requests_comes_before_users() -> None:
    story = run("bad", canary=Canary(mirror=200, requests=200))
    assert story.outcome is Outcome.ROLLED_BACK
    assert story.errors == 0, "users met a version that its copies had shown to be bad"


@settings(max_examples=25)
@given(
    errors=st.sampled_from([0.0, 0.001, 0.02, 0.3]),
    rate=st.sampled_from([0.0, 2.0, 80.0]),
    exits=st.sampled_from([None, 5.0, 40.0]),
    killed=st.sampled_from([None, 3.0, 20.0, 60.0]),
    going_on=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_whatever_happens_one_version_has_all_of_the_traffic_in_the_end(
    errors: float, rate: float, exits: float | None, killed: float | None, going_on: bool, seed: int
) -> None:
    scenario = Scenario(
        "generated", candidate=Behaviour(error_rate=errors), requests_per_second=rate,
        exits_at=exits, killed_at=killed,
    )  # fmt: skip
    story = run(scenario, seed, interrupted="continue" if going_on else "reverse")
    assert all(sum(m.values()) == 100 for m in story.moments)
    new = [m.get("web.r2", 0) for m in story.moments]
    if story.outcome is Outcome.PROMOTED:
        assert new[-1] == 100 and errors < 0.02
        assert [n for n, before in zip(new, [0, *new], strict=False) if n < before] == []
    else:
        assert story.outcome is Outcome.ROLLED_BACK and new[-1] == 0
