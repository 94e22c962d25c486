"""Feature flags through OpenFeature: decided in this process, from a file that it watches."""

from __future__ import annotations

from typing import Any

DOUBLE_FIBRE = "double-fibre"

ON, OFF = "on", "off"


class Flags:
    """Which variant of a flag a player gets; off for everybody without a flag file.

    A thread of the provider reads the file when it changes; a request only computes.
    """

    def __init__(self, path: str | None) -> None:
        self._path = path
        self._provider: Any = None
        self._client: Any = None

    def open(self) -> None:
        """Begin to watch the file. One that is missing or damaged now may be whole later."""
        if self._path is None:
            return
        # Imported here, since it is slow to import and most processes have no flag file.
        from openfeature import api
        from openfeature.contrib.provider.flagd import FlagdProvider
        from openfeature.contrib.provider.flagd.config import ResolverType

        self._provider = FlagdProvider(
            resolver_type=ResolverType.FILE, offline_flag_source_path=self._path
        )
        api.set_provider(self._provider, "diet-game")
        self._client = api.get_client("diet-game")

    def close(self) -> None:
        if self._provider is not None:
            self._provider.shutdown()
            self._provider = self._client = None

    def variant(self, flag: str, player: int) -> str:
        """``on`` or ``off``; the same player keeps ``on`` while the share only grows."""
        if self._client is None:
            return OFF
        from openfeature.evaluation_context import EvaluationContext

        context = EvaluationContext(str(player))
        return ON if self._client.get_boolean_value(flag, False, context) else OFF
