"""Profiles as data: who is there when."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from domain.load_profile import PROFILES, Model, Phase, Profile, approach, ramp

LEVELS = st.integers(0, 40)


@st.composite
def profiles(draw: st.DrawFn) -> Profile:
    levels = draw(st.lists(LEVELS, min_size=2, max_size=6))
    levels[-1] = max(1, levels[-1])
    phases = [
        Phase(name=f"p{n}", seconds=draw(st.integers(1, 30)), start=a, end=b, judged=n == 0)
        for n, (a, b) in enumerate(pairwise(levels))
    ]
    return Profile(name="x", description="x", phases=tuple(phases))


@given(profiles(), st.floats(0, 0.999))
def test_at_any_moment_as_many_users_are_there_as_the_profile_says(
    profile: Profile, share: float
) -> None:
    moment = profile.seconds * share
    there = sum(
        any(begin <= moment < end for begin, end in profile.presence(rank + 0.5))
        for rank in range(41)
    )
    assert abs(there - profile.level_at(moment)) <= 1


@given(profiles())
def test_stays_follow_each_other_and_end_with_the_profile(profile: Profile) -> None:
    for rank in range(41):
        stays = profile.presence(rank + 0.25)
        assert all(begin < end for begin, end in stays)
        assert all(a[1] < b[0] for a, b in pairwise(stays))
        assert not stays or (stays[0][0] >= 0 and stays[-1][1] <= profile.seconds + 1e-9)


def test_the_profiles_that_ship_have_the_numbers_that_they_say() -> None:
    ten_k = PROFILES["10k"]
    assert ten_k.peak == 10_000
    assert ten_k.expected_rate() == 1000
    assert all(profile.name == name for name, profile in PROFILES.items())
    assert PROFILES["open"].model is Model.OPEN
    assert [p.name for p in PROFILES["spike"].phases if p.judged] == ["before", "spike", "after"]


@given(st.integers(1, 100_000), st.floats(0.1, 60), st.floats(5, 2000), st.floats(0, 0.999))
def test_on_the_way_to_a_load_hardly_more_is_asked_than_there(
    users: int, pause: float, fastest: float, share: float
) -> None:
    profile = approach(users, fastest, pause, 30, name="x", description="x")
    moment = profile.seconds * share
    phase = profile.phase_at(moment)
    coming = (phase.end - phase.start) / phase.seconds
    assert coming <= fastest * (1 + 1e-9)
    assert profile.level_at(moment) / pause + coming <= users / pause * (1.125 + 1e-9)
    assert profile.peak == users and all(a.end == b.start for a, b in pairwise(profile.phases))


def test_another_peak_keeps_the_shape() -> None:
    half = PROFILES["spike"].scaled(2500)
    assert [phase.end for phase in half.phases] == [500, 500, 2500, 2500, 500, 500]
    assert half.seconds == PROFILES["spike"].seconds


@pytest.mark.parametrize(
    "given",
    [
        {"phases": ()},
        {"phases": ({"name": "a", "seconds": 5, "start": 0, "end": 0, "judged": True},)},
        {"phases": ({"name": "a", "seconds": 5, "start": 1, "end": 1},)},
        {"phases": ({"name": "a", "seconds": -5, "start": 1, "end": 1, "judged": True},)},
        {"phases": ({"name": "a", "seconds": 5, "start": -1, "end": 1, "judged": True},)},
        {"phases": ({"name": "a", "seconds": 5, "start": 1, "end": 1, "judged": True},) * 2},
    ],
    ids=["none", "no users", "nothing judged", "negative time", "negative users", "a name twice"],
)
def test_a_profile_that_makes_no_load_is_refused(given: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Profile.model_validate({"name": "x", "description": "", **given})


def test_a_ramp_settles_before_it_is_judged() -> None:
    made = ramp(300, 30, 60, name="x", description="x")
    assert [(p.name, p.judged) for p in made.phases] == [
        ("ramp", False), ("settle", False), ("steady", True),
    ]  # fmt: skip
    assert made.phase_at(-1).name == "ramp"
    assert made.phase_at(1e9).name == "steady"
