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
from itertools import count
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from blocks import file_store
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

    def die(*_: object, **__: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    target, call, write = sys.argv[1:]
    setattr(Path if call == "replace" else file_store.os, call, die)
    getattr(file_store.FileStore(Path(target)), write)("a/1", b"content")
"""


def _kill(root: Path, call: str, write: str) -> None:
    program = [sys.executable, "-c", textwrap.dedent(KILLED), str(root), call, write]
    ended = subprocess.run(program, cwd=Path(__file__).parents[2], timeout=60, check=False)
    assert ended.returncode == -signal.SIGKILL


def _files(root: Path) -> list[str]:
    return sorted(p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file())


@pytest.mark.parametrize("call", ["fsync", "link"])
def test_killed_before_its_name_is_given_an_object_is_not_there(tmp_path: Path, call: str) -> None:
    _kill(tmp_path, call, "create")
    assert _files(tmp_path) == []
    store = FileStore(tmp_path)
    assert store.read("a/1") is None and store.list("a") == ()
    store.create("a/1", b"content")
    assert store.list("a") == ("a/1",)


def test_what_a_kill_leaves_of_a_replacement_the_next_one_takes_away(tmp_path: Path) -> None:
    store = FileStore(tmp_path)
    store.create("a/1", b"old")
    _kill(tmp_path, "replace", "replace")
    assert store.read("a/1") == b"old" and store.list("a") == ("a/1",)
    assert len(_files(tmp_path)) == 2
    store.replace("a/1", b"new")
    assert store.read("a/1") == b"new" and _files(tmp_path) == ["a/1"]


def _interrupted_at(line: int, act: Callable[[], None]) -> bool:
    """Whether Ctrl-C came: before the store's own ``line``-th line, counted as it runs."""
    seen = 0

    def trace(frame: FrameType, event: str, _: object) -> object:
        nonlocal seen
        if frame.f_code.co_filename != file_store.__file__:
            return None
        if event == "line":
            seen += 1
            if seen == line:
                raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        act()
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(before)
    return False


def test_interrupted_at_any_line_a_create_leaves_nothing_hidden(tmp_path: Path) -> None:
    """The run that Ctrl-C met between ``mkstemp`` and the next line left a file for ever."""
    store = FileStore(tmp_path)
    for line in count(1):
        key = f"a/{line}"
        if not _interrupted_at(line, lambda: store.create(key, b"content")):  # noqa: B023
            break
        assert set(_files(tmp_path)) == set(store.list("")), f"line {line}"
        assert store.read(key) in (None, b"content")
    assert line > 20


def test_interrupted_at_any_line_a_replacement_heals_itself(tmp_path: Path) -> None:
    store = FileStore(tmp_path)
    store.create("a/1", b"0")
    for line in count(1):
        content = str(line).encode()
        before = store.read("a/1")
        if not _interrupted_at(line, lambda: store.replace("a/1", content)):  # noqa: B023
            break
        assert store.read("a/1") in (before, content)
    assert line > 20
    assert store.read("a/1") == content and _files(tmp_path) == ["a/1"]


def _replace(root: str, number: int, start: object) -> None:
    store = FileStore(Path(root))
    start.wait()  # type: ignore[attr-defined]
    for turn in range(100):
        store.replace("a/1", f"{number} {turn} ".encode() * 1000)


def test_of_many_replacements_at_once_each_is_whole_and_every_last_one_counts(
    tmp_path: Path,
) -> None:
    context = multiprocessing.get_context("spawn")
    start = context.Barrier(PROCESSES)
    writers = [
        context.Process(target=_replace, args=(str(tmp_path), n, start)) for n in range(PROCESSES)
    ]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
    assert [writer.exitcode for writer in writers] == [0] * PROCESSES
    last = {f"{number} 99 ".encode() * 1000 for number in range(PROCESSES)}
    assert FileStore(tmp_path).read("a/1") in last and _files(tmp_path) == ["a/1"]


@pytest.mark.parametrize("number", [errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL])
def test_a_file_system_without_nameless_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    opened = os.open

    def refuse(path: object, flags: int, *given: Any, **named: Any) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(number, os.strerror(number))
        return opened(path, flags, *given, **named)  # type: ignore[call-overload,no-any-return]

    monkeypatch.setattr(os, "open", refuse)
    store = FileStore(tmp_path)
    store.create("a/1", b"first")
    with pytest.raises(AlreadyExists):
        store.create("a/1", b"second")
    assert store.read("a/1") == b"first"
    store.replace("a/1", b"third")
    assert store.read("a/1") == b"third" and _files(tmp_path) == ["a/1"]


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
    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    store = FileStore(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(os, call, refuse)
        with pytest.raises(kind) as caught:
            store.create("a/1", b"content")
    assert caught.value.code == code and str(tmp_path) in str(caught.value.where)
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == []
