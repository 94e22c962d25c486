"""Redis databases saved from real servers, restored, compared and damaged."""

from __future__ import annotations

import io
import random
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import redis

from blocks import redis_dump
from blocks.redis_dump import RedisSource, compare, inspect, restore
from domain.errors import Failed, SlipwayError, Unauthorised, UsageError
from domain.rdb import LONGEST_STRING_BYTES
from domain.recovery import Facts, MemberKind
from domain.redis_inventory import RedisInventory
from sandbox import ports
from sandbox.parts import _redis_server as program


@contextmanager
def serving(folder: Path, *options: str) -> Iterator[str]:
    """A Redis server of one's own; its base URL, without the number of a database."""
    port = ports.choose("redis")
    process = subprocess.Popen(
        [program(), "--bind", "127.0.0.1", "--port", str(port), "--dir", str(folder),
         "--save", "", "--databases", "16", "--repl-diskless-sync-delay", "0", *options],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 20
        with redis.Redis(port=port) as client:
            while True:
                try:
                    client.ping()
                    break
                except redis.AuthenticationError:
                    break
                except redis.RedisError:
                    assert process.poll() is None and time.monotonic() < deadline
                time.sleep(0.02)
        yield f"redis://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(20)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with serving(tmp_path_factory.mktemp("redis"), "--repl-diskless-sync", "yes") as url:
        yield url


@pytest.fixture
def base(server: str) -> Iterator[str]:
    with redis.Redis.from_url(server) as client:
        client.flushall()
    yield server


def fill(url: str) -> None:
    """Every type in every encoding that the server has: small packed ones and large ones."""
    chance = random.Random(4)
    with redis.Redis.from_url(url) as client:
        client.mset({"text": "hello", "number": 12345, "negative": -70000, "long": "ab" * 5000})
        client.set("binary \xff", bytes(range(256)))
        client.set("large", chance.randbytes(300_000))
        client.rpush("list:small", 1, -5, "x", 2**40, "y" * 100, 4096, -4097, 2**20)
        client.rpush("list:large", *(f"element {n}" * 40 for n in range(2000)))
        client.sadd("set:numbers", *range(-50, 50))
        client.sadd("set:long numbers", *(2**40 + n for n in range(50)))
        client.sadd("set:large", *(f"member {n}" for n in range(3000)))
        client.hset("hash:small", mapping={"a": 1, "b": "two", "c": "x" * 60})
        client.hset("hash:large", mapping={f"field {n}": n for n in range(2000)})
        client.zadd("zset:small", {"one": 1.5, "two": float("-inf"), "three": 1e300})
        client.zadd("zset:large", {f"member {n}": n / 3 for n in range(1000)})
        for n in range(250):
            client.xadd("stream", {"n": n, "text": "z" * (n % 90)})
        client.xgroup_create("stream", "readers", "0")
        client.xreadgroup("readers", "anna", {"stream": ">"}, count=7)
        client.set("session", "volatile", ex=3600)
        client.hset("session:hash", "user", "7")
        client.expire("session:hash", 3600)


def saved(url: str, *, chunk: int = 1 << 16, **options: bool) -> tuple[bytes, Facts]:
    with RedisSource(url, **options).open() as stream:
        content = b"".join(iter(lambda: stream.read(chunk), b""))
        return content, stream.facts()


def inventory(facts: Facts) -> RedisInventory:
    return RedisInventory.model_validate(facts.inventory)


def reading(content: bytes) -> Callable[[int], bytes]:
    return io.BytesIO(content).read


def refuse_replication(base: str) -> str:
    """A login that may do everything but replicate: as managed servers do it."""
    with redis.Redis.from_url(base) as client:
        client.execute_command(
            "ACL", "SETUSER", "saver", "on", ">pass", "~*", "&*", "+@all", "-psync", "-replconf"
        )
    return base.replace("redis://", "redis://saver:pass@")


@pytest.fixture(params=["snapshot", "per-key"])
def login(request: pytest.FixtureRequest, base: str) -> str:
    return base if request.param == "snapshot" else refuse_replication(base)


def test_what_is_restored_is_what_was_saved(login: str, base: str) -> None:
    fill(f"{base}/3")
    content, facts = saved(f"{login}/3")
    was = inventory(facts)
    assert was.persistent.types == {
        "hash": 2, "list": 2, "set": 3, "stream": 1, "string": 6, "zset": 2
    }  # fmt: skip
    assert was.volatile.types == {"hash": 1, "string": 1}
    done = restore(reading(content), f"{base}/5")
    assert (done.keys, done.expired) == (18, 0)
    assert done.inventory.persistent == was.persistent
    assert compare(was, f"{base}/5") == ()
    with redis.Redis.from_url(f"{base}/5") as copy, redis.Redis.from_url(f"{base}/3") as source:
        assert copy.get("large") == source.get("large")
        assert copy.lrange("list:large", 0, -1) == source.lrange("list:large", 0, -1)
        assert copy.zrange("zset:large", 0, -1, withscores=True) == source.zrange(
            "zset:large", 0, -1, withscores=True
        )
        assert copy.xrange("stream") == source.xrange("stream")
        assert copy.xpending("stream", "readers") == source.xpending("stream", "readers")
        assert 3500 < copy.ttl("session") <= 3600


def test_the_two_ways_of_reading_agree(base: str) -> None:
    fill(f"{base}/3")
    whole, each = (inventory(saved(f"{url}/3")[1]) for url in (base, refuse_replication(base)))
    assert (whole.consistency, each.consistency) == ("snapshot", "per-key")
    assert "refuses replication: NOPERM" in each.why
    assert (whole.persistent, whole.volatile) == (each.persistent, each.volatile)


def test_whoever_wants_a_snapshot_does_not_get_less(base: str) -> None:
    with pytest.raises(Failed, match="refuses replication") as raised:
        saved(f"{refuse_replication(base)}/3", snapshot_only=True)
    assert raised.value.code == "SLP130"


def test_a_server_that_syncs_from_its_disk_is_saved_too(tmp_path: Path) -> None:
    with serving(tmp_path, "--repl-diskless-sync", "no") as base:
        fill(f"{base}/1")
        _, facts = saved(f"{base}/1")
        assert inventory(facts).consistency == "snapshot"
        assert inventory(facts).total == 18


def test_keys_of_other_logical_databases_are_counted_and_not_stored(base: str) -> None:
    with redis.Redis.from_url(f"{base}/2") as other, redis.Redis.from_url(f"{base}/3") as ours:
        other.set("someone else's", "planted-secret-value")
        ours.set("ours", "1")
    content, facts = saved(f"{base}/3")
    assert b"planted" not in content and b"someone" not in content
    assert inventory(facts).left_out == {"keys of other databases": 1}
    assert inventory(facts).total == 1


def test_an_empty_database_is_saved_as_one(login: str, base: str) -> None:
    content, facts = saved(f"{login}/3")
    assert inventory(facts).total == 0
    assert inspect(reading(content)).total == 0
    assert restore(reading(content), f"{base}/4").keys == 0


def test_the_data_time_is_the_servers(login: str, base: str) -> None:
    with redis.Redis.from_url(base) as client:
        before = client.time()[0]
    _, facts = saved(f"{login}/3")
    with redis.Redis.from_url(base) as client:
        after = client.time()[0]
    assert before <= int(facts.data_time.timestamp()) <= after
    assert RedisSource.kind is MemberKind.REDIS
    assert facts.tools["redis"][0].isdigit()


def test_there_are_no_facts_before_the_end(base: str) -> None:
    fill(f"{base}/3")
    with RedisSource(f"{base}/3").open() as stream:
        stream.read(10)
        with pytest.raises(RuntimeError):
            stream.facts()


def test_pieces_of_any_size_make_the_same_dump(base: str) -> None:
    fill(f"{base}/3")
    content, facts = saved(f"{base}/3", chunk=1013)
    assert inspect(reading(content)).persistent == inventory(facts).persistent


def test_a_database_that_holds_something_is_not_restored_into(base: str) -> None:
    with redis.Redis.from_url(f"{base}/3") as client:
        client.set("a", "1")
    content, _ = saved(f"{base}/3")
    with pytest.raises(UsageError, match="already holds 1 keys") as raised:
        restore(reading(content), f"{base}/3")
    assert raised.value.code == "SLP132"


def test_keys_whose_time_is_over_are_left_out_and_counted(base: str) -> None:
    with redis.Redis.from_url(f"{base}/3") as client:
        client.set("kept", "1")
        client.set("session", "1", px=200)
        content, facts = saved(f"{base}/3")
        while client.exists("session"):
            time.sleep(0.01)
    done = restore(reading(content), f"{base}/4")
    assert (done.keys, done.expired) == (1, 1)
    assert compare(inventory(facts), f"{base}/4", expired=done.expired) == ()
    assert compare(inventory(facts), f"{base}/4") != ()
    held = restore(reading(content), f"{base}/5", hold_expiry=timedelta(hours=1))
    assert (held.keys, held.expired) == (2, 0)
    assert compare(inventory(facts), f"{base}/5") == ()


@pytest.mark.parametrize("harm", [
    lambda c: c.delete("text"),
    lambda c: c.set("one more", "1"),
    lambda c: c.set("text", "hellp"),
    lambda c: c.lset("list:large", 1500, "other"),
    lambda c: c.hset("hash:large", "field 77", "78"),
    lambda c: c.zadd("zset:large", {"member 9": 3.0000001}),
    lambda c: c.srem("set:numbers", 7) and c.sadd("set:numbers", 77),
    lambda c: c.rename("number", "numbers"),
    lambda c: c.persist("session"),
    lambda c: c.xack("stream", "readers", c.xpending_range("stream", "readers", "-", "+", 1)[0][
        "message_id"]),
])  # fmt: skip
def test_a_copy_that_differs_in_one_thing_is_told_apart(
    base: str, harm: Callable[[redis.Redis], object]
) -> None:
    fill(f"{base}/3")
    content, facts = saved(f"{base}/3")
    restore(reading(content), f"{base}/5")
    with redis.Redis.from_url(f"{base}/5") as copy:
        harm(copy)
    assert compare(inventory(facts), f"{base}/5")


def test_t4_a_server_with_an_append_only_file_ignores_an_rdb_but_not_a_restore(
    base: str, tmp_path: Path
) -> None:
    """redis#1826, redis#12762: whoever copies the file there has an empty database."""
    fill(f"{base}/3")
    content, facts = saved(f"{base}/3")
    (tmp_path / "dump.rdb").write_bytes(content)
    with serving(tmp_path, "--appendonly", "yes") as other:
        with redis.Redis.from_url(f"{other}/0") as client:
            assert client.dbsize() == 0
        restore(reading(content), f"{other}/0")
        assert compare(inventory(facts), f"{other}/0") == ()


def test_what_is_stored_is_a_file_that_a_plain_server_loads(
    login: str, base: str, tmp_path: Path
) -> None:
    fill(f"{base}/3")
    content, facts = saved(f"{login}/3")
    (tmp_path / "dump.rdb").write_bytes(content)
    with serving(tmp_path) as other:
        assert compare(inventory(facts), f"{other}/0") == ()


def test_t4_a_server_without_checksums_is_saved_with_one(tmp_path: Path) -> None:
    """`rdbchecksum no` writes files whose flipped bytes load happily."""
    with serving(tmp_path, "--rdbchecksum", "no", "--repl-diskless-sync", "yes") as base:
        fill(f"{base}/1")
        content, facts = saved(f"{base}/1")
    assert not inventory(facts).source_checksum
    at = content.index(b"hello")
    with pytest.raises(Failed, match="checksum"):
        inspect(reading(content[:at] + b"j" + content[at + 1 :]))
    with pytest.raises(Failed, match="no checksum"):
        inspect(reading(content[:-8] + bytes(8)))


def test_every_cut_and_every_kind_of_flip_is_found(base: str) -> None:
    fill(f"{base}/3")
    with redis.Redis.from_url(f"{base}/3") as client:
        client.delete("large", "list:large", "set:large", "hash:large", "zset:large")
    content, _ = saved(f"{base}/3")
    chance = random.Random(7)
    damaged = [content[: chance.randrange(len(content))] for _ in range(100)]
    for _ in range(200):
        at = chance.randrange(len(content))
        flipped = content[at] ^ (1 << chance.randrange(8))
        damaged.append(content[:at] + bytes([flipped]) + content[at + 1 :])
    damaged += [content + b"x", content + content, b"", b"REDIS0009"]
    for twin in damaged:
        with pytest.raises(Failed) as raised:
            inspect(reading(twin))
        assert raised.value.code == "SLP131"


def test_a_server_that_goes_away_in_mid_dump_is_no_backup(tmp_path: Path) -> None:
    with serving(tmp_path, "--repl-diskless-sync", "yes") as base:
        with redis.Redis.from_url(f"{base}/1") as client:
            for n in range(40):
                client.set(f"large {n}", random.Random(n).randbytes(1 << 20))
        with RedisSource(f"{base}/1").open() as stream:
            stream.read(1000)
            with redis.Redis.from_url(base) as client, pytest.raises(redis.ConnectionError):
                client.execute_command("SHUTDOWN", "NOSAVE")
            for _ in range(2):  # and asking again does not make it whole
                with pytest.raises(Failed) as raised:
                    while stream.read(1 << 20):
                        pass
                assert raised.value.code == "SLP130"


def test_a_wrong_login_says_so_and_does_not_show_it(tmp_path: Path) -> None:
    with serving(tmp_path, "--requirepass", "right") as base:
        with pytest.raises(Unauthorised) as raised:
            saved(base.replace("redis://", "redis://:planted-password@") + "/1")
        assert raised.value.code == "SLP139"
        assert "planted-password" not in str(raised.value)
        content, _ = saved(base.replace("redis://", "redis://:right@") + "/1")
        assert inspect(reading(content)).total == 0


def test_nobody_there_says_so() -> None:
    with pytest.raises(SlipwayError) as raised:
        saved(f"redis://127.0.0.1:{ports.choose('nobody')}/1")
    assert raised.value.code == "SLP130"


def test_a_key_that_scan_gives_twice_is_stored_once(
    base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server ends itself over a file that has a key twice."""
    fill(f"{base}/3")
    scan = redis_dump._PerKey._scan
    last: list[bytes] = []

    def again(self: redis_dump._PerKey, cursor: int) -> tuple[int, list[bytes]]:
        following, found = scan(self, cursor)
        twice = [*last, *found, *found]
        last[:] = found
        return following, twice

    monkeypatch.setattr(redis_dump._PerKey, "_scan", again)
    monkeypatch.setattr(redis_dump, "_KEYS_PER_CALL", 3)
    content, facts = saved(f"{refuse_replication(base)}/3")
    assert inventory(facts).total == 18
    (tmp_path / "dump.rdb").write_bytes(content)
    with serving(tmp_path) as other:
        assert compare(inventory(facts), f"{other}/0") == ()


def test_an_impossible_length_does_not_ask_for_memory() -> None:
    huge = b"REDIS0009\xfe\x00\x00\x81" + (LONGEST_STRING_BYTES + 1).to_bytes(8, "big")
    with pytest.raises(Failed, match="impossible"):
        inspect(reading(huge))


def test_a_restore_into_nothing_keeps_the_hour(base: str) -> None:
    """The expiry is a moment, so a restore does not give a session its full time again."""
    with redis.Redis.from_url(f"{base}/3") as client:
        client.set("session", "1", ex=1000)
        was = client.execute_command("PTTL", "session")
        started = datetime.now(UTC)
        content, _ = saved(f"{base}/3")
    restore(reading(content), f"{base}/4")
    with redis.Redis.from_url(f"{base}/4") as copy:
        passed = (datetime.now(UTC) - started) / timedelta(milliseconds=1)
        assert was - passed - 50 <= copy.pttl("session") <= was
