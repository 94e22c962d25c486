"""docs/application.schema.json is what the models say, and accepts what they accept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from ruamel.yaml import YAML

from domain.application import json_schema

ROOT = Path(__file__).resolve().parents[2]
SCHEMA = ROOT / "docs" / "application.schema.json"
EXAMPLES = sorted((ROOT / "examples").glob("*/application.yaml"))


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    document: dict[str, Any] = json.loads(SCHEMA.read_text())
    return document


def test_the_published_schema_is_in_step_with_the_models(schema: dict[str, Any]) -> None:
    assert schema == json_schema(), "run: python -m deployments.pages"


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.parent.name)
def test_every_example_fits_the_schema(file: Path, schema: dict[str, Any]) -> None:
    jsonschema.validate(YAML(typ="safe").load(file.read_text()), schema)


def test_the_schema_refuses_an_unknown_field(schema: dict[str, Any]) -> None:
    wrong = {"name": "shop", "services": {"web": {"command": "run", "replica": 2}}}
    with pytest.raises(jsonschema.ValidationError, match="replica"):
        jsonschema.validate(wrong, schema)
