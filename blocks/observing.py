"""The Prefect blocks of metrics sources, and the one place that makes a source from them."""

from __future__ import annotations

from typing import Any, ClassVar, TypeVar
from urllib.parse import urlsplit

import httpx
from prefect.blocks.core import Block
from pydantic import ConfigDict, Field, SecretStr, field_validator, model_validator

from blocks.cloudwatch import Balancers, CloudWatchMetrics
from blocks.metrics import EdgeMetrics, Metrics
from blocks.platform import Platform
from blocks.prometheus import Bearer, PrometheusMetrics
from domain.errors import UsageError
from domain.observe import Observe, Source

_B = TypeVar("_B", bound=Block)


class PrometheusServer(Block):
    """A server that speaks Prometheus' query API: Prometheus, Thanos, Mimir, VictoriaMetrics."""

    _block_type_name: ClassVar[str] = "Slipway Prometheus"
    _block_type_slug: ClassVar[str] = "slipway-prometheus"
    _description: ClassVar[str] = "Where the requests of users are counted, by PromQL."

    # A refused field must not be shown: it may hold the secret.
    model_config = ConfigDict(hide_input_in_errors=True)

    url: str = Field(description="Base address, without /api/v1; no user or password in it.")
    token: SecretStr | None = Field(None, description="Bearer token.")
    username: str | None = Field(None, description="For basic authentication.")
    password: SecretStr | None = Field(None, description="For basic authentication.")

    @field_validator("url")
    @classmethod
    def _plain_url(cls, url: str) -> str:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("the address must begin with http:// or https:// and name a host")
        if "@" in parts.netloc or parts.query or parts.fragment:
            raise ValueError("the address holds more than an address; use the fields for the login")
        return url.rstrip("/").removesuffix("/api/v1")

    @model_validator(mode="after")
    def _one_login(self) -> PrometheusServer:
        if self.token and (self.username or self.password):
            raise ValueError("give a token, or a user name with a password, not both")
        if (self.username is None) != (self.password is None):
            raise ValueError("a user name and a password belong together")
        return self

    @property
    def auth(self) -> httpx.Auth | None:
        if self.token:
            return Bearer(self.token.get_secret_value())
        if self.username is not None and self.password is not None:
            return httpx.BasicAuth(self.username, self.password.get_secret_value())
        return None

    @property
    def secrets(self) -> tuple[str, ...]:
        return tuple(s.get_secret_value() for s in (self.token, self.password) if s)


class CloudWatchAccount(Block):
    """The AWS account and region of the load balancer."""

    _block_type_name: ClassVar[str] = "Slipway CloudWatch"
    _block_type_slug: ClassVar[str] = "slipway-cloudwatch"
    _description: ClassVar[str] = "Where the requests of users are counted, by a load balancer."

    region: str = Field(description="Such as eu-central-1.")
    access_key_id: str | None = Field(None, description="Empty: boto3's usual chain.")
    secret_access_key: SecretStr | None = None
    session_token: SecretStr | None = None
    endpoint_url: str | None = Field(None, description="Another address of the API, for tests.")

    def client(self, service: str) -> Any:
        """A boto3 client, in time: a hung connection must not hold up a rollout."""
        import boto3
        from botocore.config import Config

        secrets = (self.secret_access_key, self.session_token)
        key, token = (secret.get_secret_value() if secret else None for secret in secrets)
        session = boto3.Session(
            aws_access_key_id=self.access_key_id,
            aws_secret_access_key=key,
            aws_session_token=token,
            region_name=self.region,
        )
        config = Config(connect_timeout=3, read_timeout=10, retries={"total_max_attempts": 2})
        clients: Any = session.client  # the stubs know only the services that are installed
        return clients(service, endpoint_url=self.endpoint_url, config=config)


def metrics_for(platform: Platform, observe: Observe) -> Metrics:
    """The source that ``observe`` names.

    Raises:
        UsageError: SLP092 when its block does not exist, or is of another kind; SLP002 when
            ``observe`` contradicts itself, which ``application.yaml`` never does.
    """
    for path, problem in observe.contradictions():
        field = ".".join(("observe", *path))
        raise UsageError("SLP002", f"{field}: {problem}", help="correct application.yaml")
    if observe.source is Source.EDGE:
        return EdgeMetrics(platform.edge)
    name = observe.block or ""
    if observe.source is Source.PROMETHEUS:
        server, templates = _load(PrometheusServer, name), observe.chosen_templates
        assert templates is not None  # else it would contradict itself
        return PrometheusMetrics(
            server.url,
            templates,
            stale_after=observe.staleness,
            auth=server.auth,
            secrets=server.secrets,
        )
    account = _load(CloudWatchAccount, name)
    balancers = Balancers(account.client("resourcegroupstaggingapi"), account.client("elbv2"))
    return CloudWatchMetrics(
        account.client("cloudwatch"), balancers.find, stale_after=observe.staleness
    )


def _load(kind: type[_B], name: str) -> _B:
    shown = kind._block_type_name
    fix = f"save a {shown} block of that name in the Prefect UI, or correct `observe.block`"
    try:
        loaded: Any = kind.load(name)
    except ValueError as error:
        raise UsageError(
            "SLP092", f"the Prefect server has no {shown} block named {name!r}", help=fix
        ) from error
    if not isinstance(loaded, kind):
        raise TypeError(f"block {name!r} is a {type(loaded).__name__}")
    return loaded
