"""Verdicts on runs that are made up: the measuring first, then the server."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

from domain.application import Objectives
from domain.arrivals import Dispersion
from domain.latency import Histogram
from domain.load_profile import Model, Profile, ramp
from domain.load_report import HEAT_EDGES_MS, LoadOutcome, figures_of
from domain.load_run import Run
from domain.load_verdict import LoadVerdict, hopeless, judge
from domain.units import parse_duration
from domain.verdict import Verdict

PROFILE = ramp(1000, 3, 30, name="x", description="x", pause_seconds=5)
OBJECTIVES = Objectives(p95=parse_duration("200ms"))
RATE = 200
Change = Callable[[dict[str, Any], int], None]


def tick(
    sequence: int, phase: str, chance: random.Random, *, slow: float = 0.05, rate: int = RATE
) -> dict[str, Any]:
    """One worker's second as ``load.recorder`` writes it: answers of about that many seconds."""
    response, lag, loop, sends = Histogram(), Histogram(), Histogram(), Dispersion()
    for _ in range(rate):
        response.record(int(1e6 * slow * chance.lognormvariate(0, 0.2)))
        lag.record(500)
        sends.record(sequence - 1 + chance.random())
    for _ in range(50):
        loop.record(800)
    series = {"response": response.to_dict(), "service": response.to_dict(), "failures": {},
              "bytes": 100}  # fmt: skip
    return {
        "kind": "tick", "sequence": sequence, "second": float(sequence), "users": 1000,
        "in_flight": 2, "phases": {phase: {"GET /": series}}, "lag": lag.to_dict(),
        "loop": loop.to_dict(), "sends": {phase: sends.to_dict()}, "connections": 0,
        "reconnections": 0, "answered": 0, "repeated": 0, "done": rate, "busy_seconds": 1.0,
        "cpu_seconds": 0.2, "pause_us": 100, "memory_bytes": 50_000_000, "scripts": {},
    }  # fmt: skip


def run_of(
    change: Change | None = None,
    *,
    slow: float = 0.05,
    profile: Profile = PROFILE,
    rate: int = RATE,
) -> Run:
    """A whole run of one worker, changed as a test asks."""
    run, chance = Run(profile, 1), random.Random(3)
    for second in range(int(profile.seconds)):
        made = tick(second + 1, profile.phase_at(second).name, chance, slow=slow, rate=rate)
        if change is not None:
            change(made, second)
        run.add(0, made)
        run.measured(second, 0.5, {"application": 0.3})
    requests = run.requests
    run.end(0, {"requests": requests, "complete": True})
    return run


def verdict_of(run: Run) -> LoadVerdict:
    return judge(run, OBJECTIVES)


def test_a_sound_run_of_a_quick_server_passes_and_says_its_numbers() -> None:
    judged = verdict_of(run_of())
    assert judged.verdict is Verdict.PASS, judged
    assert "p95 in steady" in judged.reason and "0 of 6000 requests failed" in judged.reason
    assert judged.sound


def test_a_slow_server_fails_by_its_p95() -> None:
    judged = verdict_of(run_of(slow=0.4))
    assert judged.verdict is Verdict.FAIL
    assert "limit 200 ms" in judged.reason


def test_a_limit_within_the_interval_is_too_little_data() -> None:
    def few(made: dict[str, Any], second: int) -> None:
        return

    borderline = run_of(few, slow=0.2 / 1.39, rate=RATE)
    p95 = next(c for c in verdict_of(borderline).limits if c.name.startswith("p95"))
    assert p95.verdict is Verdict.TOO_FEW
    assert "needs more requests" in p95.reason


def fail_some(count: int, begin: int = 0, end: int = 1000) -> Change:
    def change(made: dict[str, Any], second: int) -> None:
        if begin <= second < end:
            for by_name in made["phases"].values():
                by_name["GET /"]["failures"] = {"HTTP 500": count}

    return change


def test_one_percent_of_errors_fails_and_is_named() -> None:
    judged = verdict_of(run_of(fail_some(2)))
    assert judged.verdict is Verdict.FAIL
    assert "HTTP 500" in judged.reason


def test_errors_of_ten_seconds_are_not_lost_in_the_whole() -> None:
    """k6#2379: 100 % errors at the end read as 5.8 %."""
    judged = verdict_of(run_of(fail_some(2, begin=24)))
    worst = next(c for c in judged.limits if c.name.startswith("worst stretch"))
    assert worst.verdict is Verdict.FAIL


def test_a_slow_endpoint_that_few_ask_for_fails() -> None:
    rare = Histogram()
    for _ in range(10):
        rare.record(900_000)
    document = {"response": rare.to_dict(), "service": rare.to_dict(), "failures": {}, "bytes": 0}

    def change(made: dict[str, Any], second: int) -> None:
        for by_name in made["phases"].values():
            by_name["GET /rare"] = dict(document)

    judged = verdict_of(run_of(change))
    assert judged.verdict is Verdict.FAIL
    assert "GET /rare" in judged.reason


def set_to(key: str, value: Any) -> Change:
    def change(made: dict[str, Any], second: int) -> None:
        made[key] = value

    return change


def late(seconds: float) -> dict[str, Any]:
    seen = Histogram()
    seen.record(int(seconds * 1e6), RATE)
    return seen.to_dict()


def bunched(made: dict[str, Any], second: int) -> None:
    sends = Dispersion()
    for _ in range(RATE):
        sends.record(second + 0.5)
    made["sends"] = {phase: sends.to_dict() for phase in made["sends"]}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (set_to("lag", late(0.08)), "the generator was the limit: requests left late"),
        (set_to("loop", late(0.2)), "its timers were late"),
        (set_to("cpu_seconds", 0.97), "the generator was the limit: it used 97 % of a core"),
        (set_to("pause_us", 400_000), "pause for garbage collection was 400 ms"),
        (set_to("users", 900), "900 users were there where 1000 should have been"),
        (set_to("scripts", {"KeyError: 'id'": 5}), "KeyError: 'id'"),
        (set_to("in_flight", 700), "where"),
        (bunched, "requests left in bunches"),
    ],
    ids=["lag", "loop", "cpu", "collector", "users", "behaviours", "audit", "bunches"],
)
def test_a_run_that_was_not_measured_right_is_unsound_and_never_a_number(
    change: Change, words: str
) -> None:
    judged = verdict_of(run_of(change))
    assert judged.verdict is Verdict.ERROR
    assert words in judged.reason
    assert not judged.sound


def test_a_late_generator_whose_processors_were_given_to_others_says_so() -> None:
    run = run_of(set_to("lag", late(0.08)))
    assert "the host gave" not in verdict_of(run).reason
    for second in run.seconds.values():
        second.stolen = 0.12
    assert "the host gave 12 % of this machine's processors to others" in verdict_of(run).reason


def test_processors_given_to_others_alone_are_no_fault_of_the_measuring() -> None:
    run = run_of()
    for second in run.seconds.values():
        second.stolen = 0.12
    assert verdict_of(run).verdict is Verdict.PASS


def test_a_full_machine_is_unsound() -> None:
    run = run_of()
    for second in run.seconds.values():
        second.host_cpu = 1.0
    assert "the machine was full" in verdict_of(run).reason


def test_a_full_machine_on_which_the_generator_comes_first_is_the_servers_affair() -> None:
    run = run_of()
    for second in run.seconds.values():
        second.host_cpu = 1.0
    run.end(0, {**run.ended[0], "real_time": True})
    judged = verdict_of(run)
    assert judged.sound and judged.verdict is Verdict.PASS
    behind = run_of(set_to("lag", late(0.08)))
    behind.end(0, {**behind.ended[0], "real_time": True})
    assert not verdict_of(behind).sound


def test_nobody_knows_how_a_lost_generator_ran() -> None:
    run = run_of()
    for second in run.seconds.values():
        second.host_cpu = 1.0
    run.ended.clear()
    assert "the machine was full" in verdict_of(run).reason


def test_a_machine_that_was_not_looked_at_is_unsound() -> None:
    run = run_of()
    for second in run.seconds.values():
        second.host_cpu = None
    assert "was not measured" in verdict_of(run).reason


def test_a_lost_worker_is_named_with_what_went_with_it() -> None:
    run = run_of()
    run.lose(0, 20.0, "died (signal 9)")
    judged = verdict_of(run)
    assert judged.verdict is Verdict.ERROR
    assert judged.reason.startswith("worker 1 of 1 died (signal 9) at 20 s; 4")
    assert "samples are lost" in judged.reason


def test_samples_that_never_came_are_unsound() -> None:
    run = run_of()
    run.end(0, {"requests": run.requests + 7})
    assert "7 requests were made whose results never came" in verdict_of(run).reason


def test_a_tick_that_is_missing_is_no_small_thing() -> None:
    run = Run(PROFILE, 1)
    with pytest.raises(ValueError, match="went from tick 0 to 2"):
        run.add(0, tick(2, "steady", random.Random(1)))


def test_no_request_at_all_is_an_error() -> None:
    judged = verdict_of(Run(PROFILE, 1))
    assert judged.verdict is Verdict.ERROR
    assert "no request was sent" in judged.reason


def test_users_who_wait_for_a_bad_server_are_not_the_generators_fault() -> None:
    """Blocked users come again when the server lets them, in bunches."""

    def change(made: dict[str, Any], second: int) -> None:
        bunched(made, second)
        made["in_flight"] = 100
        made["users"] = 1100

    profile = ramp(1100, 3, 30, name="x", description="x", pause_seconds=5)
    judged = judge(run_of(change, slow=0.4, profile=profile), OBJECTIVES)
    assert judged.verdict is Verdict.FAIL


def test_requests_that_only_a_second_try_got_through_count() -> None:
    judged = verdict_of(run_of(set_to("repeated", 2)))
    assert judged.verdict is Verdict.FAIL
    assert "had to be sent twice" in judged.reason


def test_connections_that_are_never_answered_are_named() -> None:
    def change(made: dict[str, Any], second: int) -> None:
        fail_some(1)(made, second)
        made["connections"], made["answered"] = (100, 20) if second == 0 else (0, 0)

    judged = verdict_of(run_of(change))
    assert "only 20 of 100 connections were ever answered" in judged.reason


def test_what_is_hopeless_is_ended_and_has_failed() -> None:
    run = run_of(fail_some(150))
    run.hopeless = hopeless(run, 20, OBJECTIVES)
    assert "1500 of 2000 requests failed in 10 s, most often HTTP 500" in run.hopeless
    assert verdict_of(run).verdict is Verdict.FAIL
    assert hopeless(run_of(), 20, OBJECTIVES) == ""
    assert "p95 was" in hopeless(run_of(slow=9), 20, OBJECTIVES)


def test_a_run_that_somebody_ended_says_nothing_of_the_server() -> None:
    run = run_of()
    run.stopped = "cancelled"
    assert verdict_of(run).verdict is Verdict.ERROR


def test_arrivals_of_the_open_model_are_audited_by_their_rate() -> None:
    profile = ramp(RATE, 3, 30, name="x", description="x", model=Model.OPEN)
    assert judge(run_of(profile=profile), OBJECTIVES).verdict is Verdict.PASS
    short = judge(run_of(profile=profile, rate=150), OBJECTIVES)
    assert "4500 things were begun where 6000 should have been" in short.reason


def test_workers_merge_exactly_whatever_the_split() -> None:
    """One worker quick, one slow: the mean of their p95s is wrong, the merged one is not."""
    profile = ramp(1000, 3, 30, name="x", description="x", pause_seconds=5)
    run, pooled, chance = Run(profile, 2), Histogram(), random.Random(5)
    for second in range(int(profile.seconds)):
        for worker, slow in ((0, 0.02), (1, 0.4)):
            made = tick(second + 1, profile.phase_at(second).name, chance, slow=slow)
            run.add(worker, made)
            for by_name in made["phases"].values():
                pooled.merge(Histogram.from_dict(by_name["GET /"]["response"]))
    merged = Histogram()
    for name in ("ramp", "settle", "steady"):
        merged.merge(run.phase(name).response)
    assert merged == pooled


def test_the_report_has_the_numbers_that_were_judged() -> None:
    run = run_of()
    figures = figures_of(run, verdict_of(run))
    assert figures["outcome"] is LoadOutcome.PASSED
    steady = figures["phases"][-1].figures
    assert (steady.requests, steady.failed, steady.per_second) == (6000, 0, 200.0)
    assert figures["endpoints"][0].requests == 6000
    assert sum(sum(m.heat) for m in figures["timeline"]) == run.requests
    assert all(len(m.heat) == len(HEAT_EDGES_MS) + 1 for m in figures["timeline"])
    assert figures["demands"][0].ms == pytest.approx(1.5)
    assert figures["generator"].cost_ms == pytest.approx(1.0)
