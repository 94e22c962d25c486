"""Builds the bundle of a service from its source, without trusting where or when it runs.

A bundle is a tree of ``bundle.json`` (the Python and platform it needs), ``app/`` (the source,
after the build commands), and, when there is a lock, ``requirements.lock`` and ``venv/`` (a
relocatable virtual environment without its interpreter, which is linked where it is unpacked).
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from uv import find_uv_bin

from blocks import commands, sbom
from blocks.bundles import (
    LOCK,
    MANIFEST,
    BundleStore,
    Interpreter,
    Manifest,
    find_python,
    is_bytecode,
    pack,
    read_entry,
)
from domain.artifact import (
    BuildFacts,
    Lock,
    Revision,
    ServiceBundle,
    digest_of,
    listing_digest,
    parse_lock,
    provenance,
)
from domain.errors import Failed

_INPUTS = "slipway-build-inputs/1"
_UV_SECONDS = 600
_GIT_SECONDS = 60
_JUDGED_LINES = 400
# Any moment does, as long as it is always the same one and not before 1980 (zip files).
_SOURCE_DATE_EPOCH = "315532800"

# Never part of a source, unless version control tracks them.
_IGNORED = (
    *(".git", ".hg", ".svn", ".bzr", ".jj", ".slipway"),
    *(".venv", "venv", "node_modules", "__pycache__", "*.pyc", "*.pyo"),
    *(".mypy_cache", ".pytest_cache", ".ruff_cache", ".tox", ".nox", ".hypothesis"),
    *(".DS_Store", ".env"),
)

# What a build sees of the caller's environment besides its home and path: how to reach packages.
# Everything else would be a hidden input, or a secret that an install script could read.
_PASSED_NAMES = {
    *("TERM", "CI", "NETRC"),
    *("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"),
    *("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"),
}
_PASSED_PREFIXES = ("UV_", "PIP_", "NPM_", "NODE_", "YARN_", "COREPACK_", "XDG_", "LC_")
# These would make uv install to another place, by another Python, or without looking at hashes.
_UV_REFUSED = {
    *("UV_PYTHON", "UV_SYSTEM_PYTHON", "UV_BREAK_SYSTEM_PACKAGES", "UV_TARGET", "UV_PREFIX"),
    *("UV_PROJECT", "UV_PROJECT_ENVIRONMENT", "UV_WORKING_DIR"),
    *("UV_COMPILE_BYTECODE", "UV_LINK_MODE", "UV_NO_VERIFY_HASHES"),
}

_NETWORK = re.compile(
    r"error sending request|dns error|tcp connect error|client error \(Connect\)|timed out"
    r"|connection (was )?(reset|refused|closed)|HTTP status server error|network is unreachable",
    re.IGNORECASE,
)
_NO_SPACE = re.compile(
    r"no space left on device|disk quota exceeded|os error (28|122|27)\b", re.IGNORECASE
)

# Made by uv for a person or for this machine. The interpreter is linked when unpacking.
_MACHINE_FILES = (
    *("pyvenv.cfg", ".gitignore", ".lock", "CACHEDIR.TAG"),
    *("bin/activate*", "bin/deactivate*", "bin/pydoc*", "bin/python", "bin/python[0-9]*"),
)


# --- what is asked, what comes back -------------------------------------------------------


@dataclass(frozen=True)
class BuildRequest:
    """How one service is built. Paths are absolute; globs without ``/`` match any level."""

    application: str
    service: str
    source: Path
    lock: Path | None = None
    python: str | None = None
    commands: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    time_limit: timedelta = timedelta(minutes=15)

    @property
    def name(self) -> str:
        return f"{self.application}/{self.service}"


@dataclass(frozen=True)
class BuildResult:
    """A bundle, and whether it had to be built. ``logs`` is None when it was not."""

    name: str
    bundle: ServiceBundle
    rebuilt: bool
    reason: str
    seconds: float
    revision: Revision
    packages: int
    unhashed: tuple[str, ...] = ()
    logs: Path | None = None


@dataclass(frozen=True)
class _Inputs:
    """Everything that decides what the bundle will be."""

    paths: tuple[str, ...]
    source_digest: str
    lock_text: str | None
    lock: Lock
    python: Interpreter
    key: str

    @property
    def lock_digest(self) -> str | None:
        if self.lock_text is None:
            return None
        return "sha256:" + hashlib.sha256(self.lock_text.encode()).hexdigest()


def build(request: BuildRequest, store: BundleStore, *, invocation: str = "local") -> BuildResult:
    """Build a service, or find the bundle that the same inputs became before.

    Args:
        invocation: what the provenance statement names as the run: the flow run's id.

    Raises:
        Failed: SLP020 (source, lock or a command), SLP022 (no such Python), SLP014 (the package
            index cannot be reached; may be tried again), SLP015 (disk full).
        NeedsPerson: SLP021 when the stored bundle is damaged.
    """
    clock = time.monotonic()
    inputs = _read_inputs(request)
    revision = read_revision(request.source)
    logs = None
    if bundle := store.find(inputs.key):
        reason = f"the same inputs became {bundle.short} before; nothing was built"
    else:
        logs = _logs(request, store, inputs.key)
        bundle = _build(request, inputs, revision, store, invocation, logs)
        reason = f"no bundle was known for these inputs; built {bundle.short}"
    return BuildResult(
        name=request.name,
        bundle=bundle,
        rebuilt=logs is not None,
        reason=reason,
        seconds=time.monotonic() - clock,
        revision=revision,
        packages=_count_packages(store, bundle.digest),
        unhashed=inputs.lock.unhashed,
        logs=logs,
    )


def _build(
    request: BuildRequest,
    inputs: _Inputs,
    revision: Revision,
    store: BundleStore,
    invocation: str,
    logs: Path,
) -> ServiceBundle:
    started = datetime.now(UTC)
    run = _Runner(logs, request.time_limit)
    with store.scratch() as scratch:
        tree = scratch / "tree"
        inputs = _stage(request, inputs, tree)
        if inputs.lock_text is not None:
            _install(request, inputs, tree, scratch, run)
        _run_commands(request, tree, run)
        _drop_machine_files(tree / "venv")
        packed = pack(tree, scratch / "bundle.tar.gz")
        found = sbom.installed(_site_packages(tree / "venv", inputs.python))
        facts = BuildFacts(
            name=request.name,
            digest=packed.digest,
            built_from=inputs.key,
            source_digest=inputs.source_digest,
            revision=revision,
            builder="urn:slipway:builder:local",
            builder_version=version("slipway"),
            invocation=invocation,
            started=started,
            finished=datetime.now(UTC),
            lock_digest=inputs.lock_digest,
            unhashed=inputs.lock.unhashed,
            commands=request.commands,
            exclude=request.exclude,
            python=inputs.python.version,
            platform=inputs.python.platform,
            tools={"uv": version("uv")},
            packages=sbom.packages(found, inputs.lock),
        )
        statement = json.dumps(provenance(facts), indent=1).encode() + b"\n"
        document = sbom.make_sbom(request.name, packed.digest, found, inputs.lock)
        store.put(packed, {"sbom": document, "provenance": statement})
    return store.remember(
        ServiceBundle(digest=packed.digest, size_bytes=packed.size_bytes, built_from=inputs.key)
    )


def _count_packages(store: BundleStore, digest: str) -> int:
    return len(json.loads(store.sidecar(digest, "sbom")).get("components", ()))


def test_environment(store: BundleStore, digest: str, test_lock: Path | None) -> Path:
    """A virtual environment with the bundle's packages and those that only its tests need.

    Both locks are installed as one set, so a test cannot run on another version of a package
    than the one that ships. It is kept, and made again only for another bundle or test lock.

    Returns:
        The environment's folder; ``bin/python`` is its interpreter.

    Raises:
        As ``build``.
    """
    text = _read_lock(test_lock) if test_lock else ""
    suffix = hashlib.sha256(text.encode()).hexdigest()[:16]
    final = store.environments() / f"{digest.removeprefix('sha256:')}-{suffix}"
    if (final / "bin" / "python").exists():
        return final
    store.discard(final)  # one whose interpreter was removed from the machine
    manifest = store.manifest(digest)
    with store.scratch() as scratch:
        logs = store.root / "logs" / f"tests-{final.name[:12]}-{suffix}"
        run = _Runner(logs, timedelta(seconds=_UV_SECONDS))
        work = store.copy_source(digest, scratch / "app")
        locks = [test_lock] if test_lock else []
        if manifest.lock:
            shipped = store.materialize(digest) / manifest.lock
            inside = manifest.lock.removeprefix("app/")
            locks.insert(0, work / inside if inside != manifest.lock else shipped)
        _make_venv(find_python(manifest.python), scratch / "venv", run)
        _install_locks(locks, scratch / "venv", work, "hardlink", run)
        store.adopt(scratch / "venv", final)
    return final


# --- inputs -------------------------------------------------------------------------------


def _read_inputs(request: BuildRequest) -> _Inputs:
    if not request.source.is_dir():
        raise Failed(
            "SLP020",
            f"the source folder of {request.name} was looked for and is not there",
            help="correct `build.source` in application.yaml",
            where=str(request.source),
        )
    paths = list_source(request.source, request.exclude)
    if not paths:
        raise Failed(
            "SLP020",
            f"the source folder of {request.name} holds no file that would be shipped",
            help="check `build.source` and `build.exclude` in application.yaml, and .gitignore",
            where=str(request.source),
        )
    lock_text = _read_lock(request.lock) if request.lock else None
    lock = parse_lock(lock_text or "")
    _refuse_distant_includes(request, lock, paths)
    python = find_python(request.python)
    return _inputs(request, request.source, paths, lock_text, lock, python)


def _inputs(
    request: BuildRequest,
    folder: Path,
    paths: tuple[str, ...],
    lock_text: str | None,
    lock: Lock,
    python: Interpreter,
) -> _Inputs:
    with _reading(folder):
        source = listing_digest(read_entry(folder, path, folder) for path in paths)
    key = digest_of(
        {
            "format": _INPUTS,
            "source": source,
            "lock": lock_text,
            "commands": request.commands,
            # Without packages or commands the bundle holds only the source.
            "python": [python.minor, python.abi] if lock_text or request.commands else None,
            "platform": python.platform if lock_text or request.commands else None,
        }
    )
    return _Inputs(paths, source, lock_text, lock, python, key)


@contextmanager
def _reading(source: Path) -> Iterator[None]:
    try:
        yield
    except (FileNotFoundError, PermissionError) as error:
        raise Failed(
            "SLP020",
            f"{error.filename} could not be read: {error.strerror}",
            help="let the builder read it, name it in `exclude`, or wait until nothing changes "
            "the source any more",
            where=str(source),
        ) from error


def _read_lock(lock: Path) -> str:
    try:
        return lock.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise Failed(
            "SLP020",
            f"the lock file {lock.name} was looked for and is not there",
            help="make it with `uv pip compile --generate-hashes requirements.in "
            f"-o {lock.name}`, or correct `build.lock` in application.yaml",
            where=str(lock),
        ) from None
    except (UnicodeDecodeError, IsADirectoryError) as error:
        raise Failed(
            "SLP020",
            f"the lock file {lock.name} cannot be read as text: {error}",
            help="make it again with `uv pip compile`",
            where=str(lock),
        ) from error


def _refuse_distant_includes(request: BuildRequest, lock: Lock, paths: tuple[str, ...]) -> None:
    """What a lock includes is an input too; only below the source is it seen as one."""
    pointed = lock.includes + lock.local
    if request.lock is None or not pointed or _inside(request, paths):
        return
    raise Failed(
        "SLP020",
        f"{request.lock.name} refers to {pointed[0]} and lies outside of the source, so a change "
        "there would go unnoticed",
        help="put the lock file into the source folder, or write what it includes into it",
        where=str(request.lock),
    )


def _inside(request: BuildRequest, paths: Iterable[str]) -> str | None:
    """The lock's path within the shipped source, if it is part of it."""
    if request.lock is None:
        return None
    try:
        path = request.lock.resolve().relative_to(request.source.resolve()).as_posix()
    except ValueError:
        return None
    return path if path in paths else None


def list_source(folder: Path, exclude: Sequence[str] = ()) -> tuple[str, ...]:
    """The files and links that belong to a source, relative and sorted.

    In a git checkout: what git tracks, and what is new and not ignored. Elsewhere: all files
    but those that no source contains (caches, virtual environments, version control).
    """
    if _in_git(folder):
        tracked = _git_files(folder, exclude, "--cached")
        new = _git_files(folder, exclude, "--others", "--exclude-standard")
        found = {*tracked, *(path for path in new if not matches(path, _IGNORED))}
    else:
        found = set(_all_files(folder, ""))
    paths = (path for path in found if os.path.lexists(folder / path))
    return tuple(sorted(p for p in paths if not is_bytecode(p) and not matches(p, exclude)))


def matches(path: str, globs: Iterable[str]) -> bool:
    """Whether a glob names the path or a folder above it.

    A glob without ``/`` is compared with each part of the path, one with ``/`` with the whole
    path from the source folder on.
    """
    parts = path.split("/")
    above = ["/".join(parts[: count + 1]) for count in range(len(parts))]
    for glob in globs:
        pattern = glob.strip("/")
        candidates = above if "/" in glob.rstrip("/") else parts
        if any(fnmatch.fnmatchcase(candidate, pattern) for candidate in candidates):
            return True
    return False


def _all_files(folder: Path, prefix: str) -> Iterable[str]:
    with os.scandir(folder / prefix) as found:
        for item in found:
            path = f"{prefix}/{item.name}" if prefix else item.name
            if matches(item.name, _IGNORED):
                continue
            if item.is_dir(follow_symlinks=False):
                yield from _all_files(folder, path)
            else:
                yield path


# --- version control ----------------------------------------------------------------------


def read_revision(folder: Path) -> Revision:
    """The commit that the source is at, and whether it differs from it; else unversioned."""
    if not _in_git(folder):
        return Revision()
    head = _git(folder, "rev-parse", "--verify", "--quiet", "HEAD", check=False)
    if not head:
        return Revision()
    changes = _git(folder, "status", "--porcelain", "--untracked-files=normal", "--", ".")
    remote = _git(folder, "config", "--get", "remote.origin.url", check=False)
    return Revision(head.strip(), bool(changes.strip()), _public_address(remote.strip()))


def _public_address(remote: str) -> str | None:
    """The address without a password or token; None for a path of this machine."""
    parts = urlsplit(remote)
    if parts.scheme not in ("http", "https", "ssh", "git") or not parts.hostname:
        return None
    host = parts.hostname + (f":{parts.port}" if parts.port else "")
    return urlunsplit((parts.scheme, host, parts.path, "", ""))


def _in_git(folder: Path) -> bool:
    """Whether git knows the files of this folder.

    A checkout that git cannot or will not read is an error: taking all files instead would ship
    the ones it ignores, and those are where people keep passwords.
    """
    if not any((place / ".git").exists() for place in (folder, *folder.resolve().parents)):
        return False
    _git(folder, "rev-parse", "--is-inside-work-tree")
    # A folder that an outer checkout ignores is not part of that checkout.
    return not _git(folder, "check-ignore", ".", check=False)


def _git_files(folder: Path, exclude: Sequence[str], *options: str) -> list[str]:
    listed = _git(folder, "ls-files", "-z", *options)
    found: list[str] = []
    for path in filter(None, listed.split("\0")):
        inner = folder / path
        if matches(path.rstrip("/"), exclude):
            continue
        if inner.is_dir() and not inner.is_symlink():  # a submodule, or a checkout inside
            _refuse_absent_submodule(inner, path)
            found += (f"{path.rstrip('/')}/{name}" for name in list_source(inner))
        else:
            found.append(path)
    return found


def _refuse_absent_submodule(inner: Path, path: str) -> None:
    if not (inner / ".git").exists():
        raise Failed(
            "SLP020",
            f"the submodule {path} belongs to the source and is not checked out",
            help="run `git submodule update --init`, or name it in `exclude`",
            where=str(inner),
        )


def _git(folder: Path, *arguments: str, check: bool = True) -> str:
    command = ["git", "-C", str(folder), *arguments]
    environ = {**commands.clean_environ(None), "GIT_OPTIONAL_LOCKS": "0", "LC_ALL": "C"}
    try:
        done = subprocess.run(command, capture_output=True, env=environ, timeout=_GIT_SECONDS)
    except FileNotFoundError:
        raise Failed(
            "SLP020",
            "the source is a git checkout and there is no `git` to list its files",
            help="install git",
            where=str(folder),
        ) from None
    except subprocess.TimeoutExpired:
        raise Failed(
            "SLP020",
            f"`git {arguments[0]}` did not end in {_GIT_SECONDS} s",
            help="run it by hand in the source folder",
            where=str(folder),
        ) from None
    if check and done.returncode != 0:
        raise Failed(
            "SLP020",
            f"`git {' '.join(arguments)}` ended with exit code {done.returncode}",
            help="run it by hand in the source folder",
            where=str(folder),
            detail=os.fsdecode(done.stderr).strip(),
        )
    return os.fsdecode(done.stdout) if done.returncode == 0 else ""


# --- the tree -----------------------------------------------------------------------------


def _stage(request: BuildRequest, inputs: _Inputs, tree: Path) -> _Inputs:
    """Copy the source, and describe the copy: what is built is what was copied, even when
    somebody saves a file meanwhile."""
    app, python, manifest = tree / "app", inputs.python, Manifest()
    with _reading(request.source):
        copy_files(request.source, app, inputs.paths)
    if inputs.lock_text is not None:
        inside = _inside(request, inputs.paths)
        lock = f"app/{inside}" if inside else LOCK
        (tree / lock).write_text(inputs.lock_text, encoding="utf-8")
        manifest = Manifest(lock, python.minor, python.abi, python.platform)
    (tree / MANIFEST).write_text(manifest.to_json())
    return _inputs(request, app, inputs.paths, inputs.lock_text, inputs.lock, python)


def copy_files(source: Path, target: Path, paths: Iterable[str]) -> None:
    """Copy files and links, keeping of their modes only whether they may be executed."""
    for path in paths:
        into = target / path
        into.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / path, into, follow_symlinks=False)
        if not into.is_symlink():
            into.chmod(0o755 if os.stat(source / path).st_mode & 0o100 else 0o644)


def _logs(request: BuildRequest, store: BundleStore, key: str) -> Path:
    name = f"{request.application}-{request.service}-{key.removeprefix('sha256:')[:12]}"
    return store.root / "logs" / name


# --- packages -----------------------------------------------------------------------------


def _install(
    request: BuildRequest, inputs: _Inputs, tree: Path, scratch: Path, run: _Runner
) -> None:
    venv, work = tree / "venv", tree / "app"
    if inputs.lock.local:
        # Building a project writes beside it; let it write beside a copy.
        work = scratch / "projects"
        copy_files(tree / "app", work, inputs.paths)
    inside = _inside(request, inputs.paths)
    lock = work / inside if inside else tree / LOCK
    # Links into uv's cache are quicker, and safe as long as no build command can write to them.
    mode = "copy" if request.commands else "hardlink"
    _make_venv(inputs.python, venv, run)
    _install_locks([lock], venv, work, mode, run)
    _refuse_editable(venv, inputs.python)


def _make_venv(python: Interpreter, venv: Path, run: _Runner) -> None:
    options = ("--quiet", "--relocatable", "--no-project", "--no-config", "--python")
    run.uv("venv", *options, str(python.executable), str(venv), cwd=venv.parent, environ={})


def _install_locks(
    locks: Sequence[Path], venv: Path, work: Path, link_mode: str, run: _Runner
) -> None:
    """Install what the locks name. With hashes on every line, nothing else can be installed:
    a package that a lock forgot is an error now and not at the start."""
    if not locks:
        return
    options = ["--quiet", "--no-progress", "--color", "never", "--no-compile-bytecode"]
    options += ["--python", str(venv / "bin" / "python"), "--link-mode", link_mode]
    if all(parse_lock(_read_lock(lock)).is_hashed for lock in locks):
        options.append("--require-hashes")
    for lock in locks:
        options += ["--requirements", str(lock)]
    run.uv("pip", "install", *options, cwd=work, environ={"UV_NO_EDITABLE": "1"})
    _clean_venv(venv)


def _clean_venv(venv: Path) -> None:
    """Remove what would differ on another machine or at another time."""
    for site in venv.glob("lib/python*/site-packages"):
        for dist in site.glob("*.dist-info"):
            dropped = ["uv_cache.json", "uv_build.json"]
            if _names_this_machine(dist / "direct_url.json"):
                dropped.append("direct_url.json")
            _drop_metadata(dist, dropped)


def _names_this_machine(direct_url: Path) -> bool:
    return direct_url.exists() and '"file:' in direct_url.read_text().replace(" ", "")


def _drop_metadata(dist: Path, names: Sequence[str]) -> None:
    """Remove files of a dist-info folder, also from its RECORD. A RECORD may be a link into
    uv's cache, so it is replaced and never written to."""
    gone = {f"{dist.name}/{name}" for name in names if (dist / name).exists()}
    if not gone:
        return
    record = dist / "RECORD"
    lines = record.read_text().splitlines(keepends=True)
    fresh = dist / "RECORD.new"
    fresh.write_text("".join(line for line in lines if line.split(",")[0] not in gone))
    fresh.replace(record)
    for name in names:
        (dist / name).unlink(missing_ok=True)


def _refuse_editable(venv: Path, python: Interpreter) -> None:
    for pth in _site_packages(venv, python).glob("*.pth"):
        for line in pth.read_text(errors="replace").splitlines():
            if line.startswith("/"):
                raise Failed(
                    "SLP020",
                    f"{pth.name} was installed and points to {line}, outside of the bundle",
                    help="write the project as `./path` instead of `-e ./path` in the lock file",
                )


def _site_packages(venv: Path, python: Interpreter) -> Path:
    return venv / "lib" / f"python{python.minor}" / "site-packages"


def _drop_machine_files(venv: Path) -> None:
    for pattern in _MACHINE_FILES:
        for path in venv.glob(pattern):
            path.unlink()


# --- commands -----------------------------------------------------------------------------


def _run_commands(request: BuildRequest, tree: Path, run: _Runner) -> None:
    venv = tree / "venv"
    environ = {
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONHASHSEED": "0",
        "SOURCE_DATE_EPOCH": _SOURCE_DATE_EPOCH,
        "TZ": "UTC",
        "LC_ALL": "C.UTF-8",
    }
    for command in request.commands:
        run(command, tree / "app", environ, venv if venv.exists() else None)


class _Runner:
    """Runs the steps of one build under one deadline, each with a log file of its own."""

    def __init__(self, logs: Path, limit: timedelta) -> None:
        self.logs, self.limit = logs, limit
        self._deadline = time.monotonic() + limit.total_seconds()
        self._count = 0

    def uv(self, *arguments: str, cwd: Path, environ: Mapping[str, str]) -> None:
        self(shlex.join([find_uv_bin(), *arguments]), cwd, environ, None)

    def __call__(
        self, command: str, cwd: Path, environ: Mapping[str, str], venv: Path | None
    ) -> None:
        self._count += 1
        log = self.logs / f"{self._count}.log"
        ended = commands.run(
            command,
            cwd=cwd,
            venv=venv,
            environ={**_environment(), **environ},
            seconds=max(0.0, self._deadline - time.monotonic()),
            log=log,
        )
        shown = command.replace(find_uv_bin(), "uv", 1)
        if ended.code is None:
            raise Failed(
                "SLP020",
                f"`{shown}` was stopped: the build did not end within "
                f"{self.limit.total_seconds():g} s",
                help="make the command quicker, or find out in its log what it waits for",
                where=str(log),
                detail=ended.tail,
            )
        if ended.code != 0:
            raise _command_failed(shown, ended.code, log)


def _command_failed(shown: str, code: int, log: Path) -> Failed:
    """Name the cause where a person, or a retry, can do something about it."""
    output = commands.tail(log, _JUDGED_LINES)
    ended = (
        f"`{shown}` ended with exit code {code}"
        if code >= 0
        else (f"`{shown}` was killed by signal {-code}")
    )
    error, cause, help = "SLP020", ended, "read the last lines of its output, or the whole log"
    if _NO_SPACE.search(output):
        error, cause = "SLP015", f"{ended}: no space is left on the disk"
        help = "free some space and run it again"
    elif shown.startswith("uv ") and _NETWORK.search(output):
        error, cause = "SLP014", f"{ended}: the package index did not answer"
        help = "check the network and uv's index settings (UV_DEFAULT_INDEX, proxies)"
    elif "hash mismatch" in output.lower():
        cause = f"{ended}: a package is not the one that the lock file names"
        help = (
            "find out whether the lock is wrong or the package was replaced; only then make the "
            "lock again with `uv pip compile --generate-hashes`"
        )
    return Failed(error, cause, help=help, where=str(log), detail=commands.tail(log))


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if _is_passed(name.upper())}


def _is_passed(name: str) -> bool:
    if name in _UV_REFUSED or name.startswith("UV_PUBLISH"):
        return False
    return name in _PASSED_NAMES or name.startswith(_PASSED_PREFIXES)
