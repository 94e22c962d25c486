"""A release from its build record to its report: plain data and the rules around it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from domain.application import Application, Service, Strategy
from domain.artifact import Artifact, Digest, digest_of
from domain.errors import UsageError
from domain.journal import Outcome, Release, live
from domain.judge import Limits
from domain.rollout import PASSED, Policy, Target, steps_for
from domain.routing import Backend, Route, Routing, Testing
from domain.verdict import Verdict
from domain.workload import Workload, WorkloadSpec

SCHEMA_VERSION = 1


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class BuildRecord(_Frozen):
    """What was built: the artifact, and the application.yaml it was built under.

    The file travels with the artifact, so that an edit in mid-release, or a rollback months
    later, runs each version as it was meant when it was built.
    """

    application: Application
    artifact: Artifact
    revision: str = Field(description="Source revision, or 'unversioned'.")
    digest: Digest = Field(description="Names content, configuration and version.")
    flags: str = Field("", description="The flagd file that application.yaml names, as built.")

    @classmethod
    def of(
        cls, application: Application, artifact: Artifact, revision: str, flags: str = ""
    ) -> BuildRecord:
        """A new record with the digest that names it from now on.

        The digest is stored and never worked out from the parsed record again: a later Slipway
        whose application.yaml has one field more would find another one.
        """
        document = {
            "application": application.model_dump(mode="json"),
            "artifact": artifact.model_dump(mode="json"),
            "flags": flags,
        }
        digest = record_digest(document)
        return cls(
            application=application,
            artifact=artifact,
            revision=revision,
            digest=digest,
            flags=flags,
        )

    @property
    def version(self) -> str:
        return self.artifact.version


def record_digest(document: Mapping[str, Any]) -> str:
    """The digest of a build record, from its JSON as it was stored.

    The artifact's own digest leaves the version out; a record's does not, or content that is
    released again under another name would find the record with the old name.
    """
    application = {k: v for k, v in document["application"].items() if k != "version"}
    artifact = document["artifact"]
    bundles = {name: bundle["digest"] for name, bundle in artifact["services"].items()}
    named = {"bundles": bundles, "application": application, "version": artifact["version"]}
    if flags := document.get("flags"):  # else the digest that records had before there were flags
        named["flags"] = flags
    return digest_of(named)


def version_of(application: Application, asked: str, revision: str, content: str = "") -> str:
    """``--version``, else the file's, else the source revision's first twelve characters.

    A source without a revision is named by the digest of its content once there is one: a name
    for all would make its second release a repeat of the first with other content.
    """
    if revision == "unversioned" and content:
        revision = content.removeprefix("sha256:")
    return asked or application.version or revision.removesuffix("-dirty")[:12]


def workload_name(application: str, environment: str, service: str, release: int) -> str:
    return f"{application}.{environment}.{service}.r{release}"


def targets(record: BuildRecord, environment: str, workloads: Mapping[str, str]) -> list[Target]:
    """What to run, in the order in which services depend on each other."""
    services = record.application.services
    return [
        Target(
            service=name,
            workload=workloads[name],
            replicas=services[name].replicas_in(environment),
            public=services[name].is_public,
            needs=tuple(workloads[needed] for needed in services[name].depends_on),
        )
        for name in record.application.service_order()
    ]


def policy_for(
    record: BuildRecord,
    environment: str,
    strategy: Strategy,
    *,
    migrate: bool,
    stable: BuildRecord | None = None,
    first: bool = False,
) -> Policy:
    """The moves and limits of one release.

    When the public services or their paths differ from the stable version's, traffic moves in
    one step: two versions that divide the paths between services differently cannot share them,
    and a service that only one of them has would meet all of its traffic at part of its size.
    So does the ``first`` release of an environment: a canary has nobody to be compared with.

    Raises:
        UsageError: SLP058, a canary between versions with different public paths.
    """
    services = record.application.services.values()
    largest = max(service.replicas_in(environment) for service in services)
    moved = stable is not None and _public(stable) != _public(record)
    if moved and strategy is Strategy.CANARY:
        raise UsageError(
            "SLP058",
            f"{record.application.name} {record.version} has other public services or paths than "
            "what is live, so requests to the two cannot be compared",
            help="release it with `--strategy blue-green`",
        )
    slowest = max(service.start for service in services)
    database = record.application.database
    canary = record.application.canary
    judged = strategy is Strategy.CANARY and not first
    steps = steps_for(strategy, 1 if moved else largest, canary=canary)
    return Policy(
        strategy=strategy,
        steps=steps if judged or strategy is not Strategy.CANARY else steps[-1:],
        limits=limits_of(record.application),
        patience=canary.patience,
        testers=canary.testers if judged else None,
        probes=canary.probes if judged else None,
        interrupted=canary.interrupted if judged else "reverse",
        # The cluster gives up on a replica by itself at `start`; its reason is better than ours.
        ready_deadline=slowest + timedelta(seconds=5),
        keep_previous=record.application.environment(environment).keep_previous,
        migrate=migrate and database is not None and bool(database.migrate or database.seed),
        contract=migrate and database is not None and database.contract_after == "release",
    )


def limits_of(application: Application) -> Limits:
    """What the judge holds a new version, or a flag, of an application to."""
    canary, promised = application.canary, application.objectives
    margin = promised.p95 / 100 if canary.margin is None else canary.margin
    return Limits(
        alpha=canary.false_alarm,
        requests=canary.requests,
        # A promise of no errors at all is broken by the first; the test needs a rate.
        error_rate=max(promised.error_rate, 1e-6),
        p95_seconds=promised.p95.total_seconds() or None,
        margin_seconds=margin.total_seconds(),
    )


def _public(record: BuildRecord) -> dict[str, frozenset[str]]:
    services = record.application.services
    return {name: frozenset(s.routes) for name, s in services.items() if s.is_public}


def workload_spec(
    record: BuildRecord,
    target: Target,
    environment: str,
    replicas: int,
    environ: Mapping[str, str],
) -> WorkloadSpec:
    service: Service = record.application.services[target.service]
    return WorkloadSpec(
        name=target.workload,
        application=record.application.name,
        environment=environment,
        service=target.service,
        version=record.version,
        digest=record.artifact.services[target.service].digest,
        command=service.command,
        replicas=replicas,
        environ=dict(environ),
        port=service.port,
        ready=service.ready,
        health=service.health,
        start_seconds=service.start.total_seconds(),
        drain_seconds=service.drain.total_seconds(),
    )


def url_variable(service: str) -> str:
    """Name of the variable in which others find a service: ``price-list`` -> PRICE_LIST_URL."""
    return service.upper().replace("-", "_") + "_URL"


def routing_for(
    host: str,
    application: str,
    environment: str,
    parts: Iterable[tuple[Target, Service, Workload | None]],
    weights: Mapping[str, Mapping[str, int]],
    known: Routing | None = None,
    mirrors: Mapping[str, Mapping[str, int]] | None = None,
    testing: Mapping[str, Testing] | None = None,
    also: tuple[str, ...] = (),
) -> Routing:
    """What the edge should do: every ready workload listed, ``weights`` among them.

    ``parts`` names the stable version's workloads before the candidate's. A workload without a
    ready replica is left out, unless it has weight: then the addresses that the edge knows
    already stay, so that a restarting replica keeps its place. So does a workload of neither
    version, which a failed release may have left with weight.

    ``mirrors`` and ``testing`` are by service; None keeps what the edge does already.

    The public paths are those of the newest version that has weight. A service without any has
    none, or its paths would take requests away from the service that still answers them.

    Raises:
        ValueError: a workload would get weight that neither has a ready replica nor is known.
    """
    before = {b.workload: b for route in (known.routes if known else ()) for b in route.backends}
    idle = not any(share for shares in weights.values() for share in shares.values())
    backends: dict[str, dict[str, Backend]] = {}
    paths: dict[str, tuple[str, ...]] = {r.service: r.paths for r in (known.routes if known else ())
                                         if weights.get(r.service)}  # fmt: skip
    for target, service, workload in parts:
        name = target.workload
        weight = weights.get(target.service, {}).get(name, 0)
        if workload is not None and workload.addresses:
            backend = Backend(workload=name, addresses=workload.addresses, ready=service.ready)
            backends.setdefault(target.service, {}).setdefault(name, backend)
        if (weight or idle) and service.is_public:
            paths[target.service] = service.routes
    for service_name, shares in weights.items():
        for name in (n for n, share in shares.items() if share):
            found = backends.setdefault(service_name, {})
            if name not in found and name not in before:
                raise ValueError(f"{name} would get {shares[name]}% and has no ready replica")
            if name not in found:
                found[name] = before[name]
    if mirrors is None:
        mirrors = {r.service: r.mirror for r in (known.routes if known else ())}
    if testing is None:
        testing = {r.service: r.testing for r in (known.routes if known else ()) if r.testing}
    routes = tuple(
        Route(
            service=service,
            paths=paths.get(service, ()),
            backends=tuple(found.values()),
            weights={w: n for w, n in weights.get(service, {}).items() if n},
            # A copy, or a tester, may find nobody there; a user must not.
            mirror={w: n for w, n in mirrors.get(service, {}).items() if w in found},
            testing=tested
            if (tested := testing.get(service)) and tested.workload in found
            else None,
        )
        for service, found in backends.items()
    )
    return Routing(
        application=application, environment=environment, host=host, also=also, routes=routes
    )


class Stage(_Frozen):
    """One stage of a release, as reports show it."""

    name: str
    outcome: Verdict
    seconds: float
    summary: str = ""


class Report(_Frozen):
    """What a release did; ``slipway release --json`` prints it."""

    schema_version: int = SCHEMA_VERSION
    application: str
    environment: str
    version: str
    digest: str = ""
    strategy: str = ""
    release: int | None = None
    previous: int | None = Field(None, description="Release that was live before; null: none.")
    outcome: Outcome
    reason: str = ""
    seconds: float = 0
    stages: tuple[Stage, ...] = ()
    requests: int | None = Field(None, description="Served while it moved; null: could not count.")
    failed_requests: int | None = None
    findings: Mapping[str, int] = Field(default_factory=dict)
    verdicts: tuple[Mapping[str, Any], ...] = Field(
        (), description="Of each step that was judged by evidence, with its numbers."
    )
    detected_after_requests: int | None = Field(
        None, description="Requests until the evidence spoke against it; null: it did not."
    )
    rollback_seconds: float | None = Field(
        None, description="From the decision to go back to the traffic being back."
    )
    override: str = Field("", description="What was accepted without a pass, by whom and why.")
    url: str = ""
    undo: str = ""
    run: str = ""
    error: Mapping[str, Any] | None = None

    def sentence(self) -> str:
        """What happened, in one sentence."""
        what = f"{self.application} {self.version} in {self.environment}"
        match self.outcome:
            case Outcome.PROMOTED:
                moved = (
                    ""
                    if self.requests is None
                    else f"; {self.requests} requests served while it moved, "
                    f"{self.failed_requests} failed"
                )
                more = "" if self.reason in ("", PASSED) else f"; {self.reason}"
                return f"{what} is live after {self.seconds:.0f} s{moved}{more}"
            case Outcome.ROLLED_BACK:
                serving = (
                    "the old version serves" if self.previous else "nothing is live, as before"
                )
                return f"{what} was taken back and {serving}: {self.reason}"
            case Outcome.ROLLBACK_FAILED:
                return f"{what} FAILED AND COULD NOT BE PROVED TAKEN BACK: {self.reason}"
            case Outcome.REFUSED:
                return f"{what} was refused before any traffic moved: {self.reason}"


def refuse_repeat(history: Sequence[Release], version: str, digest: str) -> None:
    """One version name stands for one content, and live content is not shipped again.

    Raises:
        UsageError: SLP004 when exactly this is live, SLP005 when the name was used for other
            content.
    """
    current = live(history)
    if current and current.digest == digest and current.version == version:
        raise UsageError(
            "SLP004",
            f"version {version} ({digest[7:19]}) is already live since release {current.number}",
            help="nothing to do; change the source, or pass another --version",
        )
    for release in history:
        if (
            release.outcome in (Outcome.PROMOTED, Outcome.ROLLED_BACK)
            and release.version == version
            and release.digest != digest
        ):
            raise UsageError(
                "SLP005",
                f"release {release.number} shipped version {version} with content "
                f"{release.digest[7:19]}, this is {digest[7:19]}",
                help="one version, one content: pass another --version",
            )


def age(then: datetime, now: datetime) -> str:
    """How long ago, in one unit: ``3 minutes``."""
    seconds = max(0, int((now - then).total_seconds()))
    for name, size in (("day", 86400), ("hour", 3600), ("minute", 60)):
        if seconds >= size:
            count = seconds // size
            return f"{count} {name}{'s' if count != 1 else ''}"
    return f"{seconds} second{'s' if seconds != 1 else ''}"
