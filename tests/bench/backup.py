"""Backup and restore against the plain pipeline on the same machine, and what they cost.

The peer is what somebody would type: ``pg_dump -Fc -Z0 | zstd -3 -T0 | age -r KEY > FILE``.
Ours does that and, as it passes, hashes every table, reads back what it stored and records it.
Each side runs in processes of its own; ours also says its peak memory.
"""

from __future__ import annotations

import gc
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import pyrage
from run import Case

from blocks import sealing
from blocks.disposable_postgres import DisposableServer
from blocks.file_store import FileStore
from blocks.object_store import ObjectStore
from blocks.objects_dump import ObjectsSource
from blocks.objects_pool import Pool
from blocks.postgres_dump import PostgresSource
from blocks.postgres_restore import restore
from blocks.vault import Vault
from domain.pg_inventory import Inventory
from domain.recovery import CopyState, Lineage, Member, MemberKind, Part
from domain.retention import Location, Point, Policy, plan, violations
from tests.kit.faulty_store import FaultyStore
from tests.kit.memory_store import MemoryStore

RUNS = 3
GIGABYTE_SCALE = 68  # pgbench -s: about 15 MB of table and index each
SMALL_SCALE, LARGE_SCALE = 7, 272
MIB = 1 << 20
OBJECTS = 100_000


def run() -> list[Case]:
    key = pyrage.x25519.Identity.generate()
    with tempfile.TemporaryDirectory(prefix="slipway-bench-") as folder:
        place = Path(folder)
        (place / "key").write_text(f"{key}\n")
        with DisposableServer(
            major=18, lifetime_seconds=3000, tcp=True, folder=place / "servers"
        ) as server:
            cases = [*_compared(server, place, str(key.to_public())), _memory(server, place)]
    return [*cases, _retention(), _increment(key)]


def _compared(server: DisposableServer, place: Path, public: str) -> list[Case]:
    backup = Case(
        name="backup of a 1 GB pgbench database", unit="s", goal="at most 1.2 times the pipeline"
    )
    back = Case(name="restore of the same", unit="s", goal="at most 1.2 times the pipeline")
    url = filled(server, "one", GIGABYTE_SCALE)
    if missing := [name for name in ("age", "zstd") if shutil.which(name) is None]:
        backup.note = back.note = f"no peer: {', '.join(missing)} is not on PATH"
        return [backup, back]
    plain = f"pg_dump -Fc -Z0 -d '{url}' | zstd -q -3 -T0 | age -r {public} > {place}/plain.age"
    into = f"age -d -i {place}/key {place}/plain.age | zstd -q -d | pg_restore --exit-on-error"
    for _ in range(RUNS):
        _timed(backup, "pipeline", lambda: _shell(plain))
        _timed(backup, "ours", lambda: child("save", url, str(place / "store"), public))
        if shutil.which("restic"):
            dump = f"pg_dump -Fc -Z0 -d '{url}' | {_restic(place)} backup --stdin -q"
            _timed(backup, "restic --stdin", lambda dump=dump: _shell(dump))  # type: ignore[misc]
        target = _empty(server, "back")
        _timed(back, "pipeline", lambda t=target: _shell(f"{into} -d '{t}'"))  # type: ignore[misc]
        target = _empty(server, "back")
        _timed(back, "ours", lambda t=target: child("bring", t, str(place / "store"), str(place)))  # type: ignore[misc]
    for case in (backup, back):
        case.ours = statistics.median(case.runs["ours"])
        case.peers = {
            name: statistics.median(runs) for name, runs in case.runs.items() if name != "ours"
        }
        ratio = case.ours / case.peers["pipeline"]
        case.met, case.note = ratio <= 1.2, f"{ratio:.2f} times the pipeline"
    sizes = (place / "plain.age").stat().st_size, (place / "store" / "one.age").stat().st_size
    backup.note += f"; {sizes[0] / 1e6:.0f} MB stored by the pipeline, {sizes[1] / 1e6:.0f} by us"
    return [backup, back]


def _memory(server: DisposableServer, place: Path) -> Case:
    case = Case(
        name="peak memory of a backup", unit="MB",
        goal="under 300 MB, and the same for 100 MB and 4 GB",
    )  # fmt: skip
    public = str(pyrage.x25519.Identity.generate().to_public())
    for name, scale in (("100 MB", SMALL_SCALE), ("4 GB", LARGE_SCALE)):
        url = filled(server, "sized", scale)
        said = child("save", url, str(place / "store"), public)
        case.runs[name] = [round(said["peak_kib"] / 1024, 1)]
        server.drop("sized")
    small, large = case.runs["100 MB"][0], case.runs["4 GB"][0]
    case.ours, case.met = large, max(small, large) < 300 and large < small * 1.25
    case.note = f"{small:.0f} MB for 100 MB, {large:.0f} MB for 4 GB"
    return case


def _retention() -> Case:
    case = Case(name="retention planned over 1,000,000 points", unit="s", goal="under 10 s")
    now = datetime(2026, 11, 25, 3, tzinfo=UTC)
    points = [
        Point(f"{n:08d}", n, CopyState.COMPLETE, at, at, proved=n % 3 > 0, bytes=10)
        for n in range(1, 1_000_001)
        if (at := now - timedelta(seconds=90 * (1_000_001 - n)))
    ]
    location, policy = Location("aws", points, now), Policy()
    gc.collect()
    began = time.perf_counter()
    planned = plan(location, policy, now)
    broken = violations(location, planned, policy, now)
    case.ours = round(time.perf_counter() - began, 2)
    case.met = case.ours < 10 and not broken
    case.note = f"{planned.summary()}, with the check of what would be left"
    return case


def _increment(key: pyrage.x25519.Identity) -> Case:
    """The second night over the same objects, by the source, the seal and the pool of the flow."""
    case = Case(name="nightly increment over 100,000 unchanged objects", unit="s",
                goal="lists only, no data read")  # fmt: skip
    objects = MemoryStore()
    for number in range(OBJECTS):
        objects.create(f"img/{number:06d}", b"picture %d" % (number % 1000))
    vault = Vault("bench", MemoryStore(), Lineage("bench", "bench"))
    first = _saved_objects(objects, vault, "00000001", key, None)
    watched = FaultyStore(objects)
    began = time.perf_counter()
    second = _saved_objects(watched, vault, "00000002", key, first)
    case.ours = round(time.perf_counter() - began, 2)
    read = [call for call in watched.calls if call[0] in ("open", "read")]
    assert second.facts is not None
    seen = second.facts.inventory["since_before"]
    case.met = not read and seen["read_bytes"] == 0 and seen["unchanged"] == OBJECTS
    case.note = f"{seen['unchanged']:,} unchanged, {seen['read_bytes']} bytes read"
    return case


def _saved_objects(
    objects: ObjectStore, vault: Vault, point: str, key: pyrage.x25519.Identity,
    before: Member | None,
) -> Member:  # fmt: skip
    pool, to = Pool(vault), [key.to_public()]
    source = ObjectsSource(
        objects, "", place="bench",
        store=lambda sha256, content: pool.put(sha256, content, to),
        previous=partial(vault.plain, before, [key]) if before else None,
        pooled=frozenset(pool.contents()).__contains__,
    )  # fmt: skip
    with source.open() as stream:
        sealed = sealing.seal(
            stream, vault.store, vault.lineage.member(point, MemberKind.OBJECTS), to
        )
        facts = stream.facts()
    pool.keep_needs(point, source.needed)
    return Member(
        kind=MemberKind.OBJECTS, part=sealed.part, plain_bytes=sealed.plain_bytes, facts=facts
    )


def filled(server: DisposableServer, name: str, scale: int) -> str:
    """A database of pgbench with that many times 100,000 accounts."""
    url = server.database(name)
    _shell(f"pgbench -i -I dtGp -q -s {scale} '{url}' 2>/dev/null")
    return url


def _empty(server: DisposableServer, name: str) -> str:
    server.drop(name)
    return server.database(name)


def _timed(case: Case, name: str, act: Callable[[], dict[str, float] | None]) -> None:
    """Ours tells its own seconds: Slipway is running already when it makes a backup."""
    began = time.perf_counter()
    said = act()
    took = said["seconds"] if said else time.perf_counter() - began
    case.runs.setdefault(name, []).append(round(took, 2))


def _shell(command: str) -> None:
    from blocks.postgres_server_process import packaged_binaries

    path = f"{packaged_binaries()}:{os.environ['PATH']}"
    subprocess.run(
        ["bash", "-euo", "pipefail", "-c", command], check=True, env={**os.environ, "PATH": path}
    )


def _restic(place: Path) -> str:
    repository = place / "restic"
    restic = f"RESTIC_PASSWORD=bench restic -r {repository} --no-cache"
    if not repository.exists():
        _shell(f"{restic} init -q")
    return restic


def child(*words: str) -> dict[str, float]:
    """Run one of ours in a process of its own; what it printed."""
    done = subprocess.run(
        [sys.executable, __file__, *words], check=True, capture_output=True, text=True
    )
    said: dict[str, float] = json.loads(done.stdout)
    return said


def save(url: str, folder: str, public: str) -> None:
    """What `slipway backup` does to its largest member, without Prefect around it."""
    store = FileStore(Path(folder))
    for key in ("one.age", "one.json"):
        if there := store.stat(key):
            store.delete(key, there.version)
    with PostgresSource(url, rows=False).open() as stream:
        sealed = sealing.seal(stream, store, "one.age", sealing.recipients([public]))
        facts = stream.facts()
    document = {
        "part": sealed.part.model_dump(),
        "plain_bytes": sealed.plain_bytes,
        "inventory": dict(facts.inventory),
    }
    store.create("one.json", json.dumps(document).encode())


def bring(url: str, folder: str, keys: str) -> None:
    """What `slipway restore` does, without Prefect around it and without the last comparison."""
    store = FileStore(Path(folder))
    document = json.loads(store.read("one.json") or b"")
    part = Part.model_validate(document["part"])
    plain_bytes = int(document["plain_bytes"])
    identity = sealing.identity((Path(keys) / "key").read_text(), "bench")
    with (
        store.open(part.key) as content,
        sealing.unsealed(content, [identity], part.key, plain_bytes=plain_bytes) as file,
    ):
        restore(file, url, expected=Inventory.model_validate(document["inventory"]), owners=False)


if __name__ == "__main__":
    began = time.perf_counter()
    {"save": save, "bring": bring}[sys.argv[1]](*sys.argv[2:])
    took = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps({"peak_kib": peak, "seconds": round(took, 2)}))
