"""OSV: where advisories come from, and which packages are there to be looked up.

Two sources of one format: a local directory of OSV files, and the OSV API. Either answers for
every package it was asked about or raises; it never leaves one out.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, date, datetime
from importlib import metadata
from pathlib import Path
from typing import Protocol, TypeVar

import httpx
from packaging.markers import default_environment
from pydantic import BaseModel, ConfigDict, ValidationError

from domain.advisories import (
    Advisory,
    Package,
    Pins,
    findings_of,
    match,
    parse_advisory,
    read_pins,
)
from domain.errors import Failed
from domain.findings import Finding

OSV_API = "https://api.osv.dev"
QUERIES_PER_BATCH = 1000  # the API's own limit
MAX_PAGES = 50
CONNECTIONS = 8
MAX_RECORD_BYTES = 16 * 1024 * 1024  # the largest real record is far smaller; a bomb is not


@dataclass(frozen=True)
class Lookup:
    """The answer for all packages of one question.

    Attributes:
        findings: one for each vulnerability of each package.
        source: what was asked: "12 advisories of 2024-10-15 from the local directory ...".
        newest: date of the newest data; the policy judges its age.
    """

    findings: tuple[Finding, ...]
    source: str
    newest: date


class Advisories(Protocol):
    """A source of advisories."""

    def lookup(self, packages: Sequence[Package], today: date) -> Lookup:
        """Look up every package.

        Raises:
            Failed: SLP041 when it cannot answer for each of them.
        """
        ...


@dataclass(frozen=True)
class OsvDirectory:
    """A local directory of OSV files: ``*.json`` at any depth, and ``*.zip`` full of them.

    Attributes:
        path: the directory; osv.dev offers one zip file for each ecosystem.
        shown_as: its name in reports, so that they do not depend on the machine.
    """

    path: Path
    shown_as: str = ""

    def lookup(self, packages: Sequence[Package], today: date) -> Lookup:
        advisories = self.load()
        newest = max(advisory.modified for advisory in advisories)
        day = newest.astimezone(UTC).date() if newest.tzinfo else newest.date()
        return Lookup(
            findings=match(packages, advisories),
            source=f"{len(advisories)} advisories of {day.isoformat()} from the local directory "
            f"{self.shown_as or self.path.name}",
            newest=day,
        )

    def load(self) -> list[Advisory]:
        """Every PyPI advisory in force; each id once, in its newest form.

        Raises:
            Failed: SLP041 when the directory, or a file of it, cannot be read, or holds none.
        """
        where = self.shown_as or self.path.name
        newest: dict[str, Advisory] = {}
        files = 0
        for name, content in _osv_files(self.path, where):
            files += 1
            try:
                advisory = parse_advisory(content)
            except ValueError as error:
                raise _no_advisories(f"cannot read an advisory: {error}", name) from None
            known = newest.get(advisory.id)
            if known is None or _moment(known) < _moment(advisory):
                newest[advisory.id] = advisory
        found = [a for a in newest.values() if a.withdrawn is None and a.python_names]
        if not found:
            raise _no_advisories(f"found no PyPI advisory in force in {files} OSV files", where)
        return found


def _moment(advisory: Advisory) -> datetime:
    """``modified`` for comparison; the format demands UTC, so a bare time is UTC."""
    return advisory.modified if advisory.modified.tzinfo else advisory.modified.replace(tzinfo=UTC)


def _osv_files(path: Path, where: str) -> Iterator[tuple[str, bytes]]:
    if not path.is_dir():
        raise _no_advisories("tried to read a directory of advisories that is not there", where)
    try:
        for file in sorted(path.rglob("*")):
            name = file.relative_to(path).as_posix()
            if file.suffix == ".json" and file.is_file():
                yield name, file.read_bytes()
            elif file.suffix == ".zip" and file.is_file():
                yield from _zipped(file, name)
    except OSError as error:
        raise _no_advisories(f"could not read it: {error.strerror or error}", where) from None


def _zipped(file: Path, name: str) -> Iterator[tuple[str, bytes]]:
    try:
        with zipfile.ZipFile(file) as archive:
            for member in archive.infolist():
                if not member.filename.endswith(".json"):
                    continue
                if member.file_size > MAX_RECORD_BYTES:
                    raise _no_advisories("a record is too large to be one", f"{name}")
                yield f"{name}:{member.filename}", archive.read(member)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
        raise _no_advisories(f"cannot read the archive: {error}", name) from None


def _no_advisories(cause: str, where: str) -> Failed:
    return Failed(
        "SLP041",
        cause,
        help="put the OSV files of PyPI there (all.zip from osv.dev), or correct `advisories` in "
        "the scan policy",
        where=where,
    )


class _Loose(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class _Hit(_Loose):
    id: str


class _Result(_Loose):
    vulns: tuple[_Hit, ...] = ()
    next_page_token: str | None = None


class _Batch(_Loose):
    results: tuple[_Result, ...]


_Answer = TypeVar("_Answer", bound=BaseModel)


@dataclass(frozen=True)
class OsvApi:
    """The OSV API: ``querybatch`` names the advisories of each package, ``vulns`` tells them.

    Attributes:
        base_url: address of the API.
        timeout_seconds: limit for each request.
    """

    base_url: str = OSV_API
    timeout_seconds: float = 20.0

    def lookup(self, packages: Sequence[Package], today: date) -> Lookup:
        with httpx.Client(base_url=self.base_url, timeout=self.timeout_seconds) as client:
            ids = self._ids(client, packages)
            records = self._records(client, {one for found in ids.values() for one in found})
        return Lookup(
            findings=tuple(
                finding
                for package in sorted(ids, key=str)
                for finding in findings_of(package, (records[i] for i in ids[package]))
            ),
            source=f"all PyPI advisories of {today.isoformat()} from {self.base_url} "
            f"({len(records)} of them name these packages)",
            newest=today,
        )

    def _records(self, client: httpx.Client, ids: set[str]) -> dict[str, Advisory]:
        progress = f"all packages, but not all of the {len(ids)} advisories that name them"

        def fetch(one: str) -> Advisory:
            path = f"/v1/vulns/{one}"
            record = self._ask(client, "GET", path, None, Advisory, progress)
            if record.id != one:
                raise self._failed(f"GET {path} answered with {record.id}", progress)
            return record

        wanted = sorted(ids)
        with ThreadPoolExecutor(CONNECTIONS) as pool:
            return dict(zip(wanted, pool.map(fetch, wanted), strict=True))

    def _ids(
        self, client: httpx.Client, packages: Sequence[Package]
    ) -> dict[Package, tuple[str, ...]]:
        """Ids of the advisories of every package, all pages of them."""
        wanted = sorted(set(packages), key=str)
        found: dict[Package, tuple[str, ...]] = {}
        for start in range(0, len(wanted), QUERIES_PER_BATCH):
            part = wanted[start : start + QUERIES_PER_BATCH]
            progress = f"{len(found)} of {len(wanted)} packages"
            found |= self._pages(client, part, progress)
        return found

    def _pages(
        self, client: httpx.Client, packages: Sequence[Package], progress: str
    ) -> dict[Package, tuple[str, ...]]:
        found: dict[Package, tuple[str, ...]] = {package: () for package in packages}
        open_queries: list[tuple[Package, str | None]] = [(package, None) for package in packages]
        for _ in range(MAX_PAGES):
            body = {"queries": [_query(package, token) for package, token in open_queries]}
            batch = self._ask(client, "POST", "/v1/querybatch", body, _Batch, progress)
            if len(batch.results) != len(open_queries):
                raise self._failed(
                    f"it answered {len(batch.results)} of {len(open_queries)} questions", progress
                )
            following: list[tuple[Package, str | None]] = []
            for (package, _), result in zip(open_queries, batch.results, strict=True):
                found[package] += tuple(hit.id for hit in result.vulns)
                if result.next_page_token:
                    following.append((package, result.next_page_token))
            if not following:
                return found
            open_queries = following
        raise self._failed(f"it had still more pages after {MAX_PAGES}", progress)

    def _ask(
        self,
        client: httpx.Client,
        method: str,
        path: str,
        body: object,
        kind: type[_Answer],
        progress: str,
    ) -> _Answer:
        try:
            response = client.request(method, path, json=body)
        except httpx.HTTPError as error:
            raise self._failed(f"{type(error).__name__}: {error}", progress) from None
        if response.status_code != httpx.codes.OK:
            raise self._failed(f"{method} {path} answered {response.status_code}", progress)
        try:
            return kind.model_validate_json(response.content)
        except ValidationError:
            kind_of = response.headers.get("content-type", "no type")
            raise self._failed(
                f"{method} {path} answered something that is not OSV JSON ({kind_of})", progress
            ) from None

    def _failed(self, cause: str, progress: str) -> Failed:
        return Failed(
            "SLP041",
            f"asked {self.base_url} for advisories: {cause}; looked up {progress}",
            help="try again, or keep a local directory of OSV files and name it in `advisories` "
            "of the scan policy",
        )


def _query(package: Package, token: str | None) -> dict[str, object]:
    query: dict[str, object] = {
        "package": {"name": package.name, "ecosystem": "PyPI"},
        "version": package.version,
    }
    return query if token is None else {**query, "page_token": token}


def installed_packages(root: Path) -> tuple[Package, ...]:
    """The packages installed in a virtual environment or a folder of distributions.

    This is what really ships, whatever a lock says.

    Raises:
        Failed: SLP041 when there is no place for packages, or one of them cannot be named.
    """
    folders = _site_folders(root)
    if not folders:
        raise _no_packages("looked for installed packages and found no site-packages", root.name)
    found: set[Package] = set()
    for distribution in metadata.distributions(path=[str(folder) for folder in folders]):
        found.add(_package(distribution))
    return tuple(sorted(found, key=str))


def _site_folders(root: Path) -> list[Path]:
    inside = [*root.glob("lib/python*/site-packages"), *root.glob("Lib/site-packages")]
    if inside:
        return sorted(inside)
    return [root] if any(root.glob("*.dist-info")) or root.name == "site-packages" else []


def _package(distribution: metadata.Distribution) -> Package:
    told = distribution.metadata  # read once: each access parses the file again
    name, version = (told["Name"], told["Version"]) if told else (None, None)
    if not name or not version:
        place = Path(str(getattr(distribution, "_path", "an installed package"))).name
        raise _no_packages("an installed package has no name or version", place)
    return Package(name=name, version=version)


def _no_packages(cause: str, where: str) -> Failed:
    return Failed("SLP041", cause, help="build the bundle again, then scan", where=where)


def locked_packages(lock: Path) -> Pins:
    """The packages a requirements lock pins for this platform.

    Raises:
        Failed: SLP041 when it cannot be read, or a line does not pin a version.
    """
    try:
        text = lock.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise _no_packages(f"tried to read the lock file: {reason}", lock.name) from None
    environment = {key: str(value) for key, value in default_environment().items()}
    return read_pins(text, environment, lock.name)
