"""The page of a drill says what the report says, and nothing of it can break it."""

from __future__ import annotations

from datetime import UTC, datetime
from html.parser import HTMLParser

from domain.drill_report import (
    Moment,
    PhaseReport,
    RecoveryOutcome,
    RecoveryReport,
)
from domain.evidence_chain import chained
from domain.failover import Phase, Tier
from domain.verdict import Check, Verdict
from tasks.drill_page import page_of

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
NASTY = "<script>alert('x')</script>"


class Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in ("meta",):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        self.text += data


def report(**more: object) -> RecoveryReport:
    whole: dict[str, object] = {
        "kind": "drill",
        "application": "shop",
        "environment": "production",
        "run": "r",
        "drill": "abc123",
        "tier": Tier.WARM,
        "fault": "kill",
        "started_at": NOW,
        "outcome": RecoveryOutcome.MISSED,
        "reason": NASTY,
        "phases": (
            PhaseReport(name=Phase.DETECT, seconds=1.5, verdict=Verdict.PASS, note=NASTY),
            PhaseReport(name=Phase.FENCE, seconds=4.5, verdict=Verdict.ERROR, note="late"),
        ),
        "rta_seconds": 6.5,
        "rto_seconds": 5.0,
        "acknowledged": 40,
        "lost_transactions": (3, 4, 5, 9),
        "checks": (Check(name="RTA", verdict=Verdict.FAIL, reason=NASTY),),
        "isolation": (Check(name="login", verdict=Verdict.PASS, reason="refused"),),
        "leftovers": ("a pod",),
        "timeline": tuple(
            Moment(at=n / 4, good={"10.0.0.1": 5} if n < 4 else {"10.0.0.2": 4}, failed=n % 2)
            for n in range(12)
        ),
        "fault_at": 1.0,
        "earlier": (4.0, 5.5),
        "events": (chained((), NOW, NASTY, {"rows": [NASTY]}),),
    }
    return RecoveryReport.model_validate({**whole, **more})


def test_everything_that_was_measured_is_on_it() -> None:
    page = page_of(report())
    read = Reader()
    read.feed(page)
    assert read.open == []
    for words in ("6.50 s", "5.00 s", "3 to 5, 9", "a pod", "75 %", "4.0 s, 5.5 s", "missed",
                  "answered at 10.0.0.1", "answered at 10.0.0.2", "Isolation"):  # fmt: skip
        assert words in read.text, words
    assert read.tags.count("rect") == 12 + 6  # each step has its good ones, every second a bad one
    assert read.tags.count("line") == 3  # the fault, and the end of both phases
    assert "script" not in read.tags
    assert "http" not in page.replace("http://www.w3.org", "")  # it needs nothing but itself


def test_a_refused_one_has_a_page_too() -> None:
    bare = {"phases": (), "checks": (), "isolation": (), "timeline": (), "fault_at": None,
            "events": (), "earlier": (), "rta_seconds": None, "lost_transactions": (),
            "outcome": RecoveryOutcome.REFUSED}  # fmt: skip
    read = Reader()
    read.feed(page_of(report(**bare)))
    assert read.open == [] and "refused" in read.text and "svg" not in read.tags
