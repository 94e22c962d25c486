"""A records of a zone that Cloud DNS keeps.

A change there is atomic and names what it replaces, so one that somebody else has overtaken is
refused instead of lost; it is then made again upon what is there.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from functools import cached_property
from typing import Any

from googleapiclient.errors import HttpError

from blocks import google_api
from blocks.names import NameService, Record, no_zone, require_within

_OVERTAKEN = (404, 409, 412)
_TRIES = 4


class CloudDnsNames:
    """See ``blocks.names.Names``."""

    def __init__(self, where: NameService, account: Mapping[str, Any] | None = None) -> None:
        self.zone = where.zone
        self._where, self._account = where, account
        self._known = ""

    def read(self, name: str) -> Record | None:
        found = self._found(name)
        return _record(found) if found else None

    def point(self, record: Record) -> None:
        require_within(record.name, self.zone)
        wanted = {
            "name": f"{record.name}.",
            "type": "A",
            "ttl": record.ttl_seconds,
            "rrdatas": sorted(record.addresses),
        }
        self._change(record.name, wanted)

    def remove(self, name: str) -> None:
        self._change(name, None)

    def names(self) -> tuple[str, ...]:
        with self._asking("list its records"):
            sets = self._client.resourceRecordSets()
            request, found = sets.list(**self._zone_of()), []
            while request is not None:
                page = request.execute(num_retries=google_api.RETRIES)
                found += [r["name"].rstrip(".") for r in page.get("rrsets", ()) if r["type"] == "A"]
                request = sets.list_next(request, page)
        return tuple(found)

    def _change(self, name: str, wanted: dict[str, Any] | None) -> None:
        """Put one record, or none, in the place of what is there."""
        for attempt in range(_TRIES):
            old = self._found(name)
            if wanted == old:
                return
            body = {
                "additions": [wanted] if wanted else [],
                "deletions": [old] if old else [],
            }
            with self._asking(f"change {name}"):
                try:
                    self._client.changes().create(**self._zone_of(), body=body).execute()
                    return
                except HttpError as error:
                    if error.status_code not in _OVERTAKEN or attempt == _TRIES - 1:
                        raise

    def _found(self, name: str) -> dict[str, Any] | None:
        with self._asking(f"read {name}"):
            request = self._client.resourceRecordSets().list(
                **self._zone_of(), name=f"{name}.", type="A"
            )
            sets = request.execute(num_retries=google_api.RETRIES).get("rrsets", ())
        kept = ("name", "type", "ttl", "rrdatas")
        return {key: sets[0][key] for key in kept} if sets else None

    def _zone_of(self) -> dict[str, str]:
        """Which zone, as every call is told."""
        if not self._known:
            self._known = self._zone_id()
        return {"project": self._where.project, "managedZone": self._known}

    def _zone_id(self) -> str:
        wanted, project = f"{self.zone}.", self._where.project
        zones = self._client.managedZones()
        with self._asking("list its zones"):
            found = zones.list(project=project, dnsName=wanted).execute(
                num_retries=google_api.RETRIES
            )
            if found.get("managedZones"):
                return str(found["managedZones"][0]["name"])
            if not self._where.create:
                raise no_zone("Cloud DNS", self.zone)
            name = self.zone.replace(".", "-")
            made = zones.create(
                project=project,
                body={"name": name, "dnsName": wanted, "description": "made by Slipway"},
            ).execute()
        return str(made["name"])

    @cached_property
    def _client(self) -> Any:
        with self._asking("sign in"):
            return google_api.client("dns", "v1", self._where.endpoint, self._account)

    def _asking(self, what: str) -> AbstractContextManager[None]:
        return google_api.asking(
            "SLP208",
            "Cloud DNS",
            what,
            "see whether the service answers and the credentials are right; the name leads where "
            "it led before",
        )


def _record(found: Mapping[str, Any]) -> Record:
    addresses = tuple(sorted(str(address) for address in found["rrdatas"]))
    return Record(str(found["name"]).rstrip("."), addresses, int(found["ttl"]))
