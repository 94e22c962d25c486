"""Each way in which a standby can be unready has its check, and its sentence."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from domain import readiness as rules
from domain.failover import Tier
from domain.verdict import Check, Verdict

SECOND, HOUR, GB = timedelta(seconds=1), timedelta(hours=1), 1 << 30
NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
SORTS = {"provider": "b", "locale": "C.UTF-8", "collation version": "1"}

READY = [
    rules.versions(17, 18),
    rules.extensions({"plpgsql": "1.0"}, {"plpgsql": ["1.0"], "hstore": ["1.8"]}),
    rules.collations(SORTS, SORTS),
    rules.bundles([]),
    rules.connections(50, 50),
    rules.name_ttl("a.b", 5, 5 * SECOND),
    rules.name_ttl("a.b", None, 5 * SECOND),
    rules.copy_age(10 * SECOND, 10 * SECOND, "gcp"),
    rules.time_needed(Tier.HOT, SECOND, SECOND, None, 5 * SECOND),
    rules.lag(0.5, True, [], SECOND),
    rules.schema([]),
    rules.clocks("gcp", 30 * SECOND, 30 * SECOND),
    rules.instance("standby", "RUNNABLE", False, 17, 17, "db-custom-2-7680"),
    rules.room(10 * GB, 12 * GB),
    rules.room(10 * GB, None),
    rules.unfollowed(0, ["cache"]),
    rules.last_look(NOW - 2 * HOUR, "100 % ready", NOW),
]

UNREADY = [
    (rules.versions(18, 17), Verdict.FAIL, "PostgreSQL 17 at the standby"),
    (rules.extensions({"postgis": "3"}, {"postgis": ["2"]}), Verdict.FAIL, "postgis 3"),
    (rules.extensions({"postgis": "3"}, {}), Verdict.FAIL, "postgis 3"),
    (rules.collations(SORTS, {**SORTS, "collation version": "2"}), Verdict.FAIL, "version is 2"),
    (rules.bundles(["web sha256:1"]), Verdict.FAIL, "web sha256:1"),
    (rules.connections(9, 10), Verdict.FAIL, "9 free"),
    (rules.name_ttl("a.b", 300, 5 * SECOND), Verdict.FAIL, "TTL 300 s"),
    (rules.copy_age(None, SECOND, "gcp"), Verdict.NO_DATA, "no copy at gcp"),
    (rules.copy_age(11 * SECOND, 10 * SECOND, "gcp"), Verdict.FAIL, "11s old"),
    (
        rules.time_needed(Tier.BACKUP, SECOND, SECOND, None, 60 * SECOND),
        Verdict.NO_DATA,
        "no restore was ever timed",
    ),
    (
        rules.time_needed(Tier.BACKUP, SECOND, SECOND, 50 * SECOND, 60 * SECOND),
        Verdict.FAIL,
        "restoring 50 s",
    ),
    (rules.lag(9.0, True, [], SECOND), Verdict.FAIL, "9.0 s behind"),
    (rules.lag(0.0, False, [], SECOND), Verdict.FAIL, "stands still"),
    (rules.lag(None, True, [], SECOND), Verdict.FAIL, "stands still"),
    (rules.lag(0.0, True, ["meal"], SECOND), Verdict.FAIL, "not copied yet: meal"),
    (rules.clocks("gcp", 180 * SECOND, 30 * SECOND), Verdict.FAIL, "180.0 s from ours"),
    (rules.schema(["meal.kcal"]), Verdict.FAIL, "meal.kcal"),
    (rules.instance("standby", "SUSPENDED", False, 17, 17, ""), Verdict.FAIL, "is SUSPENDED"),
    (rules.instance("standby", "RUNNABLE", True, 17, 17, ""), Verdict.FAIL, "switched off"),
    (rules.instance("standby", "RUNNABLE", False, 16, 17, ""), Verdict.FAIL, "another instance"),
    (rules.room(10 * GB, 11 * GB), Verdict.FAIL, "needs 12"),
    (rules.unfollowed(3, []), Verdict.FAIL, "3 large objects do not follow"),
    (rules.last_look(None, "", NOW), Verdict.NOT_RUN, "nobody has looked"),
    (rules.last_look(NOW - 3 * HOUR, "100 % ready", NOW), Verdict.NOT_RUN, "expired after 2h"),
]


@pytest.mark.parametrize("check", READY, ids=lambda check: check.name)
def test_a_ready_standby_passes(check: Check) -> None:
    assert check.verdict is Verdict.PASS, check


@pytest.mark.parametrize(("check", "verdict", "said"), UNREADY)
def test_an_unready_one_is_told_why(check: Check, verdict: Verdict, said: str) -> None:
    assert check.verdict is verdict
    assert said in check.reason


def test_the_score_names_what_is_wrong() -> None:
    percent, said = rules.score([READY[0], UNREADY[0][0]])
    assert percent == 50 and "PostgreSQL 17" in said
    assert rules.score(READY)[0] == 100
    assert rules.score([])[0] == 0
