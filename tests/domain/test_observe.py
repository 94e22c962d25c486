"""``observe`` of application.yaml: selectors, presets, and what contradicts itself."""

from __future__ import annotations

import re
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain.application import parse
from domain.errors import UsageError
from domain.observe import PRESETS, Observe, Source, parse_selector

HEAD = "name: shop\nservices:\n  api:\n    command: serve\n"
VALUES = {"workload": "api.1", "application": "shop", "environment": "production"}


def problems(text: str) -> list[str]:
    with pytest.raises(UsageError) as failed:
        parse(HEAD + text)
    assert failed.value.code == "SLP002"
    return failed.value.detail.splitlines()


def test_the_edge_is_the_default() -> None:
    application = parse(HEAD)
    assert application.observe == Observe(source=Source.EDGE)
    assert application.observe_in("production") == application.observe


def test_an_environment_may_look_elsewhere() -> None:
    text = (
        "environments:\n  staging: {}\n  production:\n    observe:\n"
        "      source: prometheus\n      block: metrics\n      preset: istio\n"
    )
    application = parse(HEAD + text)
    assert application.observe_in("staging").source is Source.EDGE
    assert application.observe_in("production").preset == "istio"


def test_a_missing_template_is_told_once() -> None:
    text = (
        "observe:\n  source: prometheus\n  block: b\n"
        "  templates:\n    errors: 'e{v=\"$workload\"}'\n"
    )
    (found,) = problems(text)
    assert "`requests` is required" in found


def test_templates_and_times_are_read() -> None:
    text = (
        "observe:\n  source: prometheus\n  block: metrics\n  stale_after: 90s\n  templates:\n"
        "    requests: 'r{v=\"$workload\"}'\n    errors: 'e{v=~\"${workload}\"}'\n"
    )
    observe = parse(HEAD + text).observe
    assert observe.staleness == timedelta(seconds=90)
    assert observe.chosen_templates is not None
    assert set(observe.chosen_templates.selectors) == {"requests", "errors"}


def test_each_source_has_its_own_patience() -> None:
    assert Observe(source=Source.PROMETHEUS).staleness == timedelta(minutes=2)
    assert Observe(source=Source.CLOUDWATCH).staleness == timedelta(minutes=6)


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ("observe:\n  preset: istio\n", 6, "observe.preset: has no meaning with `source: edge`"),
        ("observe:\n  block: b\n", 6, "observe.block: has no meaning with `source: edge`"),
        ("observe:\n  stale_after: 1m\n", 6, "observe.stale_after: has no meaning"),
        (
            "observe:\n  source: prometheus\n  preset: istio\n",
            5,
            "observe: `block` is required with `source: prometheus`; add the name",
        ),
        (
            "observe:\n  source: prometheus\n  block: b\n",
            5,
            "observe.templates: is required with `source: prometheus`; add it, or a `preset`",
        ),
        ("observe:\n  source: cloudwatch\n", 5, "observe: `block` is required"),
        (
            "observe:\n  source: cloudwatch\n  block: b\n  preset: istio\n",
            8,
            "observe.preset: has no meaning with `source: cloudwatch`",
        ),
        (
            "observe:\n  source: prometheus\n  block: b\n  preset: istio\n  templates:\n"
            "    requests: 'r{v=\"$workload\"}'\n    errors: 'e{v=\"$workload\"}'\n",
            9,
            "observe.templates: stands beside `preset`; keep one of them",
        ),
        (
            "observe:\n  source: prometheus\n  block: b\n  templates:\n"
            "    requests: 'r{v=\"api\"}'\n    errors: 'e{v=\"$workload\"}'\n",
            9,
            "observe.templates.requests: does not hold $workload, so every version would get",
        ),
        (
            "observe:\n  source: prometheus\n  block: b\n  templates:\n"
            "    requests: 'sum(r{v=\"$workload\"})'\n    errors: 'e{v=\"$workload\"}'\n",
            9,
            "observe.templates.requests: 'sum(r{v=\"$workload\"})' is not a selector; write a",
        ),
        (
            "environments:\n  production:\n    observe:\n      templates:\n"
            "        requests: 'r{v=\"$workload\"}'\n        errors: 'e{v=\"$workload\"}'\n",
            8,
            "environments.production.observe.templates: has no meaning with `source: edge`",
        ),
        (
            "observe:\n  source: cloudwatch\n  block: b\n  stale_after: 3m\n",
            8,
            "observe.stale_after: is shorter than CloudWatch takes",
        ),
        ("observe:\n  source: promtheus\n", 6, "observe.source: input should be 'edge'"),
    ],
)
def test_what_contradicts_itself_is_refused_with_its_line(text: str, line: int, says: str) -> None:
    (found,) = problems(text)
    assert re.match(rf"application.yaml:{line}:\d+: ", found), found
    assert says in found


@pytest.mark.parametrize(
    "text",
    [
        "sum(r)",
        "rate(r[5m])",
        "r[5m]",
        "r{a=1}",
        "r offset 5m",
        "r + r",
        "r{a='b'",
        "{}",
        "",
        "r{a='b' c='d'}",
        "r{a='b'} or r",
        "r{a='b'}[5m]",
        "1",
        "r{a='b\\d'}",
        "r{a='$wrkload'}",
        "r{a='b'}) or vector(1",
    ],
)
def test_what_is_not_a_selector_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"not a selector|unknown (escape|placeholder)"):
        parse_selector(text)


@pytest.mark.parametrize(
    ("text", "rendered"),
    [
        ("r", "r{}"),
        ("r{}", "r{}"),
        ('r{a="$workload",}', 'r{a="api.1"}'),
        ("r{a='${workload}x', b!~`\\d$`}", 'r{a="api.1x",b!~"\\\\d$"}'),
        ('r{a=~"$workload|x$"}', 'r{a=~"api\\\\.1|x$"}'),
        ('{__name__="r",a="}"}', '{__name__="r",a="}"}'),
        ('r:x{a="\\"\\\\"}', 'r:x{a="\\"\\\\"}'),
    ],
)
def test_a_selector_is_filled_in(text: str, rendered: str) -> None:
    assert parse_selector(text).render(VALUES) == rendered


@given(st.text(max_size=40).filter(lambda text: "$" not in text))
def test_no_value_gets_out_of_its_quotes(value: str) -> None:
    for text in ('r{a="$workload"}', 'r{a=~"$workload"}'):
        again = parse_selector(parse_selector(text).render({**VALUES, "workload": value}))
        (matcher,) = again.matchers
        if matcher.operator == "=":
            assert matcher.value == value
        else:
            assert re.fullmatch(matcher.value, value)


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_complete_and_tells_workloads_apart(name: str) -> None:
    selectors = PRESETS[name].selectors
    assert set(selectors) == {"requests", "errors", "buckets", "witness"}
    assert all("workload" in s.placeholders for k, s in selectors.items() if k != "witness")
    # Errors are a part of the requests: the same series with one more condition.
    requests, errors = selectors["requests"], selectors["errors"]
    assert errors.metric == requests.metric
    assert set(requests.matchers) < set(errors.matchers)
