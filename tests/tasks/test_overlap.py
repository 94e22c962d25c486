"""Work side by side: the first error in order wins, and nothing goes on behind it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from blocks import commands
from blocks.commands import Stopped
from tasks.overlap import ahead, together

WAIT_SECONDS = 20


def until_given_up() -> None:
    """Work that has no end of its own."""
    over = threading.Event()
    while not over.wait(0.01):
        commands.raise_if_given_up()


def nothing() -> None:
    pass


def fail(text: str) -> None:
    raise ValueError(text)


def test_all_of_it_runs_at_once() -> None:
    meeting = threading.Barrier(3)

    def meet() -> None:
        meeting.wait(WAIT_SECONDS)

    together(meet, meet, meet)


def test_an_error_of_the_first_ends_the_others() -> None:
    seen: list[type[BaseException]] = []

    def other() -> None:
        try:
            until_given_up()
        except Stopped as error:
            seen.append(type(error))
            raise

    with pytest.raises(ValueError, match="first"):
        together(lambda: fail("first"), other)
    assert seen == [Stopped]


def test_an_error_of_a_later_one_waits_for_the_verdict_of_the_first() -> None:
    failed = threading.Event()

    def second() -> None:
        failed.set()
        fail("second")

    def first() -> None:
        assert failed.wait(WAIT_SECONDS)
        commands.raise_if_given_up()
        fail("first")

    with pytest.raises(ValueError, match="first"):
        together(first, second)
    with pytest.raises(ValueError, match="second"):
        together(nothing, second)


def test_ctrl_c_in_the_first_ends_a_command_of_the_other(tmp_path: Path) -> None:
    """Python brings it to the main thread alone, and the command would have gone on for minutes."""
    pid_file = tmp_path / "pid"

    def other() -> None:
        commands.run(
            "echo $$ > pid.new && mv pid.new pid && sleep 600",
            cwd=tmp_path, venv=None, environ={}, seconds=600, log=tmp_path / "log",
        )  # fmt: skip

    def first() -> None:
        over = threading.Event()
        while not pid_file.exists():
            assert not over.wait(0.01)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        together(first, other)
    assert not psutil.pid_exists(int(pid_file.read_text()))


def test_a_failure_inside_does_not_end_what_is_beside_it() -> None:
    """A scan that finds something ends its own scanners, not the tests that run meanwhile."""

    def first() -> None:
        with pytest.raises(ValueError), commands.ended_together():
            fail("inside")
        commands.raise_if_given_up()

    together(first, nothing)


@contextmanager
def opened(log: list[str], *, fails: bool = False) -> Iterator[str]:
    if fails:
        raise ValueError("could not be opened")
    log.append("opened")
    try:
        yield "it"
    finally:
        log.append("closed")


def test_a_resource_opened_ahead_is_closed_whether_it_is_used_or_not() -> None:
    log: list[str] = []
    with ahead(opened(log)) as it:
        assert it() == "it"
        assert log == ["opened"]
    with pytest.raises(ValueError, match="body"), ahead(opened(log)):
        fail("body")
    assert log == ["opened", "closed"] * 2


def test_who_asks_for_it_gets_its_error() -> None:
    with (
        pytest.raises(ValueError, match="could not be opened"),
        ahead(opened([], fails=True)) as it,
    ):
        it()


def test_opening_is_given_up_with_the_body() -> None:
    @contextmanager
    def endless() -> Iterator[None]:
        until_given_up()
        yield

    with pytest.raises(ValueError, match="body"), ahead(endless()):
        fail("body")
