from __future__ import annotations

from datetime import date, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from domain.errors import CATALOGUE
from domain.findings import (
    Allowance,
    Finding,
    Scanner,
    ScannerReport,
    ScanPolicy,
    Severity,
    judge,
    severity_of,
)
from domain.verdict import Verdict

TODAY = date(2026, 11, 23)
ORDER = {verdict: rank for rank, verdict in enumerate(Verdict)}

IDS = ("B101", "B602", "CVE-2023-1", "CVE-2024-2", "DL3006", "ST101")
PLACES = ("app/a.py:3", "app/b.py:14", "requests 2.30.0", "GET /items")


def finding(**changes: object) -> Finding:
    values: dict[str, object] = {
        "scanner": Scanner.BANDIT,
        "id": "B602",
        "severity": Severity.HIGH,
        "title": "subprocess call with shell=True",
        "where": "app/run.py:3",
    }
    return Finding.model_validate(values | changes)


def report(*findings: Finding, **changes: object) -> ScannerReport:
    values: dict[str, object] = {"scanner": Scanner.BANDIT, "checked": 10, "findings": findings}
    return ScannerReport.model_validate(values | changes)


def allowance(**changes: object) -> Allowance:
    values: dict[str, object] = {
        "id": "B602",
        "scanner": Scanner.BANDIT,
        "reason": "the command is a constant",
        "expires": TODAY,
    }
    return Allowance.model_validate(values | changes)


def clean(*scanners: Scanner) -> list[ScannerReport]:
    return [ScannerReport(scanner=scanner, checked=1) for scanner in scanners]


@st.composite
def findings(draw: st.DrawFn, scanner: Scanner) -> Finding:
    return Finding(
        scanner=scanner,
        id=draw(st.sampled_from(IDS)),
        aliases=tuple(draw(st.lists(st.sampled_from(IDS), max_size=2))),
        severity=draw(st.sampled_from(Severity)),
        title="something",
        where=draw(st.sampled_from(PLACES)),
    )


@st.composite
def reports(draw: st.DrawFn) -> ScannerReport:
    scanner = draw(st.sampled_from(Scanner))
    story = draw(st.sampled_from(("worked", "worked", "worked", "problem", "nothing", "empty")))
    if story == "nothing":
        return ScannerReport(scanner=scanner, not_applicable="there is none")
    return ScannerReport(
        scanner=scanner,
        checked=0 if story == "empty" else draw(st.integers(1, 100)),
        findings=tuple(draw(st.lists(findings(scanner), max_size=4))),
        problem="it crashed" if story == "problem" else None,
    )


@st.composite
def allowances(draw: st.DrawFn) -> Allowance:
    return Allowance(
        id=draw(st.sampled_from((*IDS, "CVE-*", "B*"))),
        scanner=draw(st.sampled_from(Scanner)),
        path=draw(st.sampled_from((None, "app/*", "requests *", "GET /items"))),
        reason="accepted",
        expires=TODAY + timedelta(days=draw(st.integers(-3, 3))),
    )


policies = st.builds(
    ScanPolicy,
    fail_on=st.sampled_from(Severity),
    allow=st.lists(allowances(), max_size=4).map(tuple),
)
scans = st.lists(reports(), max_size=7)
expectations = st.sets(st.sampled_from(Scanner))


@given(scans, policies, expectations)
def test_a_pass_has_no_error_no_gap_and_no_open_finding_over_the_limit(
    scan: list[ScannerReport], policy: ScanPolicy, expected: set[Scanner]
) -> None:
    verdict = judge(scan, policy, TODAY, expected)
    in_force = [entry for entry in policy.allow if entry.expires >= TODAY]
    sound = all(r.problem is None and (r.checked or r.not_applicable) for r in scan)
    complete = expected <= {r.scanner for r in scan}
    somebody_looked = any(r.not_applicable is None for r in scan)
    harmless = all(
        f.severity.rank < policy.fail_on.rank or any(entry.covers(f) for entry in in_force)
        for r in scan
        for f in r.findings
    )
    assert verdict.verdict.advances == (sound and complete and somebody_looked and harmless)
    assert (verdict.as_error() is None) == verdict.verdict.advances


@given(scans, policies, expectations, st.data())
def test_one_more_finding_never_improves_the_verdict(
    scan: list[ScannerReport], policy: ScanPolicy, expected: set[Scanner], data: st.DataObject
) -> None:
    working = [i for i, r in enumerate(scan) if r.not_applicable is None]
    if not working:
        return
    index = data.draw(st.sampled_from(working))
    more = data.draw(findings(scan[index].scanner))
    worse = list(scan)
    worse[index] = scan[index].model_copy(update={"findings": (*scan[index].findings, more)})
    before = judge(scan, policy, TODAY, expected).verdict
    assert ORDER[judge(worse, policy, TODAY, expected).verdict] >= ORDER[before]


@given(scans, policies)
def test_an_error_stays_an_error_whatever_is_allowed(
    scan: list[ScannerReport], policy: ScanPolicy
) -> None:
    generous = tuple(allowance(id=f"{c}*", scanner=s) for c in "BCDS" for s in Scanner)
    broken = [*scan, ScannerReport(scanner=Scanner.OSV, problem="no answer")]
    verdict = judge(broken, policy.model_copy(update={"allow": generous}), TODAY)
    assert verdict.verdict in (Verdict.ERROR, Verdict.FAIL)


@given(scans, policies, expectations)
def test_an_expired_entry_allows_nothing_and_is_reported(
    scan: list[ScannerReport], policy: ScanPolicy, expected: set[Scanner]
) -> None:
    alive = tuple(entry for entry in policy.allow if entry.expires >= TODAY)
    with_expired = judge(scan, policy, TODAY, expected)
    without = judge(scan, policy.model_copy(update={"allow": alive}), TODAY, expected)
    assert with_expired.verdict == without.verdict
    assert with_expired.refused == without.refused
    assert set(with_expired.expired) == set(policy.allow) - set(alive)
    assert all(entry.allowance.expires >= TODAY for entry in with_expired.allowed)


@given(scans, policies, expectations, st.randoms(use_true_random=False))
def test_the_order_of_what_is_judged_does_not_matter(
    scan: list[ScannerReport],
    policy: ScanPolicy,
    expected: set[Scanner],
    random: object,
) -> None:
    shuffle = random.shuffle  # type: ignore[attr-defined]
    shuffled = []
    for one in scan:
        mixed = list(one.findings)
        shuffle(mixed)
        shuffled.append(one.model_copy(update={"findings": tuple(mixed)}))
    shuffle(shuffled)
    allow = list(policy.allow)
    shuffle(allow)
    one = judge(scan, policy, TODAY, expected)
    other = judge(shuffled, policy.model_copy(update={"allow": tuple(allow)}), TODAY, expected)
    assert one.verdict == other.verdict
    assert one.counts == other.counts
    assert one.worst_first == other.worst_first
    assert one.allowed == other.allowed
    assert sorted(one.reasons) == sorted(other.reasons)


@given(scans, policies)
def test_every_finding_is_refused_tolerated_or_allowed_and_counted_once(
    scan: list[ScannerReport], policy: ScanPolicy
) -> None:
    verdict = judge(scan, policy, TODAY)
    everything = sum(len(r.findings) for r in scan)
    parts = len(verdict.refused) + len(verdict.tolerated) + len(verdict.allowed)
    assert parts == everything
    assert sum(verdict.counts.values()) == len(verdict.refused) + len(verdict.tolerated)


def test_no_report_at_all_is_not_run() -> None:
    verdict = judge([], ScanPolicy(), TODAY)
    assert verdict.verdict is Verdict.NOT_RUN
    assert set(verdict.missing) == set(Scanner)
    error = verdict.as_error()
    assert error is not None and error.code == "SLP041"


def test_nothing_but_inapplicable_scanners_is_not_a_pass() -> None:
    reports = [ScannerReport(scanner=s, not_applicable="there is none") for s in Scanner]
    assert judge(reports, ScanPolicy(), TODAY).verdict is Verdict.NOT_RUN


def test_a_scanner_that_does_not_apply_is_left_out_with_its_reason() -> None:
    others = clean(Scanner.BANDIT, Scanner.OSV, Scanner.DETECT_SECRETS, Scanner.SCHEMATHESIS)
    nothing = ScannerReport(scanner=Scanner.HADOLINT, not_applicable="no Containerfile")
    verdict = judge([*others, nothing], ScanPolicy(), TODAY)
    assert verdict.verdict is Verdict.PASS
    assert "hadolint: not applicable, no Containerfile" in verdict.reasons
    assert "from 4 scanners" in verdict.summary


def test_a_scanner_that_looked_at_nothing_has_no_data() -> None:
    verdict = judge([report(checked=0)], ScanPolicy(), TODAY, [Scanner.BANDIT])
    assert verdict.verdict is Verdict.NO_DATA
    assert "looked at nothing" in verdict.reasons[0]


def test_a_scanner_that_could_not_work_does_not_count_among_those_that_found_nothing() -> None:
    blind = ScannerReport(scanner=Scanner.OSV, problem="nobody answers")
    verdict = judge([report(), blind], ScanPolicy(), TODAY, [Scanner.BANDIT, Scanner.HADOLINT])
    assert "no findings from 1 scanners, 2 could not work;" in verdict.summary


def test_a_failure_names_the_worst_finding_and_its_way_out() -> None:
    found = report(
        finding(),
        finding(id="B999", severity=Severity.CRITICAL, title="boom", fix="remove it"),
    )
    error = judge([found], ScanPolicy(), TODAY, [Scanner.BANDIT]).as_error()
    assert error is not None
    assert error.code == "SLP040" and error.code in CATALOGUE
    assert "2 findings at or above high" in error.cause
    assert "B999" in error.cause and error.help == "remove it"


def test_an_allowance_covers_by_alias_and_by_place_without_the_line() -> None:
    found = finding(aliases=("subprocess_shell",))
    assert allowance(id="subprocess_*", path="app/run.py").covers(found)
    assert not allowance(path="app/other.py").covers(found)
    assert not allowance(scanner=Scanner.HADOLINT).covers(found)


def test_an_allowance_holds_on_its_last_day_and_not_on_the_next() -> None:
    policy = ScanPolicy(allow=(allowance(expires=TODAY),))
    scan, only = [report(finding())], [Scanner.BANDIT]
    assert judge(scan, policy, TODAY, only).verdict is Verdict.PASS
    tomorrow = judge(scan, policy, TODAY + timedelta(days=1), only)
    assert tomorrow.verdict is Verdict.FAIL
    assert "the allowance of 1 has expired" in tomorrow.reasons[0]


def test_an_allowance_that_met_nothing_is_reported() -> None:
    policy = ScanPolicy(allow=(allowance(id="B777"),))
    assert judge([report()], policy, TODAY, [Scanner.BANDIT]).unused == policy.allow


@pytest.mark.parametrize("bad", ["*", "**", "?*", " ", "[*]"])
def test_an_allowance_cannot_allow_everything(bad: str) -> None:
    with pytest.raises(ValidationError, match="name a rule"):
        allowance(id=bad)


@pytest.mark.parametrize("missing", ["reason", "expires", "scanner"])
def test_an_allowance_needs_its_reason_its_day_and_its_scanner(missing: str) -> None:
    values = allowance().model_dump()
    del values[missing]
    with pytest.raises(ValidationError, match=missing):
        Allowance.model_validate(values)
    with pytest.raises(ValidationError, match="needs a reason"):
        allowance(reason="  ")


def test_an_unknown_severity_counts_as_high() -> None:
    assert severity_of("grim") is None
    assert severity_of(None) is None
    with pytest.raises(ValidationError, match="counts as high"):
        finding(rated=False, severity=Severity.LOW)


@pytest.mark.parametrize(
    "changes",
    [
        {"not_applicable": "none", "problem": "crashed"},
        {"not_applicable": ""},
        {"problem": ""},
        {"findings": (finding(),), "not_applicable": "none"},
        {"findings": (finding(),), "scanner": Scanner.OSV},
    ],
)
def test_a_report_tells_one_story(changes: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        report(**changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"fail_on": "sometimes"},
        {"fuzz_seconds": 0},
        {"advisories": ""},
        {"advisories_max_age_days": -1},
        {"skip": ["bandit"]},
    ],
)
def test_a_policy_refuses_what_it_does_not_know(changes: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        ScanPolicy.model_validate(changes)


def test_verdict_and_reports_survive_json() -> None:
    verdict = judge([report(finding()), *clean(Scanner.OSV)], ScanPolicy(), TODAY)
    assert type(verdict).model_validate_json(verdict.model_dump_json()) == verdict
