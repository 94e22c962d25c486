"""`slipway bench` runs what the checkout has, and never shows an old result as a new one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from deployments import benchmarks
from deployments.console import Console
from domain.errors import Failed, UsageError

RUN = """
import json, pathlib, sys
target = pathlib.Path(".slipway/bench") / (sys.argv[1] + ".json")
target.parent.mkdir(parents=True, exist_ok=True)
case = {"name": "a case", "unit": "s", "goal": "under 1", "ours": 0.5, "peers": {"other": 2.0}}
target.write_text(json.dumps({"cases": [case | {"met": MET}]}))
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    folder = tmp_path / "tests" / "bench"
    folder.mkdir(parents=True)
    (folder / "tiny.py").write_text("\ndef run() -> list[object]: ...\n")
    (folder / "run.py").write_text(RUN.replace("MET", "True"))
    return tmp_path


def test_the_document_is_printed_and_the_goal_is_the_exit_code(
    checkout: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert benchmarks.run("tiny", Console(json=True, quiet=True), checkout) == 0
    (case,) = json.loads(capsys.readouterr().out)["cases"]
    assert (case["ours"], case["peers"]) == (0.5, {"other": 2.0})
    for met in ("False", "None"):
        (checkout / "tests" / "bench" / "run.py").write_text(RUN.replace("MET", met))
        assert benchmarks.run("tiny", Console(quiet=True), checkout) == 1
    assert "NOT RUN  a case" in capsys.readouterr().out


def test_an_old_result_is_not_shown_for_a_run_that_died(checkout: Path) -> None:
    assert benchmarks.run("tiny", Console(quiet=True), checkout) == 0
    (checkout / "tests" / "bench" / "run.py").write_text("raise SystemExit('it broke')")
    with pytest.raises(Failed) as caught:
        benchmarks.run("tiny", Console(quiet=True), checkout)
    assert "it broke" in caught.value.detail


def test_outside_a_checkout_it_says_where_benchmarks_are(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        benchmarks.run("judge", Console(quiet=True), tmp_path)
    assert caught.value.code == "SLP019" and "clone" in caught.value.help


def test_an_unknown_benchmark_is_refused_with_the_nearest(checkout: Path) -> None:
    with pytest.raises(UsageError) as caught:
        benchmarks.run("tini", Console(quiet=True), checkout)
    assert caught.value.code == "SLP000" and "tiny" in caught.value.help


def test_this_checkout_has_the_benchmarks_of_the_documents() -> None:
    folder = benchmarks.CHECKOUT / "tests" / "bench"
    assert all((folder / f"{name}.py").is_file() for name in ("judge", "release", "run"))
