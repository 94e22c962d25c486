"""Values with their unit in them: ``10m``, ``200ms``, ``99.9%``."""

from __future__ import annotations

import re
from datetime import timedelta
from decimal import Decimal
from typing import Annotated, Any

from pydantic import BeforeValidator, PlainSerializer, WithJsonSchema

_SECONDS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400}
DURATION_PATTERN = r"^([0-9]+(\.[0-9]+)?(ms|s|m|h|d))+$"
LONGEST_SECONDS = 3650 * 86400
PERCENT_PATTERN = r"^[0-9]+(\.[0-9]+)?%$"


def parse_duration(text: Any) -> timedelta:
    """``1h30m`` -> 90 minutes. Raises ValueError for a number without a unit."""
    if isinstance(text, timedelta):
        return text
    if not isinstance(text, str) or not re.fullmatch(DURATION_PATTERN[1:-1], text):
        raise ValueError(f"{text!r} is not a duration; write a number and a unit: 500ms, 30s, 10m")
    parts = re.findall(r"([0-9.]+)(ms|s|m|h|d)", text)
    seconds = sum(float(number) * _SECONDS[unit] for number, unit in parts)
    if seconds > LONGEST_SECONDS:
        raise ValueError(f"{text!r} is longer than ten years")
    return timedelta(milliseconds=round(seconds * 1000))


def parse_positive_duration(text: Any) -> timedelta:
    """A duration of at least a millisecond. Raises ValueError for ``0s`` too."""
    if not (value := parse_duration(text)):
        raise ValueError(f"{text!r} leaves no time at all; write at least 1ms")
    return value


def format_duration(value: timedelta) -> str:
    """The shortest exact spelling that ``parse_duration`` reads back."""
    millis = round(value.total_seconds() * 1000)
    parts = []
    for unit, size in (("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)):
        count, millis = divmod(millis, size)
        if count:
            parts.append(f"{count}{unit}")
    return "".join(parts) or "0s"


def parse_percent(text: Any) -> float:
    """``99.9%`` -> 0.999. Raises ValueError without the sign, or outside 0 to 100."""
    if not isinstance(text, str) or not re.fullmatch(PERCENT_PATTERN[1:-1], text):
        raise ValueError(f"{text!r} is not a percentage; write it with its sign: 99.9%")
    value = float(Decimal(text[:-1]) / 100)
    if value > 1:
        raise ValueError(f"{text} is more than 100%")
    return value


def format_percent(value: float) -> str:
    """The shortest spelling that ``parse_percent`` reads back as the same number."""
    return f"{(Decimal(repr(value)) * 100).normalize():f}%"


def parse_share(text: Any) -> int:
    """``5%`` -> 5. Raises ValueError outside 1% to 99% and for a part of a percent."""
    if isinstance(text, int) and not isinstance(text, bool):  # as our own models keep it
        text = f"{text}%"
    share = parse_percent(text) * 100
    if not 1 <= share <= 99 or abs(share - round(share)) > 1e-9:
        raise ValueError(f"{text} is not a whole percentage from 1% to 99%")
    return round(share)


Duration = Annotated[
    timedelta,
    BeforeValidator(parse_duration),
    PlainSerializer(format_duration, return_type=str),
    WithJsonSchema({"type": "string", "pattern": DURATION_PATTERN, "examples": ["200ms", "10m"]}),
]
PositiveDuration = Annotated[
    timedelta,
    BeforeValidator(parse_positive_duration),
    PlainSerializer(format_duration, return_type=str),
    WithJsonSchema({"type": "string", "pattern": DURATION_PATTERN, "examples": ["30s", "10m"]}),
]
Percent = Annotated[
    float,
    BeforeValidator(parse_percent),
    PlainSerializer(format_percent, return_type=str),
    WithJsonSchema({"type": "string", "pattern": PERCENT_PATTERN, "examples": ["99.9%"]}),
]
Share = Annotated[
    int,
    BeforeValidator(parse_share),
    PlainSerializer(lambda share: f"{share}%", return_type=str),
    WithJsonSchema({"type": "string", "pattern": PERCENT_PATTERN, "examples": ["5%"]}),
]


def format_bytes(count: float) -> str:
    """``1_500_000`` -> ``1.5 MB``; decimal units, as stores bill them."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
