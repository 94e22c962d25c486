"""What the environment tells a process, checked once at start."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field

from diet_game import __version__


class SettingsError(Exception):
    """A variable is missing or cannot be used; the message says which and what to set."""


def _number(env: Mapping[str, str], name: str, default: int, low: int, high: int) -> int:
    raw = env.get(name, "").strip()
    if not raw:
        return default
    if not raw.isascii() or not raw.isdigit() or not low <= int(raw) <= high:
        raise SettingsError(f"{name}={raw!r}: set a whole number from {low} to {high}")
    return int(raw)


@dataclass(frozen=True, slots=True)
class Settings:
    """One process's configuration."""

    # Both addresses may carry a password, so neither is shown by repr().
    database_url: str = field(repr=False)
    redis_url: str | None = field(default=None, repr=False)
    flags_file: str | None = None
    host: str = "127.0.0.1"
    port: int = 8000
    application: str = "diet-game"
    environment: str = "development"
    service: str = "api"
    version: str = __version__
    digest: str = ""
    pool_connections: int = 6
    pool_waiting: int = 200
    max_in_flight: int = 256
    drain_seconds: int = 5

    @classmethod
    def from_environment(cls, env: Mapping[str, str] = os.environ) -> Settings:
        """Read the settings.

        Raises:
            SettingsError: DATABASE_URL is missing, or a number is not one.
        """
        return cls(
            database_url=database_url(env),
            redis_url=env.get("REDIS_URL") or None,
            flags_file=flags_file(env),
            host=env.get("HOST") or "127.0.0.1",
            port=_number(env, "PORT", 8000, 1, 65535),
            application=env.get("SLIPWAY_APPLICATION") or "diet-game",
            environment=env.get("SLIPWAY_ENVIRONMENT") or "development",
            service=env.get("SLIPWAY_SERVICE") or "api",
            version=env.get("SLIPWAY_VERSION") or __version__,
            digest=env.get("SLIPWAY_DIGEST") or "",
            pool_connections=_number(env, "POOL_CONNECTIONS", 6, 1, 100),
            pool_waiting=_number(env, "POOL_WAITING", 200, 1, 10_000),
            max_in_flight=_number(env, "MAX_IN_FLIGHT", 256, 1, 10_000),
            drain_seconds=_number(env, "DRAIN_SECONDS", 5, 0, 25),
        )


def flags_file(env: Mapping[str, str]) -> str | None:
    """The flagd file, by the variables that OpenFeature's flagd provider reads as well."""
    path = env.get("FLAGD_OFFLINE_FLAG_SOURCE_PATH")
    return path or None if env.get("FLAGD_RESOLVER") == "file" else None


def database_url(env: Mapping[str, str] = os.environ) -> str:
    """The address of the database, as libpq reads it.

    Raises:
        SettingsError: DATABASE_URL is missing or is not a PostgreSQL address.
    """
    url = env.get("DATABASE_URL", "")
    if not url.startswith(("postgresql://", "postgres://")):
        raise SettingsError("DATABASE_URL: set it to a postgresql:// address")
    return url
