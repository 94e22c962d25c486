"""Names on moto's Route 53 and an emulated Cloud DNS, and the server that answers from both."""

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

from blocks.names import Names, NameService, Record, open_names
from domain.errors import Failed, UsageError
from tasks.failing_over import resolved
from tests.kit.google import google_apis
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


@pytest.fixture(scope="module")
def google() -> Iterator[str]:
    with google_apis(major=16) as url:
        yield url


@pytest.fixture(params=["route53", "cloud-dns"])
def where(request: pytest.FixtureRequest, endpoint: str, google: str) -> NameService:
    if request.param == "cloud-dns":
        return NameService(kind="cloud-dns", zone="cloud.slipway.test", project="slipway",
                           endpoint=google, create=True)  # fmt: skip
    return NameService(zone="slipway.test", endpoint=endpoint, create=True)


@pytest.fixture
def names(where: NameService) -> Names:
    return open_names(where)


@pytest.fixture(scope="module")
def nameserver(endpoint: str, google: str) -> Iterator[str]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-m", "sandbox.dns_server", "--port", str(port), "--route53", endpoint,
         "--cloud-dns", google]
    )  # fmt: skip
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
    name = f"a.{names.zone}"
    names.point(Record(name, HERE, 5))
    names.point(Record(name, THERE, 1))
    names.point(Record(name, THERE, 1))
    assert names.read(name) == Record(name, THERE, 1)
    wait_until(lambda: resolved(nameserver, name) == THERE, "the change", 5)
    host, _, port = nameserver.partition(":")
    answer = dns.query.udp(
        dns.message.make_query(name.title(), "A"), host, port=int(port), timeout=2
    )
    assert answer.answer[0].ttl == 1
    assert name in names.names()
    names.remove(name)
    names.remove(name)
    assert names.read(name) is None
    wait_until(lambda: rcode(nameserver, name) == dns.rcode.NXDOMAIN, "no answer", 5)


def test_a_name_that_only_begins_alike_is_another(names: Names) -> None:
    names.point(Record(f"bb.{names.zone}", HERE, 5))
    assert names.read(f"b.{names.zone}") is None
    names.remove(f"bb.{names.zone}")


def test_a_name_of_another_zone_is_refused(names: Names) -> None:
    with pytest.raises(UsageError, match="not in the zone") as caught:
        names.point(Record("www.example.org", HERE, 5))
    assert caught.value.code == "SLP208"


def test_a_zone_that_is_not_there_is_told(where: NameService) -> None:
    other = where.model_copy(update={"zone": "nobody.test", "create": False})
    account = {"access_key": "a", "secret_key": "b"} if where.kind == "route53" else None
    with pytest.raises(UsageError, match=r"no zone nobody\.test"):
        open_names(other, account).read("a.nobody.test")


def test_a_service_that_is_down_is_told(where: NameService) -> None:
    gone = open_names(where.model_copy(update={"endpoint": "http://127.0.0.1:9"}))
    with pytest.raises(Failed) as caught:
        gone.point(Record(f"a.{where.zone}", HERE, 5))
    assert caught.value.code == "SLP208"
    assert "leads where it led before" in caught.value.help


def test_names_of_one_service_are_answered_while_the_other_is_silent(google: str) -> None:
    names = open_names(NameService(kind="cloud-dns", zone="cloud.slipway.test", project="slipway",
                                   endpoint=google, create=True))  # fmt: skip
    names.point(Record("c.cloud.slipway.test", HERE, 5))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-m", "sandbox.dns_server", "--port", str(port),
         "--route53", "http://127.0.0.1:9", "--cloud-dns", google]
    )  # fmt: skip
    try:
        wait_until(lambda: resolved(f"127.0.0.1:{port}", "c.cloud.slipway.test") == HERE, "it", 30)
        assert rcode(f"127.0.0.1:{port}", "d.cloud.slipway.test") == dns.rcode.SERVFAIL
    finally:
        process.terminate()
        process.wait(10)
        names.remove("c.cloud.slipway.test")


def test_many_names_come_in_pages(names: Names) -> None:
    wanted = [f"n{index}.{names.zone}" for index in range(105)]
    try:
        for name in wanted:
            names.point(Record(name, HERE, 5))
        assert set(wanted) <= set(names.names())
    finally:
        for name in wanted:
            names.remove(name)


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
