"""Google's discovery documents as a rule book: what an API takes, and what it may answer.

The documents are those that the official client ships. A request that they do not describe is
refused as Google refuses it, and so is an answer of an emulator that Google would never give.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from googleapiclient.discovery_cache import get_static_doc

_INTEGERS = {"int32": 31, "uint32": 32, "int64": 63, "uint64": 64}


@dataclass(frozen=True)
class Call:
    """A method of an API, and the values in the path that called it."""

    method: Method
    path: Mapping[str, str]


class Method:
    """One method of an API."""

    def __init__(self, api: Api, raw: Mapping[str, Any]) -> None:
        self.id = str(raw["id"])
        self.verb = str(raw["httpMethod"])
        self._api = api
        parameters = raw.get("parameters", {})
        self._query = {n: p for n, p in parameters.items() if p["location"] == "query"}
        self._request = raw.get("request", {}).get("$ref")
        self._response = raw.get("response", {}).get("$ref")
        parts = re.split(r"\{(\+?)(\w+)\}", str(raw["path"]))
        pattern = re.escape(parts[0])
        for plus, name, after in zip(parts[1::3], parts[2::3], parts[3::3], strict=True):
            like = parameters[name].get("pattern", ".+" if plus else "[^/]+").strip("^$")
            pattern += f"(?P<{name}>{like}){re.escape(after)}"
        self.pattern = re.compile(pattern)

    def wrong_query(self, query: Mapping[str, list[str]]) -> str:
        """What is wrong with the parameters of a request; empty when nothing is."""
        for name, values in query.items():
            known = self._query.get(name) or self._api.parameters.get(name)
            if known is None:
                return f'Invalid JSON payload received. Unknown name "{name}"'
            if len(values) > 1 and not known.get("repeated"):
                return f"{name} was given {len(values)} times"
            for value in values:
                if why := _wrong_text(known, value):
                    return f"Invalid value at '{name}': {why}"
        missing = [n for n, p in self._query.items() if p.get("required") and n not in query]
        return f"Required parameter: {missing[0]}" if missing else ""

    def wrong_body(self, body: Any) -> str:
        """What is wrong with the body of a request."""
        if self._request is None:
            return "" if body is None else "this method takes no body"
        if body is None:
            return "this method needs a body"
        return next(self._api.wrong(self._request, body, "", request=self.id), "")

    def wrong_answer(self, answer: Any) -> str:
        """What is wrong with the answer of an emulator."""
        if self._response is None:
            return "" if answer in (None, {}) else "this method answers with nothing"
        return next(self._api.wrong(self._response, answer, ""), "")


class Api:
    """One API.

    Args:
        name: as in ``dns``; ``version``: as in ``v1``.
    """

    def __init__(self, name: str, version: str) -> None:
        text = get_static_doc(name, version)
        if text is None:
            raise LookupError(f"the client has no document of {name} {version}")
        document = json.loads(text)
        self.parameters: Mapping[str, Any] = document["parameters"]
        self._schemas: Mapping[str, Any] = document["schemas"]
        self._methods = [Method(self, raw) for raw in _methods(document)]

    def call(self, verb: str, path: str) -> Call | None:
        """The method that a request is for.

        Args:
            path: without its first slash.
        """
        for method in self._methods:
            if method.verb == verb and (found := method.pattern.fullmatch(path)):
                return Call(method, found.groupdict())
        return None

    def wrong(self, schema: str, value: Any, where: str, request: str = "") -> Iterator[str]:
        """Everything in a value that is not as its schema says, a clause each.

        Args:
            request: id of the method that it is sent to: some then require properties, and none
                takes what only the service sets.
        """
        yield from self._wrong(self._schemas[schema], value, where, request)

    def _wrong(self, schema: Mapping[str, Any], value: Any, where: str, request: str
               ) -> Iterator[str]:  # fmt: skip
        if "$ref" in schema:
            yield from self._wrong(self._schemas[schema["$ref"]], value, where, request)
            return
        kind = schema.get("type", "any")
        if kind == "object":
            yield from self._wrong_object(schema, value, where, request)
        elif kind == "array":
            if not isinstance(value, list):
                yield f"Invalid value at '{where}' (list)"
                return
            for index, item in enumerate(value):
                yield from self._wrong(schema["items"], item, f"{where}[{index}]", request)
        elif kind != "any" and (why := _wrong_value(schema, value)):
            yield f"Invalid value at '{where}' ({why}), {value!r}"

    def _wrong_object(self, schema: Mapping[str, Any], value: Any, where: str, request: str
                      ) -> Iterator[str]:  # fmt: skip
        if not isinstance(value, dict):
            yield f"Invalid value at '{where}' (object)"
            return
        known, others = schema.get("properties", {}), schema.get("additionalProperties")
        for name, item in value.items():
            place = f"{where}.{name}" if where else name
            if name in known:
                if request and known[name].get("readOnly"):
                    yield f"'{place}' is set by the service alone"
                yield from self._wrong(known[name], item, place, request)
            elif others is not None:
                yield from self._wrong(others, item, place, request)
            else:
                yield f"Invalid JSON payload received. Unknown name \"{name}\" at '{where}'"
        for name, property in known.items():
            needed = property.get("annotations", {}).get("required", ())
            if request in needed and name not in value:
                yield f"Required: {where}.{name}" if where else f"Required: {name}"


def _methods(resource: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    yield from resource.get("methods", {}).values()
    for inner in resource.get("resources", {}).values():
        yield from _methods(inner)


def _wrong_value(schema: Mapping[str, Any], value: Any) -> str:
    """Of a value in JSON, in which 64-bit integers are strings."""
    kind, form = schema["type"], schema.get("format", "")
    if kind == "boolean":
        return "" if isinstance(value, bool) else "boolean"
    if kind == "integer":
        fits = isinstance(value, int) and not isinstance(value, bool)
        return "" if fits and _in_range(value, form) else form or "integer"
    if kind == "number":
        return "" if isinstance(value, int | float) and not isinstance(value, bool) else "number"
    return _wrong_text(schema, value) if isinstance(value, str) else "string"


def _wrong_text(schema: Mapping[str, Any], value: str) -> str:
    """Of a value as a string, as in a query."""
    kind, form = schema.get("type", "string"), schema.get("format", "")
    if kind == "boolean" and value not in ("true", "false"):
        return "boolean"
    whole = kind == "integer" or form in _INTEGERS
    if whole and not (re.fullmatch(r"-?\d+", value) and _in_range(int(value), form)):
        return form or "integer"
    if "enum" in schema and value not in schema["enum"]:
        return f"one of {', '.join(schema['enum'])}"
    if "pattern" in schema and not re.fullmatch(schema["pattern"], value):
        return f"like {schema['pattern']}"
    if "date-time" in form or form == "google-datetime":
        try:
            datetime.fromisoformat(value)
        except ValueError:
            return "date-time"
    return ""


def _in_range(value: int, form: str) -> bool:
    bits = _INTEGERS.get(form, 63)
    low = 0 if form.startswith("u") else -(1 << bits)
    return low <= value < 1 << bits
