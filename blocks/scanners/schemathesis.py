"""API fuzz of a running candidate with schemathesis, from the candidate's own OpenAPI document.

The verdict comes from schemathesis's JSON report, the request that reproduces a failure from
its JUnit report. The seed is fixed and no example is remembered, so the same candidate gets the
same requests each time.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from xml.etree import ElementTree

from pydantic import BaseModel, ConfigDict

from blocks.scanners.evidence import NothingToDo, Seen, blind, report
from blocks.scanners.program import Output, empty_folder, run, version_of
from domain.findings import Finding, Scanner, ScannerReport, Severity, severity_of

CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "negative_data_rejection",
    "missing_required_header",
    "unsupported_method",
    "ignored_auth",
)
"""What is asked of every answer. Left out: ``positive_data_acceptance`` (an application may
refuse well-formed data for reasons of its own) and the checks of the stateful phase."""

PHASES = ("examples", "coverage", "fuzzing")
"""Each request stands alone; the stateful phase has no bound that a policy could state."""


class _Loose(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class _Operations(_Loose):
    total: int
    selected: int
    tested: int
    errored: int
    skipped: int
    skip_reasons: tuple[str, ...] = ()


class _Cases(_Loose):
    generated: int
    without_checks: int
    errored: int


class _Failure(_Loose):
    type: str
    code: str
    title: str
    severity: str
    count: int
    operations: tuple[str, ...]


class _Error(_Loose):
    title: str
    count: int


class _Document(_Loose):
    schemathesis_version: str
    complete: bool
    stop_reason: str
    exit_code: int
    operations: _Operations | None
    test_cases: _Cases
    failures: tuple[_Failure, ...]
    errors: tuple[_Error, ...]
    warnings: Mapping[str, tuple[str, ...]] = {}


def scan(
    base_url: str,
    openapi: str | None,
    *,
    max_examples: int,
    seconds: float,
    seed: int = 1,
    scope: str = "",
) -> ScannerReport:
    """Fuzz every operation of the API at ``base_url``.

    Args:
        base_url: address of the candidate, without a slash at the end.
        openapi: path of its OpenAPI document; None when it declares none.
        max_examples: generated requests for each operation, at most.
        seconds: deadline for the whole run.
    """
    tool = version_of("schemathesis")

    def work() -> Seen | NothingToDo:
        if openapi is None:
            return NothingToDo("the service declares no OpenAPI document")
        return _scan(base_url.rstrip("/"), openapi, max_examples, seconds, seed)

    return report(Scanner.SCHEMATHESIS, scope, tool, work)


def _scan(base_url: str, openapi: str, max_examples: int, seconds: float, seed: int) -> Seen:
    with empty_folder() as folder:
        options = _options(base_url, openapi, max_examples, seed)
        output = run("schemathesis", options, cwd=folder, seconds=seconds, good=(0, 1, 2))
        document = _document(folder / "report.json", output)
        _check_complete(document, output)
        requests = _reproducing_requests(folder / "junit.xml")
    return Seen(
        checked=document.test_cases.generated,
        checked_against=_sentence(document, max_examples, seed),
        findings=tuple(_findings(document, requests)),
        tool=f"schemathesis {document.schemathesis_version}",
    )


def _options(base_url: str, openapi: str, max_examples: int, seed: int) -> list[str]:
    return [
        "run",
        f"{base_url}/{openapi.lstrip('/')}",
        *("--url", base_url),
        *("--phases", ",".join(PHASES)),
        *("--checks", ",".join(CHECKS)),
        *("--max-examples", str(max_examples)),
        *("--seed", str(seed)),
        *("--generation-database", "none"),
        *("--suppress-health-check", "all"),
        *("--request-timeout", "10"),
        "--continue-on-failure",
        "--no-color",
        *("--report", "json,junit"),
        *("--report-json-path", "report.json"),
        *("--report-junit-path", "junit.xml"),
    ]


def _document(path: Path, output: Output) -> _Document:
    try:
        return _Document.model_validate_json(path.read_bytes())
    except (OSError, ValueError):
        raise blind(
            f"schemathesis ended with exit code {output.code} without a readable JSON report",
            help="read its last lines; check that the OpenAPI document can be loaded",
            detail=output.tail,
        ) from None


def _check_complete(document: _Document, output: Output) -> None:
    """Every operation must have been tested to the end; else nothing is known of the API."""
    operations, cases = document.operations, document.test_cases
    if document.errors or not document.complete or operations is None:
        said = ", ".join(f"{error.title} ({error.count})" for error in document.errors)
        raise _incomplete(said or f"it stopped early: {document.stop_reason}", output)
    if not operations.tested or cases.generated <= cases.without_checks:
        reasons = "; ".join(operations.skip_reasons)
        raise _incomplete(
            f"it tested none of {operations.total} operations"
            + (f": {reasons}" if reasons else ""),
            output,
        )
    if operations.errored or cases.errored:
        raise _incomplete(
            f"{operations.errored} operations and {cases.errored} requests ended in an error",
            output,
        )
    if operations.tested + operations.skipped < operations.total or operations.skipped:
        raise _incomplete(
            f"it tested {operations.tested} of {operations.total} operations: "
            + ("; ".join(operations.skip_reasons) or "the rest was left out"),
            output,
        )
    if output.code != bool(document.failures):  # 0: nothing found, 1: failures, 2: did not work
        raise _incomplete(
            f"its exit code is {output.code}, yet it reports {len(document.failures)} failures",
            output,
        )


def _incomplete(cause: str, output: Output) -> Exception:
    return blind(
        f"schemathesis could not test the API: {cause}",
        help="check that the candidate serves and that its OpenAPI document is valid",
        detail=output.tail,
    )


def _findings(document: _Document, requests: Mapping[tuple[str, str], str]) -> Iterator[Finding]:
    for failure in document.failures:
        severity = severity_of(failure.severity)
        for operation in failure.operations:
            request = requests.get((operation, failure.code), "")
            yield Finding(
                scanner=Scanner.SCHEMATHESIS,
                id=failure.code,
                aliases=(failure.type,),
                severity=severity or Severity.HIGH,
                rated=severity is not None,
                title=failure.title,
                where=operation,
                detail=request,
                fix="send the request, see the answer, and correct the code or the document"
                if request
                else "correct the code or the OpenAPI document",
            )


_BLOCK = re.compile(r"^\d+\. Test Case ID: .*$", re.MULTILINE)
_CODE = re.compile(r"^- (ST\d+)", re.MULTILINE)
_CURL = re.compile(r"^\s*(curl (?:-X (\S+) )?.+)$", re.MULTILINE)


def _reproducing_requests(junit: Path) -> dict[tuple[str, str], str]:
    """The first curl command by operation and failure code; empty when the report is unreadable.

    A method that the document does not name is tried under the operation that shares its path,
    so the method of the command counts. The command is a help for people; the verdict does not
    hang on it.
    """
    try:
        tree = ElementTree.parse(junit)
    except (OSError, ElementTree.ParseError):
        return {}
    found: dict[tuple[str, str], str] = {}
    for case in tree.iter("testcase"):
        declared, _, path = case.get("name", "").partition(" ")
        for failure in case.iter("failure"):
            for block in _BLOCK.split(failure.text or ""):
                if curl := _CURL.search(block):
                    for code in _CODE.findall(block):
                        found.setdefault((f"{curl[2] or declared} {path}", code), curl[1])
    return found


def _sentence(document: _Document, max_examples: int, seed: int) -> str:
    operations = document.operations
    assert operations is not None  # checked before
    warnings = [
        f"{len(labels)} with {name.replace('_', ' ')}"
        for name, labels in sorted(document.warnings.items())
        if labels
    ]
    doubts = f"; operations {', '.join(warnings)}" if warnings else ""
    return (
        f"{document.test_cases.generated} requests to {operations.tested} of {operations.total} "
        f"operations against {len(CHECKS)} checks (at most {max_examples} generated requests "
        f"an operation, seed {seed}){doubts}"
    )
