"""The client of a user against a real server: what must be right although it is lean."""

from __future__ import annotations

import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from domain.load_plan import Target
from load.session import Connections, Session

TIMEOUT = 1.5


class Told:
    """Everything that a session says of itself."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, str, int]] = []
        self.times: list[tuple[float, float, float]] = []
        self.new = self.again = self.answered = self.twice = 0

    def sent(self, at: float, due: float | None) -> None: ...

    def connected(self, *, again: bool) -> None:
        self.again += again
        self.new += not again

    def first_answer(self) -> None:
        self.answered += 1

    def repeated(self) -> None:
        self.twice += 1

    def cut_off(self) -> None: ...

    def finished(
        self, name: str, due: float, sent: float, done: float, failure: str, size: int
    ) -> None:
        self.requests.append((name, failure, size))
        self.times.append((due, sent, done))


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None: ...

    def do_GET(self) -> None:
        self.server.seen.append((self.command, self.path, dict(self.headers)))  # type: ignore[attr-defined]
        length = int(self.headers.get("content-length") or 0)
        body = self.rfile.read(length)
        match self.path.partition("?")[0]:
            case "/set":
                self.answer(b"set", {"Set-Cookie": "session=abc; Path=/; HttpOnly"})
            case "/set-old":
                self.answer(b"", {"Set-Cookie": "session=; Max-Age=0; Path=/"})
            case "/set-elsewhere":
                self.answer(b"", {"Set-Cookie": "deep=1; Path=/deep"})
            case "/hop":
                self.answer(b"", {"Location": "/end?x=1"}, 302)
            case "/away":
                self.answer(b"", {"Location": "http://elsewhere.example/"}, 302)
            case "/round":
                self.answer(b"", {"Location": "/round"}, 307)
            case "/chunked":
                self.send_response(200)
                self.send_header("Transfer-Encoding", "chunked")
                self.end_headers()
                self.wfile.write(b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n")
            case "/close":
                self.answer(b"bye", {"Connection": "close"})
            case "/slow":
                threading.Event().wait(TIMEOUT + 2)
            case "/echo":
                self.answer(body)
            case "/missing":
                self.answer(b"", {}, 404)
            case "/drop":
                self.close_connection = True
                self.connection.shutdown(socket.SHUT_RDWR)
            case "/junk":
                self.wfile.write(b"this is not HTTP\r\n\r\n")
                self.close_connection = True
            case _:
                self.answer(self.path.encode())

    do_POST = do_PUT = do_DELETE = do_GET

    def answer(self, body: bytes, headers: dict[str, str] | None = None, status: int = 200) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None: ...


Make = Callable[..., tuple[Session, Told]]


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving(Server(("127.0.0.1", 0), Handler)) as started:
        yield started


class serving:
    """A server in a thread of its own."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.server.seen = []  # type: ignore[attr-defined]

    def __enter__(self) -> Server:
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()
        return self.server

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def user(server: Server) -> Iterator[Make]:
    made: list[Session] = []

    def make(port: int = 0, **more: Any) -> tuple[Session, Told]:
        told = Told()
        given = {"scheme": "http", "connect_to": "127.0.0.1", "host": "shop.test", **more}
        target = Target(port=port or server.server_address[1], **given)
        session = Session(Connections(target, TIMEOUT), told, TIMEOUT)
        made.append(session)
        return session, told

    yield make
    for session in made:
        session.close()


def last(server: Server) -> tuple[str, str, dict[str, str]]:
    found: tuple[str, str, dict[str, str]] = server.seen[-1]  # type: ignore[attr-defined]
    return found


def test_one_connection_serves_many_requests(user: Make, server: Server) -> None:
    session, told = user()
    for _ in range(3):
        assert session.get("/a?b=c", name="/a").body == b"/a?b=c"
    assert (told.new, told.again, told.answered) == (1, 0, 1)
    assert told.requests == [("GET /a", "", 6)] * 3
    assert last(server)[2]["Host"] == "shop.test"


def test_a_body_and_headers_arrive(user: Make, server: Server) -> None:
    session, _ = user()
    session.headers["Authorization"] = "Bearer x"
    assert session.post("/echo", json={"a": 1}).json() == {"a": 1}
    assert last(server)[2]["Content-Type"] == "application/json"
    assert last(server)[2]["Authorization"] == "Bearer x"
    assert session.put("/echo", body=b"raw", headers={"X-One": "1"}).body == b"raw"
    assert last(server)[2]["X-One"] == "1"


def test_a_chunked_answer_is_read_to_its_end(user: Make) -> None:
    session, told = user()
    assert session.get("/chunked").body == b"abcde"
    assert session.get("/b").body == b"/b"
    assert told.new == 1


def test_cookies_are_kept_by_path_and_forgotten_when_they_are_old(
    user: Make, server: Server
) -> None:
    session, _ = user()
    session.get("/set")
    session.get("/a")
    assert last(server)[2]["Cookie"] == "session=abc"
    session.get("/set-elsewhere")
    session.get("/deep/er")
    assert "deep=1" in last(server)[2]["Cookie"] and "session=abc" in last(server)[2]["Cookie"]
    session.get("/set-old")
    session.get("/a")
    assert "Cookie" not in last(server)[2]


def test_two_users_do_not_share_cookies(user: Make, server: Server) -> None:
    one, other = user()[0], user()[0]
    one.get("/set")
    other.get("/a")
    assert "Cookie" not in last(server)[2]


def test_redirects_are_followed_and_count_as_one_request(user: Make, server: Server) -> None:
    session, told = user()
    assert session.post("/hop", json={"a": 1}).body == b"/end?x=1"
    assert last(server)[0] == "GET"  # as browsers do after 302
    assert told.requests == [("POST /hop", "", 8)]


def test_a_redirect_to_another_host_is_a_failure_and_is_not_followed(user: Make) -> None:
    session, told = user()
    answer = session.get("/away")
    assert (answer.status, answer.ok) == (0, False)
    assert told.requests[0][1] == "redirected away to http://elsewhere.example"


def test_redirects_in_a_circle_end(user: Make) -> None:
    session, told = user()
    session.get("/round")
    assert told.requests[0][1] == "redirected more than 5 times"


def test_a_connection_that_the_server_ends_is_made_again(user: Make) -> None:
    session, told = user()
    assert session.get("/close").ok and session.get("/a").ok
    assert (told.new, told.again, told.twice) == (1, 1, 0)


def test_an_unexpected_status_is_a_failure(user: Make) -> None:
    session, told = user()
    assert not session.get("/missing").ok
    assert session.get("/missing", expect=(404,)).ok
    assert [failure for _, failure, _ in told.requests] == ["HTTP 404", ""]


def test_a_timeout_is_a_failure_and_as_long_as_its_limit(user: Make) -> None:
    """wrk leaves it out of the percentiles: p99 0.85 ms with 100 of them."""
    session, told = user()
    assert session.get("/slow").failure == f"no answer within {TIMEOUT:g} s"
    due, sent, done = told.times[0]
    assert done - sent >= TIMEOUT and due == sent
    assert session.get("/a").ok  # on a connection of its own


def test_the_due_time_counts_and_not_the_sending(user: Make) -> None:
    session, told = user()
    session.get("/warm")
    session.due = told.times[0][0] - 5
    session.get("/a")
    session.get("/a")
    due, sent, done = told.times[1]
    assert due == told.times[0][0] - 5 < sent < done
    assert told.times[2][0] == told.times[2][1]  # nothing was due, so it was sent when it was sent


def test_a_dropped_request_is_repeated_once_and_told(user: Make) -> None:
    session, told = user()
    session.get("/a")
    assert session.get("/drop").failure == "the connection was closed before the answer"
    assert told.twice == 1


def test_what_may_not_be_repeated_is_not(user: Make, server: Server) -> None:
    session, told = user()
    session.get("/a")
    before = len(server.seen)  # type: ignore[attr-defined]
    assert not session.post("/drop").ok
    assert told.twice == 0
    assert len(server.seen) == before + 1  # type: ignore[attr-defined]


def test_an_answer_that_is_not_http_is_a_failure(user: Make) -> None:
    session, told = user()
    session.get("/junk")
    assert told.requests[0][1].startswith("the answer is not HTTP")


def test_nobody_there_is_a_failure(user: Make) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        session, told = user(port=free.getsockname()[1])
        session.get("/a")
    assert told.requests[0][1] == "cannot connect: connection refused"


@pytest.mark.parametrize(
    ("path", "headers"),
    [
        ("no-slash", {}),
        ("/a b", {}),
        ("/a\r\nX: 1", {}),
        ("/a", {"X": "1\r\nY: 2"}),
        ("/", {"X Y": ""}),
    ],
)
def test_what_is_no_request_is_refused_before_it_is_sent(
    user: Make, path: str, headers: dict[str, str]
) -> None:
    session, told = user()
    with pytest.raises(ValueError, match="is no"):
        session.get(path, headers=headers)
    assert told.new == 0


def test_tls_is_checked_unless_it_is_said_not_to(user: Make, tmp_path: Path) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", str(key), "-out",
         str(certificate), "-days", "1", "-subj", "/CN=shop.test",
         "-addext", "subjectAltName=DNS:shop.test"],
        check=True, capture_output=True,
    )  # fmt: skip
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    made = Server(("127.0.0.1", 0), Handler)
    made.socket = context.wrap_socket(made.socket, server_side=True)
    with serving(made) as started:
        port = started.server_address[1]
        careful, told = user(port=port, scheme="https")
        careful.get("/a")
        assert "self-signed certificate" in told.requests[0][1]
        careless, told = user(port=port, scheme="https", verify=False)
        assert careless.get("/a").body == b"/a"
        assert told.requests[0][1] == ""


def test_more_descriptors_than_select_knows_are_no_trouble(user: Make) -> None:
    """`select` ends at 1,024; with ten thousand users every second request would have failed."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 4096), hard))
    held = [socket.socket() for _ in range(1100)]
    try:
        session, told = user()
        assert session.get("/a").ok and session.get("/a").ok
        assert (told.new, told.again) == (1, 0)
    finally:
        for each in held:
            each.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
