"""What a drill or a failover would be, from what is live: resolved before anything is made."""

from __future__ import annotations

import time
from random import Random

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE

from blocks.platform import Platform, load_platform
from domain.application import Recovery
from domain.drill import SCENARIOS, Fault
from domain.errors import Failed, UsageError
from domain.failover import Tier
from domain.readiness import score
from domain.release import BuildRecord
from domain.verdict import Check, Verdict
from tasks.drill_world import Wanted
from tasks.readiness import Readiness, readiness
from tasks.recovery_copies import choose
from tasks.releasing import run_id
from tasks.saving import live_release


def protected(
    platform: Platform, application: str, environment: str
) -> tuple[BuildRecord, Recovery]:
    """What is live, and how it is protected.

    Raises:
        UsageError: SLP006, nothing is live; SLP200, it declares no recovery, or another
            environment's.
    """
    _, record = live_release(platform, application, environment)
    policy = record.application.recovery
    if policy is None or policy.environment != environment:
        declared = f"only for {policy.environment}" if policy else "nothing"
        raise UsageError(
            "SLP200",
            f"the version of {application} that is live in {environment} declares {declared} "
            "under `recovery`",
            help="declare `recovery` in application.yaml and release again; see docs/recovery.md",
        )
    if record.application.database is None:
        raise UsageError(
            "SLP200",
            f"{application} has no database, so there is nothing that could be lost",
            help="release it into the other cloud as it is",
        )
    return record, policy


def is_protected(platform: Platform, application: str, environment: str) -> bool:
    """Whether what is live there declares a standby in another cloud."""
    try:
        protected(platform, application, environment)
    except UsageError:
        return False
    return True


@task(name="plan drill", cache_policy=NO_CACHE)
def plan_drill(
    platform_name: str,
    application: str,
    environment: str,
    tier: str,
    scenario: str,
    fault: str,
    seed: int,
) -> Wanted:
    """Everything that a drill needs to know.

    Raises:
        UsageError: SLP200, SLP212. Failed: SLP149, no copy is proved.
    """
    primary = load_platform(platform_name)
    record, policy = protected(primary, application, environment)
    standby_name = record.application.environment(policy.standby).platform
    standby = load_platform(standby_name)
    game_day = SCENARIOS.get(scenario)
    wanted_tier = Tier(tier) if tier else (game_day and game_day.tier) or policy.tier
    return Wanted(
        record=record,
        policy=policy,
        tier=wanted_tier,
        fault=fault_of(scenario, fault, seed, wanted_tier),
        scenario=game_day,
        primary=primary,
        standby=standby,
        chosen=choose(primary, record, policy),
        seed=seed,
        run=run_id(),
        platforms=(platform_name, standby_name),
        actor=f"drill run {run_id()}",
    )


def fault_of(scenario: str, fault: str, seed: int, tier: Tier) -> Fault:
    """What is broken: as the scenario says, as asked, or one at random that the tier can feel.

    Raises:
        UsageError: SLP212, there is no such thing.
    """
    if scenario:
        if scenario not in SCENARIOS:
            raise UsageError(
                "SLP212",
                f"there is no scenario {scenario!r}; there are {', '.join(SCENARIOS)}",
                help="choose one of these, or give a --fault",
            )
        return SCENARIOS[scenario].fault
    if fault == "random":
        felt = [f for f in Fault if f is not Fault.CORRUPT or tier is Tier.BACKUP]
        return Random(seed or time.time_ns()).choice(felt)
    if fault not in list(Fault):
        raise UsageError(
            "SLP212",
            f"there is no fault {fault!r}; there are {', '.join(Fault)} and random",
            help="choose one of these, or a --scenario",
        )
    return Fault(fault)


@task(name="send bundles", cache_policy=NO_CACHE)
def send_bundles(primary: Platform, standby: Platform, record: BuildRecord) -> int:
    """Copy to the standby what is live, so that nothing is fetched on the day; how many came."""
    sent = 0
    for bundle in record.artifact.services.values():
        if not standby.bundles.has(bundle.digest):
            standby.bundles.receive(primary.bundles, bundle.digest)
            sent += 1
        standby.bundles.materialize(bundle.digest)
    if sent:
        get_run_logger().info("%d bundles sent to %s", sent, standby.side)
    return sent


def require_ready(wanted: Wanted) -> list[Check]:
    """Every check of the standby passes.

    Raises:
        Failed: SLP201, with what does not.
    """
    looks = Readiness(wanted.primary, wanted.standby, wanted.record, wanted.policy, wanted.tier)
    checks = readiness(looks)
    percent, said = score(checks)
    if any(check.verdict is not Verdict.PASS for check in checks):
        raise NotReady(checks, percent, said)
    return checks


class NotReady(Failed):
    """SLP201; carries the checks for the report."""

    def __init__(self, checks: list[Check], percent: int, said: str) -> None:
        super().__init__(
            "SLP201",
            f"the standby is not ready ({percent} %): {said}",
            help="mend what it names; `slipway readiness APP` looks again",
        )
        self.checks = checks
