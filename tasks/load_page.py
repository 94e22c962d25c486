"""The report of a load test as one HTML file: no script, no request, readable in print.

``domain.load_report.LoadReport`` has the numbers; each chart shows some of them and is followed
by a table with the same ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, floor, log10
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from domain.load_report import HEAT_EDGES_MS, LoadReport, Moment
from domain.units import format_bytes
from domain.verdict import Verdict

WIDTH, HEIGHT = 880, 200
LEFT, RIGHT, TOP, BOTTOM = 64, 16, 12, 28
_TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
WORDS = {
    "PASSED": "✔ passed",
    "FAILED": "✖ failed",
    "TOO_FEW": "? too little was measured",
    "UNSOUND": "! not measured soundly",
    "REFUSED": "■ refused",
}


@dataclass(frozen=True)
class Line:
    """One line of a chart: its name, its path, and how it is dashed (no meaning by hue alone)."""

    name: str
    path: str
    dash: str
    number: int


@dataclass(frozen=True)
class Tick:
    at: float
    text: str


@dataclass(frozen=True)
class Chart:
    """An SVG chart and the table with the same numbers."""

    title: str
    unit: str
    lines: tuple[Line, ...]
    across: tuple[Tick, ...]
    up: tuple[Tick, ...]
    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Cell:
    x: float
    y: float
    width: float
    height: float
    shade: float
    text: str


def page_of(report: LoadReport) -> str:
    """The whole page."""
    return _TEMPLATES.get_template("load_page.html").render(
        report=report,
        word=WORDS[report.outcome],
        charts=list(_charts(report)),
        cells=list(_heat(report.timeline)) if report.timeline else [],
        heat_up=_heat_ticks(),
        across=_across(report.timeline),
        size=(WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM),
        ms=_ms,
        bytes=format_bytes,
        passed=Verdict.PASS,
        bands=_bands(report),
    )


_DASHES = ("", "7 3", "2 3", "9 3 2 3")


def _charts(report: LoadReport) -> list[Chart]:
    timeline = report.timeline
    if not timeline:
        return []
    return [
        _chart(
            "Throughput",
            "requests a second",
            timeline,
            {
                "answered": [m.per_second - m.failed_per_second for m in timeline],
                "failed": [m.failed_per_second for m in timeline],
            },
        ),
        _chart(
            "Latency, from when a request was due",
            "milliseconds",
            timeline,
            {
                "p50": [m.p50 for m in timeline],
                "p95": [m.p95 for m in timeline],
                "p99": [m.p99 for m in timeline],
            },
            log=True,
        ),
        _chart("Users", "users", timeline, {
            "there": [m.users for m in timeline],
            "waiting for an answer": [m.in_flight for m in timeline],
        }),
        _chart("Generator", "milliseconds late, 1 in 100", timeline, {
            "requests": [m.lag_p99 for m in timeline],
            "timers": [m.loop_p99 for m in timeline],
        }),
        _chart("Processors", "cores busy by the generator; share of the machine", timeline, {
            "generator": [m.generator_cpu for m in timeline],
            "machine": [m.host_cpu for m in timeline],
        }),
    ]  # fmt: skip


def _chart(
    title: str,
    unit: str,
    timeline: Sequence[Moment],
    series: dict[str, Sequence[float | None]],
    *,
    log: bool = False,
) -> Chart:
    values = [value for line in series.values() for value in line if value is not None]
    scale = _Log(values) if log else _Linear(values)
    x = _Across(timeline)
    lines = tuple(
        Line(name, _path([(x.of(m.at), scale.of(v)) for m, v in zip(timeline, line, strict=True)
                          if v is not None]), _DASHES[number], number)
        for number, (name, line) in enumerate(series.items())
    )  # fmt: skip
    rows = tuple(
        (f"{moment.at:.0f}", *(_number(line[i]) for line in series.values()))
        for i, moment in enumerate(timeline)
    )
    return Chart(title, unit, lines, _across(timeline), scale.ticks(), ("second", *series), rows)


class _Across:
    def __init__(self, timeline: Sequence[Moment]) -> None:
        self.last = max(1.0, timeline[-1].at if timeline else 1.0)

    def of(self, at: float) -> float:
        return round(LEFT + (WIDTH - LEFT - RIGHT) * at / self.last, 1)


class _Linear:
    """From zero to a round number."""

    def __init__(self, values: Sequence[float]) -> None:
        top = max(values, default=0.0) or 1.0
        step = float(10 ** floor(log10(top / 4)))
        self.step = next(step * m for m in (1, 2, 2.5, 5, 10) if step * m * 4 >= top)
        self.top = self.step * max(1, ceil(round(top / self.step, 9)))

    def of(self, value: float) -> float:
        return round(HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * value / self.top, 1)

    def ticks(self) -> tuple[Tick, ...]:
        count = round(self.top / self.step)
        return tuple(Tick(self.of(self.step * i), _number(self.step * i)) for i in range(count + 1))


class _Log:
    """Whole decades."""

    def __init__(self, values: Sequence[float]) -> None:
        positive = [value for value in values if value > 0] or [1.0]
        self.low = floor(log10(min(positive)))
        self.high = max(self.low + 1, ceil(log10(max(positive))))

    def of(self, value: float) -> float:
        share = (log10(max(value, 10**self.low)) - self.low) / (self.high - self.low)
        return round(HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * share, 1)

    def ticks(self) -> tuple[Tick, ...]:
        return tuple(Tick(self.of(10**e), _number(10**e)) for e in range(self.low, self.high + 1))


def _across(timeline: Sequence[Moment]) -> tuple[Tick, ...]:
    if not timeline:
        return ()
    x = _Across(timeline)
    step = next((s for s in (5, 10, 15, 30, 60, 120, 300, 600, 1800) if x.last / s <= 10), 3600)
    return tuple(Tick(x.of(at), f"{at} s") for at in range(0, int(x.last) + 1, step))


def _bands(report: LoadReport) -> list[tuple[float, float, str]]:
    """Left edge, width and name of each judged phase."""
    if not report.timeline:
        return []
    x = _Across(report.timeline)
    return [
        (x.of(p.begin), max(1.0, x.of(min(p.end, x.last)) - x.of(p.begin)), p.figures.name)
        for p in report.phases
        if p.judged and p.begin <= x.last
    ]


def _heat(timeline: Sequence[Moment]) -> list[Cell]:
    """Requests by second and latency; darker is more, each column for itself."""
    x, rows = _Across(timeline), len(HEAT_EDGES_MS) + 1
    height = (HEIGHT - TOP - BOTTOM) / rows
    width = (WIDTH - LEFT - RIGHT) / max(1, len(timeline) - 1)
    cells = []
    for moment in timeline:
        most = max(moment.heat)
        for row, count in enumerate(moment.heat):
            if count:
                low = HEAT_EDGES_MS[row - 1] if row else 0
                high = f"{HEAT_EDGES_MS[row]:g} ms" if row < len(HEAT_EDGES_MS) else "more"
                cells.append(
                    Cell(x.of(moment.at), round(HEIGHT - BOTTOM - height * (row + 1), 1),
                         round(width, 1), round(height, 1), round(0.15 + 0.85 * count / most, 2),
                         f"{moment.at:.0f} s: {count} requests of {low:g} to {high}")
                )  # fmt: skip
    return cells


def _heat_ticks() -> tuple[Tick, ...]:
    rows = len(HEAT_EDGES_MS) + 1
    height = (HEIGHT - TOP - BOTTOM) / rows
    return tuple(
        Tick(round(HEIGHT - BOTTOM - height * (row + 1), 1), f"{edge:g} ms")
        for row, edge in enumerate(HEAT_EDGES_MS)
        if edge in (1, 10, 100, 1000, 10000)
    )


def _path(points: Sequence[tuple[float, float]]) -> str:
    return "M" + " L".join(f"{x:g} {y:g}" for x, y in points) if points else ""


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def _ms(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value / 1000:.2f} s" if value >= 1000 else f"{value:.3g} ms"
