"""What reaches a Sentry server, what never does, and that it holds nobody up.

The server is a real HTTP server on loopback that speaks the envelope endpoint.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from blocks import sentry
from blocks.sentry import About, report
from domain.errors import AwaitingApproval, Failed, UsageError
from domain.units import parse_duration

ROOT = Path(__file__).resolve().parents[2]
PLANTED = "n7Qx-planted-9fL"


@dataclass
class Receiver:
    """An envelope endpoint: ``answer`` is its status; it waits for ``go`` before it answers."""

    answer: int = 200
    go: threading.Event = field(default_factory=threading.Event)
    came: threading.Event = field(default_factory=threading.Event)
    bodies: list[bytes] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    port: int = 0

    @property
    def dsn(self) -> str:
        return f"http://publickey@127.0.0.1:{self.port}/7"

    @property
    def environ(self) -> dict[str, str]:
        return {"SENTRY_DSN": self.dsn}

    @property
    def raw(self) -> str:
        return b"\n".join(self.bodies).decode()

    def event(self) -> dict[str, Any]:
        """The one event of the one envelope: its header, an item header, the item."""
        assert len(self.bodies) == 1
        lines = self.bodies[0].splitlines()
        assert json.loads(lines[1])["type"] == "event"
        found: dict[str, Any] = json.loads(lines[2])
        return found


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.delenv(name, raising=False)
    receiver = Receiver()
    receiver.go.set()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            assert "Content-Encoding" not in self.headers
            receiver.paths.append(self.path)
            receiver.bodies.append(body)
            receiver.came.set()
            receiver.go.wait(60)
            self.send_response(receiver.answer)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.handle_error = lambda *_: None  # type: ignore[method-assign]
    receiver.port = server.server_port
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    yield receiver
    receiver.go.set()
    server.shutdown()
    server.server_close()
    thread.join(10)


def raised(act: Any) -> BaseException:
    try:
        act()
    except BaseException as error:
        return error
    raise AssertionError("it was to raise")


def failing_release() -> None:
    step, actor = "smoke", "anna@example.com"
    assert actor
    raise Failed(
        "SLP053", f"the check `{step}` got 503", help="look at the log", detail="a user's line"
    )


ABOUT = About(
    application="shop",
    environment="production",
    version="1.1.0",
    release=12,
    flow="release",
    flow_run="3f2b7c1e-0000-4000-8000-000000000001",
)


def test_an_error_arrives_with_its_tags(receiver: Receiver) -> None:
    crumbs = ["stage build: pass after 3.1 s", "stage test: pass after 9.0 s"]
    assert report(raised(failing_release), ABOUT, crumbs=crumbs, environ=receiver.environ)
    event = receiver.event()
    assert receiver.paths == ["/api/7/envelope/"]
    assert event["tags"] == {
        "application": "shop",
        "application_version": "1.1.0",
        "release_number": "12",
        "flow": "release",
        "flow_run": "3f2b7c1e-0000-4000-8000-000000000001",
        "code": "SLP053",
    }
    assert event["environment"] == "production"
    assert event["release"].startswith("slipway@")
    assert [crumb["message"] for crumb in event["breadcrumbs"]["values"]] == crumbs


def test_an_error_shows_where_it_was_raised_and_with_which_plain_values(receiver: Receiver) -> None:
    report(raised(failing_release), ABOUT, environ=receiver.environ)
    (exception,) = receiver.event()["exception"]["values"]
    assert exception["type"] == "Failed"
    assert exception["value"] == "error[SLP053]: the check `smoke` got 503; look at the log"
    frame = exception["stacktrace"]["frames"][-1]
    assert frame["function"] == "failing_release"
    assert frame["filename"] == "tests/blocks/test_sentry.py"
    assert frame["vars"] == {"step": "smoke"}


def test_our_own_frames_are_marked_as_ours(receiver: Receiver) -> None:
    error = raised(lambda: parse_duration("ten"))
    report(error, environ=receiver.environ)
    frames = receiver.event()["exception"]["values"][0]["stacktrace"]["frames"]
    assert [(f["filename"], f["in_app"]) for f in frames][-1] == ("domain/units.py", True)
    assert not frames[0]["in_app"]


def test_log_lines_of_an_application_stay_here(receiver: Receiver) -> None:
    report(raised(failing_release), ABOUT, environ=receiver.environ)
    assert "a user's line" not in receiver.raw


def test_a_cause_comes_before_what_it_caused(receiver: Receiver) -> None:
    def act() -> None:
        try:
            raise ConnectionRefusedError("port 5432")
        except OSError as error:
            raise Failed("SLP014", "the database does not answer", help="wait") from error

    report(raised(act), environ=receiver.environ)
    values = receiver.event()["exception"]["values"]
    assert [value["type"] for value in values] == ["ConnectionRefusedError", "Failed"]


def test_a_crash_without_an_exception_is_a_message(receiver: Receiver) -> None:
    assert report("flow run release shop crashed", ABOUT, environ=receiver.environ)
    event = receiver.event()
    assert event["message"] == "flow run release shop crashed"
    assert event["tags"]["flow"] == "release"


def test_without_an_environment_sentry_does_not_take_it_for_production(receiver: Receiver) -> None:
    report(raised(failing_release), About(flow="build"), environ=receiver.environ)
    assert receiver.event()["environment"] == "unspecified"


def connect(settings: dict[str, Any], block: SecretStr) -> None:
    password = PLANTED
    innocent = f"it is {password}"
    url = f"postgresql://slipway:{password}@127.0.0.1/shop"
    DATABASE_URL = url
    environ = {"DATABASE_URL": url, "NOTE": password}
    bearer = f"Bearer {block.get_secret_value()}"
    try:
        raise OSError(f"refused: {DATABASE_URL} {bearer} {innocent} {environ} {settings}")
    except OSError as error:
        raise Failed(
            "SLP014", f"tried {url}, {password}", help=f"try {url}", where=f"at {url}"
        ) from error


def test_no_planted_secret_leaves(receiver: Receiver) -> None:
    secrets = {
        "local": PLANTED,
        "block": "secret-of-a-block-4471",
        "setting": "secret-of-a-setting-4472",
        "environment": "secret-of-the-environment-4473",
        "in an address of the environment": "secret-of-an-address-4474",
    }
    environ = receiver.environ | {
        "STRIPE_API_KEY": secrets["environment"],
        "BROKER": f"amqp://user:{secrets['in an address of the environment']}@mq",
    }
    settings = {"session_key": secrets["setting"], "size": 3}
    error = raised(lambda: connect(settings, SecretStr(secrets["block"])))
    crumbs = [f"asked with {value}" for value in secrets.values()]
    about = About(application=f"shop-{secrets['environment']}", environment="staging")
    assert report(error, about, crumbs=crumbs, environ=environ)
    for value in secrets.values():
        assert value not in receiver.raw
    assert receiver.dsn not in json.dumps(receiver.event())
    names = receiver.event()["exception"]["values"][-1]["stacktrace"]["frames"][-1]["vars"]
    assert names["password"] == names["DATABASE_URL"] == "[Filtered]"
    assert names["environ"] == "<dict>"
    assert names["innocent"] == "it is [Filtered]"


def test_a_secret_that_is_cut_is_cut_after_it_was_taken_out(receiver: Receiver) -> None:
    for characters in range(sentry._TEXT_CHARACTERS - 20, sentry._TEXT_CHARACTERS + 1, 5):
        receiver.bodies.clear()
        text = "x" * characters + f" postgresql://slipway:{PLANTED}@db/shop"
        report(raised(lambda text=text: int(text)), environ=receiver.environ)
        assert PLANTED[:5] not in receiver.raw


def test_source_lines_and_arguments_of_the_program_stay_here(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["slipway", "--hidden", "argument-of-the-program"])
    report(raised(failing_release), environ=receiver.environ)
    assert "context_line" not in receiver.raw
    assert "argument-of-the-program" not in receiver.raw


@pytest.mark.parametrize(
    "error",
    [
        UsageError("SLP003", "unknown environment", help="use another"),
        AwaitingApproval("SLP007", "waits", help="approve it"),
    ],
)
def test_what_is_expected_is_not_reported(receiver: Receiver, error: BaseException) -> None:
    assert not report(error, environ=receiver.environ)
    assert not receiver.bodies


def test_the_dsn_of_slipway_wins_and_an_empty_one_switches_off(receiver: Receiver) -> None:
    elsewhere = {"SENTRY_DSN": "http://key@127.0.0.1:9/1"}
    assert sentry.dsn(elsewhere | {"SLIPWAY_SENTRY_DSN": receiver.dsn}) == receiver.dsn
    assert sentry.dsn(elsewhere | {"SLIPWAY_SENTRY_DSN": ""}) == ""
    assert sentry.dsn(elsewhere) == elsewhere["SENTRY_DSN"]
    assert sentry.dsn({}) == ""


def test_a_server_that_never_answers_is_not_waited_for(receiver: Receiver) -> None:
    receiver.go.clear()
    assert report(raised(failing_release), environ=receiver.environ)
    assert receiver.came.is_set()
    assert not receiver.go.is_set()  # it still keeps its answer back, and we are here


@pytest.mark.parametrize("answer", [400, 429, 500])
def test_a_server_that_refuses_breaks_nothing(receiver: Receiver, answer: int) -> None:
    receiver.answer = answer
    report(raised(failing_release), environ=receiver.environ)
    assert len(receiver.bodies) == 1


def test_no_server_at_all_breaks_nothing(receiver: Receiver) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as gone:
        port = gone.server_port
    report(raised(failing_release), environ={"SENTRY_DSN": f"http://key@127.0.0.1:{port}/1"})


@pytest.mark.parametrize("wrong", ["not a dsn", "http://127.0.0.1/1", f"ftp://{PLANTED}@x/y"])
def test_a_wrong_dsn_is_a_warning_that_does_not_show_it(
    wrong: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        assert not report(raised(failing_release), environ={"SENTRY_DSN": wrong})
    assert "could not be reported to Sentry" in caplog.text
    assert wrong not in caplog.text


PROGRAM = """
import sys
from blocks import sentry
from domain.errors import Failed
sentry.report(Failed("SLP053", "a check failed", help="look"))
print("sentry_sdk" in sys.modules)
"""


def in_a_process(environ: dict[str, str]) -> str:
    kept = {k: v for k, v in os.environ.items() if k not in sentry.VARIABLES}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=ROOT, env=kept | environ, capture_output=True,
        text=True, timeout=60, check=True,
    )  # fmt: skip
    assert done.stderr == ""
    return done.stdout.strip()


def test_without_a_dsn_the_sdk_is_not_even_imported() -> None:
    assert in_a_process({}) == "False"


def test_a_process_ends_while_the_server_still_keeps_it_waiting(receiver: Receiver) -> None:
    receiver.go.clear()
    assert in_a_process(receiver.environ) == "True"
    assert receiver.came.is_set()
    assert not receiver.go.is_set()
