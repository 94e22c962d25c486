"""What every object store promises. Each implementation runs all of it."""

from __future__ import annotations

import hashlib
import os
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from blocks.file_store import FileStore
from blocks.gcs_store import GcsStore
from blocks.object_store import AlreadyExists, Changed, Locked, ObjectStore
from blocks.s3_store import S3Store
from domain.errors import Failed, SlipwayError, Unauthorised, UsageError
from tests.kit.faulty_store import Fault, FaultyStore
from tests.kit.memory_store import MemoryStore

Make = Callable[[], ObjectStore]


@pytest.fixture(scope="module")
def s3_endpoint() -> Iterator[str]:
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture(scope="module")
def gcs_endpoint() -> Iterator[str]:
    from gcp_storage_emulator.server import create_server

    from sandbox.ports import choose

    port = choose("gcs emulator of a test")
    server = create_server("127.0.0.1", port, in_memory=True)
    server.start()
    yield f"http://127.0.0.1:{port}"
    server.stop()


@pytest.fixture(params=["file", "s3", "gcs", "memory", "faulty"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ObjectStore:
    bucket = f"slipway-{uuid.uuid4().hex[:12]}"
    match request.param:
        case "file":
            return FileStore(tmp_path)
        case "s3":
            s3 = connect_s3(request.getfixturevalue("s3_endpoint"), bucket)
            s3.create_bucket()
            return s3
        case "gcs":
            gcs = GcsStore.connect(bucket, endpoint=request.getfixturevalue("gcs_endpoint"))
            gcs.create_bucket()
            return gcs
        case "memory":
            return MemoryStore(datetime.now(UTC))
        case _:
            return FaultyStore(MemoryStore(datetime.now(UTC)))


def connect_s3(endpoint: str, bucket: str, **more: str) -> S3Store:
    return S3Store.connect(
        bucket, region="eu-west-1", endpoint=endpoint, access_key="test", secret_key="test",
        retries=2, **more,
    )  # fmt: skip


def test_what_was_created_is_read_back(store: ObjectStore) -> None:
    store.create("a/b/1.json", b"one")
    assert store.read("a/b/1.json") == b"one"
    assert store.read("a/b/2.json") is None


def test_what_exists_is_not_created_again(store: ObjectStore) -> None:
    store.create("a/1", b"first")
    with pytest.raises(AlreadyExists):
        store.create("a/1", b"second")
    with pytest.raises(AlreadyExists):
        store.create("a/1", b"first")
    assert store.read("a/1") == b"first"


def test_a_replacement_is_whole(store: ObjectStore) -> None:
    for content in (b"first", b"", b"third" * 10_000):
        store.replace("a/b", content)
        assert store.read("a/b") == content
    assert store.list("a") == ("a/b",)


def test_a_replacement_of_another_version_is_refused(store: ObjectStore) -> None:
    store.create("a/b", b"first")
    seen = store.stat("a/b")
    assert seen is not None
    store.replace("a/b", b"second", expected=seen.version)
    with pytest.raises(Changed):
        store.replace("a/b", b"third", expected=seen.version)
    with pytest.raises(Changed):
        store.replace("a/nothing", b"third", expected=seen.version)
    assert store.read("a/b") == b"second"


def test_a_listing_is_sorted_and_stays_in_its_folder(store: ObjectStore) -> None:
    for key in ("j/10", "j/9", "j/deep/1", "journal/1"):
        store.create(key, b"x")
    assert store.list("j") == ("j/10", "j/9", "j/deep/1")
    assert store.list("nowhere") == ()


@pytest.mark.parametrize("store", ["file", "memory", "faulty"], indirect=True)
def test_a_long_listing_is_complete(store: ObjectStore) -> None:
    """Of services test_a_page_after_the_first_is_asked_for has the pages."""
    keys = tuple(f"many/{n:05d}" for n in range(1_200))
    for key in keys:
        store.create(key, b"")
    assert store.list("many") == keys


def test_a_stat_says_what_is_there_without_reading_it(store: ObjectStore) -> None:
    before = store.clock() - timedelta(seconds=2)
    store.create("a/b", b"12345")
    seen = store.stat("a/b")
    assert seen is not None
    assert (seen.key, seen.bytes) == ("a/b", 5)
    assert before <= seen.modified_at <= store.clock() + timedelta(seconds=2)
    assert seen.sha256 in (None, hashlib.sha256(b"12345").hexdigest())
    assert store.stat("a/nothing") is None
    (scanned,) = store.scan("a")
    assert (scanned.key, scanned.bytes) == ("a/b", 5)
    assert abs(scanned.modified_at - seen.modified_at) <= timedelta(seconds=1)


def test_an_empty_prefix_is_everything_and_a_prefix_is_a_folder(store: ObjectStore) -> None:
    """S3 takes "/" for a name that begins so, and would have found nothing to save."""
    for key in ("a/b", "ab/c", "d"):
        store.create(key, b"")
    assert store.list("") == ("a/b", "ab/c", "d")
    assert store.list("a") == store.list("a/") == ("a/b",)
    upload = store.upload("big")
    upload.put(1, b"x" * 10)
    assert store.list("") == ("a/b", "ab/c", "d")
    upload.abort()


def test_a_version_changes_with_the_content(store: ObjectStore) -> None:
    store.create("a/b", b"1")
    first = store.stat("a/b")
    store.replace("a/b", b"2")
    second = store.stat("a/b")
    assert first is not None and second is not None and first.version != second.version


def test_a_range_is_read(store: ObjectStore) -> None:
    content = os.urandom(1000)
    store.create("a/b", content)
    for start, end in ((0, None), (10, None), (0, 10), (990, 1000), (100, 101)):
        with store.open("a/b", start=start, end=end) as file:
            pieces = []
            while piece := file.read(64):
                pieces.append(piece)
        assert b"".join(pieces) == content[start:end]
    with pytest.raises(KeyError), store.open("a/nothing"):
        pass


def pieces_of(store: ObjectStore, count: int) -> tuple[bytes, list[bytes]]:
    size = store.upload("size").part_bytes
    content = os.urandom(size * (count - 1) + 1000)
    return content, [content[i : i + size] for i in range(0, len(content), size)]


def test_a_large_object_comes_in_parts(store: ObjectStore) -> None:
    content, pieces = pieces_of(store, 3)
    upload = store.upload("big/one")
    for number, piece in enumerate(pieces, 1):
        upload.put(number, piece)
    assert store.list("big") == () and store.read("big/one") is None
    stat = upload.complete(hashlib.sha256(content).hexdigest())
    assert stat.bytes == len(content)
    assert store.list("big") == ("big/one",)
    assert store.read("big/one") == content
    assert store.upload("big/one").done == ()


def test_an_interrupted_upload_goes_on(store: ObjectStore) -> None:
    content, pieces = pieces_of(store, 3)
    store.upload("big/one").put(1, pieces[0])
    again = store.upload("big/one")  # of another process
    assert [(part.number, part.bytes) for part in again.done] == [(1, len(pieces[0]))]
    assert again.done[0].sha256 in (None, hashlib.sha256(pieces[0]).hexdigest())
    for number, piece in enumerate(pieces[1:], 2):
        again.put(number, piece)
    again.complete(hashlib.sha256(content).hexdigest())
    assert store.read("big/one") == content


def test_what_is_not_what_was_sent_is_not_completed(store: ObjectStore) -> None:
    content, pieces = pieces_of(store, 2)
    upload = store.upload("big/one")
    for number, piece in enumerate(pieces, 1):
        upload.put(number, piece)
    with pytest.raises(Failed) as caught:
        upload.complete(hashlib.sha256(content[:-1]).hexdigest())
    assert caught.value.code == "SLP103"
    assert store.list("big") == ()


def test_an_upload_never_takes_the_place_of_another(store: ObjectStore) -> None:
    first, second = store.upload("big/one"), os.urandom(100)
    first.put(1, second)
    store.create("big/one", b"was first")
    with pytest.raises(AlreadyExists):
        first.complete(hashlib.sha256(second).hexdigest())
    assert store.read("big/one") == b"was first"


def test_an_aborted_upload_leaves_nothing(store: ObjectStore) -> None:
    upload = store.upload("big/one")
    upload.put(1, b"x" * 1000)
    upload.abort()
    upload.abort()
    assert store.upload("big/one").done == ()
    assert store.list("big") == ()


def test_only_the_version_that_was_named_is_deleted(store: ObjectStore) -> None:
    store.create("a/b", b"1")
    old = store.stat("a/b")
    store.replace("a/b", b"2")
    new = store.stat("a/b")
    assert old is not None and new is not None
    with pytest.raises(Changed):
        store.delete("a/b", old.version)
    assert store.read("a/b") == b"2"
    store.delete("a/b", new.version)
    store.delete("a/b", new.version)
    assert store.read("a/b") is None and store.list("a") == ()


@pytest.mark.parametrize("store", ["s3", "memory", "faulty"], indirect=True)
def test_a_locked_object_is_not_deleted(store: ObjectStore) -> None:
    """GCS: the emulator knows no retention, and a directory cannot lock."""
    upload = store.upload("a/b", locked_until=store.clock() + timedelta(days=33))
    upload.put(1, b"meals")
    upload.complete(hashlib.sha256(b"meals").hexdigest())
    seen = store.stat("a/b")
    assert seen is not None and seen.locked_until is not None
    with pytest.raises(Locked):
        store.delete("a/b", seen.version)
    assert store.read("a/b") == b"meals"


# What only a service can get wrong


def test_a_missing_bucket_is_not_an_empty_one(s3_endpoint: str, gcs_endpoint: str) -> None:
    for store in (
        connect_s3(s3_endpoint, "nobody-made-this"),
        GcsStore.connect("nobody-made-this", endpoint=gcs_endpoint),
    ):
        acts: list[Callable[[], object]] = [
            lambda store=store: store.list("a"),  # type: ignore[misc]
            lambda store=store: store.create("a/b", b""),  # type: ignore[misc]
            lambda store=store: store.read("a/b"),  # type: ignore[misc]
            lambda store=store: store.stat("a/b"),  # type: ignore[misc]
        ]
        for act in acts:
            with pytest.raises(UsageError) as caught:
                act()
            assert caught.value.code == "SLP102"


def test_a_store_that_is_away_is_told_from_an_empty_one() -> None:
    from sandbox.ports import choose

    dead = f"http://127.0.0.1:{choose('nobody listens')}"
    store = connect_s3(dead, "any")
    with pytest.raises(SlipwayError) as listed:
        store.list("a")
    with pytest.raises(SlipwayError) as read:
        store.read("a/b")
    assert (listed.value.code, read.value.code) == ("SLP101", "SLP104")


class Cut:
    """Answers a listing as a broken proxy does: more to come, and no way to ask for it."""

    def __init__(self, pages: list[dict[str, object]]) -> None:
        self.pages, self.asked = pages, list[dict[str, object]]()

    def list_objects_v2(self, **given: object) -> dict[str, object]:
        self.asked.append(given)
        return self.pages[len(self.asked) - 1]


def entry(key: str) -> dict[str, object]:
    return {"Key": key, "Size": 1, "ETag": '"e"', "LastModified": datetime.now(UTC)}


def test_restic_4612_a_cut_listing_is_not_taken_for_all_there_is() -> None:
    cut = Cut([{"IsTruncated": True, "Contents": [entry("a/1")]}])
    with pytest.raises(Failed) as caught:
        S3Store(cut, "b").list("a")  # type: ignore[arg-type]
    assert caught.value.code == "SLP101"


def test_a_page_after_the_first_is_asked_for() -> None:
    pages: list[dict[str, object]] = [
        {"IsTruncated": True, "NextContinuationToken": "t", "Contents": [entry("a/1")]},
        {"IsTruncated": False, "Contents": [entry("a/2")]},
    ]
    source = Cut(pages)
    assert S3Store(source, "b").list("a") == ("a/1", "a/2")  # type: ignore[arg-type]
    assert source.asked[1]["ContinuationToken"] == "t"


class Refusing:
    """Says what S3 says to a wrong key, and to a bucket of somebody else."""

    def __init__(self, code: str) -> None:
        self.code, self.asked = code, dict[str, object]()

    def __getattr__(self, name: str) -> Callable[..., object]:
        from botocore.exceptions import ClientError

        def call(**given: object) -> object:
            self.asked = given
            raise ClientError({"Error": {"Code": self.code, "Message": "no"}}, name)

        return call


@pytest.mark.parametrize("code", ["AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch"])
def test_refused_credentials_are_named(code: str) -> None:
    store = S3Store(Refusing(code), "b", owner="123456789012")  # type: ignore[arg-type]
    with pytest.raises(Unauthorised) as caught:
        store.list("a")
    assert caught.value.code == "SLP100" and "123456789012" in caught.value.cause


def test_a_bucket_of_another_account_is_asked_with_its_owner() -> None:
    refusing = Refusing("AccessDenied")
    with pytest.raises(Unauthorised):
        S3Store(refusing, "b", owner="123456789012").create("k", b"")  # type: ignore[arg-type]
    assert refusing.asked["ExpectedBucketOwner"] == "123456789012"


def test_a_damaged_part_is_found_although_the_service_took_it(s3_endpoint: str) -> None:
    """moto takes any checksum: what comes back is compared with what was sent."""
    store = connect_s3(s3_endpoint, f"slipway-{uuid.uuid4().hex[:12]}")
    store.create_bucket()
    send = store._s3.upload_part

    def damaged(**given: object) -> object:
        return send(**{**given, "Body": b"other" + given["Body"][5:]})  # type: ignore

    store._s3.upload_part = damaged  # type: ignore[method-assign, assignment]
    with pytest.raises(Failed) as caught:
        store.upload("a/b").put(1, b"meals and meals")
    assert caught.value.code == "SLP103"


def test_a_lost_answer_to_a_create_is_no_lost_race(s3_endpoint: str) -> None:
    store = connect_s3(s3_endpoint, f"slipway-{uuid.uuid4().hex[:12]}")
    store.create_bucket()
    send = store._s3.put_object

    def twice(**given: object) -> object:
        send(**given)  # type: ignore[arg-type]
        return send(**given)  # type: ignore[arg-type]

    store._s3.put_object = twice  # type: ignore[method-assign, assignment]
    store.create("a/b", b"ours")
    assert store.read("a/b") == b"ours"


def test_a_lock_in_memory_is_never_shortened() -> None:
    """As AWS forbids, and moto allows."""
    store = MemoryStore()
    store.create("a", b"")
    store.lock("a", store.now + timedelta(days=30))
    with pytest.raises(Locked):
        store.lock("a", store.now + timedelta(days=29))


def test_a_script_of_faults_is_played() -> None:
    memory = MemoryStore()
    faults = {2: Fault.LOST_ANSWER, 3: Fault.CORRUPT, 4: Fault.STALE_LIST}
    store = FaultyStore(memory, lambda call, number: faults.get(number))
    store.create("a/1", b"one")
    with pytest.raises(Failed):
        store.create("a/2", b"two")
    assert memory.read("a/2") == b"two"
    with store.open("a/1") as content:
        assert content.read() != b"one"
    assert len(store.list("a")) == 1
    assert len(store.list("a")) == 2
