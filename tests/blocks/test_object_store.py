"""A directory as an object store: what only a directory can get wrong."""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from blocks.file_store import FileStore
from blocks.object_store import AlreadyExists, ObjectStore
from domain.errors import Failed, SlipwayError, UsageError

PROCESSES = 8


@pytest.fixture
def store(tmp_path: Path) -> ObjectStore:
    return FileStore(tmp_path / "store")


@pytest.mark.parametrize("key", ["../x", "a/../../x", "/etc/passwd"])
def test_no_key_leaves_the_store(store: ObjectStore, key: str) -> None:
    acts: list[Callable[[], object]] = [lambda: store.create(key, b""), lambda: store.read(key)]
    for act in acts:
        with pytest.raises(ValueError, match="leaves the store"):
            act()


def _race(root: str, number: int, start: object, won: object) -> None:
    store = FileStore(Path(root))
    for turn in range(20):
        start.wait()  # type: ignore[attr-defined]
        try:
            store.create(f"race/{turn}", f"{number}".encode() * 1000)
        except AlreadyExists:
            continue
        won.put((turn, number))  # type: ignore[attr-defined]


def test_of_many_processes_that_create_one_key_exactly_one_wins(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    start, won = context.Barrier(PROCESSES), context.Queue()
    racers = [
        context.Process(target=_race, args=(str(tmp_path), n, start, won)) for n in range(PROCESSES)
    ]
    for racer in racers:
        racer.start()
    winners = dict(won.get(timeout=60) for _ in range(20))
    for racer in racers:
        racer.join(60)
    assert [racer.exitcode for racer in racers] == [0] * PROCESSES
    assert won.empty() and sorted(winners) == list(range(20))
    store = FileStore(tmp_path)
    for turn, number in winners.items():
        assert store.read(f"race/{turn}") == f"{number}".encode() * 1000


KILLED = """
    import os, signal, sys
    from pathlib import Path
    from blocks import file_store

    def die(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    setattr(file_store.os, sys.argv[2], die)
    file_store.FileStore(Path(sys.argv[1])).create("a/1", b"content")
"""


@pytest.mark.parametrize("call", ["fsync", "link"])
def test_killed_before_its_name_is_given_an_object_is_not_there(tmp_path: Path, call: str) -> None:
    program = [sys.executable, "-c", textwrap.dedent(KILLED), str(tmp_path), call]
    root = Path(__file__).parents[2]
    ended = subprocess.run(program, cwd=root, timeout=60, check=False)
    assert ended.returncode == -signal.SIGKILL
    store = FileStore(tmp_path)
    assert store.read("a/1") is None and store.list("a") == ()
    store.create("a/1", b"content")
    assert store.list("a") == ("a/1",)


@pytest.mark.parametrize("call", ["fsync", "link", "replace"])
def test_interrupted_in_mid_write_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """Ctrl-C in the fsync of a journal entry left its temporary file in the store for ever."""

    def interrupted(*given: object, **named: object) -> None:
        raise KeyboardInterrupt

    store = FileStore(tmp_path)
    monkeypatch.setattr(Path if call == "replace" else os, call, interrupted)
    with pytest.raises(KeyboardInterrupt):
        if call == "link":
            store.create("a/1", b"content")
        else:
            store.replace("a/1", b"content")
    assert [path.name for path in (tmp_path / "a").iterdir()] == []


@pytest.mark.parametrize(
    ("number", "kind", "code"),
    [
        (errno.ENOSPC, Failed, "SLP015"),
        (errno.EDQUOT, Failed, "SLP015"),
        (errno.EROFS, UsageError, "SLP016"),
        (errno.EIO, UsageError, "SLP016"),
    ],
)
@pytest.mark.parametrize("call", ["link", "fsync"])
def test_a_disk_that_refuses_leaves_nothing_and_says_so(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    kind: type[SlipwayError],
    code: str,
    call: str,
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    store = FileStore(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(os, call, refuse)
        with pytest.raises(kind) as caught:
            store.create("a/1", b"content")
    assert caught.value.code == code and str(tmp_path) in str(caught.value.where)
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == []
