"""What a release does with flags, on real files and a real journal."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from blocks.application_file import read_application, read_flags
from blocks.journal import Journal
from blocks.platform import Platform
from domain.artifact import Artifact, ServiceBundle
from domain.errors import Failed, UsageError
from domain.journal import Kind
from domain.ramp import Did
from domain.release import BuildRecord
from tasks.flags import carry_in, kill_carried, preview_flags

SWITCH = {"state": "ENABLED", "variants": {"on": True, "off": False}, "defaultVariant": "on"}
YAML = """
name: shop
services: {web: {command: run}}
flags:
  file: flags.json
  carry:
    basket: [10%, 100%]
    search: [1%, 50%]
"""
WHERE = "shop", "production"


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("blocks.flags.AGAIN_SECONDS", 0.0)


@pytest.fixture
def platform(tmp_path: Path) -> Platform:
    named = {name: "none" for name in ("cluster_socket", "edge_dynamic", "edge_web",
             "edge_internal", "edge_api", "edge_metrics", "database_url", "redis_url")}  # fmt: skip
    return Platform(
        store_root=str(tmp_path / "store"), bundles_root=str(tmp_path / "bundles"), **named
    )


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    folder.mkdir()
    (folder / "application.yaml").write_text(YAML)
    write(folder, basket=SWITCH, search=SWITCH, local=SWITCH)
    return folder


def write(folder: Path, **flags: Any) -> None:
    (folder / "flags.json").write_text(json.dumps({"flags": flags}))


def record_of(source: Path) -> BuildRecord:
    application = read_application(source)
    zero = "sha256:" + "0" * 64
    bundle = ServiceBundle(digest=zero, size_bytes=1, built_from=zero)
    artifact = Artifact(application="shop", version="1", services={"web": bundle})
    return BuildRecord.of(application, artifact, "r", read_flags(application, source))


def shares(platform: Platform, environment: str = "production") -> dict[str, float]:
    found = platform.flags.read("shop", environment)
    return {name: found.share(name) for name in found.flags} if found else {}


def did(platform: Platform) -> list[tuple[str, str]]:
    entries = Journal(platform.store, *WHERE).entries
    return [(e.data["flag"], e.data["did"]) for e in entries if e.kind is Kind.FLAG]


def test_carried_flags_come_in_off_and_once(platform: Platform, source: Path) -> None:
    record = record_of(source)
    for _ in range(3):
        carry_in(platform, record, "production")
    assert shares(platform) == {"basket": 0, "search": 0}
    assert did(platform) == [("basket", Did.CARRIED), ("search", Did.CARRIED)]


def test_the_next_release_leaves_a_share_as_it_is(platform: Platform, source: Path) -> None:
    record = record_of(source)
    carry_in(platform, record, "production")
    platform.flags.change(*WHERE, lambda known: known.with_share("basket", 0.5))
    carry_in(platform, record, "production")
    assert shares(platform)["basket"] == 0.5


def test_killing_names_what_was_on_and_writes_nothing_the_second_time(
    platform: Platform, source: Path
) -> None:
    carry_in(platform, record_of(source), "production")
    platform.flags.change(*WHERE, lambda known: known.with_share("basket", 0.5))
    carried = ["basket", "search", "never-carried"]
    assert kill_carried(platform, *WHERE, carried) == ["basket"]
    entries = did(platform)
    assert shares(platform) == {"basket": 0, "search": 0}
    assert kill_carried(platform, *WHERE, carried) == []
    assert did(platform) == entries


def test_killing_where_no_flag_ever_was_is_nothing(platform: Platform) -> None:
    assert kill_carried(platform, *WHERE, ["basket"]) == []
    assert did(platform) == []


def test_killing_in_a_damaged_file_is_an_error(platform: Platform, source: Path) -> None:
    carry_in(platform, record_of(source), "production")
    path = Path(platform.flags.environ(*WHERE)["FLAGD_OFFLINE_FLAG_SOURCE_PATH"])
    path.write_text("{")
    with pytest.raises(Failed, match="SLP014"):
        kill_carried(platform, *WHERE, ["basket"])


def test_a_disabled_flag_is_taken_for_on(platform: Platform, source: Path) -> None:
    """Each application then takes its own default, which may be on."""
    carry_in(platform, record_of(source), "production")
    path = Path(platform.flags.environ(*WHERE)["FLAGD_OFFLINE_FLAG_SOURCE_PATH"])
    path.write_text(path.read_text().replace("ENABLED", "DISABLED"))
    assert kill_carried(platform, *WHERE, ["basket", "search"]) == ["basket", "search"]
    assert shares(platform) == {"basket": 0, "search": 0}


def test_a_preview_has_the_whole_file_and_what_is_carried_on(
    platform: Platform, source: Path
) -> None:
    environ = preview_flags(platform, record_of(source), "preview-1")
    assert environ["FLAGD_RESOLVER"] == "file"
    assert "preview-1" in environ["FLAGD_OFFLINE_FLAG_SOURCE_PATH"]
    assert shares(platform, "preview-1") == {"basket": 1, "search": 1, "local": 1}
    platform.flags.remove("shop", "preview-1")
    platform.flags.remove("shop", "preview-1")
    assert not shares(platform, "preview-1")


def test_the_flag_file_is_part_of_what_a_record_is(source: Path) -> None:
    before = record_of(source)
    write(source, basket=SWITCH, search=SWITCH)
    assert record_of(source).digest != before.digest


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ({"basket": SWITCH}, "'search' cannot be changed: it is not there"),
        ({"basket": SWITCH, "search": {}}, "no flagd definition"),
        ({"basket": SWITCH, "search": {**SWITCH, "variants": {"on": 1}}}, "variants"),
    ],
)
def test_flags_that_cannot_be_carried_are_refused_when_it_is_planned(
    source: Path, flags: Any, sentence: str
) -> None:
    write(source, **flags)
    with pytest.raises(UsageError) as refused:
        read_flags(read_application(source), source)
    assert refused.value.code == "SLP080"
    assert sentence in str(refused.value)


def test_a_missing_flag_file_is_refused_with_its_path(source: Path) -> None:
    (source / "flags.json").unlink()
    with pytest.raises(UsageError, match=r"flags\.file"):
        read_flags(read_application(source), source)


@pytest.mark.parametrize("steps", ["[100%]", "[50%, 10%]", "[]", "[0%, 10%]", "[0.001%]", "[10]"])
def test_steps_that_cannot_be_judged_are_refused_with_their_line(source: Path, steps: str) -> None:
    file = source / "application.yaml"
    file.write_text(YAML.replace("[10%, 100%]", steps))
    with pytest.raises(UsageError) as refused:
        read_application(source)
    assert refused.value.code == "SLP002"
    assert "application.yaml:7" in refused.value.detail
