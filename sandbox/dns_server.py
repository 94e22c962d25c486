"""A name server that answers from the Route 53 API, with its real TTLs.

Only A records of the zones that the API has; for everything else it says that there is no such
name. Answers are read anew from the API after a fifth of a second, which stands for Route 53's
own propagation; an API that does not answer makes it say SERVFAIL, never an old address.
"""

from __future__ import annotations

import argparse
import threading
import time
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from dnslib import QTYPE, RCODE, RR, A
from dnslib.server import BaseResolver, DNSServer

from sandbox.ports import LOOPBACK

FRESH_SECONDS = 0.2


class FromRoute53(BaseResolver):  # type: ignore[misc]  # dnslib has no types
    """Answers queries for names of all hosted zones."""

    def __init__(self, endpoint: str) -> None:
        self._client: Any = boto3.client(
            "route53",
            region_name="us-east-1",
            endpoint_url=endpoint,
            aws_access_key_id="emulator",
            aws_secret_access_key="emulator",
            config=Config(connect_timeout=1, read_timeout=1, retries={"max_attempts": 1}),
        )
        self._lock = threading.Lock()
        self._read_at = 0.0
        self._records: dict[str, tuple[int, tuple[str, ...]]] = {}

    def resolve(self, request: Any, handler: Any) -> Any:
        reply = request.reply()
        name = str(request.q.qname).rstrip(".").lower()
        try:
            records = self._fresh()
        except (BotoCoreError, ClientError):
            reply.header.rcode = RCODE.SERVFAIL
            return reply
        found = records.get(name)
        if found is None:
            reply.header.rcode = RCODE.NXDOMAIN
        elif QTYPE[request.q.qtype] in ("A", "ANY"):
            ttl, addresses = found
            for address in addresses:
                reply.add_answer(RR(request.q.qname, QTYPE.A, ttl=ttl, rdata=A(address)))
        return reply

    def _fresh(self) -> dict[str, tuple[int, tuple[str, ...]]]:
        with self._lock:
            if time.monotonic() - self._read_at > FRESH_SECONDS:
                self._records = self._read()
                self._read_at = time.monotonic()
            return self._records

    def _read(self) -> dict[str, tuple[int, tuple[str, ...]]]:
        found: dict[str, tuple[int, tuple[str, ...]]] = {}
        zones = self._client.get_paginator("list_hosted_zones").paginate()
        for zone in (zone for page in zones for zone in page["HostedZones"]):
            pages = self._client.get_paginator("list_resource_record_sets").paginate(
                HostedZoneId=zone["Id"]
            )
            for record in (r for page in pages for r in page["ResourceRecordSets"]):
                if record["Type"] == "A":
                    addresses = tuple(r["Value"] for r in record["ResourceRecords"])
                    found[record["Name"].rstrip(".").lower()] = (int(record["TTL"]), addresses)
        return found


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m sandbox.dns_server", description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--route53", required=True, help="endpoint of the API")
    wanted = parser.parse_args(argv)
    DNSServer(FromRoute53(wanted.route53), port=wanted.port, address=LOOPBACK).start()


if __name__ == "__main__":
    main()
