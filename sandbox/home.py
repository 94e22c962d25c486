"""The state root of one checkout: where everything of a sandbox lives, and what it remembers.

``Home`` knows the paths. ``Memory`` is the content of ``sandbox.json``: the ports chosen, the
secrets made up and the processes started, so that the next start finds the same addresses and
whatever a killed supervisor left behind.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import secrets
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from domain.errors import Failed, SlipwayError, UsageError
from sandbox.ports import LOOPBACK, OTHER_LOOPBACK

MARKER = "SLIPWAY_SANDBOX"
"""Environment variable that every process of a sandbox inherits; its value is the state root."""

PART = "SLIPWAY_PART"
"""Environment variable that names the part a process belongs to."""


def inherited(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """What the sandbox's processes take over from the environment of the person who starts it.

    A person's PREFECT_* settings belong to another server and would win over ours. Without
    stored bytecode every start, and every single flow run, compiles Prefect anew: 5 to 10 s.
    """
    return {
        key: value
        for key, value in environ.items()
        if not key.startswith("PREFECT_") and key != "PYTHONDONTWRITEBYTECODE"
    }


@dataclass(frozen=True)
class Side:
    """One of the two clouds that the sandbox stands for.

    Attributes:
        address: of its edge; all ports are the same on both, as on two machines.
    """

    name: str
    address: str
    suffix: str

    def part(self, kind: str) -> str:
        """The name of its part of a kind."""
        return f"{kind}{self.suffix}"


AWS = Side("aws", LOOPBACK, "")
GCP = Side("gcp", OTHER_LOOPBACK, "-gcp")
SIDES = (AWS, GCP)


@dataclass(frozen=True)
class Home:
    """Paths of one sandbox; ``root`` is absolute and resolved."""

    root: Path

    @classmethod
    def at(cls, root: Path | str) -> Home:
        return cls(Path(root).expanduser().resolve())

    @classmethod
    def find(cls, start: Path | None = None, environ: Mapping[str, str] = os.environ) -> Home:
        """SLIPWAY_HOME, else the nearest ancestor that holds ``.slipway``, else here."""
        if named := environ.get("SLIPWAY_HOME"):
            return cls.at(named)
        here = (start or Path.cwd()).resolve()
        for folder in (here, *here.parents):
            if (folder / ".slipway").is_dir():
                return cls.at(folder / ".slipway")
        return cls.at(here / ".slipway")

    @property
    def project(self) -> Path:
        """The folder that holds ``flows/``: working directory of the worker."""
        return Path(__file__).resolve().parent.parent

    @property
    def state_file(self) -> Path:
        return self.root / "sandbox.json"

    @property
    def lock_file(self) -> Path:
        return self.root / "sandbox.lock"

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    @property
    def run(self) -> Path:
        """Folder of the unix sockets: short, since a socket's path ends at 108 bytes.

        It must not depend on TMPDIR or XDG_RUNTIME_DIR: two terminals of one person may differ
        in them and still have to find one supervisor.
        """
        name = hashlib.sha256(os.fsencode(self.root)).hexdigest()[:12]
        return Path("/tmp") / f"slipway-{os.getuid()}-{name}"

    @property
    def control_socket(self) -> Path:
        return self.run / "control.sock"

    def cluster_socket(self, side: Side = AWS) -> Path:
        return self.run / f"{side.part('cluster')}.sock"

    @property
    def temporary(self) -> Path:
        """TMPDIR of all parts: short, private, and gone after `down`."""
        return self.run / "tmp"

    @property
    def store(self) -> Path:
        return self.root / "store"

    @property
    def flags(self) -> Path:
        return self.root / "flags"

    @property
    def keys(self) -> Path:
        """The age keys of the backups."""
        return self.root / "keys"

    @property
    def backups(self) -> Path:
        return self.root / "backups"

    def bundles(self, side: Side = AWS) -> Path:
        return self.root / side.part("bundles")

    @property
    def epochs(self) -> Path:
        """On neither side: who may write is decided where no side can take it away."""
        return self.root / "epochs"

    def traefik(self, side: Side = AWS) -> Path:
        return self.root / side.part("traefik")

    def traefik_dynamic(self, side: Side = AWS) -> Path:
        return self.traefik(side) / "dynamic"

    def cluster(self, side: Side = AWS) -> Path:
        return self.root / side.part("cluster")

    @property
    def prefect(self) -> Path:
        return self.root / "prefect"

    @property
    def moto(self) -> Path:
        return self.root / "moto"

    @property
    def gcs(self) -> Path:
        return self.root / "gcs"

    @property
    def redis(self) -> Path:
        return self.root / "redis"

    def postgres(self, name: str) -> Path:
        return self.root / "postgres" / name

    def log(self, part: str) -> Path:
        return self.logs / f"{part}.log"

    def make(self) -> None:
        """Create every folder; idempotent.

        Raises:
            UsageError: SLP016, a folder cannot be made or belongs to somebody else.
            Failed: SLP015, the disk is full.
        """
        folders = (
            self.logs, self.store, self.flags, self.epochs, self.prefect, self.moto, self.gcs,
            self.redis, self.root / "postgres",
            *(kind(side) for side in SIDES
              for kind in (self.bundles, self.traefik_dynamic, self.cluster)),
        )  # fmt: skip
        with writing(self.root):
            self.root.mkdir(parents=True, exist_ok=True)
            for folder in folders:
                folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            probe = self.root / f".write-{os.getpid()}"
            probe.write_bytes(b"x" * 4096)
            probe.unlink()
        self._make_run()

    def _make_run(self) -> None:
        """A folder in /tmp may be somebody's trap: it must be ours, private and no link."""
        with writing(self.run):
            self.run.mkdir(mode=0o700, exist_ok=True)
            seen = self.run.lstat()
        private = stat.S_ISDIR(seen.st_mode) and stat.S_IMODE(seen.st_mode) & 0o077 == 0
        if not private or seen.st_uid != os.getuid():
            raise UsageError(
                "SLP016",
                "the folder for control sockets exists, but is not a private folder of yours",
                help=f"look at it and remove it: rm -rf {self.run}",
                where=str(self.run),
            )
        with writing(self.run):
            self.temporary.mkdir(mode=0o700, exist_ok=True)

    @contextmanager
    def locked(self) -> Iterator[bool]:
        """Hold the lock of this state root; yields False when another process holds it."""
        with writing(self.lock_file):
            handle = _open_lock(self.lock_file)
        try:
            yield handle is not None
        finally:
            if handle is not None:
                os.close(handle)


def _open_lock(path: Path) -> int | None:
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            return None
        # `down` removes the file while it holds the lock: a lock on a removed file locks nothing.
        try:
            if os.fstat(handle).st_ino == path.stat().st_ino:
                os.truncate(handle, 0)
                os.write(handle, f"{os.getpid()}\n".encode())
                return handle
        except FileNotFoundError:
            pass
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn a failed write into the error a person can act on."""
    try:
        yield
    except OSError as error:
        raise storage_error(error, path) from error


def storage_error(error: OSError, path: Path) -> SlipwayError:
    """What an ``OSError`` below ``path`` means for a person."""
    seen = error.strerror or str(error)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return Failed(
            "SLP015",
            f"could not write: {seen}",
            help="free some space, then run it again (`slipway doctor` shows how much is needed)",
            where=str(path),
        )
    return UsageError(
        "SLP016",
        f"the state directory cannot be used: {seen}",
        help="make it writable for you, or name another one: SLIPWAY_HOME=DIR",
        where=str(error.filename or path),
    )


@dataclass(frozen=True)
class Started:
    """A process we started: the pid alone may be reused by the system."""

    pid: int
    created: float


@dataclass
class Memory:
    """What survives a restart of the sandbox."""

    ports: dict[str, int] = field(default_factory=dict)
    secrets: dict[str, str] = field(default_factory=dict, repr=False)
    processes: dict[str, Started] = field(default_factory=dict)

    @classmethod
    def load(cls, home: Home) -> Memory:
        """Read ``sandbox.json``; a missing file is an empty memory.

        Raises:
            UsageError: SLP016, the file cannot be read or was damaged.
        """
        try:
            raw = json.loads(home.state_file.read_text())
            return cls(
                ports={str(k): int(v) for k, v in raw["ports"].items()},
                secrets={str(k): str(v) for k, v in raw["secrets"].items()},
                processes={k: Started(**v) for k, v in raw["processes"].items()},
            )
        except FileNotFoundError:
            return cls()
        except OSError as error:
            raise storage_error(error, home.state_file) from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UsageError(
                "SLP016",
                f"the file that remembers ports and processes is damaged: {error}",
                help=f"remove it (`rm {home.state_file}`); new ports and passwords are made",
                where=str(home.state_file),
            ) from error

    def save(self, home: Home) -> None:
        """Replace ``sandbox.json`` as one; readable by the owner only."""
        whole = {
            "ports": self.ports,
            "secrets": self.secrets,
            "processes": {name: asdict(p) for name, p in self.processes.items()},
        }
        fresh = home.state_file.with_suffix(f".{os.getpid()}")
        with writing(home.state_file):
            try:
                handle = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
                with os.fdopen(handle, "w") as file:
                    json.dump(whole, file, indent=1)
                os.replace(fresh, home.state_file)
            finally:
                fresh.unlink(missing_ok=True)

    def secret(self, name: str) -> str:
        """The secret of that name, made up when it is asked for the first time."""
        return self.secrets.setdefault(name, secrets.token_urlsafe(24))
