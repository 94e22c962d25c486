"""Showing what a release is going to do before it does anything."""

from __future__ import annotations

from prefect import get_run_logger, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE

from blocks.platform import Platform
from domain.application import Application
from domain.journal import live
from domain.plan import Plan, Version, plan_release
from domain.rollout import Target
from tasks.releasing import open_journal


@task(name="plan", task_run_name="plan for {environment}", cache_policy=NO_CACHE)
def publish_plan(
    platform: Platform, application: Application, environment: str, strategy: str, version: str
) -> Plan:
    """Log the plan and keep it as the markdown artifact ``plan-APPLICATION-ENVIRONMENT``."""
    journal = open_journal(platform, application.name, environment)
    current = live(journal.history())
    plan = plan_release(
        application,
        environment,
        version=version or application.version or "(named by its source revision)",
        strategy=application.strategy_in(environment, strategy),
        live=Version(
            current.version,
            tuple(Target.model_validate(t) for t in current.data["candidate"]),
        )
        if current
        else None,
        number=journal.next_release(),
    )
    log = get_run_logger()
    log.info(plan.title)
    for line in plan.lines:
        log.info("%s", line)
    create_markdown_artifact(
        markdown="\n".join([f"**{plan.title}**", "", "```", *map(str, plan.lines), "```", "",
                            plan.summary()]),
        key=f"plan-{application.name}-{environment}",
        description=plan.title,
    )  # fmt: skip
    return plan
