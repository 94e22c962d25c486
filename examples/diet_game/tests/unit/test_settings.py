from __future__ import annotations

import pytest

from diet_game import __version__
from diet_game.settings import Settings, SettingsError

URL = "postgresql://someone@/app?host=/run/postgresql"


def test_defaults() -> None:
    settings = Settings.from_environment({"DATABASE_URL": URL})
    assert (settings.host, settings.port, settings.redis_url) == ("127.0.0.1", 8000, None)
    assert settings.version == __version__


def test_the_platform_names_the_version() -> None:
    settings = Settings.from_environment(
        {"DATABASE_URL": URL, "PORT": "9001", "SLIPWAY_VERSION": "9.9.9", "SLIPWAY_DIGEST": "d"}
    )
    assert (settings.port, settings.version, settings.digest) == (9001, "9.9.9", "d")


@pytest.mark.parametrize(
    ("env", "named"),
    [
        ({}, "DATABASE_URL"),
        ({"DATABASE_URL": "mysql://x"}, "DATABASE_URL"),
        ({"DATABASE_URL": URL, "PORT": "http"}, "PORT"),
        ({"DATABASE_URL": URL, "PORT": "65536"}, "PORT"),
        ({"DATABASE_URL": URL, "PORT": "\u0663"}, "PORT"),
        ({"DATABASE_URL": URL, "MAX_IN_FLIGHT": "0"}, "MAX_IN_FLIGHT"),
    ],
)
def test_bad_settings_name_the_variable(env: dict[str, str], named: str) -> None:
    with pytest.raises(SettingsError, match=f"^{named}"):
        Settings.from_environment(env)


def test_addresses_are_not_shown() -> None:
    settings = Settings(database_url="postgresql://u:hidden@/x", redis_url="redis://:hidden@h")
    assert "hidden" not in repr(settings)
