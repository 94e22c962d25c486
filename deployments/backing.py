"""What the commands about backups do; ``deployments.cli`` only names their arguments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from blocks.backup_locations import BackupLocation, open_store
from blocks.file_store import FileStore
from blocks.records import Records
from blocks.vault import Vault
from deployments import releasing
from deployments.commands import place_of, tags
from deployments.console import Console, table
from deployments.releasing import Place, Started
from domain.backup_report import described
from domain.errors import SlipwayError, UsageError
from domain.journal import live
from domain.recovery import Copy, CopyState, Lineage, Rung, newest_proved
from domain.retention import ALL
from domain.units import format_bytes, format_duration
from sandbox.home import Home

_HEADS = (
    "POINT", "LOCATION", "STATE", "PROVED UP TO", "PROVED", "DATA TIME (UTC)", "SIZE", "NOTE",
)  # fmt: skip


def start(
    home: Home,
    console: Console,
    flow: str,
    application: str,
    environment: str,
    parameters: Mapping[str, Any],
    *,
    detach: bool,
) -> int:
    """Start one of the flows about backups and follow it to its report."""
    platform, place = place_of(home, console, application, environment)
    started = Started(
        f"{flow}/slipway",
        f"{flow} {application} {environment}",
        tags(application, environment, flow, ""),
        {
            "environment": environment,
            "application": application,
            "platform": platform,
            **parameters,
        },
    )
    return releasing.start(place, started, console, detach=detach)


def vaults(
    home: Home, console: Console, application: str, environment: str
) -> tuple[tuple[Vault, ...], Place]:
    """The vaults that the platform block names, opened with this machine's own rights.

    Raises:
        UsageError: SLP006, SLP010, SLP145.
    """
    platform, place = place_of(home, console, application, environment)
    with releasing.open_server(place.api, console) as server:
        block = server.block("slipway-platform", platform) or {}
    named = [BackupLocation.model_validate(raw) for raw in block.get("backup_locations") or ()]
    if not named:
        raise UsageError(
            "SLP145",
            f"platform `{platform}` names no location for backups",
            help="add some to its block: at least one outside of the cloud it runs in",
        )
    lineage = Lineage(application, environment)
    return tuple(Vault(where.name, open_store(where, None), lineage) for where in named), place


def listing(home: Home, console: Console, application: str, environment: str) -> int:
    """Every point, its copies, how far each is proved, and how old the newest proved one is.

    Exits 1 when a location could not be listed or nothing is proved there: a list is no comfort.
    """
    places, place = vaults(home, console, application, environment)
    needed = _needed(place, application, environment)
    copies: list[Copy] = []
    unlisted: dict[str, str] = {}
    for vault in places:
        try:
            copies += vault.copies()
        except SlipwayError as error:
            unlisted[vault.location] = error.cause
    now = datetime.now(UTC)
    summaries = [_summary(v.location, copies, unlisted, needed, now) for v in places]
    rows = [_row(copy, needed, now) for copy in sorted(copies, key=lambda c: (c.point, c.location))]
    heads = (
        "POINT",
        "LOCATION",
        "STATE",
        "PROVED UP TO",
        "PROVED",
        "DATA TIME (UTC)",
        "SIZE",
        "NOTE",
    )
    text = table(heads, rows) if rows else f"{application} has no backups in {environment}"
    for summary in summaries:
        good = summary["verdict"] == "pass"
        line = f"{summary['location']}: {summary['reason']}"
        console.say(line) if good else console.warn(line)
    document = {
        "application": application,
        "environment": environment,
        "needed": needed.label,
        "locations": summaries,
        "points": [_document(copy, needed) for copy in copies],
    }
    console.finish(text, document, next=[f"slipway backup {application} -e {environment}"])
    return 0 if all(s["verdict"] == "pass" for s in summaries) else 1


@dataclass(frozen=True)
class Restoring:
    """The arguments of ``slipway restore``."""

    application: str
    environment: str
    to: str
    point: str
    replace: bool
    accept_unproved: bool


def restore(home: Home, console: Console, asked: Restoring, *, confirmed: str, detach: bool) -> int:
    """Start the restore; what takes the place of a database needs its name typed, always."""
    if asked.replace and confirmed != asked.application:
        command = (
            f"slipway restore {asked.application} -e {asked.environment} --point {asked.point} "
            f"--to {asked.to} --replace"
        )
        releasing.require_typed(console, asked.application, confirmed, command)
    given = {
        "to": asked.to,
        "point": asked.point,
        "replace": asked.replace,
        "accept_unproved": asked.accept_unproved,
    }
    return start(
        home, console, "restore", asked.application, asked.environment, given, detach=detach
    )


def hold(
    home: Home,
    console: Console,
    application: str,
    environment: str,
    point: str,
    reason: str,
    *,
    release: bool,
) -> int:
    """Hold or release a point at every location.

    Raises:
        UsageError: SLP111, no reason; SLP144, no location has the point.
    """
    if not reason.strip():
        raise UsageError(
            "SLP111",
            f"asked to {'release' if release else 'hold'} point {point} without a reason",
            help="give --reason TEXT; whoever finds the hold in a year reads it",
        )
    places, _ = vaults(home, console, application, environment)
    name = point if point == ALL else None
    done = []
    for vault in places:
        which = name or vault.copy(point).point
        if release:
            vault.unhold(which)
        else:
            vault.hold(which, f"{reason.strip()} ({releasing.who()}, {datetime.now(UTC):%Y-%m-%d})")
        done.append(vault.location)
    word = "released" if release else "held"
    document = {"point": point, "state": word, "reason": reason, "locations": done}
    next = [f"slipway backups {application} -e {environment}"]
    console.finish(f"point {point} is {word} at {', '.join(done)}", document, next=next)
    return 0


def _needed(place: Place, application: str, environment: str) -> Rung:
    current = live(place.journal(application, environment).history())
    if current is None:
        return Rung.CONTENT_HASHED
    policy = Records(FileStore(place.store)).record(current.digest).application.backups
    return Rung.PROBED if policy.probe else Rung.CONTENT_HASHED


def _summary(
    location: str, copies: Sequence[Copy], unlisted: Mapping[str, str], needed: Rung, now: datetime
) -> dict[str, Any]:
    if location in unlisted:
        return {"location": location, "verdict": "error", "reason": unlisted[location]}
    here = [c for c in copies if c.location == location]
    best = newest_proved(here, needed)
    if best is None or best.manifest is None:
        reason = f"{len(here)} points, none of them proved up to {needed.label}"
        return {"location": location, "verdict": "fail", "reason": reason}
    age = now - best.manifest.data_time
    return {
        "location": location,
        "verdict": "pass",
        "point": best.point,
        "proved_age_seconds": round(age.total_seconds()),
        "reason": f"can be brought back to {best.manifest.data_time:%Y-%m-%d %H:%M:%S} UTC, "
        f"{_short(age)} ago (point {int(best.point)}, proved)",
    }


def _row(copy: Copy, needed: Rung, now: datetime) -> list[str]:
    manifest, proof = copy.manifest, copy.proved(needed)
    return [
        str(int(copy.point)),
        copy.location,
        copy.state,
        copy.reached.label if copy.reached else "-",
        f"{_short(now - proof.at)} ago" if proof else "no",
        f"{manifest.data_time:%Y-%m-%d %H:%M:%S}" if manifest else "-",
        format_bytes(manifest.stored_bytes) if manifest else "-",
        "; ".join(
            note for note in (f"held: {copy.held}" if copy.held else "", copy.reason) if note
        ),
    ]


def _document(copy: Copy, needed: Rung) -> dict[str, Any]:
    proof = copy.proved(needed)
    manifest = copy.manifest
    return {
        "point": copy.point,
        "location": copy.location,
        "state": copy.state.value,
        "reason": copy.reason,
        "held": copy.held or None,
        "reached": copy.reached.label if copy.reached else None,
        "proved_at": proof.at.isoformat() if proof else None,
        "restore_seconds": proof.restore_seconds if proof else None,
        "data_time": manifest.data_time.isoformat() if manifest else None,
        "bytes": manifest.stored_bytes if manifest else None,
        "holds": described(manifest) if manifest else None,
        "complete": copy.state is CopyState.COMPLETE,
    }


def _short(age: Any) -> str:
    """To the minute, or to the second below one: nobody needs more of an age."""
    seconds = max(0, round(age.total_seconds()))
    whole = seconds if seconds < 60 else seconds - seconds % 60
    return format_duration(type(age)(seconds=whole))
