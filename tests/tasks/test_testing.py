"""Where a suite runs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tasks.testing import work_folder


@pytest.mark.parametrize("own", [False, True])
def test_a_suite_is_not_run_with_the_pytest_options_of_a_project_above(
    tmp_path: Path, own: bool
) -> None:
    (tmp_path / "pyproject.toml").write_text("[tool.pytest.ini_options]\naddopts = '--nonsense'\n")
    source = work_folder(tmp_path / "suites", "unit") / "source"
    (source / "tests").mkdir(parents=True)
    (source / "tests" / "test_it.py").write_text("def test_it(pytestconfig):\n    assert True\n")
    if own:
        (source / "pytest.ini").write_text("[pytest]\naddopts = --verbose\n")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "tests"],
        cwd=source, env={"PATH": os.defpath}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert ("PASSED" in done.stdout) is own, "its own options still count"
