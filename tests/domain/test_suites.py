"""What a test suite's result means: no test is never a pass, nor is a contradiction."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain.suites import SuiteResult, overall, read_junit
from domain.verdict import Verdict

PASSED = '<testcase classname="a" name="p" time="0.5"/>'
SKIPPED = '<testcase name="s"><skipped/></testcase>'
FAILED = '<testcase classname="a.b" name="f"><failure message="1 != 2&#10;more"/></testcase>'
BROKEN = '<testcase name="e"><error>no such table</error></testcase>'


def result(*cases: str, code: int | None = 0) -> SuiteResult:
    xml = f"<testsuites><testsuite>{''.join(cases)}</testsuite></testsuites>"
    return read_junit("unit", "unit", xml.encode(), code)


def test_a_pass_needs_a_test_that_ran_and_an_exit_code_that_agrees() -> None:
    got = result(PASSED, SKIPPED)
    assert (got.verdict, got.passed, got.skipped, got.seconds) == (Verdict.PASS, 1, 1, 0.5)


@pytest.mark.parametrize(
    ("cases", "code", "verdict", "reason"),
    [
        ((), 0, Verdict.NO_DATA, "it ran no test"),
        ((), 5, Verdict.NO_DATA, "it ran no test"),
        ((SKIPPED, SKIPPED), 0, Verdict.NO_DATA, "all 2 tests were skipped"),
        ((PASSED,), 1, Verdict.ERROR, "exited with code 1"),
        ((PASSED,), -9, Verdict.ERROR, "exited with code -9"),
        ((PASSED,), None, Verdict.ERROR, "stopped at its time limit"),
        ((PASSED, FAILED), 0, Verdict.FAIL, ""),
        ((PASSED, BROKEN), 1, Verdict.FAIL, ""),
    ],
)
def test_what_is_not_a_pass(
    cases: tuple[str, ...], code: int | None, verdict: Verdict, reason: str
) -> None:
    got = result(*cases, code=code)
    assert got.verdict is verdict and reason in got.reason


@pytest.mark.parametrize(
    ("xml", "code", "verdict"),
    [
        (None, 0, Verdict.NOT_RUN),
        (None, 1, Verdict.ERROR),
        (None, None, Verdict.ERROR),
        (b"", 0, Verdict.NOT_RUN),
        (b"<testsuite><testcase", 1, Verdict.ERROR),
        (b"\xff\xfe", 0, Verdict.NOT_RUN),
    ],
)
def test_no_result_is_no_pass(xml: bytes | None, code: int | None, verdict: Verdict) -> None:
    got = read_junit("unit", "unit", xml, code)
    assert got.verdict is verdict and "JUnit" in got.reason


def test_the_first_line_of_each_failure_is_told_with_its_test() -> None:
    got = result(FAILED, BROKEN, code=1)
    assert [(f.name, f.message) for f in got.failures] == [
        ("a.b::f", "1 != 2"),
        ("e", "no such table"),
    ]
    assert got.sentence == "unit: 0 passed, 2 failed, 0 skipped"


@pytest.mark.parametrize("said", ['message=" "', 'message=""', ""])
def test_a_failure_without_words_is_still_one(said: str) -> None:
    got = result(f'<testcase name="f"><failure {said}> \n </failure></testcase>', code=1)
    assert got.verdict is Verdict.FAIL and got.failures[0].message == "failure"


def test_a_test_that_is_skipped_and_then_fails_has_failed() -> None:
    got = result('<testcase name="f"><skipped/><error message="tear-down"/></testcase>', code=1)
    assert (got.verdict, got.passed, got.failed, got.skipped) == (Verdict.FAIL, 0, 1, 0)


@pytest.mark.parametrize("time", ["", "1,234.5", "soon", "nan", "inf", "-3"])
def test_a_strange_time_does_not_lose_the_result(time: str) -> None:
    got = result(f'<testcase name="p" time="{time}"/>')
    assert got.verdict is Verdict.PASS and got.seconds in (0.0, 1234.5)


@given(st.binary(max_size=60), st.sampled_from([0, 1, None]))
def test_no_bytes_crash_it_or_pass(xml: bytes, code: int | None) -> None:
    assert read_junit("unit", "unit", xml, code).verdict is not Verdict.PASS


def test_no_suite_at_all_was_not_run() -> None:
    assert overall([]) is Verdict.NOT_RUN
    assert overall([result(PASSED), result()]) is Verdict.NO_DATA
