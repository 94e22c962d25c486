"""What a person asks of a release under way: straight into the journal, which the release reads."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from blocks.file_store import FileStore
from blocks.journal import Journal
from blocks.records import Records
from deployments import commands, releasing
from deployments.console import Console
from deployments.releasing import Place, Started
from domain.errors import NeedsPerson, UsageError
from domain.hindsight import judged_again
from domain.journal import Entry
from domain.steering import Verb, last_attempt
from sandbox.home import Home

_THEN = {
    Verb.PAUSE: "resume",
    Verb.RESUME: "pause",
}


def ask(
    home: Home, console: Console, application: str, environment: str, verb: str, reason: str
) -> int:
    """Needs no Prefect, so that it works while the server does not."""
    releasing.require_known(home.store, application, environment)
    journal = Place("", "", home.store).journal(application, environment)
    journal.actor = releasing.who()
    asked = Verb(verb)
    entry = journal.ask(asked, reason)
    release = next(r for r in journal.history() if r.number == entry.release)
    place = f"{application} --environment {environment}"
    undo = f"slipway {_THEN[asked]} {place}" if asked in _THEN else ""
    console.finish(
        f"asked release {release.number} ({release.version}) to {asked}",
        {
            "application": application,
            "environment": environment,
            "release": release.number,
            "verb": asked.value,
            "reason": reason.strip(),
            "entry": entry.sequence,
        },
        next=["slipway status", f"slipway watch {release.run}"],
        undo=undo,
    )
    return 0


def judge_again(
    home: Home, console: Console, application: str, environment: str, number: int
) -> int:
    """Every verdict of a release, made anew from the counts that were kept of it."""
    releasing.require_known(home.store, application, environment)
    journal = Place("", "", home.store).journal(application, environment)
    judged = [e for e in journal.entries if e.data.get("judgements")]
    number = number or max((e.release for e in judged), default=0)
    entries = [e for e in judged if e.release == number]
    if not entries:
        raise UsageError(
            "SLP061",
            f"no release {number or ''} of {application} in {environment} was judged by evidence",
            help=f"see `slipway history {application} --environment {environment}`",
        )
    rows = [row for entry in entries for row in _again(Records(FileStore(home.store)), entry)]
    lines = [
        f"{'✔ same' if row['same'] else '✖ differs'}  step {row['step']} at {row['weight']}% "
        f"{row['service']}: {row['again']}: {row['reason']}"
        for row in rows
    ]
    same = all(row["same"] for row in rows)
    document = {
        "application": application,
        "environment": environment,
        "release": number,
        "same": same,
        "verdicts": rows,
    }
    if same:
        console.finish("\n".join(lines), document)
        return 0
    error = NeedsPerson(
        "SLP060",
        f"a verdict of release {number} of {application} in {environment} comes out differently",
        help="compare the versions of Slipway; the journal has the verdict that was acted on",
        detail="\n".join(lines),
    )
    console.error(error, document=document)
    return error.exit_code


def _again(records: Records, entry: Entry) -> Iterator[dict[str, Any]]:
    again = judged_again(records.evidence(entry.data["evidence"]))
    for kept in entry.data["judgements"]:
        found = again[kept["service"]]
        same = (found.verdict.value, found.reason) == (kept["verdict"], kept["reason"])
        yield {**kept, "again": found.verdict.value, "same": same}


def retry(
    home: Home,
    console: Console,
    application: str,
    environment: str,
    *,
    confirmed: str,
    detach: bool,
) -> int:
    platform, place = commands.place_of(home, console, application, environment)
    journal = place.journal(application, environment)
    last = last_attempt(journal.history(), f"{application} in {environment}")
    console.say(f"try {application} {last.version} in {environment} again, {last.strategy}")
    return _start(place, platform, console, journal, "retry", last.version, confirmed, detach)


def contract(
    home: Home,
    console: Console,
    application: str,
    environment: str,
    *,
    confirmed: str,
    detach: bool,
) -> int:
    platform, place = commands.place_of(home, console, application, environment)
    journal = place.journal(application, environment)
    console.say(f"contract the schema of {application} in {environment}: no earlier version after")
    return _start(place, platform, console, journal, "contract", "", confirmed, detach)


def _start(
    place: Place,
    platform: str,
    console: Console,
    journal: Journal,
    kind: str,
    version: str,
    confirmed: str,
    detach: bool,
) -> int:
    application, environment = journal.application, journal.environment
    command = f"slipway {kind} {application} --environment {environment}"
    releasing.confirm(console, platform, application, confirmed, command)
    name = " ".join(word for word in (kind, application, version, environment) if word)
    started = Started(
        f"{kind}/slipway",
        name,
        commands.tags(application, environment, kind, version),
        {
            "environment": environment,
            "application": application,
            "actor": releasing.who(),
            "platform": platform,
        },
    )
    return releasing.start(place, started, console, detach=detach)
