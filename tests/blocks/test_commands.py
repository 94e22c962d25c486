"""Commands of applications: they end, wholly, and see nothing of ours."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import psutil
import pytest

from blocks import commands
from blocks.commands import Ended


def run(command: str, tmp_path: Path, seconds: float = 20, **environ: str) -> Ended:
    return commands.run(
        command, cwd=tmp_path, venv=None, environ=environ, seconds=seconds,
        log=tmp_path / "logs" / "it.log",
    )  # fmt: skip


def wait_gone(pid: int) -> None:
    end = time.monotonic() + 10
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < end, f"process {pid} is still there"
        time.sleep(0.01)


def test_the_code_and_the_last_lines_come_back(tmp_path: Path) -> None:
    ended = run("echo out; echo err >&2; exit 7", tmp_path)
    assert ended == Ended(7, "out\nerr")
    assert (tmp_path / "logs" / "it.log").read_text() == "out\nerr\n"


def test_only_the_end_of_a_long_output_comes_back(tmp_path: Path) -> None:
    ended = run("i=0; while [ $i -lt 5000 ]; do echo line $i; i=$((i+1)); done", tmp_path)
    assert ended.tail.splitlines() == [f"line {n}" for n in range(4980, 5000)]


def test_bytes_that_are_no_text_do_not_matter(tmp_path: Path) -> None:
    assert run("printf 'a\\377b'", tmp_path).tail == "a\ufffdb"


def test_at_the_limit_the_children_end_too(tmp_path: Path) -> None:
    ended = run("sleep 600 & echo $! > child; wait", tmp_path, seconds=1)
    assert ended.code is None
    wait_gone(int((tmp_path / "child").read_text()))


def test_a_child_left_behind_by_a_command_that_ended_is_ended(tmp_path: Path) -> None:
    assert run("sleep 600 & echo $! > child", tmp_path).code == 0
    wait_gone(int((tmp_path / "child").read_text()))


def test_a_command_that_ignores_sigterm_is_ended(tmp_path: Path) -> None:
    assert run("trap '' TERM; sleep 600 & wait; sleep 600", tmp_path, seconds=0.5).code is None


def test_cancelled_from_outside_nothing_is_left(tmp_path: Path) -> None:
    def cancel() -> None:
        while not (tmp_path / "child").exists() or not (tmp_path / "child").read_text().strip():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=cancel)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        run("sleep 600 & echo $! > child; wait", tmp_path, seconds=60)
    thread.join(10)
    wait_gone(int((tmp_path / "child").read_text()))


def test_it_sees_its_own_environment_and_nothing_of_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("PREFECT_API_KEY", "AWS_SECRET_ACCESS_KEY", "SENTRY_DSN", "PYTHONPATH"):
        monkeypatch.setenv(name, "ours-and-secret")
    ended = run("env; cat", tmp_path, DATABASE_URL="theirs")
    assert "ours-and-secret" not in ended.tail and "DATABASE_URL=theirs" in ended.tail


def test_programs_of_the_bundle_come_first(tmp_path: Path) -> None:
    environ = commands.clean_environ(tmp_path / "venv")
    assert environ["PATH"].split(os.pathsep)[0] == str(tmp_path / "venv" / "bin")
    assert environ["VIRTUAL_ENV"] == str(tmp_path / "venv")
    assert "VIRTUAL_ENV" not in commands.clean_environ(None)


def test_no_log_has_no_tail(tmp_path: Path) -> None:
    assert commands.tail(tmp_path / "none.log") == ""
