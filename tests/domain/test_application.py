"""application.yaml: every problem at once, with its line and the way out; nothing misread."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain.application import FILE_NAME, Application, Strategy, parse
from domain.errors import UsageError

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob(f"*/{FILE_NAME}"))
SMALL = "name: shop\nservices: {web: {command: run}}\n"


def problems(text: str) -> list[str]:
    """``line:column: field: sentence`` of each problem."""
    with pytest.raises(UsageError) as caught:
        parse(text)
    assert caught.value.code == "SLP002" and caught.value.exit_code == 2
    lines = caught.value.detail.splitlines()
    assert all(line.startswith(f"{FILE_NAME}:") for line in lines)
    assert caught.value.where == ":".join(lines[0].split(":")[:2])
    return [line.removeprefix(f"{FILE_NAME}:") for line in lines]


def only(text: str) -> str:
    found = problems(text)
    assert len(found) == 1, found
    return found[0]


MANY = """\
name: shop
version: 1.10
servces: {}
services:
  web:
    command: run
    depends_on: [apii]
    replicas: {prodution: 2}
    start: 0s
    environ: {DEBUG: 1}
    portt: 3
  api:
    command: run
tests:
  unit: {kind: unitt, command: x}
  other: {kind: unit, command: x, service: wbe}
smoke: [{path: nope}]
objectives: {availability: 0.99}
"""


def test_all_problems_are_told_in_one_pass_in_the_order_of_the_file() -> None:
    found = problems(MANY)
    assert [line.split(": ")[:2] for line in found] == [
        ["2:1", "version"],
        ["3:1", "servces"],
        ["7:18", "services.web.depends_on.0"],
        ["8:16", "services.web.replicas.prodution"],
        ["9:5", "services.web.start"],
        ["10:15", "services.web.environ.DEBUG"],
        ["11:5", "services.web.portt"],
        ["12:3", "services.api"],
        ["15:10", "tests.unit.kind"],
        ["16:35", "tests.other.service"],
        ["17:10", "smoke.0.path"],
        ["18:14", "objectives.availability"],
    ]


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("servces: {}", "did you mean `services`?"),
        ("objectives: {p59: 1s}", "did you mean `p95`?"),
        ("scan: {advisorys: x}", "did you mean `advisories`?"),
        ("environments: {test: {hosst: x}}", "did you mean `host`?"),
        ("tests: {unit: {kind: unit, command: x, timout: 1s}}", "did you mean `timeout`?"),
        ("smoke: [{path: /, statuss: 200}]", "did you mean `status`?"),
        ("zzz: 1", "known here: name, version, services"),
    ],
)
def test_an_unknown_field_names_the_nearest_known_one(text: str, hint: str) -> None:
    found = only(SMALL + text)
    assert found.startswith("3:") and "unknown field" in found and hint in found


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "1:1: expected fields such as `name:`, found an empty file"),
        ("# only a comment\n", "found an empty file"),
        ("- a\n- b\n", "found a list"),
        ("hello", 'found only "hello"'),
        ("a: 1\na: 2\n", '2:1: found duplicate key "a"'),
        ("services:\n  web: {}\n  web: {}\n", '3:3: found duplicate key "web"'),
        ("a:\n\tb: 1\n", "2:1: found character '\\t' that cannot start any token; indent with"),
        ("name: [\n", "2:1: expected the node content"),
        ("a: 1\n---\nb: 2\n", "2:1: but found another document"),
        ("name: *nobody\n", "1:7: found undefined alias"),
        ("name: x1\nservices: 2026-99-99\n", "a value cannot be read: month must be in 1..12"),
        ("name: shop\n", "1:1: `services` is required; add it"),
        (f"{SMALL}name2: &a [*a]\n", "unknown field"),
    ],
)
def test_what_is_no_such_file_at_all(text: str, said: str) -> None:
    assert said in only(text)


@pytest.mark.parametrize("value", ["1.10", "2", "0x10", "true", "2026-01-01", "1e3"])
def test_a_version_that_yaml_would_change_must_be_quoted(value: str) -> None:
    assert "put it in quotes" in only(f"{SMALL}version: {value}\n")
    assert parse(f"{SMALL}version: '{value}'\n").version == value


@pytest.mark.parametrize("value", ["1", "true", "0.5"])
def test_an_environment_variable_that_is_no_text_must_be_quoted(value: str) -> None:
    text = f"name: shop\nservices:\n  web:\n    command: run\n    environ: {{DEBUG: {value}}}\n"
    found = only(text)
    assert found.startswith("5:15: services.web.environ.DEBUG: ")
    assert found.endswith(f"not {value}; put it in quotes")


def test_words_that_other_yaml_takes_for_truth_values_are_words() -> None:
    text = "name: shop\nservices: {web: {command: run, environ: {A: yes, B: on, C: no}}}\n"
    assert dict(parse(text).services["web"].environ) == {"A": "yes", "B": "on", "C": "no"}


def test_anchors_and_merges_are_understood_and_located() -> None:
    text = "name: shop\nservices:\n  web: &it {command: run}\n  api: {<<: *it, routes: [/a]}\n"
    assert parse(text).services["api"].command == "run"
    assert only(text.replace("[/a]", "[a]")).startswith("4:27: services.api.routes.0: 'a'")


@pytest.mark.parametrize(
    ("services", "said"),
    [
        ("{a1: {command: x, depends_on: [b1]}, b1: {command: x, routes: [], depends_on: [a1]}}",
         "services.a1.depends_on: goes in a circle"),
        ("{a1: {command: x, depends_on: [a1]}}", "goes in a circle: a1 -> a1"),
        ("{a1: {command: x}, b1: {command: x}}", "services.b1.routes and services.a1.routes both"),
        ("{a1: {command: x, routes: [/x]}, b1: {command: x, routes: [/x/]}}", "both claim '/x/'"),
        ("{a1: {command: x, depends_on: [a2]}}", "which is not a service; known here: a1"),
        ("{a1: {command: x, replicas: {nowhere: 2}}}", "names 'nowhere', which is not an env"),
        ("{" + "a" * 40 + ": {command: x}}", "shorten one of the three names"),
    ],
)  # fmt: skip
def test_what_only_the_whole_shows_is_told_at_its_field(services: str, said: str) -> None:
    environments = "environments: {" + "e" * 40 + ": {}}\n" if "aaaa" in services else ""
    text = f"name: {'n' * 40 if environments else 'shop'}\nservices: {services}\n{environments}"
    found = only(text)
    assert said in found and found.startswith("2:")


@pytest.mark.parametrize(
    ("services", "path"),
    [
        ("{web: {command: x, routes: [/app]}}", "/"),
        ("{web: {command: x, routes: [/app]}}", "/apple"),
        ("{web: {command: x, routes: []}}", "/"),
        ("{web: {command: x, port: null}}", "/"),
    ],
)
def test_a_smoke_check_that_would_ask_nobody_is_refused(services: str, path: str) -> None:
    """Skipped in silence, it would be a pass."""
    found = only(f"name: shop\nservices: {services}\nsmoke: [{{path: {path}}}]\n")
    assert found.startswith("3:10: smoke.0.path: no public service has a route")


@pytest.mark.parametrize(
    ("field", "value"),
    [("start", "0s"), ("start", "60"), ("drain", "-1s"), ("start", "9" * 300 + "d")],
)
def test_times_need_a_unit_and_a_sense(field: str, value: str) -> None:
    text = f"name: shop\nservices:\n  web:\n    command: run\n    {field}: {value}\n"
    assert only(text).startswith(f"5:5: services.web.{field}: ")


@pytest.mark.parametrize(
    "services", ["{}", "null", "[]", "{web: null}", "{web: []}", "{Web: {command: x}}", "{a: 1}"]
)
def test_services_that_are_none(services: str) -> None:
    assert any("services" in found for found in problems(f"name: shop\nservices: {services}\n"))


def test_services_start_after_those_they_need() -> None:
    text = (
        "name: shop\nservices:\n  web: {command: x, depends_on: [api, work]}\n"
        "  work: {command: x, port: null}\n  api: {command: x, routes: [], depends_on: [work]}\n"
    )
    assert parse(text).service_order() == ("work", "api", "web")


def test_an_environment_has_its_own_values_or_the_common_ones() -> None:
    text = (
        "name: shop\nstrategy: rolling\n"
        "services: {web: {command: x, replicas: {default: 2, live: 5}}}\n"
        "environments: {live: {strategy: blue-green, host: shop.example}, test: {}}\n"
    )
    shop = parse(text)
    assert shop.services["web"].replicas_in("live") == 5
    assert shop.services["web"].replicas_in("test") == 2
    assert shop.strategy_in("live") is Strategy.BLUE_GREEN
    assert shop.strategy_in("test") is Strategy.ROLLING
    assert shop.host_in("live") == "shop.example"
    assert shop.host_in("test") == "shop.test.localhost"
    with pytest.raises(UsageError, match="no environment 'live2'") as caught:
        shop.environment("live2")
    assert caught.value.code == "SLP003" and "did you mean `live`?" in caught.value.help


@pytest.mark.parametrize(
    ("service", "path"),
    [("ready: /readyz", "/readyz"), ("ready: /r, routes: [/app]", "/app"), ("port: 1", "/")],
)
def test_without_smoke_checks_each_public_service_has_one(service: str, path: str) -> None:
    shop = parse(f"name: shop\nservices: {{web: {{command: x, {service}}}}}\n")
    assert [check.path for check in shop.smoke_checks()] == [path]


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.parent.name)
def test_an_application_survives_being_stored(file: Path) -> None:
    """It travels with each build record, and the record is named by its JSON."""
    first = parse(file.read_text())
    text = first.model_dump_json()
    assert Application.model_validate_json(text) == first
    assert Application.model_validate_json(text).model_dump_json() == text
    assert Application.model_validate(json.loads(text)) == first


@given(st.text(max_size=80))
def test_no_text_crashes_the_parser(text: str) -> None:
    try:
        parse(text)
    except UsageError as error:
        assert error.code == "SLP002"


@given(st.dictionaries(
    st.sampled_from(list(Application.model_fields)),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
        max_leaves=6,
    ),
))  # fmt: skip
def test_no_document_crashes_the_parser(document: dict[str, object]) -> None:
    try:
        parse(json.dumps(document))
    except UsageError as error:
        assert error.code == "SLP002"
