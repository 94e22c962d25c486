"""Artifacts: what a build makes, how it is named, and the statement of how it was made.

A **bundle** is the build output of one service; an **artifact** is the bundles of one version of
an application. Both are named by what is in them, never by when or where they were made.

The digest of a bundle is taken over its *listing* (path, kind, executable bit, size and SHA-256
of each file, sorted), not over the archive that carries it. So compression and the dialect of
the archiver may change without a new name, the name can be checked file by file while unpacking
or against an unpacked folder, and everything a machine adds by itself (owner, time, umask) is
outside of it by construction.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from packaging.utils import canonicalize_name
from pydantic import BaseModel, ConfigDict, Field

Digest = Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]

BUILD_TYPE = "urn:slipway:build:bundle:v1"
"""Names the meaning of the parameters in a provenance statement."""

_LISTING_HEADER = b"slipway-listing/1\n"


def short(digest: str) -> str:
    """The twelve hexadecimal digits that people read: ``sha256:0123...`` -> ``0123456789ab``."""
    return digest.removeprefix("sha256:")[:12]


def digest_of(value: object) -> str:
    """Digest of a JSON value in canonical form (sorted keys, no blanks, ASCII)."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return "sha256:" + hashlib.sha256(text.encode("ascii")).hexdigest()


# --- listings -----------------------------------------------------------------------------


@dataclass(frozen=True, order=True)
class Entry:
    """One file or symbolic link of a bundle; folders exist only as parts of paths.

    ``content`` is the SHA-256 (hexadecimal) of the file's bytes, or the target of the link.
    """

    path: str
    kind: Literal["file", "link"]
    content: str
    size: int = 0
    executable: bool = False


def listing_digest(entries: Iterable[Entry]) -> str:
    """The digest that names a set of entries, whatever their order.

    Raises:
        ValueError: a path is unsafe or used twice, or a file is also the parent of another;
            such a set cannot be unpacked to one meaning.
    """
    ordered = sorted(entries, key=lambda entry: entry.path)
    check_paths([entry.path for entry in ordered])
    hasher = hashlib.sha256(_LISTING_HEADER)
    for entry in ordered:
        record = [entry.path, entry.kind, entry.executable, entry.size, entry.content]
        # JSON escapes every separator that a file name may hold, so no two listings of
        # different files spell the same bytes.
        hasher.update(json.dumps(record, ensure_ascii=True).encode("ascii") + b"\n")
    return "sha256:" + hasher.hexdigest()


def check_paths(paths: Iterable[str]) -> None:
    """Refuse paths that leave the bundle or contradict each other.

    Raises:
        ValueError: with the path and what is wrong with it.
    """
    seen: set[str] = set()
    for path in paths:
        _check_path(path)
        if path in seen:
            raise ValueError(f"{path!r} is listed twice")
        seen.add(path)
    for path in seen:
        parent = path.rpartition("/")[0]
        while parent:
            if parent in seen:
                raise ValueError(f"{parent!r} is both a file and the folder of {path!r}")
            parent = parent.rpartition("/")[0]


def _check_path(path: str) -> None:
    if path.startswith("/"):
        raise ValueError(f"{path!r} is an absolute path")
    if any(part in ("", ".", "..") for part in path.split("/")):
        raise ValueError(f"{path!r} has an empty, `.` or `..` part")
    if "\0" in path:
        raise ValueError(f"{path!r} holds a NUL character")


# --- bundles and artifacts ----------------------------------------------------------------


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ServiceBundle(_Frozen):
    """The immutable build output of one service."""

    digest: Digest
    size_bytes: int = Field(ge=0, description="Of the archive.")
    built_from: Digest = Field(description="Key of the inputs: source, lock, definition, platform.")

    @property
    def short(self) -> str:
        return short(self.digest)


class Artifact(_Frozen):
    """One version of an application: what moves from environment to environment."""

    application: str
    version: str
    services: Mapping[str, ServiceBundle] = Field(min_length=1)

    @property
    def digest(self) -> str:
        """Over the services' names and digests alone: the version is a name for this digest."""
        return digest_of({name: bundle.digest for name, bundle in self.services.items()})

    @property
    def short(self) -> str:
        return short(self.digest)


# --- lock files ---------------------------------------------------------------------------


@dataclass(frozen=True)
class LockedPackage:
    """One line of a lock file. ``version`` is None when the line does not pin it."""

    name: str
    version: str | None
    hashes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Lock:
    """What a lock file in requirements format says.

    ``includes`` and ``local`` hold the lines that point at other files: ``-r`` and ``-c``, and
    projects in a folder (``-e .``, ``./lib``).
    """

    packages: tuple[LockedPackage, ...] = ()
    includes: tuple[str, ...] = ()
    local: tuple[str, ...] = ()
    requires_hashes: bool = False

    @property
    def unhashed(self) -> tuple[str, ...]:
        return tuple(package.name for package in self.packages if not package.hashes) + self.local

    @property
    def is_hashed(self) -> bool:
        """Whether every line carries a hash, so that nothing else can be installed."""
        if self.includes:
            return self.requires_hashes
        return bool(self.packages) and not self.unhashed

    def hashes(self, name: str, version: str) -> tuple[str, ...]:
        wanted = canonicalize_name(name)
        for package in self.packages:
            if package.name == wanted and package.version in (version, None):
                return package.hashes
        return ()


_NAME = re.compile(r"^([A-Za-z0-9][A-Za-z0-9._-]*)\s*(\[[^]]*\])?\s*(.*)$")
_HASH = re.compile(r"--hash[=\s]+sha256:([0-9a-f]{64})\b")
_EXACT = re.compile(r"^===?\s*([^\s,;]+)\s*(;|$|--hash)")


def parse_lock(text: str) -> Lock:
    """Read a lock file in requirements format, as `uv pip compile` or `pip freeze` write it.

    Unknown options are left to the installer, which refuses what it does not know.
    """
    packages, includes, local = [], [], []
    requires_hashes = False
    for line in _logical_lines(text):
        option, _, rest = line.partition(" ")
        option, _, value = option.partition("=") if option.startswith("--") else (option, "", "")
        argument = (value or rest).strip()
        if option in ("-r", "--requirement", "-c", "--constraint"):
            includes.append(argument)
        elif option in ("-e", "--editable"):
            local.append(argument)
        elif option == "--require-hashes":
            requires_hashes = True
        elif option.startswith("-"):
            continue
        elif _is_local(line):
            local.append(line.split()[0])
        elif match := _NAME.match(line):
            packages.append(_package(match[1], match[3], line))
    return Lock(tuple(packages), tuple(includes), tuple(local), requires_hashes)


def _logical_lines(text: str) -> Iterable[str]:
    for line in re.sub(r"\\\r?\n", " ", text).splitlines():
        line = re.sub(r"(^|\s)#.*$", "", line).strip()
        if line:
            yield line


def _is_local(line: str) -> bool:
    target = line.split(";")[0]
    if "@" in target:
        return bool(re.search(r"@\s*(file:|\.{0,2}/)", target))
    return target.startswith((".", "/", "file:"))


def _package(name: str, specifier: str, line: str) -> LockedPackage:
    pin = _EXACT.match(specifier)
    hashes = tuple(sorted(set(_HASH.findall(line))))
    return LockedPackage(canonicalize_name(name), pin[1] if pin else None, hashes)


# --- provenance ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Revision:
    """Where the source came from. ``commit`` is None outside of version control."""

    commit: str | None = None
    dirty: bool = False
    repository: str | None = None

    def __str__(self) -> str:
        if self.commit is None:
            return "unversioned"
        return self.commit + ("-dirty" if self.dirty else "")


@dataclass(frozen=True)
class Package:
    """An installed Python package, with the hashes that its lock accepts."""

    name: str
    version: str
    hashes: tuple[str, ...] = ()

    @property
    def purl(self) -> str:
        return f"pkg:pypi/{canonicalize_name(self.name)}@{self.version}"


@dataclass(frozen=True)
class BuildFacts:
    """What a provenance statement is made of."""

    name: str
    digest: str
    built_from: str
    source_digest: str
    revision: Revision
    builder: str
    builder_version: str
    invocation: str
    started: datetime
    finished: datetime
    lock_digest: str | None = None
    unhashed: tuple[str, ...] = ()
    commands: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    python: str | None = None
    platform: str | None = None
    tools: Mapping[str, str] = field(default_factory=dict)
    packages: tuple[Package, ...] = ()


def provenance(facts: BuildFacts) -> dict[str, Any]:
    """An in-toto Statement v1 with a SLSA Provenance v1 predicate.

    Source: https://slsa.dev/spec/v1.0/provenance and
    https://github.com/in-toto/attestation/blob/main/spec/v1/statement.md
    """
    return {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": facts.name, "digest": _digest_set(facts.digest)}],
        "predicateType": "https://slsa.dev/provenance/v1",
        "predicate": {
            "buildDefinition": {
                "buildType": BUILD_TYPE,
                "externalParameters": {
                    "service": facts.name,
                    "commands": list(facts.commands),
                    "exclude": list(facts.exclude),
                    "python": facts.python,
                },
                "internalParameters": {
                    "input_key": facts.built_from,
                    "platform": facts.platform,
                    "packages_without_hash": list(facts.unhashed),
                },
                "resolvedDependencies": _dependencies(facts),
            },
            "runDetails": {
                "builder": {
                    "id": facts.builder,
                    "version": {"slipway": facts.builder_version, **facts.tools},
                },
                "metadata": {
                    "invocationId": facts.invocation,
                    "startedOn": _timestamp(facts.started),
                    "finishedOn": _timestamp(facts.finished),
                },
            },
        },
    }


def _dependencies(facts: BuildFacts) -> list[dict[str, Any]]:
    revision = facts.revision
    source: dict[str, Any] = {
        "name": "source",
        "digest": _digest_set(facts.source_digest),
        "annotations": {"revision": str(revision), "dirty": revision.dirty},
    }
    if revision.commit:
        source["digest"]["gitCommit"] = revision.commit
    if revision.repository:
        source["uri"] = f"git+{revision.repository}"
    found = [source]
    if facts.lock_digest:
        found.append({"name": "lock", "digest": _digest_set(facts.lock_digest)})
    return found + [_dependency(package) for package in facts.packages]


def _dependency(package: Package) -> dict[str, Any]:
    """A lock names the hashes of all files of a release; only one of them was installed.

    With one hash we know which; with several we say which ones were acceptable, not more.
    """
    described: dict[str, Any] = {"name": package.name, "uri": package.purl}
    if len(package.hashes) == 1:
        described["digest"] = {"sha256": package.hashes[0]}
    elif package.hashes:
        described["annotations"] = {"accepted_sha256": list(package.hashes)}
    return described


def _digest_set(digest: str) -> dict[str, str]:
    return {"sha256": digest.removeprefix("sha256:")}


def _timestamp(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
