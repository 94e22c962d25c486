"""Traps that cost others days, each held shut by a look at the source itself."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("flows", "tasks", "blocks", "domain", "deployments", "load", "sandbox")
SOURCES = sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))
TESTS = sorted(p for p in (ROOT / "tests").rglob("*.py") if p.name != "test_guards.py")
TREES = {path: ast.parse(path.read_text()) for path in SOURCES + TESTS}


def shown(path: Path, node: ast.AST) -> str:
    return f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}"


def calls(path: Path, *names: str) -> Iterator[ast.Call]:
    for node in ast.walk(TREES[path]):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in names:
            yield node


@pytest.mark.parametrize("room", ["flows", "load"])
def test_no_file_hides_a_package(room: str) -> None:
    """Prefect and Locust put their file's folder first on ``sys.path``."""
    stems = {path.stem for path in (ROOT / room).glob("*.py")} - {"__init__"}
    installed = set(metadata.packages_distributions())
    assert not stems & (set(ROOMS) | sys.stdlib_module_names | installed)


def test_nothing_is_undone_by_a_prefect_transaction() -> None:
    """A retried task rolls its siblings back even when the retry succeeds."""
    found = [shown(p, c) for p in SOURCES for c in calls(p, "transaction", "atransaction")]
    assert found == []


def test_no_cache_forgets_which_task_it_is_of() -> None:
    for path in SOURCES:
        for node in ast.walk(TREES[path]):
            if isinstance(node, ast.keyword) and node.arg == "cache_policy":
                policy = ast.unparse(node.value)
                assert policy == "NO_CACHE" or "TASK_SOURCE" in policy, shown(path, node.value)


def test_every_task_says_that_it_is_not_cached() -> None:
    """The default hashes all inputs, and clients cannot be hashed."""
    for path in (p for p in SOURCES if p.parent.name == "tasks"):
        for node in ast.walk(TREES[path]):
            for decorator in getattr(node, "decorator_list", []):
                text = ast.unparse(decorator)
                if text.split("(")[0] == "task":
                    assert "cache_policy" in text, shown(path, decorator)


def test_a_limit_that_does_not_exist_stops_whoever_asks_for_it() -> None:
    found = [call for path in SOURCES for call in calls(path, "concurrency")]
    assert found
    for call in found:
        strict = [k.value for k in call.keywords if k.arg == "strict"]
        assert len(strict) == 1 and ast.unparse(strict[0]) == "True"


def test_a_task_s_name_shows_no_more_than_names() -> None:
    """Names of runs are stored in clear: no environment, specification or URL may be in one."""
    allowed = {"what", "workload", "environment", "name", "service", "application"}
    pattern = re.compile(r"task_run_name=['\"](.*?)['\"]")
    for path in (p for p in SOURCES if p.parent.name == "tasks"):
        for template in pattern.findall(path.read_text()):
            fields = set(re.findall(r"{(\w+)", template))
            assert fields <= allowed or not {"environ", "url", "spec", "platform"} & fields, path


def test_the_domain_reads_no_clock_and_touches_nothing() -> None:
    forbidden = {"os", "time", "random", "socket", "subprocess", "httpx", "prefect", "pathlib"}
    for path in (p for p in SOURCES if p.parent.name == "domain"):
        for node in ast.walk(TREES[path]):
            if ast.unparse(node) == "from random import Random":
                continue  # the type of a generator that is given, or has a seed
            names = (
                [alias.name for alias in node.names] if isinstance(node, ast.Import)
                else [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            )  # fmt: skip
            assert not forbidden & {name.split(".")[0] for name in names}, shown(path, node)
        assert not [c for c in calls(path, "Random") if not c.args], f"{path}: without a seed"
        for call in calls(path, "datetime.now", "date.today", "open", "datetime.utcnow", "uuid4"):
            raise AssertionError(f"{shown(path, call)}: {ast.unparse(call)}")


def test_no_test_waits_for_a_fixed_time() -> None:
    """A wait between two looks is short and inside a loop; nothing else waits."""
    for path in TESTS:
        loops = [n for n in ast.walk(TREES[path]) if isinstance(n, ast.While | ast.For)]
        polling = {id(inner) for loop in loops for inner in ast.walk(loop)}
        for call in calls(path, "time.sleep"):
            assert id(call) in polling, f"{shown(path, call)} waits without a condition"


def test_no_test_is_skipped_or_expected_to_fail() -> None:
    names = ("pytest.skip", "pytest.xfail", "pytest.mark.skip", "pytest.mark.xfail")
    assert [shown(p, c) for p in TESTS for c in calls(p, *names)] == []


def test_locust_and_prefect_never_share_a_process() -> None:
    for path in (p for p in SOURCES if p.parent.name != "load"):
        for node in ast.walk(TREES[path]):
            if isinstance(node, ast.Import | ast.ImportFrom):
                assert "locust" not in ast.unparse(node), shown(path, node)


def test_no_module_is_named_after_nothing() -> None:
    assert not [p for p in SOURCES if p.stem in ("utils", "helpers", "common", "misc", "lib")]


def test_no_lock_file_names_an_index() -> None:
    """It would tie every installation to the machine the lock was made on."""
    files = [*ROOT.glob("*.lock"), *ROOT.glob("examples/**/*.lock"), ROOT / "pyproject.toml"]
    assert len(files) > 2
    for path in files:
        assert not re.search(r"index-url|find-links|https?://[^\s\"]*/simple", path.read_text())


def test_importing_the_rooms_starts_nothing() -> None:
    """An import must not ask a server, start a thread or open a file of the state root."""
    program = (
        "import threading, tasks.releasing, tasks.rollout, tasks.reporting, blocks.platform\n"
        "left = [t.name for t in threading.enumerate() if t is not threading.main_thread()]\n"
        "assert not left, left"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert ended.returncode == 0, ended.stderr
