"""The OpenAPI document, made from the route table and the types in models.py."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from diet_game import __version__, models
from diet_game.http import JSON, PROBLEM_JSON

Json = dict[str, Any]

PROBLEMS = {
    400: "The request cannot be read; `detail` says why.",
    401: "No token, or one that is not valid.",
    404: "There is no such thing.",
    408: "The body took too long to arrive.",
    409: "The request disagrees with what is there; `detail` says how.",
    413: "The body is too large.",
    415: "The content type is not JSON.",
    422: "The body is JSON and not valid; `detail` names the field.",
    503: "Too busy, or the database is out of reach. Try again after `Retry-After` seconds.",
}
BODY_PROBLEMS = (400, 408, 413, 415, 422, 503)


@dataclass(frozen=True, slots=True)
class Operation:
    """One method of one path, as the document tells it."""

    name: str
    summary: str
    method: str
    path: str
    answers: dict[int, type]
    problems: tuple[int, ...] = (400, 503)
    body: type | None = None
    parameters: tuple[Json, ...] = ()
    signed_in: bool = False
    media_type: str = JSON


def parameter(name: str, where: str = "query", **schema: Any) -> Json:
    """An optional parameter."""
    return {"name": name, "in": where, "required": False, "schema": schema}


def document(operations: Sequence[Operation]) -> Json:
    """The whole document."""
    kinds: list[Any] = [models.ProblemDetails]
    for operation in operations:
        kinds += [*operation.answers.values(), *([operation.body] if operation.body else [])]
    kinds = [kind for kind in dict.fromkeys(kinds) if kind is not str]
    refs, schemas = msgspec.json.schema_components(
        kinds, ref_template="#/components/schemas/{name}"
    )
    for schema in schemas.values():
        for said in schema["properties"].values():
            if said.get("multipleOf") == 1:
                del said["multipleOf"]
                said["type"] = "integer"
    ref = dict(zip(kinds, refs, strict=True))
    paths: dict[str, Json] = {}
    for operation in operations:
        paths.setdefault(operation.path, {})[operation.method.lower()] = _describe(operation, ref)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Diet Game",
            "version": __version__,
            "description": "Log what you eat, keep a streak, climb the board.",
        },
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
    }


def _describe(operation: Operation, ref: dict[Any, Json]) -> Json:
    responses: Json = {}
    for status, kind in operation.answers.items():
        schema: Json = {"type": "string"} if kind is str else ref[kind]
        responses[str(status)] = {
            "description": (kind.__doc__ or "").partition("\n")[0] if kind is not str else "Text.",
            "content": {operation.media_type: {"schema": schema}},
        }
    problems = {*operation.problems, *((401,) if operation.signed_in else ())}
    for status in sorted(problems - operation.answers.keys()):
        problem: Json = {
            "description": PROBLEMS[status],
            "content": {PROBLEM_JSON: {"schema": ref[models.ProblemDetails]}},
        }
        if status == 503:
            problem["headers"] = {"Retry-After": {"schema": {"type": "integer"}}}
        responses[str(status)] = problem
    said: Json = {
        "operationId": operation.name,
        "summary": operation.summary,
        "responses": responses,
    }
    if operation.parameters:
        said["parameters"] = list(operation.parameters)
    if operation.body is not None:
        said["requestBody"] = {"required": True, "content": {JSON: {"schema": ref[operation.body]}}}
    if operation.signed_in:
        said["security"] = [{"token": []}]
    return said
