"""Flag: one feature flag of one environment is set, ramped by evidence, or killed."""

from __future__ import annotations

from typing import Any, Literal

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.states import Completed

from blocks.platform import load_platform
from tasks.alerts import ALERTS
from tasks.locks import environment_lock
from tasks.naming import run_name
from tasks.switching import kill_flag, ramp_flag, set_flag


@flow(name="flag", flow_run_name=run_name, timeout_seconds=86400,
      on_failure=ALERTS, on_crashed=ALERTS)  # fmt: skip
def flag(
    environment: str,
    application: str,
    key: str,
    verb: Literal["set", "ramp", "kill"],
    steps: str = "",
    actor: str = "",
    platform: str = "sandbox",
) -> State[Any]:
    """Set, ramp or kill one feature flag.

    A kill waits for nobody: neither for a release nor for a ramp, which stops when it sees it.

    Args:
        environment: Where.
        application: Name of the application.
        key: Key of the flag in its flagd file.
        verb: What to do with it.
        steps: Percentages, such as "10%, 50%, 100%". Set takes one; ramp takes those that
            application.yaml declares when this is empty.
        actor: Who asked for it, for the journal.
        platform: Slipway Platform block it runs on.
    """
    target = load_platform(platform)
    if verb == "kill":
        return Completed(message=kill_flag(target, application, environment, key, actor))
    change = set_flag if verb == "set" else ramp_flag
    with environment_lock(application, environment):
        message = change(target, application, environment, key, steps, actor)
    return Completed(message=message)
