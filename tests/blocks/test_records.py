"""Build records by digest, reports by run: what comes back is what was stored, or an error."""

from __future__ import annotations

from pathlib import Path

import pytest

from blocks.file_store import FileStore
from blocks.records import Records
from domain.errors import Failed, NeedsPerson
from domain.journal import Outcome
from domain.release import Report
from tests.domain.test_release import SPLIT, record


@pytest.fixture
def store(tmp_path: Path) -> FileStore:
    return FileStore(tmp_path)


def test_a_record_comes_back_by_its_digest(store: FileStore) -> None:
    records = Records(store)
    for kept in (record(), record(SPLIT), record(version="2"), record()):
        records.keep(kept)
        assert records.record(kept.digest) == kept
    assert len(store.list("builds")) == 3


def test_the_same_content_under_another_version_is_another_record(store: FileStore) -> None:
    """Else a release of it would be shown, and refused, under the old version."""
    records = Records(store)
    first, second = record(version="1"), record(version="2")
    records.keep(first)
    records.keep(second)
    assert records.record(second.digest).version == "2"
    assert first.artifact.digest == second.artifact.digest


def test_a_record_that_is_not_there_is_no_crash(store: FileStore) -> None:
    with pytest.raises(Failed) as caught:
        Records(store).record("sha256:" + "0" * 64)
    assert caught.value.code == "SLP056"


@pytest.mark.parametrize("damage", ["content", "name", "cut", "nothing"])
def test_a_damaged_record_needs_a_person(store: FileStore, damage: str) -> None:
    records, kept = Records(store), record()
    records.keep(kept)
    (key,) = store.list("builds")
    content = store.read(key)
    assert content is not None
    changed = {
        "content": content.replace(b'"command":"run"', b'"command":"rm"'),
        "name": record(version="2").model_dump_json().encode(),
        "cut": content[: len(content) // 2],
        "nothing": b"",
    }
    store.replace(key, changed[damage])
    with pytest.raises(NeedsPerson) as caught:
        records.record(kept.digest)
    assert caught.value.code == "SLP021" and caught.value.exit_code == 3


def test_a_report_is_kept_for_its_run_and_written_anew(store: FileStore) -> None:
    records = Records(store)
    assert records.report("r1") is None
    for outcome in (Outcome.REFUSED, Outcome.PROMOTED):
        report = Report(
            application="shop", environment="test", version="1", outcome=outcome, run="r1"
        )
        records.keep_report(report)
        assert records.report("r1") == report
