"""CloudWatchMetrics: the ``Metrics`` of an Application Load Balancer, read from CloudWatch.

What the API offers, and what is made of it:

- Metrics of target groups come in whole minutes and are complete two or three minutes later. A
  meter therefore counts whole minutes, from the first that begins after it was opened, and up to
  the newest that is old enough. Every reading asks for all of them again: a minute that got late
  data is corrected, and there is no state that could be wrong.
- ``RequestCount`` and the counts of errors are published only where they are not zero. So that
  silence can be told from zero, each minute needs a witness: ``HealthyHostCount``, which is
  published every minute while targets are registered. Counting ends before the first minute
  without one.
- Errors are ``HTTPCode_Target_5XX_Count`` and ``TargetConnectionErrorCount``: a version that
  refuses connections sends no status at all.
- Latency is ``TargetResponseTime`` with the statistic ``TC(:bound)`` (trimmed count: how many
  values are at most the bound). The bucket ``+Inf`` holds all requests, so one that was never
  answered counts as slower than every bound.

Sources: the pages "CloudWatch metrics for your Application Load Balancer" and "CloudWatch
statistics definitions" of docs.aws.amazon.com.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError

from blocks.metrics import Clock, Meter, Reading, utc_now
from domain.counting import TOP
from domain.errors import Failed
from domain.routing import Counts

NAMESPACE = "AWS/ApplicationELB"
PERIOD = timedelta(minutes=1)
SETTLE = timedelta(minutes=2)
"""Age at which a minute is taken to be complete."""

ASK_AGAIN = timedelta(seconds=10)
"""Readings that are closer together get the same answer: CloudWatch has nothing new for them,
and bills every metric that is asked for."""

BOUNDS_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1, 2.5, 5, 10)
TAGS = ("slipway:application", "slipway:environment", "slipway:workload")
QUERIES_PER_CALL = 500  # the API's limit
MAX_PAGES = 100

_WITNESS, _REQUESTS, _ERRORS, _REFUSED = "witness", "requests", "errors", "refused"
_REFUSALS = frozenset(
    {"AccessDenied", "AccessDeniedException", "UnauthorizedOperation", "InvalidClientTokenId",
     "UnrecognizedClientException", "ExpiredToken", "ExpiredTokenException",
     "SignatureDoesNotMatch", "MissingAuthenticationToken"}
)  # fmt: skip


@dataclass(frozen=True)
class TargetGroup:
    """The two dimensions of a target group's metrics, as CloudWatch spells them.

    Attributes:
        target_group: ``targetgroup/name/id``, the end of its ARN.
        load_balancer: ``app/name/id``.
    """

    target_group: str
    load_balancer: str


class Balancers:
    """Finds a workload's target group by the tags ``slipway:application``, ``:environment`` and
    ``:workload``: names of target groups are too short for those of workloads.

    Args:
        tagging: boto3 client of ``resourcegroupstaggingapi``.
        elbv2: boto3 client of ``elbv2``.
    """

    def __init__(self, tagging: Any, elbv2: Any) -> None:
        self._tagging, self._elbv2 = tagging, elbv2

    def find(self, application: str, environment: str, workload: str) -> TargetGroup:
        """Raises Failed SLP014 unless exactly one target group of one load balancer is tagged."""
        wanted = dict(zip(TAGS, (application, environment, workload), strict=True))
        with_tags = ", ".join(f"{key}={value}" for key, value in wanted.items())
        arns = list(self._arns(wanted))
        if len(arns) != 1:
            raise _failed(
                f"{len(arns)} target groups have the tags {with_tags}",
                help="tag exactly one target group for each version that is compared",
            )
        groups = _ask(partial(self._elbv2.describe_target_groups, TargetGroupArns=arns))
        balancers = groups["TargetGroups"][0].get("LoadBalancerArns") or []
        if len(balancers) != 1:
            raise _failed(
                f"the target group of {workload} belongs to {len(balancers)} load balancers",
                help="attach the target group to one load balancer; without one it counts nothing",
            )
        return TargetGroup(
            target_group=arns[0].rpartition(":")[2],
            load_balancer=balancers[0].rpartition(":loadbalancer/")[2],
        )

    def _arns(self, wanted: Mapping[str, str]) -> Iterator[str]:
        filters = [{"Key": key, "Values": [value]} for key, value in wanted.items()]
        token = ""
        for _ in range(MAX_PAGES):
            page = _ask(
                partial(
                    self._tagging.get_resources,
                    TagFilters=filters,
                    ResourceTypeFilters=["elasticloadbalancing:targetgroup"],
                    PaginationToken=token,
                )
            )
            yield from (found["ResourceARN"] for found in page["ResourceTagMappingList"])
            if not (token := page.get("PaginationToken", "")):
                return
        raise _failed(f"the list of tagged target groups had still more pages after {MAX_PAGES}")


class CloudWatchMetrics:
    """Counts by an Application Load Balancer's metrics.

    Args:
        client: boto3 client of ``cloudwatch``.
        find: application, environment and workload to its target group, as ``Balancers.find``.
        stale_after: age at which the newest counted minute is no data; see
            ``SHORTEST_OF_CLOUDWATCH``.
        bounds_seconds: upper bounds of the buckets. Each is one more metric to pay for.
    """

    def __init__(
        self,
        client: Any,
        find: Callable[[str, str, str], TargetGroup],
        *,
        stale_after: timedelta,
        bounds_seconds: Sequence[float] = BOUNDS_SECONDS,
        settle: timedelta = SETTLE,
        clock: Clock = utc_now,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._client, self._find, self._bounds = client, find, tuple(bounds_seconds)
        self._stale_after, self._settle = stale_after, settle
        self._clock, self._monotonic = clock, monotonic

    def open(self, application: str, environment: str, workloads: Sequence[str]) -> Meter:
        groups = {w: self._find(application, environment, w) for w in workloads}
        return _CloudWatchMeter(self, groups)

    # What the meter needs of it

    def now(self) -> datetime:
        return self._clock().astimezone(UTC)

    def is_due(self, last: float | None) -> bool:
        return last is None or self._monotonic() - last >= ASK_AGAIN.total_seconds()

    def moment(self) -> float:
        return self._monotonic()

    def last_complete(self, now: datetime) -> datetime:
        """End of the newest minute that is old enough."""
        return _minute(now - self._settle)

    def refuse_stale(self, at: datetime, now: datetime) -> None:
        if now - at > self._stale_after:
            raise Failed(
                "SLP090",
                f"the newest minute that CloudWatch has whole ended {at:%Y-%m-%d %H:%M} UTC, "
                f"{(now - at).total_seconds():.0f} s ago; older than "
                f"{self._stale_after.total_seconds():.0f} s is no data",
                help="HealthyHostCount must be published for every target group: it is while "
                "targets are registered; CloudWatch itself may be late",
                where="CloudWatch",
            )

    def ask(
        self, groups: Mapping[str, TargetGroup], start: datetime, end: datetime
    ) -> dict[str, dict[str, _Points]]:
        """Values by workload, by metric, by minute."""
        queries = [
            (workload, name, _query(f"q{number}_{index}", group, metric, statistic))
            for number, (workload, group) in enumerate(groups.items())
            for index, (name, metric, statistic) in enumerate(_metrics(self._bounds))
        ]
        found: dict[str, dict[str, _Points]] = {workload: {} for workload in groups}
        for first in range(0, len(queries), QUERIES_PER_CALL):
            part = queries[first : first + QUERIES_PER_CALL]
            answer = _Answer([query["Id"] for *_, query in part], start, end)
            self._fetch([query for *_, query in part], start, end, answer)
            for workload, name, query in part:
                found[workload][name] = answer.points(query["Id"])
        return found

    def counts(self, metrics: Mapping[str, _Points], until: datetime) -> Counts:
        def total(name: str) -> int:
            return round(math.fsum(v for at, v in metrics[name].items() if at < until))

        requests = total(_REQUESTS)
        # A connection that failed is tried again elsewhere, so both together can be more than all.
        errors = min(requests, total(_ERRORS) + total(_REFUSED))
        buckets: dict[str, int] = {}
        for bound in self._bounds:
            # Rounding inside CloudWatch's own histogram must not make a bucket less than the last.
            least = max(buckets.values(), default=0)
            buckets[f"{bound:g}"] = min(requests, max(least, total(f"le {bound:g}")))
        return Counts(requests=requests, errors=errors, buckets={**buckets, TOP: requests})

    def _fetch(
        self, queries: list[dict[str, Any]], start: datetime, end: datetime, answer: _Answer
    ) -> None:
        request = {
            "MetricDataQueries": queries,
            "StartTime": start,
            "EndTime": end,
            "ScanBy": "TimestampAscending",
        }
        tokens: set[str] = set()
        for _ in range(MAX_PAGES):
            page = _ask(partial(self._client.get_metric_data, **request))
            answer.add(page)
            token = page.get("NextToken")
            if not token:
                return answer.finish()
            if token in tokens:
                break
            tokens.add(token)
            request["NextToken"] = token
        raise _failed(f"its answer did not end after {len(tokens)} pages")


class _CloudWatchMeter:
    def __init__(self, source: CloudWatchMetrics, groups: Mapping[str, TargetGroup]) -> None:
        self._source, self._groups = source, groups
        self._start = _minute(source.now() + PERIOD - timedelta(microseconds=1))
        self._asked: float | None = None
        self._last = Reading(at=self._start, counts={w: Counts() for w in groups})
        # The last minutes show now that it can be read, and not first in the middle of a step.
        source.ask(groups, self._start - PERIOD * 5, self._start)

    def read(self) -> Reading:
        """Counts of whole minutes; ``at`` is the end of the last of them.

        Raises:
            Failed: see ``Meter.read``; SLP090 also when the metrics are late.
        """
        now = self._source.now()
        end = self._source.last_complete(now)
        if end > self._last.at and self._source.is_due(self._asked):
            self._last = self._look(end)
            self._asked = self._source.moment()
        self._source.refuse_stale(self._last.at, now)
        return self._last

    def _look(self, end: datetime) -> Reading:
        found = self._source.ask(self._groups, self._start, end)
        until = min(
            (_witnessed(m[_WITNESS], self._start, end) for m in found.values()), default=end
        )
        counts = {w: self._source.counts(m, until) for w, m in found.items()}
        for workload, now in counts.items():
            before = self._last.counts[workload]
            went_back = now.requests < before.requests or now.errors < before.errors
            if until < self._last.at or went_back:
                raise _failed(f"CloudWatch has less of {workload} than it had before")
        return Reading(at=until, counts=counts)


def _witnessed(witness: _Points, start: datetime, end: datetime) -> datetime:
    """End of the last minute up to which every minute has a witness."""
    while start < end and start in witness:
        start += PERIOD
    return start


# --- what is asked --------------------------------------------------------------------------


def _metrics(bounds: Sequence[float]) -> Iterator[tuple[str, str, str]]:
    """(our name, metric, statistic)."""
    yield _WITNESS, "HealthyHostCount", "SampleCount"
    yield _REQUESTS, "RequestCount", "Sum"
    yield _ERRORS, "HTTPCode_Target_5XX_Count", "Sum"
    yield _REFUSED, "TargetConnectionErrorCount", "Sum"
    for bound in bounds:
        yield f"le {bound:g}", "TargetResponseTime", f"TC(:{bound:g})"


def _query(identity: str, group: TargetGroup, metric: str, statistic: str) -> dict[str, Any]:
    dimensions = {"TargetGroup": group.target_group, "LoadBalancer": group.load_balancer}
    return {
        "Id": identity,
        "MetricStat": {
            "Metric": {
                "Namespace": NAMESPACE,
                "MetricName": metric,
                "Dimensions": [{"Name": n, "Value": v} for n, v in dimensions.items()],
            },
            "Period": int(PERIOD.total_seconds()),
            "Stat": statistic,
        },
        "ReturnData": True,
    }


def _minute(moment: datetime) -> datetime:
    return moment.replace(second=0, microsecond=0)


# --- what is answered -----------------------------------------------------------------------

_Points = dict[datetime, float]


@dataclass
class _Answer:
    """The pages of one question, put together; nothing counts until each metric is complete."""

    wanted: Sequence[str]
    start: datetime
    end: datetime
    _points: dict[str, _Points] = field(default_factory=dict)
    _status: dict[str, str] = field(default_factory=dict)

    def add(self, page: Mapping[str, Any]) -> None:
        if messages := page.get("Messages"):
            raise _failed(f"the answer may be incomplete: {_told(messages)}")
        for result in page.get("MetricDataResults", ()):
            self._add(result)

    def points(self, identity: str) -> _Points:
        return self._points.get(identity, {})

    def finish(self) -> None:
        """Raises Failed unless all of what was asked for was answered as complete."""
        for identity in self.wanted:
            status = self._status.get(identity, "no status at all")
            if status != "Complete":
                raise _failed(
                    f"CloudWatch answered {status} for one of {len(self.wanted)} metrics",
                    help="nothing was counted; try again in a moment",
                )

    def _add(self, result: Mapping[str, Any]) -> None:
        identity, status = result.get("Id", ""), result.get("StatusCode", "")
        if identity not in self.wanted:
            raise _failed(f"CloudWatch answered for {identity!r}, which was not asked for")
        if status == "Forbidden":
            raise _failed("CloudWatch answered Forbidden", code="SLP091", help=_PERMISSIONS)
        if messages := result.get("Messages"):
            raise _failed(f"a metric may be incomplete: {_told(messages)}")
        self._status[identity] = status
        points = self._points.setdefault(identity, {})
        times, values = result.get("Timestamps", ()), result.get("Values", ())
        if len(times) != len(values):
            raise _failed(f"CloudWatch answered {len(times)} times for {len(values)} values")
        for at, value in zip(times, values, strict=True):
            self._add_point(points, at.astimezone(UTC), value)

    def _add_point(self, points: _Points, at: datetime, value: Any) -> None:
        if not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
            raise _failed(f"CloudWatch counts {value!r} at {at:%H:%M:%S}, which is no count")
        if at != _minute(at) or not self.start <= at < self.end:
            raise _failed(f"CloudWatch answered for {at.isoformat()}, which was not asked for")
        if at in points and points[at] != value:
            raise _failed(f"CloudWatch answered twice for {at:%H:%M}, each time differently")
        points[at] = float(value)


_PERMISSIONS = (
    "allow cloudwatch:GetMetricData, tag:GetResources and elasticloadbalancing:"
    "DescribeTargetGroups, or correct the block that `observe.block` names"
)


def _told(messages: Sequence[Mapping[str, str]]) -> str:
    return "; ".join(f"{m.get('Code')}: {m.get('Value')}" for m in messages)[:300]


def _ask(call: Callable[[], Any]) -> Any:
    try:
        return call()
    except ClientError as error:
        code = error.response.get("Error", {}).get("Code", "no code")
        refused = code.rpartition(".")[2] in _REFUSALS
        raise _failed(
            f"AWS refused {error.operation_name}: {code}",
            code="SLP091" if refused else "SLP014",
            help=_PERMISSIONS if refused else "",
        ) from None
    except BotoCoreError as error:
        missing = isinstance(error, NoCredentialsError)
        raise _failed(
            f"no answer from AWS: {error}",
            code="SLP091" if missing else "SLP014",
            help=_PERMISSIONS if missing else "",
        ) from None


def _failed(cause: str, help: str = "", code: str = "SLP014") -> Failed:
    return Failed(
        code,
        f"asked CloudWatch for the requests of users: {cause}",
        help=help or "nothing was counted; try again in a moment",
        where="CloudWatch",
    )
