"""Results of test suites, read from JUnit XML."""

from __future__ import annotations

from collections.abc import Iterable
from xml.etree import ElementTree

from pydantic import BaseModel, ConfigDict, Field

from domain.verdict import Verdict, worst


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class FailedTest(_Frozen):
    name: str
    message: str


class SuiteResult(_Frozen):
    """One run of one suite."""

    suite: str
    kind: str
    verdict: Verdict
    passed: int = Field(0, ge=0)
    failed: int = Field(0, ge=0)
    skipped: int = Field(0, ge=0)
    seconds: float = 0
    failures: tuple[FailedTest, ...] = ()
    reason: str = ""

    @property
    def sentence(self) -> str:
        counted = f"{self.passed} passed, {self.failed} failed, {self.skipped} skipped"
        return f"{self.suite}: {self.reason or counted}"


def read_junit(suite: str, kind: str, xml: bytes | None, exit_code: int | None) -> SuiteResult:
    """The result of a suite from its JUnit file and its exit code; both must agree on success.

    No file, no executed test, a file that cannot be read, or an exit code that contradicts it is
    never a pass: pytest exits 5 when it collects nothing, other runners exit 0.
    """
    if xml is None:
        return _unreadable(suite, kind, exit_code, "it wrote no JUnit result")
    try:
        cases = list(ElementTree.fromstring(xml).iter("testcase"))
    except ElementTree.ParseError as error:
        return _unreadable(suite, kind, exit_code, f"its JUnit result cannot be read: {error}")
    failures = tuple(_failures(cases))
    skipped = sum(1 for case in cases if _is_skipped(case))
    passed = len(cases) - len(failures) - skipped
    seconds = sum(_seconds(case) for case in cases)
    verdict, reason = _verdict(passed, len(failures), skipped, exit_code)
    return SuiteResult(
        suite=suite,
        kind=kind,
        verdict=verdict,
        passed=passed,
        failed=len(failures),
        skipped=skipped,
        seconds=seconds,
        failures=failures,
        reason=reason,
    )


def _verdict(passed: int, failed: int, skipped: int, code: int | None) -> tuple[Verdict, str]:
    if failed:
        return Verdict.FAIL, ""
    if not passed:
        skips = f"all {skipped} tests were skipped" if skipped else "it ran no test"
        return Verdict.NO_DATA, skips
    if code != 0:
        ended = "was stopped at its time limit" if code is None else f"exited with code {code}"
        return Verdict.ERROR, f"every reported test passed, but the command {ended}"
    return Verdict.PASS, ""


def _unreadable(suite: str, kind: str, code: int | None, reason: str) -> SuiteResult:
    ended = "stopped at its time limit" if code is None else f"exit code {code}"
    verdict = Verdict.NOT_RUN if code == 0 else Verdict.ERROR
    return SuiteResult(suite=suite, kind=kind, verdict=verdict, reason=f"{reason} ({ended})")


def _is_skipped(case: ElementTree.Element) -> bool:
    """A test can be skipped and then fail in its tear-down; the failure is what counts."""
    tags = {child.tag for child in case}
    return "skipped" in tags and not tags & {"failure", "error"}


def _seconds(case: ElementTree.Element) -> float:
    try:
        value = float((case.get("time") or "0").replace(",", ""))
    except ValueError:
        return 0.0
    return value if 0 <= value < 1e9 else 0.0  # nan and inf are numbers to float()


def _failures(cases: Iterable[ElementTree.Element]) -> Iterable[FailedTest]:
    for case in cases:
        for tag in ("failure", "error"):
            found = case.find(tag)
            if found is not None:
                name = "::".join(filter(None, (case.get("classname"), case.get("name"))))
                said = f"{found.get('message') or ''}\n{found.text or ''}".strip() or tag
                yield FailedTest(name=name, message=said.splitlines()[0][:300])
                break


def overall(results: Iterable[SuiteResult]) -> Verdict:
    """The verdict over all suites; an application that declares no suite has ``not_run``."""
    return worst(result.verdict for result in results)
