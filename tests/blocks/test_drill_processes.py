"""A drill's processes are found when they bear its mark, and when they only work in its folder."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import psycopg

from blocks import drill_processes
from blocks.disposable_postgres import DisposableServer


@contextmanager
def sleeper(folder: Path, **environ: str) -> Iterator[psutil.Process]:
    command = [sys.executable, "-c", "import sys; print(flush=True); sys.stdin.read()"]
    with subprocess.Popen(
        command, cwd=folder, env=environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()  # its environment is its own from here on
        try:
            yield psutil.Process(process.pid)
        finally:
            process.kill()


def test_a_mark_is_enough(tmp_path: Path) -> None:
    with (
        sleeper(tmp_path, SLIPWAY_DRILL="one") as one,
        sleeper(tmp_path, SLIPWAY_DRILL="other"),
        sleeper(tmp_path),
    ):
        assert drill_processes.of_drill("one", str(tmp_path / "drill")) == [one]


def test_work_in_the_folder_is_enough_and_a_folder_that_begins_alike_is_not(
    tmp_path: Path,
) -> None:
    for name in ("drill-1/data", "drill-12"):
        (tmp_path / name).mkdir(parents=True)
    with sleeper(tmp_path / "drill-1" / "data") as one, sleeper(tmp_path / "drill-12"):
        assert drill_processes.of_drill("one", str(tmp_path / "drill-1")) == [one]


def test_the_frozen_sessions_of_a_server_whose_parent_was_killed_are_found_and_end() -> None:
    """Two of 200 drills left such: a frozen session does not notice that its server is dead."""
    with (
        DisposableServer(environ={drill_processes.MARKER: "one"}) as server,
        psycopg.connect(server.url) as connection,
    ):
        session = psutil.Process(connection.info.backend_pid)
        parent = psutil.Process(server.pid)
        drill_processes.freeze(drill_processes.family(parent.pid))
        drill_processes.kill([parent])
        assert session.status() == psutil.STATUS_STOPPED
        found = drill_processes.of_drill("one", str(server.folder))
        assert session in found
        drill_processes.kill(found)
        assert drill_processes.of_drill("one", str(server.folder)) == []
