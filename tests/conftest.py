"""What every test needs before Prefect is imported: no server by accident, a home of its own."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator

import pytest

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


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that share a server stay in one worker; the rest is spread by file."""
    for item in items:
        fixtures = getattr(item, "fixturenames", ())
        if "scenarios" in item.path.parts:
            group = "scenarios"
        elif "prefect_harness" in fixtures:
            group = "prefect"
        else:
            group = str(item.path)
        item.add_marker(pytest.mark.xdist_group(group))
