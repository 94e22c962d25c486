"""An emulator of the parts of Cloud DNS and Cloud SQL's admin API that a standby needs.

``python -m sandbox.google_apis --port 1234`` keeps zones and one instance in memory. Every request
and every answer is held against Google's discovery documents: what they do not know is refused as
Google refuses it, what they know and this does not do is 501, and an answer that they do not allow
is a fault of the emulator (500).
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from sandbox import postgres
from sandbox.discovery import Api
from sandbox.ports import LOOPBACK

PROJECT = "slipway"
INSTANCE = "standby"
DISK_GB = 100


class Refused(Exception):
    """What Google says no with.

    Args:
        reason: Google's word for it, as in ``notFound``.
    """

    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.status, self.reason = status, reason


class CloudDns:
    """Zones and their record sets; every change is atomic."""

    def __init__(self) -> None:
        self._zones: dict[str, dict[str, Any]] = {}
        self._sets: dict[str, dict[tuple[str, str], dict[str, Any]]] = {}
        self._numbers = itertools.count(1)

    def zones(self, path: Mapping[str, str], query: Mapping[str, str], _: Any) -> Any:
        """dns.managedZones.list"""
        wanted = query.get("dnsName")
        found = [z for z in self._zones.values() if wanted in (None, z["dnsName"])]
        return {"kind": "dns#managedZonesListResponse", "managedZones": found}

    def create_zone(self, path: Mapping[str, str], query: Mapping[str, str], body: Any) -> Any:
        """dns.managedZones.create"""
        missing = [n for n in ("name", "dnsName", "description") if not body.get(n)]
        if missing:
            raise Refused(400, "required", f"The 'entity.managedZone.{missing[0]}' parameter is "
                          "required but was missing.")  # fmt: skip
        name, domain = body["name"], body["dnsName"]
        if not domain.endswith("."):
            raise Refused(400, "invalid", "Invalid value for 'entity.managedZone.dnsName': "
                          f"'{domain}'")  # fmt: skip
        if name in self._zones:
            raise Refused(409, "alreadyExists", f"The resource 'entity.managedZone' named '{name}' "
                          "already exists")  # fmt: skip
        zone = {
            "kind": "dns#managedZone",
            "id": str(next(self._numbers)),
            "creationTime": _now(),
            "visibility": "public",
            "nameServers": ["ns-cloud-a1.googledomains.com."],
            **body,
        }
        self._zones[name], self._sets[name] = zone, {}
        authority = "ns-cloud-a1.googledomains.com."
        for kind, ttl, data in (
            ("NS", 21600, authority),
            ("SOA", 21600, f"{authority} cloud-dns-hostmaster.google.com. 1 21600 3600 259200 300"),
        ):
            self._put(name, {"name": domain, "type": kind, "ttl": ttl, "rrdatas": [data]})
        return zone

    def sets(self, path: Mapping[str, str], query: Mapping[str, str], _: Any) -> Any:
        """dns.resourceRecordSets.list"""
        if "type" in query and "name" not in query:
            raise Refused(400, "invalid", "'type' needs 'name'")
        found = [
            one
            for one in self._sets[self._zone(path)].values()
            if query.get("name", one["name"]) == one["name"]
            and query.get("type", one["type"]) == one["type"]
        ]
        start = int(query.get("pageToken", "0"))
        end = start + int(query.get("maxResults", "100"))
        more = {"nextPageToken": str(end)} if end < len(found) else {}
        return {"kind": "dns#resourceRecordSetsListResponse", "rrsets": found[start:end], **more}

    def change(self, path: Mapping[str, str], query: Mapping[str, str], body: Any) -> Any:
        """dns.changes.create"""
        zone = self._zone(path)
        additions, deletions = body.get("additions", []), body.get("deletions", [])
        if not additions and not deletions:
            raise Refused(400, "required", "The 'entity.change' parameter is required but was "
                          "missing.")  # fmt: skip
        after = dict(self._sets[zone])
        for index, old in enumerate(deletions):
            where = f"'entity.change.deletions[{index}]' named '{old.get('name')} ({_type(old)})'"
            there = after.pop(_key(old), None)
            if there is None:
                raise Refused(404, "notFound", f"The resource {where} does not exist")
            if any(there[k] != old.get(k) for k in ("ttl", "rrdatas")):
                raise Refused(412, "conditionNotMet", f"Precondition not met for {where}")
        for index, new in enumerate(additions):
            where = f"entity.change.additions[{index}]"
            self._require_good(new, where, str(self._zones[zone]["dnsName"]))
            if _key(new) in after:
                raise Refused(409, "alreadyExists", f"The resource '{where}' named "
                              f"'{new['name']} ({_type(new)})' already exists")  # fmt: skip
            after[_key(new)] = {"kind": "dns#resourceRecordSet", **new}
        self._sets[zone] = after
        return {
            "kind": "dns#change",
            "id": str(next(self._numbers)),
            "startTime": _now(),
            "status": "pending",
            "additions": additions,
            "deletions": deletions,
        }

    def _require_good(self, new: Mapping[str, Any], where: str, domain: str) -> None:
        for name in ("name", "type", "rrdatas"):
            if not new.get(name):
                raise Refused(400, "required", f"The '{where}.{name}' parameter is required but "
                              "was missing.")  # fmt: skip
        name = str(new["name"])
        if not (name == domain or name.endswith(f".{domain}")):
            raise Refused(400, "invalid", f"Invalid value for '{where}.name': '{name}'")

    def _put(self, zone: str, one: dict[str, Any]) -> None:
        self._sets[zone][_key(one)] = {"kind": "dns#resourceRecordSet", **one}

    def _zone(self, path: Mapping[str, str]) -> str:
        name = path["managedZone"]
        if name not in self._zones:
            raise Refused(404, "notFound", f"The 'parameters.managedZone' resource named '{name}' "
                          "does not exist.")  # fmt: skip
        return name


class CloudSql:
    """One instance, whose settings can be changed.

    Args:
        major: of its PostgreSQL.
    """

    def __init__(self, major: int) -> None:
        self._numbers = itertools.count(1)
        self._operations: dict[str, dict[str, Any]] = {}
        self._instance: dict[str, Any] = {
            "kind": "sql#instance",
            "name": INSTANCE,
            "project": PROJECT,
            "state": "RUNNABLE",
            "databaseVersion": f"POSTGRES_{major}",
            "instanceType": "CLOUD_SQL_INSTANCE",
            "backendType": "SECOND_GEN",
            "region": "europe-west1",
            "connectionName": f"{PROJECT}:europe-west1:{INSTANCE}",
            "settings": {
                "kind": "sql#settings",
                "settingsVersion": "1",
                "tier": "db-custom-2-7680",
                "activationPolicy": "ALWAYS",
                "availabilityType": "ZONAL",
                "dataDiskType": "PD_SSD",
                "dataDiskSizeGb": str(DISK_GB),
                "storageAutoResize": False,
                "databaseFlags": [{"name": "cloudsql.logical_decoding", "value": "on"}],
            },
        }

    def get(self, path: Mapping[str, str], query: Mapping[str, str], _: Any) -> Any:
        """sql.instances.get"""
        self._require(path)
        return self._instance

    def patch(self, path: Mapping[str, str], query: Mapping[str, str], body: Any) -> Any:
        """sql.instances.patch"""
        self._require(path)
        settings = self._instance["settings"]
        changed = body.get("settings", {})
        size = int(changed.get("dataDiskSizeGb", settings["dataDiskSizeGb"]))
        if size < int(settings["dataDiskSizeGb"]):
            raise Refused(400, "invalid", "Invalid request: Disk size cannot be decreased.")
        version = str(int(settings["settingsVersion"]) + 1)
        self._instance["settings"] = {**settings, **changed, "settingsVersion": version}
        name = f"operation-{next(self._numbers)}"
        self._operations[name] = {
            "kind": "sql#operation",
            "name": name,
            "operationType": "UPDATE",
            "status": "DONE",
            "targetId": INSTANCE,
            "targetProject": PROJECT,
            "insertTime": _now(),
            "endTime": _now(),
        }
        return self._operations[name]

    def operation(self, path: Mapping[str, str], query: Mapping[str, str], _: Any) -> Any:
        """sql.operations.get"""
        if path["operation"] not in self._operations:
            raise Refused(404, "operationDoesNotExist", "The Cloud SQL operation does not exist.")
        return self._operations[path["operation"]]

    def _require(self, path: Mapping[str, str]) -> None:
        if (path["project"], path["instance"]) != (PROJECT, INSTANCE):
            raise Refused(404, "instanceDoesNotExist", "The Cloud SQL instance does not exist.")


Handler = Callable[[Mapping[str, str], Mapping[str, str], Any], Any]


class GoogleApis:
    """Both, behind one door.

    Args:
        major: of the instance's PostgreSQL.
    """

    def __init__(self, major: int) -> None:
        self._apis = [Api("dns", "v1"), Api("sqladmin", "v1")]
        dns, sql = CloudDns(), CloudSql(major)
        handlers = (dns.zones, dns.create_zone, dns.sets, dns.change,
                    sql.get, sql.patch, sql.operation)  # fmt: skip
        # Each says in its first line which of Google's methods it is.
        self._handlers: dict[str, Handler] = {str(h.__doc__): h for h in handlers}

    def answer(
        self, verb: str, path: str, query: Mapping[str, list[str]], content: bytes
    ) -> tuple[int, Any]:
        """Status and document, for one request."""
        try:
            return 200, self._answer(verb, path, query, content)
        except Refused as no:
            errors = [{"message": str(no), "domain": "global", "reason": no.reason}]
            return no.status, {"error": {"code": no.status, "message": str(no), "errors": errors}}

    def _answer(self, verb: str, path: str, query: Mapping[str, list[str]], content: bytes) -> Any:
        call = next((c for api in self._apis if (c := api.call(verb, path))), None)
        if call is None:
            raise Refused(404, "notFound", f"no method of these APIs is {verb} {path}")
        body = _parsed(content)
        if why := call.method.wrong_query(query) or call.method.wrong_body(body):
            raise Refused(400, "badRequest", why)
        handler = self._handlers.get(call.method.id)
        if handler is None:
            raise Refused(501, "notImplemented", f"the emulator does not do {call.method.id}")
        found = handler(call.path, {name: values[-1] for name, values in query.items()}, body)
        if why := call.method.wrong_answer(found):
            raise Refused(500, "emulator", f"the emulator's answer to {call.method.id}: {why}")
        return found

    async def handle(self, request: Request) -> Response:
        """As Starlette calls it."""
        query: dict[str, list[str]] = {}
        for name, value in request.query_params.multi_items():
            query.setdefault(name, []).append(value)
        status, document = self.answer(
            request.method, request.url.path.lstrip("/"), query, await request.body()
        )
        return JSONResponse(document, status)


def application(major: int) -> Starlette:
    """Both APIs, and ``/healthz``."""
    verbs = ["GET", "POST", "PUT", "PATCH", "DELETE"]
    return Starlette(
        routes=[
            Route("/healthz", lambda request: Response("ok")),
            Route("/{path:path}", GoogleApis(major).handle, methods=verbs),
        ]
    )


def _parsed(content: bytes) -> Any:
    if not content:
        return None
    try:
        return json.loads(content)
    except ValueError as error:
        raise Refused(400, "parseError", "Invalid JSON payload received.") from error


def _key(one: Mapping[str, Any]) -> tuple[str, str]:
    return str(one.get("name")), _type(one)


def _type(one: Mapping[str, Any]) -> str:
    return str(one.get("type"))


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m sandbox.google_apis", description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    wanted = parser.parse_args(argv)
    uvicorn.run(application(postgres.major()), host=LOOPBACK, port=wanted.port,
                log_level="warning", access_log=False)  # fmt: skip


if __name__ == "__main__":
    main()
