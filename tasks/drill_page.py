"""The report of a drill as one HTML page that needs nothing but itself."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from itertools import pairwise

from domain.drill_report import Moment, RecoveryOutcome, RecoveryReport
from domain.failover import spans
from domain.verdict import Check

_WIDTH, _HEIGHT, _LEFT = 900, 170, 46
_COLOURS = ("#0b6e99", "#8a4b08")
_FAILED = "#b3261e"
_STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 960px; padding: 0 1rem;
  color: #1b1b1f; background: #ffffff; }
h1 { font-size: 1.5rem; margin-bottom: .2rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
.verdict { padding: .8rem 1rem; border-left: .4rem solid; background: #f4f4f6; }
.PASSED { border-color: #1a6e37; } .MISSED, .FAILED, .REFUSED { border-color: #b3261e; }
table { border-collapse: collapse; width: 100%; } th, td { text-align: left; padding: .3rem .6rem;
  border-bottom: 1px solid #dcdce0; vertical-align: top; } td.v { white-space: nowrap; }
td.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
svg { width: 100%; height: auto; } .key { display: inline-block; width: .8em; height: .8em; }
pre { white-space: pre-wrap; word-break: break-all; font-size: 12px; }
"""


def page_of(report: RecoveryReport) -> str:
    """The whole page."""
    title = f"{report.kind} of {report.application} in {report.environment}"
    parts = [
        f"<h1>{escape(title)}</h1>",
        f"<p>{report.started_at:%Y-%m-%d %H:%M:%S} UTC"
        + (f", drill {escape(report.drill)}" if report.drill else "")
        + (f", tier {report.tier}" if report.tier else "")
        + (f", fault {escape(report.fault)}" if report.fault else "")
        + "</p>",
        f'<p class="verdict {report.outcome}"><strong>{_symbol(report.outcome)} '
        f"{report.outcome.lower()}</strong>: {escape(report.reason)}</p>",
        _figures(report),
        _picture(report),
        _phases(report),
        _checks("What had to hold", report.checks),
        _checks("Isolation: every probe must be refused", report.isolation),
        _checks("Readiness before", report.readiness),
        _earlier(report),
        _events(report),
    ]
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}'
        f"</title><style>{_STYLE}</style></head><body>{''.join(parts)}</body></html>"
    )


def _symbol(outcome: RecoveryOutcome) -> str:
    return "✔" if outcome is RecoveryOutcome.PASSED else "✖"


def _figures(report: RecoveryReport) -> str:
    rows = [
        ("RTA, fault to first good transaction", report.rta_seconds, report.rto_seconds),
        ("RPA, newest heartbeat recovered to fault", report.rpa_seconds, report.rpo_seconds),
    ]
    body = "".join(
        f'<tr><td>{name}</td><td class="n">{_seconds(value)}</td>'
        f'<td class="n">{_seconds(limit)}</td></tr>'
        for name, value, limit in rows
    )
    lost = escape(spans(report.lost_transactions))
    return (
        "<table><tr><th></th><th>achieved</th><th>objective</th></tr>" + body + "</table>"
        f"<p>{report.acknowledged} transactions were acknowledged; lost: {lost}. "
        f"Left over: {escape(', '.join(report.leftovers)) or 'nothing'}.</p>"
    )


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:,.2f} s"


def _picture(report: RecoveryReport) -> str:
    """Transactions of clients over time: by the side that answered, and failed."""
    moments = report.timeline
    if not moments:
        return ""
    end = max(moments[-1].at + _step(moments), 1.0)
    addresses = list(dict.fromkeys(a for m in moments for a in m.good))[:2]
    most = max(max(sum(m.good.values()) + m.failed for m in moments), 1)

    def x(at: float) -> float:
        return _LEFT + (_WIDTH - _LEFT - 10) * at / end

    bars = []
    wide = max(x(_step(moments)) - x(0) - 0.5, 0.8)
    for moment in moments:
        base = float(_HEIGHT)
        stacks = [(moment.good.get(a, 0), _COLOURS[i]) for i, a in enumerate(addresses)]
        for count, colour in [*stacks, (moment.failed, _FAILED)]:
            high = (_HEIGHT - 12) * count / most
            base -= high
            if count:
                bars.append(
                    f'<rect x="{x(moment.at):.1f}" y="{base:.1f}" width="{wide:.1f}" '
                    f'height="{high:.1f}" fill="{colour}"/>'
                )
    marks = _marks(report, x)
    ticks = "".join(
        f'<text x="{x(at):.1f}" y="{_HEIGHT + 15}" font-size="11" text-anchor="middle">{at:g} s'
        "</text>"
        for at in _ticks(end)
    )
    keys = "".join(
        f'<span class="key" style="background:{colour}"></span> {escape(name)} &nbsp; '
        for name, colour in [
            *((f"answered at {a}", _COLOURS[i]) for i, a in enumerate(addresses)),
            ("failed", _FAILED),
        ]
    )
    return (
        "<h2>What clients met</h2>"
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT + 22}" role="img" aria-label="transactions over '
        f'time"><text x="2" y="14" font-size="11">{most} in {_step(moments):g} s</text>'
        f"{''.join(bars)}{marks}{ticks}</svg><p>{keys}</p>"
    )


def _marks(report: RecoveryReport, x: object) -> str:
    """The fault, and where each phase ended."""
    assert callable(x)
    if report.fault_at is None:
        return ""
    at, lines = report.fault_at, []
    lines.append((at, "fault"))
    for phase in report.phases:
        at += phase.seconds
        lines.append((at, phase.name))
    return "".join(
        f'<line x1="{x(t):.1f}" x2="{x(t):.1f}" y1="{10 + 11 * (i % 6)}" y2="{_HEIGHT}" '
        'stroke="#55555c" stroke-dasharray="2 2"/>'
        f'<text x="{x(t) + 3:.1f}" y="{18 + 11 * (i % 6)}" font-size="10">{escape(str(name))}'
        "</text>"
        for i, (t, name) in enumerate(lines)
    )


def _step(moments: Sequence[Moment]) -> float:
    gaps = [b.at - a.at for a, b in pairwise(moments)]
    return min(gaps, default=0.25)


def _ticks(end: float) -> list[float]:
    step = next(s for s in (1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 3600) if end / s <= 12)
    return [step * i for i in range(int(end / step) + 1)]


def _phases(report: RecoveryReport) -> str:
    if not report.phases:
        return ""
    whole = sum(p.seconds for p in report.phases) or 1.0
    rows = "".join(
        f'<tr><td>{escape(p.name)}</td><td class="n">{p.seconds:.2f} s</td>'
        f'<td class="n">{100 * p.seconds / whole:.0f} %</td><td>{p.verdict.symbol} '
        f"{escape(p.note)}</td></tr>"
        for p in report.phases
    )
    return (
        "<h2>Phases</h2><table><tr><th>phase</th><th>time</th><th>share</th><th></th></tr>"
        f"{rows}</table>"
    )


def _checks(title: str, checks: Iterable[Check]) -> str:
    rows = "".join(
        f'<tr><td>{escape(c.name)}</td><td class="v">{c.verdict.symbol} {escape(c.verdict)}</td>'
        f"<td>{escape(c.reason)}</td></tr>"
        for c in checks
    )
    return f"<h2>{escape(title)}</h2><table>{rows}</table>" if rows else ""


def _earlier(report: RecoveryReport) -> str:
    if not report.earlier:
        return ""
    said = ", ".join(f"{value:.1f} s" for value in report.earlier)
    return f"<h2>Earlier drills of this tier</h2><p>RTA, oldest first: {said}.</p>"


def _events(report: RecoveryReport) -> str:
    if not report.events:
        return ""
    rows = "\n".join(
        f"{e.at:%H:%M:%S.%f} {e.digest[:12]} {escape(e.what)}"
        + (f" {escape(str(dict(e.data)))}" if e.data else "")
        for e in report.events
    )
    return (
        "<h2>Evidence</h2><p>Each line carries the SHA-256 of the line before it.</p>"
        f"<pre>{rows}</pre>"
    )
