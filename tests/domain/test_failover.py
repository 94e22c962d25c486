"""Who may write, who said yes, and what was achieved: the rules of a failover."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain.application import Application, parse
from domain.drill_report import PhaseReport, RecoveryOutcome, judged, timeline
from domain.errors import UsageError
from domain.evidence_chain import Event, broken_at, chained
from domain.failover import (
    HALTS,
    Achieved,
    Approval,
    Attempt,
    Epoch,
    Phase,
    Tier,
    achieved,
    approval_problem,
    fenced_after,
    may_renew,
    phases,
    spans,
)
from domain.verdict import Check, Verdict

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
AWS, GCP = "10.0.0.1", "10.0.0.2"


def epoch(number: int, side: str) -> Epoch:
    return Epoch(number=number, side=side, claimed_at=NOW, actor="a", reason="r")


# Leases


@given(
    lease=st.floats(0.1, 60),
    rounds=st.lists(
        st.tuples(st.floats(0, 20), st.floats(0, 20), st.floats(0, 20)), min_size=1, max_size=20
    ),
    claimed=st.floats(0, 200),
    rate=st.floats(0.96, 1.04),
)
def test_no_lease_of_the_old_side_is_in_force_when_the_new_one_opens(
    lease: float, rounds: list[tuple[float, float, float]], claimed: float, rate: float
) -> None:
    """A keeper may be frozen between any two of its steps, and its clock may run otherwise.

    Times are true ones; the old side's clock shows them multiplied by ``rate``.
    """
    at, until = 0.0, 0.0
    mine, next_one = epoch(1, "aws"), epoch(2, "gcp")
    for before_read, before_grant, pause in rounds:
        begun = at
        read_at = begun + before_read
        if may_renew("aws", mine if read_at < claimed else next_one, granted=1):
            until = max(until, begun + lease / rate)
        at = read_at + before_grant + pause
    opened = claimed + fenced_after(timedelta(seconds=lease)).total_seconds()
    assert until <= opened + 1e-6


def test_a_keeper_that_sees_nothing_does_not_renew() -> None:
    assert not may_renew("aws", None, 1)
    assert not may_renew("aws", epoch(2, "gcp"), 2)
    assert may_renew("aws", epoch(1, "aws"), 1) and may_renew("aws", epoch(3, "aws"), 3)


def test_a_keeper_does_not_begin_under_an_epoch_that_was_only_claimed() -> None:
    assert not may_renew("gcp", epoch(2, "gcp"), granted=1)
    assert not may_renew("gcp", epoch(2, "gcp"), granted=0)


def test_every_phase_has_its_halt_and_each_tier_its_phases() -> None:
    assert set(HALTS) == set(Phase)
    assert Phase.RESTORE in phases(Tier.BACKUP) and Phase.PROMOTE not in phases(Tier.BACKUP)
    for tier in (Tier.WARM, Tier.HOT):
        assert Phase.PROMOTE in phases(tier) and Phase.RESTORE not in phases(tier)
    for tier in Tier:
        order = phases(tier)
        assert order.index(Phase.FENCE) < order.index(Phase.SCALE) < order.index(Phase.SWITCH)


# What was achieved


def attempt(number: int, at: float, address: str = AWS, good: bool = True, **more: bool) -> Attempt:
    return Attempt(
        sequence=number,
        sent=at,
        done=at + 0.01,
        acknowledged=more.get("acknowledged", good),
        read_back=more.get("read_back", good),
        address=address,
    )


def test_rta_ends_with_the_first_write_that_was_read_back_at_the_target() -> None:
    seen = [
        attempt(1, 99),
        attempt(2, 101, AWS),  # the old side still answered: that is no recovery
        attempt(3, 102, GCP, acknowledged=True, read_back=False),
        attempt(4, 103, GCP),
    ]
    done = achieved(seen, 100.0, GCP, {1, 2, 4}, datetime.fromtimestamp(99.5, UTC))
    assert done.rta_seconds == pytest.approx(3.01)
    assert done.rpa_seconds == pytest.approx(0.5)
    assert done.lost == (3,)  # acknowledged, and not there


def test_without_a_ledger_every_acknowledged_transaction_counts_as_lost() -> None:
    done = achieved([attempt(1, 1), attempt(2, 5, GCP)], 3.0, GCP, None, None)
    assert done.lost == (1, 2) and done.rpa_seconds is None


@given(st.data())
def test_every_acknowledged_transaction_is_either_there_or_listed(data: st.DataObject) -> None:
    count = data.draw(st.integers(0, 40))
    good = data.draw(st.lists(st.booleans(), min_size=count, max_size=count))
    seen = [attempt(n, float(n), good=ok) for n, ok in enumerate(good, 1)]
    there = data.draw(st.sets(st.integers(1, 60)))
    done = achieved(seen, 20.0, GCP, there, None)
    told = {a.sequence for a in seen if a.acknowledged}
    assert told == set(done.lost) | (told & there)
    assert not set(done.lost) & there


@pytest.mark.parametrize(
    ("numbers", "said"),
    [((), "none"), ((3,), "3"), ((3, 4, 5), "3 to 5"), ((9, 1, 2, 7), "1 to 2, 7, 9")],
)
def test_spans(numbers: tuple[int, ...], said: str) -> None:
    assert spans(numbers) == said


def test_a_timeline_counts_each_transaction_once() -> None:
    seen = [attempt(n, n / 10) for n in range(20)] + [attempt(99, 1.0, good=False)]
    steps = timeline(seen)
    assert sum(sum(m.good.values()) + m.failed for m in steps) == 21
    assert timeline(()) == ()


# Verdicts


def report(verdict: Verdict = Verdict.PASS) -> list[PhaseReport]:
    return [PhaseReport(name=Phase.SWITCH, seconds=1, verdict=verdict, note="")]


def reached(rta: float | None, rpa: float | None, lost: tuple[int, ...] = ()) -> Achieved:
    return Achieved(rta_seconds=rta, rpa_seconds=rpa, acknowledged=10, lost=lost)


@pytest.mark.parametrize(
    ("done", "others", "phase", "outcome"),
    [
        (reached(3, 0.1), Verdict.PASS, Verdict.PASS, RecoveryOutcome.PASSED),
        (reached(31, 0.1), Verdict.PASS, Verdict.PASS, RecoveryOutcome.MISSED),
        (reached(3, 61), Verdict.PASS, Verdict.PASS, RecoveryOutcome.MISSED),
        (reached(3, None), Verdict.PASS, Verdict.PASS, RecoveryOutcome.MISSED),
        (reached(3, 0.1), Verdict.NO_DATA, Verdict.PASS, RecoveryOutcome.MISSED),
        (reached(3, 0.1), Verdict.PASS, Verdict.ERROR, RecoveryOutcome.FAILED),
        (reached(None, 0.1), Verdict.PASS, Verdict.PASS, RecoveryOutcome.FAILED),
    ],
)
def test_only_what_kept_every_promise_has_passed(
    done: Achieved, others: Verdict, phase: Verdict, outcome: RecoveryOutcome
) -> None:
    other = Check(name="one writable side", verdict=others, reason="")
    assert judged(done, 30, 60, report(phase), [other])[0] is outcome


# Approvals


def yes(person: str, minutes: float = 1, plan: str = "p", why: str = "") -> Approval:
    return Approval(person=person, plan=plan, at=NOW - timedelta(minutes=minutes), break_glass=why)


@pytest.mark.parametrize(
    ("given_by", "said"),
    [
        ([], "nobody has approved"),
        ([yes("ann")], "only ann approved"),
        ([yes("ann"), yes("Ann ")], "ann approved twice"),
        ([yes("ann"), yes("bob", 20)], "only ann approved"),
        ([yes("ann", 20), yes("bob", 20)], "too old"),
        ([yes("ann", -1), yes("bob", -1)], "nobody has approved"),
        ([yes("ann", plan="q"), yes("bob", plan="q")], "approved another plan"),
        ([yes("ann"), yes("bob")], ""),
        ([yes("ann", why="the others sleep")], ""),
        ([yes("ann", 20, why="the others sleep")], "too old"),
    ],
)
def test_two_different_people_or_one_with_a_reason(given_by: list[Approval], said: str) -> None:
    found = approval_problem(given_by, "p", NOW, timedelta(minutes=15))
    assert (said in found) if said else found == ""


# Evidence


@given(
    lines=st.lists(st.text(max_size=20), min_size=1, max_size=10),
    where=st.integers(0, 9),
    how=st.sampled_from(["change", "drop", "swap"]),
)
def test_no_line_of_the_evidence_can_be_changed_dropped_or_moved(
    lines: list[str], where: int, how: str
) -> None:
    events: list[Event] = []
    for line in lines:
        events.append(chained(events, NOW, line, {}))
    assert broken_at(events) is None
    index = where % len(events)
    changed = list(events)
    if how == "change":
        changed[index] = changed[index].model_copy(update={"what": lines[index] + "!"})
    elif how == "drop":
        del changed[index]
    else:
        other = (index + 1) % len(events)
        changed[index], changed[other] = changed[other], changed[index]
    last_one_changed = how != "swap" and index == len(events) - 1
    if changed != events and not last_one_changed:
        assert broken_at(changed) is not None


# application.yaml

BASE = {
    "name": "shop",
    "services": {"web": {"command": "serve", "port": 80, "routes": ["/"]}},
    "database": {},
    "environments": {"production": {}, "recovery": {"platform": "other"}},
}


def application(**recovery: object) -> Application:
    import json

    document = {**BASE, "recovery": {"name": "shop.example.test", **recovery}}
    return parse(json.dumps(document), "application.yaml")


def test_the_name_above_both_leads_to_either() -> None:
    shop = application()
    assert shop.also_in("production") == shop.also_in("recovery") == ("shop.example.test",)


@pytest.mark.parametrize(
    ("recovery", "said"),
    [
        ({"ttl": "10m"}, "lower the ttl"),
        ({"lease": "10m"}, "lower the lease"),
        ({"standby": "production"}, "same platform"),
        ({"standby": "moon"}, "is not an environment"),
        ({"name": "no-domain"}, "name"),
        ({"service": "api"}, "is not a service"),
    ],
)
def test_a_recovery_that_cannot_be_is_refused(recovery: dict[str, str], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        application(**recovery)
