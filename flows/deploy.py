"""Deploy: what was built becomes what users have, or nothing has changed."""

from __future__ import annotations

from typing import Literal

from prefect import flow

from blocks.platform import load_platform
from domain.rollout import Finish
from flows.verify import verify
from tasks.alerts import ALERTS
from tasks.flags import carry_in
from tasks.naming import run_name
from tasks.releasing import begin, error_of, holding, on_trial, release_of
from tasks.sourcing import read_record
from tasks.steering import make_way


@flow(name="deploy", flow_run_name=run_name, timeout_seconds=7200,
      on_failure=ALERTS, on_crashed=ALERTS)  # fmt: skip
def deploy(
    environment: str,
    digest: str,
    strategy: Literal["declared", "rolling", "blue-green", "canary"] = "declared",
    actor: str = "",
    verify_after: bool = True,
    override: str = "",
    platform: str = "sandbox",
) -> int:
    """Move an environment's traffic to a build, step by step, and back when a step fails.

    Args:
        environment: Where to deploy.
        digest: Build record to deploy, as the build flow returned it.
        strategy: How to move; "declared" takes what application.yaml says.
        actor: Who asked for it, for the journal.
        verify_after: Judge the release at its public address and end it; off leaves it on
            trial for the verify flow.
        override: What was accepted without a pass and why, for the journal.
        platform: Slipway Platform block to deploy on.

    Returns:
        The number of the release.
    """
    target = load_platform(platform)
    record = read_record(target, digest)
    application = record.application
    how = application.strategy_in(environment, strategy)
    make_way(target, application, environment, record.version, actor)
    with holding(target, application.name, environment):
        carry_in(target, record, environment)
        rollout = begin(target, record, environment, strategy=how, actor=actor, override=override)
        last = rollout.drive(until=on_trial)
        if isinstance(last, Finish):
            raise error_of(rollout.journal, release_of(rollout.journal, rollout.number))
        if verify_after:
            verify(environment, application.name, platform)
    return rollout.number
