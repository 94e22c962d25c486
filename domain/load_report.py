"""The account of one load test: the same numbers for a person, ``--json`` and the page."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import Any

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from domain.latency import Histogram
from domain.load_profile import Profile
from domain.load_run import Run, Second, Series
from domain.load_verdict import LoadVerdict
from domain.verdict import Check, Verdict

HEAT_EDGES_MS = (
    1, 1.5, 2, 3, 5, 7, 10, 15, 20, 30, 50, 70, 100, 150, 200, 300, 500, 700, 1000, 1500, 2000,
    3000, 5000, 7000, 10000,
)  # fmt: skip
MOST_POINTS = 240
"""Of a chart; a longer run is drawn in steps of several seconds."""


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class LoadOutcome(StrEnum):
    """How a load test ended."""

    PASSED = "PASSED"
    FAILED = "FAILED"
    """The application did not hold a limit."""
    TOO_FEW = "TOO_FEW"
    """Too little was measured to say so or the contrary."""
    UNSOUND = "UNSOUND"
    """The measuring was at fault, so nothing is known of the application."""
    REFUSED = "REFUSED"
    """Nothing was sent."""


_OUTCOMES = {
    Verdict.PASS: LoadOutcome.PASSED,
    Verdict.FAIL: LoadOutcome.FAILED,
    Verdict.TOO_FEW: LoadOutcome.TOO_FEW,
}
_EXIT = {
    LoadOutcome.PASSED: 0, LoadOutcome.FAILED: 1, LoadOutcome.REFUSED: 2, LoadOutcome.TOO_FEW: 3,
    LoadOutcome.UNSOUND: 6,
}  # fmt: skip


class Figures(_Model):
    """Numbers of a group of requests; times in milliseconds, by nearest rank.

    ``p*`` count from when a request was due, ``service_p95`` from when it was sent.
    """

    name: str
    requests: int
    failed: int
    per_second: float
    p50: float | None
    p90: float | None
    p95: float | None
    p99: float | None
    longest: float | None
    service_p95: float | None
    bytes: int
    failures: Mapping[str, int] = Field(default_factory=dict)

    @classmethod
    def of(cls, name: str, series: Series, seconds: float) -> Figures:
        seen = series.response
        return cls(
            name=name,
            requests=series.requests,
            failed=series.failed,
            per_second=round(series.requests / seconds, 2) if seconds else 0.0,
            p50=_ms(seen, 0.5),
            p90=_ms(seen, 0.9),
            p95=_ms(seen, 0.95),
            p99=_ms(seen, 0.99),
            longest=_ms(seen, 1.0),
            service_p95=_ms(series.service, 0.95),
            bytes=series.bytes,
            failures=dict(series.failures.most_common(10)),
        )


class PhaseFigures(_Model):
    """One phase of the profile."""

    begin: float
    end: float
    judged: bool
    start_level: float
    end_level: float
    figures: Figures


class Moment(_Model):
    """A step of the timeline; times in milliseconds, rates a second, shares from 0 to 1.

    Attributes:
        heat: requests by the edges of ``HEAT_EDGES_MS``, the last for all above.
    """

    at: float
    users: float
    in_flight: float
    per_second: float
    failed_per_second: float
    p50: float | None
    p95: float | None
    p99: float | None
    lag_p99: float | None
    loop_p99: float | None
    generator_cpu: float
    host_cpu: float | None
    heat: tuple[int, ...]


class Generator(_Model):
    """What the load was made with.

    Attributes:
        cost_ms: CPU milliseconds of the generator for one request.
        ceiling_per_second: what calibration found it can do at most.
        real_time: whether every worker ran before all else on its machine; None: not known, for a
            worker that was lost or a report from before this was kept.
    """

    workers: int
    cost_ms: float | None
    ceiling_per_second: float | None
    memory_bytes: int
    connections: int
    reconnections: int
    real_time: bool | None = None


class Demand(_Model):
    """CPU that one request costs a tier, in milliseconds (utilisation law: D = U / X)."""

    tier: str
    ms: float
    cores_busy: float


class StepFigures(_Model):
    """One step of the search for the limit."""

    kind: str
    load: int
    attempt: int
    trial: int = 1
    verdict: Verdict
    reason: str
    per_second: float
    p95: float | None


class LimitFigures(_Model):
    """Where the limit lies: users within their objectives.

    Attributes:
        held: the most users that are known to hold, confirmed for longer.
        passed: the most users that passed below all that failed.
        bottleneck, scalability, replicas: sentences; each says so when it cannot be known.
    """

    verdict: Verdict
    reason: str
    low: float | None
    high: float | None
    held: int | None
    passed: int | None = None
    most: int
    steps: tuple[StepFigures, ...]
    bottleneck: str = ""
    scalability: str = ""
    replicas: str = ""


class ComparisonFigures(_Model):
    """Two versions by their runs; ``ratio`` above 1: the later one is slower.

    Attributes:
        before_runs, after_runs: p95 of each run in milliseconds.
    """

    before: str
    after: str
    verdict: Verdict
    reason: str
    ratio: float | None
    low: float | None
    high: float | None
    p: float | None
    noise_floor: float | None
    before_runs: tuple[float, ...]
    after_runs: tuple[float, ...]


class LoadReport(_Model):
    """The whole account.

    Attributes:
        partial: it was ended early, so the numbers are of a part.
        watch: a change of level over earlier tests like it; no verdict hangs on it.
    """

    kind: str = "load"
    application: str
    environment: str
    version: str
    digest: str
    run: str
    actor: str
    started_at: AwareDatetime
    seconds: float
    target: str
    behaviours: str
    profile: Profile | None
    outcome: LoadOutcome
    reason: str
    partial: bool = False
    soundness: tuple[Check, ...] = ()
    limits: tuple[Check, ...] = ()
    total: Figures | None = None
    phases: tuple[PhaseFigures, ...] = ()
    endpoints: tuple[Figures, ...] = ()
    timeline: tuple[Moment, ...] = ()
    generator: Generator | None = None
    demands: tuple[Demand, ...] = ()
    watch: str = ""
    limit: LimitFigures | None = None
    comparison: ComparisonFigures | None = None
    error: Mapping[str, Any] | None = None

    @property
    def exit_code(self) -> int:
        if self.outcome is LoadOutcome.REFUSED and self.error:
            return int(self.error["exit_code"])
        return _EXIT[self.outcome]

    def sentence(self) -> str:
        profile = f" {self.profile.name}" if self.profile else ""
        return f"load{profile} on {self.application} in {self.environment}: {self.reason}"

    def markdown(self) -> str:
        """Verdict first, then the numbers."""
        lines = [f"**{self.outcome}**: {self.sentence()}", ""]
        if self.partial:
            lines += ["The run was ended early: these are numbers of a part of it.", ""]
        if self.watch:
            lines += [f"Watch: {self.watch}.", ""]
        if self.phases:
            lines += _table(
                ("phase", "requests", "failed", "per second", "p50", "p95", "p99", "longest"),
                [
                    _figures_row(p.figures, mark=" (judged)" if p.judged else "")
                    for p in self.phases
                ],
            )
            lines += _table(
                ("endpoint", "requests", "failed", "per second", "p50", "p95", "p99", "longest"),
                [_figures_row(figures) for figures in self.endpoints],
            )
        if self.limit:
            lines += _table(
                ("step", "users", "verdict", "per second", "p95", "seen"),
                [(s.kind, str(s.load), f"{s.verdict.symbol} {s.verdict}", f"{s.per_second:.0f}",
                  _shown(s.p95), s.reason) for s in self.limit.steps],
            )  # fmt: skip
            told = (self.limit.bottleneck, self.limit.scalability, self.limit.replicas)
            lines += [*(f"- {sentence}" for sentence in told if sentence), ""]
        if self.comparison:
            lines += _table(
                ("version", "p95 of each run"),
                [(self.comparison.before, _listed(self.comparison.before_runs)),
                 (self.comparison.after, _listed(self.comparison.after_runs))],
            )  # fmt: skip
        for title, checks in (("limit", self.limits), ("was it measured right?", self.soundness)):
            if checks:
                lines += _table(
                    (title, "verdict", "seen"),
                    [(c.name, f"{c.verdict.symbol} {c.verdict}", c.reason) for c in checks],
                )
        return "\n".join(lines)


def outcome_of(verdict: Verdict) -> LoadOutcome:
    """What a run with this verdict ends with; all that is no verdict on the server is unsound."""
    return _OUTCOMES.get(verdict, LoadOutcome.UNSOUND)


def figures_of(run: Run, judged: LoadVerdict) -> dict[str, Any]:
    """The fields of a report that come from what was measured."""
    wanted = {name for name, _, _ in run.judged()}
    spans = [(phase, begin, end) for phase, begin, end in run.profile.spans()]
    judged_seconds = [s for _, begin, end in run.judged() for s in run.within(begin, end)]
    endpoints = []
    for name in run.names():
        series = Series()
        for (phase, endpoint), found in run.endpoints.items():
            if endpoint == name and (phase in wanted or not judged_seconds):
                series.merge(found)
        if series.requests:
            endpoints.append(Figures.of(name, series, len(judged_seconds) or len(run.seconds)))
    total = Series()
    for series in run.endpoints.values():
        total.merge(series)
    requests = sum(s.series.requests for s in judged_seconds)
    return {
        "outcome": outcome_of(judged.verdict),
        "reason": judged.reason,
        "partial": bool(run.stopped or run.hopeless),
        "soundness": judged.soundness,
        "limits": judged.limits,
        "total": Figures.of("all", total, len(run.seconds)),
        "phases": tuple(
            PhaseFigures(begin=begin, end=end, judged=phase.judged, start_level=phase.start,
                         end_level=phase.end,
                         figures=Figures.of(phase.name, run.phase(phase.name), phase.seconds))
            for phase, begin, end in spans
        ),
        "endpoints": tuple(endpoints),
        "timeline": tuple(_moments(run)),
        "generator": _generator(run, judged_seconds, requests),
        "demands": tuple(_demands(judged_seconds, requests)),
    }  # fmt: skip


def _generator(run: Run, seconds: list[Second], requests: int) -> Generator:
    cpu = sum(sum(second.cpu.values()) for second in seconds)
    return Generator(
        workers=run.workers,
        cost_ms=round(1000 * cpu / requests, 4) if requests else None,
        ceiling_per_second=None,
        memory_bytes=sum(run.memory.values()),
        connections=sum(second.connections for second in run.timeline()),
        reconnections=sum(second.reconnections for second in run.timeline()),
        real_time=run.real_time(),
    )


def _demands(seconds: list[Second], requests: int) -> Iterable[Demand]:
    tiers = {tier for second in seconds for tier in second.tiers}
    for tier in sorted(tiers) if requests else ():
        used = sum(second.tiers.get(tier, 0.0) for second in seconds)
        yield Demand(tier=tier, ms=round(1000 * used / requests, 4),
                     cores_busy=round(used / len(seconds), 3))  # fmt: skip


def _moments(run: Run) -> Iterable[Moment]:
    timeline = [s for s in run.timeline() if s.at < run.profile.seconds]  # then only stragglers
    step = max(1, -(-len(timeline) // MOST_POINTS))
    for first in range(0, len(timeline), step):
        yield _moment(timeline[first : first + step])


def _moment(part: list[Second]) -> Moment:
    series, lag, loop = Series(), Histogram(), Histogram()
    for second in part:
        series.merge(second.series)
        lag.merge(second.lag)
        loop.merge(second.loop)
    size = len(part)
    hosts = [second.host_cpu for second in part if second.host_cpu is not None]
    return Moment(
        at=part[0].at,
        users=round(sum(second.users for second in part) / size, 1),
        in_flight=round(sum(second.in_flight for second in part) / size, 1),
        per_second=round(series.requests / size, 2),
        failed_per_second=round(series.failed / size, 2),
        p50=_ms(series.response, 0.5),
        p95=_ms(series.response, 0.95),
        p99=_ms(series.response, 0.99),
        lag_p99=_ms(lag, 0.99),
        loop_p99=_ms(loop, 0.99),
        generator_cpu=round(sum(sum(second.cpu.values()) for second in part) / size, 3),
        host_cpu=round(sum(hosts) / len(hosts), 3) if hosts else None,
        heat=_heat(series.response),
    )


def _heat(seen: Histogram) -> tuple[int, ...]:
    counts = [0] * (len(HEAT_EDGES_MS) + 1)
    for low, _, count in seen.counts():
        slot = next((i for i, edge in enumerate(HEAT_EDGES_MS) if low < edge * 1000), -1)
        counts[slot] += count
    return tuple(counts)


def _ms(seen: Histogram, share: float) -> float | None:
    us = seen.percentile(share)
    return None if us is None else round(us / 1000, 3)


def _figures_row(figures: Figures, mark: str = "") -> tuple[str, ...]:
    return (
        figures.name + mark,
        str(figures.requests),
        str(figures.failed),
        f"{figures.per_second:.1f}",
        *map(_shown, (figures.p50, figures.p95, figures.p99, figures.longest)),
    )


def _shown(ms: float | None) -> str:
    return "-" if ms is None else f"{ms:.3g} ms" if ms < 1000 else f"{ms / 1000:.2f} s"


def _listed(runs: tuple[float, ...]) -> str:
    return ", ".join(f"{ms:.3g} ms" for ms in runs)


def _table(heads: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    lines = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    lines += ["| " + " | ".join(cell.replace("|", "/") for cell in row) + " |" for row in rows]
    return [*lines, ""]
