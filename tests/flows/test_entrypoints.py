"""Every flow loads as a Prefect worker loads it, and its form can be filled in by a person."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from prefect import Flow
from prefect.flows import load_flow_from_entrypoint

ROOT = Path(__file__).parents[2]
FILES = sorted(path for path in (ROOT / "flows").glob("*.py") if path.stem != "__init__")
LONGEST = 80


def is_flow(node: ast.stmt) -> bool:
    decorators = node.decorator_list if isinstance(node, ast.FunctionDef) else []
    return any("flow" in ast.unparse(decorator).split("(")[0] for decorator in decorators)


def name_of(file: Path) -> str:
    (name,) = [n.name for n in ast.parse(file.read_text()).body
               if isinstance(n, ast.FunctionDef) and is_flow(n)]  # fmt: skip
    return name


@pytest.fixture(params=FILES, ids=lambda file: file.stem)
def file(request: pytest.FixtureRequest) -> Path:
    return Path(request.param)


@pytest.fixture
def loaded(file: Path, monkeypatch: pytest.MonkeyPatch) -> Flow[..., Any]:
    """A broken import would deploy as a placeholder and fail only when it is run."""
    monkeypatch.syspath_prepend(str(ROOT))
    entrypoint = f"{file}:{name_of(file)}"
    return load_flow_from_entrypoint(entrypoint, use_placeholder_flow=False)


def test_there_are_flows() -> None:
    assert {"release", "rollback", "recover"} <= {file.stem for file in FILES}


def test_it_is_named_by_its_function_and_says_what_it_does(loaded: Flow[..., Any]) -> None:
    assert loaded.name == loaded.fn.__name__.replace("_", "-")
    assert (loaded.description or "").strip().splitlines()[0].endswith(".")
    assert loaded.timeout_seconds, "a flow that hangs would hold its environment for ever"


def test_every_parameter_is_described_for_the_form(loaded: Flow[..., Any]) -> None:
    for name, schema in loaded.parameters.properties.items():
        assert schema.get("description"), f"{loaded.name} does not describe {name}"


def test_no_parameter_is_a_secret(loaded: Flow[..., Any]) -> None:
    """Prefect stores parameters in clear; secrets are chosen by the name of a block."""
    for name, parameter in inspect.signature(loaded.fn).parameters.items():
        shown = str(parameter.annotation)
        assert "Secret" not in shown, f"{loaded.name}({name}: {shown})"
        assert not {"password", "token", "dsn"} & set(name.split("_"))


def test_its_result_is_not_stored(loaded: Flow[..., Any]) -> None:
    """It would be pickled, and outlive the class that it is of."""
    assert not loaded.persist_result


def test_its_hooks_take_what_prefect_passes_by_name(loaded: Flow[..., Any]) -> None:
    groups = (loaded.on_failure_hooks, loaded.on_crashed_hooks, loaded.on_cancellation_hooks,
              loaded.on_completion_hooks, loaded.on_running_hooks)  # fmt: skip
    for hook in (hook for group in groups for hook in group or ()):
        assert list(inspect.signature(hook).parameters) == ["flow", "flow_run", "state"]


def test_it_reads_as_a_story_on_one_page(file: Path) -> None:
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.FunctionDef):
            length = (node.end_lineno or 0) - node.lineno + 1
            assert length <= LONGEST, f"{node.name} has {length} lines; a rule hides in it"


def test_it_defines_no_type(file: Path) -> None:
    """An entrypoint is imported a second time under another name: its classes would be others."""
    found = [n.name for n in ast.walk(ast.parse(file.read_text())) if isinstance(n, ast.ClassDef)]
    assert found == []


def test_all_load_in_one_process_with_flows_first_on_the_path() -> None:
    """As in a worker: whatever stands in flows/ wins over packages of the same name."""
    entries = [f"flows/{file.name}:{name_of(file)}" for file in FILES]
    program = (
        "from prefect.flows import load_flow_from_entrypoint as load\n"
        f"for entry in {entries!r}: load(entry, use_placeholder_flow=False)\n"
        "import sys; sys.path.insert(0, 'flows'); import email, test, platform, prefect"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert ended.returncode == 0, ended.stderr
