"""``slipway simulate``: what a policy would do, before anybody trusts it."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from deployments.console import Console, nearest, table
from deployments.releasing import read_application
from domain.application import Application
from domain.errors import UsageError
from domain.plan import unbuilt
from domain.release import policy_for, targets, workload_name
from domain.simulation import SCENARIOS, Scenario, Story, simulate

SIMULATED = "SIMULATED: nothing was released, and no user was there"


def show(path: Path, environment: str, name: str, rate: float, seed: int, console: Console) -> int:
    """One line for each scenario, or the whole story of one.

    Raises:
        UsageError: SLP000, there is no such scenario; SLP003, no such environment.
    """
    application, _ = read_application(path)
    application.environment(environment)
    chosen = _chosen(name, rate)
    stories = {n: _play(application, environment, s, seed) for n, s in chosen.items()}
    document: dict[str, Any] = {
        "simulated": True,
        "application": application.name,
        "environment": environment,
        "strategy": application.strategy_in(environment).value,
        "seed": seed,
        "scenarios": {n: _document(chosen[n], story) for n, story in stories.items()},
    }
    if len(stories) == 1:
        lines = [line for story in stories.values() for line in _story(story)]
    else:
        lines = _overview(chosen, stories)
    again = f"slipway simulate {path} --environment {environment} --scenario bad"
    console.finish("\n".join([SIMULATED, *lines]), document, next=[again])
    return 0


def _chosen(name: str, rate: float) -> dict[str, Scenario]:
    if name != "all" and name not in SCENARIOS:
        raise UsageError(
            "SLP000", f"there is no scenario {name!r}", help=nearest(name, ["all", *SCENARIOS])
        )
    found = dict(SCENARIOS) if name == "all" else {name: SCENARIOS[name]}
    if rate < 0:
        return found
    return {n: replace(s, requests_per_second=rate) for n, s in found.items()}


def _play(application: Application, environment: str, scenario: Scenario, seed: int) -> Story:
    record = unbuilt(application, "new")
    strategy = application.strategy_in(environment)
    policy = policy_for(record, environment, strategy, migrate=False)
    old, new = (
        targets(
            record,
            environment,
            {
                service: workload_name(application.name, environment, service, release)
                for service in application.services
            },
        )
        for release in (1, 2)
    )
    return simulate(policy, new, old, scenario, seed)


def _overview(chosen: dict[str, Scenario], stories: dict[str, Story]) -> list[str]:
    rows = [
        (n, s.outcome.value, f"{s.seconds:.0f} s", str(s.requests), str(s.errors), chosen[n].text)
        for n, s in stories.items()
    ]
    heads = ("scenario", "outcome", "took", "requests", "errors of the new version", "what it is")
    return table(heads, rows).splitlines()


def _story(story: Story) -> list[str]:
    lines = [f"{e.seconds:6.0f} s  {e.action:<8} {e.reason}" for e in story.events]
    end = f"{story.outcome}: {story.reason}"
    met = f"users sent {story.requests} requests and met {story.errors} errors of the new version"
    return [*lines, end, met]


def _document(scenario: Scenario, story: Story) -> dict[str, Any]:
    return {
        "scenario": asdict(scenario),
        "outcome": story.outcome.value,
        "reason": story.reason,
        "seconds": story.seconds,
        "requests": story.requests,
        "errors": story.errors,
        "events": [asdict(event) for event in story.events],
        "verdicts": list(story.verdicts),
    }
