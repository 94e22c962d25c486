"""``slipway init`` and ``slipway config show``."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from deployments.console import Console, table
from deployments.releasing import read_application
from domain.application import FILE_NAME, Application, Strategy, parse
from domain.errors import UsageError

TEMPLATE = """\
# What Slipway ships. `slipway config show .` prints every value that it reads from here.
name: {name}
version: "0.1.0"            # or pass --version; without both, the source revision
services:
  web:
    command: python -m app  # must listen on $PORT
    routes: [/]             # public path prefixes; []: only for other services
    # health: /healthz      # three failures in a row restart a replica
    # ready: /readyz        # without it, an open port counts as ready
    # replicas: {{default: 1, production: 2}}
    # environ: {{LOG_LEVEL: info}}
# tests:
#   unit: {{kind: unit, command: pytest tests}}
# database: {{migrate: alembic upgrade head}}   # gives DATABASE_URL to the services
# cache: redis                                # gives REDIS_URL
# smoke:
#   - {{path: /, status: 200}}
# scan: {{advisories: ../advisories}}           # a folder of OSV files instead of the online API
strategy: blue-green        # or rolling
environments:
  staging: {{}}
  production: {{keep_previous: 10m}}
"""


_TRY = ("--environment", "staging", "--dry-run")


def init(folder: Path, console: Console) -> int:
    """Write a commented application.yaml.

    Raises:
        UsageError: SLP001, the folder does not exist or has one already.
    """
    file = folder / FILE_NAME
    text = TEMPLATE.format(name=_name_of(folder))
    parse(text, str(file))
    try:
        # Never over a file that is there, not even one that appeared a moment ago.
        with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644), "w") as new:
            new.write(text)
    except OSError as error:
        there = isinstance(error, FileExistsError)
        raise UsageError(
            "SLP001",
            f"tried to write {file}: {(error.strerror or str(error)).lower()}",
            help="edit the file that is there" if there else "make the folder first",
            where=str(file),
        ) from error
    console.finish(
        str(file),
        {"path": str(file)},
        next=[shlex.join(["slipway", "release", str(folder), *_TRY])],
        undo=shlex.join(["rm", str(file)]),
    )
    return 0


def _name_of(folder: Path) -> str:
    name = re.sub(r"[^a-z0-9]+", "-", folder.resolve().name.lower()).strip("-")[:40].strip("-")
    return name if re.fullmatch(r"[a-z][a-z0-9-]*[a-z0-9]", name) else "my-application"


def show(path: Path, environment: str, console: Console) -> int:
    """Every value with its origin."""
    application, folder = read_application(path)
    if environment:
        application.environment(environment)
    values = list(_values(application, environment))
    document = {
        "path": str(folder / FILE_NAME),
        "environment": environment or None,
        "values": [{"field": f, "value": v, "origin": o} for f, v, o in values],
    }
    console.finish(table(("field", "value", "from"), values), document)
    return 0


def _values(application: Application, environment: str) -> Iterator[tuple[str, str, str]]:
    given = set(_flat(application.model_dump(mode="json", exclude_unset=True)))
    whole = application.model_dump(mode="json")
    for field, value in _flat(whole).items():
        yield field, value, "file" if field in given else "default"
    if environment:
        yield from _resolved(application, environment)


def _resolved(application: Application, environment: str) -> Iterator[tuple[str, str, str]]:
    """What the environment makes of it."""
    chosen = application.environment(environment)
    origin = f"environments.{environment}"
    strategy: Strategy = application.strategy_in(environment)
    yield "-> strategy", str(strategy), origin if chosen.strategy else "strategy"
    yield "-> host", application.host_in(environment), origin if chosen.host else "default"
    for name, service in application.services.items():
        by = environment if environment in service.replicas else "default"
        count = str(service.replicas_in(environment))
        yield f"-> replicas of {name}", count, f"services.{name}.replicas.{by}"


def _flat(value: Any, prefix: str = "") -> dict[str, str]:
    """``{"a": {"b": 1}}`` as ``{"a.b": "1"}``; lists and empty values are leaves."""
    if isinstance(value, Mapping) and value:
        found: dict[str, str] = {}
        for key, inner in value.items():
            found |= _flat(inner, f"{prefix}.{key}" if prefix else str(key))
        return found
    if isinstance(value, list):
        return {prefix: ", ".join(str(item) for item in value) or "(none)"}
    return {prefix: "(none)" if value in (None, "", {}) else str(value)}
