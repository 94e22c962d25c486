"""Whether a drill can reach production: every probe here must fail, or the drill stops."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import httpx
import psycopg
from prefect import task
from prefect.cache_policies import NO_CACHE
from psycopg import conninfo

from blocks.epochs import Epochs
from blocks.postgres import database_name
from domain.errors import Failed, SlipwayError
from domain.recovery import MAIN
from domain.verdict import Check, Verdict
from tasks.drill_world import World
from tasks.failing_over import resolved
from tasks.releasing import open_journal
from tasks.restoring import lineage_of

_SECONDS = 3


@task(name="prove isolation", cache_policy=NO_CACHE)
def prove_isolation(world: World) -> list[Check]:
    """Try to reach production with all that the drill has.

    Raises:
        Failed: SLP202, one of them got through, or could not be tried.
    """
    checks = [_tried(name, act) for name, act in _probes(world).items()]
    for check in checks:
        world.tell(f"isolation: {check.name}", verdict=check.verdict, reason=check.reason)
    bad = [c for c in checks if c.verdict is not Verdict.PASS]
    if bad:
        raise Failed(
            "SLP202",
            f"isolation is not proved: {bad[0].name}: {bad[0].reason}",
            help="the drill stopped before its fault; close what it names",
        )
    return checks


def _probes(world: World) -> dict[str, Callable[[], str]]:
    """Each returns why it was refused, and raises ``_GotThrough`` when it was not."""
    assert world.primary is not None and world.standby is not None
    primary, standby = world.primary, world.standby
    return {
        "the twin's login at production's database": lambda: _login(world, primary.database_url),
        "the standby's login at production's database": lambda: _login(world, standby.database_url),
        "the standby's login at the standby's own database": lambda: _neighbour(world),
        "production's name at the standby's edge": lambda: _edge(world),
        "production's name": lambda: _name(world),
        "production's line of backups": lambda: _lineage(world),
        "production's cache": lambda: _cache(world),
        "production's epochs": lambda: _epochs(world),
    }


class _GotThrough(Exception):
    pass


def _tried(name: str, act: Callable[[], str]) -> Check:
    try:
        return Check(name=name, verdict=Verdict.PASS, reason=act())
    except _GotThrough as seen:
        return Check(name=name, verdict=Verdict.FAIL, reason=str(seen))
    except SlipwayError as error:
        return Check(name=name, verdict=Verdict.ERROR, reason=f"could not try: {error.cause}")


def _login(world: World, url: str) -> str:
    """Who the drill is, at the door of production's database."""
    production = conninfo.conninfo_to_dict(_production_url(world))
    login = conninfo.conninfo_to_dict(url)
    return _refused({**production, "user": login["user"], "password": login.get("password")})


def _neighbour(world: World) -> str:
    assert world.standby is not None
    login = conninfo.conninfo_to_dict(world.standby.database_url)
    own = database_name(world.record.application, world.wanted.policy.standby)
    if own not in world.wanted.standby.database.databases():
        return "there is none yet"
    return _refused({**login, "dbname": own})


def _refused(parts: dict[str, Any]) -> str:
    where = f"{parts.get('host')}:{parts.get('port')}/{parts.get('dbname')}"
    try:
        with psycopg.connect(conninfo.make_conninfo(**{**parts, "connect_timeout": _SECONDS})):
            raise _GotThrough(f"{parts.get('user')} was let into {where}")
    except psycopg.OperationalError as error:
        said = " ".join(str(error).split())
        if any(w in said for w in ("authentication failed", "permission denied", "no pg_hba")):
            return f"refused at {where}"
        raise Failed("SLP202", f"{where} gave no answer to a login: {said[:120]}",
                     help="see whether the server runs") from error  # fmt: skip


def _production_url(world: World) -> str:
    application, environment = world.record.application, world.record.environment
    return world.wanted.primary.database.admin_url(database_name(application, environment))


def _edge(world: World) -> str:
    """The standby's edge must not serve production's name from what the drill made."""
    name, platform = world.wanted.policy.name, world.wanted.standby
    try:
        answer = httpx.get(platform.edge_web, headers={"Host": name}, timeout=_SECONDS)
    except httpx.HTTPError as error:
        raise Failed("SLP202", f"{platform.edge_web}: {error}", help="see its log") from error
    routing = platform.edge.read(world.record.application, world.record.side_environment)
    if routing is not None and routing.host == name:
        raise _GotThrough(f"the drill's routes answer to {name}")
    if answer.status_code != 404:
        standby = world.wanted.policy.standby
        if platform.edge.read(world.record.application, standby) is None:
            raise _GotThrough(f"it answers {answer.status_code} for {name}")
    return f"not served by the drill ({answer.status_code})"


def _name(world: World) -> str:
    host, name = world.record.host, world.wanted.policy.name
    if host == name:
        raise _GotThrough(f"the drill's name is production's: {name}")
    leads = resolved(world.wanted.standby.nameserver, name)
    before = tuple(world.production.get("name", ()))
    if leads != before:
        raise _GotThrough(f"{name} leads to {leads}, before the drill to {before}")
    return f"the drill uses {host}; {name} is as it was"


def _lineage(world: World) -> str:
    assert world.primary is not None
    found = lineage_of(world.primary.admin_url)
    if found == MAIN:
        raise _GotThrough("a backup of the twin would continue production's line")
    return f"backups of the twin would go to {found}"


def _cache(world: World) -> str:
    assert world.primary is not None and world.standby is not None
    if not world.primary.redis_url:
        return "the application has none"
    application, environment = world.record.application, world.record.environment
    production = world.wanted.primary.redis.ensure(f"{application}/{environment}")
    if production in (world.primary.redis_url, world.standby.redis_url):
        raise _GotThrough("the drill's cache is production's")
    return "other logical databases"


def _epochs(world: World) -> str:
    """Epochs of the drill, if they were production's, would fence production."""
    policy, record = world.wanted.policy, world.record
    store = world.wanted.standby.epoch_store()
    production = Epochs(store, record.application, policy.environment)
    drill = world.epochs.newest()
    if drill is not None and production.newest() == drill:
        raise _GotThrough("the drill's epoch is production's")
    return f"the drill claims under {record.side_environment}"


@task(name="look at production", cache_policy=NO_CACHE)
def look_at_production(world: World) -> dict[str, Any]:
    """What of production a drill could disturb, in a form that can be compared."""
    wanted, policy = world.wanted, world.wanted.policy
    application, environment = world.record.application, policy.environment
    platform = wanted.primary
    entries = open_journal(platform, application, environment).entries
    routing = platform.edge.read(application, environment)
    serving = {w for route in routing.routes for w in route.weights} if routing else set()
    workloads = [
        w for w in platform.cluster.workloads(application, environment) if w.name in serving
    ]  # an old version that is kept may end at any time
    with psycopg.connect(_production_url(world), autocommit=True) as connection:
        publications = connection.execute("SELECT count(*) FROM pg_publication").fetchone()
        slots = connection.execute(
            "SELECT count(*) FROM pg_replication_slots WHERE database = current_database()"
        ).fetchone()
    store = wanted.standby.epoch_store()
    newest = Epochs(store, application, environment).newest()
    return {
        "journal": [len(entries), entries[-1].digest if entries else ""],
        "routes": _digest(routing.canonical().model_dump_json() if routing else ""),
        "replicas": sorted((w.name, r.index, r.pid, r.restarts)
                           for w in workloads for r in w.replicas),
        "name": list(resolved(wanted.standby.nameserver, policy.name)),
        "publications": publications and publications[0],
        "slots": slots and slots[0],
        "epoch": newest.number if newest else 0,
    }  # fmt: skip


def untouched(before: dict[str, Any], after: dict[str, Any]) -> Check:
    """Whether a drill left production as it was."""
    changed = [key for key in before if before[key] != after.get(key)]
    if changed:
        seen = "; ".join(f"{k}: {before[k]} became {after.get(k)}" for k in changed)
        return Check(name="production untouched", verdict=Verdict.FAIL, reason=seen[:500])
    return Check(name="production untouched", verdict=Verdict.PASS, samples=len(before),
                 reason=f"{', '.join(before)} are as they were")  # fmt: skip


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
