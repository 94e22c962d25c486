"""Flags: the definition and its changes."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain.errors import UsageError
from domain.flags import Definition, parse

SWITCH = {"state": "ENABLED", "variants": {"on": True, "off": False}, "defaultVariant": "off"}
BY_TEAM = {"fractional": [{"var": "team"}, ["on", 20], ["off", 80]]}
COLOUR = {
    "state": "ENABLED",
    "variants": {"red": "#f00", "blue": "#00f"},
    "defaultVariant": "red",
    "targeting": {"if": [{"==": [{"var": "team"}, "a"]}, "blue", None]},
}


def text(**flags: Any) -> str:
    return json.dumps({"$evaluators": {"x": {"==": [1, 1]}}, "flags": flags})


def definition(**flags: Any) -> Definition:
    return parse(text(**flags), "flags.json")


shares = st.integers(0, 10_000).map(lambda weight: weight / 10_000)


@given(shares)
def test_a_share_is_read_back_as_it_was_set_and_others_stay(share: float) -> None:
    before = definition(a=SWITCH, colour=COLOUR)
    after = parse(before.with_share("a", share).to_text(), "again")
    assert after.share("a") == share
    assert json.loads(after.to_text())["flags"]["colour"] == COLOUR
    assert after.rest == before.rest
    assert after.flags["a"].default_variant == ("on" if share == 1 else "off")


@given(shares)
def test_what_is_hashed_is_kept(share: float) -> None:
    flag = definition(a={**SWITCH, "targeting": BY_TEAM}).with_share("a", share).flags["a"]
    assert flag.targeting["fractional"][0] == {"var": "team"}
    assert flag.share == share


def test_a_split_that_a_person_wrote_is_read() -> None:
    assert definition(a={**SWITCH, "targeting": BY_TEAM}).share("a") == 0.2


@given(shares)
def test_a_killed_flag_has_no_trace_of_on(share: float) -> None:
    killed = definition(a=SWITCH, b=SWITCH).with_share("a", share).killed(["a", "not-there"])
    assert killed.flags["a"].to_json() == SWITCH
    assert list(killed.flags) == ["a", "b"]


def test_carrying_brings_new_flags_in_off_and_leaves_known_ones() -> None:
    source = definition(new={**SWITCH, "defaultVariant": "on"}, known=SWITCH, other=SWITCH)
    known = definition(known=SWITCH, colour=COLOUR).with_share("known", 0.3)
    carried = known.carrying(source, ["new", "known"])
    assert (carried.share("new"), carried.share("known")) == (0.0, 0.3)
    assert list(carried.flags) == ["known", "colour", "new"]
    assert carried.carrying(source, ["new", "known"]) == carried


@pytest.mark.parametrize(
    ("flag", "sentence"),
    [
        (COLOUR, "variants must be exactly"),
        ({**SWITCH, "variants": {"on": 1, "off": 0}}, "variants must be exactly"),
        ({**SWITCH, "variants": {"on": True, "off": False, "new": True}}, "variants must be"),
        ({"state": "ENABLED", "variants": {"on": True, "off": False}}, "defaultVariant must be"),
        ({**SWITCH, "targeting": {"if": [True, "on", "off"]}}, "targeting must be nothing"),
        ({**SWITCH, "targeting": {"fractional": [["off", 1], ["on", 1]]}}, "name on first"),
        ({**SWITCH, "targeting": {"fractional": [["on", 0], ["off", 0]]}}, "some weight"),
        ({**SWITCH, "targeting": {"fractional": [["on", -1], ["off", 2]]}}, "instead of"),
        ({**SWITCH, "targeting": {"fractional": [["on", True], ["off", 2]]}}, "instead of"),
        ({**SWITCH, "targeting": {"fractional": [{"$ref": "x"}, ["on", 1]]}}, "$ref"),
    ],
)
def test_what_is_no_switch_is_refused_with_the_reason(flag: Any, sentence: str) -> None:
    found = definition(a=flag)
    for change in (
        lambda: found.with_share("a", 0.5),
        lambda: Definition.empty().carrying(found, ["a"]),
        lambda: found.carrying(definition(a=SWITCH), ["a"]),
    ):
        with pytest.raises(UsageError) as refused:
            change()
        assert refused.value.code == "SLP080"
        assert sentence in refused.value.cause


def test_a_disabled_flag_has_no_share_and_is_enabled_by_setting_one() -> None:
    found = definition(a={**SWITCH, "state": "DISABLED"})
    with pytest.raises(UsageError, match="DISABLED"):
        found.share("a")
    assert found.with_share("a", 0.0).share("a") == 0


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan"), 0.00001])
def test_a_share_that_flagd_cannot_split_is_refused(share: float) -> None:
    with pytest.raises(UsageError):
        definition(a=SWITCH).with_share("a", share)


def test_an_unknown_flag_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UsageError, match="known here: a, b"):
        definition(a=SWITCH, b=SWITCH).with_share("c", 0.1)


@pytest.mark.parametrize(
    ("broken", "sentence"),
    [
        ("", "not JSON"),
        ("[]", "expected an object"),
        ("{}", "expected an object"),
        ('{"flags": {"a": {}, "a": {}}}', "'a' is there twice"),
        ('{"flags": {"a": {"state": "ENABLED", "variants": {"on": NaN}}}}', "NaN is no number"),
        (text(a=7), "flag 'a': "),
        (text(a={**SWITCH, "state": "enabled"}), "flag 'a': state: "),
        (text(a={"variants": {"on": True}}), "`state` is required"),
        (text(a={"state": "ENABLED", "variants": {}}), "flag 'a': variants: "),
        (text(a={**SWITCH, "defaultVariant": "blue"}), "not among the variants on, off"),
        (text(a={**SWITCH, "default": "on"}), "`default` is no field of flagd's"),
        ("[" * 100_000, "not JSON"),
    ],
)
def test_a_broken_file_is_refused_in_a_sentence(broken: str, sentence: str) -> None:
    with pytest.raises(UsageError) as refused:
        parse(broken, "flags.json")
    assert refused.value.code == "SLP080"
    assert sentence in refused.value.cause


def test_every_problem_is_listed() -> None:
    with pytest.raises(UsageError) as refused:
        parse(text(a={}, b={**SWITCH, "state": "x"}), "flags.json")
    assert len(refused.value.detail.splitlines()) == 3


@given(st.text())
def test_any_text_is_read_or_refused(content: str) -> None:
    try:
        parse(content, "flags.json")
    except UsageError as error:
        assert error.code == "SLP080"


@pytest.mark.parametrize(
    "changed",
    [
        {"targeting": {"if": [{"==": [{"var": "plan"}, "paid"]}, "on", "off"]}},
        {"variants": {"on": True, "off": False, "half": True}},
        {"targeting": {"fractional": [["off", 10], ["on", 90]]}},
        {"variants": {"red": 1, "blue": 2}, "defaultVariant": "red"},
        {"state": "DISABLED"},
    ],
)
def test_a_kill_refuses_no_form_of_a_flag(changed: dict[str, Any]) -> None:
    """A fault is behind it now; one odd flag must not keep the others on either."""
    plain = {"state": "ENABLED", "variants": {"on": True, "off": False}, "defaultVariant": "on"}
    text = json.dumps({"flags": {"odd": {**plain, **changed}, "plain": plain}})
    killed = parse(text, "flags.json").killed(["odd", "plain", "unknown"])
    assert all(flag.is_killed for flag in killed.flags.values())
    assert killed.share("plain") == 0.0
    again = parse(killed.to_text(), "flags.json")
    assert again.killed(["odd"]) == again


@pytest.mark.parametrize(
    "around", [{"metadata": {"x": None}}, {"metadata": [1]}, {"$evaluators": [1]}]
)
def test_what_the_provider_refuses_whole_is_refused_here(around: dict[str, Any]) -> None:
    """It would keep its old flags, and a kill written into such a file would never arrive."""
    with pytest.raises(UsageError):
        parse(json.dumps({"flags": {}, **around}), "flags.json")
