"""Advisories: OSV records, and whether a package at a version is affected.

The evaluation follows the algorithm of the OSV schema, section "Evaluation". Where a record is
unclear (a version that cannot be compared, a range of commits only), the package counts as
affected: a doubt is a finding that a person can look at and allow, never a silent "no".
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from datetime import date, datetime
from typing import Annotated, Any

from packaging.markers import UndefinedEnvironmentName
from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from domain.errors import Failed
from domain.findings import Finding, Scanner, Severity, severity_of


class Package(BaseModel):
    """One package as it ships; the name is normalised, so Jinja2 and jinja2 are one."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Annotated[str, BeforeValidator(lambda name: canonicalize_name(name))]
    version: str = Field(min_length=1)

    def __str__(self) -> str:
        return f"{self.name} {self.version}"


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


def _or_empty(value: object) -> object:
    return () if value is None else value  # some databases write null for "none"


class _Event(_Record):
    introduced: str | None = None
    fixed: str | None = None
    last_affected: str | None = None
    limit: str | None = None


class _Range(_Record):
    type: str
    events: Annotated[tuple[_Event, ...], BeforeValidator(_or_empty)] = ()


class _Named(_Record):
    ecosystem: str
    name: str


class _Affected(_Record):
    package: _Named | None = None
    ranges: Annotated[tuple[_Range, ...], BeforeValidator(_or_empty)] = ()
    versions: Annotated[tuple[str, ...], BeforeValidator(_or_empty)] = ()
    database_specific: Any = None
    ecosystem_specific: Any = None

    @property
    def python_name(self) -> str | None:
        """Normalised name of a PyPI package; None for any other ecosystem."""
        if self.package is None or self.package.ecosystem.partition(":")[0].lower() != "pypi":
            return None
        return str(canonicalize_name(self.package.name))


class _Score(_Record):
    type: str
    score: str


class _Reference(_Record):
    type: str = ""
    url: str = ""


class Advisory(_Record):
    """One OSV record, as far as it is needed."""

    id: str = Field(min_length=1)
    modified: datetime
    withdrawn: datetime | None = None
    aliases: Annotated[tuple[str, ...], BeforeValidator(_or_empty)] = ()
    summary: str | None = None
    severity: Annotated[tuple[_Score, ...], BeforeValidator(_or_empty)] = ()
    affected: Annotated[tuple[_Affected, ...], BeforeValidator(_or_empty)] = ()
    references: Annotated[tuple[_Reference, ...], BeforeValidator(_or_empty)] = ()
    database_specific: Any = None

    @property
    def python_names(self) -> frozenset[str]:
        return frozenset(name for a in self.affected if (name := a.python_name) is not None)

    @property
    def names(self) -> frozenset[str]:
        return frozenset((self.id, *self.aliases))

    def affects(self, package: Package) -> bool:
        """Whether the package at its version is affected; a withdrawn record affects nothing."""
        return self.withdrawn is None and any(
            _is_affected(package.version, affected)
            for affected in self.affected
            if affected.python_name == package.name
        )

    def fixed_in(self, package: Package) -> tuple[str, ...]:
        """Versions above the package's own that the record calls fixed, lowest first."""
        here = _parsed(package.version)
        fixed = {
            event.fixed
            for affected in self.affected
            if affected.python_name == package.name
            for one in affected.ranges
            if one.type != "GIT"
            for event in one.events
            if event.fixed is not None
        }
        pairs = [(version, text) for text in fixed if (version := _parsed(text)) is not None]
        return tuple(text for version, text in sorted(pairs) if here is None or version > here)

    def rating(self, package: Package) -> Severity | None:
        """The severity that the database states; None when it states none we can read.

        A CVSS vector without a rating beside it is not scored here: the finding then counts as
        high, and shows the vector.
        """
        if self.id.startswith("MAL-"):
            return Severity.CRITICAL  # a malicious package: there is no mild case
        said = [self.database_specific]
        for affected in self.affected:
            if affected.python_name == package.name:
                said += [affected.database_specific, affected.ecosystem_specific]
        known = [
            rating
            for one in said
            if isinstance(one, dict) and (rating := severity_of(one.get("severity"))) is not None
        ]
        return max(known, key=lambda rating: rating.rank, default=None)


def parse_advisory(text: str | bytes) -> Advisory:
    """Read one OSV record.

    Raises:
        ValueError: it is not JSON, or not an OSV record; the message says where.
    """
    try:
        return Advisory.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"])) or "document"
        raise ValueError(f"not an OSV record: {place}: {first['msg']}") from None


def match(packages: Iterable[Package], advisories: Iterable[Advisory]) -> tuple[Finding, ...]:
    """One finding for each vulnerability of each package, whatever number of records tell it."""
    by_name: dict[str, list[Advisory]] = {}
    for advisory in advisories:
        for name in advisory.python_names:
            by_name.setdefault(name, []).append(advisory)
    return tuple(
        finding
        for package in sorted(set(packages), key=str)
        for finding in findings_of(
            package, (a for a in by_name.get(package.name, ()) if a.affects(package))
        )
    )


def findings_of(package: Package, advisories: Iterable[Advisory]) -> tuple[Finding, ...]:
    """The findings for records already known to affect the package; aliases become one."""
    return tuple(
        _finding(package, group)
        for group in _same_vulnerability(a for a in advisories if a.withdrawn is None)
    )


def too_old(newest: date, today: date, max_age_days: int) -> str | None:
    """Why advisories of that date must not be relied on; None when they may be."""
    age = (today - newest).days
    if age > max_age_days:
        return (
            f"the newest advisory is of {newest.isoformat()}, {age} days old; "
            f"the policy allows {max_age_days}"
        )
    if age < -1:  # one day of grace for time zones
        return (
            f"the newest advisory is dated {newest.isoformat()}, after today "
            f"({today.isoformat()}); the data or the clock is wrong"
        )
    return None


class Pins(BaseModel):
    """The packages that a requirements lock installs on one platform."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    packages: tuple[Package, ...]
    left_out: tuple[str, ...] = Field(description="Requirements of other platforms.")


_COMMENT = re.compile(r"(^|\s+)#.*$")
_OPTIONS = re.compile(r"\s--?[A-Za-z].*$")


def read_pins(text: str, environment: Mapping[str, str], where: str = "") -> Pins:
    """Read the pins of a requirements lock, as pip or uv writes it.

    Stricter than ``domain.artifact.parse_lock``: there the installer refuses what it does not
    understand; here a line that is not understood would be a package nobody looked up.

    Args:
        text: its content: pins with hashes, markers, comments and continued lines.
        environment: values of the environment markers (``packaging.markers``).
        where: name of the file, for errors.

    Raises:
        Failed: SLP041 for a line that does not pin one version of a package by name.
    """
    packages: list[Package] = []
    left_out: list[str] = []
    for number, line in _logical_lines(text):
        if line.startswith("-"):
            _check_option(line, f"{where}:{number}")
            continue
        requirement = _requirement(line, f"{where}:{number}")
        package = Package(name=requirement.name, version=_pin(requirement, f"{where}:{number}"))
        if _applies(requirement, environment, f"{where}:{number}"):
            packages.append(package)
        else:
            left_out.append(f"{package} ({requirement.marker})")
    return Pins(packages=tuple(packages), left_out=tuple(left_out))


def _logical_lines(text: str) -> Iterator[tuple[int, str]]:
    """Lines with their continuations joined, without comments, blank ones left out."""
    held, start = "", 0
    for number, raw in enumerate((*text.splitlines(), ""), start=1):
        start = start or number
        if raw.rstrip().endswith("\\") and not raw.lstrip().startswith("#"):
            held += raw.rstrip()[:-1] + " "
            continue
        line = _COMMENT.sub("", held + raw).strip()
        if line:
            yield start, line
        held, start = "", 0
    if held.strip():
        yield start, held.strip()


def _check_option(line: str, where: str) -> None:
    option = re.split(r"[\s=]", line, maxsplit=1)[0]
    if option in ("-r", "--requirement", "-e", "--editable"):
        raise _unknown(f"cannot look up what {option!r} brings in", where)


def _requirement(line: str, where: str) -> Requirement:
    try:
        return Requirement(_OPTIONS.sub("", line))
    except InvalidRequirement:
        raise _unknown(f"cannot read the requirement {line.split()[0]!r}", where) from None


def _pin(requirement: Requirement, where: str) -> str:
    pins = list(requirement.specifier)
    exact = len(pins) == 1 and pins[0].operator in ("==", "===")
    if requirement.url is not None or not exact or pins[0].version.endswith(".*"):
        raise _unknown(f"cannot look up an unpinned requirement: {requirement.name}", where)
    return pins[0].version


def _applies(requirement: Requirement, environment: Mapping[str, str], where: str) -> bool:
    if requirement.marker is None:
        return True
    try:
        return requirement.marker.evaluate({"extra": "", **environment})
    except UndefinedEnvironmentName:
        raise _unknown(f"cannot evaluate the marker of {requirement.name}", where) from None


def _unknown(cause: str, where: str) -> Failed:
    return Failed(
        "SLP041",
        cause,
        help="write the lock with every package pinned, for example `uv pip compile "
        "--generate-hashes requirements.in`",
        where=where,
    )


def _is_affected(version: str, affected: _Affected) -> bool:
    ranges = [one for one in affected.ranges if one.type != "GIT"]
    if not ranges and not affected.versions:
        return True  # only commits, or nothing at all: it cannot be ruled out
    return _is_listed(version, affected.versions) or any(
        _is_within(_parsed(version), one) for one in ranges
    )


def _is_listed(version: str, versions: Iterable[str]) -> bool:
    names = {version}
    if (parsed := _parsed(version)) is not None:
        names |= {str(parsed), parsed.public}
        return any(v in names or str(_parsed(v)) in names for v in versions)
    return version in versions


def _is_within(version: Version | None, one: _Range) -> bool:
    """The OSV algorithm: apply the events in order, the last one that speaks decides."""
    if version is None:
        return True
    if not _is_before_limits(version, one):
        return False
    vulnerable = False
    for event in sorted(one.events, key=_event_order):
        if event.introduced is not None and _is_from(version, event.introduced):
            vulnerable = True
        if (fixed := _parsed(event.fixed)) is not None and version >= fixed:
            vulnerable = False
        if (last := _parsed(event.last_affected)) is not None and version > last:
            vulnerable = False
    return vulnerable


def _is_before_limits(version: Version, one: _Range) -> bool:
    limits = [event.limit for event in one.events if event.limit is not None]
    return not limits or any(
        limit == "*" or (parsed := _parsed(limit)) is None or version < parsed for limit in limits
    )


def _is_from(version: Version, introduced: str) -> bool:
    if introduced == "0":
        return True
    parsed = _parsed(introduced)
    return parsed is None or version >= parsed


def _event_order(event: _Event) -> tuple[bool, Version, bool]:
    """By version; at a tie ``introduced`` comes last, so that the doubt counts as affected."""
    text = event.introduced or event.fixed or event.last_affected
    parsed = None if text == "0" else _parsed(text)
    return parsed is not None, parsed or _ZERO, event.introduced is not None


_ZERO = Version("0")


def _parsed(text: str | None) -> Version | None:
    try:
        return None if text is None else Version(text)
    except InvalidVersion:
        return None


def _same_vulnerability(advisories: Iterable[Advisory]) -> list[list[Advisory]]:
    """Group records that share an id or an alias, directly or through others."""
    groups: list[tuple[set[str], list[Advisory]]] = []
    for advisory in advisories:
        names, members = set(advisory.names), [advisory]
        apart = []
        for other_names, others in groups:
            if names & other_names:
                names |= other_names
                members += others
            else:
                apart.append((other_names, others))
        groups = [*apart, (names, members)]
    return [sorted(members, key=lambda a: a.id) for _, members in groups]


def _finding(package: Package, group: list[Advisory]) -> Finding:
    names = sorted({name for advisory in group for name in advisory.names}, key=_familiar)
    ratings = [r for advisory in group if (r := advisory.rating(package)) is not None]
    rating = max(ratings, key=lambda r: r.rank, default=None)
    fixed = {v for advisory in group for v in advisory.fixed_in(package)}
    fix = _lowest(fixed)
    return Finding(
        scanner=Scanner.OSV,
        id=names[0],
        aliases=tuple(names[1:]),
        severity=rating or Severity.HIGH,
        rated=rating is not None,
        title=next((a.summary for a in group if a.summary), f"{names[0]} in {package.name}"),
        where=str(package),
        detail=" ".join(sorted({s.score for advisory in group for s in advisory.severity})),
        fix=f"upgrade {package.name} to {fix} or later" if fix else "no fixed version is named",
        url=f"https://osv.dev/vulnerability/{group[0].id}",
    )


def _familiar(name: str) -> tuple[int, str]:
    """CVE first, then GHSA: the names that people write into allow-lists."""
    return {"CVE": 0, "GHSA": 1}.get(name.partition("-")[0], 2), name


def _lowest(versions: Iterable[str]) -> str | None:
    return min(versions, key=lambda text: _parsed(text) or _ZERO, default=None)
