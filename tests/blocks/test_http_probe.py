"""A smoke check passes only on the expected answer, and says what it saw."""

from __future__ import annotations

import asyncio
import http.server
import socket
import threading
import time
from collections.abc import Callable, Iterator
from urllib.parse import urlsplit

import pytest

from blocks.http_probe import probe
from domain.verdict import Check, Verdict

Serve = Callable[[bytes], str]


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        bodies = {
            "/healthz": b"ok",
            "/host": self.headers["Host"].encode(),
            "/long": b"x" * 500,
            "/huge": b"y" * 3_000_000 + b"needle",
        }
        path = urlsplit(self.path).path
        self.send_response({"/moved": 302, "/gone": 410}.get(path, 200))
        if path == "/moved":
            self.send_header("Location", "/healthz")
        if path == "/odd":
            self.send_header("Content-Type", "text/plain; charset=klingon")
        body = bodies.get(path, b"")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        try:
            self.wfile.write(body)
        except OSError:
            self.close_connection = True  # the probe has read enough

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def base() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@pytest.fixture
def raw() -> Iterator[Serve]:
    """A server that answers one connection with given bytes and then holds it open or closes."""
    sockets: list[socket.socket] = []

    def serve(answer: bytes) -> str:
        listener = socket.create_server(("127.0.0.1", 0))
        sockets.append(listener)

        def accept() -> None:
            connection, _ = listener.accept()
            sockets.append(connection)
            connection.recv(65536)
            connection.sendall(answer)
            if not answer:
                connection.close()

        threading.Thread(target=accept, daemon=True).start()
        return f"http://127.0.0.1:{listener.getsockname()[1]}"

    yield serve
    for opened in sockets:
        opened.close()


def test_the_expected_answer_passes(base: str) -> None:
    check = probe(base, {}, "/healthz", 200, "ok")
    assert check == Check(
        name="GET /healthz",
        verdict=Verdict.PASS,
        reason=f"GET {base}/healthz: expected 200 with 'ok' in the body, got 200",
        value=200,
        limit="200 with 'ok' in the body",
        samples=1,
    )


@pytest.mark.parametrize(
    ("path", "status", "contains", "seen"),
    [
        ("/gone", 200, None, "expected 200, got 410 without a body"),
        ("/healthz", 404, None, "expected 404, got 200 with the body 'ok'"),
        ("/healthz", 200, "fine", "expected 200 with 'fine' in the body, got 200 with the body"),
        ("/moved", 200, None, "got 302"),
        ("/healthz", 200, "OK", "'ok'"),
        ("/odd", 200, "x", "got 200 without a body"),
    ],
)
def test_another_answer_fails_and_is_shown(
    base: str, path: str, status: int, contains: str | None, seen: str
) -> None:
    check = probe(base, {}, path, status, contains)
    assert check.verdict is Verdict.FAIL
    assert seen in check.reason


def test_a_redirect_can_be_the_expected_answer(base: str) -> None:
    assert probe(base, {}, "/moved", 302).verdict is Verdict.PASS


def test_the_host_header_is_sent_and_named(base: str) -> None:
    check = probe(base, {"Host": "app.localhost"}, "/host", 200, "app.localhost")
    assert check.verdict is Verdict.PASS
    assert "(Host: app.localhost)" in check.reason


def test_only_the_start_of_a_body_is_shown(base: str) -> None:
    check = probe(base, {}, "/long", 201)
    assert "x" * 200 + "'" in check.reason
    assert "x" * 201 not in check.reason


def test_a_huge_body_is_not_read_to_its_end(base: str) -> None:
    check = probe(base, {}, "/huge", 200, "needle")
    assert check.verdict is Verdict.FAIL
    assert "only the first 1048576 bytes were read" in check.reason


def test_nobody_listening_is_an_error_and_no_exception() -> None:
    with socket.create_server(("127.0.0.1", 0)) as reserved:
        port = reserved.getsockname()[1]
    check = probe(f"http://127.0.0.1:{port}", {}, "/")
    assert (check.verdict, check.value, check.samples) == (Verdict.ERROR, None, 0)
    assert "no answer" in check.reason


@pytest.mark.parametrize("answer", [b"", b"not http at all\r\n\r\n"])
def test_a_broken_answer_is_an_error(raw: Serve, answer: bytes) -> None:
    assert probe(raw(answer), {}, "/", timeout_seconds=5).verdict is Verdict.ERROR


@pytest.mark.parametrize(
    "answer",
    [b"HTTP/1.1 200 OK\r\nX-", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\npart"],
    ids=["head", "body"],
)
def test_an_answer_that_does_not_end_is_an_error_in_time(raw: Serve, answer: bytes) -> None:
    check = probe(raw(answer), {}, "/", timeout_seconds=0.3)
    assert check.verdict is Verdict.ERROR
    assert "0.3 s" in check.reason


def test_an_answer_that_drips_is_given_up_at_the_deadline() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def drip() -> None:
            connection, _ = listener.accept()
            try:
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\n")
                for _ in range(600):
                    connection.sendall(b".")
                    time.sleep(0.05)
            except OSError:
                connection.close()

        threading.Thread(target=drip, daemon=True).start()
        base = f"http://127.0.0.1:{listener.getsockname()[1]}"
        check = probe(base, {}, "/", timeout_seconds=0.4)
    assert check.verdict is Verdict.ERROR


@pytest.mark.parametrize("base", ["http://127.0.0.1:99999", "nonsense", "http://[bad", "ftp://x"])
def test_an_address_that_is_none_is_an_error(base: str) -> None:
    assert probe(base, {}, "/").verdict is Verdict.ERROR


def test_it_can_be_called_inside_an_event_loop(base: str) -> None:
    async def inside() -> Check:
        return probe(base, {}, "/healthz")

    assert asyncio.run(inside()).verdict is Verdict.PASS
