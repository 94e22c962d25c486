"""The scanners with their real tools on small planted sources, and with tools that misbehave."""

from __future__ import annotations

import json
import os
import sys
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import date
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import psutil
import pytest

from blocks.osv import OsvApi, OsvDirectory, installed_packages, locked_packages
from blocks.scanners import bandit, dependencies, detect_secrets, hadolint, program, schemathesis
from domain.advisories import Package
from domain.errors import Failed
from domain.findings import Scanner, ScannerReport, ScanPolicy, Severity
from domain.verdict import Verdict

TODAY = date(2026, 11, 23)
ADVISORIES = Path(__file__).parents[2] / "examples" / "advisories"
# Put together here, so that this file holds no key that a scanner would find in it.
AWS_KEY = "AKIA" + "IOSFODNN7ABCDEF1"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    folder.mkdir()
    return folder


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def places(report: ScannerReport) -> dict[str, str]:
    return {finding.id: finding.where for finding in report.findings}


# --- bandit -------------------------------------------------------------------------------


def test_bandit_names_the_rule_the_line_and_the_severity(source: Path) -> None:
    write(source, "app/run.py", "import subprocess\nsubprocess.call(input(), shell=True)\n")
    report = bandit.scan(source, scope="api")
    assert report.evidence is Verdict.PASS and report.scope == "api"
    assert report.tool.startswith("bandit 1.")
    assert "1 Python files" in report.checked_against
    shell = next(f for f in report.findings if f.id == "B602")
    assert shell.where == "app/run.py:2"
    assert shell.url.startswith("https://")


def test_bandit_looks_at_every_file_but_tests_and_environments(source: Path) -> None:
    danger = "eval(input())\n"
    for name in ("app/a.py", "shop.git/b.py", "x.svn.d/c.py", "-d.py", "eggs.egg/e.py"):
        write(source, name, danger)
    for name in ("tests/t.py", "app/test_x.py", "conftest.py", ".venv/lib/x.py"):
        write(source, name, danger)
    report = bandit.scan(source)
    assert report.problem is None
    assert sorted(f.where for f in report.findings if f.id == "B307") == [
        "-d.py:1",
        "app/a.py:1",
        "eggs.egg/e.py:1",
        "shop.git/b.py:1",
        "x.svn.d/c.py:1",
    ]
    assert "3 test files left out" in report.checked_against


def test_the_source_cannot_mute_bandit(source: Path) -> None:
    write(source, "a.py", "eval(input())  # nosec\n")
    write(source, ".bandit", "[bandit]\nskips: B307\nexclude: /\n")
    write(source, "setup.cfg", "[bandit]\nskips: B307\n")
    assert "B307" in places(bandit.scan(source))


def test_the_source_cannot_take_the_place_of_the_scanner(source: Path) -> None:
    for name in ("bandit.py", "json.py", "detect_secrets.py", "argparse.py"):
        write(source, name, "raise SystemExit(0)\n")
    write(source, "a.py", f"eval(input())\nKEY = '{AWS_KEY}'\n")
    assert "B307" in places(bandit.scan(source))
    assert "aws-access-key" in places(detect_secrets.scan(source))


def test_python_that_does_not_parse_is_an_error(source: Path) -> None:
    write(source, "good.py", "x = 1\n")
    write(source, "bad.py", "def (:\n")
    report = bandit.scan(source)
    assert report.evidence is Verdict.ERROR
    assert "1 of 2 files" in str(report.problem) and "bad.py" in str(report.problem)


@pytest.mark.parametrize("name", ["page.html", "tests/test_a.py"])
def test_bandit_does_not_apply_without_python(source: Path, name: str) -> None:
    write(source, name, "x = 1\n")
    report = bandit.scan(source)
    assert report.evidence is Verdict.NOT_RUN and "no Python" in str(report.not_applicable)


# --- detect-secrets -----------------------------------------------------------------------


def test_a_secret_is_named_by_kind_and_line_and_never_shown(source: Path) -> None:
    write(source, "settings.py", f"DEBUG = False\nKEY = '{AWS_KEY}'\n")
    write(source, "readme.md", "nothing here\n")
    report = detect_secrets.scan(source)
    assert places(report) == {"aws-access-key": "settings.py:2"}
    assert report.findings[0].severity is Severity.HIGH
    assert "2 of 2 files" in report.checked_against and "offline" in report.checked_against
    assert AWS_KEY not in report.model_dump_json()


def test_the_source_cannot_mute_detect_secrets(source: Path) -> None:
    write(source, "a.py", f"KEY = '{AWS_KEY}'  # pragma: allowlist secret\n")
    write(source, ".secrets.baseline", "{}")
    assert "aws-access-key" in places(detect_secrets.scan(source))


@pytest.mark.parametrize("name", ["my_swagger.py", "no_extension", "config.yaml"])
def test_no_text_is_passed_over_for_its_name(source: Path, name: str) -> None:
    write(source, name, f"key: '{AWS_KEY}'\n")
    assert places(detect_secrets.scan(source)) == {"aws-access-key": f"{name}:1"}


def test_text_in_another_encoding_is_scanned_and_binary_files_are_not_counted(
    source: Path,
) -> None:
    (source / "app").mkdir()
    (source / "app/latin.py").write_bytes(
        f"NAME = 'K\xe4se'\nKEY = '{AWS_KEY}'\n".encode("latin-1")
    )
    (source / "photo").write_bytes(b"\xff\xd8\x00\x01")
    write(source, "logo.svg", "<svg/>")
    write(source, "plain.py", "x = 1\n")
    report = detect_secrets.scan(source)
    assert places(report) == {"aws-access-key": "app/latin.py:2"}
    assert report.checked == 2 and "2 of 4 files" in report.checked_against


def test_a_link_out_of_the_source_is_an_error(source: Path) -> None:
    outside = write(source.parent, "outside.py", "eval(input())\n")
    (source / "inside.py").write_text("x = 1\n")
    (source / "link.py").symlink_to(outside)
    report = detect_secrets.scan(source)
    assert report.evidence is Verdict.ERROR and "link.py" in str(report.problem)


def test_a_link_within_the_source_is_scanned_once(source: Path) -> None:
    write(source, "a.py", f"KEY = '{AWS_KEY}'\n")
    (source / "b.py").symlink_to("a.py")
    report = detect_secrets.scan(source)
    assert report.problem is None and report.checked == 1 and len(report.findings) == 1


def test_a_missing_source_is_an_error(source: Path) -> None:
    for scan in (bandit.scan, detect_secrets.scan, hadolint.scan):
        report = scan(source / "gone")
        assert report.evidence is Verdict.ERROR and "no folder" in str(report.problem)


def test_long_lists_of_files_are_split_into_batches(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a.py", "b.py", "c.py"):
        write(source, name, f"KEY = '{AWS_KEY}'\n")
    monkeypatch.setattr(program, "ARGUMENTS_BYTES", 12)
    report = detect_secrets.scan(source)
    assert len(report.findings) == 3 and report.checked == 3
    assert list(program.batches(["./a.py", "./b.py", "x" * 99])) == [
        ["./a.py"],
        ["./b.py"],
        ["x" * 99],
    ]


# --- hadolint -----------------------------------------------------------------------------


def test_hadolint_looks_at_every_container_file(source: Path) -> None:
    write(source, "Containerfile", "FROM debian\nRUN sudo ls\n")
    write(source, "deploy/web.dockerfile", "FROM debian\n")
    write(source, ".dockerignore", "x\n")
    report = hadolint.scan(source)
    assert report.evidence is Verdict.PASS and report.checked == 2
    found = {(f.id, f.where, f.severity) for f in report.findings}
    assert ("DL3004", "Containerfile:2", Severity.HIGH) in found
    assert ("DL3006", "deploy/web.dockerfile:1", Severity.MEDIUM) in found


def test_the_source_cannot_mute_hadolint(source: Path) -> None:
    write(source, "Dockerfile", "# hadolint global ignore=DL3006\nFROM debian\n")
    write(source, ".hadolint.yaml", "ignored: [DL3006]\n")
    assert "DL3006" in places(hadolint.scan(source))


def test_a_container_file_that_does_not_parse_is_an_error(source: Path) -> None:
    write(source, "Dockerfile", "FROM debian\nNONSENSE x\n")
    report = hadolint.scan(source)
    assert report.evidence is Verdict.ERROR and "Dockerfile:2" in str(report.problem)


def test_hadolint_does_not_apply_without_a_container_file(source: Path) -> None:
    report = hadolint.scan(source)
    assert report.evidence is Verdict.NOT_RUN and report.not_applicable


# --- tools that misbehave -----------------------------------------------------------------

Scan = Callable[[Path], ScannerReport]


def _fuzz(source: Path) -> ScannerReport:
    return schemathesis.scan("http://127.0.0.1:9", "/openapi.json", max_examples=1, seconds=5)


SCANS: list[tuple[str, Scan]] = [
    ("bandit", bandit.scan),
    ("detect-secrets", detect_secrets.scan),
    ("hadolint", hadolint.scan),
    ("schemathesis", _fuzz),
]


@pytest.fixture
def fill(source: Path) -> None:
    write(source, "app.py", "x = 1\n")
    write(source, "Dockerfile", "FROM debian:12\n")


def _pretend(monkeypatch: pytest.MonkeyPatch, folder: Path, script: str) -> None:
    """Put one script in the place of every tool."""
    fake = write(folder, "fake-tool", f"#!{sys.executable}\n{script}\n")
    fake.chmod(0o755)
    monkeypatch.setattr(program, "find", lambda name: fake)


@pytest.mark.usefixtures("fill")
@pytest.mark.parametrize(("name", "scan"), SCANS)
def test_a_missing_tool_is_an_error_that_says_how_to_install_it(
    name: str, scan: Scan, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(program.sys, "executable", str(tmp_path / "empty" / "python"))
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    report = scan(source)
    assert report.evidence is Verdict.ERROR and not report.findings
    assert name in str(report.problem) and "slipway[scan]" in report.remedy


MISBEHAVIOUR = {
    "exits well and says nothing": "",
    "exits well and says {}": "print('{}')",
    "exits well and says null": "print('null')",
    "prints garbage": "print('<html>oops</html>')",
    "prints half a document": "print('{\"errors\": [')",
    "prints bytes": "import os; os.write(1, bytes(range(256)))",
    "crashes": "raise RuntimeError('boom')",
    "exits 3": "raise SystemExit(3)",
    "is killed": "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
}


@pytest.mark.usefixtures("fill")
@pytest.mark.parametrize("script", MISBEHAVIOUR.values(), ids=MISBEHAVIOUR.keys())
@pytest.mark.parametrize(("name", "scan"), SCANS)
def test_a_tool_that_misbehaves_is_an_error_and_never_clean(
    name: str,
    scan: Scan,
    script: str,
    source: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _pretend(monkeypatch, tmp_path, script)
    report = scan(source)
    assert report.evidence is Verdict.ERROR, report
    assert name in str(report.problem) and report.remedy


@pytest.mark.usefixtures("fill")
def test_a_tool_that_leaves_files_out_is_an_error(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = {"errors": [], "results": [], "metrics": {"_totals": {}, "./other.py": {}}}
    _pretend(monkeypatch, tmp_path, f"print('''{json.dumps(answer)}''')")
    report = bandit.scan(source)
    assert report.evidence is Verdict.ERROR
    assert "left out 1 of 1 files" in str(report.problem) and "app.py" in str(report.problem)


@pytest.mark.parametrize(
    ("plugins", "log", "cause"),
    [([], "Checking file: app.py", "without a detector"), ([{"name": "X"}], "", "said nothing of")],
)
def test_detect_secrets_that_did_not_look_is_an_error(
    plugins: list[dict[str, str]],
    log: str,
    cause: str,
    source: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write(source, "app.py", "x = 1\n")
    answer = json.dumps({"version": "1.5.0", "plugins_used": plugins, "results": {}})
    script = f"import sys; print('{answer}'); print('{log}', file=sys.stderr)"
    _pretend(monkeypatch, tmp_path, script)
    report = detect_secrets.scan(source)
    assert report.evidence is Verdict.ERROR and cause in str(report.problem)


def wait_until_gone(pid: int) -> None:
    """Or until nobody has collected it yet."""
    if psutil.pid_exists(pid):
        _, alive = psutil.wait_procs([psutil.Process(pid)], timeout=5)
        assert not [p for p in alive if p.status() != psutil.STATUS_ZOMBIE]


def test_a_tool_that_does_not_end_is_stopped_with_its_children(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(source, "app.py", "x = 1\n")
    pids = tmp_path / "pids"
    script = (
        "import os, subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        f"open({str(pids)!r}, 'w').write(f'{{os.getpid()}} {{child.pid}}')\n"
        "time.sleep(60)"
    )
    _pretend(monkeypatch, tmp_path, script)
    report = bandit.scan(source, seconds=2)
    assert report.evidence is Verdict.ERROR and "within 2 s" in str(report.problem)
    for pid in pids.read_text().split():
        wait_until_gone(int(pid))


def test_a_tool_that_is_stopped_takes_an_orphan_with_it_that_holds_its_output(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that detect-secrets forked while it was killed kept a cancelled release waiting."""
    write(source, "app.py", "x = 1\n")
    pid, lived_on = tmp_path / "pid", tmp_path / "lived-on"
    script = (
        "import os, time\n"
        "if not os.fork():\n"
        "    if not os.fork():\n"
        f"        open({str(pid)!r}, 'w').write(str(os.getpid()))\n"
        "        time.sleep(60)\n"
        f"        open({str(lived_on)!r}, 'w')\n"
        "    os._exit(0)\n"
        "os.wait()\n"
        "time.sleep(60)"
    )
    _pretend(monkeypatch, tmp_path, script)
    report = bandit.scan(source, seconds=2)
    assert report.evidence is Verdict.ERROR and "within 2 s" in str(report.problem)
    wait_until_gone(int(pid.read_text()))
    assert not lived_on.exists()


def test_a_tool_sees_nothing_of_our_environment(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLOUD_TOKEN", "t0psecret")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    _pretend(monkeypatch, tmp_path, "import json, os; print(json.dumps(dict(os.environ)))")
    seen = json.loads(program.run("anything", [], cwd=source, seconds=10).stdout)
    assert "CLOUD_TOKEN" not in seen and "PYTHONPATH" not in seen
    assert seen["HOME"] != os.environ.get("HOME")


# --- schemathesis -------------------------------------------------------------------------

Answer = tuple[int, str, bytes]


@contextmanager
def serving(answer: Callable[[str, str, bytes], Answer]) -> Iterator[str]:
    """A local HTTP server; ``answer`` gets method, path and body."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True  # else each answer waits 40 ms for an acknowledgement

        def log_message(self, *_: object) -> None: ...

        def handle_one(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            status, kind, content = answer(self.command, self.path, body)
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            if status == 405:
                self.send_header("Allow", "GET")
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = do_OPTIONS = do_TRACE = do_QUERY = (
            handle_one
        )

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)


def as_json(value: object, status: int = 200) -> Answer:
    return status, "application/json", json.dumps(value).encode()


def openapi(paths: dict[str, Any]) -> dict[str, Any]:
    return {"openapi": "3.1.0", "info": {"title": "t", "version": "1"}, "paths": paths}


ITEM = {
    "get": {
        "parameters": [
            {"name": "id", "in": "query", "required": True, "schema": {"type": "integer"}}
        ],
        "responses": {
            "200": {
                "description": "ok",
                "content": {
                    "application/json": {
                        "schema": {
                            "type": "object",
                            "properties": {"id": {"type": "integer"}},
                            "required": ["id"],
                        }
                    }
                },
            },
            "422": {"description": "not an integer"},
        },
    }
}


def shop(method: str, path: str, crash_above: int | None) -> Answer:
    """An API with one operation, that may crash on large numbers."""
    if path.endswith("/openapi.json"):
        return as_json(openapi({"/items": ITEM}))
    where, _, query = path.partition("?")
    if where.rsplit("/", 1)[-1] != "items":
        return as_json({}, 404)
    if method != "GET":
        return as_json({}, 405)
    try:
        number = int(query.removeprefix("id="))
    except ValueError:
        return as_json({}, 422)
    if crash_above is not None and abs(number) > crash_above:
        return as_json({"trace": "boom"}, 500)
    return as_json({"id": number})


def fuzz(base_url: str, path: str | None = "/openapi.json", seconds: float = 60) -> ScannerReport:
    return schemathesis.scan(base_url, path, max_examples=10, seconds=seconds, scope="api")


def test_an_api_that_crashes_on_some_input_is_found_with_the_request_that_does_it() -> None:
    with serving(lambda method, path, _: shop(method, path, crash_above=3)) as base_url:
        report = fuzz(base_url)
    assert report.problem is None
    crash = next(f for f in report.findings if f.id == "ST101")
    assert crash.severity is Severity.CRITICAL and crash.where == "GET /items"
    assert crash.detail.startswith("curl ") and f"{base_url}/items?id=" in crash.detail
    assert "1 of 1 operations" in report.checked_against
    assert f"{report.checked} requests" in report.checked_against


def test_an_api_that_keeps_its_word_has_no_finding_behind_a_path_prefix() -> None:
    asked: list[str] = []

    def answer(method: str, path: str, _: bytes) -> Answer:
        asked.append(path)
        return shop(method, path, crash_above=None)

    with serving(answer) as base_url:
        report = fuzz(f"{base_url}/candidate-7")
    assert report.problem is None and report.findings == ()
    assert report.evidence is Verdict.PASS and report.checked > 5
    assert any(path.startswith("/candidate-7/items?id=") for path in asked)


def test_a_failure_of_an_undeclared_method_has_its_request_too() -> None:
    def answer(method: str, path: str, _: bytes) -> Answer:
        broken = method not in ("GET", "HEAD") and "/items" in path
        return as_json({}, 500) if broken else shop(method, path, crash_above=None)

    with serving(answer) as base_url:
        report = fuzz(base_url)
    crashes = [f for f in report.findings if f.id == "ST101"]
    assert crashes and all(f.detail.startswith("curl ") for f in crashes), report.findings


def test_no_openapi_document_declared_is_not_applicable() -> None:
    report = fuzz("http://127.0.0.1:9", None)
    assert report.evidence is Verdict.NOT_RUN and "declares no OpenAPI" in str(
        report.not_applicable
    )


@pytest.mark.parametrize(
    "document",
    [
        as_json(openapi({})),
        as_json({"hello": "world"}),
        (200, "text/html", b"<html>sign in</html>"),
        as_json({}, 404),
        as_json({}, 500),
    ],
    ids=["no operation", "no OpenAPI", "HTML", "404", "500"],
)
def test_an_api_without_a_single_operation_to_test_is_an_error(document: Answer) -> None:
    with serving(lambda *_: document) as base_url:
        report = fuzz(base_url)
    assert report.evidence is Verdict.ERROR and "schemathesis" in str(report.problem)


@pytest.mark.parametrize(
    ("code", "changes"),
    [
        (2, {}),
        (1, {}),
        (0, {"complete": False}),
        (0, {"errors": [{"title": "Network Error", "count": 1}]}),
        (0, {"operations": None}),
        (0, {"operations": {"total": 2, "selected": 1, "tested": 1, "errored": 0, "skipped": 0}}),
        (0, {"operations": {"total": 2, "selected": 2, "tested": 1, "errored": 0, "skipped": 1}}),
        (0, {"operations": {"total": 1, "selected": 1, "tested": 1, "errored": 1, "skipped": 0}}),
        (0, {"test_cases": {"generated": 0, "without_checks": 0, "errored": 0}}),
        (0, {"test_cases": {"generated": 5, "without_checks": 5, "errored": 0}}),
        (0, {"test_cases": {"generated": 5, "without_checks": 0, "errored": 2}}),
    ],
)
def test_a_fuzz_that_did_not_test_everything_is_an_error(
    code: int, changes: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole: dict[str, Any] = {
        "schemathesis_version": "4.32.5",
        "complete": True,
        "stop_reason": "completed",
        "exit_code": 0,
        "operations": {"total": 1, "selected": 1, "tested": 1, "errored": 0, "skipped": 0},
        "test_cases": {"generated": 5, "without_checks": 0, "errored": 0},
        "failures": [],
        "errors": [],
    }

    def pretend(document: dict[str, Any], exit_code: int) -> ScannerReport:
        text = json.dumps(document)
        script = f"open('report.json', 'w').write({text!r}); raise SystemExit({exit_code})"
        _pretend(monkeypatch, tmp_path, script)
        return fuzz("http://127.0.0.1:9")

    assert pretend(whole, 0).evidence is Verdict.PASS
    assert pretend(whole | changes, code).evidence is Verdict.ERROR


def test_an_api_that_is_not_there_is_an_error() -> None:
    with serving(lambda *_: as_json({})) as base_url:
        pass
    assert fuzz(base_url).evidence is Verdict.ERROR


def test_an_api_that_dies_in_the_middle_is_an_error() -> None:
    seen = 0

    def answer(method: str, path: str, _: bytes) -> Answer:
        nonlocal seen
        seen += "items?" in path
        if seen > 3:
            raise ConnectionResetError
        return shop(method, path, crash_above=None)

    with serving(answer) as base_url:
        report = fuzz(base_url)
    assert report.evidence is Verdict.ERROR


# --- packages -----------------------------------------------------------------------------


def install(site: Path, name: str, metadata: str) -> None:
    write(site, f"{name}.dist-info/METADATA", metadata)


def test_installed_packages_are_read_from_what_is_there(tmp_path: Path) -> None:
    site = tmp_path / "venv" / "lib" / "python3.12" / "site-packages"
    install(site, "Jinja2-3.1.2", "Metadata-Version: 2.1\nName: Jinja2\nVersion: 3.1.2\n")
    install(site, "requests-2.30.0", "Metadata-Version: 2.1\nName: requests\nVersion: 2.30.0\n")
    expected = ["jinja2 3.1.2", "requests 2.30.0"]
    assert list(map(str, installed_packages(tmp_path / "venv"))) == expected
    assert list(map(str, installed_packages(site))) == expected


def test_a_package_without_a_name_is_an_error(tmp_path: Path) -> None:
    site = tmp_path / "lib" / "python3.12" / "site-packages"
    install(site, "odd-1", "Metadata-Version: 2.1\nVersion: 1\n")
    with pytest.raises(Failed, match="no name or version"):
        installed_packages(tmp_path)


def test_a_folder_that_is_no_environment_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(Failed, match="no site-packages"):
        installed_packages(tmp_path)


def test_a_lock_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(Failed, match="tried to read the lock"):
        locked_packages(tmp_path / "requirements.lock")
    write(tmp_path, "requirements.lock", "").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(Failed, match="not UTF-8"):
        locked_packages(tmp_path / "requirements.lock")


def test_an_old_package_is_found_with_its_fix_and_what_it_was_checked_against(
    tmp_path: Path,
) -> None:
    lock = write(tmp_path, "requirements.lock", "requests==2.30.0\njinja2==3.1.6\nPyYAML==5.3\n")
    report = dependencies.scan_lock(
        lock, OsvDirectory(ADVISORIES, "advisories"), today=TODAY, max_age_days=36500
    )
    assert report.problem is None and report.checked == 3
    assert report.checked_against == (
        "3 locked packages against 8 advisories of 2024-10-15 from the local directory advisories"
    )
    assert places(report) == {"CVE-2020-14343": "pyyaml 5.3", "CVE-2023-32681": "requests 2.30.0"}
    pyyaml, requests = sorted(report.findings, key=lambda f: f.where)
    assert pyyaml.severity is Severity.CRITICAL and requests.severity is Severity.MEDIUM
    assert requests.fix == "upgrade requests to 2.31.0 or later"


def test_what_is_installed_is_looked_up(tmp_path: Path) -> None:
    site = tmp_path / "venv" / "lib" / "python3.11" / "site-packages"
    install(site, "x", "Metadata-Version: 2.1\nName: Werkzeug\nVersion: 2.2.2\n")
    report = dependencies.scan_installed(
        tmp_path / "venv", OsvDirectory(ADVISORIES), today=TODAY, max_age_days=36500
    )
    assert places(report) == {"CVE-2023-25577": "werkzeug 2.2.2"}


def test_advisories_older_than_the_policy_allows_are_an_error(tmp_path: Path) -> None:
    lock = write(tmp_path, "requirements.lock", "jinja2==3.1.6\n")
    report = dependencies.scan_lock(
        lock,
        OsvDirectory(ADVISORIES),
        today=TODAY,
        max_age_days=ScanPolicy().advisories_max_age_days,
    )
    assert report.evidence is Verdict.ERROR
    assert "2024-10-15" in str(report.problem) and "allows 7" in str(report.problem)


def test_an_unpinned_lock_is_an_error(tmp_path: Path) -> None:
    lock = write(tmp_path, "requirements.lock", "jinja2\n")
    report = dependencies.scan_lock(lock, OsvDirectory(ADVISORIES), today=TODAY, max_age_days=36500)
    assert report.evidence is Verdict.ERROR and "unpinned" in str(report.problem)


@pytest.mark.parametrize("content", [None, "# nothing\n"])
def test_no_declared_package_is_not_applicable(tmp_path: Path, content: str | None) -> None:
    lock = None if content is None else write(tmp_path, "requirements.lock", content)
    report = dependencies.scan_lock(lock, OsvDirectory(ADVISORIES), today=TODAY, max_age_days=36500)
    assert report.evidence is Verdict.NOT_RUN
    assert "declares no packages" in str(report.not_applicable)


# --- advisories from a directory ----------------------------------------------------------


def test_a_zip_file_of_advisories_is_read_as_it_is(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        for file in ADVISORIES.glob("*.json"):
            archive.write(file, file.name)
    assert len(OsvDirectory(tmp_path).load()) == 8


def test_a_record_that_is_there_twice_counts_in_its_newest_form(tmp_path: Path) -> None:
    record = json.loads((ADVISORIES / "GHSA-j8r2-6x86-q33q.json").read_text())
    write(tmp_path, "a.json", json.dumps(record))
    newer = record | {"modified": "2025-01-01T00:00:00Z", "withdrawn": "2025-01-01T00:00:00Z"}
    write(tmp_path, "b.json", json.dumps(newer))
    with pytest.raises(Failed, match="no PyPI advisory in force in 2 OSV files"):
        OsvDirectory(tmp_path).load()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("record.json", b"<html>"),
        ("record.json", b""),
        ("record.json", b'{"id": "GHSA-1"}'),
        ("all.zip", b"PK\x03\x04 cut off"),
        ("notes.txt", b"no advisory at all"),
    ],
)
def test_a_directory_with_anything_unreadable_is_an_error(
    tmp_path: Path, name: str, content: bytes
) -> None:
    if name == "record.json":
        write(tmp_path, "good.json", (ADVISORIES / "PYSEC-2021-142.json").read_text())
    (tmp_path / name).write_bytes(content)
    with pytest.raises(Failed) as caught:
        OsvDirectory(tmp_path).load()
    assert caught.value.code == "SLP041"


def test_a_damaged_zip_member_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "all.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(ADVISORIES / "PYSEC-2021-142.json", "PYSEC-2021-142.json")
    content = bytearray(path.read_bytes())
    content[120] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(Failed, match="cannot read the archive"):
        OsvDirectory(path.parent).load()


def test_a_directory_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(Failed, match="not there"):
        OsvDirectory(tmp_path / "gone").load()


# --- advisories from the API --------------------------------------------------------------

PACKAGES = [Package(name="requests", version="2.30.0"), Package(name="jinja2", version="3.1.6")]


def database(method: str, path: str, body: bytes) -> Answer:
    """A well-behaved OSV API that holds the sample, one hit a page."""
    if method == "GET" and path.startswith("/v1/vulns/"):
        file = ADVISORIES / f"{path.rpartition('/')[2]}.json"
        return (200, "application/json", file.read_bytes()) if file.exists() else as_json({}, 404)
    results: list[dict[str, object]] = []
    for query in json.loads(body)["queries"]:
        if query["package"]["name"] != "requests":
            results.append({})
        elif "page_token" not in query:
            results.append({"vulns": [], "next_page_token": "two"})
        else:
            results.append({"vulns": [{"id": "GHSA-j8r2-6x86-q33q"}]})
    return as_json({"results": results})


def test_the_api_is_asked_for_every_page_and_every_record() -> None:
    with serving(database) as base_url:
        found = OsvApi(base_url).lookup(PACKAGES, TODAY)
    (only,) = found.findings
    assert only.id == "CVE-2023-32681" and only.where == "requests 2.30.0"
    assert found.newest == TODAY and "1 of them" in found.source and base_url in found.source


def test_many_packages_are_asked_in_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []

    def answer(method: str, path: str, body: bytes) -> Answer:
        sizes.append(len(json.loads(body)["queries"]))
        return as_json({"results": [{} for _ in range(sizes[-1])]})

    monkeypatch.setattr("blocks.osv.QUERIES_PER_BATCH", 4)
    wanted = [Package(name=f"package-{number}", version="1") for number in range(10)]
    with serving(answer) as base_url:
        assert OsvApi(base_url).lookup(wanted, TODAY).findings == ()
    assert sizes == [4, 4, 2]


def _broken_record(method: str, path: str, body: bytes) -> Answer:
    return as_json({}, 404) if method == "GET" else database(method, path, body)


def _other_record(method: str, path: str, body: bytes) -> Answer:
    return database(method, "/v1/vulns/PYSEC-2021-142" if method == "GET" else path, body)


def _endless(method: str, path: str, body: bytes) -> Answer:
    queries = json.loads(body)["queries"]
    return as_json({"results": [{"next_page_token": "more"} for _ in queries]})


@pytest.mark.parametrize(
    ("answer", "cause"),
    [
        (lambda *_: as_json({"error": "x"}, 500), "answered 500"),
        (lambda *_: as_json({}, 429), "answered 429"),
        (lambda *_: (302, "text/html", b""), "answered 302"),
        (lambda *_: (200, "text/html", b"<html>sign in</html>"), "not OSV JSON (text/html)"),
        (lambda *_: (200, "application/json", b'{"results": [{"vul'), "not OSV JSON"),
        (lambda *_: as_json({}), "not OSV JSON"),
        (lambda *_: as_json({"results": []}), "answered 0 of 2"),
        (lambda *_: as_json({"results": [{}]}), "answered 1 of 2"),
        (_broken_record, "answered 404"),
        (_other_record, "answered with PYSEC-2021-142"),
        (_endless, "more pages"),
    ],
    ids=[
        "500", "429", "redirect", "HTML", "cut off", "other JSON", "nothing", "partial",
        "record missing", "other record", "endless",
    ],
)  # fmt: skip
def test_an_api_that_does_not_answer_for_every_package_is_an_error(
    answer: Callable[[str, str, bytes], Answer], cause: str
) -> None:
    with serving(answer) as base_url, pytest.raises(Failed) as caught:
        OsvApi(base_url, timeout_seconds=5).lookup(PACKAGES, TODAY)
    assert caught.value.code == "SLP041" and cause in caught.value.cause
    assert "looked up" in caught.value.cause


def test_an_api_that_is_not_there_is_an_error_that_says_how_far_it_came(tmp_path: Path) -> None:
    with serving(database) as base_url:
        pass
    lock = write(tmp_path, "requirements.lock", "jinja2==3.1.6\nrequests==2.30.0\n")
    report = dependencies.scan_lock(lock, OsvApi(base_url), today=TODAY, max_age_days=7)
    assert report.scanner is Scanner.OSV and report.evidence is Verdict.ERROR
    assert "looked up 0 of 2 packages" in str(report.problem)


def test_the_policy_chooses_the_source_of_advisories(tmp_path: Path) -> None:
    assert isinstance(dependencies.advisories_of(ScanPolicy(), tmp_path), OsvApi)
    local = dependencies.advisories_of(ScanPolicy(advisories="../advisories"), tmp_path)
    assert local == OsvDirectory(tmp_path / "../advisories", "../advisories")
