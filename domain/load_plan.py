"""What a load test is going to do, decided before anything is sent."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import ceil
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

from domain.application import Application
from domain.errors import UsageError
from domain.load_profile import Model, Profile

USERS_A_WORKER = 15_000
MOST_OPERATIONS = 50
CEILING_SHARE = 0.6
"""Of what the generator can do; above that it would measure itself."""


@dataclass(frozen=True, slots=True)
class Target:
    """Where requests go.

    Attributes:
        connect_to: host or address of the connection, which may be a proxy's.
        host: the name in the Host header, and the only one that redirects may lead to.
        source: local addresses to connect from, in turn; empty: the system's choice.
    """

    scheme: str
    connect_to: str
    port: int
    host: str
    source: tuple[str, ...] = ()
    verify: bool = True

    @property
    def base(self) -> str:
        return f"{self.scheme}://{self.host}"

    @property
    def url(self) -> str:
        return f"{self.scheme}://{self.host}:{self.port}"

    @classmethod
    def of(cls, url: str, host: str | None = None) -> Target:
        """A base URL, and the name to ask it for when that is not the URL's own.

        Raises:
            ValueError: it is no http or https URL.
        """
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"{url!r} is no http or https URL")
        port = parts.port or (443 if parts.scheme == "https" else 80)
        return cls(parts.scheme, parts.hostname, port, host or parts.hostname)


@dataclass(frozen=True, slots=True)
class Operation:
    """One request that anybody may make."""

    method: str
    path: str
    name: str
    body: Any = None
    expect: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class LoadPlan:
    """Everything that the workers need.

    Attributes:
        behaviours: file with subclasses of ``load.visitor.Visitor``; empty: ``operations``.
        most_in_flight: of the open model: how many things may be under way at once.
    """

    profile: Profile
    target: Target
    workers: int
    seed: int
    behaviours: str = ""
    operations: tuple[Operation, ...] = ()
    most_in_flight: int = 2000

    @property
    def connections(self) -> int:
        return self.most_in_flight if self.profile.model is Model.OPEN else ceil(self.profile.peak)


def workers_for(profile: Profile, cores: int) -> int:
    """One of two cores, at most all but one, and no more than the users need.

    More processes than free cores only wait for each other (docs/load.md).
    """
    wanted = max(ceil(profile.peak / USERS_A_WORKER), ceil(profile.expected_rate() / 1500))
    return max(1, min(wanted, max(1, cores - 1)))


def check_host(application: Application, target: Target) -> None:
    """Load goes to the application's own hosts and nowhere else.

    Raises:
        UsageError: SLP183 with the hosts that it names.
    """
    allowed = {application.host_in(name) for name in application.environments}
    allowed |= set(application.load.hosts)
    if target.host not in allowed:
        raise UsageError(
            "SLP183",
            f"{target.host} is not a host of {application.name}, so no load is sent there; its "
            f"hosts are {', '.join(sorted(allowed))}",
            help="if the host is yours, name it in application.yaml under `load.hosts`",
        )


def calibration_of(profile: Profile) -> Profile:
    """A short load of at most half the rate, whose cost says what the generator can do.

    Few requests cost more each than many, since every one of them wakes the process for itself.
    """
    rate = max(10.0, min(500.0, profile.expected_rate() / 2))
    base = {"name": "calibration", "description": "cost of a request", "model": profile.model,
            "timeout_seconds": profile.timeout_seconds}  # fmt: skip
    level, pause = (rate, profile.pause_seconds) if profile.model is Model.OPEN else (rate, 1.0)
    return Profile.model_validate(
        {
            **base,
            "pause_seconds": pause,
            "phases": (
                {"name": "connect", "seconds": 2, "start": 0, "end": level},
                {"name": "cost", "seconds": 4, "start": level, "end": level, "judged": True},
            ),
        }
    )


def check_ceiling(profile: Profile, cost_seconds: float, workers: int) -> float:
    """The ceiling in things a second that a measured cost allows.

    Args:
        cost_seconds: CPU seconds of the generator for one thing that a user does.

    Raises:
        UsageError: SLP185, the profile wants more than 60 % of it.
    """
    ceiling = workers / cost_seconds
    wanted = profile.expected_rate()
    if wanted > CEILING_SHARE * ceiling:
        raise UsageError(
            "SLP185",
            f"the profile wants {wanted:.0f} things a second, and {workers} worker(s) can do "
            f"{ceiling:.0f} here; above {100 * CEILING_SHARE:.0f} % of that a generator measures "
            "itself",
            help=f"use at most {CEILING_SHARE * ceiling:.0f} a second: fewer users, longer pauses, "
            "or a machine with more cores",
        )
    return ceiling


def operations_of(openapi: Mapping[str, Any]) -> Iterator[Operation]:
    """What anybody may do without being signed in: its GETs whose parameters are known.

    A parameter is known by its example, its default, or its first choice. An operation that asks
    for security, or for a parameter that nothing is known of, is left out.
    """
    paths = openapi.get("paths")
    if not isinstance(paths, Mapping):
        return
    for path, item in sorted(paths.items()):
        operation = item.get("get") if isinstance(item, Mapping) else None
        if not isinstance(operation, Mapping):
            continue
        if operation.get("security", openapi.get("security")):
            continue
        filled = _filled(path, [*item.get("parameters", ()), *operation.get("parameters", ())])
        if filled is not None:
            yield Operation("GET", filled, path)


def _filled(path: str, parameters: list[Any]) -> str | None:
    query: dict[str, str] = {}
    for parameter in parameters:
        if not isinstance(parameter, Mapping) or "$ref" in parameter:
            return None
        value = _known(parameter)
        if value is None:
            if parameter.get("required"):
                return None
            continue
        match parameter.get("in"):
            case "path":
                path = path.replace("{" + str(parameter["name"]) + "}", quote(value, safe=""))
            case "query":
                query[str(parameter["name"])] = value
            case _:
                if parameter.get("required"):
                    return None
    if "{" in path:
        return None
    return path + (f"?{urlencode(query)}" if query else "")


def _known(parameter: Mapping[str, Any]) -> str | None:
    schema = parameter.get("schema") or {}
    for value in (
        parameter.get("example"),
        schema.get("example"),
        *(schema.get("examples") or ())[:1],
        schema.get("default"),
        *(schema.get("enum") or ())[:1],
    ):
        if value is not None:
            return str(value)
    return None
