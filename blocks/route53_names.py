"""A records of a zone that Route 53 keeps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from blocks.names import NameService, Record, no_zone, require_within
from domain.errors import Failed

_SECONDS = 3


class Route53Names:
    """See ``blocks.names.Names``."""

    def __init__(self, where: NameService, secrets: Mapping[str, Any] | None = None) -> None:
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
                connect_timeout=_SECONDS,
                read_timeout=_SECONDS,
                retries={"max_attempts": 2, "mode": "standard"},
            ),
        )
        self.zone = where.zone
        self._id = ""

    def read(self, name: str) -> Record | None:
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
        self._change("UPSERT", record)

    def remove(self, name: str) -> None:
        if (found := self.read(name)) is not None:
            self._change("DELETE", found)

    def names(self) -> tuple[str, ...]:
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
        require_within(record.name, self.zone)
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
        if self._id:
            return self._id
        wanted = f"{self.zone}."
        answer = self._ask("list_hosted_zones_by_name", DNSName=wanted, MaxItems="1")
        found = [z["Id"] for z in answer["HostedZones"] if z["Name"] == wanted]
        if not found and self._where.create:
            made = self._ask("create_hosted_zone", Name=wanted, CallerReference=wanted)
            found = [made["HostedZone"]["Id"]]
        if not found:
            raise no_zone("Route 53", self.zone)
        self._id = str(found[0])
        return self._id

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
