"""What a rollout's actions make of a cluster and an edge, where nothing goes wrong by itself."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from domain.rollout import Action, Group, Retire, Route, Scale, Stop, Target


@dataclass(frozen=True)
class Place:
    """What is there at one moment; the fields are those of ``Observation``."""

    groups: Mapping[str, Group]
    weights: Mapping[str, Mapping[str, int]]
    mirrors: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    testers: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def serving(cls, targets: Iterable[Target]) -> Place:
        """One version at full size, which has all of the traffic."""
        found = tuple(targets)
        return cls(
            {t.workload: Group(t.workload, t.replicas, t.replicas) for t in found},
            {t.service: {t.workload: 100} for t in found if t.public},
        )

    def after(self, action: Action) -> Place:
        """What the action alone changes; replicas that it declares are not ready by that."""
        match action:
            case Scale(sizes=sizes):
                known = {w: self.groups.get(w, Group(w, 0, 0)) for w in sizes}
                return self.having(
                    replace(g, desired=sizes[w], ready=min(g.ready, sizes[w]), expires=False)
                    for w, g in known.items()
                )
            case Route(weights=weights, mirrors=mirrors, testers=testers):
                return replace(self, weights=weights, mirrors=mirrors, testers=testers)
            case Retire(workloads=workloads):
                return self.having(replace(self.groups[w], expires=True) for w in workloads)
            case Stop(workloads=workloads):
                left = {w: g for w, g in self.groups.items() if w not in workloads}
                return replace(self, groups=left)
            case _:
                return self

    def having(self, groups: Iterable[Group]) -> Place:
        """With these in place of those of the same workloads."""
        return replace(self, groups={**self.groups, **{g.workload: g for g in groups}})

    def ready(self) -> Place:
        """All that was declared has come up."""
        return self.having(replace(g, ready=g.desired) for g in self.groups.values())
