"""Object storage saved incrementally from every kind of store, and restored."""

from __future__ import annotations

import hashlib
import io
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from blocks import objects_dump
from blocks.file_store import FileStore
from blocks.object_store import Content, ObjectStore, Stat
from blocks.objects_dump import ObjectsSource, Open, compare, read_index, restore
from domain.errors import Failed, SlipwayError, UsageError
from domain.recovery import Facts
from tests.blocks import test_object_store_contract as contract


class Pool:
    """Contents by hash, as the pipeline keeps them."""

    def __init__(self) -> None:
        self.contents: dict[str, bytes] = {}
        self.asked: list[str] = []

    def store(self, sha256: str, open: Open) -> None:
        self.asked.append(sha256)
        if sha256 not in self.contents:
            with open() as content:
                whole = b"".join(iter(lambda: content.read(100_000), b""))
            self.contents[sha256] = whole

    def fetch(self, sha256: str) -> AbstractContextManager[Content]:
        return nullcontext(io.BytesIO(self.contents[sha256]))

    def check(self) -> None:
        for sha256, content in self.contents.items():
            assert hashlib.sha256(content).hexdigest() == sha256


class Watched:
    """A store that counts reads, and lets a test do something right after one began."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self.opened: list[str] = []
        self.meanwhile: Callable[[str], None] = lambda _: None

    @contextmanager
    def open(self, key: str, **span: Any) -> Iterator[Content]:
        self.opened.append(key)
        with self._store.open(key, **span) as content:
            self.meanwhile(key)
            yield content

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)


s3_endpoint, gcs_endpoint = contract.s3_endpoint, contract.gcs_endpoint
any_store = contract.store


@pytest.fixture
def store(any_store: ObjectStore) -> Watched:
    return Watched(any_store)


@pytest.fixture
def pool() -> Pool:
    return Pool()


def dump(
    objects: Any, pool: Pool, before: bytes | None = None, **options: Any
) -> tuple[bytes, Facts]:
    previous = None if before is None else (lambda: nullcontext(io.BytesIO(before)))
    options = {"place": "files", "store": pool.store, "previous": previous} | options
    with ObjectsSource(objects, "media/", **options).open() as stream:
        index = b"".join(iter(lambda: stream.read(1000), b""))
        return index, stream.facts()


def fill(store: Any) -> dict[str, bytes]:
    found = {f"media/{name}": name.encode() * 50 for name in ("a", "a.b", "a-b", "b/c", "b/é", "z")}
    found["media/copy"] = found["media/a"]
    for key, content in found.items():
        store.create(key, content)
    store.create("other/secret", b"not ours")
    return found


def test_what_is_restored_is_what_was_saved(store: Watched, pool: Pool, tmp_path: Path) -> None:
    found = fill(store)
    index, facts = dump(store, pool)
    pool.check()
    assert len(pool.contents) == len(found) - 1  # equal contents once
    assert facts.inventory["objects"] == len(found)
    target = FileStore(tmp_path / "restored")
    done = restore(io.BytesIO(index), pool.fetch, target)
    assert done.digest == facts.inventory["digest"]
    assert {key: target.read(key) for key in target.list("media/")} == found
    assert list(compare(io.BytesIO(index), target)) == []


def test_unchanged_objects_are_listed_and_not_read(store: Watched, pool: Pool) -> None:
    fill(store)
    first, facts = dump(store, pool)
    store.opened.clear()
    pool.asked.clear()
    second, again = dump(store, pool, first)
    assert (store.opened, pool.asked, second) == ([], [], first)
    assert again.inventory["since_before"]["unchanged"] == 7
    assert again.inventory["since_before"]["read_bytes"] == 0
    assert again.inventory["digest"] == facts.inventory["digest"]


def test_only_what_changed_is_read_and_what_was_deleted_stays_in_the_older_index(
    store: Watched, pool: Pool, tmp_path: Path
) -> None:
    found = fill(store)
    first, _ = dump(store, pool)
    store.replace("media/a", b"changed")
    store.create("media/new", b"new")
    gone = store.stat("media/z")
    assert gone is not None
    store.delete("media/z", gone.version)
    store.opened.clear()
    second, facts = dump(store, pool, first)
    assert store.opened == ["media/a", "media/new"]
    tally = facts.inventory["since_before"]
    assert [tally[k] for k in ("unchanged", "new", "changed", "deleted")] == [5, 1, 1, 1]
    assert "media/z" not in {saved.key for saved in read_index(io.BytesIO(second))}
    old = FileStore(tmp_path / "old")
    restore(io.BytesIO(first), pool.fetch, old)
    assert old.read("media/z") == found["media/z"] and old.read("media/a") == found["media/a"]


def test_an_index_of_another_place_is_not_built_upon(store: Watched, pool: Pool) -> None:
    fill(store)
    first, _ = dump(store, pool, place="another bucket")
    store.opened.clear()
    _, facts = dump(store, pool, first)
    assert len(store.opened) == 7 and facts.inventory["since_before"]["unchanged"] == 0


def test_a_content_that_left_the_pool_is_read_again(store: Watched, pool: Pool) -> None:
    """kopia#4769: an index that trusts a lost content makes a hole in every later backup."""
    fill(store)
    first, _ = dump(store, pool)
    lost = hashlib.sha256(b"z" * 50).hexdigest()
    del pool.contents[lost]
    dump(store, pool, first, pooled=pool.contents.__contains__)
    assert pool.contents[lost] == b"z" * 50


def test_an_object_that_changed_after_it_was_listed_is_read_again_the_next_time(
    any_store: ObjectStore, pool: Pool
) -> None:
    class Slow(Watched):
        def scan(self, prefix: str) -> Iterator[Stat]:
            listed = list(self._store.scan(prefix))
            self._store.replace("media/a", b"written since")
            return iter(listed)

    any_store.create("media/a", b"old")
    first, _ = dump(Slow(any_store), pool)
    (saved,) = read_index(io.BytesIO(first))
    assert pool.contents[saved.sha256] == b"written since"
    store = Watched(any_store)
    second, facts = dump(store, pool, first)
    assert store.opened == ["media/a"] and facts.inventory["since_before"]["changed"] == 1
    assert dump(store, pool, second)[0] == second


@pytest.mark.parametrize("size", [10, objects_dump.SMALL_BYTES + 10])
def test_an_object_that_changes_while_it_is_read_is_read_again(
    store: Watched, pool: Pool, size: int
) -> None:
    store.create("media/a", b"1" * size)
    times = iter(range(2))

    def overwrite(key: str) -> None:
        if (n := next(times, None)) is not None:
            store.replace(key, b"%d" % n * (size + n))

    store.meanwhile = overwrite
    index, _ = dump(store, pool)
    (saved,) = read_index(io.BytesIO(index))
    pool.check()
    assert pool.contents[saved.sha256] == store.read("media/a") == b"1" * (size + 1)


def test_a_large_object_that_changes_between_its_two_readings_is_not_pooled_under_a_wrong_name(
    tmp_path: Path, pool: Pool
) -> None:
    size = objects_dump.SMALL_BYTES + 10
    store = Watched(FileStore(tmp_path))
    store.create("media/a", b"1" * size)

    def overwrite(key: str) -> None:
        if len(store.opened) == 2:
            path = tmp_path / key  # in place, as a careless application does
            path.write_bytes(b"2" * size)

    store.meanwhile = overwrite
    index, _ = dump(store, pool)
    (saved,) = read_index(io.BytesIO(index))
    pool.check()
    assert pool.contents[saved.sha256] == b"2" * size


def test_an_object_that_never_rests_is_an_error_after_some_tries(
    store: Watched, pool: Pool
) -> None:
    store.create("media/a", b"")
    store.meanwhile = lambda key: store.replace(key, b"%d" % len(store.opened))
    with pytest.raises(Failed, match="each of the 5 times") as raised:
        dump(store, pool)
    assert raised.value.code == "SLP133" and len(store.opened) == 5


def test_an_object_that_is_deleted_while_it_is_read_is_not_in_the_index(
    store: Watched, pool: Pool
) -> None:
    fill(store)

    def delete(key: str) -> None:
        if key == "media/z" and (there := store.stat(key)):
            store.delete(key, there.version)

    store.meanwhile = delete
    index, facts = dump(store, pool)
    assert "media/z" not in {saved.key for saved in read_index(io.BytesIO(index))}
    assert facts.inventory["since_before"]["vanished"] == 1


def test_a_listing_that_fails_is_no_shorter_index(store: Watched, pool: Pool) -> None:
    """restic#4612: "could not list" was read as "nothing there"."""
    fill(store)

    class Broken(Watched):
        def scan(self, prefix: str) -> Iterator[Stat]:
            yield from list(self._store.scan(prefix))[:3]
            raise Failed("SLP101", "the listing ended early", help="try again")

    with ObjectsSource(
        Broken(store._store), "media/", place="files", store=pool.store
    ).open() as stream:
        for _ in range(2):  # and asking again does not make it whole
            with pytest.raises(SlipwayError):
                while stream.read(1000):
                    pass
        with pytest.raises(RuntimeError):
            stream.facts()


def test_a_damaged_index_before_is_an_error_and_not_a_fresh_start(
    store: Watched, pool: Pool
) -> None:
    fill(store)
    first, _ = dump(store, pool)
    lines = first.splitlines(keepends=True)
    for damaged in (first[:-5], b"".join(lines[:-1]), b"".join(lines[:3] + lines[4:]), b""):
        with pytest.raises(Failed) as raised:
            dump(store, pool, damaged)
        assert raised.value.code == "SLP134"


def test_an_error_of_the_pool_ends_the_dump(store: Watched) -> None:
    fill(store)

    def full(_sha256: str, _open: Open) -> None:
        raise Failed("SLP015", "no space", help="make some")

    with pytest.raises(Failed, match="no space"):
        dump(store, Pool(), store=full)


def test_a_content_that_is_missing_or_another_is_not_restored(
    store: Watched, pool: Pool, tmp_path: Path
) -> None:
    fill(store)
    index, _ = dump(store, pool)
    sha256 = hashlib.sha256(b"b/c" * 50).hexdigest()
    for n, wrong in enumerate((b"", b"b/c" * 49, b"B/c" + b"b/c" * 49, b"b/c" * 51, None)):
        target = FileStore(tmp_path / str(n))
        pool.contents[sha256] = wrong or b""
        if wrong is None:
            del pool.contents[sha256]
        with pytest.raises(Failed) as raised:
            restore(io.BytesIO(index), pool.fetch, target)
        assert raised.value.code == "SLP135"
        assert target.stat("media/b/c") is None
        assert "media/b/c is missing" in list(compare(io.BytesIO(index), target))


def test_a_large_object_goes_through_an_upload(
    any_store: ObjectStore, pool: Pool, tmp_path: Path
) -> None:
    store, target = FileStore(tmp_path / "application"), any_store
    large = b"0123456789" * (objects_dump.SMALL_BYTES // 10 + 7)
    store.create("media/large", large)
    index, _ = dump(store, pool)
    (sha256,) = pool.contents
    restore(io.BytesIO(index), pool.fetch, target)
    assert target.read("media/large") == large
    pool.contents[sha256] = large[:-1] + b"x"
    other = FileStore(tmp_path / "other")
    with pytest.raises(Failed):
        restore(io.BytesIO(index), pool.fetch, other)
    assert other.stat("media/large") is None


def test_a_restore_that_was_interrupted_goes_on(store: Watched, pool: Pool, tmp_path: Path) -> None:
    fill(store)
    index, _ = dump(store, pool)
    target = FileStore(tmp_path / "restored")
    restore(io.BytesIO(index), pool.fetch, target, prefix="media/b/")
    assert target.list("") == ("media/b/c", "media/b/é")
    done = restore(io.BytesIO(index), pool.fetch, target)
    assert (done.written, done.present) == (5, 2)
    target.replace("media/a", b"someone else's")
    with pytest.raises(UsageError) as raised:
        restore(io.BytesIO(index), pool.fetch, target)
    assert raised.value.code == "SLP132" and target.read("media/a") == b"someone else's"


def test_a_store_that_differs_is_told_apart(store: Watched, pool: Pool, tmp_path: Path) -> None:
    fill(store)
    index, _ = dump(store, pool)
    target = FileStore(tmp_path / "restored")
    restore(io.BytesIO(index), pool.fetch, target)
    target.replace("media/a", b"A" + b"a" * 49)
    target.create("media/more", b"")
    assert list(compare(io.BytesIO(index), target)) == [
        "media/a has another content", "media/more is there and was not saved"
    ]  # fmt: skip


def test_memory_does_not_grow_with_the_number_of_objects() -> None:
    at = datetime(2026, 3, 1, tzinfo=UTC)
    hashed: dict[int, bytes] = {}

    class Endless:
        """A listing without files."""

        def __init__(self, count: int) -> None:
            self._count = count

        def clock(self) -> datetime:
            return at

        def scan(self, prefix: str) -> Iterator[Stat]:
            return (Stat(f"{prefix}{n:07}", 1, "1", at) for n in range(self._count))

        def stat(self, key: str) -> Stat:
            return Stat(key, 1, "1", at)

        def open(self, key: str) -> AbstractContextManager[Content]:
            return nullcontext(io.BytesIO(b"x"))

    def peak(count: int) -> int:
        if count not in hashed:
            hashed[count] = dump(Endless(count), Pool())[0]
        tracemalloc.start()
        try:
            before = lambda: nullcontext(io.BytesIO(hashed[count]))  # noqa: E731
            source = ObjectsSource(
                Endless(count), "media/", place="files", store=Pool().store, previous=before
            )  # type: ignore[arg-type]
            with source.open() as stream:
                while stream.read(1 << 16):
                    pass
            assert stream.facts().inventory["since_before"]["unchanged"] == count
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    small, large = peak(10_000), peak(30_000)
    assert large < small * 1.2
