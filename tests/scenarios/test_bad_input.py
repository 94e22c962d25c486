"""What bad input gets before any traffic moves: one clear sentence, and nothing changed."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from blocks.scanners import program
from domain.journal import Outcome
from domain.verdict import Verdict
from tests.scenarios.apps import App
from tests.scenarios.world import Standing, World, error_in

pytestmark = pytest.mark.sandbox

REFUSED = Outcome.REFUSED
# Put together here, so that no scanner takes this file for one that leaks.
KEY = "AKIA" + "IOSFODNN7" + "ABCDEFG"
UNSAFE = "import subprocess\nimport sys\n\nsubprocess.call(sys.argv[1], shell=True)\n"
# What the application's own test command is: the stdlib's runner writes no JUnit file.
JUNIT = """
import os, pathlib, sys

def write(cases):
    pathlib.Path(os.environ["JUNIT_XML"]).write_text(f"<testsuite>{cases}</testsuite>")
"""


@pytest.fixture
def live(world: World, standing: Standing) -> App:
    """An application with 1.0.0 live; shared, since a refused release must not touch it."""
    return standing.app(world)


@pytest.fixture
def own(world: World, app: App) -> App:
    """The same for a test that promotes another version."""
    world.ship(app.source("1.0.0"))
    return app


# --- the request and its file ---------------------------------------------------------------


def test_a_missing_application_yaml(world: World, live: App, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    ended = world.release(str(tmp_path / "empty"))
    error = error_in(ended.state)
    assert (error.code, error.exit_code) == ("SLP001", 2)
    assert str(tmp_path / "empty" / "application.yaml") in error.cause
    assert "slipway init" in error.help
    world.assert_serves(live.name, "1.0.0")


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        ("name: [", 1, "application.yaml"),
        ("name: shop\nservices: {web: {comand: run}}\n", 2, "did you mean `command`?"),
        ("name: shop\nversion: 1.10\nservices: {web: {command: run}}\n", 2, "put it in quotes"),
        ("", 1, "an empty file"),
    ],
)
def test_a_malformed_application_yaml(
    world: World, tmp_path: Path, text: str, line: int, said: str
) -> None:
    (tmp_path / "application.yaml").write_text(text)
    error = error_in(world.release(str(tmp_path)).state)
    assert (error.code, error.exit_code) == ("SLP002", 2)
    assert f"application.yaml:{line}" in f"{error.where} {error.detail}"
    assert said in error.cause + error.detail


def test_an_unknown_environment(world: World, live: App) -> None:
    ended = world.release(live.source(live.fresh()), "prodution")
    error = error_in(ended.state)
    assert (error.code, error.exit_code) == ("SLP003", 2)
    assert "'prodution'" in error.cause
    assert "staging" in error.cause
    assert error.help == "did you mean `production`?"
    assert world.journal(live.name, "prodution").entries == ()
    world.assert_serves(live.name, "1.0.0")


def test_a_version_that_is_live_already(world: World, live: App) -> None:
    entries = world.journal(live.name).entries
    ended = world.fails(live, live.source("1.0.0"), REFUSED, "SLP004")
    assert "already live since release 1" in ended.message
    assert world.journal(live.name).entries == entries


def test_a_version_name_that_was_used_for_other_content(world: World, live: App) -> None:
    ended = world.fails(live, live.source("1.0.0", slow=0.001), REFUSED, "SLP005")
    assert "release 1 shipped version 1.0.0 with content" in ended.message


def test_a_service_whose_source_is_not_there(world: World, live: App) -> None:
    source = live.source(live.fresh(), web={"build": {"source": "nowhere"}})
    ended = world.fails(live, source, REFUSED, "SLP020")
    assert "nowhere" in ended.message


def test_a_dry_run_changes_nothing(world: World, live: App) -> None:
    ended = world.release(live.source(live.fresh()), dry_run=True)
    assert ended.state.is_completed()
    assert "1 to start" in ended.message
    assert ended.report is None
    world.assert_serves(live.name, "1.0.0")


# --- tests ----------------------------------------------------------------------------------


def with_suite(app: App, version: str, body: str, **fields: object) -> str:
    document = {
        "version": version,
        "tests": {"unit": {"kind": "unit", "command": "python -I tests/run.py", **fields}},
    }
    return app.write(document, {"tests/run.py": JUNIT + body})


def test_a_failing_test(world: World, live: App) -> None:
    body = """
write('<testcase classname="shop" name="adds"/>'
      '<testcase classname="shop" name="sells"><failure message="1 != 2"/></testcase>')
print("a line of its output")
sys.exit(1)
"""
    ended = world.fails(live, with_suite(live, live.fresh(), body), REFUSED, "SLP030")
    assert "suite unit: 1 of 2 tests failed; the first: shop::sells: 1 != 2" in ended.message
    assert "a line of its output" in ended.detail
    assert ended.report is not None
    assert [s.name for s in ended.report.stages] == ["build", "test", "scan"]


def test_the_error_is_that_of_the_first_stage_in_order(world: World, live: App) -> None:
    """Tests and scan run side by side; which of two failures came first in time is chance."""
    body = """
write('<testcase name="sells"><failure message="1 != 2"/></testcase>')
sys.exit(1)
"""
    source = with_suite(live, live.fresh(), body)
    (live.folder / "settings.py").write_text(f'KEY = "{KEY}"\n')
    ended = world.fails(live, source, REFUSED, "SLP030")
    assert ended.report is not None
    seen = {s.name: s.outcome for s in ended.report.stages}
    assert list(seen) == ["build", "test", "scan"]
    assert seen["test"] is Verdict.FAIL
    assert seen["scan"] in (Verdict.FAIL, Verdict.NOT_RUN), "found it, or was given up"
    assert world.journal(live.name).history()[-1].data["stage"] == "test"


def test_a_finding_does_not_end_the_tests_beside_it(world: World, live: App) -> None:
    """Their verdict comes first in order, so it is waited for and told."""
    body = """
write('<testcase name="sells"/>')
"""
    source = with_suite(live, live.fresh(), body)
    (live.folder / "settings.py").write_text(f'KEY = "{KEY}"\n')
    ended = world.fails(live, source, REFUSED, "SLP040")
    assert ended.report is not None
    seen = {s.name: s.outcome for s in ended.report.stages}
    assert seen == {"build": Verdict.PASS, "test": Verdict.PASS, "scan": Verdict.FAIL}
    assert world.journal(live.name).history()[-1].data["stage"] == "scan"


def test_a_suite_that_collects_nothing(world: World, live: App) -> None:
    ended = world.fails(live, with_suite(live, live.fresh(), "write('')"), REFUSED, "SLP031")
    assert "it ran no test" in ended.message


@pytest.mark.slow
def test_a_suite_that_writes_no_result(world: World, live: App) -> None:
    ended = world.fails(live, with_suite(live, live.fresh(), "print('hi')"), REFUSED, "SLP031")
    assert "no JUnit result" in ended.message


def test_a_suite_over_its_time_limit(world: World, live: App) -> None:
    body = "print('thinks', flush=True)\nimport time\ntime.sleep(600)"
    source = with_suite(live, live.fresh(), body, timeout="1s")
    ended = world.fails(live, source, REFUSED, "SLP032")
    assert "time limit" in ended.message
    assert "thinks" in ended.detail


def test_an_end_to_end_suite_meets_the_candidate_before_any_user(world: World, live: App) -> None:
    """And when it fails, neither the candidate nor its databases stay."""
    body = """
import urllib.request
with urllib.request.urlopen(os.environ["BASE_URL"] + "/version") as answer:
    said = answer.read().decode()
write(f'<testcase name="e2e"><failure message="the candidate says {said}"/></testcase>')
sys.exit(1)
"""
    document = {
        "version": live.fresh(),
        "database": {},
        "cache": "redis",
        "tests": {"e2e": {"kind": "end-to-end", "command": "python -I tests/run.py"}},
    }
    source = live.write(document, {"tests/run.py": JUNIT + body})
    ended = world.fails(live, source, REFUSED, "SLP030")
    assert "the candidate says 1.1." in ended.message


def test_an_integration_suite_gets_databases_that_do_not_stay(world: World, own: App) -> None:
    body = """
database, cache = os.environ["DATABASE_URL"], os.environ["REDIS_URL"]
ok = "__production" not in database and cache.startswith("redis://")
write('<testcase name="a"/>' if ok else '<testcase name="a"><failure/></testcase>')
"""
    document = {
        "version": "1.1.0",
        "database": {},
        "cache": "redis",
        "tests": {"db": {"kind": "integration", "command": "python -I tests/run.py"}},
    }
    ended = world.release(own.write(document, {"tests/run.py": JUNIT + body}))
    assert ended.outcome is Outcome.PROMOTED, ended
    world.assert_serves(own.name, "1.1.0")


def test_a_flaky_suite_is_tried_again_as_prefect_shows(world: World, own: App) -> None:
    """The retry is a second run of one task run, and the release goes on."""
    body = f"""
import pathlib
mark = pathlib.Path({str(own.folder.parent / "second")!r})
if mark.exists():
    write('<testcase name="flaky"/>')
else:
    mark.touch()
    write('<testcase name="flaky"><failure message="not today"/></testcase>')
    sys.exit(1)
"""
    ended = world.release(with_suite(own, "1.1.0", body, retries=1))
    assert ended.outcome is Outcome.PROMOTED, ended
    counts = world.task_run_counts(ended, "suite")
    assert counts == [2]
    world.assert_serves(own.name, "1.1.0")


# --- scans ----------------------------------------------------------------------------------


def test_a_secret_in_the_source(world: World, live: App) -> None:
    document = {"version": live.fresh()}
    source = live.write(document, {"settings.py": f'KEY = "{KEY}"\n'})
    ended = world.fails(live, source, REFUSED, "SLP040")
    assert "settings.py:1" in ended.message + ended.detail
    for file in world.home.store.rglob("*"):
        assert not file.is_file() or KEY.encode() not in file.read_bytes(), file


def test_dangerous_code_over_the_threshold(world: World, live: App) -> None:
    source = live.write({"version": live.fresh()}, {"unsafe.py": UNSAFE})
    ended = world.fails(live, source, REFUSED, "SLP040")
    assert "B602" in ended.message + ended.detail


@pytest.mark.slow
def test_dangerous_code_that_is_allowed_with_a_reason(world: World, own: App) -> None:
    allowance = {"id": "B602", "scanner": "bandit", "path": "unsafe.py",
                 "reason": "only run by hand", "expires": "2999-01-01"}  # fmt: skip
    source = own.write({"version": "1.1.0", "scan": {"allow": [allowance]}}, {"unsafe.py": UNSAFE})
    ended = world.release(source)
    assert ended.outcome is Outcome.PROMOTED, ended
    world.assert_serves(own.name, "1.1.0")


@pytest.fixture
def no_bandit(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine where nobody installed it."""
    which, access = shutil.which, os.access

    def hides_which(name: str) -> str | None:
        return None if name == "bandit" else which(name)

    def hides_access(path: Path, mode: int) -> bool:
        return Path(path).name != "bandit" and access(path, mode)

    seen = SimpleNamespace(**vars(os)), SimpleNamespace(**vars(shutil))
    seen[0].access, seen[1].which = hides_access, hides_which
    monkeypatch.setattr(program, "os", seen[0])
    monkeypatch.setattr(program, "shutil", seen[1])


@pytest.mark.usefixtures("no_bandit")
def test_a_scanner_that_is_missing_is_not_clean(world: World, live: App) -> None:
    ended = world.fails(live, live.source(live.fresh()), REFUSED, "SLP041")
    assert "bandit" in ended.message
    assert "slipway[scan]" in json.dumps(ended.report.error if ended.report else {})


def test_advisories_that_are_too_old_are_not_clean(world: World, live: App) -> None:
    old = {
        "schema_version": "1.6.0",
        "id": "GHSA-aaaa-bbbb-cccc",
        "modified": "2020-01-01T00:00:00Z",
        "affected": [{"package": {"ecosystem": "PyPI", "name": "other"}, "versions": ["1"]}],
    }
    document = {
        "version": live.fresh(),
        "scan": {"advisories": "advisories", "advisories_max_age_days": 7},
    }
    files = {"advisories/old.json": json.dumps(old), **package("leaf")}
    ended = world.fails(live, live.write(document, files), REFUSED, "SLP041")
    assert "2020-01-01" in ended.message + ended.detail
    assert "the policy allows 7" in ended.message


def package(name: str) -> dict[str, str]:
    """A package beside its lock, so that something is installed without any index."""
    return {
        "requirements.lock": f"./{name}\n",
        f"{name}/pyproject.toml": f'[project]\nname = "{name}"\nversion = "1.0"\n',
        f"{name}/{name}.py": "LEAF = True\n",
    }
