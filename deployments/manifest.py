"""prefect.yaml, read strictly.

Prefect ignores keys that it does not know, so a mistyped limit or tag would be no limit and no
tag; here it is an error.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from domain.errors import Failed

FILE_NAME = "prefect.yaml"


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Pool(_Strict):
    """The work pool of a deployment."""

    name: str
    job_variables: Mapping[str, Any] = Field(default_factory=dict)


class Limit(_Strict):
    """How many runs of a deployment may be under way at once."""

    limit: int = Field(ge=1)
    collision_strategy: Literal["ENQUEUE", "CANCEL_NEW"] = "ENQUEUE"


class Schedule(_Strict):
    """When a deployment runs by itself; the time zone is always said."""

    cron: str
    timezone: str
    slug: str
    active: bool = True
    parameters: Mapping[str, Any] = Field(default_factory=dict)


class Deployment(_Strict):
    """One deployment of one flow."""

    name: Literal["slipway"]
    entrypoint: str = Field(pattern=r"^flows/[a-z_]+\.py:[a-z_]+$")
    description: str = Field(min_length=10)
    tags: tuple[str, ...] = Field(min_length=1)
    work_pool: Pool
    parameters: Mapping[str, Any] = Field(default_factory=dict)
    enforce_parameter_schema: Literal[True]
    concurrency_limit: Limit | None = None
    schedules: tuple[Schedule, ...] = ()


class Manifest(_Strict):
    """The whole of prefect.yaml; ``definitions`` only holds the anchors of the others."""

    name: str
    definitions: Mapping[str, Any] = Field(default_factory=dict)
    pull: tuple[Mapping[str, Mapping[str, str]], ...] = Field(min_length=1)
    deployments: tuple[Deployment, ...] = Field(min_length=1)


def read(path: Path) -> Manifest:
    """Raises Failed SLP078 that names every wrong key."""
    try:
        return Manifest.model_validate(YAML(typ="safe").load(path.read_text(encoding="utf-8")))
    except (OSError, YAMLError) as error:
        problems = [str(error)]
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, e['loc']))}: {e['msg'].lower()}" for e in error.errors()]
    raise Failed(
        "SLP078",
        f"{FILE_NAME} cannot be used: {problems[0].splitlines()[0]}",
        help="correct the named key; see the models in deployments/manifest.py",
        where=str(path),
        detail="\n".join(problems),
    )
