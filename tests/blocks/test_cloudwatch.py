"""What CloudWatch can do to us, and what our counts then say."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from typing import Any

import boto3
import pytest
from moto import mock_aws

from blocks.cloudwatch import Balancers, TargetGroup
from blocks.metrics import Meter
from domain.errors import Failed
from domain.routing import Counts
from tests.blocks.cloudwatch_fake import MINUTE
from tests.blocks.observed import (
    APPLICATION,
    ENVIRONMENT,
    WORKLOADS,
    FakeCloudWatchWorld,
    open_meter,
)

WORKLOAD = "api.1"
Page = dict[str, Any]


@pytest.fixture
def world() -> FakeCloudWatchWorld:
    return FakeCloudWatchWorld()


@pytest.fixture
def aws(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    with mock_aws():
        yield


def read_one(meter: Meter) -> Counts:
    return meter.read().counts[WORKLOAD]


# Minutes


def test_a_minute_counts_when_it_is_complete_and_not_before(world: FakeCloudWatchWorld) -> None:
    """The newest minute holds only part of its requests, and its errors may come last."""
    meter = open_meter(world, WORKLOAD)
    begin = world.clock.now.replace(second=0)
    world.serve(WORKLOAD, 500)
    world.minutes(2)
    assert read_one(meter) == Counts()
    world.minutes(1)
    reading = meter.read()
    assert (reading.counts[WORKLOAD].errors, reading.at) == (1, begin + MINUTE)


def test_the_minute_in_which_the_meter_is_opened_does_not_count(
    world: FakeCloudWatchWorld,
) -> None:
    meter = world.metrics.open(APPLICATION, ENVIRONMENT, [WORKLOAD])
    world.serve(WORKLOAD, 500)
    world.minutes(1)
    world.serve(WORKLOAD)
    world.settle()
    assert (read_one(meter).requests, read_one(meter).errors) == (1, 0)


def test_a_meter_opened_on_the_minute_begins_with_it(world: FakeCloudWatchWorld) -> None:
    world.clock.now = world.clock.now.replace(second=0, microsecond=0)
    meter = world.metrics.open(APPLICATION, ENVIRONMENT, [WORKLOAD])
    world.serve(WORKLOAD)
    world.settle()
    assert read_one(meter).requests == 1


def test_late_data_of_a_minute_that_was_counted_is_added(world: FakeCloudWatchWorld) -> None:
    meter = open_meter(world, WORKLOAD)
    minute = world.clock.now
    world.serve(WORKLOAD)
    world.settle()
    assert read_one(meter).errors == 0
    world.server.put("RequestCount", WORKLOAD, minute, 4)
    world.server.put("HTTPCode_Target_5XX_Count", WORKLOAD, minute, 4)
    world.minutes(1)
    assert (read_one(meter).requests, read_one(meter).errors) == (5, 4)


def test_data_that_disappears_is_an_error(world: FakeCloudWatchWorld) -> None:
    meter = open_meter(world, WORKLOAD)
    world.serve(WORKLOAD, 500)
    world.settle()
    assert read_one(meter).errors == 1
    for key in [key for key in world.server.values if "5XX" in key[0]]:
        del world.server.values[key]
    world.minutes(1)
    with pytest.raises(Failed, match=r"has less of api\.1 than it had before"):
        meter.read()


def test_silence_with_a_witness_is_zero_and_without_one_it_is_no_data(
    world: FakeCloudWatchWorld,
) -> None:
    """RequestCount is published only where it is not zero."""
    meter = open_meter(world, WORKLOAD)
    world.settle()
    at = meter.read().at
    assert read_one(meter) == Counts(buckets=dict.fromkeys(read_one(meter).buckets, 0))
    world.clock.advance(timedelta(minutes=3))
    world.put("RequestCount", WORKLOAD, 9)
    assert meter.read().at == world.clock.now.replace(second=0) - timedelta(minutes=3) > at
    world.clock.advance(timedelta(minutes=4))
    with pytest.raises(Failed, match="is no data") as failed:
        meter.read()
    assert failed.value.code == "SLP090"


def test_counting_ends_before_the_first_minute_that_one_workload_lacks(
    world: FakeCloudWatchWorld,
) -> None:
    """Otherwise the versions would be compared over different times."""
    meter = open_meter(world, *WORKLOADS)
    begin = world.clock.now.replace(second=0)
    for workload in WORKLOADS:
        world.serve(workload)
        world.server.put("RequestCount", workload, begin + MINUTE, 10)
    world.server.put("HealthyHostCount", "api.1", begin, 1)
    world.server.put("HealthyHostCount", "api.1", begin + MINUTE, 1)
    for workload in ("api-1", "api.10"):
        world.server.put("HealthyHostCount", workload, begin, 1)
    world.clock.advance(4 * MINUTE)
    reading = meter.read()
    assert reading.at == begin + MINUTE
    assert {w: c.requests for w, c in reading.counts.items()} == dict.fromkeys(WORKLOADS, 1)


# What counts


def test_a_version_that_refuses_connections_has_errors(world: FakeCloudWatchWorld) -> None:
    """It sends no status at all, so its count of 5XX is nought."""
    meter = open_meter(world, WORKLOAD)
    world.put("RequestCount", WORKLOAD, 5)
    world.put("TargetConnectionErrorCount", WORKLOAD, 7)  # tried again, with other targets
    world.settle()
    assert (read_one(meter).requests, read_one(meter).errors) == (5, 5)


def test_a_request_that_was_never_answered_is_slower_than_every_bound(
    world: FakeCloudWatchWorld,
) -> None:
    """Without a response there is no TargetResponseTime: the rest would look fast."""
    meter = open_meter(world, WORKLOAD)
    world.serve(WORKLOAD, seconds=0.2)
    world.put("RequestCount", WORKLOAD, 9)
    world.settle()
    buckets = read_one(meter).buckets
    assert (buckets["0.15"], buckets["0.2"], buckets["10"], buckets["+Inf"]) == (0, 1, 1, 10)


# Answers


def results_of(change: Callable[[Page], None]) -> Callable[[Page], Page]:
    """Spoils the second result of a page."""

    def spoil(page: Page) -> Page:
        change(page["MetricDataResults"][1])
        return page

    return spoil


def points(*values: object, at: datetime | None = None) -> Callable[[Page], None]:
    def change(result: Page) -> None:
        start = at or result["Timestamps"][0]
        result.update(Timestamps=[start] * len(values), Values=list(values))

    return change


def odd_lengths(result: Page) -> None:
    result["Values"] = result["Values"] * 2


def shifted(result: Page) -> None:
    result["Timestamps"] = [at + timedelta(seconds=30) for at in result["Timestamps"]]


def too_old(result: Page) -> None:
    result["Timestamps"] = [at - timedelta(days=1) for at in result["Timestamps"]]


@pytest.mark.parametrize(
    ("change", "says", "code"),
    [
        (results_of(lambda r: r.update(StatusCode="PartialData")), "PartialData", "SLP014"),
        (results_of(lambda r: r.update(StatusCode="InternalError")), "InternalError", "SLP014"),
        (results_of(lambda r: r.update(StatusCode="Forbidden")), "Forbidden", "SLP091"),
        (results_of(lambda r: r.pop("StatusCode")), "one of 19 metrics", "SLP014"),
        (
            results_of(lambda r: r.update(Messages=[{"Code": "Odd", "Value": "cut"}])),
            "Odd: cut",
            "SLP014",
        ),
        (
            lambda page: page.update(Messages=[{"Code": "Limit", "Value": "too many"}]),
            "Limit: too many",
            "SLP014",
        ),
        (lambda page: page["MetricDataResults"].pop(), "no status at all", "SLP014"),
        (results_of(lambda r: r.update(Id="q7")), "'q7', which was not asked for", "SLP014"),
        (results_of(points(math.nan)), "counts nan", "SLP014"),
        (results_of(points(math.inf)), "counts inf", "SLP014"),
        (results_of(points(-1.0)), r"counts -1\.0", "SLP014"),
        (results_of(points(1.0, 2.0)), "each time differently", "SLP014"),
        (results_of(odd_lengths), "1 times for 2 values", "SLP014"),
        (results_of(shifted), "which was not asked for", "SLP014"),
        (results_of(too_old), "which was not asked for", "SLP014"),
        (lambda page: page.update(NextToken="0"), "did not end after", "SLP014"),
    ],
)  # fmt: skip
def test_an_answer_that_is_not_whole_counts_nothing(
    world: FakeCloudWatchWorld, change: Callable[[Page], Any], says: str, code: str
) -> None:
    meter = open_meter(world, WORKLOAD)
    world.serve(WORKLOAD, 500)
    world.settle()

    def spoil(page: Page) -> None:
        change(page)

    world.server.change = spoil
    with pytest.raises(Failed, match=says) as failed:
        meter.read()
    assert failed.value.code == code
    world.server.change = None
    assert read_one(meter).errors == 1


@pytest.mark.parametrize(
    ("error", "code"),
    [
        ("AccessDenied", "SLP091"),
        ("ExpiredTokenException", "SLP091"),
        ("Throttling", "SLP014"),
        ("InternalServiceFault", "SLP014"),
    ],
)
def test_a_refusal_is_told_from_a_failure(
    world: FakeCloudWatchWorld, error: str, code: str
) -> None:
    world.server.error = error
    with pytest.raises(Failed, match=error) as failed:
        open_meter(world)
    assert failed.value.code == code


@pytest.mark.parametrize("size", [1, 2, 7])
def test_pages_are_put_together(world: FakeCloudWatchWorld, size: int) -> None:
    """Each page but the last is PartialData, which is an error only when nothing follows."""
    meter = open_meter(world, WORKLOAD)
    for status in (200, 500):
        world.serve(WORKLOAD, status, seconds=0.2)
    world.minutes(2)
    world.serve(WORKLOAD)
    world.settle()
    world.server.page_size, world.server.calls = size, []
    counts = read_one(meter)
    assert len(world.server.calls) > 2
    assert (counts.requests, counts.errors) == (3, 1)
    assert (counts.buckets["0.1"], counts.buckets["0.2"]) == (1, 3)


def test_more_metrics_than_one_call_takes_are_asked_for_in_parts(
    world: FakeCloudWatchWorld,
) -> None:
    bounds = [n / 1000 for n in range(1, 301)]
    source = world.source(world.server, bounds_seconds=bounds)
    meter = source.open(APPLICATION, ENVIRONMENT, ["api.1", "api-1"])
    world.begin()
    world.serve("api-1", 500, seconds=0.25)
    world.settle()
    counts = meter.read().counts["api-1"]
    assert (counts.errors, counts.buckets["0.249"], counts.buckets["0.25"]) == (1, 0, 1)


def test_readings_close_together_cost_one_question(world: FakeCloudWatchWorld) -> None:
    """Every metric of every question is billed."""
    meter = open_meter(world, WORKLOAD)
    world.settle()
    world.server.calls.clear()
    for _ in range(50):
        meter.read()
        world.clock.advance(timedelta(seconds=0.1))
    assert len(world.server.calls) == 1


# Finding the target group


@pytest.fixture
def balancers(aws: None) -> Callable[..., Balancers]:
    """Makes target groups, each with a workload's tags and behind so many load balancers."""

    def make(*groups: tuple[str, int]) -> Balancers:
        client: Any = boto3.client  # the stubs know only the services that are installed
        region = "eu-central-1"
        ec2, elbv2 = client("ec2", region_name=region), client("elbv2", region_name=region)
        vpc = ec2.create_vpc(CidrBlock="10.0.0.0/16")["Vpc"]["VpcId"]
        zones = [f"{region}a", f"{region}b"]
        subnets = [
            ec2.create_subnet(VpcId=vpc, CidrBlock=f"10.0.{n}.0/24", AvailabilityZone=zone)
            for n, zone in enumerate(zones)
        ]
        for number, (workload, attached) in enumerate(groups):
            tags = {
                "slipway:application": APPLICATION,
                "slipway:environment": ENVIRONMENT,
                "slipway:workload": workload,
            }
            group = elbv2.create_target_group(
                Name=f"group-{number}", Protocol="HTTP", Port=80, VpcId=vpc,
                Tags=[{"Key": k, "Value": v} for k, v in tags.items()],
            )["TargetGroups"][0]["TargetGroupArn"]  # fmt: skip
            for index in range(attached):
                balancer = elbv2.create_load_balancer(
                    Name=f"shop-{number}-{index}",
                    Subnets=[s["Subnet"]["SubnetId"] for s in subnets],
                )["LoadBalancers"][0]["LoadBalancerArn"]
                elbv2.create_listener(
                    LoadBalancerArn=balancer, Protocol="HTTP", Port=80,
                    DefaultActions=[{"Type": "forward", "TargetGroupArn": group}],
                )  # fmt: skip
        return Balancers(client("resourcegroupstaggingapi", region_name=region), elbv2)

    return make


def test_a_workload_s_target_group_is_found_by_its_tags(
    balancers: Callable[..., Balancers],
) -> None:
    found = balancers(("api.1", 1), ("api-1", 1)).find(APPLICATION, ENVIRONMENT, "api-1")
    assert isinstance(found, TargetGroup)
    assert found.target_group.startswith("targetgroup/group-1/")
    assert found.load_balancer.startswith("app/shop-1-0/")


@pytest.mark.parametrize(
    ("groups", "says"),
    [
        ((), "0 target groups have the tags .*slipway:workload=api.1"),
        ((("api.10", 1),), "0 target groups"),
        ((("api.1", 1), ("api.1", 1)), "2 target groups"),
        ((("api.1", 0),), "belongs to 0 load balancers"),
    ],
)
def test_a_target_group_that_is_not_clear_is_an_error(
    balancers: Callable[..., Balancers], groups: tuple[tuple[str, int], ...], says: str
) -> None:
    with pytest.raises(Failed, match=says) as failed:
        balancers(*groups).find(APPLICATION, ENVIRONMENT, "api.1")
    assert failed.value.code == "SLP014"
