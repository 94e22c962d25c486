"""What Cloud SQL says of the standby's instance, and what readiness makes of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from blocks import cloud_sql, google_api
from blocks.cloud_sql import CloudSqlInstance
from domain import readiness
from domain.errors import Failed
from domain.verdict import Verdict
from sandbox.google_apis import DISK_GB
from tests.kit.google import google_apis

GB = 1 << 30


@pytest.fixture
def where() -> Iterator[CloudSqlInstance]:
    with google_apis(major=16) as url:
        yield CloudSqlInstance(project="slipway", instance="standby", endpoint=url)


def change(where: CloudSqlInstance, **settings: Any) -> None:
    api = google_api.client("sqladmin", "v1", where.endpoint, None)
    body = {"settings": settings}
    api.instances().patch(project=where.project, instance=where.instance, body=body).execute()


def verdicts(where: CloudSqlInstance, needed: int, server: int = 16) -> tuple[Verdict, Verdict]:
    seen = cloud_sql.look(where)
    instance = readiness.instance(seen.name, seen.state, seen.stopped, seen.major, server, "")
    return instance.verdict, readiness.room(needed, seen.most_bytes).verdict


def test_an_instance_that_runs_and_has_room(where: CloudSqlInstance) -> None:
    seen = cloud_sql.look(where)
    assert (seen.state, seen.major, seen.disk_bytes) == ("RUNNABLE", 16, DISK_GB * GB)
    assert verdicts(where, 80 * GB) == (Verdict.PASS, Verdict.PASS)


def test_a_standby_that_is_too_small(where: CloudSqlInstance) -> None:
    assert verdicts(where, 90 * GB) == (Verdict.PASS, Verdict.FAIL)
    change(where, storageAutoResize=True, storageAutoResizeLimit="105")
    assert verdicts(where, 90 * GB) == (Verdict.PASS, Verdict.FAIL)
    change(where, storageAutoResize=True, storageAutoResizeLimit="0")
    assert verdicts(where, 9000 * GB) == (Verdict.PASS, Verdict.PASS)


def test_an_instance_that_is_switched_off_or_another_one(where: CloudSqlInstance) -> None:
    assert verdicts(where, GB, server=17)[0] is Verdict.FAIL
    change(where, activationPolicy="NEVER")
    assert verdicts(where, GB)[0] is Verdict.FAIL


def test_what_cannot_be_asked_is_told(where: CloudSqlInstance) -> None:
    for wrong, said in (
        ({"instance": "nobody"}, "404 The Cloud SQL instance does not exist"),
        ({"endpoint": "http://127.0.0.1:9"}, "refused"),
    ):
        with pytest.raises(Failed) as caught:
            cloud_sql.look(where.model_copy(update=wrong))
        assert caught.value.code == "SLP215" and said in caught.value.cause
