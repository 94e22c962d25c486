"""What the commands about releases do; ``deployments.cli`` only names their arguments."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path

from blocks.file_store import FileStore
from blocks.records import Records
from deployments import releasing
from deployments.console import Console
from deployments.releasing import Place, Started
from domain.errors import Failed, NeedsPerson, SlipwayError
from domain.journal import live
from domain.journal import verify as verify_chain
from sandbox.home import Home


@dataclass(frozen=True)
class Asked:
    """The arguments of ``slipway release``."""

    path: Path
    environment: str
    strategy: str
    version: str
    confirm: str
    detach: bool
    accept_incomplete_scan: str = ""


def release(home: Home, console: Console, asked: Asked, *, dry_run: bool) -> int:
    application, source = releasing.read_application(asked.path)
    environment = application.environment(asked.environment)
    strategy = application.strategy_in(asked.environment, asked.strategy)
    version = releasing.read_version(application, source, asked.version)
    if dry_run and environment.platform == releasing.SANDBOX:
        store = home.store  # a plan needs no running sandbox: it reads the journal
    else:
        place = releasing.find_place(home, environment.platform, console)
        store = place.store
    journal = Place("", "", store).journal(application.name, asked.environment)
    plan = releasing.make_plan(journal, application, version, strategy)
    if dry_run:
        text = "\n".join([plan.title, *(f"  {line}" for line in plan.lines), plan.summary()])
        console.finish(text, plan.to_dict(), next=[_command(asked)])
        return 0
    releasing.show_plan(plan, console)
    releasing.warn_unfinished(journal, console)
    releasing.confirm(
        console, environment.platform, application.name, asked.confirm, _command(asked)
    )
    started = Started(
        "release/slipway",
        f"release {application.name} {version} {asked.environment}",
        tags(application.name, asked.environment, "release", version),
        {
            "environment": asked.environment,
            "accept_incomplete_scan": asked.accept_incomplete_scan,
            "source": str(source),
            "strategy": asked.strategy,
            "version": asked.version,
            "actor": releasing.who(),
        },
    )
    return releasing.start(place, started, console, detach=asked.detach, plan=plan)


def rollback(
    home: Home,
    console: Console,
    application: str,
    environment: str,
    to: int,
    *,
    confirmed: str,
    detach: bool,
    dry_run: bool,
) -> int:
    platform, place = place_of(home, console, application, environment)
    journal = place.journal(application, environment)
    current, back = releasing.find_rollback(journal, to)
    plan = releasing.make_rollback_plan(place, journal, current, back)
    command = f"slipway rollback {application} --environment {environment}" + (
        f" --to {to}" if to else ""
    )
    if dry_run:
        text = "\n".join([plan.title, *(f"  {line}" for line in plan.lines), plan.summary()])
        console.finish(text, plan.to_dict(), next=[command])
        return 0
    releasing.show_plan(plan, console)
    releasing.warn_unfinished(journal, console)
    releasing.confirm(console, platform, application, confirmed, command)
    started = Started(
        "rollback/slipway",
        f"rollback {application} {back.version} {environment}",
        tags(application, environment, "rollback", back.version),
        {
            "environment": environment,
            "application": application,
            # The number is looked up now, so that the run does what the plan said.
            "to_release": back.number,
            "actor": releasing.who(),
            "platform": platform,
        },
    )
    return releasing.start(place, started, console, detach=detach, plan=plan)


def recover(
    home: Home, console: Console, application: str, environment: str, *, detach: bool
) -> int:
    platform, place = place_of(home, console, application, environment)
    started = Started(
        "recover/slipway",
        f"recover {application} {environment}",
        tags(application, environment, "recover", ""),
        {
            "environment": environment,
            "application": application,
            "actor": releasing.who(),
            "platform": platform,
        },
    )
    return releasing.start(place, started, console, detach=detach)


def history(home: Home, console: Console, application: str, environment: str, limit: int) -> int:
    releasing.require_known(home.store, application, environment)
    releases = Place("", "", home.store).journal(application, environment).history()
    shown = releases[-limit:]
    current = live(releases)
    document = {
        "application": application,
        "environment": environment,
        "live": current.number if current else None,
        "releases": [releasing.release_document(r) for r in reversed(shown)],
    }
    console.finish(
        releasing.show_history(shown, current, console),
        document,
        next=[f"slipway rollback {application} --environment {environment}"],
    )
    return 0


def watch(home: Home, console: Console, run: str) -> int:
    place = _default_place(home, console)
    with releasing.open_server(place.api, console) as server:
        found = server.find(run)
        console.say(f"run {found.name}: {place.url(found.id)}")
        return releasing.follow_to_end(place, server, found, console)


def cancel(home: Home, console: Console, run: str) -> int:
    place = _default_place(home, console)
    with releasing.open_server(place.api, console) as server:
        found = server.find(run)
        if found.ended:
            raise Failed(
                "SLP077",
                f"run {found.name} has already ended: {found.state_name}",
                help=f"see how it ended: slipway watch {found.id}",
                where=place.url(found.id),
            )
        server.cancel(found)
        console.finish(
            f"cancelling {found.name}",
            {"run": found.id, "run_url": place.url(found.id), "state": "Cancelling"},
            next=[f"slipway watch {found.id}"],
        )
    return 0


def verify(home: Home, console: Console, application: str, environment: str) -> int:
    names = releasing.require_known(home.store, application, environment or None)
    chosen = [environment] if environment else sorted(names)
    checked, breaks, lines = {}, [], []
    for name in chosen:
        raw = releasing.read_raw(home.store, application, name)
        found = verify_chain(raw)
        breaks += [f"{name}: entry {b.sequence}: {b.problem}" for b in found]
        head = releasing.head_of(raw)
        checked[name] = {
            "entries": len(raw),
            "head": head,
            "breaks": [{"entry": b.sequence, "problem": b.problem} for b in found],
        }
        word = "✖ broken" if found else "✔ whole"
        lines.append(f"{word}  {application} in {name}: {len(raw)} entries, head {head}")
    document = {"application": application, "whole": not breaks, "environments": checked}
    if not breaks:
        console.finish("\n".join(lines), document)
        return 0
    if not console.json:
        print("\n".join(lines))
    error = NeedsPerson(
        "SLP060",
        f"the journal of {application} does not verify: {breaks[0]}",
        help="compare it with its copies before releasing anything",
        where=str(home.store / "journal" / application),
        detail="\n".join(breaks),
    )
    console.error(error, document=document)
    return error.exit_code


def place_of(home: Home, console: Console, application: str, environment: str) -> tuple[str, Place]:
    """The platform that the live release runs on, and its place."""
    place = _default_place(home, console)
    releasing.require_known(place.store, application, environment)
    current = live(place.journal(application, environment).history())
    if current is None:
        return releasing.SANDBOX, place
    try:
        record = Records(FileStore(place.store)).record(current.digest)
        platform = record.application.environment(environment).platform
    except SlipwayError as error:
        console.warn(f"{error}; taking platform `{releasing.SANDBOX}`")
        platform = releasing.SANDBOX
    return platform, releasing.find_place(home, platform, console)


def _default_place(home: Home, console: Console) -> Place:
    return releasing.find_place(home, releasing.SANDBOX, console)


def tags(application: str, environment: str, kind: str, version: str) -> tuple[str, ...]:
    tags = [f"app:{application}", f"env:{environment}", f"kind:{kind}"]
    return tuple([*tags, f"version:{version}"] if version else tags)


def _command(asked: Asked) -> str:
    words = ["slipway", "release", str(asked.path), "--environment", asked.environment]
    if asked.strategy != "declared":
        words += ["--strategy", asked.strategy]
    if asked.version:
        words += ["--version", asked.version]
    return shlex.join(words)
