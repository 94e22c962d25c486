"""The Platform block: one document on the Prefect server names all outside systems of a target.

Flows take its name as a parameter, never a secret: a value given to a flow run is stored in
clear by Prefect, a block's secret fields are not.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from prefect.blocks.core import Block
from prefect.blocks.fields import SecretDict
from pydantic import Field, SecretStr

from blocks.backup_locations import BackupLocation, open_store
from blocks.bundles import BundleStore
from blocks.cloud_sql import CloudSqlInstance, SqlInstance, look
from blocks.cluster import Cluster
from blocks.edge import Edge
from blocks.file_store import FileStore
from blocks.flags import FileFlags, Flags
from blocks.local_cluster import LocalCluster
from blocks.names import Names, NameService, open_names
from blocks.object_store import ObjectStore
from blocks.postgres import PostgresServer
from blocks.rds_instance import RdsInstance
from blocks.redis_server import RedisServer
from blocks.traefik_edge import TraefikEdge
from blocks.vault import Vault
from domain.errors import UsageError
from domain.recovery import Lineage


class Platform(Block):
    """Where applications run: cluster, edge, stores and database of one target."""

    _block_type_name: ClassVar[str] = "Slipway Platform"
    _block_type_slug: ClassVar[str] = "slipway-platform"
    _description: ClassVar[str] = "The outside systems that Slipway's flows act on."

    store_root: str = Field(description="Folder of the journal, build records and reports.")
    bundles_root: str = Field(description="Folder of the built bundles.")
    flags_root: str = Field(
        "", description="Folder of the feature flags; empty: `flags` beside the store."
    )
    cluster_socket: str = Field(description="Control socket of the local cluster.")
    edge_dynamic: str = Field(description="Folder that Traefik reads its routes from.")
    edge_web: str = Field(description="Base URL of Traefik's public entrypoint.")
    edge_internal: str = Field(description="Base URL of Traefik's internal entrypoint.")
    edge_api: str = Field(description="Base URL of Traefik's API.")
    edge_metrics: str = Field(description="URL of Traefik's Prometheus metrics.")
    database_url: SecretStr = Field(description="PostgreSQL, as a role that creates databases.")
    redis_url: SecretStr = Field(description="Redis for applications that declare a cache.")
    ui_url: str = Field("", description="Address of the Prefect UI, for links.")
    backup_locations: list[BackupLocation] = Field(
        default_factory=list, description="Where recovery points go; the first is made first."
    )
    backup_recipients: dict[str, str] = Field(
        default_factory=dict, description="Public age keys by name; each opens every backup."
    )
    backup_keys: SecretDict = Field(
        default_factory=lambda: SecretDict({}),
        description="Private age keys by the same names; none for a key that is kept offline.",
    )
    backup_credentials: SecretDict = Field(
        default_factory=lambda: SecretDict({}),
        description="By location: access_key and secret_key (S3), or the JSON of a service "
        "account (GCS); without, the machine's own.",
    )
    object_stores: list[BackupLocation] = Field(
        default_factory=list,
        description="Object storage of applications, by the names that they use; credentials as "
        "for backup locations, by the same names.",
    )
    rds: RdsInstance | None = Field(
        None, description="RDS instance to take snapshots of; credentials under `rds`."
    )
    backup_bytes_per_second: int = Field(0, description="Limit of all uploads together; 0: none.")
    side: str = Field("aws", description="Name of this cloud, in epochs and reports.")
    public_address: str = Field("127.0.0.1", description="IP address that names lead to.")
    names: NameService | None = Field(
        None, description="Public DNS names; credentials under `dns`."
    )
    cloud_sql: CloudSqlInstance | None = Field(
        None, description="Cloud SQL instance of the database; credentials under `cloud-sql`."
    )
    epochs: BackupLocation | None = Field(
        None, description="Where it is decided who may write: outside of both clouds' failure."
    )
    restore_url: SecretStr = Field(
        SecretStr(""), description="PostgreSQL that `slipway restore` makes databases in."
    )

    @cached_property
    def cluster(self) -> Cluster:
        return LocalCluster(Path(self.cluster_socket), self.bundles)

    @cached_property
    def edge(self) -> Edge:
        return TraefikEdge(
            dynamic=Path(self.edge_dynamic),
            web=self.edge_web,
            internal=self.edge_internal,
            api=self.edge_api,
            metrics=self.edge_metrics,
        )

    @property
    def store(self) -> ObjectStore:
        return FileStore(Path(self.store_root))

    @property
    def flags(self) -> Flags:
        root = Path(self.flags_root) if self.flags_root else Path(self.store_root).parent / "flags"
        return FileFlags(root)

    @property
    def bundles(self) -> BundleStore:
        return BundleStore(Path(self.bundles_root))

    @property
    def database(self) -> PostgresServer:
        return PostgresServer(self.database_url.get_secret_value())

    def vaults(self, lineage: Lineage) -> tuple[Vault, ...]:
        """One line of recovery points at every location.

        Raises:
            UsageError: SLP145, the platform names no location.
        """
        if not self.backup_locations:
            raise UsageError(
                "SLP145",
                "the platform names no location for backups",
                help="add some to its block: at least one outside of the cloud it runs in",
            )
        secrets = self.backup_credentials.get_secret_value()
        return tuple(
            Vault(where.name, open_store(where, secrets.get(where.name)), lineage)
            for where in self.backup_locations
        )

    def object_store(self, name: str) -> ObjectStore:
        """A store that applications know by name.

        Raises:
            UsageError: SLP151, the platform has none of that name.
        """
        for where in self.object_stores:
            if where.name == name:
                return open_store(where, self.backup_credentials.get_secret_value().get(name))
        known = ", ".join(where.name for where in self.object_stores) or "none"
        raise UsageError(
            "SLP151",
            f"the platform has no object store named {name!r}; it has {known}",
            help="name it in the `object_stores` of its Slipway Platform block",
        )

    def name_service(self) -> Names:
        """Raises UsageError SLP200: the platform has no names."""
        if self.names is None:
            raise UsageError(
                "SLP200",
                "the platform block names no DNS service",
                help="set `names` in its Slipway Platform block",
            )
        return open_names(self.names, self.backup_credentials.get_secret_value().get("dns"))

    def sql_instance(self) -> SqlInstance | None:
        """What Cloud SQL says of the database's instance; None when the platform names none.

        Raises:
            Failed: SLP215.
        """
        if self.cloud_sql is None:
            return None
        return look(self.cloud_sql, self.backup_credentials.get_secret_value().get("cloud-sql"))

    @property
    def nameserver(self) -> str:
        """host:port of the server to check names with."""
        return self.names.resolver if self.names else ""

    def epoch_store(self) -> ObjectStore:
        """Raises UsageError SLP200: the platform has no place for epochs."""
        where = self.epoch_location()
        return open_store(where, self.backup_credentials.get_secret_value().get(where.name))

    def epoch_location(self) -> BackupLocation:
        """Raises UsageError SLP200: the platform has no place for epochs."""
        if self.epochs is None:
            raise UsageError(
                "SLP200",
                "the platform block names no store for epochs",
                help="set `epochs` in its Slipway Platform block: a store that is lost with "
                "neither cloud",
            )
        return self.epochs

    @property
    def redis(self) -> RedisServer:
        return RedisServer(self.redis_url.get_secret_value())


def load_platform(name: str) -> Platform:
    """The named platform, or UsageError SLP010 that says how to make one."""
    try:
        loaded: Any = Platform.load(name)
    except ValueError as error:
        raise UsageError(
            "SLP010",
            f"the Prefect server has no platform block named {name!r}",
            help="start the sandbox with `slipway up`, or save a Slipway Platform block",
        ) from error
    if not isinstance(loaded, Platform):
        raise TypeError(f"block {name!r} is a {type(loaded).__name__}")
    return loaded
