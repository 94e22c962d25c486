"""A strict stand-in for CloudWatch's GetMetricData.

Emulators answer nothing for trimmed counts, are complete at once and never partial. This one is
checked on both sides against the service model that botocore ships, and holds to what the API
reference says of periods, ids, statistics, limits and pages.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import botocore.session
from botocore.exceptions import ClientError
from botocore.validate import validate_parameters

from blocks.cloudwatch import TargetGroup

_MODEL = botocore.session.get_session().get_service_model("cloudwatch")
_OPERATION = _MODEL.operation_model("GetMetricData")
_TRIMMED_COUNT = re.compile(r"TC\((\d+(?:\.\d+)?)?:(\d+(?:\.\d+)?)?\)")
MINUTE = timedelta(minutes=1)


def group_of(workload: str) -> TargetGroup:
    return TargetGroup(f"targetgroup/{workload}/0123456789abcdef", "app/shop/0123456789abcdef")


@dataclass
class FakeCloudWatch:
    """Values by metric, target group and minute; ``change`` may spoil a page before it leaves."""

    page_size: int = 100_800
    values: dict[tuple[str, str, datetime], list[float]] = field(
        default_factory=lambda: defaultdict(list)
    )
    change: Any = None
    error: str | None = None
    calls: list[dict[str, Any]] = field(default_factory=list)

    def put(self, metric: str, workload: str, at: datetime, *values: float) -> None:
        minute = at.astimezone(UTC).replace(second=0, microsecond=0)
        self.values[metric, group_of(workload).target_group, minute] += values

    def get_metric_data(self, **request: Any) -> dict[str, Any]:
        validate_parameters(request, _OPERATION.input_shape)
        self.calls.append(request)
        if self.error:
            raise ClientError({"Error": {"Code": self.error, "Message": "no"}}, "GetMetricData")
        self._check(request)
        page = self._page(request)
        if self.change:
            page = self.change(page) or page
        validate_parameters(page, _OPERATION.output_shape)
        return page

    def _check(self, request: Mapping[str, Any]) -> None:
        queries = request["MetricDataQueries"]
        ids = [query["Id"] for query in queries]
        assert len(queries) <= 500 and len(set(ids)) == len(ids)
        assert all(re.fullmatch(r"[a-z][A-Za-z0-9_]*", one) for one in ids)
        assert request["StartTime"] < request["EndTime"]
        for moment in (request["StartTime"], request["EndTime"]):
            assert moment.tzinfo is not None and moment.second == moment.microsecond == 0
        for query in queries:
            stat = query["MetricStat"]
            assert stat["Period"] % 60 == 0
            assert stat["Metric"]["Namespace"] == "AWS/ApplicationELB"
            names = [dimension["Name"] for dimension in stat["Metric"]["Dimensions"]]
            assert sorted(names) == ["LoadBalancer", "TargetGroup"]

    def _page(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Points are cut into pages over all metrics, in the order of the questions."""
        start, end = request["StartTime"], request["EndTime"]
        points = [
            (query["Id"], at, value)
            for query in request["MetricDataQueries"]
            for at, value in self._points(query["MetricStat"], start, end)
        ]
        first = int(request.get("NextToken", "0"))
        shown, rest = points[first : first + self.page_size], points[first + self.page_size :]
        unfinished = {identity for identity, *_ in rest}
        results = [
            {
                "Id": query["Id"],
                "Label": query["Id"],
                "Timestamps": [at for identity, at, _ in shown if identity == query["Id"]],
                "Values": [value for identity, _, value in shown if identity == query["Id"]],
                "StatusCode": "PartialData" if query["Id"] in unfinished else "Complete",
            }
            for query in request["MetricDataQueries"]
        ]
        page: dict[str, Any] = {"MetricDataResults": results, "Messages": []}
        return {**page, "NextToken": str(first + self.page_size)} if rest else page

    def _points(
        self, stat: Mapping[str, Any], start: datetime, end: datetime
    ) -> list[tuple[datetime, float]]:
        metric = stat["Metric"]["MetricName"]
        dimensions = {d["Name"]: d["Value"] for d in stat["Metric"]["Dimensions"]}
        found = []
        while start < end:
            if values := self.values.get((metric, dimensions["TargetGroup"], start)):
                found.append((start, _statistic(stat["Stat"], values)))
            start += MINUTE
        return found


def _statistic(name: str, values: Sequence[float]) -> float:
    if name == "Sum":
        return float(sum(values))
    if name == "SampleCount":
        return float(len(values))
    bounds = _TRIMMED_COUNT.fullmatch(name)
    assert bounds and (bounds[1] or bounds[2]), f"no such statistic: {name}"
    low, high = float(bounds[1] or "-inf"), float(bounds[2] or "inf")
    return float(sum(low < value <= high for value in values))
