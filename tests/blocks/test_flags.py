"""FileFlags, as a real OpenFeature client with flagd's provider in its file mode sees it."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import TextIO

import pytest
from openfeature import api
from openfeature.client import OpenFeatureClient
from openfeature.contrib.provider.flagd import FlagdProvider
from openfeature.contrib.provider.flagd.config import ResolverType
from openfeature.contrib.provider.flagd.resolvers.process.connector.file_watcher import (
    FileWatcher,
)
from openfeature.evaluation_context import EvaluationContext

from blocks.flags import FileFlags, Flags
from domain.errors import Failed, UsageError
from domain.flags import Definition, parse

APP, ENV = "shop", "production"
SOURCE = parse(
    json.dumps(
        {
            "flags": {
                name: {
                    "state": "ENABLED",
                    "variants": {"on": True, "off": False},
                    "defaultVariant": "on",
                }
                for name in ("basket", "search")
            }
        }
    ),
    "flags.json",
)
USERS = [f"user-{number}" for number in range(400)]


@pytest.fixture
def flags(tmp_path: Path) -> FileFlags:
    return FileFlags(tmp_path / "flags")


@pytest.fixture
def client(flags: FileFlags) -> Iterator[OpenFeatureClient]:
    """An application that started after the release carried ``basket`` in."""
    flags.change(APP, ENV, lambda known: known.carrying(SOURCE, ["basket"]))
    provider = provider_of(flags)
    api.set_provider_and_wait(provider, "tests")
    yield api.get_client("tests")
    provider.shutdown()
    api.clear_providers()


def provider_of(flags: FileFlags) -> FlagdProvider:
    environ = flags.environ(APP, ENV)
    return FlagdProvider(
        resolver_type=ResolverType(environ["FLAGD_RESOLVER"]),
        offline_flag_source_path=environ["FLAGD_OFFLINE_FLAG_SOURCE_PATH"],
        deadline_ms=10,
    )


def on(client: OpenFeatureClient, flag: str = "basket") -> set[str]:
    return {u for u in USERS if client.get_boolean_value(flag, False, EvaluationContext(u))}


def until(seen: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not seen():
        assert time.monotonic() < deadline, "the client never saw it"
        time.sleep(0.01)


def share(flags: Flags, part: float) -> None:
    flags.change(APP, ENV, lambda known: known.with_share("basket", part))


def test_a_client_sees_set_percentages_that_stick_and_the_kill(
    flags: FileFlags, client: OpenFeatureClient
) -> None:
    assert on(client) == set()
    before: set[str] = set()
    for part in (0.1, 0.5, 1.0):
        share(flags, part)
        until(lambda before=before: len(on(client)) > len(before))  # type: ignore[misc]
        now = on(client)
        assert before <= now, "whoever had it keeps it"
        assert abs(len(now) / len(USERS) - part) < 0.1
        before = now
    assert client.get_boolean_value("basket", False), "at 100% also without a targeting key"
    flags.change(APP, ENV, lambda known: known.killed(["basket"]))
    until(lambda: not on(client))
    assert client.get_boolean_value("basket", True) is False


def test_a_request_without_a_targeting_key_is_off_below_100_percent(
    flags: FileFlags, client: OpenFeatureClient
) -> None:
    share(flags, 0.9999)
    until(lambda: len(on(client)) > 300)
    assert client.get_boolean_value("basket", True) is False


def test_the_kill_is_seen_although_the_clock_went_back(
    flags: FileFlags, client: OpenFeatureClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    share(flags, 1.0)
    until(lambda: len(on(client)) == len(USERS))
    monkeypatch.setattr("blocks.flags.time.time", lambda: 1_000_000_000.0)
    flags.change(APP, ENV, lambda known: known.killed(["basket"]))
    until(lambda: not on(client))


def test_a_process_that_starts_in_the_middle_of_a_kill_sees_it(
    flags: FileFlags, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The provider reads a file and notes its time afterwards, by then that of the next file."""
    flags.change(APP, ENV, lambda known: known.carrying(SOURCE, ["basket"]))
    share(flags, 1.0)
    killing = threading.Thread(
        target=flags.change, args=(APP, ENV, lambda known: known.killed(["basket"]))
    )
    replaced = threading.Event()
    replace = os.replace

    def announced(*args: str) -> None:
        replace(*args)
        replaced.set()

    monkeypatch.setattr("blocks.flags.os.replace", announced)

    def load(file: TextIO) -> object:
        content = json.loads(file.read())
        if not killing.ident:
            killing.start()
            assert replaced.wait(10)
        return content

    slow = SimpleNamespace(load=load, JSONDecodeError=json.JSONDecodeError)
    monkeypatch.setattr(f"{FileWatcher.__module__}.json", slow)
    provider = provider_of(flags)
    api.set_provider_and_wait(provider, "late")
    try:
        until(lambda: not on(api.get_client("late")))
    finally:
        killing.join()
        provider.shutdown()
        api.clear_providers()


def test_every_write_is_later_than_the_one_before(
    flags: FileFlags, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The provider looks for a time that has grown; two writes in one tick must differ."""
    monkeypatch.setattr("blocks.flags.time.time", lambda: 1_900_000_000.0)
    times = []
    for _ in range(5):
        flags.change(APP, ENV, lambda known: known)
        times.append(os.path.getmtime(flags.path(APP, ENV)))
    assert times == sorted(set(times))


def test_nothing_written_is_none_and_environments_do_not_mix(flags: FileFlags) -> None:
    assert flags.read(APP, ENV) is None
    flags.change(APP, ENV, lambda known: known.carrying(SOURCE, ["basket"]))
    assert flags.read(APP, "staging") is None
    found = flags.read(APP, ENV)
    assert found is not None
    assert list(found.flags) == ["basket"]


def test_a_change_that_refuses_changes_nothing(flags: FileFlags) -> None:
    flags.change(APP, ENV, lambda known: known.carrying(SOURCE, ["basket"]))
    before = flags.path(APP, ENV).read_bytes()
    with pytest.raises(UsageError) as refused:
        flags.change(APP, ENV, lambda known: known.with_share("nowhere", 0.5))
    assert refused.value.code == "SLP080"
    assert flags.path(APP, ENV).read_bytes() == before


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EACCES])
def test_a_disk_that_refuses_leaves_the_old_flags_whole(
    flags: FileFlags, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    flags.change(APP, ENV, lambda known: known.carrying(SOURCE, ["basket"]))
    before = flags.path(APP, ENV).read_bytes()

    def full(handle: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("blocks.flags.os.fsync", full)
    with pytest.raises(Failed) as failed:
        share(flags, 0.5)
    assert failed.value.code == ("SLP014" if number == errno.EACCES else "SLP015")
    assert flags.path(APP, ENV).read_bytes() == before
    left = sorted(path.name for path in flags.path(APP, ENV).parent.iterdir())
    assert left == [".lock", "flags.json"]


def test_a_draft_of_a_killed_process_goes_with_the_next_write(flags: FileFlags) -> None:
    flags.change(APP, ENV, lambda known: known)
    stale = flags.path(APP, ENV).with_name("flags.json.abc")
    stale.write_text("{")
    flags.change(APP, ENV, lambda known: known)
    assert not stale.exists()


@pytest.mark.parametrize("content", [b"", b"{", b'{"flags": 1}', b"\xff", b"[]"])
def test_a_damaged_file_is_an_error_and_never_no_flags(flags: FileFlags, content: bytes) -> None:
    path = flags.path(APP, ENV)
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    with pytest.raises(Failed) as failed:
        flags.read(APP, ENV)
    assert failed.value.code == "SLP014"
    with pytest.raises(Failed):
        flags.change(APP, ENV, lambda known: known.killed(["basket"]))
    assert path.read_bytes() == content


def test_changes_of_several_processes_are_all_kept(flags: FileFlags) -> None:
    flags.change(APP, ENV, lambda known: Definition.empty())
    context = multiprocessing.get_context("spawn")  # a fork has no threads
    workers = [context.Process(target=_add, args=(flags, number)) for number in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    found = flags.read(APP, ENV)
    assert found is not None
    assert len(found.flags) == 40


def _add(flags: FileFlags, worker: int) -> None:
    basket = SOURCE.flags["basket"]
    for number in range(10):
        name = f"flag-{worker}-{number}"
        flags.change(
            APP, ENV, lambda known, n=name: Definition({**known.flags, n: basket}, known.rest)
        )


def test_what_somebody_edits_by_hand_meanwhile_is_not_overwritten(flags: FileFlags) -> None:
    flags.change(APP, ENV, lambda known: known.carrying(SOURCE, ["basket"]))
    path = flags.path(APP, ENV)
    edited = path.read_text().replace("basket", "trolley")

    def change(known: Definition) -> Definition:
        path.write_text(edited)  # an editor knows nothing of our lock
        return known.with_share("basket", 0.5)

    with pytest.raises(Failed, match="somebody else changed them") as caught:
        flags.change(APP, ENV, change)
    assert caught.value.code == "SLP014" and path.read_text() == edited
    assert [file.name for file in path.parent.iterdir() if "flags.json." in file.name] == []


def test_a_file_that_appears_meanwhile_is_not_overwritten(flags: FileFlags) -> None:
    path = flags.path(APP, ENV)

    def change(known: Definition) -> Definition:
        path.write_text("{}")
        return known.carrying(SOURCE, ["basket"])

    with pytest.raises(Failed, match="somebody else changed them"):
        flags.change(APP, ENV, change)
    assert path.read_text() == "{}"


def test_previews_that_were_left_are_removed_and_no_other(flags: FileFlags) -> None:
    for name in ("preview-old", "preview-new", "production"):
        flags.change(APP, name, lambda known: known.carrying(SOURCE, ["basket"]))
    for name in ("preview-old", "production"):
        os.utime(flags.path(APP, name).parent, (1000, 1000))
    flags.remove_stale(APP, "preview-", datetime.fromtimestamp(2000, UTC))
    flags.remove_stale("nothing", "preview-", datetime.fromtimestamp(2000, UTC))
    left = sorted(folder.name for folder in (flags.root / APP).iterdir())
    assert left == ["preview-new", "production"]
