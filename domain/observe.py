"""``observe`` of application.yaml: where the requests of users are counted.

A template of Prometheus is a selector, not an expression: the counters behind it are read one by
one, because a sum hides the restart of one of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from domain.units import PositiveDuration


class Source(StrEnum):
    EDGE = "edge"
    PROMETHEUS = "prometheus"
    CLOUDWATCH = "cloudwatch"


STALE_AFTER = {
    Source.PROMETHEUS: timedelta(minutes=2),  # two scrapes missed at the usual minute at most
    Source.CLOUDWATCH: timedelta(minutes=6),  # whole minutes, which come two or three late
}
SHORTEST_OF_CLOUDWATCH = timedelta(minutes=4)  # a minute, two to settle, and the one under way

# --- selectors ------------------------------------------------------------------------------

PLACEHOLDERS = ("workload", "application", "environment")
_PLACEHOLDER = re.compile(r"\$(?:\{([A-Za-z_]\w*)\}|([A-Za-z_]\w*))")
_METRIC = re.compile(r"[A-Za-z_:][A-Za-z0-9_:]*")
_MATCHER = re.compile(
    r"""\s*([A-Za-z_]\w*)\s*(=~|!~|!=|=)\s*("(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)*'|`[^`]*`)\s*"""
)
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "\\": "\\", '"': '"', "'": "'"}


@dataclass(frozen=True)
class Matcher:
    """One condition on a label; ``value`` is the text between the quotes, decoded."""

    label: str
    operator: str
    value: str

    def render(self, values: Mapping[str, str]) -> str:
        """With the placeholders filled in; literally also in a regular expression."""
        regular = self.operator.endswith("~")

        def fill(found: re.Match[str]) -> str:
            value = values[found[1] or found[2]]
            return re.escape(value) if regular else value

        return f"{self.label}{self.operator}{quoted(_PLACEHOLDER.sub(fill, self.value))}"


@dataclass(frozen=True)
class Selector:
    """A vector selector of PromQL: a metric's name and conditions on its labels."""

    metric: str
    matchers: tuple[Matcher, ...]

    def render(self, values: Mapping[str, str]) -> str:
        inside = ",".join(matcher.render(values) for matcher in self.matchers)
        return f"{self.metric}{{{inside}}}"

    @property
    def placeholders(self) -> set[str]:
        return {
            found[1] or found[2] for m in self.matchers for found in _PLACEHOLDER.finditer(m.value)
        }


def quoted(text: str) -> str:
    """A string literal of PromQL."""
    for sign, spelled in (
        ("\\", "\\\\"),
        ('"', '\\"'),
        ("\n", "\\n"),
        ("\t", "\\t"),
        ("\r", "\\r"),
    ):
        text = text.replace(sign, spelled)
    return f'"{text}"'


def parse_selector(text: str) -> Selector:
    """Read a selector such as ``requests_total{service="$workload"}``.

    Raises:
        ValueError: for anything else: a function, a sum, a range, an unknown placeholder.
    """
    metric = _METRIC.match(stripped := text.strip())
    name = metric[0] if metric else ""
    matchers = tuple(_matchers(stripped[len(name) :].strip(), text))
    if not matchers and not name:
        raise ValueError(_not_a_selector(text))
    selector = Selector(name, matchers)
    if unknown := sorted(selector.placeholders - set(PLACEHOLDERS)):
        known = ", ".join(f"${name}" for name in PLACEHOLDERS)
        raise ValueError(f"unknown placeholder ${unknown[0]}; the placeholders are {known}")
    return selector


def _matchers(text: str, whole: str) -> Iterator[Matcher]:
    if not text:
        return
    if not (text.startswith("{") and text.endswith("}")):
        raise ValueError(_not_a_selector(whole))
    position, end = 1, len(text) - 1
    while text[position:end].strip():
        found = _MATCHER.match(text, position, end)
        if not found or (found.end() < end and text[found.end()] != ","):
            raise ValueError(_not_a_selector(whole))
        yield Matcher(found[1], found[2], _decoded(found[3], whole))
        position = min(found.end() + 1, end)


def _decoded(literal: str, whole: str) -> str:
    inside = literal[1:-1]
    if literal.startswith("`"):
        return inside

    def decode(found: re.Match[str]) -> str:
        if found[1] not in _ESCAPES:
            raise ValueError(f"unknown escape \\{found[1]} in {whole!r}; write \\\\{found[1]}")
        return _ESCAPES[found[1]]

    return re.sub(r"\\(.)", decode, inside)


def _not_a_selector(text: str) -> str:
    return (
        f"{text!r} is not a selector; write a metric with its labels, such as "
        'requests_total{service="$workload"}, without a function, sum or range: each counter is '
        "followed by itself, so that a restart of one is not lost in a sum"
    )


def _checked(text: str) -> str:
    parse_selector(text)
    return text


SelectorText = Annotated[str, AfterValidator(_checked)]

# --- the file -------------------------------------------------------------------------------


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Templates(_Model):
    """Selectors of counters; all but the witness must hold ``$workload``."""

    requests: SelectorText = Field(description="Counter of all requests of users.")
    errors: SelectorText = Field(description="The part of `requests` that failed.")
    buckets: SelectorText | None = Field(
        None, description="Buckets (label `le`) of the latency of the same requests."
    )
    bucket_unit: Literal["seconds", "milliseconds"] = Field(
        "seconds", description="Unit of the bounds in `le`."
    )
    witness: SelectorText | None = Field(
        None,
        description="A series above zero for as long as the counters are scraped; without one, "
        "a workload that no series names yet has no data.",
    )

    @property
    def selectors(self) -> dict[str, Selector]:
        """By field, those that are given."""
        given = {name: getattr(self, name) for name in ("requests", "errors", "buckets", "witness")}
        return {name: parse_selector(text) for name, text in given.items() if text is not None}


_ISTIO = 'reporter="source",destination_workload="$workload"'
_TRAEFIK = 'service=~"$application~$environment~[^~]+~$workload@file"'
_NGINX = 'service="$workload"'

PRESETS: dict[str, Templates] = {
    # The source's report: the destination's has no line for a connection that was refused.
    "istio": Templates(
        requests=f"istio_requests_total{{{_ISTIO}}}",
        errors=f'istio_requests_total{{{_ISTIO},response_code=~"5.."}}',
        buckets=f"istio_request_duration_milliseconds_bucket{{{_ISTIO}}}",
        bucket_unit="milliseconds",
        witness='istio_build{component="proxy"}',
    ),
    # The names that Slipway's own Traefik edge gives; another Traefik needs templates.
    "traefik": Templates(
        requests=f"traefik_service_requests_total{{{_TRAEFIK}}}",
        errors=f'traefik_service_requests_total{{{_TRAEFIK},code=~"5.."}}',
        buckets=f"traefik_service_request_duration_seconds_bucket{{{_TRAEFIK}}}",
        witness="traefik_config_reloads_total",
    ),
    "nginx-ingress": Templates(
        requests=f"nginx_ingress_controller_requests{{{_NGINX}}}",
        errors=f'nginx_ingress_controller_requests{{{_NGINX},status=~"5.."}}',
        buckets=f"nginx_ingress_controller_request_duration_seconds_bucket{{{_NGINX}}}",
        witness="nginx_ingress_controller_build_info",
    ),
}


class Observe(_Model):
    """Where the requests of users are counted."""

    source: Source = Field(Source.EDGE, description="edge: the counters of the edge itself.")
    block: str | None = Field(
        None,
        pattern=r"^[a-z0-9]([a-z0-9-]{0,98}[a-z0-9])?$",
        description="Prefect block with the address and credentials of the source.",
    )
    preset: Literal["istio", "traefik", "nginx-ingress"] | None = Field(
        None, description="Known templates for Prometheus."
    )
    templates: Templates | None = Field(None, description="Your own templates for Prometheus.")
    stale_after: PositiveDuration | None = Field(
        None,
        description="Age at which the newest sample is no data: 2m of Prometheus, 6m of "
        "CloudWatch when left out.",
    )

    def contradictions(self) -> Iterator[tuple[tuple[str, ...], str]]:
        """What no field can see alone: (path of the field to correct, the problem and the fix)."""
        if self.source is Source.EDGE:
            for name in ("block", "preset", "templates", "stale_after"):
                if getattr(self, name) is not None:
                    yield (name,), _not_for("edge", name)
            return
        if self.block is None:
            yield (
                (),
                (
                    f"`block` is required with `source: {self.source}`; add the name of the "
                    "Prefect block that holds its address and credentials"
                ),
            )
        if self.source is Source.PROMETHEUS:
            yield from self._about_templates()
        else:
            yield from self._about_cloudwatch()

    def _about_templates(self) -> Iterator[tuple[tuple[str, ...], str]]:
        if self.preset and self.templates:
            yield ("templates",), "stands beside `preset`; keep one of them"
        if not self.preset and not self.templates:
            yield (
                ("templates",),
                "is required with `source: prometheus`; add it, or a `preset` "
                f"({', '.join(PRESETS)})",
            )
        for name, selector in (self.templates.selectors if self.templates else {}).items():
            if name != "witness" and "workload" not in selector.placeholders:
                yield (
                    ("templates", name),
                    "does not hold $workload, so every version would get the same counts; put it "
                    "into a label's value",
                )

    def _about_cloudwatch(self) -> Iterator[tuple[tuple[str, ...], str]]:
        for name in ("preset", "templates"):
            if getattr(self, name) is not None:
                yield (name,), _not_for("cloudwatch", name)
        if self.stale_after and self.stale_after < SHORTEST_OF_CLOUDWATCH:
            yield (
                ("stale_after",),
                "is shorter than CloudWatch takes to have a minute whole, so there would never be "
                "data; write at least 4m, or leave it out",
            )

    @property
    def staleness(self) -> timedelta:
        return self.stale_after or STALE_AFTER[self.source]

    @property
    def chosen_templates(self) -> Templates | None:
        """The templates given, else those of the preset."""
        return self.templates or (PRESETS[self.preset] if self.preset else None)


def _not_for(source: str, name: str) -> str:
    return f"has no meaning with `source: {source}`; remove it, or correct `source`"
