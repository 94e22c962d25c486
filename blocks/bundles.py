"""The bundle store: immutable build outputs in a local directory, named by their content.

::

    bundles/<hex>.tar.gz            the archive; once this name exists, the bundle exists
    bundles/<hex>.json              its size and the archive's own SHA-256
    bundles/<hex>.<kind>.json       what was said of it: sbom, provenance
    keys/<hex>.json                 key of the inputs -> digest: the same source is not built again
    unpacked/<hex>/                 a materialised bundle, ready to run
    test-environments/<hex>-<lock>  virtual environments for the application's own tests
    logs/<service>-<key>/           what the steps of its last build printed
    partial/                        work in progress; what its owner left behind is swept away

A name below ``bundles``, ``unpacked`` or ``test-environments`` is given only by an atomic link or
rename of something complete, so a process may be killed between any two lines.
"""

from __future__ import annotations

import errno
import fcntl
import gzip
import hashlib
import json
import os
import shutil
import stat
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import time
import zlib
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import timedelta
from functools import lru_cache
from pathlib import Path
from typing import IO

from uv import find_uv_bin

from blocks.file_store import FileStore
from blocks.object_store import AlreadyExists
from domain.artifact import Entry, ServiceBundle, check_paths, listing_digest, short
from domain.errors import Failed, NeedsPerson

MANIFEST = "bundle.json"
LOCK = "requirements.lock"
_FORMAT = 1
_CHUNK_BYTES = 1 << 20
# Level 1 packs 70 MB of wheels in a second; level 6 takes four times as long for 10 % less.
_GZIP_LEVEL = 1
_PYTHON_SECONDS = 20
_LOGS_KEPT = timedelta(days=30)
# EFBIG is what a process sees whose file size is limited: for the build that is a full disk.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def disk_full_is_a_failure(place: Path) -> Iterator[None]:
    """Turn "no space left" into the error that a person can act on (SLP015)."""
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise Failed(
            "SLP015",
            f"writing below {place} failed: {error.strerror}; what was half made was removed",
            help="free some space on that disk and run it again",
            where=str(place),
        ) from error


# --- interpreters -------------------------------------------------------------------------


@dataclass(frozen=True)
class Interpreter:
    """A Python on this machine. ``abi`` and ``platform`` say which compiled packages fit."""

    executable: Path
    version: str
    minor: str
    abi: str
    platform: str


_PROBE = (
    "import json, platform, sys, sysconfig as s; print(json.dumps(["
    "platform.python_version(), '%d.%d' % sys.version_info[:2],"
    " s.get_config_var('SOABI') or sys.implementation.cache_tag, s.get_platform()]))"
)


def find_python(minor: str | None = None) -> Interpreter:
    """The interpreter for ``3.N``; Slipway's own version when None. Nothing is downloaded.

    Raises:
        Failed: SLP022 when this machine has none.
    """
    own = f"{sys.version_info.major}.{sys.version_info.minor}"
    base = Path(sys.base_prefix) / "bin" / f"python{own}"
    if minor in (None, own) and base.exists():
        return _probe(base)
    return _probe(_ask_uv(minor or own))


def _ask_uv(minor: str) -> Path:
    command = [find_uv_bin(), "python", "find", "--no-project", "--system"]
    command += ["--no-python-downloads", minor]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_PYTHON_SECONDS)
    except subprocess.TimeoutExpired:
        raise _no_python(minor, f"looking for it took over {_PYTHON_SECONDS} s") from None
    if done.returncode != 0:
        raise _no_python(minor, done.stderr.strip())
    return Path(done.stdout.strip())


def _no_python(minor: str, seen: str) -> Failed:
    return Failed(
        "SLP022",
        f"Python {minor} was looked for on this machine and not found",
        help=f"install it, for instance with `uv python install {minor}`, or change `python` "
        "in application.yaml",
        detail=seen,
    )


@lru_cache(maxsize=32)
def _probe(executable: Path) -> Interpreter:
    if executable == Path(sys.base_prefix) / "bin" / f"python{sysconfig.get_python_version()}":
        version = ".".join(str(part) for part in sys.version_info[:3])
        abi = sysconfig.get_config_var("SOABI") or sys.implementation.cache_tag
        minor = sysconfig.get_python_version()
        return Interpreter(executable, version, minor, str(abi), sysconfig.get_platform())
    done = subprocess.run(
        [executable, "-I", "-c", _PROBE], capture_output=True, text=True, timeout=_PYTHON_SECONDS
    )
    if done.returncode != 0:
        raise _no_python(executable.name, done.stderr[-500:])
    version, minor, abi, platform = json.loads(done.stdout)
    return Interpreter(executable, version, minor, abi, platform)


# --- packing ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Manifest:
    """``bundle.json`` inside of a bundle: its lock file (a path inside of it) and what its
    packages need to run. None: it has no Python packages."""

    lock: str | None = None
    python: str | None = None
    abi: str | None = None
    platform: str | None = None
    format: int = _FORMAT

    def to_json(self) -> str:
        return json.dumps(asdict(self), sort_keys=True, indent=1) + "\n"


@dataclass(frozen=True)
class Packed:
    """A finished archive that has no name in the store yet."""

    archive: Path
    digest: str
    size_bytes: int
    archive_sha256: str


def is_bytecode(path: str) -> bool:
    return path.endswith((".pyc", ".pyo")) or "__pycache__" in path.split("/")


def pack(tree: Path, archive: Path) -> Packed:
    """Write the files below ``tree`` as a deterministic archive and name it by its listing.

    Folders are not entries of their own, so an empty one is not carried. Bytecode is left out:
    it holds times, and Python makes it anew.

    Raises:
        Failed: SLP020 for a link that leaves its folder or for a device, pipe or socket.
    """
    root = os.path.realpath(tree)
    paths = sorted(path for path in _walk(Path(root), "") if not is_bytecode(path))
    with archive.open("wb") as raw:
        with (
            gzip.GzipFile("", "wb", _GZIP_LEVEL, raw, mtime=0) as zipped,
            tarfile.open(
                fileobj=zipped, mode="w|", format=tarfile.GNU_FORMAT, bufsize=_CHUNK_BYTES
            ) as tar,
        ):
            entries = [_add(tar, Path(root), path) for path in paths]
        raw.flush()
        os.fsync(raw.fileno())
    size_bytes = archive.stat().st_size
    return Packed(archive, listing_digest(entries), size_bytes, _sha256(archive))


def _walk(root: Path, prefix: str) -> Iterator[str]:
    with os.scandir(root / prefix) as found:
        for item in found:
            path = f"{prefix}/{item.name}" if prefix else item.name
            if item.is_dir(follow_symlinks=False):
                yield from _walk(root, path)
            else:
                yield path


def _add(tar: tarfile.TarFile, root: Path, path: str) -> Entry:
    entry = read_entry(root, path, root / path.split("/")[0])
    info = tarfile.TarInfo(path)
    info.mode = 0o755 if entry.executable else 0o644
    if entry.kind == "link":
        info.type, info.linkname = tarfile.SYMTYPE, entry.content
        tar.addfile(info)
        return entry
    info.size = entry.size
    with (root / path).open("rb") as file:
        tar.addfile(info, file)
    return entry


def read_entry(root: Path, path: str, fence: Path) -> Entry:
    """Describe one file or link below ``root``, without following links.

    Raises:
        Failed: SLP020 for anything else, and for a link that leaves ``fence``.
    """
    full = root / path
    status = full.lstat()
    if stat.S_ISLNK(status.st_mode):
        return Entry(path, "link", _inner_target(root / path, path, fence))
    if not stat.S_ISREG(status.st_mode):
        raise Failed(
            "SLP020",
            f"{path} is neither a file nor a link, so it cannot be part of a bundle",
            help="remove it, or name it in `exclude` of the service's build",
            where=str(full),
        )
    executable = bool(status.st_mode & stat.S_IXUSR)
    return Entry(path, "file", _sha256(full), status.st_size, executable)


def _inner_target(link: Path, path: str, fence: Path) -> str:
    target = os.readlink(link)
    if os.path.isabs(target) or not _stays_inside(link, fence):
        raise Failed(
            "SLP020",
            f"the link {path} -> {target} leaves the source, so it would point nowhere or "
            "somewhere else on another machine",
            help="replace it by a copy or a relative link to a file of the source, or name it in "
            "`exclude`",
            where=str(link),
        )
    return target


def _stays_inside(link: Path, root: Path) -> bool:
    """Judged by what the link really resolves to: links to links can fool a look at the text."""
    real, top = os.path.realpath(link), os.path.realpath(root)
    return real == top or real.startswith(top + os.sep)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# --- unpacking ----------------------------------------------------------------------------


class _Damaged(ValueError):
    """What an archive holds is not what its digest names, or must not be unpacked."""


_UNREADABLE = (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile, ValueError)


def _entries(archive: Path, into: Path | None) -> list[Entry]:
    """Read an archive to its end; unpack it when ``into`` is given.

    Files come first and links last, and no name may lie below a link, so nothing can be written
    through a link to a place outside (the `data` filter of tarfile, which early releases of
    Python 3.11 do not have, with the digest on top).
    """
    moment = archive.stat().st_mtime_ns
    entries: list[Entry] = []
    try:
        with (
            gzip.open(archive, "rb") as zipped,
            tarfile.open(fileobj=zipped, mode="r|", bufsize=_CHUNK_BYTES) as tar,
        ):
            for member in tar:
                check_paths([member.name])
                entries.append(_take(tar, member, into, moment))
        check_paths([entry.path for entry in entries])
        if into:
            _make_links(into, [entry for entry in entries if entry.kind == "link"])
    except _UNREADABLE as error:
        raise _Damaged(str(error) or type(error).__name__) from error
    return entries


def _take(tar: tarfile.TarFile, member: tarfile.TarInfo, into: Path | None, moment: int) -> Entry:
    if member.issym():
        return Entry(member.name, "link", member.linkname)
    content = tar.extractfile(member) if member.isreg() else None
    if content is None:
        raise _Damaged(f"{member.name!r} is neither a file nor a symbolic link")
    executable = bool(member.mode & stat.S_IXUSR)
    if into is None:
        sha256 = _copy(content, None)
    else:
        sha256 = _write(into / member.name, content, executable, moment)
    return Entry(member.name, "file", sha256, member.size, executable)


def _write(target: Path, content: IO[bytes], executable: bool, moment: int) -> str:
    """Files are read-only. Folders are not, so that Python can keep its bytecode beside them.

    The time is that of the build: with a fixed one, two versions of a static file of equal
    length would carry the same ETag in most web servers.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    except (FileExistsError, NotADirectoryError) as error:
        raise _Damaged(f"{target.name!r} is in the way of another entry") from error
    with os.fdopen(handle, "wb") as file:
        sha256 = _copy(content, file)
        file.flush()
        os.fchmod(file.fileno(), 0o555 if executable else 0o444)
        os.utime(file.fileno(), ns=(moment, moment))
    return sha256


def _copy(content: IO[bytes], file: IO[bytes] | None) -> str:
    hasher = hashlib.sha256()
    while chunk := content.read(_CHUNK_BYTES):
        hasher.update(chunk)
        if file:
            file.write(chunk)
    return hasher.hexdigest()


def _make_links(root: Path, links: Iterable[Entry]) -> None:
    """All are made before any is judged, since each may change where another leads."""
    made = list(links)
    for link in made:
        (root / link.path).parent.mkdir(parents=True, exist_ok=True)
        os.symlink(link.content, root / link.path)
    for link in made:
        fence = root / link.path.split("/")[0]
        if os.path.isabs(link.content) or not _stays_inside(root / link.path, fence):
            raise _Damaged(f"the link {link.path!r} -> {link.content!r} leaves the bundle")


# --- the store ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Removal:
    """One thing that a clean-up would remove, and why."""

    kind: str
    path: Path
    size_bytes: int
    reason: str
    digest: str | None = None


@dataclass(frozen=True)
class CleanUp:
    """A plan; nothing is removed before it is given to ``BundleStore.collect``."""

    removals: tuple[Removal, ...]
    kept: tuple[str, ...]

    @property
    def size_bytes(self) -> int:
        return sum(removal.size_bytes for removal in self.removals)


class BundleStore:
    """Bundles in a directory. Every method may be called by several processes at once."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._files = FileStore(root)

    # - names

    def path(self, digest: str) -> Path:
        """Where the archive is, or would be."""
        return self.root / "bundles" / f"{_hex(digest)}.tar.gz"

    def has(self, digest: str) -> bool:
        return self.path(digest).exists()

    def environments(self) -> Path:
        return self.root / "test-environments"

    # - work in progress

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """A new folder on the store's own file system, removed at the end.

        Its owner holds a lock beside it, which the kernel releases however the owner ends; so
        a folder whose lock is free belongs to nobody, and the next one to come removes it.
        """
        partial = self.root / "partial"
        with disk_full_is_a_failure(self.root):
            partial.mkdir(parents=True, exist_ok=True)
            for lock in partial.glob("*.lock"):
                _sweep(lock)
            handle, lock = _locked(partial)
            folder = lock.with_suffix("")
            try:
                folder.mkdir()
                yield folder
            finally:
                _clear(lock)
                os.close(handle)

    # - bundles

    def put(self, packed: Packed, sidecars: Mapping[str, bytes]) -> bool:
        """Give a packed archive its name. False when the store had it already.

        What is said of a bundle is written before the bundle exists, so no reader ever meets
        one without it.

        Raises:
            NeedsPerson: SLP021 when the store holds something else under this digest.
        """
        if self.has(packed.digest):
            self.check(packed.digest)
            return False
        name = f"bundles/{_hex(packed.digest)}"
        for kind, content in sidecars.items():
            self._files.replace(f"{name}.{kind}.json", content)
        record = {"size_bytes": packed.size_bytes, "archive_sha256": packed.archive_sha256}
        self._files.replace(f"{name}.json", json.dumps(record).encode())
        with disk_full_is_a_failure(self.root):
            try:
                os.link(packed.archive, self.path(packed.digest))
            except FileExistsError:
                return False
        return True

    def check(self, digest: str) -> int:
        """Compare the archive with its record; quick, because nothing is unpacked.

        Returns:
            The archive's size in bytes.

        Raises:
            Failed: SLP022 when there is no such bundle.
            NeedsPerson: SLP021 when the archive is not the one that was stored.
        """
        archive = self._existing(digest)
        record = self._record(digest)
        size_bytes = archive.stat().st_size
        if size_bytes != record["size_bytes"]:
            seen = f"it has {size_bytes} bytes, {record['size_bytes']} were stored"
            raise _damaged(archive, digest, seen)
        if _sha256(archive) != record["archive_sha256"]:
            raise _damaged(archive, digest, "its SHA-256 is not the one that was stored")
        return size_bytes

    def verify(self, digest: str) -> None:
        """Read the whole archive and compare every file with the digest. Raises as ``check``."""
        archive = self._existing(digest)
        try:
            found = listing_digest(_entries(archive, None))
        except _Damaged as error:
            raise _damaged(archive, digest, str(error)) from error
        if found != digest:
            raise _damaged(archive, digest, f"its content has the digest {found}")

    def sidecar(self, digest: str, kind: str) -> bytes:
        """What was said of a bundle at its build: ``sbom`` or ``provenance``.

        Raises:
            NeedsPerson: SLP021 when it has gone.
        """
        self._existing(digest)
        name = f"bundles/{_hex(digest)}.{kind}.json"
        content = self._files.read(name)
        if content is None:
            raise _damaged(self.root / name, digest, "the file is missing")
        return content

    def remove(self, digest: str) -> None:
        """Remove a bundle and all that was made from it. The archive goes first: from then on
        the bundle does not exist, whatever is left to clean up."""
        name = _hex(digest)
        self.path(digest).unlink(missing_ok=True)
        for sidecar in (self.root / "bundles").glob(f"{name}.*"):
            sidecar.unlink(missing_ok=True)
        self.discard(self.root / "unpacked" / name)
        for environment in self.environments().glob(f"{name}-*"):
            self.discard(environment)

    # - inputs

    def find(self, key: str) -> ServiceBundle | None:
        """The bundle built from these inputs, if it is still there and as it was stored.

        Raises:
            NeedsPerson: SLP021 when it is there and damaged: building over it would hide that.
        """
        content = self._files.read(_key_name(key))
        try:
            digest = str(json.loads(content)["digest"]) if content else None
            if digest is None or not self.has(digest):
                return None
        except (ValueError, TypeError, KeyError):
            return None  # an unreadable index costs one build, no more
        return ServiceBundle(digest=digest, size_bytes=self.check(digest), built_from=key)

    def remember(self, bundle: ServiceBundle) -> ServiceBundle:
        """Note what the inputs became. The first build of the same inputs stays the one."""
        content = json.dumps({"digest": bundle.digest}).encode()
        try:
            self._files.create(_key_name(bundle.built_from), content)
        except AlreadyExists:
            if found := self.find(bundle.built_from):
                return found
            self._files.replace(_key_name(bundle.built_from), content)
        return bundle

    # - running

    def receive(self, other: BundleStore, digest: str) -> bool:
        """Take a bundle from another store, as it is; True when it was not here.

        Raises:
            NeedsPerson: SLP021, it is damaged there.
        """
        if self.has(digest):
            return False
        size_bytes, archive = other.check(digest), other.path(digest)
        prefix = f"{_hex(digest)}."
        sidecars = {
            path.name.removeprefix(prefix).removesuffix(".json"): path.read_bytes()
            for path in archive.parent.glob(f"{prefix}*.json")
        }
        with self.scratch() as scratch:
            copy = scratch / archive.name
            with disk_full_is_a_failure(self.root):
                shutil.copyfile(archive, copy)
            came = self.put(Packed(copy, digest, size_bytes, _sha256(copy)), sidecars)
        self.verify(digest)
        return came

    def materialize(self, digest: str) -> Path:
        """The unpacked bundle, verified file by file: ``app/`` and, with packages, ``venv/``.

        Returns:
            A folder that holds one complete bundle from the moment it has its name. Its files
            are read-only.

        Raises:
            Failed: SLP022 when there is no such bundle or no Python for it, SLP015.
            NeedsPerson: SLP021 when the bundle is damaged.
        """
        final = self.root / "unpacked" / _hex(digest)
        if not final.exists():
            archive = self._existing(digest)
            with _alone_with(archive):
                if not final.exists():
                    self._unpack_to(archive, digest, final)
        _link_python(final)
        return final

    def _unpack_to(self, archive: Path, digest: str, final: Path) -> None:
        with self.scratch() as folder:
            tree = folder / "tree"
            self._unpack(archive, digest, tree)
            _link_python(tree)
            self.adopt(tree, final)

    def copy_source(self, digest: str, into: Path) -> Path:
        """A writable copy of the bundle's ``app/``, for tests that write beside the code.

        ``into`` must not exist yet.
        """
        source = self.materialize(digest) / "app"
        with disk_full_is_a_failure(into):
            shutil.copytree(
                source, into, symlinks=True, ignore=shutil.ignore_patterns("__pycache__")
            )
        for path in into.rglob("*"):
            if path.is_file() and not path.is_symlink():
                path.chmod(0o755 if path.stat().st_mode & stat.S_IXUSR else 0o644)
        return into

    def adopt(self, folder: Path, final: Path) -> None:
        """Give a complete folder its name, unless another process was first."""
        final.parent.mkdir(exist_ok=True)
        with _first_wins():
            folder.rename(final)

    def discard(self, folder: Path) -> None:
        """Take the name away first, at once; then remove what had it."""
        with self.scratch() as scratch, suppress(FileNotFoundError):
            folder.rename(scratch / "removed")

    def manifest(self, digest: str) -> Manifest:
        return read_manifest(self.materialize(digest))

    # - cleaning up

    def plan_cleanup(
        self, keep: Collection[str], *, spare: timedelta = timedelta(hours=1)
    ) -> CleanUp:
        """What could go when only the bundles in ``keep`` are still needed.

        ``spare`` protects what is younger: a build that has just ended is in nobody's list yet.
        """
        names = {_hex(digest) for digest in keep}
        youngest = time.time() - spare.total_seconds()
        found = [
            *self._removals("bundle", self.root / "bundles", "*.tar.gz", names, youngest),
            *self._removals("unpacked bundle", self.root / "unpacked", "*", names, youngest),
            *self._removals("test environment", self.environments(), "*-*", names, youngest),
            *self._old_logs(time.time() - max(spare, _LOGS_KEPT).total_seconds()),
        ]
        return CleanUp(tuple(found), tuple(sorted(keep)))

    def collect(self, plan: CleanUp) -> int:
        """Remove what the plan names; returns the bytes set free."""
        for removal in plan.removals:
            if removal.kind == "bundle" and removal.digest:
                self.remove(removal.digest)
            else:
                self.discard(removal.path)
        self._forget_lost_keys()
        return plan.size_bytes

    def _removals(
        self, kind: str, folder: Path, pattern: str, keep: set[str], youngest: float
    ) -> Iterator[Removal]:
        for path in sorted(folder.glob(pattern)):
            name = path.name[:64]
            status = path.lstat()
            if name in keep or max(status.st_mtime, status.st_ctime) > youngest:
                continue
            reason = "no release that is kept refers to it"
            yield Removal(kind, path, _size_bytes(path), reason, f"sha256:{name}")

    def _old_logs(self, youngest: float) -> Iterator[Removal]:
        for path in sorted((self.root / "logs").glob("*")):
            if path.stat().st_mtime < youngest:
                reason = f"the log is older than {_LOGS_KEPT.days} days"
                yield Removal("build log", path, _size_bytes(path), reason)

    def _forget_lost_keys(self) -> None:
        for name in self._files.list("keys"):
            content = self._files.read(name)
            with suppress(ValueError, KeyError, TypeError):
                if content and self.has(json.loads(content)["digest"]):
                    continue
            (self.root / name).unlink(missing_ok=True)

    def _unpack(self, archive: Path, digest: str, tree: Path) -> None:
        tree.mkdir()
        try:
            found = listing_digest(_entries(archive, tree))
        except _Damaged as error:
            raise _damaged(archive, digest, str(error)) from error
        if found != digest:
            raise _damaged(archive, digest, f"its content has the digest {found}")

    def _existing(self, digest: str) -> Path:
        archive = self.path(digest)
        if not archive.exists():
            raise Failed(
                "SLP022",
                f"the bundle {short(digest)} is not in the store",
                help="build it again from the same source",
                where=str(archive),
            )
        return archive

    def _record(self, digest: str) -> dict[str, int | str]:
        name = f"bundles/{_hex(digest)}.json"
        try:
            record = json.loads(self._files.read(name) or b"")
            return {
                "size_bytes": int(record["size_bytes"]),
                "archive_sha256": str(record["archive_sha256"]),
            }
        except (ValueError, KeyError, TypeError) as error:
            raise _damaged(self.root / name, digest, "its record cannot be read") from error


@contextmanager
def _alone_with(archive: Path) -> Iterator[None]:
    """Whoever needs the same bundle at the same moment waits, instead of unpacking it as well.

    The kernel ends the lock with its owner. It saves work only: ``adopt`` is what keeps it right.
    """
    with archive.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def _first_wins() -> Iterator[None]:
    """Another process may have given the name meanwhile, to the same content."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
            raise


def _locked(partial: Path) -> tuple[int, Path]:
    while True:
        handle, name = tempfile.mkstemp(suffix=".lock", dir=partial)
        fcntl.flock(handle, fcntl.LOCK_EX)
        try:
            if os.path.samestat(os.fstat(handle), os.stat(name)):
                return handle, Path(name)
        except FileNotFoundError:
            pass  # swept between its creation and its lock; take another
        os.close(handle)


def _sweep(lock: Path) -> None:
    try:
        handle = os.open(lock, os.O_RDWR)
    except FileNotFoundError:
        return
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return
    else:
        _clear(lock)
    finally:
        os.close(handle)


def _clear(lock: Path) -> None:
    """Remove the folder, then its lock. A child of a killed build may still write to the folder
    for a moment; then the lock stays, and with it the duty to come back."""
    folder = lock.with_suffix("")
    shutil.rmtree(folder, ignore_errors=True)
    if not folder.exists():
        lock.unlink(missing_ok=True)


def read_manifest(tree: Path) -> Manifest:
    """Read ``bundle.json`` of an unpacked bundle.

    Raises:
        Failed: SLP022 when a later Slipway made it.
    """
    content = json.loads((tree / MANIFEST).read_text())
    if content.get("format") != _FORMAT:
        raise Failed(
            "SLP022",
            f"the bundle has format {content.get('format')}, this Slipway reads {_FORMAT}",
            help="upgrade Slipway, or build the bundle again",
            where=str(tree),
        )
    return Manifest(**content)


def _link_python(tree: Path) -> None:
    """Make the parts of a virtual environment that name this machine. Doing it twice is safe,
    and brings back an environment whose interpreter was replaced."""
    venv, manifest = tree / "venv", read_manifest(tree)
    if manifest.python is None or (venv / "bin" / "python").exists():
        return
    found = find_python(manifest.python)
    if (found.abi, found.platform) != (manifest.abi, manifest.platform):
        raise Failed(
            "SLP022",
            f"the bundle's packages are for {manifest.abi} on {manifest.platform}, and "
            f"{found.executable} is {found.abi} on {found.platform}",
            help="build it again on this machine",
            where=str(tree),
        )
    (venv / "bin").mkdir(parents=True, exist_ok=True)
    (venv / "pyvenv.cfg").write_text(
        f"home = {found.executable.parent}\nimplementation = CPython\n"
        f"version_info = {found.version}\ninclude-system-site-packages = false\n"
        "relocatable = true\n"
    )
    names = {f"python{found.minor}": "python", "python3": "python", "python": found.executable}
    for name, target in names.items():  # `python` last: its presence says that all is there
        _replace_link(venv / "bin" / name, str(target))


def _replace_link(link: Path, target: str) -> None:
    temporary = link.with_name(f".{link.name}-{os.getpid()}")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(target)
    temporary.replace(link)


def _damaged(path: Path, digest: str, seen: str) -> NeedsPerson:
    return NeedsPerson(
        "SLP021",
        f"the bundle {short(digest)} was checked and is damaged: {seen}",
        help=f"remove {path} and build again; then find out who changed it",
        where=str(path),
    )


def _hex(digest: str) -> str:
    name = digest.removeprefix("sha256:")
    if len(name) != 64 or not set(name) <= set("0123456789abcdef"):
        raise ValueError(f"{digest!r} is not a digest")
    return name


def _key_name(key: str) -> str:
    return f"keys/{_hex(key)}.json"


def _size_bytes(path: Path) -> int:
    if path.is_file():
        return path.stat().st_size
    return sum(item.lstat().st_size for item in path.rglob("*") if not item.is_dir())
