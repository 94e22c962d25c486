"""The judge: nothing but evidence passes, and no way of being wrong looks like health."""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from domain.histogram import bounds, fault, quantile
from domain.judge import BLOCKS_NEEDED, Judgement, Limits, Look, Trial, detectable, judge
from domain.routing import LATENCY_BOUNDS_SECONDS, Counts
from domain.sequential import Shares
from domain.verdict import Verdict

START = datetime(2026, 1, 1, tzinfo=UTC)
BOUNDS = ("0.05", "0.1", "0.2", "0.4", "+Inf")
FAST = (0.5, 0.9, 0.97, 1.0, 1.0)
SLOW = (0.1, 0.4, 0.7, 0.9, 1.0)
LIMITS = Limits()


def at(second: int) -> datetime:
    return START + timedelta(seconds=second)


def counts(requests: int, errors: int = 0, within: Sequence[float] = FAST) -> Counts:
    """Counts with latencies spread as ``within`` says, by bound."""
    buckets = {b: math.floor(requests * w) for b, w in zip(BOUNDS, within, strict=True)}
    return Counts(requests=requests, errors=errors, buckets=buckets)


def plain(requests: int, errors: int = 0) -> Counts:
    return Counts(requests=requests, errors=errors)


def steady(
    looks: int = 20,
    mine: tuple[int, float] = (50, 0.0),
    theirs: tuple[int, float] | None = (950, 0.0),
    make: Callable[[int, int], Counts] = counts,
    mine_make: Callable[[int, int], Counts] | None = None,
) -> list[Look]:
    """Looks at which each arm gains so many requests at such an error rate."""

    def arm(index: int, each: tuple[int, float], made: Callable[[int, int], Counts]) -> Counts:
        return made(index * each[0], math.floor(index * each[0] * each[1]))

    return [
        Look(
            at=at(index),
            candidate=arm(index, mine, mine_make or make),
            stable=None if theirs is None else arm(index, theirs, make),
        )
        for index in range(1, looks + 1)
    ]


def verdicts(looks: Sequence[Look], limits: Limits = LIMITS) -> list[Verdict]:
    trial = Trial(limits)
    return [trial.add(look).verdict for look in looks]


# --- the plain cases --------------------------------------------------------------------------


def test_a_candidate_that_is_no_worse_passes_once_there_is_enough() -> None:
    seen = verdicts(steady(mine=(50, 0.0)))
    assert seen[:3] == [Verdict.TOO_FEW] * 3
    assert seen[BLOCKS_NEEDED - 1 :] == [Verdict.PASS] * (21 - BLOCKS_NEEDED)


def test_more_errors_fail_early_and_for_good() -> None:
    bad = steady(10, mine=(50, 0.2), theirs=(950, 0.001))
    seen = verdicts(bad)
    assert Verdict.FAIL in seen[:3] and seen[-1] is Verdict.FAIL
    last = bad[-1]
    better = [
        Look(
            at=at(10 + k),
            candidate=counts(last.candidate.requests + 5000 * k, last.candidate.errors),
            stable=counts(9500 + 95_000 * k, 9 + 2000 * k),
        )
        for k in range(1, 30)
    ]
    assert judge([*bad, *better], LIMITS).verdict is Verdict.FAIL


def test_slower_requests_fail_without_a_single_error() -> None:
    looks = steady(60, (100, 0.0), (100, 0.0), mine_make=lambda n, e: counts(n, e, SLOW))
    judgement = judge(looks, LIMITS)
    assert (judgement.verdict, judgement.numbers["rule"]) == (Verdict.FAIL, "slower requests")
    assert Verdict.PASS not in verdicts(looks)
    assert judge(steady(60, (100, 0.0), (100, 0.0)), LIMITS).verdict is Verdict.PASS


def test_a_reason_has_metric_value_limit_and_samples() -> None:
    judgement = judge(steady(5, mine=(50, 0.2), theirs=(950, 0.001)), LIMITS)
    assert "errors" in judgement.reason and "alarm at 200" in judgement.reason
    numbers = judgement.numbers
    assert numbers["threshold"] == 200.0 and numbers["rule"] == "share of errors"
    assert numbers["candidate_requests"] == 250 and numbers["candidate_errors"] == 50
    assert numbers["evidence"]["errors"] >= 200


def test_everything_at_once_is_compared_and_told() -> None:
    limits = Limits(error_rate=0.01, p95_seconds=0.3)
    judgement = judge(steady(20), limits)
    assert judgement.verdict is Verdict.PASS
    assert judgement.numbers["threshold"] == 400.0, "alpha in four parts"
    assert set(judgement.numbers["evidence"]) == {"errors", "latency", "error_rate", "p95_seconds"}


def test_without_a_histogram_the_reason_says_so() -> None:
    judgement = judge(steady(make=plain), LIMITS)
    assert judgement.verdict is Verdict.PASS and "latencies were not measured" in judgement.reason


# --- objectives -------------------------------------------------------------------------------


def test_an_objective_fails_only_on_evidence_and_holds_before() -> None:
    limits = Limits(error_rate=0.01)
    looks = steady(200, (50, 0.04), None, make=plain)
    seen = verdicts(looks, limits)
    first = seen.index(Verdict.FAIL)
    assert first > 3 and set(seen[:first]) == {Verdict.TOO_FEW}
    held = judge(looks[: max(4, first)], limits)
    assert held.numbers["rule"] == "objective error_rate not certain"


def test_a_latency_objective_fails_on_evidence() -> None:
    limits = Limits(p95_seconds=0.15)
    slow = steady(80, (100, 0.0), None, make=lambda n, e: counts(n, e, SLOW))
    judgement = judge(slow, limits)
    assert judgement.verdict is Verdict.FAIL and "p95" in judgement.reason
    assert Verdict.PASS not in verdicts(slow, limits)
    assert judge(slow, Limits(p95_seconds=0.4)).verdict is not Verdict.PASS
    assert judge(steady(20, theirs=None), Limits(p95_seconds=0.3)).verdict is Verdict.PASS


def test_pain_13_an_objective_that_stable_breaks_itself_is_already_red() -> None:
    """ECS ignores a rollback alarm that is red already, or fails at once; both are wrong."""
    limits = Limits(error_rate=0.001)
    same = judge(steady(40, (500, 0.02), (500, 0.02), make=plain), limits)
    assert same.verdict is Verdict.PASS and "already red" in same.reason
    assert same.numbers["error_rate_already_red"] is True
    fix = judge(steady(40, (500, 0.0), (500, 0.02), make=plain), limits)
    assert fix.verdict is Verdict.PASS
    worse = judge(steady(40, (500, 0.1), (500, 0.02), make=plain), limits)
    assert (worse.verdict, worse.numbers["rule"]) == (Verdict.FAIL, "share of errors")


def test_what_was_red_for_certain_stays_red_when_stable_recovers() -> None:
    limits = Limits(error_rate=0.02)
    red = Look(at=at(1), candidate=plain(500, 40), stable=plain(500, 45))
    better = Look(at=at(2), candidate=plain(1000, 40), stable=plain(10_000, 45))
    assert judge([red], limits).numbers["error_rate_already_red"] is True
    assert "objective" not in judge([red, better], limits).numbers["rule"]


def test_a_p95_objective_without_latencies_is_no_pass() -> None:
    judgement = judge(steady(make=plain), Limits(p95_seconds=0.3))
    assert judgement.verdict is Verdict.NO_DATA and "no latencies" in judgement.reason


def test_an_objective_beyond_the_last_bucket_cannot_be_judged() -> None:
    judgement = judge(steady(), Limits(p95_seconds=30))
    assert judgement.verdict is Verdict.ERROR and "beyond the last bucket" in judgement.reason


# --- the bugs of others -----------------------------------------------------------------------


def test_pain_1_a_check_that_never_ran_is_no_pass() -> None:
    assert judge([], LIMITS).verdict is Verdict.NOT_RUN


@pytest.mark.parametrize("requests", [0, 1, 5, 199])
def test_pain_2_short_traffic_holds_and_does_not_fail(requests: int) -> None:
    look = Look(at=START, candidate=counts(requests), stable=counts(10_000))
    expected = Verdict.TOO_FEW if requests else Verdict.NO_DATA
    assert judge([look], LIMITS).verdict is expected
    trial = Trial(LIMITS)
    for second in range(1000):
        assert trial.add(look.model_copy(update={"at": at(second)})).verdict is expected


def test_pain_2_traffic_that_stops_at_stable_is_no_comparison() -> None:
    """Flagger advanced after the traffic had stopped (#1011)."""
    looks = steady(10, (100, 0.0), (100, 0.0), make=plain)
    assert judge(looks, LIMITS).verdict is Verdict.PASS
    gone = Look(at=at(11), candidate=plain(5000, 4000), stable=looks[-1].stable)
    judgement = judge([*looks, gone], LIMITS)
    assert (judgement.verdict, judgement.numbers["rule"]) == (Verdict.TOO_FEW, "uncompared")


def test_pain_3_errors_are_seen_where_stable_has_none_at_all() -> None:
    """Mann-Whitney on rates misses them (kayenta #426, #780, #377; spinnaker #5622)."""
    looks = steady(20, (50, 0.03), (950, 0.0))
    assert judge(looks, LIMITS).verdict is Verdict.FAIL


def test_no_errors_anywhere_is_a_pass_and_no_division() -> None:
    assert judge(steady(20), LIMITS).verdict is Verdict.PASS


@pytest.mark.parametrize("scale", [1e-6, 1e-5, 1e-4, 1e-3, 1.0, 10.0])
def test_kayenta_4a_the_verdict_does_not_depend_on_the_unit(scale: float) -> None:
    def scaled(within: Sequence[float]) -> Callable[[int, int], Counts]:
        def make(requests: int, errors: int) -> Counts:
            known = counts(requests, errors, within)
            return known.model_copy(
                update={"buckets": {str(float(b) * scale): n for b, n in known.buckets.items()}}
            )

        return make

    slower = steady(60, (100, 0.0), (100, 0.0), scaled(FAST), scaled(SLOW))
    usual = steady(60, (100, 0.0), (100, 0.0), mine_make=lambda n, e: counts(n, e, SLOW))
    assert verdicts(slower) == verdicts(usual)
    trials = judge(slower, LIMITS).numbers, judge(usual, LIMITS).numbers
    assert trials[0]["evidence"] == trials[1]["evidence"]
    assert trials[0]["stable_p95_seconds"] == pytest.approx(scale * trials[1]["stable_p95_seconds"])


@pytest.mark.parametrize("requests", [1, 2, 3])
def test_kayenta_4b_one_two_or_three_requests_are_never_an_alarm(requests: int) -> None:
    for mine, theirs in itertools.product(range(requests + 1), repeat=2):
        look = Look(at=START, candidate=plain(requests, mine), stable=plain(requests, theirs))
        assert judge([look], LIMITS).verdict is Verdict.TOO_FEW


def test_kayenta_4c_a_few_bad_minutes_among_quiet_ones_are_seen() -> None:
    """Kayenta needs 27 of 60 points to move; here 6 minutes of 60 have errors, stable none."""
    mine = list(itertools.accumulate(4 if minute % 10 == 5 else 0 for minute in range(60)))
    looks = [
        Look(at=at(m), candidate=counts(50 * (m + 1), mine[m]), stable=counts(950 * (m + 1)))
        for m in range(60)
    ]
    assert judge(looks, LIMITS).verdict is Verdict.FAIL


def test_kayenta_4d_a_shift_too_small_to_matter_is_no_failure() -> None:
    """0.2 % slower with hardly any noise: inside the same bucket for all but a few requests."""
    random = np.random.default_rng(5)
    edges = np.array([0.05, 0.1, 0.2, 0.4])
    arms = np.zeros((2, 5), dtype=int)
    looks = []
    for second in range(60):
        for arm, level in enumerate((0.15 * 1.002, 0.15)):
            times = level * np.exp(0.01 * random.standard_normal(200))
            arms[arm] += [*(times[:, None] <= edges).sum(0), 200]
        mine, theirs = (
            Counts(requests=int(a[-1]), buckets=dict(zip(BOUNDS, map(int, a), strict=True)))
            for a in arms
        )
        looks.append(Look(at=at(second), candidate=mine, stable=theirs))
    assert judge(looks, LIMITS).verdict is Verdict.PASS


def test_kayenta_4f_a_judge_that_crashes_never_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """There an all-Error group scores 100."""
    looks = steady(20)
    trial, whole = Trial(LIMITS), Shares.add
    crashes: Iterator[bool] = (number == 2 for number in itertools.count())

    def add(self: Shares, gained: Any) -> None:
        if next(crashes):
            raise ZeroDivisionError("planted")
        whole(self, gained)

    monkeypatch.setattr(Shares, "add", add)
    seen = [trial.add(look) for look in looks]
    assert {judgement.verdict for judgement in seen[2:]} == {Verdict.ERROR}
    assert "ZeroDivisionError" in seen[-1].reason


def test_argo_4g_without_anything_to_judge_by_there_is_no_pass() -> None:
    """There a metric without conditions is Successful."""
    judgement = judge(steady(50, theirs=None), LIMITS)
    assert judgement.verdict is Verdict.NOT_RUN and "no objective" in judgement.reason


@pytest.mark.parametrize("limits", [LIMITS, Limits(error_rate=0.01), Limits(p95_seconds=0.3)])
@pytest.mark.parametrize("field", ["requests", "errors", "buckets"])
def test_argo_4h_not_a_number_is_an_error(limits: Limits, field: str) -> None:
    """There NaN meets no failure condition, and passes."""
    wrong: Any = dict.fromkeys(BOUNDS, math.nan) if field == "buckets" else math.nan
    bad = counts(1000).model_copy(update={field: wrong})
    for arms in ({"candidate": bad}, {"stable": bad}):
        whole = {"at": at(99), "candidate": counts(9999), "stable": counts(99_999), **arms}
        look = Look.model_construct(**whole)
        assert judge([*steady(20), look], limits).verdict is Verdict.ERROR
    with pytest.raises(ValidationError):
        Counts.model_validate({"requests": math.nan})


def test_argo_4i_a_trial_that_is_ended_before_it_measured_is_no_pass() -> None:
    nothing = Look(at=START, candidate=Counts(), stable=Counts())
    assert judge([nothing], LIMITS).verdict is Verdict.NO_DATA


# --- what cannot be ---------------------------------------------------------------------------

GOOD = steady(20)
LAST = GOOD[-1]
assert LAST.stable is not None


def _with(arm: str, **fields: Any) -> Look:
    now = counts(2000 if arm == "candidate" else 40_000).model_copy(update=fields)
    whole = {"candidate": counts(2000), "stable": counts(40_000), arm: now}
    return Look.model_construct(at=at(30), **whole)


MALFORMED = {
    "negative requests": {"requests": -1},
    "negative errors": {"errors": -5},
    "half a request": {"requests": 2000.5},
    "text": {"requests": "2000"},
    "true": {"errors": True},
    "nothing": {"requests": None},
    "more errors than requests": {"errors": 10**9},
    "fewer requests than before": {"requests": 10},
    "buckets not ascending": {"buckets": dict(zip(BOUNDS, (9, 8, 7, 6, 5), strict=True))},
    "buckets not monotone": {"buckets": {**counts(50_000).buckets, "0.2": 1}},
    "a bucket below its past": {"buckets": {**counts(50_000).buckets, "0.05": 1}},
    "a negative bucket": {"buckets": {**counts(50_000).buckets, "0.05": -1}},
    "bounds that are no number": {"buckets": {"fast": 1, "+Inf": 2}},
    "a bound that is not a number": {"buckets": {"nan": 1, "+Inf": 2}},
    "a bound of zero": {"buckets": {"0": 1, "+Inf": 2}},
    "a bound twice": {"buckets": {"0.1": 1, "0.10": 1}},
    "other bounds than before": {"buckets": {"0.3": 1000, "+Inf": 2000}},
    "no buckets any more": {"buckets": {}},
    "buckets of another kind": {"buckets": [1, 2]},
}


@pytest.mark.parametrize("arm", ["candidate", "stable"])
@pytest.mark.parametrize("fields", MALFORMED.values(), ids=MALFORMED.keys())
def test_counts_that_cannot_be_are_an_error_and_change_nothing(
    arm: str, fields: dict[str, Any]
) -> None:
    trial, undisturbed = Trial(LIMITS), Trial(LIMITS)
    for look in GOOD:
        trial.add(look)
        undisturbed.add(look)
    judgement = trial.add(_with(arm, **fields))
    assert judgement.verdict is Verdict.ERROR and judgement.reason
    after = Look(at=at(31), candidate=counts(2500), stable=counts(50_000))
    assert trial.add(after) == undisturbed.add(after)


@pytest.mark.parametrize(
    "look",
    [
        Look(at=START - timedelta(days=1), candidate=counts(9999), stable=counts(99_999)),
        Look(at=at(99), candidate=counts(9999), stable=None),
        Look.model_construct(at=at(99), candidate=None, stable=counts(99_999)),
        Look.model_construct(at=None, candidate=counts(9999), stable=counts(99_999)),
        Look(at=at(99).replace(tzinfo=None), candidate=counts(9999), stable=counts(99_999)),
        Look.model_construct(),
    ],
    ids=["older", "stable gone", "no candidate", "no time", "no time zone", "nothing at all"],
)  # fmt: skip
def test_a_look_that_cannot_follow_is_an_error(look: Look) -> None:
    assert judge([*GOOD, look], LIMITS).verdict is Verdict.ERROR


def test_arms_that_are_measured_differently_cannot_be_compared() -> None:
    odd = counts(1000).model_copy(update={"buckets": {"0.3": 900, "+Inf": 1000}})
    for mine, theirs in ((odd, counts(9000)), (plain(1000), counts(9000)), (odd, plain(1000))):
        judgement = judge([Look(at=START, candidate=mine, stable=theirs)], LIMITS)
        assert judgement.verdict is Verdict.ERROR and "bucket bounds" in judgement.reason


def test_an_arm_without_a_request_has_no_series_yet() -> None:
    """Traefik knows no series before the first request."""
    idle = Look(at=START, candidate=Counts(), stable=counts(1000))
    assert judge([idle], LIMITS).verdict is Verdict.NO_DATA
    assert judge([idle, *steady(20, theirs=(1950, 0.0))], LIMITS).verdict is Verdict.PASS


def test_a_restart_is_taken_out_before_the_judge_sees_it() -> None:
    """``since`` knows a restart by any counter that went back; the judge refuses such a look."""
    before = counts(1000, 5)
    after = counts(1200, 1)
    assert after.since(before) == after
    assert counts(1300, 7).since(before).errors == 2
    looks = [
        Look(at=at(1), candidate=before, stable=counts(9000, 9)),
        Look(at=at(2), candidate=after, stable=counts(9500, 9)),
    ]
    assert judge(looks, LIMITS).verdict is Verdict.ERROR


@pytest.mark.parametrize(
    "limits",
    [
        {"alpha": 0}, {"alpha": 0.9}, {"alpha": math.nan}, {"requests": 0}, {"error_rate": 0},
        {"error_rate": 1}, {"error_rate": math.nan}, {"p95_seconds": 0}, {"p95_seconds": math.inf},
        {"latency": 1},
    ],
)  # fmt: skip
def test_limits_that_could_not_be_held_are_refused(limits: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Limits.model_validate(limits)


# --- properties -------------------------------------------------------------------------------


@st.composite
def gains(draw: st.DrawFn) -> Counts:
    requests = draw(st.integers(0, 400))
    ranks = sorted(draw(st.lists(st.integers(0, requests), min_size=4, max_size=4)))
    return Counts(
        requests=requests,
        errors=draw(st.integers(0, min(requests, draw(st.sampled_from([0, 1, 5, 400]))))),
        buckets=dict(zip(BOUNDS, [*ranks, requests], strict=True)),
    )


def plus(one: Counts, other: Counts) -> Counts:
    return Counts(
        requests=one.requests + other.requests,
        errors=one.errors + other.errors,
        buckets={b: one.buckets.get(b, 0) + other.buckets.get(b, 0) for b in BOUNDS},
    )


@st.composite
def histories(draw: st.DrawFn) -> list[Look]:
    mine = itertools.accumulate(draw(st.lists(gains(), min_size=1, max_size=12)), plus)
    alone = draw(st.booleans()) and draw(st.booleans())
    theirs = itertools.accumulate(draw(st.lists(gains(), min_size=12, max_size=12)), plus)
    return [
        Look(at=at(second), candidate=a, stable=None if alone else b)
        for second, (a, b) in enumerate(zip(mine, theirs, strict=False))
    ]


limits_of = st.builds(
    Limits,
    alpha=st.sampled_from([0.001, 0.01, 0.2]),
    requests=st.integers(1, 600),
    error_rate=st.sampled_from([None, 0.001, 0.3]),
    p95_seconds=st.sampled_from([None, 0.1, 0.15]),
)
few = settings(max_examples=60)


@few
@given(histories(), limits_of)
def test_a_pass_has_the_evidence_it_needs(looks: list[Look], limits: Limits) -> None:
    trial = Trial(limits)
    for look in looks:
        judgement = trial.add(look)
        if judgement.verdict is not Verdict.PASS:
            continue
        assert look.candidate.requests >= limits.requests
        assert look.stable is None or look.stable.requests >= limits.requests
        compared = {k: e for k, e in judgement.numbers["evidence"].items() if k in ("errors",)}
        assert all(e < judgement.numbers["threshold"] ** 0.5 for e in compared.values())
        red = judgement.numbers.get("error_rate_already_red")
        if limits.error_rate is not None and not red:
            assert look.candidate.errors <= limits.error_rate * look.candidate.requests


@few
@given(histories(), limits_of)
def test_a_journal_replays_to_the_same_answer(looks: list[Look], limits: Limits) -> None:
    trial = Trial(limits)
    live = [trial.add(look) for look in looks]
    read_back = [Look.model_validate_json(look.model_dump_json()) for look in looks]
    again = Limits.model_validate_json(limits.model_dump_json())
    for index in range(len(looks)):
        assert judge(read_back[: index + 1], again) == live[index]
    for judgement in live:
        text = json.dumps(judgement.numbers, allow_nan=False)
        assert json.loads(text) == judgement.numbers
        assert judgement.reason and "\n" not in judgement.reason


@few
@given(histories(), limits_of, st.data())
def test_more_errors_of_the_candidate_never_save_it(
    looks: list[Look], limits: Limits, data: st.DataObject
) -> None:
    first = data.draw(st.integers(0, len(looks) - 1))
    more = data.draw(st.integers(1, 50))
    worse = [
        look if index < first
        else look.model_copy(update={"candidate": look.candidate.model_copy(
            update={"errors": look.candidate.errors + more})})
        for index, look in enumerate(looks)
    ]  # fmt: skip
    if any(look.candidate.errors > look.candidate.requests for look in worse):
        return
    before, after = judge(looks, limits).verdict, judge(worse, limits).verdict
    assert not (before is Verdict.FAIL and after is not Verdict.FAIL)
    assert not (before is not Verdict.PASS and after is Verdict.PASS)


@few
@given(gains(), gains())
def test_of_two_arms_at_most_one_is_worse(one: Counts, other: Counts) -> None:
    limits = Limits(alpha=0.5)
    there = judge([Look(at=START, candidate=one, stable=other)], limits).verdict
    back = judge([Look(at=START, candidate=other, stable=one)], limits).verdict
    assert not (there is Verdict.FAIL and back is Verdict.FAIL)
    if one == other:
        assert Verdict.FAIL not in (there, back)


@few
@given(histories(), st.permutations(BOUNDS))
def test_the_order_in_which_buckets_are_listed_means_nothing(
    looks: list[Look], order: list[str]
) -> None:
    def mixed(each: Counts | None) -> Counts | None:
        return each and each.model_copy(update={"buckets": {b: each.buckets[b] for b in order}})

    other = [
        look.model_copy(update={"candidate": mixed(look.candidate), "stable": mixed(look.stable)})
        for look in looks
    ]
    assert judge(other, LIMITS) == judge(looks, LIMITS)


@few
@given(histories())
def test_a_look_that_is_read_twice_changes_no_verdict(looks: list[Look]) -> None:
    twice = [look for look in looks for _ in range(2)]
    assert verdicts(twice)[1::2] == verdicts(looks)


# --- seeded chance ----------------------------------------------------------------------------


def test_equal_arms_are_seldom_failed_and_at_last_passed() -> None:
    """One in 100 may ever fail; of 150 no more than 6 do, looked at after every minute."""
    random = np.random.default_rng(6)
    ends: list[Judgement] = []
    for _ in range(150):
        mine = random.binomial(50, 0.01, 60).cumsum()
        theirs = random.binomial(450, 0.01, 60).cumsum()
        looks = [
            Look(at=at(m), candidate=plain(50 * (m + 1), int(mine[m])),
                 stable=plain(450 * (m + 1), int(theirs[m])))
            for m in range(60)
        ]  # fmt: skip
        ends.append(judge(looks, LIMITS))
    assert sum(end.verdict is Verdict.FAIL for end in ends) <= 6
    assert sum(end.verdict is Verdict.PASS for end in ends) >= 120


# --- a margin -------------------------------------------------------------------------------


def timed(median: float) -> Callable[[int, int], Counts]:
    """Counts with log-normal latencies whose p95 is 2.3 medians, in the buckets of an edge."""

    def make(requests: int, errors: int) -> Counts:
        within = {
            str(bound): round(requests * NormalDist(math.log(median), 0.5).cdf(math.log(bound)))
            for bound in LATENCY_BOUNDS_SECONDS
        }
        return Counts(requests=requests, errors=errors, buckets=within | {"+Inf": requests})

    return make


def test_half_a_millisecond_is_no_reason_to_go_back_where_users_were_promised_200() -> None:
    """A good canary went back: p95 4.49 ms against 3.96, with 1 request in 5 and colder caches."""
    looks = steady(150, (50, 0.0), (200, 0.0), timed(0.0017), timed(0.0019))
    asked = Limits(p95_seconds=0.2)
    assert judge(looks, asked).numbers["rule"] == "slower requests"
    judgement = judge(looks, asked.model_copy(update={"margin_seconds": 0.002}))
    assert judgement.verdict is Verdict.PASS


def test_a_slowdown_beyond_the_margin_fails_and_the_reason_names_it() -> None:
    looks = steady(150, (50, 0.0), (200, 0.0), timed(0.0017), timed(0.0034))
    judgement = judge(looks, Limits(p95_seconds=0.2, margin_seconds=0.002))
    assert (judgement.verdict, judgement.numbers["rule"]) == (Verdict.FAIL, "slower requests")
    assert "slower by more than 2 ms: p95 0.0" in judgement.reason
    assert judgement.numbers["margin_seconds"] == 0.002


def test_a_margin_is_part_of_what_can_be_seen() -> None:
    limits = Limits(margin_seconds=0.002)
    seen = detectable(limits, weight_percent=20, error_rate=0.001, requests=5000)
    assert re.search(r"a p95 up \d+ % and 2 ms$", seen.sentence)


# --- before the rollout -----------------------------------------------------------------------


def test_what_can_be_seen_is_said_in_one_sentence() -> None:
    seen = detectable(LIMITS, weight_percent=5, error_rate=0.001, requests=500)
    assert seen.error_ratio is not None and 8 < seen.error_ratio < 25
    assert seen.requests == 500 and "\n" not in seen.sentence
    assert seen.sentence.startswith("with 500 requests at 5 %, it can see ")
    assert "times the errors of 0.1 %, not " in seen.sentence


def test_more_requests_and_fewer_tests_see_more() -> None:
    def ratio(limits: Limits, requests: int) -> float:
        seen = detectable(limits, weight_percent=50, error_rate=0.001, requests=requests)
        assert seen.error_ratio is not None
        return seen.error_ratio

    assert ratio(LIMITS, 50_000) < ratio(LIMITS, 5000) < ratio(LIMITS, 500)
    assert ratio(Limits(alpha=0.1), 5000) < ratio(LIMITS, 5000)
    assert ratio(LIMITS, 5000) <= ratio(Limits(error_rate=0.1, p95_seconds=1), 5000)


def test_it_says_when_nothing_can_be_seen() -> None:
    blind = detectable(LIMITS, weight_percent=5, error_rate=0.001, requests=1)
    assert (blind.error_ratio, blind.p95_ratio) == (None, None)
    assert "no rise above 0.1 %, and no slowdown" in blind.sentence


def test_where_stable_has_no_errors_a_rate_is_said_instead_of_a_ratio() -> None:
    seen = detectable(LIMITS, weight_percent=10, error_rate=0, requests=1000)
    assert seen.error_ratio is None and "where stable has none" in seen.sentence


@pytest.mark.parametrize(
    ("weight", "rate", "requests"),
    [(0, 0.1, 10), (100, 0.1, 10), (math.nan, 0.1, 10), (5, 1.0, 10), (5, -0.1, 10), (5, 0.1, 0)],
)
def test_a_step_that_cannot_be_is_refused(weight: float, rate: float, requests: int) -> None:
    with pytest.raises(ValueError):
        detectable(LIMITS, weight_percent=weight, error_rate=rate, requests=requests)


# --- histograms -------------------------------------------------------------------------------


def test_a_quantile_is_linear_inside_its_bucket_and_unknown_beyond_the_last() -> None:
    tall = Counts(requests=100, buckets={"0.1": 90, "0.2": 100, "+Inf": 100})
    assert quantile(tall, 0.95) == pytest.approx(0.15)
    assert quantile(tall, 0.45) == pytest.approx(0.05)
    late = Counts(requests=100, buckets={"0.1": 90, "+Inf": 100})
    assert quantile(late, 0.95) == math.inf
    assert quantile(Counts(requests=3), 0.95) is None and quantile(Counts(), 0.5) is None


def test_bounds_are_numbers_in_order() -> None:
    assert bounds({"+Inf": 2, "0.5": 1, "1e-06": 0}) == (1e-6, 0.5, math.inf)
    assert fault(Counts()) is None and fault(counts(100, 3)) is None
