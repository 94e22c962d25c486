"""TraefikEdge: the ``Edge`` that writes files for a real Traefik 3 and believes only its API.

One YAML file per application and environment lies in the directory that Traefik watches; JSON is
valid YAML, so the standard library writes it. The file is the wish. What Traefik serves is read
back from ``/api/rawdata``, and from a marker router that answers 418 on every entrypoint once it
has switched: the API alone is not proof, because Traefik switches its entrypoints one by one.

What a request meets, from outside in (measured on Traefik 3.7; each choice has a test):

- ``replay``: an idempotent request that ended in 502 is sent once more. It covers the requests
  that a killed replica had in its hands. Traefik never replays POST, PATCH or LOCK here.
- ``redial``: a request of which no byte has reached a replica (connection refused) is sent to
  the next one. That is safe for every method.
- the weighted service, which leaves out a version whose replicas all fail their checks;
- one load balancer per workload with an active check of the readiness path. Servers start as
  healthy, so a switch never meets "no available server". Traefik's passive check is not used: it
  counts answers 500 to 599, and would turn a fault of the application into an outage.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import httpx
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from domain.errors import Failed
from domain.routing import Backend, Counts, Route, Routing, Testing

T = TypeVar("T")
Json = dict[str, Any]

SEPARATOR = "~"  # cannot occur in a name, so a/b-c and a-b/c never meet
PRIVATE = "private"
# Host name of the marker; never the application's, so that asking for it meets no version.
MARKER_DOMAIN = "slipway.invalid"
SERVED = 418  # what Traefik's noop@internal answers
REQUEST_TIMEOUT_SECONDS = 2.0
POLL_SECONDS = 0.01

# A slow check must not take out a whole version on a busy machine: Traefik has no panic mode.
HEALTH_CHECK = {"interval": "1s", "timeout": "2s"}
REDIAL = {"attempts": 10, "initialInterval": "10ms", "timeout": "3s"}
REPLAY = {
    "attempts": 2,
    "status": ["502"],
    "disableRetryOnNetworkError": True,
    "retryNonIdempotentMethod": False,
    # Larger bodies stream through and are not replayed. Traefik makes room for one of this size
    # for every request, also for those that have none: at 64 KiB that was three quarters of all
    # that it allocates, and clearing the pages took a tenth of a machine while 12,000 users came.
    "maxRequestBodyBytes": 4095,
}
# Shorter than the keep-alive of any common server (2 s), so that Traefik never sends a POST down
# a connection that the server is about to close.
TRANSPORT = {
    "maxIdleConnsPerHost": 256,
    "forwardingTimeouts": {"dialTimeout": "3s", "idleConnTimeout": "1s"},
}

HELP = "see `slipway status`; parts are restarted by themselves, so try again in a moment"


class _NotYet(Exception):
    """What was seen instead of the wanted state; asked again until the deadline."""


class TraefikEdge:
    """Splits traffic with Traefik's file provider.

    Args:
        dynamic: directory that Traefik's file provider watches (``watch: true``; set
            ``providersThrottleDuration: 50ms``, the default of 2 s delays every switch). Drafts
            lie beside it in ``<name>.drafts``.
        web: base URL of the public entrypoint, which must be named ``web``.
        internal: base URL of the private entrypoint, which must be named ``internal``.
        api: base URL of Traefik's API, without ``/api``.
        metrics: URL of its Prometheus metrics; per-service labels must be on.
        deadline_seconds: how long a call waits for Traefik to answer and to take a change.
    """

    def __init__(
        self,
        dynamic: Path,
        web: str,
        internal: str,
        api: str,
        metrics: str,
        *,
        deadline_seconds: float = 5.0,
    ) -> None:
        self.dynamic = dynamic
        self.web, self.internal = web.rstrip("/"), internal.rstrip("/")
        self.api, self.metrics = api.rstrip("/"), metrics
        self.deadline_seconds = deadline_seconds
        # Proxy variables of the environment must not come between us and our own edge.
        self._http = httpx.Client(trust_env=False, timeout=REQUEST_TIMEOUT_SECONDS)

    # What people and programs call

    def public_url(self, routing: Routing) -> str:
        port = urlsplit(self.web).port
        return f"http://{routing.host}" + (f":{port}" if port not in (None, 80) else "")

    def request_target(self, routing: Routing) -> tuple[str, Mapping[str, str]]:
        return self.web, {"Host": routing.host}

    def private_url(self, application: str, environment: str, workload: str) -> str:
        return self.internal + private_path(application, environment, workload)

    # The protocol

    def read(self, application: str, environment: str) -> Routing | None:
        return self._until(
            lambda: self._seen(application, environment),
            f"read the routing of {application}/{environment} from Traefik",
        )

    def write(self, routing: Routing) -> None:
        """Switch as one; returns when every entrypoint serves by it.

        Raises:
            Failed: SLP014 when Traefik did not take it within the deadline. The file stays: it
                is the wish, and Traefik takes it when it can. SLP015 when the disk is full.
        """
        config, generation = render(routing, self.api)
        path = self._path(routing.application, routing.environment)
        _replace(path, _dump(config))
        self._until(
            lambda: self._confirm(routing, generation),
            f"switch {routing.application}/{routing.environment}",
            f"the new routing stays in {path} and takes effect once Traefik accepts it",
        )

    def remove(self, application: str, environment: str) -> None:
        """Forget the routing; returns when Traefik has. Removing nothing is no error."""
        path = self._path(application, environment)
        with _disk(path):
            path.unlink(missing_ok=True)
            if path.parent.is_dir():
                _sync(path.parent)
        self._until(
            lambda: self._gone(application, environment),
            f"remove {application}/{environment} from Traefik",
            f"{path} is gone, and the routes go once Traefik sees that",
        )

    def counts(self, application: str, environment: str) -> Mapping[str, Counts]:
        """Requests by workload since Traefik started.

        A workload with public paths is counted by its public requests only: tests that look at
        a candidate over its private address must not be taken for users. One without public
        paths is counted by its private ones.

        Traefik knows no series before the first request, so silence alone could mean "none" or
        "not measured". Each routing therefore has a witness service. Its series must be there;
        a request is sent to it when it is not, as after a restart of Traefik.
        """
        return self._until(
            lambda: self._counted(application, environment),
            f"count the requests of {application}/{environment}",
        )

    # One look each; they raise _NotYet or httpx.HTTPError when the answer is not there yet

    def _seen(self, application: str, environment: str) -> Routing | None:
        raw = self._raw()
        routing = rebuild(raw, application, environment)
        # Just started, Traefik answers before it has loaded its files.
        if routing is None and self._path(application, environment).exists():
            raise _NotYet("Traefik has not loaded the routing that was written for it")
        if faults := _faults(raw, application, environment):
            raise _NotYet(f"Traefik refuses part of the routing: {faults}")
        return routing

    def _confirm(self, routing: Routing, generation: str) -> None:
        for entrypoint in (self.web, self.internal):
            marker = {"Host": _marker(generation)}
            status = self._get(entrypoint + "/", marker).status_code
            if status != SERVED:
                raise _NotYet(self._explain(routing, entrypoint, status))
        seen = self._seen(routing.application, routing.environment)
        if seen != routing.canonical():
            raise _NotYet(f"Traefik serves {_shares(seen)} instead of {_shares(routing)}")

    def _explain(self, routing: Routing, entrypoint: str, status: int) -> str:
        seen = rebuild(self._raw(), routing.application, routing.environment)
        return (
            f"{entrypoint} does not serve it yet (marker answered {status}, not {SERVED}); "
            f"Traefik has {_shares(seen)}, wanted {_shares(routing)}; a file in "
            f"{self.dynamic} that it cannot parse stops it from taking any change"
        )

    def _gone(self, application: str, environment: str) -> None:
        marker, raw = _name(application, environment), self._raw()
        left = [n for kind in ("routers", "services") for n in _mine(raw.get(kind), marker)]
        if left:
            raise _NotYet(f"Traefik still has {', '.join(sorted(left)[:5])}")

    def _counted(self, application: str, environment: str) -> Mapping[str, Counts]:
        routing = self._seen(application, environment)
        if routing is None:
            return {}
        samples = self._samples()
        witness = _name(application, environment, "", "witness")
        if witness not in {_service(s) for s in samples if s.name == REQUESTS}:
            self._get(self.internal + WITNESS_PATH, {"Host": routing.host})
            raise _NotYet(f"{self.metrics} lacks {REQUESTS} of a service that was just asked")
        by_service = tally(samples)
        return {
            backend.workload: by_service.get(
                _counted_service(application, environment, route, backend.workload), Counts()
            )
            for route in routing.routes
            for backend in route.backends
        }

    def _samples(self) -> list[Sample]:
        answer = self._get(self.metrics)
        kind = answer.headers.get("content-type", "")
        if answer.status_code != 200 or not kind.startswith("text/plain"):
            raise _NotYet(
                f"{self.metrics} answered {answer.status_code} with {kind or 'no content type'}: "
                f"{answer.text[:200]!r}"
            )
        if not answer.text.endswith("\n"):
            raise _NotYet(f"{self.metrics} answered with a text that breaks off")
        try:
            samples = [
                sample
                for family in text_string_to_metric_families(answer.text)
                for sample in family.samples
            ]
        except ValueError as error:
            raise _NotYet(f"{self.metrics} did not answer in Prometheus' format: {error}") from None
        _check_whole(samples, self.metrics)
        return samples

    def _raw(self) -> Json:
        answer = self._get(f"{self.api}/api/rawdata")
        if answer.status_code != 200:
            raise _NotYet(f"{answer.url} answered {answer.status_code}: {answer.text[:200]!r}")
        try:
            raw = answer.json()
        except ValueError:
            raise _NotYet(f"{answer.url} did not answer JSON: {answer.text[:200]!r}") from None
        if not isinstance(raw, dict) or not isinstance(raw.get("routers"), dict):
            raise _NotYet(f"{answer.url} is not Traefik's API: {answer.text[:200]!r}")
        return raw

    def _get(self, url: str, headers: Mapping[str, str] | None = None) -> httpx.Response:
        return self._http.get(url, headers=headers)

    def _until(self, look: Callable[[], T], tried: str, state: str = "") -> T:
        """Look again until it succeeds; Traefik being restarted is an everyday event."""
        end = time.monotonic() + self.deadline_seconds
        while True:
            try:
                return look()
            except (_NotYet, httpx.HTTPError) as error:
                if time.monotonic() >= end:
                    seen = str(error) or type(error).__name__
                    raise Failed(
                        "SLP014",
                        f"tried to {tried} for {self.deadline_seconds:g} s and saw: {seen}",
                        help=f"{state}; {HELP}" if state else HELP,
                        where=self.api,
                    ) from error
            time.sleep(POLL_SECONDS)

    def _path(self, application: str, environment: str) -> Path:
        return self.dynamic / f"{_name(application, environment)}.yml"


# Names and addresses

WITNESS_PATH = "/api/version"


def private_path(application: str, environment: str, workload: str) -> str:
    """Path prefix of one backend on the private entrypoint."""
    return f"/{application}/{environment}/{workload}"


def private_host(workload: str, host: str) -> str:
    """Host name of one backend on the public entrypoint, for a tester's browser.

    A workload name that is no DNS label gets a short hash, so that two never share a name.
    """
    if re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", workload):
        return f"{workload}.{host}"
    digest = hashlib.sha256(workload.encode()).hexdigest()[:8]
    return f"{workload.replace('.', '-')[:54].rstrip('-')}-{digest}.{host}"


def _marker(generation: str) -> str:
    return f"{generation}.{MARKER_DOMAIN}"


def _name(*parts: str) -> str:
    return SEPARATOR.join(parts)


def _mine(things: Mapping[str, Any] | None, marker: str) -> dict[str, Any]:
    """Traefik's things of one application and environment, without their ``@file``."""
    found = {}
    for full, thing in (things or {}).items():
        name = full.removesuffix("@file")
        if name != full and (name == marker or name.startswith(marker + SEPARATOR)):
            found[name] = thing
    return found


# From a routing to Traefik's configuration


def render(routing: Routing, api: str) -> tuple[Json, str]:
    """Traefik's dynamic configuration of a routing, and the generation that marks it."""
    me = _name(routing.application, routing.environment)
    routers: Json = {}
    services: Json = {}
    for route in routing.canonical().routes:
        _add_public(routers, services, routing, route)
        for backend in route.backends:
            _add_backend(routers, services, routing, route, backend)
    witness = _name(me, "", "witness")
    services[witness] = {"loadBalancer": {"servers": [{"url": api}]}}
    routers[witness] = {
        "entryPoints": ["internal"],
        "rule": f"{_host_rule(routing)} && Path({_quote(WITNESS_PATH)})",
        "service": witness,
    }
    http: Json = {
        "routers": routers,
        "services": services,
        "middlewares": _middlewares(routing),
        "serversTransports": {me: TRANSPORT},
    }
    generation = hashlib.sha256(_dump(http).encode()).hexdigest()[:16]
    routers[me] = {
        "entryPoints": ["web", "internal"],
        "rule": f"Host({_quote(_marker(generation))})",
        "service": "noop@internal",
    }
    return {"http": http}, generation


def _add_public(routers: Json, services: Json, routing: Routing, route: Route) -> None:
    me = _name(routing.application, routing.environment)
    service = _name(me, route.service)
    serving = [backend for backend in route.backends if route.weights.get(backend.workload)]
    weighted: Json = {
        # None with weight 0: one that is up while the others are down hangs Traefik 3.7, which
        # looks for ever, with the balancer's lock in its hand, for one that is up and has a weight.
        "services": [
            {"name": _name(service, backend.workload), "weight": route.weights[backend.workload]}
            for backend in serving
        ]
    }
    if serving and all(backend.ready for backend in serving):
        weighted["healthCheck"] = {}
    services[service] = {"weighted": weighted}
    if route.mirror:
        services[_name(service, "", "mirror")] = _mirroring(service, route)
    for index, path in enumerate(route.paths):
        name = _name(service, str(index))
        public = {
            "entryPoints": ["web"],
            "rule": f"{_host_rule(routing)} && {_path_rule(path)}",
            "service": service,
            "priority": _priority(path),
            "middlewares": [_name(me, "replay"), _name(me, "redial")],
        }
        routers[name] = public
        if route.mirror:
            routers[_name(name, "mirror")] = public | {
                "rule": f'{public["rule"]} && Method("GET")',
                "service": _name(service, "", "mirror"),
                "priority": _priority(path, MIRRORED),
            }
        if route.testing:
            # Not the service that is counted: testers are no users.
            private = _private(routing.application, routing.environment, route,
                               route.testing.workload)  # fmt: skip
            routers[_name(name, "testing")] = public | {
                "rule": f"{public['rule']} && {_testing_rule(route.testing)}",
                "service": private,
                "priority": _priority(path, TESTING),
            }


PLAIN, MIRRORED, TESTING = range(3)


def _priority(path: str, kind: int = PLAIN) -> int:
    """Longer paths first; for the same path testers, then what is copied, then the rest."""
    return 3 * (10 + len(path)) + kind


def _mirroring(service: str, route: Route) -> Json:
    return {
        "mirroring": {
            "service": service,
            "mirrorBody": False,
            "mirrors": [
                {"name": _name(service, workload), "percent": percent}
                for workload, percent in route.mirror.items()
            ],
        }
    }


def _testing_rule(testing: Testing) -> str:
    if testing.carrier == "header":
        return f"Header({_quote(testing.name)}, {_quote(testing.value)})"
    # Names and values hold letters, digits, dashes and underscores: nothing to escape.
    return f'HeaderRegexp("Cookie", {_quote(_cookie(testing.name, testing.value))})'


def _cookie(name: str, value: str) -> str:
    return f"(^|; *){name}={value}(;|$)"


def _add_backend(
    routers: Json, services: Json, routing: Routing, route: Route, backend: Backend
) -> None:
    me = _name(routing.application, routing.environment)
    balancer = _load_balancer(me, backend)
    services[_name(me, route.service, backend.workload)] = balancer
    private = _private(routing.application, routing.environment, route, backend.workload)
    services[private] = balancer
    prefix = private_path(routing.application, routing.environment, backend.workload)
    router = _name(me, route.service, backend.workload, PRIVATE)
    retry = [_name(me, "replay"), _name(me, "redial")]
    routers[router] = {
        "entryPoints": ["internal"],
        "rule": _path_rule(prefix),
        "service": private,
        "priority": 10 + len(prefix),
        "middlewares": [_name(me, "strip", backend.workload), *retry],
    }
    if route.paths:
        routers[_name(router, "host")] = {
            "entryPoints": ["web"],
            "rule": f"Host({_quote(private_host(backend.workload, routing.host))})",
            "service": private,
            "middlewares": retry,
        }


def _load_balancer(me: str, backend: Backend) -> Json:
    balancer: Json = {
        "servers": [{"url": f"http://{address}"} for address in backend.addresses],
        "serversTransport": me,
    }
    if backend.ready:
        balancer["healthCheck"] = {"path": backend.ready, **HEALTH_CHECK}
    return {"loadBalancer": balancer}


def _middlewares(routing: Routing) -> Json:
    me = _name(routing.application, routing.environment)
    strips = {
        _name(me, "strip", backend.workload): {
            "stripPrefix": {
                "prefixes": [
                    private_path(routing.application, routing.environment, backend.workload)
                ]
            }
        }
        for route in routing.routes
        for backend in route.backends
    }
    return {
        _name(me, "replay"): {"retry": REPLAY},
        _name(me, "redial"): {"retry": REDIAL},
        **strips,
    }


def _path_rule(path: str) -> str:
    """Whole segments only: ``/api`` takes ``/api`` and ``/api/x``, never ``/apix``."""
    if path.endswith("/"):
        return f"PathPrefix({_quote(path)})"
    return f"(Path({_quote(path)}) || PathPrefix({_quote(path + '/')}))"


def _host_rule(routing: Routing) -> str:
    """The environment's own name first: that is how it is found again."""
    names = [f"Host({_quote(name)})" for name in (routing.host, *routing.canonical().also)]
    return names[0] if len(names) == 1 else f"({' || '.join(names)})"


def _quote(text: str) -> str:
    """A string literal of Traefik's rule language, which is Go's."""
    return json.dumps(text, ensure_ascii=False).replace("{", "\\u007b")


def _dump(config: Json) -> str:
    # Traefik runs its files through Go templates; with this layout two braces in a row can only
    # be inside a string.
    text = json.dumps(config, indent=1, sort_keys=True, ensure_ascii=False)
    return text.replace("{{", "{\\u007b") + "\n"


# From Traefik's API to a routing


def rebuild(raw: Json, application: str, environment: str) -> Routing | None:
    """The routing that Traefik has, from ``/api/rawdata``; None if it has none."""
    me = _name(application, environment)
    routers, services = _mine(raw.get("routers"), me), _mine(raw.get("services"), me)
    witness = routers.get(_name(me, "", "witness"))
    if witness is None:
        return None
    routes = [
        _rebuild_route(name, services, routers)
        for name in services
        if name.startswith(me + SEPARATOR) and "weighted" in services[name]
    ]
    return Routing(
        application=application,
        environment=environment,
        host=_argument("Host", witness["rule"]),
        also=tuple(json.loads(name) for name in re.findall(_HOST, witness["rule"])[1:]),
        routes=tuple(routes),
    ).canonical()


def _rebuild_route(name: str, services: Json, routers: Json) -> Route:
    weights = {
        child["name"].removesuffix("@file").rsplit(SEPARATOR, 1)[1]: int(child.get("weight", 1))
        for child in services[name]["weighted"].get("services") or ()
    }
    return Route(
        service=name.rsplit(SEPARATOR, 1)[1],
        paths=tuple(
            _routed_path(router["rule"])
            for router in routers.values()
            if router.get("service", "").removesuffix("@file") == name
        ),
        backends=tuple(
            _rebuild_backend(workload, services.get(_name(name, workload), {}))
            for workload in {**weights, **_workloads(name, services)}
        ),
        weights={w: n for w, n in weights.items() if n},
        mirror=_rebuild_mirror(services.get(_name(name, "", "mirror"), {})),
        testing=_rebuild_testing(name, routers),
    )


def _workloads(name: str, services: Json) -> dict[str, None]:
    """The service's workloads, also those that get nothing: each has a balancer under its name."""
    names = (n.removeprefix(name + SEPARATOR) for n in services if n.startswith(name + SEPARATOR))
    return {n: None for n in names if n and SEPARATOR not in n}


def _rebuild_mirror(service: Json) -> dict[str, int]:
    return {
        copied["name"].removesuffix("@file").rsplit(SEPARATOR, 1)[1]: int(copied["percent"])
        for copied in service.get("mirroring", {}).get("mirrors") or ()
    }


def _rebuild_testing(name: str, routers: Json) -> Testing | None:
    router = next(
        (r for n, r in routers.items() if n.startswith(name + SEPARATOR)
         and n.endswith(SEPARATOR + "testing")), None,
    )  # fmt: skip
    if router is None:
        return None
    workload = router["service"].removesuffix("@file").split(SEPARATOR)[3]
    first, second = _arguments("HeaderRegexp" if "HeaderRegexp" in router["rule"] else "Header",
                               router["rule"])  # fmt: skip
    if "HeaderRegexp" not in router["rule"]:
        return Testing(carrier="header", name=first, value=second, workload=workload)
    cookie, _, value = second.removeprefix("(^|; *)").removesuffix("(;|$)").partition("=")
    return Testing(carrier="cookie", name=cookie, value=value, workload=workload)


def _rebuild_backend(workload: str, service: Json) -> Backend:
    balancer = service.get("loadBalancer", {})
    return Backend(
        workload=workload,
        addresses=tuple(urlsplit(s["url"]).netloc for s in balancer.get("servers") or ()),
        ready=(balancer.get("healthCheck") or {}).get("path"),
    )


def _routed_path(rule: str) -> str:
    exact = re.search(r"\bPath\(", rule)
    return _argument("Path" if exact else "PathPrefix", rule)


_HOST = r'\bHost\(("(?:[^"\\]|\\.)*")\)'
_TEXT = r'("(?:[^"\\]|\\.)*")'


def _argument(matcher: str, rule: str) -> str:
    found = re.search(rf"\b{matcher}\({_TEXT}", rule)
    if not found:
        raise _NotYet(f"Traefik has a rule that is not ours: {rule}")
    return str(json.loads(found[1]))


def _arguments(matcher: str, rule: str) -> tuple[str, str]:
    found = re.search(rf"\b{matcher}\({_TEXT}, {_TEXT}\)", rule)
    if not found:
        raise _NotYet(f"Traefik has a rule that is not ours: {rule}")
    return str(json.loads(found[1])), str(json.loads(found[2]))


def _faults(raw: Json, application: str, environment: str) -> str:
    """What Traefik says of the parts that it does not serve as they are written."""
    me = _name(application, environment)
    return "; ".join(
        f"{name}: {', '.join(thing.get('error') or [thing.get('status', 'no status')])}"
        for kind in ("routers", "services", "middlewares")
        for name, thing in sorted(_mine(raw.get(kind), me).items())
        if thing.get("error") or thing.get("status") != "enabled"
    )


def _shares(routing: Routing | None) -> str:
    if routing is None:
        return "nothing"
    return ", ".join(
        f"{route.service}: "
        + " + ".join(
            f"{route.weights.get(backend.workload, 0)}% {backend.workload} "
            f"({len(backend.addresses)} replicas)"
            for backend in route.backends
        )
        for route in routing.canonical().routes
    )


# Counting

REQUESTS = "traefik_service_requests_total"
BUCKET = "traefik_service_request_duration_seconds_bucket"
DURATIONS = "traefik_service_request_duration_seconds_count"
_LABELS = ("service", "code", "method", "protocol")


def tally(samples: list[Sample]) -> dict[str, Counts]:
    """Counts by Traefik's service, added up over codes, methods and protocols."""
    requests: dict[str, int] = defaultdict(int)
    errors: dict[str, int] = defaultdict(int)
    buckets: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for sample in samples:
        if sample.name == REQUESTS:
            requests[_service(sample)] += int(sample.value)
            if sample.labels["code"].startswith("5"):
                errors[_service(sample)] += int(sample.value)
        elif sample.name == BUCKET:
            buckets[_service(sample)][sample.labels["le"]] += int(sample.value)
    return {
        name: Counts(requests=total, errors=errors[name], buckets=dict(buckets[name]))
        for name, total in requests.items()
    }


def _check_whole(samples: list[Sample], where: str) -> None:
    """Every series has its twin in the other family; one without means a part is missing."""
    counted = {_key(s) for s in samples if s.name == REQUESTS}
    timed = {_key(s) for s in samples if s.name == DURATIONS}
    if apart := counted ^ timed:
        service, code, *_ = min(apart)
        raise _NotYet(
            f"{where} is incomplete: {len(apart)} series are in only one of {REQUESTS} and "
            f"{DURATIONS}, for example code {code} of {service}"
        )


def _counted_service(application: str, environment: str, route: Route, workload: str) -> str:
    return _name(application, environment, route.service, workload)


def _private(application: str, environment: str, route: Route, workload: str) -> str:
    """Traefik's service behind the private address; of a service without public paths, the
    counted one."""
    counted = _counted_service(application, environment, route, workload)
    return _name(counted, PRIVATE) if route.paths else counted


def _service(sample: Sample) -> str:
    return sample.labels["service"].removesuffix("@file")


def _key(sample: Sample) -> tuple[str, ...]:
    return tuple(sample.labels.get(label, "") for label in _LABELS)


# The file


@contextlib.contextmanager
def _disk(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        raise Failed(
            "SLP015" if full else "SLP014",
            f"tried to change the edge's file and saw: {error.strerror or error}",
            help="free some space and try again" if full else HELP,
            where=str(path),
        ) from error


def _replace(path: Path, text: str) -> None:
    """Write a file so that a reader, or a machine that loses power, sees old or new, never half.

    The draft lies beside the watched directory, on the same file system: inside it, the draft
    would wake Traefik first and the real change would wait for the next 50 ms of its throttle.
    A draft that a killed process left behind goes with the next write.
    """
    with _disk(path):
        drafts = path.parent.with_name(f"{path.parent.name}.drafts")
        for directory in (path.parent, drafts):
            directory.mkdir(parents=True, exist_ok=True)
        for stale in drafts.glob(f"{path.name}.*"):
            stale.unlink(missing_ok=True)
        handle, name = tempfile.mkstemp(prefix=f"{path.name}.", dir=drafts)
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as draft:
                draft.write(text)
                draft.flush()
                os.fsync(draft.fileno())
            os.replace(name, path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
        _sync(path.parent)


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
