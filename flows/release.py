"""Release: from source to live traffic. Build, test, scan, deploy, verify."""

from __future__ import annotations

from typing import Any, Literal

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed

from blocks.platform import load_platform
from domain.errors import SlipwayError
from flows.build import build
from flows.deploy import deploy
from flows.run_tests import test
from flows.scan import scan
from flows.verify import verify
from tasks.alerts import ALERTS
from tasks.naming import run_name
from tasks.overlap import together
from tasks.planning import publish_plan
from tasks.releasing import holding, refuse_early
from tasks.reporting import RELEASE_STAGES, Telling, told
from tasks.sourcing import load_application, read_record
from tasks.steering import make_way


@flow(name="release", flow_run_name=run_name, timeout_seconds=7200,
      on_failure=ALERTS, on_crashed=ALERTS)  # fmt: skip
def release(
    environment: str,
    source: str,
    strategy: Literal["declared", "rolling", "blue-green", "canary"] = "declared",
    version: str = "",
    dry_run: bool = False,
    accept_incomplete_scan: str = "",
    actor: str = "",
) -> State[Any]:
    """Ship the application in a folder to an environment, on the platform that it declares.

    Args:
        environment: Where to release, as application.yaml names it.
        source: Folder that holds application.yaml.
        strategy: How to move traffic; "declared" takes what application.yaml says.
        version: Name of the version; empty takes the one in application.yaml.
        dry_run: Show the plan and stop.
        accept_incomplete_scan: Reason to release although a scanner could not do its work.
        actor: Who asked for it, for the journal.
    """
    application = load_application(source, environment)
    platform = application.environment(environment).platform
    target = load_platform(platform)
    if dry_run:
        plan = publish_plan(target, application, environment, strategy, version)
        return Completed(message=plan.summary())
    telling = Telling(target, application.name, environment, "release", RELEASE_STAGES, version,
                      application.strategy_in(environment, strategy), actor=actor)  # fmt: skip
    try:
        with told(telling):
            publish_plan(target, application, environment, strategy, version)
            with telling.stage("build"):
                telling.digest = build(source, version, platform)
                record = read_record(target, telling.digest)
                telling.version = record.version
                refuse_early(target, record, environment)
            make_way(target, application, environment, telling.version, actor)
            together(  # neither needs the other; each has a candidate of its own
                lambda: telling.test(lambda: test(source, version, telling.digest, platform)),
                lambda: telling.scan(lambda: scan(environment, source, version, telling.digest,
                                                  accept_incomplete_scan, platform),
                                     accept_incomplete_scan),
            )  # fmt: skip
            with holding(target, application.name, environment):
                with telling.stage("deploy"):
                    telling.release = deploy(environment, telling.digest, strategy, actor, False,
                                             telling.override, platform)  # fmt: skip
                with telling.stage("verify"):
                    verify(environment, application.name, platform)
    except SlipwayError as error:
        return Failed(message=telling.sentence or str(error))
    return Completed(message=telling.sentence)
