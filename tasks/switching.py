"""What the flag flow does, as tasks: with log, artifact and event."""

from __future__ import annotations

import time
from functools import partial
from typing import Any

from prefect import get_run_logger, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.events import emit_event
from pydantic import ValidationError

from blocks.platform import Platform
from blocks.records import Records
from domain.errors import SlipwayError, UsageError
from domain.journal import live
from domain.ramp import Ended, Finish, Ramp, flags_left
from domain.release import BuildRecord, limits_of
from domain.units import format_percent, parse_percent
from tasks import ramping
from tasks.flags import journal_of_flags
from tasks.ramping import Ramping


@task(name="set-flag", task_run_name="set {key}", cache_policy=NO_CACHE)
def set_flag(
    platform: Platform,
    application: str,
    environment: str,
    key: str,
    steps: str,
    actor: str,
) -> str:
    """Give a flag one share by hand; nothing is judged. Raises UsageError SLP080."""
    share = _percent(steps.strip())
    journal = journal_of_flags(platform, application, environment, actor)
    before = ramping.set_share(platform.flags, journal, key, share)
    said = f"{key} is on for {format_percent(share)}, it was for {format_percent(before)}"
    _tell(application, environment, key, "set", said, {"share": share, "before": before})
    return said


@task(name="kill-flag", task_run_name="kill {key}", cache_policy=NO_CACHE)
def kill_flag(platform: Platform, application: str, environment: str, key: str, actor: str) -> str:
    """Turn a flag off and see in the replicas that it is.

    Raises:
        UsageError: SLP080.
        NeedsPerson: SLP082.
    """
    journal = journal_of_flags(platform, application, environment, actor)
    try:
        seen = ramping.kill(
            platform.flags,
            journal,
            key,
            partial(ramping.meter_of, platform, application, environment, key),
            time.sleep,
        )
    except SlipwayError as error:
        _tell(application, environment, key, "kill-failed", error.cause, {})
        raise
    said = f"{key} is off for everybody: {seen}"
    _tell(application, environment, key, "killed", said, {"share": 0.0})
    return said


@task(name="ramp-flag", task_run_name="ramp {key}", cache_policy=NO_CACHE)
def ramp_flag(
    platform: Platform,
    application: str,
    environment: str,
    key: str,
    steps: str,
    actor: str,
) -> str:
    """Ramp a flag by its steps. Cancelled, or failed in any way, it leaves the flag off.

    Raises:
        UsageError: SLP080, nothing was changed.
        Failed: SLP081, the flag was killed; SLP014, nothing was changed.
        NeedsPerson: SLP082.
    """
    journal = journal_of_flags(platform, application, environment, actor)
    ramp = _ramp(_live_record(platform, application, environment), key, steps)
    under_way = Ramping(
        platform.flags,
        journal,
        key,
        partial(ramping.meter_of, platform, application, environment, key),
        log=get_run_logger().info,
    )
    under_way.begin(ramp)
    try:
        ended = under_way.drive()
    except BaseException as error:
        under_way.stop_requested = f"the ramp was stopped: {type(error).__name__}"
        under_way.drive()
        raise
    outcome = ended.outcome.lower().replace("_", "-")
    numbers = {"outcome": ended.outcome.value, "judgements": under_way.judgements}
    _tell(application, environment, key, outcome, ended.reason, numbers)
    return _concluded(key, ramp, ended)


@task(name="end-ramps", task_run_name="end ramps left in {environment}", cache_policy=NO_CACHE)
def end_ramps(platform: Platform, application: str, environment: str, actor: str) -> str:
    """Turn off every flag whose ramp was left by a process that died; a sentence about them.

    Whoever calls holds the environment, as a ramp does, so no living ramp is ended.

    Raises:
        NeedsPerson: SLP082, one of them is not shown to be off; the others were ended first.
    """
    journal = journal_of_flags(platform, application, environment, actor)
    killed: list[str] = []
    failed: list[SlipwayError] = []
    for key in flags_left(journal.entries):
        left = Ramping(
            platform.flags,
            journal,
            key,
            partial(ramping.meter_of, platform, application, environment, key),
            log=get_run_logger().info,
        )
        ended = left.end_left("the process of its ramp died")
        if ended.outcome is Ended.KILL_FAILED:
            failed.append(ramping.error_of(key, ended))
            continue
        killed.append(key)
        _tell(application, environment, key, "killed", f"{key}: {ended.reason}", {"share": 0.0})
    if failed:
        raise failed[0]
    return f"turned off {', '.join(killed)}, whose ramp was left" if killed else ""


def _concluded(key: str, ramp: Ramp, ended: Finish) -> str:
    if ended.outcome is not Ended.RAMPED:
        raise ramping.error_of(key, ended)
    return f"{key} is on for {format_percent(ramp.steps[-1])}: {ended.reason}"


def _live_record(platform: Platform, application: str, environment: str) -> BuildRecord:
    current = live(journal_of_flags(platform, application, environment).history())
    if current is None:
        raise UsageError(
            "SLP080",
            f"nothing of {application} is live in {environment}, so nobody would meet the flag",
            help="release it first; or set the flag without evidence with `slipway flag set`",
        )
    return Records(platform.store).record(current.digest)


def _ramp(record: BuildRecord, key: str, steps: str) -> Ramp:
    """The ramp as asked, else as declared; held to the application's objectives."""
    application = record.application
    declared = application.flags.carry.get(key, ()) if application.flags else ()
    given = [step.strip() for step in steps.split(",") if step.strip()]
    wanted = given or [format_percent(step) for step in declared]
    if not wanted:
        raise _steps(f"application.yaml declares no steps for {key}, and none are given")
    try:
        return Ramp.model_validate({"flag": key, "steps": wanted, "limits": limits_of(application)})
    except ValidationError as error:
        first = error.errors()[0]
        raise _steps(str(first.get("ctx", {}).get("error") or first["msg"])) from None


def _percent(text: str) -> float:
    try:
        return parse_percent(text)
    except ValueError as error:
        raise _steps(str(error)) from None


def _steps(problem: str) -> UsageError:
    return UsageError("SLP080", problem, help="write percentages with their sign: 10%,50%,100%")


def _tell(
    application: str, environment: str, key: str, what: str, said: str, numbers: dict[str, Any]
) -> None:
    get_run_logger().info(said)
    rows = [
        f"| {number} | {judged['verdict']} | {judged['reason']} |".replace("\n", " ")
        for number, judged in enumerate(numbers.get("judgements", ()), start=1)
    ]
    table = ["", "| step | verdict | why |", "|---|---|---|", *rows] if rows else []
    create_markdown_artifact(
        markdown="\n".join([f"**{what}**: {said}", *table]) + "\n",
        key=f"flag-{application}-{environment}",
        description=said,
    )
    emit_event(
        event=f"slipway.flag.{what}",
        resource={
            "prefect.resource.id": f"slipway.flag.{application}.{environment}.{key}",
            "prefect.resource.name": f"{key} of {application} in {environment}",
        },
        payload={"flag": key, "reason": said, **numbers},
    )
