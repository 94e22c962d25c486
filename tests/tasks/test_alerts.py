"""Which runs are reported, by whom, and that a flow needs nothing but the hooks."""

from __future__ import annotations

import inspect
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from prefect import flow
from prefect._internal.result_records import ResultRecord, ResultRecordMetadata
from prefect.client.schemas.objects import FlowRun
from prefect.serializers import JSONSerializer
from prefect.states import Crashed, Failed, State

from blocks import sentry
from blocks.sentry import About
from domain.errors import Failed as StepFailed
from domain.release import Stage
from domain.verdict import Verdict
from tasks import reporting
from tasks.alerts import report_run

ROOT = Path(__file__).resolve().parents[2]
ENTRYPOINTS = sorted(
    f"flows/{file.stem}.py:{name}"
    for file in (ROOT / "flows").glob("[a-z]*.py")
    for name in [file.stem.removeprefix("run_").replace("tests", "test")]
)


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[Any, About]]]:
    """What would have been sent; sending itself has its own tests (tests/blocks)."""
    seen: list[tuple[Any, About]] = []
    monkeypatch.setattr(sentry, "report", lambda error, about: seen.append((error, about)))
    yield seen


@flow(name="deploy")
def deploy(environment: str, application: str = "") -> None: ...


def run_of(**changed: Any) -> FlowRun:
    whole: dict[str, Any] = {
        "flow_id": uuid.uuid4(),
        "name": "deploy shop to production",
        "parameters": {"environment": "production"},
        "tags": ["app:shop", "env:production"],
    }
    return FlowRun(**(whole | changed))


def call(run: FlowRun, state: State[Any]) -> None:
    report_run(flow=deploy, flow_run=run, state=state)  # by name, as Prefect does in a runner


def test_a_run_that_failed_is_reported_with_its_exception(told: list[tuple[Any, About]]) -> None:
    error, run = StepFailed("SLP052", "the migration failed", help="read it"), run_of()
    call(run, Failed(data=error))
    assert told == [
        (
            error,
            About(
                application="shop",
                environment="production",
                flow="deploy",
                flow_run=str(run.id),
            ),
        )
    ]


def test_an_exception_that_prefect_wrapped_as_a_result_is_found(
    told: list[tuple[Any, About]],
) -> None:
    error = ValueError("a defect")
    metadata = ResultRecordMetadata(storage_key="key", serializer=JSONSerializer())
    call(run_of(), Failed(data=ResultRecord(result=error, metadata=metadata)))
    assert [one for one, _ in told] == [error]


def test_a_state_that_the_flow_returned_was_told_where_it_was_made(
    told: list[tuple[Any, About]],
) -> None:
    call(run_of(), Failed(message="error[SLP040]: findings over the threshold"))
    assert not told


def test_a_crash_is_a_message_since_its_exception_died_with_the_process(
    told: list[tuple[Any, About]],
) -> None:
    call(run_of(), Crashed(message="process exited with -9"))
    assert [text for text, _ in told] == [
        "flow run deploy shop to production crashed: process exited with -9"
    ]


def test_a_subflow_leaves_it_to_its_parent(told: list[tuple[Any, About]]) -> None:
    call(run_of(parent_task_run_id=uuid.uuid4()), Failed(data=ValueError("once is enough")))
    assert not told


def telling_of() -> Any:
    stages = [Stage(name="build", outcome=Verdict.PASS, seconds=3.14, summary="")]
    known = {"application": "shop", "environment": "production", "version": "1.1.0"}
    return SimpleNamespace(**known, kind="release", release=7, stages=stages)


@pytest.mark.parametrize("trouble", [None, OSError("no space left")])
def test_a_release_tells_its_error_with_all_that_it_knows_even_if_it_cannot_be_kept(
    trouble: Exception | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def end(*_: object) -> None:
        if trouble:
            raise trouble

    seen: list[Any] = []
    monkeypatch.setattr(sentry, "report", lambda *args, **named: seen.append((args, named)))
    monkeypatch.setattr(reporting, "_end", end)
    error = StepFailed("SLP053", "a smoke check failed", help="look")
    with pytest.raises(type(trouble or error)), reporting.told(telling_of()):
        raise error
    (((reported, about), named),) = seen
    assert reported is error
    assert (about.application, about.environment, about.version) == ("shop", "production", "1.1.0")
    assert (about.release, about.flow) == (7, "release")
    assert named["crumbs"] == ["stage build: pass after 3.1 s"]


def test_the_hook_has_the_signature_that_prefect_calls() -> None:
    assert list(inspect.signature(report_run).parameters) == ["flow", "flow_run", "state"]


PROGRAM = """
from prefect.flows import load_flow_from_entrypoint
for entrypoint in {entrypoints}:
    flow = load_flow_from_entrypoint(entrypoint, use_placeholder_flow=False)
    print(entrypoint, len(flow.on_failure_hooks), len(flow.on_crashed_hooks))
"""


@pytest.mark.parametrize(("dsn", "hooks"), [("", 0), ("http://key@127.0.0.1:9/1", 1)])
def test_every_flow_has_the_hooks_when_a_dsn_is_there(dsn: str, hooks: int, tmp_path: Path) -> None:
    # In a process of its own: the hooks are chosen when a flow is loaded, as a worker does.
    environ = {
        "SLIPWAY_SENTRY_DSN": dsn,
        "PREFECT_HOME": str(tmp_path),
        "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "false",
    }
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(entrypoints=ENTRYPOINTS)],
        cwd=ROOT, env=environ, capture_output=True, text=True, timeout=90, check=True,
    )  # fmt: skip
    assert done.stdout.split("\n")[:-1] == [f"{one} {hooks} {hooks}" for one in ENTRYPOINTS]


def test_every_flow_of_the_house_is_looked_at() -> None:
    assert len(ENTRYPOINTS) >= 8
