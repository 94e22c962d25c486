"""prefect.yaml says what it seems to say, and every flow in it loads."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from deployments import registration
from deployments.manifest import Manifest, read
from deployments.register import load, recovery_automation
from domain.errors import Failed
from sandbox.home import Home

ROOT = Path(__file__).resolve().parents[2]
FILE = ROOT / "prefect.yaml"
FORBIDDEN = ("password", "writeOnly", "const", "anyOf")


@pytest.fixture(scope="module")
def manifest() -> Manifest:
    return read(FILE)


@pytest.fixture(scope="module")
def flows(manifest: Manifest) -> dict[str, Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PREFECT_SERVER_ALLOW_EPHEMERAL_MODE", "false")
        patch.chdir(ROOT)
        patch.setattr(sys, "path", list(sys.path))
        return {entry.entrypoint: load(entry) for entry in manifest.deployments}


def test_every_flow_file_has_its_deployment(manifest: Manifest) -> None:
    files = {f"flows/{f.name}" for f in (ROOT / "flows").glob("*.py") if f.name != "__init__.py"}
    assert {entry.entrypoint.partition(":")[0] for entry in manifest.deployments} == files


def test_every_flow_loads_and_has_the_parameters_that_the_file_sets(
    manifest: Manifest, flows: dict[str, Any]
) -> None:
    for entry in manifest.deployments:
        assert set(entry.parameters) <= set(flows[entry.entrypoint].parameters.properties)


def test_every_form_can_be_filled_in_by_a_person(flows: dict[str, Any]) -> None:
    for entrypoint, flow in flows.items():
        properties = flow.parameters.properties
        assert len(properties) <= 7, entrypoint
        for name, field in properties.items():
            assert field.get("description"), f"{entrypoint}: {name} has no description"
            for word in FORBIDDEN:
                assert word not in field, f"{entrypoint}: {name} has {word}"


def test_every_deployment_has_one_kind(manifest: Manifest) -> None:
    for entry in manifest.deployments:
        assert len([tag for tag in entry.tags if tag.startswith("kind:")]) == 1


def test_no_path_of_a_machine_is_in_the_file(manifest: Manifest) -> None:
    assert str(ROOT) not in FILE.read_text()
    steps = [step for steps in manifest.pull for step in steps.values()]
    assert steps == [{"directory": "{{ $SLIPWAY_ROOT }}"}]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("concurency_limit", 1),
        ("concurrency_limit", {"limit": 1, "colision_strategy": "ENQUEUE"}),
        ("schedules", [{"cron": "0 2 * * *", "slug": "nightly"}]),
        ("entrypoint", "release.py:release"),
        ("tags", []),
    ],
)
def test_what_prefect_would_ignore_is_refused(field: str, value: Any, tmp_path: Path) -> None:
    document = YAML(typ="safe").load(FILE.read_text())
    document["deployments"][0][field] = value
    changed = tmp_path / "prefect.yaml"
    YAML().dump(document, changed)
    with pytest.raises(Failed, match=r"SLP078.*deployments\.0"):
        read(changed)


def test_a_broken_file_is_named(tmp_path: Path) -> None:
    for text in (None, "a: [", "- 1"):
        file = tmp_path / "prefect.yaml"
        if text is not None:
            file.write_text(text)
        with pytest.raises(Failed) as raised:
            read(file)
        assert raised.value.code == "SLP078" and raised.value.where == str(file)


def test_a_flow_that_does_not_load_is_refused_before_it_is_deployed(
    manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "flows").mkdir()
    (tmp_path / "flows" / "broken.py").write_text("import no_such_module\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    entry = manifest.deployments[0].model_copy(update={"entrypoint": "flows/broken.py:broken"})
    with pytest.raises(Failed, match="no_such_module"):
        load(entry)


def test_recovery_is_an_automation_that_prefect_accepts() -> None:
    from uuid import uuid4

    from prefect.events.schemas.automations import AutomationCore

    identity = uuid4()
    automation = AutomationCore.model_validate(recovery_automation(identity))
    (action,) = automation.actions
    assert action.type == "run-deployment" and action.deployment_id == identity


def test_recovery_finds_the_application_of_a_release_and_of_a_rollback() -> None:
    from types import SimpleNamespace
    from uuid import uuid4

    from prefect.server.utilities.user_templates import (
        render_user_template_sync,
        validate_user_template,
    )

    (action,) = recovery_automation(uuid4())["actions"]
    template = action["parameters"]["application"]["template"]
    validate_user_template(template)
    released = SimpleNamespace(parameters={"environment": "e"}, tags=["x", "app:shop", "env:e"])
    rolled_back = SimpleNamespace(parameters={"application": "shop"}, tags=["app:other"])
    for run in (released, rolled_back):
        assert render_user_template_sync(template, {"flow_run": run}) == "shop"


def test_registering_is_skipped_only_when_nothing_has_changed(
    home: Home, prefect: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from deployments.console import Console
    from sandbox.control import Status

    addresses = {"prefect_api": prefect.api}
    status = Status(str(home.root), 1, (), addresses)
    home.root.mkdir(parents=True)
    asked: list[int] = []
    monkeypatch.setattr(registration, "_register", lambda home: asked.append(1) or ["d"])
    console = Console(quiet=True)
    assert registration.ensure(home, status, console) is True
    assert registration.ensure(home, status, console) is False
    moved = Status(str(home.root), 1, (), {**addresses, "store": "elsewhere"})
    assert registration.ensure(home, moved, console) is True
    prefect.refuse["/api/deployments/filter"] = (200, [])  # a server with an empty database
    assert registration.ensure(home, moved, console) is True
    assert len(asked) == 3


def test_a_registration_without_a_sandbox_says_so(home: Home) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "deployments.register", "--home", str(home.root)],
        capture_output=True, text=True, timeout=60, check=False, cwd=ROOT,
    )  # fmt: skip
    assert ended.returncode == 2
    assert '"SLP010"' in ended.stdout
