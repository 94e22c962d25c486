"""Public DNS names, and what they lead to: Route 53."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError
from pydantic import BaseModel, ConfigDict, Field

from domain.errors import Failed, UsageError

_CONFIG_SECONDS = 3


class NameService(BaseModel):
    """Where the zone is kept; its secrets are in the platform's `backup_credentials`, `dns`."""

    model_config = ConfigDict(extra="forbid")

    zone: str = Field(description="The zone's domain, without a last dot.")
    region: str = "us-east-1"
    endpoint: str = Field("", description="Other than the cloud's own.")
    resolver: str = Field("", description="host:port of a name server to check answers with.")
    create: bool = Field(False, description="Make the zone where it is missing (emulators).")


@dataclass(frozen=True)
class Record:
    """An A record.

    Attributes:
        ttl_seconds: how long resolvers may keep it.
    """

    name: str
    addresses: tuple[str, ...]
    ttl_seconds: int


class Names:
    """A records of one zone.

    Raises:
        Failed: SLP208, the service does not answer or refuses.
        UsageError: SLP208, the zone is not there, or the name is not in it.
    """

    def __init__(self, where: NameService, secrets: dict[str, str] | None = None) -> None:
        import boto3
        from botocore.config import Config

        given = dict(secrets or {})
        spare = "emulator" if where.create else None
        self._where = where
        self._client: Any = boto3.client(
            "route53",
            region_name=where.region,
            endpoint_url=where.endpoint or None,
            aws_access_key_id=given.get("access_key", spare),
            aws_secret_access_key=given.get("secret_key", spare),
            config=Config(
                connect_timeout=_CONFIG_SECONDS,
                read_timeout=_CONFIG_SECONDS,
                retries={"max_attempts": 2, "mode": "standard"},
            ),
        )
        self._zone = ""

    @property
    def zone(self) -> str:
        return self._where.zone

    def read(self, name: str) -> Record | None:
        """The record of a name, or None."""
        answer = self._ask(
            "list_resource_record_sets",
            HostedZoneId=self._zone_id(),
            StartRecordName=name,
            StartRecordType="A",
            MaxItems="1",
        )
        for found in answer["ResourceRecordSets"]:
            if found["Type"] == "A" and found["Name"].rstrip(".") == name:
                addresses = tuple(sorted(r["Value"] for r in found["ResourceRecords"]))
                return Record(name, addresses, int(found["TTL"]))
        return None

    def point(self, record: Record) -> None:
        """Let a name lead to these addresses, whatever it led to before."""
        self._change("UPSERT", record)

    def remove(self, name: str) -> None:
        """Harmless when there is none."""
        if (found := self.read(name)) is not None:
            self._change("DELETE", found)

    def within(self, name: str) -> bool:
        return name.endswith(f".{self._where.zone}")

    def names(self) -> tuple[str, ...]:
        """Every name with an A record."""
        found: list[str] = []
        more: dict[str, Any] = {}
        while True:
            answer = self._ask("list_resource_record_sets", HostedZoneId=self._zone_id(), **more)
            found += [r["Name"].rstrip(".") for r in answer["ResourceRecordSets"]
                      if r["Type"] == "A"]  # fmt: skip
            if not answer.get("IsTruncated"):
                return tuple(found)
            more = {
                "StartRecordName": answer["NextRecordName"],
                "StartRecordType": answer["NextRecordType"],
            }

    def _change(self, action: str, record: Record) -> None:
        if not self.within(record.name):
            raise UsageError("SLP208", f"{record.name} is not in the zone {self._where.zone}",
                             help="correct `recovery.name` or the platform's zone")  # fmt: skip
        values = [{"Value": address} for address in record.addresses]
        change = {
            "Action": action,
            "ResourceRecordSet": {
                "Name": record.name,
                "Type": "A",
                "TTL": record.ttl_seconds,
                "ResourceRecords": values,
            },
        }
        self._ask(
            "change_resource_record_sets",
            HostedZoneId=self._zone_id(),
            ChangeBatch={"Changes": [change]},
        )

    def _zone_id(self) -> str:
        if self._zone:
            return self._zone
        wanted = f"{self._where.zone}."
        answer = self._ask("list_hosted_zones_by_name", DNSName=wanted, MaxItems="1")
        found = [z["Id"] for z in answer["HostedZones"] if z["Name"] == wanted]
        if not found and self._where.create:
            made = self._ask("create_hosted_zone", Name=wanted, CallerReference=wanted)
            found = [made["HostedZone"]["Id"]]
        if not found:
            raise UsageError("SLP208", f"Route 53 has no zone {self._where.zone}",
                             help="make it, or correct `names` in the platform block")  # fmt: skip
        self._zone = str(found[0])
        return self._zone

    def _ask(self, call: str, **arguments: Any) -> Any:
        try:
            return getattr(self._client, call)(**arguments)
        except (ClientError, BotoCoreError) as error:
            raise Failed(
                "SLP208",
                f"asked Route 53 to {call.replace('_', ' ')}: {error}",
                help="see whether the service answers and the credentials are right; the name "
                "leads where it led before",
            ) from error
