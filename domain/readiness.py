"""Whether a standby could take over: each check a sentence with what was seen and the limit."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta

from domain.failover import Tier, fenced_after
from domain.units import format_bytes, format_duration
from domain.verdict import Check, Verdict

DETECT = timedelta(seconds=2)
"""What noticing a loss takes; see ``tasks.failing_over``."""
START = timedelta(seconds=10)
"""What starting replicas and switching take, without the time that resolvers keep answers."""


LASTS = timedelta(hours=2)
"""It is looked at every hour; what was seen longer ago says nothing of now."""


def check(name: str, good: bool, reason: str, **more: float | str | int | None) -> Check:
    """A check that looked."""
    verdict = Verdict.PASS if good else Verdict.FAIL
    return Check(name=name, verdict=verdict, reason=reason, **more)


def versions(primary: int, standby: int) -> Check:
    """A dump or a stream of rows goes to the same or a newer PostgreSQL, not to an older one."""
    return check(
        "database version",
        standby >= primary,
        f"PostgreSQL {standby} at the standby, {primary} at the primary",
        value=standby,
        limit=primary,
    )


def extensions(used: Mapping[str, str], available: Mapping[str, Iterable[str]]) -> Check:
    """Everything that the primary's database uses can be made at the standby."""
    missing = sorted(
        f"{name} {version}"
        for name, version in used.items()
        if version not in set(available.get(name, ()))
    )
    reason = f"not there: {', '.join(missing)}" if missing else f"{len(used)} in use, all available"
    return check("extensions", not missing, reason)


def collations(primary: Mapping[str, str], standby: Mapping[str, str]) -> Check:
    """An index on text that was sorted by other rules finds rows no more.

    Args:
        primary: provider, locale and version of the database's collation, as ``standby``.
    """
    differ = [
        f"{key} is {standby.get(key) or 'none'}, {value or 'none'} at the primary"
        for key, value in primary.items()
        if standby.get(key) != value
    ]
    return check("collation", not differ, "; ".join(differ) or "the same rules sort text")


def bundles(missing: Iterable[str]) -> Check:
    absent = sorted(missing)
    reason = f"not at the standby: {', '.join(absent)}" if absent else "there, and whole"
    return check("bundle", not absent, reason)


def connections(free: int, needed: int) -> Check:
    return check(
        "connections",
        free >= needed,
        f"{free} free at the standby's server, the primary's database uses {needed}",
        value=free,
        limit=needed,
    )


def instance(
    name: str, state: str, stopped: bool, major: int, server: int, version_of: str
) -> Check:
    """What the cloud says of the standby's instance, against the server that answers.

    Args:
        major: of PostgreSQL, as the cloud says; ``server``: as the server itself says.
        version_of: machine and disk, for people.
    """
    if stopped or state != "RUNNABLE":
        return check("instance", False, f"{name} is {'switched off' if stopped else state}")
    if major != server:
        return check("instance", False, f"{name} is PostgreSQL {major}, and {server} answers: "
                     "the platform block names another instance")  # fmt: skip
    return check("instance", True, f"{name} is {state}: {version_of}")


ROOM = 1.2
"""Times the primary's database: indexes are built beside their tables."""


def room(needed: int, most: int | None) -> Check:
    """Whether the standby's disk takes the primary's database.

    Args:
        needed: bytes of the primary's database.
        most: bytes that the disk has or may grow to; None: without a limit.
    """
    wanted = int(needed * ROOM)
    has = "grows without a limit" if most is None else f"has {format_bytes(most)}"
    return check(
        "room",
        most is None or most >= wanted,
        f"the standby's disk {has}, the primary's database needs {format_bytes(wanted)}",
        value=most,
        limit=wanted,
    )


def unfollowed(large_objects: int, unlogged: Iterable[str]) -> Check:
    """What logical replication leaves out: large objects are lost, unlogged tables meant to be."""
    tables = sorted(unlogged)
    apart = f"; not followed, as declared UNLOGGED: {', '.join(tables[:5])}" if tables else ""
    if large_objects:
        return check("what follows", False, f"{large_objects} large objects do not follow: keep "
                     f"them in tables or in an object store{apart}")  # fmt: skip
    return check("what follows", True, f"every table and sequence{apart}")


def name_ttl(name: str, seen: int | None, limit: timedelta) -> Check:
    """A lower TTL helps only after every resolver has forgotten the answer with the higher one."""
    most = round(limit.total_seconds())
    if seen is None:
        return check("name", True, f"{name} has no record yet; it will get TTL {most} s")
    return check(
        "name",
        seen <= most,
        f"{name} has TTL {seen} s, the limit is {most} s",
        value=seen,
        limit=most,
    )


def copy_age(age: timedelta | None, limit: timedelta, where: str) -> Check:
    """Of the newest copy that was proved by restoring it."""
    if age is None:
        return Check(name="proved copy", verdict=Verdict.NO_DATA,
                     reason=f"no copy at {where} is proved")  # fmt: skip
    whole = timedelta(seconds=round(age.total_seconds()))
    return check(
        "proved copy",
        age <= limit,
        f"the newest proved data at {where} is {format_duration(whole)} old, the limit is "
        f"{format_duration(limit)}",
        value=whole.total_seconds(),
        limit=limit.total_seconds(),
    )


def time_needed(
    tier: Tier, lease: timedelta, ttl: timedelta, restore: timedelta | None, rto: timedelta
) -> Check:
    """Whether the parts whose length is known fit into the objective at all."""
    if tier is Tier.BACKUP and restore is None:
        return Check(name="time", verdict=Verdict.NO_DATA,
                     reason="no restore was ever timed")  # fmt: skip
    parts = {
        "noticing": DETECT,
        "the old side's lease": fenced_after(lease),
        "restoring": (restore or timedelta(0)) if tier is Tier.BACKUP else timedelta(0),
        "starting": timedelta(0) if tier is Tier.HOT else START,
        "resolvers": ttl,
    }
    total = sum(parts.values(), timedelta(0))
    named = ", ".join(f"{k} {v.total_seconds():.0f} s" for k, v in parts.items() if v)
    return check(
        "time",
        total <= rto,
        f"{total.total_seconds():.0f} s ({named}), the objective is {format_duration(rto)}",
        value=total.total_seconds(),
        limit=rto.total_seconds(),
    )


def lag(seconds: float | None, alive: bool, waiting: Iterable[str], limit: timedelta) -> Check:
    """How far a database that follows is behind, by the newest heartbeat that it has."""
    tables = sorted(waiting)
    if tables:
        return check("following", False, f"not copied yet: {', '.join(tables[:5])}")
    if not alive or seconds is None:
        return check("following", False, "nothing is being applied: the standby stands still")
    return check(
        "following",
        seconds <= limit.total_seconds(),
        f"{seconds:.1f} s behind, the limit is {format_duration(limit)}",
        value=round(seconds, 3),
        limit=limit.total_seconds(),
    )


def clocks(side: str, apart: timedelta, limit: timedelta) -> Check:
    """Ages compare heartbeats of one clock with another: they would all be wrong."""
    return check(
        "clocks",
        apart <= limit,
        f"the clock of {side}'s database is {apart.total_seconds():.1f} s from ours, the limit is "
        f"{limit.total_seconds():.0f} s",
        value=round(apart.total_seconds(), 3),
        limit=limit.total_seconds(),
    )


def schema(missing: Iterable[str]) -> Check:
    """Rows are replicated, changes of the schema are not."""
    differ = sorted(missing)
    reason = f"differs: {', '.join(differ[:8])}" if differ else "the same tables and columns"
    return check("schema", not differ, reason)


def last_look(at: datetime | None, said: str, now: datetime) -> Check:
    """What was seen last, as far as it still counts.

    Args:
        said: the sentence of that look.
    """
    name = "readiness"
    if at is None:
        return Check(name=name, verdict=Verdict.NOT_RUN, reason="nobody has looked at it yet")
    age = timedelta(seconds=round((now - at).total_seconds()))
    if age > LASTS:
        return Check(
            name=name,
            verdict=Verdict.NOT_RUN,
            reason=f"the last look is {format_duration(age)} old and expired after "
            f"{format_duration(LASTS)}; it was: {said}",
        )
    return Check(name=name, verdict=Verdict.PASS, reason=f"{format_duration(age)} ago: {said}")


def score(checks: Iterable[Check]) -> tuple[int, str]:
    """Percent of the checks that pass, and what is wrong, the first first."""
    seen = tuple(checks)
    good = sum(1 for c in seen if c.verdict is Verdict.PASS)
    percent = round(100 * good / len(seen)) if seen else 0
    bad = [f"{c.name}: {c.reason}" for c in seen if c.verdict is not Verdict.PASS]
    return percent, "; ".join(bad) or f"all {len(seen)} checks pass"
