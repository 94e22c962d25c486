"""Runs that ended badly, told to Sentry (blocks.sentry) when a DSN is configured.

``@flow(..., on_failure=ALERTS, on_crashed=ALERTS)`` is all that a flow needs.
"""

from __future__ import annotations

from typing import Any

from prefect import Flow, State
from prefect.client.schemas.objects import FlowRun
from prefect.flows import FlowStateHook

from blocks import sentry
from blocks.sentry import About


def report_run(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:
    """A hook of flows; Prefect passes its arguments by these names.

    After a crash it is called in another process, where there is no exception any more.
    """
    if flow_run.parent_task_run_id is not None:
        return  # its parent meets the same error
    error = getattr(state.data, "result", state.data)
    if not isinstance(error, BaseException):
        if state.is_failed():
            return  # the flow itself returned this state; `tasks.reporting.told` has told it
        error = f"flow run {flow_run.name} crashed: {state.message or 'no message'}"
    sentry.report(error, _about(flow, flow_run))


def _about(flow: Flow[..., Any], flow_run: FlowRun) -> About:
    given = flow_run.parameters
    tagged = (tag.removeprefix("app:") for tag in flow_run.tags if tag.startswith("app:"))
    return About(
        application=str(given.get("application") or next(tagged, "")),
        environment=str(given.get("environment") or ""),
        version=str(given.get("version") or ""),
        flow=flow.name,
        flow_run=str(flow_run.id),
    )


ALERTS: list[FlowStateHook[..., Any]] = [report_run] if sentry.dsn() else []
"""Hooks of every flow; none without a DSN, since Prefect logs each hook that it calls."""
