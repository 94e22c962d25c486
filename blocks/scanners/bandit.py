"""Static analysis of Python with bandit."""

from __future__ import annotations

import posixpath
from pathlib import Path, PurePosixPath

from pydantic import BaseModel, ConfigDict

from blocks.scanners.evidence import NothingToDo, Seen, blind, report
from blocks.scanners.program import Output, batches, run, version_of
from blocks.scanners.sources import is_test, source_files
from domain.findings import Finding, Scanner, ScannerReport, Severity, severity_of


class _Loose(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class _Result(_Loose):
    filename: str
    issue_severity: str
    issue_confidence: str
    issue_text: str
    line_number: int
    more_info: str = ""
    test_id: str
    test_name: str


class _Skipped(_Loose):
    filename: str
    reason: str


class _Document(_Loose):
    errors: tuple[_Skipped, ...]
    metrics: dict[str, object]
    results: tuple[_Result, ...]


def scan(source: Path, *, scope: str = "", seconds: float = 300) -> ScannerReport:
    """Look for dangerous code in the Python files of ``source``, tests left out.

    ``# nosec`` comments and bandit's own configuration files are not honoured.
    """
    tool = version_of("bandit")
    return report(Scanner.BANDIT, scope, tool, lambda: _scan(source, seconds, tool))


def _scan(source: Path, seconds: float, tool: str) -> Seen | NothingToDo:
    python = [file for file in source_files(source) if file.suffix == ".py"]
    files = [file for file in python if not is_test(file)]
    if not files:
        return NothingToDo(
            "the source holds no Python outside its tests"
            if python
            else "the source holds no Python"
        )
    documents = [
        _document(_run(batch, source, seconds)) for batch in batches([f"./{f}" for f in files])
    ]
    _check_complete(files, documents)
    return Seen(
        checked=len(files),
        checked_against=f"{len(files)} Python files against the rules of {tool}, "
        f"{len(python) - len(files)} test files left out",
        findings=tuple(_finding(r) for document in documents for r in document.results),
        tool=tool,
    )


def _run(files: list[str], source: Path, seconds: float) -> Output:
    # The value of -x replaces a default list that is matched as a substring of the path: it
    # would silently leave out a folder called shop.git or my.svn.d. "//" matches no path here.
    options = ["--format", "json", "--quiet", "--ignore-nosec", "-x", "//"]
    return run("bandit", [*options, *files], cwd=source, seconds=seconds)


def _document(output: Output) -> _Document:
    try:
        return _Document.model_validate_json(output.stdout)
    except ValueError:
        raise blind(
            f"bandit ended with exit code {output.code} but its answer is not a JSON report",
            help="check the installed version: pip install --upgrade 'slipway[scan]'",
            detail=output.tail,
        ) from None


def _check_complete(files: list[PurePosixPath], documents: list[_Document]) -> None:
    """A file that bandit left out or could not parse was not looked at."""
    skipped = [error for document in documents for error in document.errors]
    if skipped:
        first = skipped[0]
        raise blind(
            f"bandit could not read {len(skipped)} of {len(files)} files: {first.reason}",
            help="make it valid for this Python version, or remove it from the source",
            where=_place(first.filename),
        )
    seen = {_place(name) for document in documents for name in document.metrics}
    if missed := [str(file) for file in files if str(file) not in seen]:
        raise blind(
            f"bandit left out {len(missed)} of {len(files)} files",
            help="rename the file, or remove what makes bandit leave it out",
            where=missed[0],
        )


def _finding(result: _Result) -> Finding:
    severity = severity_of(result.issue_severity)
    return Finding(
        scanner=Scanner.BANDIT,
        id=result.test_id,
        aliases=(result.test_name,),
        severity=severity or Severity.HIGH,
        rated=severity is not None,
        title=result.issue_text,
        where=f"{_place(result.filename)}:{result.line_number}",
        detail=f"confidence {result.issue_confidence.lower()}",
        fix="change the code as the page of the rule says",
        url=result.more_info,
    )


def _place(filename: str) -> str:
    return posixpath.normpath(filename)
