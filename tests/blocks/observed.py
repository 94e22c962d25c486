"""Worlds in which users ask workloads something, one for each source of counts."""

from __future__ import annotations

import http.server
import itertools
import json
import subprocess
import threading
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol

import boto3
import httpx
from botocore.exceptions import EndpointConnectionError

from blocks.cloudwatch import CloudWatchMetrics
from blocks.metrics import EdgeMetrics, Meter, Metrics
from blocks.prometheus import PrometheusMetrics
from domain.observe import Templates
from domain.routing import Backend, Route, Routing
from tests.blocks.cloudwatch_fake import MINUTE, FakeCloudWatch, group_of
from tests.blocks.conftest import Server, Traefik, free_port, wait_for
from tests.blocks.prometheus_fake import SCRAPE, Exposed, FakeClock, FakePrometheus

APPLICATION, ENVIRONMENT = "shop", "production"
# One begins with the other, and one is the other as a regular expression.
WORKLOADS = ("api.1", "api-1", "api.10")


def templates(prefix: str) -> Templates:
    """Selectors of what ``Exposed`` exposes."""
    return Templates(
        requests=f'{prefix}_requests_total{{service=~"$workload"}}',
        errors=f'{prefix}_requests_total{{service="$workload",code=~"5.."}}',
        buckets=f'{prefix}_seconds_bucket{{service="$workload"}}',
        witness=f"{prefix}_build_info",
    )


TEMPLATES = templates("http")


class World(Protocol):
    """What a source has to be put into to be tried."""

    metrics: Metrics
    has_buckets: bool

    def begin(self) -> None:
        """After a meter was opened: what is served from now on counts."""

    def serve(self, workload: str, status: int = 200, seconds: float = 0.0) -> None: ...

    def settle(self) -> None:
        """What was served can be read."""

    def restart(self) -> None:
        """The counters start again from zero, where they live in a process."""

    def blind(self) -> None: ...

    def see(self) -> None: ...

    def close(self) -> None: ...


def open_meter(world: World, *workloads: str) -> Meter:
    meter = world.metrics.open(APPLICATION, ENVIRONMENT, workloads or WORKLOADS)
    world.begin()
    return meter


class EdgeWorld:
    """A real Traefik; a request is sent to a workload by giving it all of the traffic."""

    has_buckets = True

    def __init__(self, traefik: Traefik, server: Server) -> None:
        self._traefik, self._server = traefik, server
        self.edge = traefik.edge(deadline_seconds=2)
        self.metrics: Metrics = EdgeMetrics(self.edge)
        self._http = httpx.Client(trust_env=False)
        self.route(WORKLOADS[0])

    def route(self, workload: str, names: tuple[str, ...] = WORKLOADS) -> Routing:
        backends = tuple(Backend(workload=w, addresses=(self._server.address,)) for w in names)
        route = Route(service="api", paths=("/",), backends=backends, weights={workload: 100})
        routing = Routing(
            application=APPLICATION, environment=ENVIRONMENT, host="shop.test", routes=(route,)
        )
        self.edge.write(routing)
        return routing

    def begin(self) -> None:
        """At once."""

    def serve(self, workload: str, status: int = 200, seconds: float = 0.0) -> None:
        base, headers = self.edge.request_target(self.route(workload))
        path = f"/slow/{seconds}" if seconds else f"/status/{status}"
        assert self._http.get(base + path, headers=headers).status_code == status

    def settle(self) -> None:
        """At once."""

    def restart(self) -> None:
        self.blind()
        self.see()

    def blind(self) -> None:
        self._traefik.kill()

    def see(self) -> None:
        self._traefik.start()
        self.edge.read(APPLICATION, ENVIRONMENT)

    def close(self) -> None:
        self._http.close()


class FakePrometheusWorld:
    """A strict fake of the query API, with a clock of its own."""

    has_buckets = True

    def __init__(self) -> None:
        self.clock, self.exposed = FakeClock(), Exposed()
        self.server = FakePrometheus(self.clock)
        self.metrics: Metrics = self.source()
        self._up = True
        self.settle()

    def source(self, templates: Templates = TEMPLATES, **more: Any) -> PrometheusMetrics:
        return PrometheusMetrics(
            self.server.url,
            templates,
            stale_after=timedelta(minutes=2),
            clock=self.clock,
            **more,
        )

    def begin(self) -> None:
        """At once."""

    def serve(self, workload: str, status: int = 200, seconds: float = 0.0) -> None:
        self.exposed.serve(workload, status, seconds)

    def settle(self) -> None:
        self.clock.advance(SCRAPE)
        self.server.scrape(self.exposed, up=self._up)

    def restart(self) -> None:
        self.exposed.restart()

    def blind(self) -> None:
        self._up = False
        self.settle()

    def see(self) -> None:
        self._up = True
        self.settle()

    def close(self) -> None:
        self.server.close()


class RealPrometheus:
    """A real Prometheus and the exporter that it scrapes. It takes 5 s to find its first target."""

    def __init__(self, binary: str, home: Path) -> None:
        self.exposed, self.up = Exposed(), True
        self._exporter, self._thread = self._serve_metrics()
        self.url = f"http://127.0.0.1:{free_port()}"
        config = home / "prometheus.json"
        config.write_text(json.dumps(self._config()))
        self._http = httpx.Client(trust_env=False)
        self._log = (home / "log").open("wb")
        self._process = subprocess.Popen(
            [
                binary,
                f"--config.file={config}",
                f"--storage.tsdb.path={home / 'data'}",
                f"--web.listen-address={self.url.removeprefix('http://')}",
            ],
            stdout=self._log,
            stderr=self._log,
        )

    def _config(self) -> Mapping[str, Any]:
        target = f"127.0.0.1:{self._exporter.server_address[1]}"
        job = {"job_name": "edge", "static_configs": [{"targets": [target]}]}
        timing = {"scrape_interval": "100ms", "scrape_timeout": "100ms"}
        return {"global": timing, "scrape_configs": [job]}

    def _serve_metrics(self) -> tuple[http.server.ThreadingHTTPServer, threading.Thread]:
        part = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                text = part.exposed.text().encode()
                self.send_response(200 if part.up else 503)
                self.send_header("content-type", "text/plain; version=0.0.4")
                self.end_headers()
                self.wfile.write(text)

            def log_message(self, *_: object) -> None:
                """Quiet."""

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        return server, thread

    def wait(self, query: str) -> None:
        def look() -> bool:
            assert self._process.poll() is None, f"Prometheus ended: {self._log.name}"
            try:
                answer = self._http.get(f"{self.url}/api/v1/query", params={"query": query})
                return bool(answer.json()["data"]["result"])
            except (httpx.HTTPError, ValueError, KeyError):
                return False

        wait_for(look, f"answer of Prometheus to {query}")

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(10)
        self._exporter.shutdown()
        self._thread.join()
        self._exporter.server_close()
        self._http.close()
        self._log.close()


class RealPrometheusWorld:
    """The real Prometheus, with metrics whose names no other test uses."""

    has_buckets = True
    _numbers = itertools.count(1)

    def __init__(self, part: RealPrometheus) -> None:
        prefix = f"test{next(self._numbers)}"
        self.part, self.exposed, self._marker = part, Exposed(prefix), f"{prefix}_marker"
        part.exposed = self.exposed
        self.metrics: Metrics = PrometheusMetrics(
            part.url, templates(prefix), stale_after=timedelta(seconds=30)
        )
        self.settle()

    def begin(self) -> None:
        """At once."""

    def serve(self, workload: str, status: int = 200, seconds: float = 0.0) -> None:
        self.exposed.serve(workload, status, seconds)

    def settle(self) -> None:
        """One scrape is entered as a whole, so the marker stands for all of it."""
        self.exposed.marker += 1
        self.part.wait(f"{self._marker} == {self.exposed.marker}")

    def restart(self) -> None:
        self.exposed.restart()

    def blind(self) -> None:
        self.part.up = False
        self.part.wait("up == 0")

    def see(self) -> None:
        self.part.up = True
        self.part.wait("up == 1")

    def close(self) -> None:
        self.see()


class FakeCloudWatchWorld:
    """A strict fake of GetMetricData, filled as a load balancer does."""

    has_buckets = True

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.server = FakeCloudWatch()
        self.metrics: Metrics = self.source(self.server)
        self.settle()

    def source(self, client: Any, **more: Any) -> CloudWatchMetrics:
        return CloudWatchMetrics(
            client,
            lambda application, environment, workload: group_of(workload),
            stale_after=timedelta(minutes=6),
            clock=self.clock,
            monotonic=self.clock.monotonic,
            **more,
        )

    def put(self, metric: str, workload: str, *values: float) -> None:
        self.server.put(metric, workload, self.clock.now, *values)

    def begin(self) -> None:
        self.minutes(1)

    def serve(self, workload: str, status: int = 200, seconds: float = 0.0) -> None:
        self.put("RequestCount", workload, 1)
        self.put("TargetResponseTime", workload, seconds)
        if status >= 500:
            self.put("HTTPCode_Target_5XX_Count", workload, 1)

    def settle(self) -> None:
        self.minutes(3)

    def minutes(self, count: int) -> None:
        """Every minute that passes gets its witnesses."""
        for _ in range(count):
            for workload in WORKLOADS:
                self.put("HealthyHostCount", workload, 2)
            self.clock.advance(MINUTE)

    def restart(self) -> None:
        """A load balancer's metrics have no process of their own."""

    def blind(self) -> None:
        self.server.error = "InternalServiceFault"
        self.settle()

    def see(self) -> None:
        self.server.error = None
        self.clock.advance(timedelta(seconds=10))

    def close(self) -> None:
        """Nothing is open."""


class MotoCloudWatchWorld(FakeCloudWatchWorld):
    """boto3 and its protocol in earnest, against moto, which fails on trimmed counts."""

    has_buckets = False

    def __init__(self) -> None:
        client: Any = boto3.client  # the stubs know only the services that are installed
        self._client = client("cloudwatch", region_name="eu-central-1")
        self._blind = False
        self._client.meta.events.register("before-call.cloudwatch", self._fail)
        super().__init__()
        self.metrics = self.source(self._client, bounds_seconds=())

    def _fail(self, **_: object) -> None:
        if self._blind:
            raise EndpointConnectionError(endpoint_url="https://monitoring.test")

    def put(self, metric: str, workload: str, *values: float) -> None:
        group = group_of(workload)
        dimensions = {"TargetGroup": group.target_group, "LoadBalancer": group.load_balancer}
        blind, self._blind = self._blind, False
        self._client.put_metric_data(
            Namespace="AWS/ApplicationELB",
            MetricData=[
                {
                    "MetricName": metric,
                    "Dimensions": [{"Name": n, "Value": v} for n, v in dimensions.items()],
                    "Timestamp": self.clock.now,
                    "Value": value,
                }
                for value in values
            ],
        )
        self._blind = blind

    def blind(self) -> None:
        self._blind = True
        self.settle()

    def see(self) -> None:
        self._blind = False
        self.clock.advance(timedelta(seconds=10))
