"""Only a pass advances, and nothing that was not looked at can be one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from domain.verdict import Check, Verdict, worst

VERDICTS = st.lists(st.sampled_from(Verdict))


def test_only_a_pass_advances() -> None:
    assert [verdict for verdict in Verdict if verdict.advances] == [Verdict.PASS]


def test_of_nothing_the_verdict_is_not_run() -> None:
    assert worst([]) is Verdict.NOT_RUN and worst(iter(())) is Verdict.NOT_RUN


@given(VERDICTS)
def test_a_whole_passes_only_when_each_part_does_and_there_is_one(parts: list[Verdict]) -> None:
    passes = bool(parts) and all(part is Verdict.PASS for part in parts)
    assert worst(parts).advances == passes


@given(VERDICTS, st.sampled_from(Verdict))
def test_more_parts_never_make_it_better(parts: list[Verdict], more: Verdict) -> None:
    order = list(Verdict)
    if parts:
        assert order.index(worst([*parts, more])) >= order.index(worst(parts))
    assert worst([*parts, more]) is worst([more, *reversed(parts)])


def test_a_failure_outweighs_everything() -> None:
    assert worst(Verdict) is Verdict.FAIL


def test_each_verdict_has_a_sign_and_only_a_pass_has_the_tick() -> None:
    assert [v for v in Verdict if v.symbol == "✔"] == [Verdict.PASS]


def test_a_check_needs_its_reason_and_no_negative_samples() -> None:
    with pytest.raises(ValidationError):
        Check.model_validate({"name": "x", "verdict": "pass"})
    with pytest.raises(ValidationError):
        Check(name="x", verdict=Verdict.PASS, reason="seen", samples=-1)
