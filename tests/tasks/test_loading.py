"""What is refused before any load is sent, each in one clear sentence."""

from __future__ import annotations

import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest

from domain.application import Application, parse
from domain.errors import Failed, SlipwayError, UsageError
from domain.load_plan import LoadPlan, Operation, Target
from domain.load_profile import PROFILES
from domain.load_run import Run, Second
from tasks import loading
from tasks.loading import _behaviours, _operations, _target, _View, check_reachable, profile_of
from tests.load.test_session import Handler, Server, serving

SHOP = """\
name: shop
services: {{web: {{command: run, port: 8000, routes: [/]{more}}}}}
smoke: [{{path: {path}, status: 200}}]
"""


def shop(path: str = "/a", more: str = "") -> Application:
    return parse(SHOP.format(path=path, more=more), "application.yaml")


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving(Server(("127.0.0.1", 0), Handler)) as started:
        yield started


def plan_for(server: Server, **more: Any) -> LoadPlan:
    given = {"scheme": "http", "connect_to": "127.0.0.1", "host": "shop.test", **more}
    target = Target(port=server.server_address[1], **given)
    return LoadPlan(profile=PROFILES["smoke"], target=target, workers=1, seed=1)


def test_a_target_that_answers_is_fine(server: Server) -> None:
    check_reachable(plan_for(server), shop())


def test_a_target_that_nobody_listens_at(server: Server) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        target = Target("http", "127.0.0.1", free.getsockname()[1], "shop.test")
        plan = LoadPlan(profile=PROFILES["smoke"], target=target, workers=1, seed=1)
        with pytest.raises(Failed) as refused:
            check_reachable(plan, shop())
    assert refused.value.code == "SLP180"
    assert "onnection refused" in refused.value.cause and "/a" in refused.value.cause


def test_a_certificate_that_is_not_accepted(tmp_path: Path) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", str(key), "-out",
         str(certificate), "-days", "1", "-subj", "/CN=shop.test"],
        check=True, capture_output=True,
    )  # fmt: skip
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    made = Server(("127.0.0.1", 0), Handler)
    made.socket = context.wrap_socket(made.socket, server_side=True)
    with serving(made) as started, pytest.raises(Failed) as refused:
        check_reachable(plan_for(started, scheme="https"), shop())
    assert refused.value.code == "SLP180"
    assert "certificate" in refused.value.cause


def test_a_target_that_leads_away(server: Server) -> None:
    with pytest.raises(UsageError) as refused:
        check_reachable(plan_for(server), shop("/away"))
    assert refused.value.code == "SLP183"
    assert "leads away to http://elsewhere.example" in refused.value.cause


def test_a_redirect_on_the_same_host_is_fine(server: Server) -> None:
    check_reachable(plan_for(server), shop("/hop"))


@pytest.mark.parametrize(
    ("name", "users", "words"),
    [
        ("10q", 0, "there are smoke, baseline"),
        ("10k", -5, "-5 users make no load"),
        ("10k", 300_000, "300000 users make no load"),
    ],
)
def test_a_profile_that_makes_no_load(name: str, users: int, words: str) -> None:
    with pytest.raises(UsageError) as refused:
        profile_of(name, users)
    assert refused.value.code == "SLP186"
    assert words in refused.value.cause


@pytest.mark.parametrize("url", ["shop.test", "ftp://shop.test"])
def test_a_target_that_is_no_url(url: str) -> None:
    with pytest.raises(UsageError, match="http or https"):
        _target(SimpleNamespace(), shop(), "production", url)  # type: ignore[arg-type]


def test_an_environment_without_a_route() -> None:
    platform: Any = SimpleNamespace(edge=SimpleNamespace(read=lambda name, environment: None))
    with pytest.raises(UsageError) as refused:
        _target(platform, shop(), "production", "")
    assert refused.value.code == "SLP006"


def test_behaviours_that_the_live_version_does_not_have(tmp_path: Path) -> None:
    application = parse(
        SHOP.format(path="/", more="") + "load: {behaviours: users.py}\n", "application.yaml"
    )
    platform: Any = SimpleNamespace(bundles=SimpleNamespace(materialize=lambda digest: tmp_path))
    services = {"web": SimpleNamespace(digest="sha256:a")}
    record: Any = SimpleNamespace(
        application=application, version="1.0", artifact=SimpleNamespace(services=services)
    )
    with pytest.raises(SlipwayError) as refused:
        _behaviours(platform, record)
    assert refused.value.code == "SLP182"
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "users.py").write_text("")
    assert _behaviours(platform, record) == tmp_path / "app" / "users.py"


def test_without_behaviours_and_openapi_users_do_the_smoke_checks(server: Server) -> None:
    target = plan_for(server).target
    assert list(_operations(shop("/hop"), target)) == [
        Operation("GET", "/hop", "/hop", expect=(200,))
    ]
    # An address of an OpenAPI that answers with something else is no reason to do nothing.
    with_openapi = shop("/hop", ", openapi: /a")
    assert list(_operations(with_openapi, target)) == list(_operations(shop("/hop"), target))


def test_a_server_that_is_slow_to_take_a_view_keeps_nobody_waiting(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a full machine it took seconds, the workers got no beat, and were taken for dead."""
    answered, told = threading.Event(), []

    def take(table: list[dict[str, str]], **_: object) -> None:
        told.append(table)
        answered.wait(10)

    log = SimpleNamespace(info=lambda *_: None, debug=print)
    monkeypatch.setattr(loading, "get_run_logger", lambda: log)
    monkeypatch.setattr(loading, "create_progress_artifact", lambda **_: uuid4())
    monkeypatch.setattr(loading, "update_progress_artifact", lambda *_, **__: None)
    monkeypatch.setattr(loading, "create_table_artifact", take)
    run = Run(PROFILES["smoke"], workers=1)
    run.seconds.update({at: Second(at, workers=1) for at in range(15)})
    with _View(plan_for(server)) as view:
        for at in (5, 10, 15):
            view.show(run, at)
        answered.set()
    assert [row["at"] for table in told for row in table] == ["0:05"]
