"""What is shipped: ``application.yaml``, parsed.

``parse`` reads the text of the file; every problem in it is reported at once, in line order,
with its line, the field and the way to correct it. The JSON Schema of the same models is
docs/application.schema.json; a test keeps the two in step.
"""

from __future__ import annotations

import difflib
import graphlib
import io
import json
from collections.abc import Iterable, Iterator, Mapping
from datetime import date
from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    TypeAdapter,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, ErrorDetails
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from domain.errors import UsageError
from domain.failover import Tier
from domain.findings import ScanPolicy
from domain.flags import check_steps
from domain.load_profile import ProfileName
from domain.observe import Observe
from domain.units import (
    Duration,
    Percent,
    PositiveDuration,
    Share,
    format_duration,
    format_percent,
    parse_duration,
)

FILE_NAME = "application.yaml"
Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]{0,38}[a-z0-9]$")]
UrlPath = Annotated[str, Field(pattern=r"^/[^\s?#]*$")]
EnvironKey = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]


_Path = tuple[str | int, ...]
_Problem = tuple[_Path, str]
_ROUNDS = 5
_WORKLOAD_NAME_LENGTH = 110  # 121 with the number of the release


class _Inconsistent(ValueError):
    """Problems between fields, each with its path."""

    def __init__(self, problems: list[_Problem]) -> None:
        super().__init__("; ".join(f"{_dotted(path)}: {text}" for path, text in problems))
        self.problems = problems


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Strategy(StrEnum):
    ROLLING = "rolling"
    BLUE_GREEN = "blue-green"
    CANARY = "canary"


class Superseding(StrEnum):
    """What a newer release does while another is under way."""

    QUEUE = "queue"
    REPLACE = "replace"
    REFUSE = "refuse"


class Build(_Model):
    """How a service's bundle is made from its source."""

    source: str = Field(".", description="Folder of the source, relative to application.yaml.")
    lock: str | None = Field(
        None, description="Lock file of Python packages; requirements.lock when that exists."
    )
    test_lock: str | None = Field(None, description="Further packages that only the tests need.")
    python: str | None = Field(
        None, pattern=r"^3\.[0-9]+$", description="Python version; Slipway's own when left out."
    )
    commands: tuple[str, ...] = Field((), description="Run in a copy of the source, in order.")
    exclude: tuple[str, ...] = Field((), description="Globs of files to leave out.")


class Service(_Model):
    """One process type of the application."""

    build: Build = Build()
    command: str = Field(min_length=1, description="Start command; it must listen on $PORT.")
    port: int | None = Field(
        8000, ge=1, le=65535, description="Port inside a container; null: no listener (a worker)."
    )
    routes: tuple[UrlPath, ...] = Field(
        ("/",), description="Public path prefixes; []: reached by other services only."
    )
    health: UrlPath | None = Field(None, description="Liveness path; three failures restart it.")
    ready: UrlPath | None = Field(None, description="Readiness path; null: the port accepts.")
    openapi: UrlPath | None = Field(None, description="Path of its OpenAPI document, for the scan.")
    replicas: Mapping[str, Annotated[int, Field(ge=1, le=1000)]] = Field(
        default_factory=lambda: {"default": 1}, description="By environment, with `default`."
    )
    environ: Mapping[EnvironKey, str] = Field(
        default_factory=dict, description="Environment variables; never secrets."
    )
    depends_on: tuple[Name, ...] = Field((), description="Services that must be ready before it.")
    start: PositiveDuration = Field(
        parse_duration("60s"), description="Deadline for its first readiness."
    )
    drain: Duration = Field(parse_duration("10s"), description="From SIGTERM to SIGKILL.")

    def replicas_in(self, environment: str) -> int:
        return self.replicas.get(environment, self.replicas.get("default", 1))

    @property
    def is_public(self) -> bool:
        return self.port is not None and bool(self.routes)


class Suite(_Model):
    """One test suite."""

    kind: Literal["unit", "integration", "end-to-end"] = Field(
        description="integration gets DATABASE_URL, end-to-end gets BASE_URL of the candidate."
    )
    command: str = Field(min_length=1)
    service: Name | None = Field(None, description="Whose bundle it tests; the first by default.")
    timeout: PositiveDuration = parse_duration("10m")
    retries: int = Field(0, ge=0, le=3, description="Runs again after a failure, shown as such.")


class Database(_Model):
    """A PostgreSQL database per environment, given to services as DATABASE_URL."""

    engine: Literal["postgresql"] = "postgresql"
    migrate: str | None = Field(
        None, description="Expands the schema before traffic; the old version runs on it too."
    )
    contract: str | None = Field(
        None, description="Drops what only older versions needed; see `slipway contract`."
    )
    contract_after: Literal["request", "release"] = Field(
        "request",
        description="request: by `slipway contract` alone; release: also at the end of each "
        "release, once no older version is left.",
    )
    seed: str | None = Field(None, description="Runs after each migration; rerunnable.")
    service: Name | None = Field(None, description="Whose bundle runs both; the first by default.")
    timeout: PositiveDuration = parse_duration("5m")


class Objectives(_Model):
    """What users were promised."""

    availability: Percent = 0.999
    p95: Duration = parse_duration("500ms")
    error_rate: Percent = 0.001


class FeatureFlags(_Model):
    """Flags that the application asks through OpenFeature, in flagd's file format."""

    file: str = Field(min_length=1, description="flagd file, relative to application.yaml.")
    carry: Mapping[str, tuple[Percent, ...]] = Field(
        default_factory=dict,
        description="Flags that a release brings along, off, and the shares that each ramps by.",
    )

    def problems(self) -> Iterator[_Problem]:
        for name, steps in self.carry.items():
            if problem := check_steps(steps):
                yield ("flags", "carry", name), problem


class ObjectsToSave(_Model):
    """The application's own object storage."""

    store: Name = Field(description="Name of the store, as the platform block has it.")
    prefix: str = Field("", description="Only what is below it; empty: all.")


class Backups(_Model):
    """What is saved every night, for how long, and what counts as proved."""

    retention: PositiveDuration = Field(
        parse_duration("30d"), description="Any of these days can be brought back."
    )
    grace: Duration = Field(
        parse_duration("3d"), description="How long what has expired can still be brought back."
    )
    keep_proved: int = Field(
        3, ge=1, description="Proved copies that no expiry takes from a location."
    )
    weekly: int = Field(0, ge=0, description="Newest points of that many weeks kept besides.")
    monthly: int = Field(0, ge=0, description="Newest points of that many months kept besides.")
    stale_after: PositiveDuration = Field(
        parse_duration("26h"), description="Alarm when nothing newer than this is proved."
    )
    probe: str | None = Field(
        None,
        description="Run in the live bundle against a restored copy (DATABASE_URL); ends with 0 "
        "when the application can work with it.",
    )
    service: Name | None = Field(None, description="Whose bundle runs it; the first by default.")
    objects: ObjectsToSave | None = Field(
        None, description="Object storage to save as well; unchanged objects are not read again."
    )


class Load(_Model):
    """What users of the application do, and where they may be sent to."""

    behaviours: str | None = Field(
        None,
        min_length=1,
        description="Python file with subclasses of load.visitor.Visitor, relative to the folder "
        "of the service; without, users do what its OpenAPI says anybody may do.",
    )
    service: Name | None = Field(None, description="Whose bundle has it; the first by default.")
    hosts: tuple[str, ...] = Field(
        (), description="Hosts besides those of its environments that load may be sent to."
    )


class Recovery(_Model):
    """How the application comes up in another cloud when its own is lost."""

    name: str = Field(
        pattern=r"^[a-z0-9][a-z0-9.-]*\.[a-z][a-z0-9-]*$",
        max_length=200,
        description="Public DNS name above both clouds.",
    )
    environment: Name = Field("production", description="What is protected.")
    standby: Name = Field("recovery", description="Environment in the other cloud.")
    tier: Tier = Field(
        Tier.BACKUP,
        description="backup: the newest proved copy is restored; warm: a database that follows; "
        "hot: with running replicas besides.",
    )
    ttl: PositiveDuration = Field(
        parse_duration("5s"), description="How long resolvers may keep an answer for the name."
    )
    lease: PositiveDuration = Field(
        parse_duration("3s"),
        description="How long a side may write without hearing that the epoch is still its own.",
    )
    rto: PositiveDuration = Field(parse_duration("5m"), description="Longest time without it.")
    rpo: Duration = Field(parse_duration("24h"), description="Most data that may be lost.")
    transactions: str | None = Field(
        None,
        min_length=1,
        description="Python file with begin, write and LEDGER, relative to the folder of the "
        "service: what a drill's clients do, and how to find it again.",
    )
    service: Name | None = Field(None, description="Whose bundle has it; the first by default.")
    approval_max_age: PositiveDuration = Field(
        parse_duration("15m"), description="An older approval of a failover does not count."
    )


class CanaryStep(_Model):
    """One share of users' requests, and the evidence that it needs before the next one."""

    weight: Share = Field(description="Of users' requests; a whole percentage below 100%.")
    requests: int | None = Field(
        None, ge=1, description="Requests to the new version that it needs; the canary's own else."
    )


class _OrShare:
    """A step may be written as its share alone: ``5%`` for ``{weight: 5%}``."""

    def __get_pydantic_json_schema__(
        self, core: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        share = TypeAdapter(Share).json_schema()
        return {"anyOf": [handler(core), share]}


def _spelled_out(step: Any) -> Any:
    return {"weight": step} if isinstance(step, str) else step


class Testers(_Model):
    """Requests that always reach the new version while a canary is under way."""

    carrier: Literal["header", "cookie"] = Field("header", description="What marks a request.")
    name: str = Field(pattern=r"^[A-Za-z0-9_-]+$", description="Name of the header or cookie.")
    value: str = Field("always", pattern=r"^[A-Za-z0-9_-]+$", description="What it must hold.")


class Probes(_Model):
    """Requests that Slipway itself sends, where users send too few to judge by."""

    path: UrlPath = Field(description="Answered by the new and the old version alike.")
    per_second: float = Field(5, gt=0, le=100, description="To each of the two versions.")


class Canary(_Model):
    """How a canary moves on: by evidence, never by the clock."""

    steps: tuple[Annotated[CanaryStep, BeforeValidator(_spelled_out), _OrShare()], ...] = Field(
        (CanaryStep(weight=5), CanaryStep(weight=25), CanaryStep(weight=50)),
        min_length=1,
        max_length=20,
        description="Increasing shares below 100%; all of the traffic follows the last of them.",
    )
    requests: int = Field(
        200, ge=1, description="Requests to the new version that a step needs as evidence."
    )
    patience: PositiveDuration = Field(
        parse_duration("1h"), description="A step without its evidence by then is taken back."
    )
    false_alarm: Percent = Field(
        0.01, description="Chance that a version no worse than the old one is ever taken back."
    )
    margin: Duration | None = Field(
        None,
        description="How much slower than the old version is still no reason to take it back; "
        "1 % of the objective's p95 by default.",
    )
    mirror: int | None = Field(
        None,
        ge=1,
        description="First of all, copies of this many GET requests; answers are thrown away.",
    )
    testers: Testers | None = None
    probes: Probes | None = None
    interrupted: Literal["reverse", "continue"] = Field(
        "reverse", description="What recovery does with a canary whose process was killed."
    )


class SmokeCheck(_Model):
    """One request that the public address must answer after traffic has moved."""

    path: UrlPath
    status: int = Field(200, ge=100, le=599)
    contains: str | None = None


class LoadGate(_Model):
    """A load test that must have passed before anything is released here."""

    environment: Name = Field("staging", description="Where it must have been tested.")
    profile: ProfileName = Field("10k", description="With which users.")
    max_age: PositiveDuration = Field(
        parse_duration("7d"), description="An older verdict does not count."
    )


class Environment(_Model):
    """Where the application runs."""

    platform: Name = Field("sandbox", description="Prefect block that names the outside systems.")
    host: str | None = Field(None, pattern=r"^[a-z0-9][a-z0-9.-]*$")
    strategy: Strategy | None = Field(None, description="Overrides the application's.")
    keep_previous: Duration = Field(
        parse_duration("10m"), description="How long the old version stays, for an instant return."
    )
    environ: Mapping[EnvironKey, str] = Field(default_factory=dict)
    secrets: Mapping[EnvironKey, Name] = Field(
        default_factory=dict, description="Variable: name of the Prefect secret block it is from."
    )
    scan: ScanPolicy | None = Field(None, description="Replaces the application's.")
    observe: Observe | None = Field(None, description="Replaces the application's.")
    require_load: LoadGate | None = Field(
        None, description="The same build must have passed a load test elsewhere."
    )


class Application(_Model):
    """The whole of application.yaml."""

    name: Name
    version: str | None = Field(None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]{0,62}$")
    services: Mapping[Name, Service] = Field(min_length=1)
    tests: Mapping[Name, Suite] = Field(default_factory=dict)
    database: Database | None = None
    cache: Literal["redis"] | None = Field(None, description="Given to services as REDIS_URL.")
    objectives: Objectives = Objectives()
    smoke: tuple[SmokeCheck, ...] = ()
    strategy: Strategy = Strategy.BLUE_GREEN
    canary: Canary = Canary()
    superseding: Superseding = Field(
        Superseding.QUEUE, description="What a newer release does while another is under way."
    )
    scan: ScanPolicy = ScanPolicy()
    observe: Observe = Observe()
    flags: FeatureFlags | None = Field(None, description="Given to services as FLAGD_*.")
    backups: Backups = Backups()
    load: Load = Load()
    recovery: Recovery | None = Field(None, description="Nothing is kept in another cloud without.")
    environments: Mapping[Name, Environment] = Field(
        default_factory=lambda: {"staging": Environment(), "production": Environment()},
        min_length=1,
    )

    @field_validator("version", mode="before")
    @classmethod
    def _quoted(cls, value: Any) -> Any:
        if isinstance(value, int | float | date):
            raise ValueError(
                f"{value} is read as a {_kind(value)}, which may lose some of what was "
                'written; put it in quotes, as in "1.10"'
            )
        return value

    @model_validator(mode="after")
    def _consistent(self) -> Application:
        if problems := list(self._inconsistencies()):
            raise _Inconsistent(problems)
        return self

    def _inconsistencies(self) -> Iterator[_Problem]:
        """What no field can see alone, each with the path of the field to correct."""
        yield from self._unknown_names()
        yield from self._circles()
        yield from self._shared_routes()
        yield from self._unreachable_checks()
        yield from self._long_names()
        yield from self._contradicting_objectives()
        yield from self._impossible_canary()
        yield from self._pointless_contraction()
        yield from self._contradictory_sources()
        yield from self._impossible_recovery()
        yield from self.flags.problems() if self.flags else ()

    def _unknown_names(self) -> Iterator[_Problem]:
        services, environments = list(self.services), ["default", *self.environments]
        for name, service in self.services.items():
            here: _Path = ("services", name)
            for index, needed in enumerate(service.depends_on):
                yield from _unknown((*here, "depends_on", index), needed, services, "a service")
            for used in service.replicas:
                yield from _unknown((*here, "replicas", used), used, environments, "an environment")
        for name, suite in self.tests.items():
            yield from _unknown(("tests", name, "service"), suite.service, services, "a service")
        if self.database:
            used_by = self.database.service
            yield from _unknown(("database", "service"), used_by, services, "a service")
        for name, environment in self.environments.items():
            if gate := environment.require_load:
                where = ("environments", name, "require_load", "environment")
                yield from _unknown(where, gate.environment, environments[1:], "an environment")
        yield from _unknown(("load", "service"), self.load.service, services, "a service")

    def _pointless_contraction(self) -> Iterator[_Problem]:
        database = self.database
        if database and database.contract_after == "release" and not database.contract:
            yield (
                ("database", "contract_after"),
                "asks for a contraction, and there is none; add `contract`, or remove this",
            )

    def _circles(self) -> Iterator[_Problem]:
        graph = {
            name: [needed for needed in service.depends_on if needed in self.services]
            for name, service in self.services.items()
        }
        try:
            graphlib.TopologicalSorter(graph).prepare()
        except graphlib.CycleError as error:
            circle = error.args[1]
            path = ("services", circle[-1], "depends_on")
            yield path, f"goes in a circle: {' -> '.join(reversed(circle))}; remove one of them"

    def _shared_routes(self) -> Iterator[_Problem]:
        taken: dict[str, str] = {}
        for name, service in self.services.items():
            for index, path in enumerate(service.routes if service.is_public else ()):
                first = taken.setdefault(path.rstrip("/") or "/", name)
                if first != name:
                    yield (
                        ("services", name, "routes", index)
                        if "routes" in service.model_fields_set
                        else ("services", name),
                        f"services.{name}.routes and services.{first}.routes both claim {path!r}; "
                        "give each public service its own paths, [] to one that only others "
                        "call, and `port: null` to a worker that listens to nobody",
                    )

    def _unreachable_checks(self) -> Iterator[_Problem]:
        routes = [r for s in self.services.values() if s.is_public for r in s.routes]
        for index, check in enumerate(self.smoke):
            if not any(_under(check.path, route) for route in routes):
                yield (
                    ("smoke", index, "path"),
                    f"no public service has a route that holds {check.path!r}; "
                    f"the routes are: {', '.join(routes) or 'none'}",
                )

    def _long_names(self) -> Iterator[_Problem]:
        longest = max(self.environments, key=len)
        for service in self.services:
            name = f"{self.name}.{longest}.{service}"
            if len(name) > _WORKLOAD_NAME_LENGTH:
                yield (
                    ("services", service),
                    f"{name!r} has {len(name)} characters, a workload's name at most "
                    f"{_WORKLOAD_NAME_LENGTH}; shorten one of the three names",
                )

    def _contradicting_objectives(self) -> Iterator[_Problem]:
        promised = self.objectives
        if {"availability", "error_rate"} <= promised.model_fields_set and (
            promised.error_rate > round(1 - promised.availability, 9)
        ):
            yield (
                ("objectives", "error_rate"),
                f"{format_percent(promised.error_rate)} of errors allows less than the "
                f"availability of {format_percent(promised.availability)} that is promised; at "
                f"most {format_percent(round(1 - promised.availability, 9))} fits it",
            )
        if "p95" in promised.model_fields_set and not promised.p95:
            yield ("objectives", "p95"), "no request can be answered in no time; write 200ms"

    def _impossible_canary(self) -> Iterator[_Problem]:
        steps = self.canary.steps
        for index in range(1, len(steps)):
            before, here = steps[index - 1].weight, steps[index].weight
            if here <= before:
                yield (
                    ("canary", "steps", index),
                    f"{here}% follows {before}%; each step must be more than the one before",
                )
        routes = [r for s in self.services.values() if s.is_public for r in s.routes]
        probes = self.canary.probes
        if probes and not any(_under(probes.path, route) for route in routes):
            yield (
                ("canary", "probes", "path"),
                f"no public service has a route that holds {probes.path!r}; "
                f"the routes are: {', '.join(routes) or 'none'}",
            )
        for environment, path in self._canary_environments():
            if not routes:
                yield (
                    path,
                    f"a canary is judged by users' requests, and no service has a public route "
                    f"in {environment}; use rolling",
                )

    def _canary_environments(self) -> Iterator[tuple[str, _Path]]:
        """Environments whose strategy is a canary, each with the field that says so."""
        for name, environment in self.environments.items():
            if environment.strategy is Strategy.CANARY:
                yield name, ("environments", name, "strategy")
            elif environment.strategy is None and self.strategy is Strategy.CANARY:
                yield name, ("strategy",)

    def _contradictory_sources(self) -> Iterator[_Problem]:
        sources: list[tuple[_Path, Observe]] = [(("observe",), self.observe)]
        for name, environment in self.environments.items():
            if environment.observe:
                sources.append((("environments", name, "observe"), environment.observe))
        for here, observe in sources:
            for path, problem in observe.contradictions():
                yield (*here, *path), problem

    def _impossible_recovery(self) -> Iterator[_Problem]:
        wanted = self.recovery
        if wanted is None:
            return
        here: _Path = ("recovery",)
        known = list(self.environments)
        for field in ("environment", "standby"):
            yield from _unknown((*here, field), getattr(wanted, field), known, "an environment")
        yield from _unknown((*here, "service"), wanted.service, list(self.services), "a service")
        pair = [self.environments.get(n) for n in (wanted.environment, wanted.standby)]
        if pair[0] and pair[1] and pair[0].platform == pair[1].platform:
            yield (
                (*here, "standby"),
                f"{wanted.standby} is on the same platform as {wanted.environment} "
                f"({pair[0].platform}), so both are lost together; give it another one",
            )
        if wanted.ttl >= wanted.rto:
            yield (
                (*here, "ttl"),
                f"resolvers may send users to the lost side for {format_duration(wanted.ttl)}, and "
                f"the application is to be back after {format_duration(wanted.rto)}; lower the ttl",
            )
        if wanted.lease >= wanted.rto:
            yield (
                (*here, "lease"),
                f"a lost side may write for {format_duration(wanted.lease)}, and the application "
                f"is to be back after {format_duration(wanted.rto)}; lower the lease",
            )

    def service_order(self) -> tuple[str, ...]:
        """Services so that each comes after those it depends on; ties in the file's order."""
        graph = graphlib.TopologicalSorter({n: s.depends_on for n, s in self.services.items()})
        graph.prepare()
        ordered: list[str] = []
        position = {name: index for index, name in enumerate(self.services)}
        while graph.is_active():
            layer = sorted(graph.get_ready(), key=position.__getitem__)
            ordered += layer
            graph.done(*layer)
        return tuple(ordered)

    @property
    def first_service(self) -> str:
        return next(iter(self.services))

    def environment(self, name: str) -> Environment:
        """The named environment, or UsageError SLP003 with the nearest name."""
        if name not in self.environments:
            raise UsageError(
                "SLP003",
                f"{self.name} has no environment {name!r}; it declares "
                f"{', '.join(self.environments)}",
                help=_nearest(name, self.environments),
            )
        return self.environments[name]

    def strategy_in(self, environment: str, asked: str = "declared") -> Strategy:
        """The strategy that was asked for; ``declared``: the environment's, else our own."""
        if asked != "declared":
            return Strategy(asked)
        return self.environment(environment).strategy or self.strategy

    def scan_in(self, environment: str) -> ScanPolicy:
        return self.environment(environment).scan or self.scan

    def observe_in(self, environment: str) -> Observe:
        return self.environment(environment).observe or self.observe

    def host_in(self, environment: str) -> str:
        return self.environment(environment).host or f"{self.name}.{environment}.localhost"

    def also_in(self, environment: str) -> tuple[str, ...]:
        """Other public names: that above both clouds leads to either."""
        named = self.recovery
        both = (named.environment, named.standby) if named else ()
        return (named.name,) if named and environment in both else ()

    def smoke_checks(self) -> tuple[SmokeCheck, ...]:
        """The declared checks, else one of each public service's readiness path or route."""
        if self.smoke:
            return self.smoke
        public = (service for service in self.services.values() if service.is_public)
        return tuple(SmokeCheck(path=_reachable(s)) for s in public)


def _reachable(service: Service) -> str:
    """A path of the service that its public routes let through."""
    if service.ready and any(_under(service.ready, route) for route in service.routes):
        return service.ready
    return service.routes[0]


def _unknown(path: _Path, name: str | None, known: list[str], what: str) -> Iterator[_Problem]:
    if name is not None and name not in known:
        yield path, f"names {name!r}, which is not {what}; {_nearest(name, known)}"


def _dotted(path: Iterable[str | int]) -> str:
    return ".".join(str(part) for part in path)


def _kind(value: Any) -> str:
    return {bool: "truth value", int: "number", float: "number"}.get(type(value), "date")


def _under(path: str, prefix: str) -> bool:
    return path == prefix or path.startswith(prefix.rstrip("/") + "/")


def parse(text: str, where: str = FILE_NAME) -> Application:
    """Read an application.yaml.

    Args:
        text: the content of the file.
        where: its path, used in messages.

    Raises:
        UsageError: SLP002, with one ``file:line:column: field: problem; fix`` line for each
            problem, in line order.
    """
    try:
        document = YAML(typ="rt").load(io.StringIO(text))
        plain = _plain(document)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = (mark.line + 1, mark.column + 1) if mark else (1, 1)
        raise _invalid(where, [(*place, "", _first_line(error))]) from None
    except YAMLError as error:
        raise _invalid(where, [(1, 1, "", str(error).splitlines()[0])]) from None
    except RecursionError:
        raise _invalid(where, [(1, 1, "", "an alias contains itself; write it out")]) from None
    except ValueError as error:  # ruamel does not wrap a date such as 2026-99-99
        raise _invalid(where, [(1, 1, "", f"a value cannot be read: {error}")]) from None
    if not isinstance(document, CommentedMap):
        kinds = {type(None): "an empty file", CommentedSeq: "a list"}
        seen = kinds.get(type(document), f"only {_shown(plain)}")
        raise _invalid(where, [(1, 1, "", f"expected fields such as `name:`, found {seen}")])
    try:
        return Application.model_validate(plain)
    except ValidationError as error:
        found = error.errors()
    problems = [problem for e in found for problem in _problems(document, dict(e))]
    between = _inconsistencies_of(plain, found)
    raise _invalid(where, problems + [p for e in between for p in _problems(document, dict(e))])


def _first_line(error: MarkedYAMLError) -> str:
    text = str(error.problem or error.context or "it is not YAML").splitlines()[0]
    return f"{text}; indent with spaces" if "'\\t'" in text else text


def _inconsistencies_of(plain: Any, found: list[ErrorDetails]) -> list[ErrorDetails]:
    """What is wrong between fields, although some fields are wrong by themselves.

    Those are left out first, which can leave others incomplete, so a few times over. Without a
    whole service nothing can be said.
    """
    document = json.loads(json.dumps(plain, default=str))
    left_out: set[_Path] = set()
    for _ in range(_ROUNDS):
        if between := [error for error in found if isinstance(_cause(error), _Inconsistent)]:
            return [_without(error, left_out) for error in between]
        paths = {_faulty(error) for error in found}
        if not paths or any(len(path) < 3 and path[:1] == ("services",) for path in paths):
            return []
        left_out |= paths
        for path in sorted(paths, key=lambda p: [str(part).zfill(6) for part in p], reverse=True):
            _remove(document, path)
        try:
            Application.model_validate(document)
        except ValidationError as error:
            found = error.errors()
        else:
            return []
    return []


def _without(error: ErrorDetails, left_out: set[_Path]) -> ErrorDetails:
    """Without what is said of a field that is only missing because we left it out."""
    cause = _cause(error)
    cause.problems = [problem for problem in cause.problems if problem[0] not in left_out]
    return error


def _faulty(error: ErrorDetails) -> _Path:
    path = tuple(part for part in error["loc"] if part != "[key]")
    return path[:-1] if error["type"] == "missing" else path


def _remove(document: Any, path: _Path) -> None:
    node = document
    try:
        for part in path[:-1]:
            node = node[part]
        del node[path[-1]]
    except (KeyError, IndexError, TypeError):
        return  # gone with something around it, or part of a union's name


def _cause(error: Any) -> Any:
    return error.get("ctx", {}).get("error")


def _invalid(where: str, problems: list[tuple[int, int, str, str]]) -> UsageError:
    problems = sorted(set(problems))
    lines = [
        f"{where}:{line}:{column}: {field + ': ' if field else ''}{problem}"
        for line, column, field, problem in problems
    ]
    count = "1 problem" if len(lines) == 1 else f"{len(lines)} problems"
    return UsageError(
        "SLP002",
        f"{where} has {count}; line {problems[0][0]}: "
        f"{problems[0][2] + ': ' if problems[0][2] else ''}{problems[0][3]}",
        help="correct the lines listed and run it again; nothing was changed",
        where=f"{where}:{problems[0][0]}",
        detail="\n".join(lines),
    )


def _problems(document: CommentedMap, error: dict[str, Any]) -> Iterator[tuple[int, int, str, str]]:
    cause = _cause(error)
    if not isinstance(cause, _Inconsistent):
        yield _problem(document, error)
        return
    for path, text in cause.problems:
        line, column, _ = _locate(document, list(path))
        yield line, column, _dotted(path), text


def _problem(document: CommentedMap, error: dict[str, Any]) -> tuple[int, int, str, str]:
    """(line, column, field, sentence) of one pydantic error."""
    path = [part for part in error["loc"] if part != "[key]"]
    line, column, depth = _locate(document, path)
    field = ".".join(str(part) for part in path)
    match error["type"]:
        case "extra_forbidden":
            siblings = _known_fields(path[:-1])
            return line, column, field, f"unknown field; {_nearest(str(path[-1]), siblings)}"
        case "missing":
            parent = ".".join(str(part) for part in path[:-1])
            return line, column, parent, f"`{path[-1]}` is required; add it"
        case "value_error":
            return line, column, field, str(error["ctx"]["error"])
        case "string_pattern_mismatch":
            return (
                line,
                column,
                field,
                (f"{error['input']!r} does not match {error['ctx']['pattern']}"),
            )
        case _:
            seen = "" if depth < len(path) else f", not {_shown(error['input'])}"
            message = error["msg"][0].lower() + error["msg"][1:] + seen
            scalar = isinstance(error["input"], bool | int | float)
            quoted = "; put it in quotes" if error["type"] == "string_type" and scalar else ""
            return line, column, field, message + quoted


def _shown(value: Any) -> str:
    return json.dumps(value, default=str)[:60]


def _locate(document: Any, path: list[Any]) -> tuple[int, int, int]:
    """1-based line and column of the deepest part of ``path`` that the file holds."""
    line, column, node = 0, 0, document  # a file that has no such field: its beginning
    for depth, part in enumerate(path):
        try:
            if isinstance(node, CommentedMap):
                line, column = node.lc.key(part)
            elif isinstance(node, CommentedSeq):
                line, column = node.lc.item(part)
            else:
                return line + 1, column + 1, depth
            node = node[part]
        except (KeyError, IndexError, TypeError, AttributeError):
            return line + 1, column + 1, depth
    return line + 1, column + 1, len(path)


def _known_fields(path: list[Any]) -> list[str]:
    """Names of the fields that the model at ``path`` has, from the schema itself."""
    schema = Application.model_json_schema()
    node: dict[str, Any] = schema
    for part in path:
        node = _resolve(schema, node)
        if part in node.get("properties", {}):
            node = node["properties"][part]
        elif "items" in node:
            node = node["items"]
        else:
            extra = node.get("additionalProperties", node.get("patternProperties", {}))
            node = (
                extra
                if not node.get("patternProperties")
                else next(iter(node["patternProperties"].values()))
            )
            if not isinstance(node, dict):
                return []
    return list(_resolve(schema, node).get("properties", {}))


def _resolve(schema: dict[str, Any], node: dict[str, Any]) -> dict[str, Any]:
    for option in node.get("anyOf", ()):
        if "$ref" in option:
            node = option
            break
    if "$ref" in node:
        resolved: dict[str, Any] = schema["$defs"][node["$ref"].rsplit("/", 1)[-1]]
        return resolved
    return node


def _nearest(word: str, known: Any) -> str:
    names = list(known)
    close = difflib.get_close_matches(word, names, n=1, cutoff=0.6)
    return f"did you mean `{close[0]}`?" if close else f"known here: {', '.join(names) or 'none'}"


def _plain(node: Any) -> Any:
    """ruamel's annotated containers and scalars as plain Python values."""
    if isinstance(node, CommentedMap):
        return {str(key): _plain(value) for key, value in node.items()}
    if isinstance(node, CommentedSeq):
        return [_plain(value) for value in node]
    if isinstance(node, bool) or node is None:
        return node
    for kind in (int, float, str):
        if isinstance(node, kind):
            return kind(node)
    return node


def json_schema() -> dict[str, Any]:
    """The JSON Schema that docs/application.schema.json holds."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Slipway application.yaml",
        **Application.model_json_schema(),
    }
