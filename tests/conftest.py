"""What every test needs before Prefect is imported: no server by accident, a home of its own."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

# A busy machine is no failure: no test is timed.
settings.register_profile("slipway", deadline=None)
settings.load_profile("slipway")

_HOME = tempfile.TemporaryDirectory(prefix="slipway-tests-")
os.environ.update(
    PREFECT_SERVER_ALLOW_EPHEMERAL_MODE="false",
    PREFECT_HOME=_HOME.name,
    PREFECT_LOGGING_LEVEL="WARNING",
    PREFECT_LOGGING_SERVER_LEVEL="CRITICAL",
    PREFECT_SERVER_ANALYTICS_ENABLED="false",
)
for name in ("PREFECT_API_URL", "PREFECT_API_KEY", "PREFECT_PROFILE", "SLIPWAY_HOME"):
    os.environ.pop(name, None)


@pytest.fixture(scope="session")
def prefect_harness() -> Iterator[None]:
    """A real Prefect server for the tests that run flows or tasks, started once.

    Without heartbeats: their thread costs each run of a sync flow one second.
    """
    from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings
    from prefect.testing.utilities import prefect_test_harness

    quick = temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None})
    with prefect_test_harness(server_startup_timeout=120), quick:
        yield


_SECOND_SANDBOX = ("test_faults", "test_interrupted", "test_strategies")


def _group(path: str) -> str:
    """What one worker does as a whole: half of the scenarios on one sandbox, or one file."""
    if not path.startswith("tests/scenarios/"):
        return path
    return "scenarios 2" if Path(path).stem in _SECOND_SANDBOX else "scenarios 1"


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """By group. ``--dist loadgroup`` of pytest-xdist 3.8 would do, but with pytest 9.2 it does not
    see the groups: each test goes wherever there is room, and every worker makes every fixture.
    """
    from xdist.scheduler import LoadScopeScheduling

    class ByGroup(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return _group(nodeid.split("::")[0])

    return ByGroup(config, log)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Without `-m`, the slow half of a matrix is left to those who ask for it.

    What is longest comes first, and what is short fills the gaps between workers at the end.
    """
    if not config.option.markexpr:
        slow = [item for item in items if item.get_closest_marker("slow")]
        items[:] = [item for item in items if item not in slow]
        config.hook.pytest_deselected(items=slow)
    if "PYTEST_XDIST_WORKER" in os.environ:
        rooms = ["scenarios", "sandbox", "tasks"]
        items.sort(
            key=lambda item: rooms.index(room) if (room := item.path.parent.name) in rooms else 3
        )
