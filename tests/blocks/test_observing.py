"""From ``observe`` and the blocks that it names to a source of counts."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from pathlib import Path

import httpx
import pytest
from prefect.client.orchestration import get_client
from pydantic import SecretStr, ValidationError

from blocks.cloudwatch import CloudWatchMetrics
from blocks.metrics import EdgeMetrics
from blocks.observing import CloudWatchAccount, PrometheusServer, metrics_for
from blocks.platform import Platform
from blocks.prometheus import PrometheusMetrics
from deployments.register import offer_blocks
from domain.errors import Failed, UsageError
from domain.observe import Observe, Source
from tests.blocks.cloudwatch_fake import group_of

SECRET = "s3cr3t-of-the-test"


@pytest.fixture
def platform(tmp_path: Path) -> Platform:
    nowhere = "http://127.0.0.1:1"
    return Platform(
        store_root=str(tmp_path),
        bundles_root=str(tmp_path),
        cluster_socket=str(tmp_path / "socket"),
        edge_dynamic=str(tmp_path / "dynamic"),
        edge_web=nowhere,
        edge_internal=nowhere,
        edge_api=nowhere,
        edge_metrics=nowhere,
        database_url=SecretStr("postgresql://"),
        redis_url=SecretStr("redis://"),
    )


def prometheus(block: str) -> Observe:
    return Observe(source=Source.PROMETHEUS, block=block, preset="istio")


def test_the_edge_needs_no_block(platform: Platform) -> None:
    assert isinstance(metrics_for(platform, Observe()), EdgeMetrics)


def test_what_contradicts_itself_makes_no_source(platform: Platform) -> None:
    with pytest.raises(UsageError, match=r"observe\.preset: has no meaning") as failed:
        metrics_for(platform, Observe(preset="istio"))
    assert failed.value.code == "SLP002"


def test_a_source_is_made_from_its_block(platform: Platform, prefect_harness: None) -> None:
    PrometheusServer(url="http://127.0.0.1:1", token=SecretStr(SECRET)).save("counts")
    source = metrics_for(platform, prometheus("counts"))
    assert isinstance(source, PrometheusMetrics)
    with pytest.raises(Failed) as failed:
        source.open("shop", "production", ["api.1"])
    assert failed.value.code == "SLP014"
    assert SECRET not in str(failed.value)


def test_a_balancer_s_source_is_made_from_its_block(
    platform: Platform, prefect_harness: None
) -> None:
    CloudWatchAccount(
        region="eu-central-1",
        access_key_id="testing",
        secret_access_key=SecretStr(SECRET),
        endpoint_url="http://127.0.0.1:1",
    ).save("balancer")
    source = metrics_for(platform, Observe(source=Source.CLOUDWATCH, block="balancer"))
    assert isinstance(source, CloudWatchMetrics)
    with pytest.raises(Failed, match="no answer from AWS") as failed:
        source.open("shop", "production", ["api.1"])
    assert failed.value.code == "SLP014"
    assert SECRET not in str(failed.value)


@pytest.mark.parametrize("observe", [prometheus("none"),
                                     Observe(source=Source.CLOUDWATCH, block="none")])  # fmt: skip
def test_a_block_that_is_missing_is_named(
    platform: Platform, prefect_harness: None, observe: Observe
) -> None:
    with pytest.raises(UsageError, match=r"has no Slipway \w+ block named 'none'") as failed:
        metrics_for(platform, observe)
    assert (failed.value.code, failed.value.exit_code) == ("SLP092", 2)


def test_without_credentials_aws_is_not_asked(
    platform: Platform, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    client = CloudWatchAccount(region="eu-central-1").client("cloudwatch")
    source = CloudWatchMetrics(
        client, lambda *names: group_of(names[-1]), stale_after=timedelta(minutes=6)
    )
    with pytest.raises(Failed, match="Unable to locate credentials") as failed:
        source.open("shop", "production", ["api.1"])
    assert failed.value.code == "SLP091"


@pytest.mark.parametrize(
    "fields",
    [
        {"url": f"https://ada:{SECRET}@prometheus.test"},
        {"url": f"https://prometheus.test/?token={SECRET}"},
        {"url": f"prometheus.test/{SECRET}"},
        {"url": "https://prometheus.test", "token": SECRET, "username": "ada", "password": SECRET},
        {"url": "https://prometheus.test", "password": SECRET},
        {"url": "https://prometheus.test", "username": "ada"},
    ],
)
def test_a_block_that_cannot_log_in_is_refused_without_showing_its_secret(
    fields: dict[str, str],
) -> None:
    with pytest.raises(ValidationError) as failed:
        PrometheusServer.model_validate(fields)
    assert SECRET not in str(failed.value)


def test_a_person_can_save_the_blocks_in_the_ui(prefect_harness: None) -> None:
    """The UI knows only kinds that were registered."""

    async def slugs() -> set[str]:
        await offer_blocks()
        async with get_client() as client:
            return {kind.slug for kind in await client.read_block_types()}

    assert {"slipway-prometheus", "slipway-cloudwatch"} <= asyncio.run(slugs())


def test_a_block_logs_in_as_it_says() -> None:
    url = "https://prometheus.test/"
    assert PrometheusServer(url=f"{url}api/v1").url == "https://prometheus.test"
    assert PrometheusServer(url=url).auth is None
    basic = PrometheusServer(url=url, username="ada", password=SecretStr(SECRET))
    assert isinstance(basic.auth, httpx.BasicAuth)
    token = PrometheusServer(url=url, token=SecretStr(SECRET))
    assert token.secrets == (SECRET,)
    assert SECRET not in f"{basic!r}{basic}{token!r}{token}"
