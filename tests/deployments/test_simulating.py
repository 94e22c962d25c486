"""``slipway simulate``: told as simulated, from the file alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

TEXT = """\
name: shop
strategy: canary
canary: {steps: [20%], requests: 50}
services: {web: {command: run, replicas: {default: 2}}}
"""


@pytest.fixture
def source(tmp_path: Path) -> str:
    (tmp_path / "application.yaml").write_text(TEXT)
    return str(tmp_path)


def test_a_story_says_what_would_happen_and_that_nothing_did(slipway: Any, source: str) -> None:
    ended = slipway("simulate", source, "-e", "production", "--scenario", "bad")
    assert ended.code == 0
    assert ended.out.startswith("SIMULATED")
    assert "step 1: 20% to the new version" in ended.out
    assert "ROLLED_BACK: the candidate has" in ended.out


def test_the_document_has_every_scenario(slipway: Any, source: str) -> None:
    ended = slipway("simulate", source, "-e", "production", "--rate", "200", "--json", "-q")
    document = json.loads(ended.out)
    assert document["simulated"] is True and document["strategy"] == "canary"
    found = {name: s["outcome"] for name, s in document["scenarios"].items()}
    assert (found["good"], found["bad"]) == ("PROMOTED", "ROLLED_BACK")
    assert document["scenarios"]["bad"]["verdicts"][-1]["verdict"] == "fail"


def test_an_unknown_scenario_names_the_nearest(slipway: Any, source: str) -> None:
    ended = slipway("simulate", source, "-e", "production", "--scenario", "bda")
    assert ended.code == 2 and "did you mean `bad`" in ended.err
