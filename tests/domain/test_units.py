"""Values with a unit: what is read, what is refused, and that nothing is lost on the way."""

from __future__ import annotations

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain.units import (
    LONGEST_SECONDS,
    format_duration,
    format_percent,
    parse_duration,
    parse_percent,
    parse_positive_duration,
)

MILLIS = st.integers(0, LONGEST_SECONDS * 1000)


@given(MILLIS)
def test_a_duration_survives_being_written(millis: int) -> None:
    value = timedelta(milliseconds=millis)
    assert parse_duration(format_duration(value)) == value


@given(st.integers(0, 10**9))
def test_a_percentage_survives_being_written(billionths: int) -> None:
    value = parse_percent(f"{billionths / 10**7:.7f}%")
    assert parse_percent(format_percent(value)) == value


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("200ms", 0.2), ("1.5s", 1.5), ("10m", 600), ("1h30m", 5400), ("2d", 172_800), ("0s", 0)],
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == timedelta(seconds=seconds)


@pytest.mark.parametrize(
    "text", [10, 1.5, True, None, "", "10", "10 m", "-1s", "s", "1w", "10m\n", "1s!", "١s", [], "."]
)
def test_no_unit_no_duration(text: object) -> None:
    with pytest.raises(ValueError, match="is not a duration"):
        parse_duration(text)


def test_a_duration_that_no_calendar_holds_is_refused_and_does_not_crash() -> None:
    with pytest.raises(ValueError, match="longer than ten years"):
        parse_duration("9" * 400 + "d")


@pytest.mark.parametrize("text", ["0s", "0ms", "0.0001s"])
def test_a_deadline_needs_some_time(text: str) -> None:
    with pytest.raises(ValueError, match="no time at all"):
        parse_positive_duration(text)


@pytest.mark.parametrize(
    ("text", "value"), [("99.9%", 0.999), ("0%", 0.0), ("100%", 1.0), ("0.1%", 0.001)]
)
def test_percentages(text: str, value: float) -> None:
    assert parse_percent(text) == value and format_percent(value) == text


@pytest.mark.parametrize("text", [0.999, 99.9, 1, True, None, "99.9", "101%", "-1%", "1%\n", "%"])
def test_a_percentage_needs_its_sign_and_a_sense(text: object) -> None:
    """``0.999`` without a sign could mean either of two things a thousandfold apart."""
    with pytest.raises(ValueError):
        parse_percent(text)
