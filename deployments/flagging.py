"""What the commands about feature flags do."""

from __future__ import annotations

from dataclasses import dataclass

from blocks.flags import FileFlags
from deployments import releasing
from deployments.commands import place_of
from deployments.console import Console, table
from deployments.releasing import Place, Started
from domain.errors import UsageError
from domain.flags import Definition, Flag, weight_of
from domain.units import format_percent, parse_percent
from sandbox.home import Home


@dataclass(frozen=True)
class Asked:
    """The arguments of ``slipway flag set``, ``ramp`` and ``kill``."""

    application: str
    environment: str
    key: str
    verb: str
    steps: tuple[str, ...] = ()


def start(home: Home, console: Console, asked: Asked, *, detach: bool) -> int:
    """Start the flag flow and follow it; what is wrong with the arguments is said before."""
    for step in asked.steps:
        try:
            weight_of(parse_percent(step))
        except ValueError as error:
            raise UsageError("SLP000", str(error), help="write it as in 25%") from None
    platform, place = place_of(home, console, asked.application, asked.environment)
    started = Started(
        "flag/slipway",
        f"flag {asked.verb} {asked.key} {asked.application} {asked.environment}",
        (f"app:{asked.application}", f"env:{asked.environment}", "kind:flag"),
        {
            "environment": asked.environment,
            "application": asked.application,
            "key": asked.key,
            "verb": asked.verb,
            "steps": ",".join(asked.steps),
            "actor": releasing.who(),
            "platform": platform,
        },
    )
    return releasing.start(place, started, console, detach=detach)


def show(home: Home, console: Console, application: str, environment: str) -> int:
    """Print the flags of an environment; needs no running sandbox."""
    releasing.require_known(home.store, application, environment)
    known = FileFlags(home.flags).read(application, environment) or Definition.empty()
    journal = Place("", "", home.store).journal(application, environment)
    last = {e.data["flag"]: e for e in journal.entries if "flag" in e.data}
    found = [
        {
            "flag": key,
            **_described(flag),
            "last": last[key].data["did"] if key in last else None,
            "by": last[key].actor if key in last else None,
            "at": last[key].at.isoformat(timespec="seconds") if key in last else None,
        }
        for key, flag in known.flags.items()
    ]
    rows = [[str(one["flag"]), str(one["on"]), _when(one)] for one in found]
    document = {"application": application, "environment": environment, "flags": found}
    text = table(("FLAG", "ON FOR", "LAST CHANGE"), rows) if rows else ""
    if not rows:
        console.say(f"{application} has no flags in {environment}")
    console.finish(text, document)
    return 0


def _described(flag: Flag) -> dict[str, str | float | None]:
    try:
        return {"on": format_percent(flag.share), "share": flag.share, "note": None}
    except ValueError as error:
        return {"on": "-", "share": None, "note": str(error)}


def _when(one: dict[str, str | float | None]) -> str:
    if one["last"] is None:
        return str(one["note"] or "-")
    return f"{one['last']} by {one['by']} at {one['at']}"
