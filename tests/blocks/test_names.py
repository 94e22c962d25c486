"""Names on moto's Route 53, and the name server that answers from it."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator

import dns.message
import dns.query
import dns.rcode
import pytest
from moto.server import ThreadedMotoServer

from blocks.names import Names, NameService, Record
from domain.errors import Failed, UsageError
from tasks.failing_over import resolved
from tests.scenarios.world import wait_until

HERE, THERE = ("127.0.0.1",), ("127.0.0.2",)


@pytest.fixture(scope="module")
def service() -> Iterator[ThreadedMotoServer]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def endpoint(service: ThreadedMotoServer) -> str:
    host, port = service.get_host_and_port()
    return f"http://{host}:{port}"


@pytest.fixture
def names(endpoint: str) -> Names:
    return Names(NameService(zone="slipway.test", endpoint=endpoint, create=True))


@pytest.fixture(scope="module")
def nameserver(endpoint: str) -> Iterator[str]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-m", "sandbox.dns_server", "--port", str(port), "--route53", endpoint]
    )
    try:
        wait_until(lambda: rcode(f"127.0.0.1:{port}", "x.invalid") is not None, "an answer", 30)
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(10)


def rcode(nameserver: str, name: str) -> int | None:
    host, _, port = nameserver.partition(":")
    query = dns.message.make_query(name, "A")
    try:
        return int(dns.query.udp(query, host, port=int(port), timeout=2).rcode())
    except (dns.exception.DNSException, OSError):
        return None


def test_a_name_leads_where_it_was_pointed_last(names: Names, nameserver: str) -> None:
    names.point(Record("a.slipway.test", HERE, 5))
    names.point(Record("a.slipway.test", THERE, 1))
    assert names.read("a.slipway.test") == Record("a.slipway.test", THERE, 1)
    wait_until(lambda: resolved(nameserver, "a.slipway.test") == THERE, "the change", 5)
    host, _, port = nameserver.partition(":")
    answer = dns.query.udp(
        dns.message.make_query("A.Slipway.Test", "A"), host, port=int(port), timeout=2
    )
    assert answer.answer[0].ttl == 1
    assert "a.slipway.test" in names.names()
    names.remove("a.slipway.test")
    names.remove("a.slipway.test")
    assert names.read("a.slipway.test") is None
    wait_until(lambda: rcode(nameserver, "a.slipway.test") == dns.rcode.NXDOMAIN, "no answer", 5)


def test_a_name_that_only_begins_alike_is_another(names: Names) -> None:
    names.point(Record("bb.slipway.test", HERE, 5))
    assert names.read("b.slipway.test") is None
    names.remove("bb.slipway.test")


def test_a_name_of_another_zone_is_refused(names: Names) -> None:
    with pytest.raises(UsageError, match="not in the zone") as caught:
        names.point(Record("www.example.org", HERE, 5))
    assert caught.value.code == "SLP208"


def test_a_zone_that_is_not_there_is_told(endpoint: str) -> None:
    with pytest.raises(UsageError, match=r"no zone nobody\.test"):
        Names(NameService(zone="nobody.test", endpoint=endpoint, create=False),
              {"access_key": "a", "secret_key": "b"}).read("a.nobody.test")  # fmt: skip


def test_a_service_that_is_down_is_told() -> None:
    gone = Names(NameService(zone="slipway.test", endpoint="http://127.0.0.1:9", create=True))
    with pytest.raises(Failed) as caught:
        gone.point(Record("a.slipway.test", HERE, 5))
    assert caught.value.code == "SLP208"
    assert "leads where it led before" in caught.value.help


def test_a_name_server_without_its_service_says_so_and_no_old_address() -> None:
    """An address from before a failover would lead users to the lost side."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-m", "sandbox.dns_server", "--port", str(port),
         "--route53", "http://127.0.0.1:9"]
    )  # fmt: skip
    try:
        where = f"127.0.0.1:{port}"
        wait_until(lambda: rcode(where, "a.slipway.test") == dns.rcode.SERVFAIL, "SERVFAIL", 30)
        assert resolved(where, "a.slipway.test") == ()
    finally:
        process.terminate()
        process.wait(10)
