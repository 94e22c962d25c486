"""From a run to words and an exit code."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from blocks.file_store import FileStore
from blocks.records import Records
from deployments import follow as following
from deployments.console import EXIT_CODES, Console
from deployments.follow import follow
from deployments.releasing import Place, conclude, error_of, exit_code, follow_to_end
from deployments.runs import PrefectServer, Run
from domain.errors import (
    AwaitingApproval,
    Failed,
    NeedsPerson,
    OutcomeUnknown,
    SlipwayError,
    Unauthorised,
    UsageError,
)
from domain.journal import Outcome
from domain.release import Report, Stage
from domain.verdict import Verdict
from sandbox.home import Home

RUN = "5d3f0c1e-0000-4000-8000-000000000001"
ENDED = Run(RUN, "release shop 1 production", "f", "COMPLETED", "Completed", "done",
            ("app:shop", "env:production", "kind:release"))  # fmt: skip


def report(outcome: Outcome, error: SlipwayError | None = None) -> Report:
    return Report(
        application="shop",
        environment="production",
        version="1",
        outcome=outcome,
        reason="because",
        run=RUN,
        undo="slipway rollback shop --environment production",
        stages=(Stage(name="build", outcome=Verdict.PASS, seconds=1.0),),
        error=error.to_dict() if error else None,
    )


@pytest.fixture
def place(home: Home, prefect: Any) -> Place:
    return Place(prefect.api, "http://ui", home.store)


def keep(place: Place, kept: Report) -> None:
    Records(FileStore(place.store)).keep_report(kept)


USAGE = UsageError("SLP004", "already live", help="nothing")
FAILED = Failed("SLP053", "a smoke check failed", help="look", detail="line")
PERSON = NeedsPerson("SLP055", "not verified", help="look")


@pytest.mark.parametrize(
    ("outcome", "error", "state", "code"),
    [
        (Outcome.PROMOTED, None, "COMPLETED", 0),
        (Outcome.ROLLED_BACK, FAILED, "FAILED", 1),
        (Outcome.ROLLED_BACK, FAILED, "CANCELLED", 130),
        (Outcome.ROLLBACK_FAILED, PERSON, "FAILED", 3),
        (Outcome.ROLLBACK_FAILED, FAILED, "CANCELLED", 3),
        (Outcome.ROLLBACK_FAILED, None, "COMPLETED", 3),
        (Outcome.REFUSED, USAGE, "FAILED", 2),
        (Outcome.REFUSED, FAILED, "FAILED", 1),
        (Outcome.REFUSED, None, "FAILED", 1),
        (Outcome.REFUSED, FAILED, "CANCELLED", 130),
        (Outcome.REFUSED, PERSON, "FAILED", 3),
    ],
)
def test_only_a_promoted_release_exits_with_zero(
    outcome: Outcome, error: SlipwayError | None, state: str, code: int
) -> None:
    assert exit_code(report(outcome, error), replace(ENDED, state=state)) == code
    assert code in EXIT_CODES


@pytest.mark.parametrize(
    "kind", [UsageError, Failed, NeedsPerson, Unauthorised, OutcomeUnknown, AwaitingApproval]
)
def test_an_error_survives_its_way_through_a_report(kind: type[SlipwayError]) -> None:
    error = kind("SLP053", "cause", help="help", where="here", detail="lines")
    rebuilt = error_of(error.to_dict())
    assert type(rebuilt) is kind and rebuilt.to_dict() == error.to_dict()


def test_a_promoted_release_prints_its_address_and_the_way_back(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    keep(place, report(Outcome.PROMOTED))
    assert conclude(place, ENDED, Console()) == 0
    out, err = capsys.readouterr()
    assert out == f"http://ui/runs/flow-run/{RUN}\n"
    assert "to undo: slipway rollback shop --environment production" in err
    assert 1 <= err.count("next: ") <= 3


def test_a_failed_release_prints_the_runs_error(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    keep(place, report(Outcome.ROLLED_BACK, FAILED))
    assert conclude(place, replace(ENDED, state="FAILED"), Console()) == 1
    err = capsys.readouterr().err
    assert "error[SLP053]: a smoke check failed" in err and "  | line" in err
    assert "to undo:" not in err


@pytest.mark.parametrize("error", [None, FAILED])
def test_json_is_one_document_with_the_report_at_the_top(
    place: Place, error: SlipwayError | None, capsys: pytest.CaptureFixture[str]
) -> None:
    keep(place, report(Outcome.ROLLED_BACK if error else Outcome.PROMOTED, error))
    conclude(place, ENDED, Console(json=True))
    document = json.loads(capsys.readouterr().out)
    assert {
        "application", "environment", "version", "digest", "strategy", "outcome", "seconds",
        "stages", "requests", "failed_requests", "run_url", "next",
    } <= set(document)  # fmt: skip
    assert (document["error"] or {}).get("code") == (error.code if error else None)


@pytest.mark.parametrize(
    ("state", "message", "tags", "code", "said"),
    [
        ("CRASHED", "exited with -9", ENDED.tags, 6, "SLP071"),
        ("COMPLETED", "done", ENDED.tags, 6, "SLP071"),
        ("FAILED", "boom", ENDED.tags, 6, "SLP071"),
        ("CANCELLED", "", ENDED.tags, 130, ""),
        ("FAILED", "x: error[SLP054]: another; run it again", ENDED.tags, 1, "SLP054"),
        ("FAILED", "error[SLP055]: not proved; look", ENDED.tags, 3, "SLP055"),
        ("CRASHED", "error[SLP054]: another; run it again", ENDED.tags, 6, "SLP071"),
        ("COMPLETED", "nothing was left", ("kind:recover",), 0, "nothing was left"),
        ("FAILED", "boom", ("kind:recover",), 6, "SLP071"),
    ],
)
def test_a_run_without_a_report_is_never_taken_for_success(
    place: Place,
    state: str,
    message: str,
    tags: tuple[str, ...],
    code: int,
    said: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = replace(ENDED, state=state, message=message, tags=tags)
    assert conclude(place, run, Console()) == code
    assert said in capsys.readouterr().err


def test_a_release_left_open_in_the_journal_is_unknown_whatever_the_state_says(
    place: Place, write: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    write("shop", "production", ("1", None))
    run = replace(ENDED, state="FAILED", message="error[SLP014]: no answer; retry")
    assert conclude(place, run, Console()) == 6
    assert "slipway recover shop --environment production" in capsys.readouterr().err


def test_a_lost_server_while_following_leaves_the_outcome_unknown(prefect: Any) -> None:
    prefect.faults = [None] * 50
    with (
        PrefectServer(prefect.api, patience_seconds=0.5) as server,
        pytest.raises(OutcomeUnknown, match="slipway watch") as raised,
    ):
        follow(server, ENDED, Console(quiet=True))
    assert raised.value.exit_code == 6


def test_a_connection_lost_for_a_moment_changes_nothing(
    place: Place, prefect: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    prefect.states = [("RUNNING", "Running", ""), ("COMPLETED", "Completed", "live")]
    prefect.logs = [_line("1", "Finished in state Completed()")]
    prefect.faults = [None, (502, "<html>", "text/html"), None]
    keep(place, report(Outcome.PROMOTED))
    console = Console()
    with PrefectServer(prefect.api, patience_seconds=20, on_lost=console.warn) as server:
        assert follow_to_end(place, server, ENDED, console) == 0
    err = capsys.readouterr().err
    assert "warning: the Prefect server does not answer" in err
    assert err.index("release running") < err.index("release completed")


def test_each_log_line_is_shown_once_and_the_engines_not_at_all(
    prefect: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    prefect.states = [("RUNNING", "Running", "")] * 3 + [("COMPLETED", "Completed", "")]
    prefect.logs = [
        _line("1", "Beginning flow run 'x' for flow 'release'"),
        _line("2", "unit: 12 passed"),
        _line("3", "+ start 1 replica"),
        _line("4", "careful", level=30),
        _line("5", "broken\nTraceback (most recent call last):\n  File", level=40),
        _line("6", "Finished in state Completed()"),
    ]
    with PrefectServer(prefect.api) as server:
        follow(server, ENDED, Console(), mute=["+ start 1 replica"])
    lines = capsys.readouterr().err.splitlines()
    assert [line for line in lines if line.startswith("  ")] == [
        "  release: unit: 12 passed",
        "  release: warning: careful",
        "  release: error: broken",
    ]


def test_silence_is_broken_by_a_heartbeat(
    prefect: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following, "_POLL_SECONDS", 0.001)
    prefect.states = [("PENDING", "Pending", "")] * 8 + [("COMPLETED", "Completed", "")]
    prefect.logs = [_line("1", "Finished in state Completed()")]
    clock = iter(range(0, 100_000, 10))
    with PrefectServer(prefect.api) as server:
        follow(server, ENDED, Console(), now=lambda: float(next(clock)))
    beats = [line for line in capsys.readouterr().err.splitlines() if line.startswith("…")]
    assert beats and "no worker has taken it yet" in beats[0]
    assert following.HEARTBEAT_SECONDS <= 30


def test_ctrl_c_leaves_the_run_alone_and_says_how_to_go_on(
    place: Place, prefect: Any, home: Home, tmp_path: Path
) -> None:
    prefect.states = [("RUNNING", "Running", "")]
    script = (
        "import sys\n"
        "from pathlib import Path\n"
        "from deployments.console import Console\n"
        "from deployments.releasing import Place, Started, start\n"
        f"place = Place({prefect.api!r}, 'http://ui', Path({str(home.store)!r}))\n"
        "started = Started('release/slipway', 'release shop', ('app:shop',), {})\n"
        "sys.exit(start(place, started, Console(json=True), detach=False))\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        cwd=Path(__file__).parents[2], env=dict(os.environ),
    )  # fmt: skip
    assert process.stderr is not None
    for line in process.stderr:
        if "running" in line:
            break
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert json.loads(out)["detached"] is True
    assert "the run goes on" in err
    assert f"next: slipway watch {RUN}" in err and f"next: slipway cancel {RUN}" in err
    assert not any(path.endswith("set_state") for _, path, _ in prefect.asked)


def test_github_gets_groups_and_a_summary(
    place: Place,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    summary = tmp_path / "summary.md"
    environ = {"GITHUB_ACTIONS": "true", "GITHUB_STEP_SUMMARY": str(summary)}
    keep(place, report(Outcome.ROLLED_BACK, FAILED))
    conclude(place, replace(ENDED, state="FAILED"), Console(environ=environ))
    assert summary.read_text().startswith("### ROLLED_BACK: shop 1 in production was taken back")
    assert "| build | ✔ pass | 1.0 |" in summary.read_text()
    assert "::error title=SLP053::a smoke check failed" in capsys.readouterr().err


def _line(identity: str, message: str, level: int = 20) -> dict[str, Any]:
    return {
        "id": identity,
        "flow_run_id": RUN,
        "timestamp": time.strftime("2026-01-01T00:00:00Z"),
        "level": level,
        "name": "prefect.flow_runs",
        "message": message,
    }
