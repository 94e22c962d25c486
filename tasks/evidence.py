"""What users meet in one step of a rollout, judged as it comes in."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from blocks.http_probe import Probed
from blocks.metrics import Metrics
from domain.counting import added
from domain.judge import Judgement, Limits, Look, Trial
from domain.routing import LATENCY_BOUNDS_SECONDS, Counts
from domain.verdict import Verdict, worst


@dataclass(frozen=True)
class Pair:
    """The two workloads of one service that are compared; ``stable`` None: nothing else is live."""

    service: str
    candidate: str
    stable: str | None


@dataclass
class Evidence:
    """The evidence of one step: opened after its move, read again and again, kept at its end.

    It lives in this process alone. Whoever continues after a crash collects anew: evidence that
    cannot be told from another's would be none.
    """

    step: int
    metrics: Metrics
    application: str
    environment: str
    pairs: Sequence[Pair]
    limits: Limits
    probe: Callable[[str], Probed] | None = None
    probes_per_second: float = 0.0
    looks: dict[str, list[Look]] = field(default_factory=dict)
    judgements: dict[str, Judgement] = field(default_factory=dict)
    started: float = field(default_factory=time.monotonic)
    _probed: dict[str, list[Probed]] = field(default_factory=dict)
    _sent: int = 0

    def __post_init__(self) -> None:
        names = [w for pair in self.pairs for w in (pair.candidate, pair.stable) if w]
        self._meter = self.metrics.open(self.application, self.environment, names)
        self._trials = {pair.service: Trial(self.limits) for pair in self.pairs}

    def look(self) -> None:
        """Read once and judge every service anew.

        Raises:
            SlipwayError: what users met could not be read.
        """
        self._send_probes()
        reading = self._meter.read()
        for pair in self.pairs:
            look = Look(
                at=reading.at,
                candidate=self._counts(reading.counts, pair.candidate),
                stable=self._counts(reading.counts, pair.stable) if pair.stable else None,
            )
            self.looks.setdefault(pair.service, []).append(look)
            self.judgements[pair.service] = self._trials[pair.service].add(look)

    @property
    def verdict(self) -> Verdict:
        return worst(judgement.verdict for judgement in self.judgements.values())

    @property
    def reason(self) -> str:
        """Of the service that is furthest from a pass."""
        verdict = self.verdict
        return next(
            (
                f"{service}: {judgement.reason}" if len(self.judgements) > 1 else judgement.reason
                for service, judgement in self.judgements.items()
                if judgement.verdict is verdict
            ),
            "nothing was read yet",
        )

    def described(self, weight: int) -> list[dict[str, Any]]:
        """One entry a service, as the journal and the report keep it."""
        return [
            {
                "step": self.step + 1,
                "weight": weight,
                "service": service,
                "verdict": judgement.verdict.value,
                "reason": judgement.reason,
                "numbers": dict(judgement.numbers),
            }
            for service, judgement in self.judgements.items()
        ]

    def document(self) -> dict[str, Any]:
        """All that was judged, for the same answer another day."""
        return {
            "limits": self.limits.model_dump(mode="json"),
            "looks": {
                service: [look.model_dump(mode="json") for look in looks]
                for service, looks in self.looks.items()
            },
        }

    def _counts(self, counts: Mapping[str, Counts], workload: str) -> Counts:
        found, probed = counts.get(workload, Counts()), self._probed.get(workload)
        return added(found, as_counted(probed, _bounds(counts))) if probed else found

    def _send_probes(self) -> None:
        """As many as are due; counted here, since for the edge they are no users' requests."""
        if self.probe is None:
            return
        due = int((time.monotonic() - self.started) * self.probes_per_second)
        for _ in range(min(due - self._sent, math.ceil(self.probes_per_second))):
            for workload in (w for pair in self.pairs for w in (pair.candidate, pair.stable) if w):
                self._probed.setdefault(workload, []).append(self.probe(workload))
        self._sent = due


def as_counted(probed: Sequence[Probed], bounds: Sequence[str]) -> Counts:
    """Probes as a source with these upper bounds would have counted them."""
    return Counts(
        requests=len(probed),
        errors=sum(one.failed for one in probed),
        buckets={bound: sum(one.seconds <= float(bound) for one in probed) for bound in bounds},
    )


def _bounds(counts: Mapping[str, Counts]) -> Sequence[str]:
    """The source's own bounds, so that both can be added; ours where it has counted nothing."""
    found = next((tuple(c.buckets) for c in counts.values() if c.buckets), ())
    return found or (*(f"{bound:g}" for bound in LATENCY_BOUNDS_SECONDS), "+Inf")
