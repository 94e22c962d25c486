"""Users for an application that has written none: they do what its OpenAPI, or its smoke checks,
say can be done by anybody."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from load.visitor import Visitor


def visitor(operations: Sequence[Mapping[str, Any]]) -> type[Visitor]:
    """A class whose tasks are the operations, each as likely as another.

    Args:
        operations: ``domain.load_plan.Operation`` as JSON.
    """
    tasks = [_task(operation) for operation in operations]
    return type("Generated", (Visitor,), {"tasks": tasks, "abstract": False})


def _task(operation: Mapping[str, Any]) -> Any:
    def run(user: Visitor) -> None:
        user.client.request(
            operation["method"],
            operation["path"],
            name=operation["name"],
            json=operation["body"],
            expect=operation["expect"],
        )

    return run
