"""A name server that answers from the APIs of Route 53 and Cloud DNS, with their real TTLs.

Only A records of the zones that they have; for everything else it says that there is no such name.
Answers are read anew after a fifth of a second, which stands for the services' own propagation. A
name that none of the services that answer has, while another does not answer, is SERVFAIL: never
an old address.
"""

from __future__ import annotations

import argparse
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

import boto3
import httpx
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from dnslib import QTYPE, RCODE, RR, A
from dnslib.server import BaseResolver, DNSServer

from sandbox.google_apis import PROJECT
from sandbox.ports import LOOPBACK

FRESH_SECONDS = 0.2


Records = dict[str, tuple[int, tuple[str, ...]]]
"""TTL and addresses by name."""
Read = Callable[[], Records]


class FromServices(BaseResolver):  # type: ignore[misc]  # dnslib has no types
    """Answers queries for names of all zones of all services.

    Args:
        services: each reads all its records, or raises ``Silent``.
    """

    def __init__(self, services: Iterable[Read]) -> None:
        self._services = [Fresh(read) for read in services]

    def resolve(self, request: Any, handler: Any) -> Any:
        reply = request.reply()
        name = str(request.q.qname).rstrip(".").lower()
        found, silent = None, False
        for service in self._services:
            try:
                found = found or service.records().get(name)
            except Silent:
                silent = True
        if found is None:
            reply.header.rcode = RCODE.SERVFAIL if silent else RCODE.NXDOMAIN
        elif QTYPE[request.q.qtype] in ("A", "ANY"):
            ttl, addresses = found
            for address in addresses:
                reply.add_answer(RR(request.q.qname, QTYPE.A, ttl=ttl, rdata=A(address)))
        return reply


class Silent(Exception):
    """A service does not answer."""


class Fresh:
    """The records of one service, read anew when they are too old."""

    def __init__(self, read: Read) -> None:
        self._read = read
        self._lock = threading.Lock()
        self._read_at = 0.0
        self._records: Records = {}

    def records(self) -> Records:
        """Raises Silent: the service does not answer."""
        with self._lock:
            if time.monotonic() - self._read_at > FRESH_SECONDS:
                self._records = self._read()
                self._read_at = time.monotonic()
            return self._records


def route53(endpoint: str) -> Read:
    """All A records that Route 53 has."""
    client: Any = boto3.client(
        "route53",
        region_name="us-east-1",
        endpoint_url=endpoint,
        aws_access_key_id="emulator",
        aws_secret_access_key="emulator",
        config=Config(connect_timeout=1, read_timeout=1, retries={"max_attempts": 1}),
    )

    def read() -> Records:
        found: Records = {}
        try:
            zones = client.get_paginator("list_hosted_zones").paginate()
            for zone in (zone for page in zones for zone in page["HostedZones"]):
                pages = client.get_paginator("list_resource_record_sets").paginate(
                    HostedZoneId=zone["Id"]
                )
                for record in (r for page in pages for r in page["ResourceRecordSets"]):
                    if record["Type"] == "A":
                        addresses = tuple(r["Value"] for r in record["ResourceRecords"])
                        found[_plain(record["Name"])] = (int(record["TTL"]), addresses)
        except (BotoCoreError, ClientError) as error:
            raise Silent from error
        return found

    return read


def cloud_dns(endpoint: str) -> Read:
    """All A records that Cloud DNS has; plain calls, as resolvers know no client library."""
    client, root = httpx.Client(timeout=1), f"{endpoint}/dns/v1/projects/{PROJECT}/managedZones"

    def ask(path: str, **query: str) -> Any:
        answer = client.get(f"{root}{path}", params=query)
        answer.raise_for_status()
        return answer.json()

    def read() -> Records:
        found: Records = {}
        try:
            for zone in ask("").get("managedZones", ()):
                more: dict[str, str] = {}
                while True:
                    page = ask(f"/{zone['name']}/rrsets", **more)
                    for record in page.get("rrsets", ()):
                        if record["type"] == "A":
                            addresses = tuple(record["rrdatas"])
                            found[_plain(record["name"])] = (int(record["ttl"]), addresses)
                    if "nextPageToken" not in page:
                        break
                    more = {"pageToken": page["nextPageToken"]}
        except httpx.HTTPError as error:
            raise Silent from error
        return found

    return read


def _plain(name: str) -> str:
    return name.rstrip(".").lower()


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m sandbox.dns_server", description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--route53", required=True, help="endpoint of the API")
    parser.add_argument("--cloud-dns", help="endpoint of the API")
    wanted = parser.parse_args(argv)
    services = [route53(wanted.route53)]
    if wanted.cloud_dns:
        services.append(cloud_dns(wanted.cloud_dns))
    DNSServer(FromServices(services), port=wanted.port, address=LOOPBACK).start()


if __name__ == "__main__":
    main()
