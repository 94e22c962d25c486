"""Prometheus metrics of one process."""

from __future__ import annotations

import time

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.5, 5.0)


class Metrics:
    """Every metric of the service, on a registry of its own."""

    def __init__(self, version: str) -> None:
        to = self.registry = CollectorRegistry()
        labels = ("method", "route", "status")
        self.requests = Counter("http_requests_total", "Requests answered", labels, registry=to)
        self.seconds = Histogram(
            "http_request_duration_seconds", "Time taken", ("route",), buckets=_BUCKETS, registry=to
        )
        self.in_flight = Gauge("http_requests_in_flight", "Being answered", registry=to)
        self.shed = Counter("http_requests_shed_total", "Refused", ("reason",), registry=to)
        self.cache = Counter("cache_requests_total", "Look-ups", ("store", "result"), registry=to)
        self.flagged = Counter(
            "feature_flag_requests_total", "Requests that met a feature flag, by its variant",
            ("flag", "variant", "code"), registry=to,
        )  # fmt: skip
        self.flagged_seconds = Histogram(
            "feature_flag_request_duration_seconds", "Time taken by requests that met a flag",
            ("flag", "variant"), buckets=_BUCKETS, registry=to,
        )  # fmt: skip
        self.started = Gauge("process_start_time_seconds", "Since the epoch", registry=to)
        self.started.set(time.time())
        self.meals = Counter("meals_logged_total", "Meals logged", registry=to)
        self.pool = Gauge("database_pool", "Database connections", ("state",), registry=to)
        Gauge("build_info", "What is running", ("version",), registry=to).labels(version).set(1)

    def render(self) -> bytes:
        """The text exposition."""
        return generate_latest(self.registry)
