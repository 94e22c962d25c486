"""Which errors of a command are reported to Sentry; how they are sent has its own tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from blocks import sentry
from deployments import cli


@pytest.fixture
def reported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[tuple[Any, Any]]:
    seen: list[tuple[Any, Any]] = []
    monkeypatch.setattr(sentry, "report", lambda error, about: seen.append((error, about)))
    monkeypatch.setenv("SLIPWAY_HOME", str(tmp_path))
    entry = tmp_path / "store" / "journal" / "shop" / "production" / "00000002.json"
    entry.parent.mkdir(parents=True)
    entry.write_text("{}")
    return seen


def test_an_error_that_a_command_ends_with_is_reported(reported: list[tuple[Any, Any]]) -> None:
    assert cli.main(["history", "shop", "--environment", "production"]) == 3
    ((error, about),) = reported
    assert error.code == "SLP060"
    assert about.command == "history"


def test_a_defect_is_reported_as_the_exception_that_it_was(
    reported: list[tuple[Any, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    from deployments import commands

    def broken(*_: object) -> int:
        raise ZeroDivisionError("a defect")

    monkeypatch.setattr(commands, "history", broken)
    assert cli.main(["history", "shop", "--environment", "production"]) == 1
    assert [type(error) for error, _ in reported] == [ZeroDivisionError]
