"""Feature flags in flagd's file format: what they say and how they change.

Only a *switch* is changed: a flag with the variants ``on: true`` and ``off: false``, and either no
targeting or one ``fractional`` split between the two. Every other flag of a file is kept as it is.

The split is sticky: flagd hashes the flag's key and the targeting key into ``[0, 1)`` and gives
``on`` the lower end, so a larger share keeps everybody who had ``on`` before
(https://flagd.dev/reference/custom-operations/fractional-operation/).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from domain.errors import UsageError
from domain.units import format_percent

SCHEMA = "https://flagd.dev/schema/v0/flags.json"
ON, OFF = "on", "off"
WHOLE = 10_000
"""Weights are hundredths of a percent: flagd takes whole numbers only."""

Json = Any


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Flag(_Frozen):
    """One flag as flagd defines it; the order of variants is kept."""

    state: Literal["ENABLED", "DISABLED"]
    variants: Mapping[str, Json] = Field(min_length=1)
    default_variant: str | None = Field(None, alias="defaultVariant")
    targeting: Mapping[str, Json] = Field(default_factory=dict)
    metadata: Mapping[str, str | int | float | bool] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _default_exists(self) -> Flag:
        if self.default_variant is not None and self.default_variant not in self.variants:
            raise ValueError(
                f"defaultVariant is {self.default_variant!r}, which is not among the variants "
                f"{', '.join(self.variants)}"
            )
        return self

    def to_json(self) -> dict[str, Json]:
        kept = self.model_dump(by_alias=True, exclude_unset=True)
        return {name: value for name, value in kept.items() if name != "targeting" or value}

    @property
    def share(self) -> float:
        """Share of targeting keys that get ``on``, from 0 to 1.

        Raises:
            ValueError: the flag is no switch; the message says why.
        """
        split = self._split()
        if self.state == "DISABLED":
            raise ValueError("its state is DISABLED, so each application takes its own default")
        if split is None:
            return 1.0 if self.default_variant == ON else 0.0
        return split.on / split.total

    def with_share(self, share: float) -> Flag:
        """The same flag, on for ``share`` of the targeting keys, 0 to 1.

        Below 1 the default is ``off``: a request without a targeting key never gets ``on``
        before everybody does.

        Raises:
            ValueError: the flag is no switch, or the share cannot be written exactly.
        """
        split, weight = self._split(), weight_of(share)
        by = split.by if split else ()
        if weight in (0, WHOLE) and not by:
            targeting: dict[str, Json] = {}
        else:
            targeting = {"fractional": [*by, [ON, weight], [OFF, WHOLE - weight]]}
        changed = {
            "state": "ENABLED",
            "default_variant": ON if weight == WHOLE else OFF,
            "targeting": targeting,
        }
        return self.model_copy(update=changed)

    @property
    def is_killed(self) -> bool:
        """Whether ``killed`` would change nothing: nobody gets anything but ``off``.

        A flag that is disabled and has an ``off`` is not: each application takes its own default.
        """
        return self == self.killed()

    def killed(self) -> Flag:
        """The same flag, off for everybody, whatever it looked like: a kill refuses nothing.

        One without a variant ``off`` is disabled, and each application takes its own default.
        """
        if OFF not in self.variants:
            return self.model_copy(update={"state": "DISABLED", "targeting": {}})
        changed = {"state": "ENABLED", "default_variant": OFF, "targeting": {}}
        return self.model_copy(update=changed)

    def _split(self) -> _Split | None:
        """How ``on`` and ``off`` are divided; None: everybody gets the default."""
        on, off = self.variants.get(ON), self.variants.get(OFF)
        if on is not True or off is not False or len(self.variants) != 2:
            raise ValueError("its variants must be exactly on: true and off: false")
        if self.default_variant not in (ON, OFF):
            raise ValueError("its defaultVariant must be on or off")
        return _Split.of(self.targeting) if self.targeting else None


@dataclass(frozen=True)
class _Split:
    """A ``fractional`` between ``on`` and ``off``; ``by``: what is hashed, if not the default."""

    on: int
    off: int
    by: tuple[Json, ...] = ()

    @property
    def total(self) -> int:
        return self.on + self.off

    @classmethod
    def of(cls, targeting: Mapping[str, Json]) -> _Split:
        parts = targeting.get("fractional")
        if set(targeting) != {"fractional"} or not isinstance(parts, list) or not parts:
            raise ValueError("its targeting must be nothing, or one `fractional` of on and off")
        by = () if isinstance(parts[0], list) else (parts[0],)
        if "$ref" in json.dumps(by):
            raise ValueError("its targeting uses $ref, which another file may not have")
        weights: dict[str, int] = {}
        for part in parts[len(by) :]:
            if not _is_weight(part) or part[0] in weights:
                raise ValueError(f"its fractional has {json.dumps(part)} instead of [on, 10]")
            weights[part[0]] = part[1]
        if next(iter(weights), ON) != ON or not sum(weights.values()):
            raise ValueError("its fractional must name on first, and some weight, to be sticky")
        return cls(weights.get(ON, 0), weights.get(OFF, 0), by)


def _is_weight(part: Json) -> bool:
    return (
        isinstance(part, list)
        and len(part) == 2
        and part[0] in (ON, OFF)
        and type(part[1]) is int
        and part[1] >= 0
    )


def weight_of(share: float) -> int:
    """A share from 0 to 1 in hundredths of a percent.

    Raises:
        ValueError: outside 0 to 1, or finer than a hundredth of a percent.
    """
    if not 0 <= share <= 1:  # also refuses NaN
        raise ValueError(f"{share} is not a share from 0% to 100%")
    weight = round(share * WHOLE)
    if abs(weight - share * WHOLE) > 1e-6:
        raise ValueError(f"{format_percent(share)} is finer than 0.01%")
    return weight


def check_steps(steps: Sequence[float]) -> str | None:
    """What is wrong with the steps of a ramp; None: nothing."""
    try:
        weights = [weight_of(step) for step in steps]
    except ValueError as error:
        return str(error)
    if not weights or weights[0] == 0 or weights != sorted(set(weights)):
        return "steps must grow from above 0%, such as [10%, 50%, 100%]"
    if weights[0] == WHOLE:
        return "100% alone leaves nobody without the flag to compare with; begin lower"
    return None


@dataclass(frozen=True)
class Definition:
    """A whole flagd file; what Slipway does not know of it (evaluators, metadata) is kept."""

    flags: Mapping[str, Flag]
    rest: Mapping[str, Json]

    @classmethod
    def empty(cls) -> Definition:
        return cls({}, {"$schema": SCHEMA})

    def to_text(self) -> str:
        flags = {name: flag.to_json() for name, flag in self.flags.items()}
        return json.dumps({**self.rest, "flags": flags}, indent=2, ensure_ascii=False) + "\n"

    def share(self, name: str) -> float:
        """Share of one flag. Raises UsageError SLP080: there is no such flag, or no switch."""
        try:
            return self._flag(name).share
        except ValueError as error:
            raise _not_ours(name, str(error)) from None

    def with_share(self, name: str, share: float) -> Definition:
        """One flag changed, all others as they are. Raises UsageError SLP080."""
        try:
            changed = self._flag(name).with_share(share)
        except ValueError as error:
            raise _not_ours(name, str(error)) from None
        return replace(self, flags={**self.flags, name: changed})

    def killed(self, names: Iterable[str]) -> Definition:
        """These flags off for everybody; those that the definition lacks are off already."""
        off = {name: self.flags[name].killed() for name in names if name in self.flags}
        return replace(self, flags={**self.flags, **off})

    def carrying(self, source: Definition, names: Iterable[str]) -> Definition:
        """With the flags that a release carries: new ones off, known ones as they are now.

        Raises:
            UsageError: SLP080, the source lacks one, or it is no switch.
        """
        flags = dict(self.flags)
        for name in names:
            if name in flags:
                self.with_share(name, 0.0)  # one that could not be killed must not be carried
            else:
                flags[name] = source.with_share(name, 0.0).flags[name]
        return replace(self, flags=flags)

    def _flag(self, name: str) -> Flag:
        if name not in self.flags:
            raise ValueError(f"it is not there; known here: {', '.join(self.flags) or 'none'}")
        return self.flags[name]


def _not_ours(name: str, problem: str) -> UsageError:
    return UsageError(
        "SLP080",
        f"flag {name!r} cannot be changed: {problem}",
        help="see docs/flags.md, section `a flag that can ramp`",
    )


def parse(text: str, where: str) -> Definition:
    """Read a flagd file.

    Args:
        text: its content, JSON.
        where: its path, used in messages.

    Raises:
        UsageError: SLP080 with a sentence for every problem.
    """
    try:
        document = json.loads(text, object_pairs_hook=_no_twice, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise _invalid(where, [f"it is not JSON: {error}"]) from None
    if not isinstance(document, dict) or not isinstance(document.get("flags"), dict):
        raise _invalid(where, ['expected an object with "flags": {...}'])
    flags: dict[str, Flag] = {}
    problems = list(_wrong_around(document))
    for name, raw in document["flags"].items():
        try:
            flags[name] = Flag.model_validate(raw)
        except ValidationError as error:
            problems += [f"flag {name!r}: {_sentence(e)}" for e in error.errors()]
    if problems:
        raise _invalid(where, problems)
    return Definition(flags, {k: v for k, v in document.items() if k != "flags"})


def _wrong_around(document: Mapping[str, Json]) -> Iterator[str]:
    """What the provider refuses beside the flags; it would then keep its old ones, unsaid."""
    metadata = document.get("metadata", {})
    if not isinstance(metadata, dict):
        yield "`metadata` must be an object"
    elif any(not isinstance(value, str | int | float) for value in metadata.values()):
        yield "`metadata` may hold texts, numbers and truth values only"
    if not isinstance(document.get("$evaluators", {}), dict):
        yield "`$evaluators` must be an object"


def _no_twice(pairs: list[tuple[str, Json]]) -> dict[str, Json]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(n for n in names if names.count(n) > 1)!r} is there twice")
    return found


def _no_constant(text: str) -> None:
    raise ValueError(f"{text} is no number")


def _sentence(error: Mapping[str, Any]) -> str:
    field = ".".join(str(part) for part in error["loc"])
    if error["type"] == "missing":
        return f"`{field}` is required"
    if error["type"] == "extra_forbidden":
        return f"`{field}` is no field of flagd's"
    message = str(error.get("ctx", {}).get("error") or error["msg"])
    return f"{field + ': ' if field else ''}{message[0].lower()}{message[1:]}"


def _invalid(where: str, problems: Sequence[str]) -> UsageError:
    return UsageError(
        "SLP080",
        f"{where} is no flagd definition: {problems[0]}",
        help="correct it; the format is at https://flagd.dev/reference/flag-definitions/",
        where=where,
        detail="\n".join(problems),
    )
