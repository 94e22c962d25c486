"""The catalogue of parts, and what is said when one of them is not installed."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ruamel.yaml import YAML

from domain.errors import Failed, UsageError
from sandbox import control, parts, postgres
from sandbox.home import MARKER, Home
from sandbox.supervisor import BACKOFF_CAP_SECONDS, STOP_ORDER, backoff_seconds

PORTS = {name: 20_000 + index for index, name in enumerate(parts.PORTS)}


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home.at(tmp_path)


def test_needs_and_stop_order_name_parts_that_exist(home: Home) -> None:
    catalogue = parts.catalogue(home, PORTS, "secret")
    for part in catalogue.values():
        assert set(part.needs) <= set(catalogue)
        assert set(part.ports) <= set(PORTS)
    assert {name for group in STOP_ORDER for name in group} <= set(catalogue)


def test_no_password_is_on_a_command_line_or_in_an_environment(home: Home) -> None:
    for part in parts.catalogue(home, PORTS, "planted-secret").values():
        assert "planted-secret" not in " ".join(part.command)
        assert "planted-secret" not in str(parts.environment(home, part))
        assert "planted-secret" not in repr(part)


def test_every_process_carries_the_marker_of_its_root(home: Home) -> None:
    for part in parts.catalogue(home, PORTS, "secret").values():
        environ = parts.environment(home, part)
        assert environ[MARKER] == environ["SLIPWAY_HOME"] == str(home.root)


def test_public_addresses_hide_passwords(home: Home) -> None:
    addresses = parts.addresses(home, PORTS, "planted/secret")
    shown = control.Status("/h", 1, (), addresses).public()["addresses"]
    assert set(shown) == set(addresses)
    assert "secret" not in str(shown)
    assert shown["prefect_ui"] == addresses["prefect_ui"]


def test_traefik_listens_on_loopback_only(home: Home) -> None:
    files = parts.catalogue(home, PORTS, "secret")["traefik"].files
    config = YAML(typ="safe").load(next(iter(files.values())))
    assert set(config["entryPoints"]) == {"web", "internal", "traefik"}
    for entry in config["entryPoints"].values():
        assert entry["address"].startswith("127.0.0.1:")
    assert config["metrics"]["prometheus"]["buckets"] == list(parts.LATENCY_BOUNDS_SECONDS)


def test_our_loggers_have_a_level_in_prefects_logging(home: Home) -> None:
    files = parts.catalogue(home, PORTS, "secret")["prefect"].files
    config = YAML(typ="safe").load(files[home.prefect / "logging.yml"])
    assert all(config["loggers"][name]["level"] == "INFO" for name in parts.PACKAGES)
    assert "prefect.flow_runs" in config["loggers"]


def test_a_missing_program_is_named_with_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> Path:
        raise FileNotFoundError("no PostgreSQL 18")

    monkeypatch.setattr(postgres, "binaries", missing)
    with pytest.raises(UsageError) as caught:
        parts.check_installed()
    assert caught.value.code == "SLP012"
    assert "postgres-aws" in caught.value.cause
    assert "make install" in caught.value.help


def test_a_full_disk_is_told_before_anything_starts(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(home.root)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1024))
    try:
        with pytest.raises(Failed) as caught:
            control.up(home)
        assert caught.value.code == "SLP015"
        assert control.status(home) is None
    finally:
        control.down(home)


@given(st.integers(1, 10_000), st.floats(0, 1, exclude_max=True))
def test_backoff_stays_between_a_moment_and_its_cap(failures: int, chance: float) -> None:
    assert 0.2 < backoff_seconds(failures, chance) <= BACKOFF_CAP_SECONDS
    assert backoff_seconds(failures, chance) <= backoff_seconds(failures + 1, chance)
