"""Planted secrets are looked for wherever a release leaves something: the Prefect server's
database (names, parameters, logs, artifacts, events), the journal, the reports and the errors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from prefect import flow
from prefect.settings import get_current_settings

from blocks import journal as journals
from blocks.file_store import FileStore
from domain.application import Strategy
from domain.errors import SlipwayError
from domain.verdict import Check, Verdict
from tasks import releasing, rollout
from tasks.candidates import backing
from tasks.databases import prepare_database
from tasks.releasing import begin, error_of
from tasks.reporting import Telling, told
from tests.tasks.world import World

PLANTED = "hunter2-planted"
URL = f"postgresql://shop:{PLANTED}@127.0.0.1:5432/shop"
TEXT = """\
services: {{web: {{command: run}}}}
database: {{migrate: '{migrate}'}}
"""


class Platform(World):
    """A world whose database hands out the planted secret."""

    root: Path

    @property
    def store_root(self) -> str:
        return str(self.root / "store")

    @property
    def bundles(self) -> Any:
        (self.root / "app").mkdir(exist_ok=True)
        return SimpleNamespace(materialize=lambda digest: self.root)

    @property
    def database(self) -> Any:
        @contextmanager
        def disposable(purpose: str) -> Iterator[str]:
            yield URL

        return SimpleNamespace(ensure=lambda name: URL, disposable=disposable)


@pytest.fixture
def platform(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prefect_harness: None) -> Platform:
    platform = Platform(FileStore(tmp_path / "objects"))  # files, since they are searched
    platform.root = tmp_path

    def smoke(targets: list[tuple[str, Any, Any]], what: str) -> list[Check]:
        failed = f"GET /: got 500 with the body 'cannot reach {URL}'"
        verdict = Verdict.FAIL if targets[0][0] in platform.sick else Verdict.PASS
        return [Check(name="GET /", verdict=verdict, reason=failed, samples=1)]

    monkeypatch.setattr(rollout, "_smoke", smoke)
    monkeypatch.setattr(rollout, "time", platform)
    monkeypatch.setattr(journals, "_steady_clock", lambda: platform.now)
    monkeypatch.setattr(platform, "log_tail", lambda name, lines=20: f"no answer from {URL}")
    return platform


def release(platform: Any, version: str, migrate: str) -> SlipwayError | None:
    """A release as the flows make it; returns what it ended with."""

    @flow(name="release-under-test")
    def ship() -> None:
        telling = Telling(platform, "shop", "test", "release", ("test", "deploy"), version=version)
        with told(telling):
            record = platform.record(version, TEXT.format(migrate=migrate))
            with telling.stage("test"), backing(platform, record) as environ:
                prepare_database(platform, record, environ)
            with telling.stage("deploy"):
                began = begin(platform, record, "test", strategy=Strategy.BLUE_GREEN)
                began.drive()
                ended = releasing.release_of(began.journal, began.number)
                if ended.outcome != "PROMOTED":
                    raise error_of(began.journal, ended)

    try:
        ship()
    except SlipwayError as error:
        return error
    return None


def everything(platform: Platform) -> dict[str, bytes]:
    """All that was written, but for the logs of the application's own commands."""
    url = get_current_settings().server.database.connection_url
    assert url is not None
    database = Path(url.get_secret_value().split("///", 1)[1].split("?")[0])
    files = [p for p in database.parent.iterdir() if p.name.startswith(database.name)]
    files += [p for p in platform.store.root.rglob("*") if p.is_file()]
    assert len(files) > 3
    return {str(path): path.read_bytes() for path in files}


@pytest.mark.parametrize("outcome", ["promoted", "sick", "exits", "migration"])
def test_no_planted_secret_is_found_anywhere(
    platform: Platform, outcome: str, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    migrate = "echo cannot reach $DATABASE_URL; exit 1" if outcome == "migration" else "true"
    if outcome == "sick":
        platform.sick = {"shop.test.web.r1"}
    if outcome == "exits":
        platform.never_ready = {"shop.test.web.r1"}
    error = release(platform, outcome, migrate)
    assert (error is None) == (outcome == "promoted"), error
    if error is not None:
        shown = f"{error} {error.detail} {error.to_dict()} {error!r} {error.args}"
        assert PLANTED not in shown and ("cannot reach" in shown or "no answer" in shown)
    assert platform.store.list("reports")
    assert not [
        path for path, content in everything(platform).items() if PLANTED.encode() in content
    ]
    assert PLANTED not in caplog.text
