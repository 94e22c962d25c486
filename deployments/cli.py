"""The command line ``slipway``: for people and for CI.

Everything that takes time to import is imported by the command that needs it, so that help
answers at once.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from deployments.command import SwitchError, command, new_app, take_switches
from deployments.console import Console, nearest
from domain.errors import Failed, SlipwayError, UsageError

if TYPE_CHECKING:
    from sandbox.home import Home

PROGRAM = "slipway"

app = new_app(
    """Take a web application from source to live traffic, and keep it alive.

    Examples:
        slipway up                                              start the sandbox
        slipway release examples/diet_game --environment production
        slipway rollback diet-game --environment production     go back, at once
        slipway status                                          everything on one screen
        slipway help release                                    more about one command
    """
)
audit = new_app(
    """Check the record of what was done.

    Examples:
        slipway audit verify diet-game
    """
)
config = new_app(
    """Look at application.yaml as Slipway reads it.

    Examples:
        slipway config show examples/diet_game
    """
)
flag = new_app(
    """Feature flags of an environment: see them, set, ramp and kill them.

    Examples:
        slipway flag list diet-game -e production
        slipway flag kill diet-game quick-add -e production
    """
)
app.add_typer(audit, name="audit")
app.add_typer(flag, name="flag")
app.add_typer(config, name="config")

Application = Annotated[str, typer.Argument(metavar="APP", help="The application's name.")]
Environment = Annotated[
    str, typer.Option("--environment", "-e", metavar="E", help="Where: staging, production, ...")
]
Source = Annotated[
    Path, typer.Argument(metavar="PATH", help="The folder that holds application.yaml.")
]
RunName = Annotated[str, typer.Argument(metavar="RUN", help="A run's id, name or address.")]
Detach = Annotated[
    bool, typer.Option("--detach", help="Start it and leave; 0 then only means: started.")
]
Reason = Annotated[str, typer.Option("--reason", metavar="TEXT", help="Why; the journal keeps it.")]
Key = Annotated[str, typer.Argument(metavar="FLAG", help="The flag's key in its flagd file.")]
Confirm = Annotated[
    str,
    typer.Option("--confirm", metavar="APP", help="The application's name, instead of a question."),
]


def _console(context: typer.Context) -> Console:
    console = context.obj
    assert isinstance(console, Console)
    return console


def _home() -> Home:
    from sandbox.home import Home

    return Home.find()


@app.callback()
def _root(context: typer.Context) -> None:
    _help_when_alone(context)


@audit.callback()
def _audit(context: typer.Context) -> None:
    _help_when_alone(context)


@flag.callback()
def _flag(context: typer.Context) -> None:
    _help_when_alone(context)


@config.callback()
def _config(context: typer.Context) -> None:
    _help_when_alone(context)


def _help_when_alone(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        print(context.get_help())


# --- the sandbox ----------------------------------------------------------------------------


@command(app, "up")
def up(context: typer.Context) -> int:
    """Start the sandbox on this machine, or find it started, and register the flows.

    Examples:
        slipway up
        slipway up --json -q
    """
    from deployments import registration
    from sandbox import control

    console, home = _console(context), _home()
    status = control.up(home, progress=console.say)
    changed = registration.ensure(home, status, console)
    console.say("flows registered" if changed else "flows are registered as they are")
    address = status.addresses["prefect_ui"]
    console.finish(
        address,
        {"home": str(home.root), "prefect_ui": address, "registered": changed, **status.public()},
        next=["slipway release examples/diet_game --environment production", "slipway status"],
        undo="slipway down",
    )
    return 0


@command(app, "down")
def down(context: typer.Context) -> int:
    """Stop the sandbox; no process, port or lock is left. Its data stays.

    Examples:
        slipway down
    """
    from sandbox import control

    console, home = _console(context), _home()
    control.down(home, progress=console.say)
    console.finish("stopped", {"home": str(home.root), "stopped": True}, undo=f"{PROGRAM} up")
    return 0


@command(app, "status")
def status(context: typer.Context) -> int:
    """Everything on one screen: the sandbox's parts, and what is live where.

    Exits 1 when the sandbox does not run or a part of it is not healthy.

    Examples:
        slipway status
        slipway status --json
    """
    from deployments import overview

    return overview.show(_home(), _console(context))


@command(app, "doctor")
def doctor(context: typer.Context) -> int:
    """Check what Slipway needs on this machine; each check says how to mend it.

    Exits 1 when a check fails; warnings are no failure.

    Examples:
        slipway doctor
        slipway doctor --json
    """
    from deployments import doctor as checks

    return checks.show(_home(), _console(context))


# --- releases -------------------------------------------------------------------------------


@command(app, "release")
def release(
    context: typer.Context,
    path: Source,
    environment: Environment,
    strategy: Annotated[
        Literal["declared", "rolling", "blue-green", "canary"],
        typer.Option("--strategy", help="How traffic moves; declared: as application.yaml says."),
    ] = "declared",
    version: Annotated[
        str, typer.Option("--version", metavar="V", help="Instead of the file's version.")
    ] = "",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the plan on stdout and do nothing.")
    ] = False,
    accept_incomplete_scan: Annotated[
        str,
        typer.Option(
            "--accept-incomplete-scan",
            metavar="REASON",
            help="Release although a scanner could not do its work; kept in the journal.",
        ),
    ] = "",
    confirm: Confirm = "",
    detach: Detach = False,
) -> int:
    """Build, test, scan and deploy an application, and verify it; exits 0 only when it is live.

    The plan is printed first. Ctrl-C leaves the run alone and says how to watch or cancel it.

    Examples:
        slipway release examples/diet_game --environment production
        slipway release . -e staging --strategy rolling --version 1.2.0
        slipway release . -e production --dry-run
        slipway release . -e production --json -q > release.json
    """
    from deployments import commands

    asked = commands.Asked(
        path, environment, strategy, version, confirm, detach, accept_incomplete_scan
    )
    return commands.release(_home(), _console(context), asked, dry_run=dry_run)


@command(app, "simulate")
def simulate(
    context: typer.Context,
    path: Source,
    environment: Environment,
    scenario: Annotated[
        str,
        typer.Option("--scenario", metavar="NAME", help="What the new version is like; all: each."),
    ] = "all",
    rate: Annotated[
        float,
        typer.Option("--rate", metavar="R", min=-1, help="Users' requests a second; -1: as told."),
    ] = -1,
    seed: Annotated[int, typer.Option("--seed", metavar="N", min=0, help="Of the chances.")] = 1,
) -> int:
    """What a release of this application would do, played in memory; nothing is touched.

    The state machine and the judge are the real ones; users, cluster and clock are made up.

    Examples:
        slipway simulate examples/diet_game --environment production
        slipway simulate . -e production --scenario bad --rate 20
    """
    from deployments import simulating

    return simulating.show(path, environment, scenario, rate, seed, _console(context))


@command(app, "rollback")
def rollback(
    context: typer.Context,
    application: Application,
    environment: Environment,
    to: Annotated[
        int, typer.Option("--to", metavar="N", min=0, help="Release number; 0: the one before.")
    ] = 0,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the plan on stdout and do nothing.")
    ] = False,
    confirm: Confirm = "",
    detach: Detach = False,
) -> int:
    """Go back to an earlier version; exits 0 only when it is live.

    Examples:
        slipway rollback diet-game --environment production
        slipway rollback diet-game -e production --to 3
    """
    from deployments import commands

    return commands.rollback(
        _home(), _console(context), application, environment, to,
        confirmed=confirm, detach=detach, dry_run=dry_run,
    )  # fmt: skip


def _steer(verb: str, help: str) -> None:
    """Register a command that asks the release under way for something."""

    def ask(
        context: typer.Context,
        application: Application,
        environment: Environment,
        reason: Reason = "",
    ) -> int:
        from deployments import steering

        return steering.ask(_home(), _console(context), application, environment, verb, reason)

    ask.__doc__ = help
    command(app, verb)(ask)


_steer(
    "pause",
    """Hold the release under way where it is; it is watched, and still goes back by itself.

    Examples:
        slipway pause diet-game --environment production --reason "looking at the graphs"
    """,
)
_steer(
    "resume",
    """Let a paused release go on.

    Examples:
        slipway resume diet-game --environment production
    """,
)
_steer(
    "promote",
    """Skip the evidence that is missing: all traffic to the new version, checks as ever.

    The journal and the report keep who decided it, and why.

    Examples:
        slipway promote diet-game --environment production --reason "fix for the outage"
    """,
)
_steer(
    "abort",
    """Take the release under way back.

    Examples:
        slipway abort diet-game --environment production --reason "wrong branch"
    """,
)


@command(app, "retry")
def retry(
    context: typer.Context,
    application: Application,
    environment: Environment,
    confirm: Confirm = "",
    detach: Detach = False,
) -> int:
    """Try the release that was taken back last once more: same bundles, fresh evidence.

    Examples:
        slipway retry diet-game --environment production
    """
    from deployments import steering

    return steering.retry(
        _home(), _console(context), application, environment, confirmed=confirm, detach=detach
    )


@command(app, "recover")
def recover(
    context: typer.Context,
    application: Application,
    environment: Environment,
    detach: Detach = False,
) -> int:
    """End what killed processes left half done; does nothing when nothing was left.

    A release is finished or taken back, a flag whose ramp was killed goes off, and a contraction
    that is owed is run.

    Examples:
        slipway recover diet-game --environment production
    """
    from deployments import commands

    return commands.recover(_home(), _console(context), application, environment, detach=detach)


@command(app, "contract")
def contract(
    context: typer.Context,
    application: Application,
    environment: Environment,
    confirm: Confirm = "",
    detach: Detach = False,
) -> int:
    """Drop from the schema what only older versions needed; after it there is no way back.

    Refused while an older version serves, is kept for a way back, or is on its way.

    Examples:
        slipway contract diet-game --environment production
    """
    from deployments import steering

    return steering.contract(
        _home(), _console(context), application, environment, confirmed=confirm, detach=detach
    )


@command(app, "history")
def history(
    context: typer.Context,
    application: Application,
    environment: Environment,
    limit: Annotated[
        int, typer.Option("--limit", metavar="N", min=1, help="How many, newest first.")
    ] = 20,
) -> int:
    """The releases of an application in an environment, newest first.

    Examples:
        slipway history diet-game --environment production
        slipway history diet-game -e production --json
    """
    from deployments import commands

    return commands.history(_home(), _console(context), application, environment, limit)


@command(app, "watch")
def watch(context: typer.Context, run: RunName) -> int:
    """Follow a run to its end; exits as the command that started it would have.

    Examples:
        slipway watch 5d3f0c1e
        slipway watch "release diet-game 1.1.0 production"
    """
    from deployments import commands

    return commands.watch(_home(), _console(context), run)


@command(app, "cancel")
def cancel(context: typer.Context, run: RunName) -> int:
    """Cancel a run: it puts traffic back on the stable version and ends.

    Examples:
        slipway cancel 5d3f0c1e
    """
    from deployments import commands

    return commands.cancel(_home(), _console(context), run)


@command(audit, "verify")
def verify(
    context: typer.Context,
    application: Application,
    environment: Annotated[
        str, typer.Option("--environment", "-e", metavar="E", help="Only this one.")
    ] = "",
) -> int:
    """Check the hash chain of the journal and print its head; exits 3 when it is broken.

    The newest entry can only be checked against a head noted elsewhere: keep what this prints.

    Examples:
        slipway audit verify diet-game
        slipway audit verify diet-game -e production --json
    """
    from deployments import commands

    return commands.verify(_home(), _console(context), application, environment)


@command(audit, "replay")
def replay_(
    context: typer.Context,
    application: Application,
    environment: Environment,
    release: Annotated[
        int, typer.Option("--release", metavar="N", min=0, help="0: the newest that was judged.")
    ] = 0,
) -> int:
    """Judge the kept evidence of a release again; exits 3 when an answer differs.

    Examples:
        slipway audit replay diet-game --environment production
        slipway audit replay diet-game -e production --release 4 --json
    """
    from deployments import steering

    return steering.judge_again(_home(), _console(context), application, environment, release)


# --- feature flags --------------------------------------------------------------------------


@command(flag, "list")
def flag_list(context: typer.Context, application: Application, environment: Environment) -> int:
    """The feature flags of an environment, and for whom each is on.

    Examples:
        slipway flag list diet-game -e production
        slipway flag list diet-game -e production --json
    """
    from deployments import flagging

    return flagging.show(_home(), _console(context), application, environment)


@command(flag, "set")
def flag_set(
    context: typer.Context,
    application: Application,
    key: Key,
    percent: Annotated[str, typer.Argument(metavar="PERCENT", help="Such as 25%.")],
    environment: Environment,
    detach: Detach = False,
) -> int:
    """Turn a flag on for a share of users, without evidence; nobody who has it loses it.

    Examples:
        slipway flag set diet-game quick-add 25% -e staging
    """
    from deployments import flagging

    asked = flagging.Asked(application, environment, key, "set", (percent,))
    return flagging.start(_home(), _console(context), asked, detach=detach)


@command(flag, "ramp")
def flag_ramp(
    context: typer.Context,
    application: Application,
    key: Key,
    environment: Environment,
    steps: Annotated[
        str,
        typer.Option("--steps", metavar="PERCENTS", help="Instead of those in application.yaml."),
    ] = "",
    detach: Detach = False,
) -> int:
    """Turn a flag on step by step, each step judged; exits 0 only when all have passed.

    A step that does not pass in its time kills the flag, and the replicas prove it.

    Examples:
        slipway flag ramp diet-game quick-add -e production
        slipway flag ramp diet-game quick-add -e production --steps 1%,10%,50%,100%
    """
    from deployments import flagging

    chosen = tuple(step.strip() for step in steps.split(",")) if steps else ()
    asked = flagging.Asked(application, environment, key, "ramp", chosen)
    return flagging.start(_home(), _console(context), asked, detach=detach)


@command(flag, "kill")
def flag_kill(
    context: typer.Context,
    application: Application,
    key: Key,
    environment: Environment,
    detach: Detach = False,
) -> int:
    """Turn a flag off for everybody at once; exits 0 only when the replicas are seen to obey.

    Examples:
        slipway flag kill diet-game quick-add -e production
    """
    from deployments import flagging

    asked = flagging.Asked(application, environment, key, "kill")
    return flagging.start(_home(), _console(context), asked, detach=detach)


# --- load -----------------------------------------------------------------------------------


@command(app, "load")
def load(
    context: typer.Context,
    application: Annotated[str, typer.Argument(help="Name of the application.")] = "",
    environment: Environment = "production",
    profile: Annotated[
        str,
        typer.Option("--profile", metavar="NAME", help="smoke, baseline, 10k, spike, soak…"),
    ] = "baseline",
    users: Annotated[
        int, typer.Option("--users", metavar="N", min=0, help="Peak instead of the profile's own.")
    ] = 0,
    target: Annotated[
        str, typer.Option("--target", metavar="URL", help="Another host of the application.")
    ] = "",
    against: Annotated[
        int | None,
        typer.Option(
            "--against",
            metavar="N",
            min=0,
            help="Compare with release N instead; 0: the one before.",
        ),
    ] = None,
    runs: Annotated[
        int, typer.Option("--runs", metavar="N", min=5, help="Of each version, with --against.")
    ] = 5,
    self_test: Annotated[
        bool, typer.Option("--self-test", help="Test the generator itself on known servers.")
    ] = False,
    detach: Detach = False,
) -> int:
    """Put users on what is live, and say whether it holds its objectives.

    With --profile breakpoint it searches for the most users that do; with --against it says
    whether an earlier release was faster. Exits 0 when objectives hold, 1 when not, 3 when too
    little was measured, 6 when the measuring itself was at fault.

    Examples:
        slipway load diet-game -e production --profile 10k
        slipway load diet-game -e staging --profile smoke --json
        slipway load diet-game -e staging --profile breakpoint
        slipway load diet-game -e staging --against 0
        slipway load --self-test
    """
    if self_test:
        from deployments import self_test as tests

        return tests.run_all(_console(context))
    if not application:
        raise UsageError(
            "SLP000", "no application is named", help="run: slipway load APPLICATION -e ENVIRONMENT"
        )
    from deployments import loading

    asked = loading.Asked(application, environment, profile, users, target, against, runs)
    return loading.start(_home(), _console(context), asked, detach=detach)


# --- recovery in another cloud -----------------------------------------------------------------


@command(app, "drill")
def drill(
    context: typer.Context,
    application: Annotated[str, typer.Argument(help="Name of the application.")] = "",
    environment: Environment = "production",
    tier: Annotated[
        str, typer.Option("--tier", metavar="TIER", help="backup, warm or hot; else as declared.")
    ] = "",
    scenario: Annotated[
        str, typer.Option("--scenario", metavar="NAME", help="A game day of the library.")
    ] = "",
    fault: Annotated[
        str,
        typer.Option("--fault", metavar="FAULT", help="kill, freeze, cut, ..., or random."),
    ] = "kill",
    seed: Annotated[
        int, typer.Option("--seed", metavar="N", help="Of the moment of the fault.")
    ] = 0,
    scenarios: Annotated[bool, typer.Option("--scenarios", help="List the library.")] = False,
    reap: Annotated[
        bool, typer.Option("--reap", help="End every drill, and remove what is left of any.")
    ] = False,
    detach: Detach = False,
) -> int:
    """Rehearse the loss of a cloud on a twin, with users on it.

    Production is not touched: that is proved before the fault, and looked at again after.

    Examples:
        slipway drill diet-game
        slipway drill diet-game --tier backup --fault freeze --json
        slipway drill diet-game --scenario partition
        slipway drill --scenarios
        slipway drill diet-game --reap
    """
    from deployments import recovering

    if scenarios:
        return recovering.scenarios(_console(context))
    if not application:
        raise UsageError("SLP000", "no application is named", help="run: slipway drill APPLICATION")
    if reap:
        return recovering.reap(_home(), _console(context), application, environment, detach=detach)
    given = {"tier": tier, "scenario": scenario, "fault": fault, "seed": seed}
    return recovering.move(
        _home(), _console(context), "drill", application, environment, given, detach=detach
    )


@command(app, "readiness")
def readiness(
    context: typer.Context,
    application: Application,
    environment: Environment = "production",
    detach: Detach = False,
) -> int:
    """Say whether the standby in the other cloud could take over now. Changes nothing.

    Examples:
        slipway readiness diet-game -e production
        slipway readiness diet-game --json
    """
    from deployments import recovering

    return recovering.move(
        _home(), _console(context), "standby", application, environment, {"check_only": True},
        detach=detach,
    )  # fmt: skip


@command(app, "standby")
def standby(
    context: typer.Context,
    application: Application,
    environment: Environment = "production",
    detach: Detach = False,
) -> int:
    """Bring the standby in the other cloud to its tier, and put both sides under leases.

    Examples:
        slipway standby diet-game -e production
    """
    from deployments import recovering

    return recovering.move(
        _home(), _console(context), "standby", application, environment, {}, detach=detach
    )


@command(app, "failover")
def failover(
    context: typer.Context,
    application: Application,
    environment: Environment = "production",
    planned: Annotated[
        bool, typer.Option("--planned", help="Both sides work: lose nothing, or do not move.")
    ] = False,
    approve: Annotated[
        str, typer.Option("--approve", metavar="PLAN", help="Say yes to a plan, by its digest.")
    ] = "",
    person: Annotated[
        str, typer.Option("--person", metavar="NAME", help="Who says yes; else who you are.")
    ] = "",
    break_glass: Annotated[
        str,
        typer.Option("--break-glass", metavar="REASON", help="Why one person's yes must do."),
    ] = "",
    apply: Annotated[
        str, typer.Option("--apply", metavar="PLAN", help="Carry out an approved plan.")
    ] = "",
    detach: Detach = False,
) -> int:
    """Move users to the other cloud. Without --apply, say what that loses and what waiting does.

    It takes two people who approve the plan, or one with --break-glass.

    Examples:
        slipway failover diet-game -e production
        slipway failover diet-game --approve PLAN --person ann
        slipway failover diet-game --apply PLAN
        slipway failover diet-game --planned
    """
    from deployments import recovering

    if approve:
        return recovering.approve(
            _home(), _console(context), application, environment, approve, person, break_glass
        )
    given = {"plan": apply, "apply": bool(apply), "planned": planned}
    return recovering.move(
        _home(), _console(context), "failover", application, environment, given, detach=detach
    )


@command(app, "failback")
def failback(
    context: typer.Context,
    application: Application,
    environment: Environment = "production",
    apply: Annotated[
        str, typer.Option("--apply", metavar="PLAN", help="Carry out an approved plan.")
    ] = "",
    accept_loss: Annotated[
        str,
        typer.Option(
            "--accept-loss", metavar="REASON", help="Leave behind what only the old side has."
        ),
    ] = "",
    detach: Detach = False,
) -> int:
    """Bring rows and users back from the other cloud, once nothing is lost by it.

    Plans are approved with `slipway failover APP --approve PLAN`.

    Examples:
        slipway failback diet-game -e production
        slipway failback diet-game --apply PLAN
        slipway failback diet-game --accept-loss "test rows" --apply PLAN
    """
    from deployments import recovering

    given = {"plan": apply, "apply": bool(apply), "accept_loss": accept_loss}
    return recovering.move(
        _home(), _console(context), "failback", application, environment, given, detach=detach
    )


# --- backups --------------------------------------------------------------------------------


@command(app, "backup")
def backup(
    context: typer.Context,
    application: Application,
    environment: Environment,
    detach: Detach = False,
) -> int:
    """Save what an application keeps, copy it everywhere, prove each copy by restoring it.

    Exits 0 only when every location has a copy that is proved.

    Examples:
        slipway backup diet-game -e production
    """
    from deployments import backing, releasing

    given = {"actor": releasing.who()}
    return backing.start(
        _home(), _console(context), "backup", application, environment, given, detach=detach
    )


@command(app, "backups")
def backups(context: typer.Context, application: Application, environment: Environment) -> int:
    """List recovery points, where each of them is, and how far each copy is proved.

    Exits 1 when a location cannot be listed or has nothing that is proved.

    Examples:
        slipway backups diet-game -e production
        slipway backups diet-game -e production --json
    """
    from deployments import backing

    return backing.listing(_home(), _console(context), application, environment)


@command(app, "verify")
def verify_backup(
    context: typer.Context,
    application: Application,
    environment: Environment,
    point: Annotated[
        str, typer.Option("--point", metavar="ID", help="A number, newest, or random.")
    ] = "newest",
    detach: Detach = False,
) -> int:
    """Prove a recovery point: restore it from every location into a disposable server.

    Examples:
        slipway verify diet-game -e production
        slipway verify diet-game -e production --point random
    """
    from deployments import backing

    return backing.start(
        _home(), _console(context), "prove", application, environment, {"point": point},
        detach=detach,
    )  # fmt: skip


@command(app, "restore")
def restore_backup(
    context: typer.Context,
    application: Application,
    environment: Environment,
    to: Annotated[
        str,
        typer.Option(
            "--to", metavar="DATABASE", help="A new database, or secret:BLOCK with its URL."
        ),
    ],
    point: Annotated[
        str, typer.Option("--point", metavar="ID", help="A number, or newest.")
    ] = "newest",
    replace: Annotated[
        bool, typer.Option("--replace", help="Take the place of a database that is not empty.")
    ] = False,
    accept_unproved: Annotated[
        bool, typer.Option("--accept-unproved", help="Take a copy that was never restored.")
    ] = False,
    confirm: Confirm = "",
    detach: Detach = False,
) -> int:
    """Bring a recovery point back into a database of its own.

    --replace asks for the application's name; what was there is kept under another name.

    Examples:
        slipway restore diet-game -e production --to diet_game_restored
        slipway restore diet-game -e production --point 42 --to diet_game_check
    """
    from deployments import backing

    asked = backing.Restoring(application, environment, to, point, replace, accept_unproved)
    return backing.restore(_home(), _console(context), asked, confirmed=confirm, detach=detach)


@command(app, "expire")
def expire_backups(
    context: typer.Context,
    application: Application,
    environment: Environment,
    apply: Annotated[bool, typer.Option("--apply", help="Do it; without, only show it.")] = False,
    approve: Annotated[
        str, typer.Option("--approve", metavar="PLAN", help="The plan that you have read.")
    ] = "",
    simulate: Annotated[
        int, typer.Option("--simulate", metavar="NIGHTS", help="Show the policy on made-up nights.")
    ] = 0,
    detach: Detach = False,
) -> int:
    """Show which backups may go and why, and with --apply let them go.

    Examples:
        slipway expire diet-game -e production
        slipway expire diet-game -e production --apply
        slipway expire diet-game -e production --simulate 45
    """
    from deployments import backing

    if simulate:
        return backing.simulate(_home(), _console(context), application, environment, simulate)
    given = {"apply": apply, "approve": approve}
    return backing.start(
        _home(), _console(context), "expire", application, environment, given, detach=detach
    )


@command(app, "hold")
def hold(
    context: typer.Context,
    application: Application,
    point: Annotated[str, typer.Argument(metavar="POINT", help="A number, or all.")],
    environment: Environment,
    reason: Reason = "",
    release: Annotated[bool, typer.Option("--release", help="Take the hold away.")] = False,
) -> int:
    """Keep a recovery point, whatever its age, at every location; "all" stops every expiry.

    Examples:
        slipway hold diet-game 42 -e production --reason "audit of 2026"
        slipway hold diet-game 42 -e production --release --reason "audit is over"
    """
    from deployments import backing

    return backing.hold(
        _home(), _console(context), application, environment, point, reason, release=release
    )


# --- the files and the words ----------------------------------------------------------------


@command(app, "init")
def init(
    context: typer.Context,
    path: Annotated[Path, typer.Argument(metavar="PATH", help="An existing folder.")] = Path("."),
) -> int:
    """Write a commented application.yaml to start from; never over an existing one.

    Examples:
        slipway init
        slipway init my_application
    """
    from deployments import files

    return files.init(path, _console(context))


@command(config, "show")
def show(
    context: typer.Context,
    path: Source,
    environment: Annotated[
        str, typer.Option("--environment", "-e", metavar="E", help="As this one sees it.")
    ] = "",
) -> int:
    """Each value of application.yaml as it is read, and where it comes from.

    Examples:
        slipway config show examples/diet_game
        slipway config show examples/diet_game -e production
    """
    from deployments import files

    return files.show(path, environment, _console(context))


@command(app, "explain")
def explain(
    context: typer.Context,
    code: Annotated[str, typer.Argument(metavar="CODE", help="Such as SLP041.")],
) -> int:
    """What an error code means, and the way out.

    Examples:
        slipway explain SLP051
    """
    from deployments import pages

    return pages.explain(code, _console(context))


@command(app, "bench")
def bench(
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Such as: judge")],
) -> int:
    """Run a benchmark of this checkout; exits 1 when it misses one of its goals.

    The result is also kept in .slipway/bench/NAME.json.

    Examples:
        slipway bench judge
        slipway bench judge --json -q
    """
    from deployments import benchmarks

    return benchmarks.run(name, _console(context))


@command(app, "help")
def help_(
    context: typer.Context,
    words: Annotated[
        list[str] | None, typer.Argument(metavar="[COMMAND]...", help="Such as: release")
    ] = None,
) -> int:
    """Help on a command.

    Examples:
        slipway help release
        slipway help audit verify
    """
    return _run([*(words or []), "--help"], _console(context))


# --- the way in -----------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code. The entry point of the program ``slipway``."""
    try:
        console, rest = take_switches(sys.argv[1:] if argv is None else argv)
    except SwitchError as error:
        Console().error(_misused(str(error), ""))
        return 2
    return _guarded(rest, console)


def _run(words: Sequence[str], console: Console) -> int:
    root = typer.main.get_command(app)
    outcome = root.main(list(words), prog_name=PROGRAM, standalone_mode=False, obj=console)
    if outcome == 130 and not console.finished:  # typer turns Ctrl-C into this exit code
        return _interrupted(console)
    return outcome if isinstance(outcome, int) else 0


def _guarded(words: Sequence[str], console: Console) -> int:
    """Every way in which a command can end, as an exit code and words."""
    try:
        return _run(words, console)
    except SlipwayError as error:
        console.error(error)
        _report(error, words)
        code = error.exit_code
    except typer.TyperException as error:
        code = _complain(error, console)
    except (KeyboardInterrupt, typer.Abort):
        code = _interrupted(console)
    except BrokenPipeError:
        # The reader of a pipe has left; Python must not complain about it at exit either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    except Exception as error:
        _report(error, words)
        if console.debug:
            raise
        code = _defect(error, console)
    return code


def _report(error: Exception, words: Sequence[str]) -> None:
    """Tell Sentry, when a DSN is configured. What a run ended with is told by the run."""
    from blocks import sentry

    sentry.report(error, sentry.About(command=" ".join(words[:1])))


def _interrupted(console: Console) -> int:
    console.say("interrupted")
    console.finish("", {"interrupted": True}, next=["slipway status"])
    return 130


def _complain(error: typer.TyperException, console: Console) -> int:
    context: Any = getattr(error, "ctx", None)
    path = context.command_path.removeprefix(PROGRAM).strip() if context else ""
    possible = getattr(error, "possibilities", None)
    message = error.format_message().rstrip(".")
    hint = nearest(getattr(error, "option_name", ""), possible) if possible else ""
    console.error(_misused(message, path, hint))
    return 2


def _misused(message: str, path: str, hint: str = "") -> UsageError:
    see = f"see `{PROGRAM} help{' ' + path if path else ''}`"
    return UsageError(
        "SLP000",
        message[0].lower() + message[1:],
        help=f"{hint}; {see}" if hint else see,
    )


def _defect(error: Exception, console: Console) -> int:
    defect = Failed(
        "SLP099",
        f"{type(error).__name__}: {error}",
        help="run the command again with --debug and report what it prints",
    )
    console.error(defect)
    return defect.exit_code
