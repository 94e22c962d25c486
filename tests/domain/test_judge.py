"""The judge: never a pass without the evidence, and a fail only when it is certain."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from domain.judge import Judgement, Limits, Look, Trial, detectable, judge
from domain.routing import LATENCY_BOUNDS_SECONDS, Counts
from domain.sequential import RATIOS, OwnsMore, ownership
from domain.verdict import Verdict

START = datetime(2026, 1, 1, tzinfo=UTC)
LIMITS = Limits(requests=200, error_rate=0.01, p95_seconds=0.2)


def counts(requests: int, errors: int = 0, seconds: float = 0.02, scale: float = 1.0) -> Counts:
    """All requests took ``seconds``; bounds in steps of a quarter, times ``scale``."""
    buckets = {
        f"{bound * scale:g}": requests if bound * scale >= seconds else 0
        for bound in LATENCY_BOUNDS_SECONDS
    }
    return Counts(requests=requests, errors=errors, buckets={**buckets, "+Inf": requests})


def look(candidate: Counts, stable: Counts | None, at: int = 0) -> Look:
    return Look(at=START + timedelta(seconds=at), candidate=candidate, stable=stable)


def verdict(candidate: Counts, stable: Counts | None, limits: Limits = LIMITS) -> Judgement:
    return judge([look(candidate, stable)], limits)


@given(st.integers(0, 199), st.integers(0, 10_000), st.integers(0, 199), st.integers(0, 10_000))
def test_nothing_passes_below_the_evidence_that_was_asked_for(
    new: int, old: int, new_errors: int, old_errors: int
) -> None:
    found = verdict(counts(new, min(new, new_errors)), counts(old, min(old, old_errors)))
    assert found.verdict is not Verdict.PASS
    assert found.reason


def test_enough_good_evidence_passes_and_says_its_numbers() -> None:
    found = verdict(counts(200), counts(3800, 1))
    assert found.verdict is Verdict.PASS
    assert found.numbers["candidate_requests"] == 200
    assert "0 of 200 requests" in found.reason and "1 of 3800" in found.reason


def test_no_look_is_not_run_and_no_request_is_no_data() -> None:
    assert judge([], LIMITS).verdict is Verdict.NOT_RUN
    assert verdict(counts(0), counts(5000)).verdict is Verdict.NO_DATA


def test_a_stable_version_that_nobody_asks_is_too_few_to_compare_with() -> None:
    found = verdict(counts(500), counts(3))
    assert found.verdict is Verdict.TOO_FEW and "old version got 3" in found.reason


def test_kayenta_426_a_zero_baseline_does_not_hide_errors() -> None:
    """Mann-Whitney lets a canary with errors pass when the control has none at all."""
    found = verdict(counts(2000, 12), counts(2000, 0), Limits(requests=200))
    assert found.verdict is Verdict.FAIL and found.numbers["rule"] == "errors"


def test_no_errors_anywhere_is_no_reason_to_wait() -> None:
    assert verdict(counts(200), counts(200)).verdict is Verdict.PASS


def test_kayenta_4d_a_difference_too_small_to_matter_does_not_alarm() -> None:
    """0.2 % more errors at a million requests each."""
    found = verdict(counts(10**6, 1002), counts(10**6, 1000), Limits(requests=200))
    assert found.verdict is Verdict.PASS


def test_kayenta_4b_one_request_each_is_not_enough_to_alarm() -> None:
    found = verdict(counts(1, 1), counts(1, 0), Limits(requests=1))
    assert found.verdict is not Verdict.FAIL


@pytest.mark.parametrize("scale", [1e-4, 1e-2, 1.0, 10.0])
def test_kayenta_4a_the_unit_of_time_does_not_matter(scale: float) -> None:
    """Kayenta's root finding has an absolute tolerance: it sees nothing below 1e-5."""
    random = np.random.default_rng(7)
    limits, trial, hit = Limits(requests=10**6), None, []
    for slow in (1.0, 1.5):
        trial = Trial(limits)
        sums = [np.zeros(len(LATENCY_BOUNDS_SECONDS) + 1, int) for _ in range(2)]
        for number in range(60):
            for arm, factor in enumerate((slow, 1.0)):
                seconds = 0.05 * factor * np.exp(random.normal(0, 0.3, 50))
                sums[arm][:-1] += [(seconds <= b).sum() for b in LATENCY_BOUNDS_SECONDS]
                sums[arm][-1] += 50
            new, old = (
                Counts(
                    requests=int(s[-1]),
                    buckets={
                        **{
                            f"{b * scale:.9g}": int(n)
                            for b, n in zip(LATENCY_BOUNDS_SECONDS, s[:-1], strict=True)
                        },
                        "+Inf": int(s[-1]),
                    },
                )
                for s in sums
            )
            found = trial.add(look(new, old, number))
        hit.append(found.verdict is Verdict.FAIL)
    assert hit == [False, True]


def test_kayenta_4f_a_judge_that_breaks_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """There a metric whose classification throws is in no count, and its group scores 100."""
    trial = Trial(LIMITS)
    monkeypatch.setattr(trial, "_judge", lambda look: 1 / 0)
    found = trial.add(look(counts(1000), counts(1000)))
    assert found.verdict is Verdict.ERROR and "ZeroDivisionError" in found.reason


@pytest.mark.parametrize(
    ("candidate", "why"),
    [
        (Counts(requests=-5), "negative"),
        (Counts(requests=5, errors=6), "6 errors in 5 requests"),
        (Counts(requests=500, buckets={"0.1": 400, "0.2": 300, "+Inf": 500}), "not cumulative"),
        (Counts(requests=500, buckets={"0.1": 400}), "no bound +Inf"),
        (Counts(requests=500, buckets={"soon": 400, "+Inf": 500}), "no upper bound"),
        (Counts(requests=500, buckets={"nan": 400, "+Inf": 500}), "no upper bound"),
        (Counts(requests=500, buckets={"0.1": 400, "+Inf": 500}), "different bounds"),
        (Counts.model_construct(requests=math.nan, errors=0, buckets={}), "no number"),
    ],
)
def test_argo_4h_counts_that_make_no_sense_are_an_error(candidate: Counts, why: str) -> None:
    """Argo Rollouts and Keptn let a NaN pass, since no comparison with it is true."""
    where = Look.model_construct(at=START, candidate=candidate, stable=counts(5000))
    found = judge([where], LIMITS)
    assert found.verdict is Verdict.ERROR and why in found.reason


def test_counts_that_went_back_are_an_error() -> None:
    found = judge([look(counts(500), counts(500)), look(counts(400), counts(600), 1)], LIMITS)
    assert found.verdict is Verdict.ERROR and "went back" in found.reason


def test_a_trial_that_failed_stays_failed() -> None:
    looks = [look(counts(400, 100), counts(4000)), look(counts(10**6, 100), counts(10**6), 1)]
    assert judge(looks, LIMITS).verdict is Verdict.FAIL


def test_a_broken_promise_fails_without_a_version_to_compare_with() -> None:
    found = verdict(counts(500, 60), None)
    assert found.verdict is Verdict.FAIL and found.numbers["rule"] == "objective error rate"
    slow = verdict(counts(500, 0, seconds=0.3), None)
    assert slow.verdict is Verdict.FAIL and slow.numbers["rule"] == "objective p95"


def test_a_promise_that_only_looks_broken_holds() -> None:
    found = verdict(counts(200, 3), counts(4000, 20))
    assert found.verdict is Verdict.TOO_FEW and "not certain yet" in found.reason


def test_a_repair_may_go_out_while_the_promise_is_broken_already() -> None:
    """CodeDeploy fails a deployment at once when its alarm is red before it begins."""
    found = verdict(counts(400, 10), counts(4000, 400))
    assert found.verdict is Verdict.PASS and found.numbers["already_red"] == ["errors"]


def test_a_bad_hour_that_both_share_is_not_the_candidates() -> None:
    found = verdict(counts(500, 50), counts(9500, 950), Limits(requests=200))
    assert found.verdict is Verdict.PASS


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(*[st.integers(0, 300)] * 4), min_size=1, max_size=12))
def test_a_replay_gives_the_same_answer(increments: list[tuple[int, int, int, int]]) -> None:
    new, old, looks = Counts(), Counts(), []
    for number, (a, x, b, y) in enumerate(increments):
        new = new.plus(counts(a, min(a, x)))
        old = old.plus(counts(b, min(b, y)))
        looks.append(look(new, old, number))
    trial = Trial(LIMITS)
    assert [trial.add(one) for one in looks][-1] == judge(looks, LIMITS)
    stored = [Look.model_validate_json(one.model_dump_json()) for one in looks]
    assert judge(stored, LIMITS) == judge(looks, LIMITS)


@pytest.mark.parametrize(("a", "b"), [(1, 1), (2, 5), (5, 1), (3, 3)])
@pytest.mark.parametrize("k", [1, 2, 3])
def test_evidence_does_not_grow_on_average_when_both_are_alike(a: int, b: int, k: int) -> None:
    """Exactly, over all ways in which ``k`` errors can fall on ``a + b`` requests."""
    if k > a + b:
        return
    ways = math.comb(a + b, k)
    mean = np.zeros(len(RATIOS))
    for x in range(max(0, k - b), min(a, k) + 1):
        chance = math.comb(a, x) * math.comb(b, k - x) / ways
        mean += chance * np.exp(ownership(a, x, b, k - x))
    assert (mean <= 1 + 1e-9).all()


def test_looking_after_every_error_seldom_alarms_by_mistake() -> None:
    """500 trials side by side; the benchmark `judge` has 2,000 and the other rules."""
    random, trials = np.random.default_rng(11), 500
    test, alarmed = OwnsMore((trials,)), np.zeros(trials, bool)
    for _ in range(1000):
        a = random.binomial(100, 0.05, trials)
        test.add(a, random.binomial(a, 0.01), 100 - a, random.binomial(100 - a, 0.01))
        alarmed |= test.log_evidence > math.log(100)
    assert alarmed.mean() <= 0.01


def test_what_can_be_seen_is_said_before() -> None:
    found = detectable(LIMITS, weight_percent=5, error_rate=0.001, requests=500)
    assert found.error_ratio is not None and 5 < found.error_ratio < 50
    assert "500 requests at 5%" in found.sentence
    none = detectable(LIMITS, weight_percent=50, error_rate=0.0, requests=10)
    assert none.error_ratio is None and "no rise" in none.sentence
