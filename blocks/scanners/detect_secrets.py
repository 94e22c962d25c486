"""Secrets in the source with detect-secrets.

The report names the kind and the line of a possible secret, never the secret, and not its
SHA-1 either: a short password is guessed from that in no time.

The tool passes over files in silence: some by their name, and each one with a single byte that
is not UTF-8. So its own log says which files it opened, and text in another encoding is handed
to it once more, converted.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from blocks.scanners.evidence import NothingToDo, Seen, blind, report
from blocks.scanners.program import Output, batches, empty_folder, run, version_of
from blocks.scanners.sources import source_files
from domain.findings import Finding, Scanner, ScannerReport, Severity

_FILTERS = "detect_secrets.filters"
_UNWANTED_FILTERS = (
    f"{_FILTERS}.allowlist.is_line_allowlisted",  # a comment is not an allowance
    f"{_FILTERS}.heuristic.is_swagger_file",  # would pass over any file with that in its name
)
_OPENED = re.compile(r"Checking file: (.+)$", re.MULTILINE)
_PASSED_OVER = re.compile(r'Skipping "(.+)" due to', re.MULTILINE)


class _Loose(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class _Secret(_Loose):
    type: str
    filename: str
    line_number: int


class _Plugin(_Loose):
    name: str


class _Document(_Loose):
    version: str
    plugins_used: tuple[_Plugin, ...]
    results: dict[str, tuple[_Secret, ...]]


def scan(source: Path, *, scope: str = "", seconds: float = 300) -> ScannerReport:
    """Look for secrets in every file of ``source``, without asking any outside service.

    ``pragma: allowlist secret`` comments and baseline files are not honoured.
    """
    tool = version_of("detect-secrets")
    return report(Scanner.DETECT_SECRETS, scope, tool, lambda: _scan(source, seconds, tool))


def _scan(source: Path, seconds: float, tool: str) -> Seen | NothingToDo:
    files = [str(file) for file in source_files(source)]
    if not files:
        return NothingToDo("the source holds no file")
    opened, documents = _look(files, source, seconds)
    unread = [file for file in sorted(opened) if not _is_utf8(source / file)]
    converted = [file for file in unread if b"\0" not in (source / file).read_bytes()]
    if converted:
        documents += _look_converted(converted, source, seconds)
    checked = len(opened) - len(unread) + len(converted)
    detectors = {plugin.name for document in documents for plugin in document.plugins_used}
    if not detectors:
        raise blind("detect-secrets ran without a detector", help="reinstall it")
    return Seen(
        checked=checked,
        checked_against=f"{checked} of {len(files)} files (the rest is binary, or locks and assets "
        f"by name) against {len(detectors)} detectors of {tool}, offline",
        findings=tuple(
            _finding(secret)
            for document in documents
            for secrets in document.results.values()
            for secret in secrets
        ),
        tool=tool,
    )


def _look(files: list[str], root: Path, seconds: float) -> tuple[set[str], list[_Document]]:
    """Scan the files; the first answer is which of them the tool really opened."""
    opened: set[str] = set()
    told: set[str] = set()
    documents = []
    for batch in batches([f"./{file}" for file in files]):
        output = _run(batch, root, seconds)
        documents.append(_document(output))
        opened |= {posixpath.normpath(name) for name in _OPENED.findall(output.stderr)}
        told |= {posixpath.normpath(name) for name in _PASSED_OVER.findall(output.stderr)}
    if missed := sorted(set(files) - opened - told):
        raise blind(
            f"detect-secrets said nothing of {len(missed)} of {len(files)} files",
            help="check the installed version: pip install --upgrade 'slipway[scan]'",
            where=missed[0],
        )
    return opened & set(files), documents


def _look_converted(files: list[str], source: Path, seconds: float) -> list[_Document]:
    """Scan copies in UTF-8: as Latin-1, which takes any byte, so that no line is lost."""
    with empty_folder() as folder:
        for file in files:
            copy = folder / file
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_text((source / file).read_bytes().decode("latin-1"), encoding="utf-8")
        return _look(files, folder, seconds)[1]


def _is_utf8(file: Path) -> bool:
    try:
        file.read_bytes().decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _run(files: list[str], root: Path, seconds: float) -> Output:
    options = ["-v", "scan", "--no-verify"]
    options += [part for name in _UNWANTED_FILTERS for part in ("--disable-filter", name)]
    output = run("detect-secrets", [*options, *files], cwd=root, seconds=seconds, good=(0,))
    if "Unable to open file" in output.stderr:  # it goes on, and ends with 0
        raise blind(
            "detect-secrets could not read every file",
            help="make the source readable",
        )
    return output


def _document(output: Output) -> _Document:
    try:
        return _Document.model_validate_json(output.stdout)
    except ValueError:
        # The answer may hold a secret: it is not shown.
        raise blind(
            "detect-secrets ended well but its answer is not a JSON report",
            help="check the installed version: pip install --upgrade 'slipway[scan]'",
        ) from None


def _finding(secret: _Secret) -> Finding:
    return Finding(
        scanner=Scanner.DETECT_SECRETS,
        id=secret.type.lower().replace(" ", "-"),
        severity=Severity.HIGH,
        title=f"possible secret: {secret.type}",
        where=f"{posixpath.normpath(secret.filename)}:{secret.line_number}",
        fix="revoke it, and read it from the environment or a secret store instead",
    )
