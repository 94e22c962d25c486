"""Taking secrets out of what is about to leave: by name, by shape and by known value.

Three nets, because each alone has holes: a field called ``password`` is taken out whatever it
holds, a text that looks like a credential wherever it stands, and a value that is known to be
secret even where neither its place nor its look gives it away. A doubt is taken out.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any
from urllib.parse import quote, quote_plus

from pydantic import BaseModel

FILTERED = "[Filtered]"
SHORTEST = 6
"""Characters below which a known value is left alone: ``on`` may be a password and a word."""

LONGEST = 20_000
"""Characters of one text that are kept: a huge one must not hold up whoever sends it."""

_DEPTH, _NODES = 5, 2000
# Every repetition below has an upper bound: without one, a long word takes quadratic time.
_WORD = (
    r"(?:passw(?:or)?d|passphrase|pwd|secret|token|credential|authori[sz]ation|cookie|bearer|dsn"
    r"|(?:api|access|account|private|signing|encryption|master|session)[_-]?key"
    r"|(?:database|redis|broker|amqp|mongo\w*)[_-]?ur[il]|connection[_-]?string|session[_-]?id)"
)
_NAME = re.compile(rf"{_WORD}|[_-](?:key|pass|pw|auth|salt)$|^(?:pass|auth|jwt|pin)$", re.I)
_QUOTED = r"""\\?"(?:\\.|[^"\\])*"?|\\?'(?:\\.|[^'\\])*'?"""
_PAIR = re.compile(
    rf"([\w.-]{{0,40}}{_WORD}[\w.-]{{0,40}})(\\?[\"']?\s*(?:=>|[:=])\s*)({_QUOTED}|[^\s,;&\"')}}\]]+)",
    re.I,
)
_OPTION = re.compile(rf"(--?[\w-]{{0,40}}{_WORD}[\w-]{{0,40}})\s+(?!-)({_QUOTED}|\S+)", re.I)
_USERINFO = re.compile(r"([a-z][a-z0-9+.-]{0,20}://)[^\s\"'<>]{0,1000}@", re.I)
_URL_PASSWORD = re.compile(
    r"[a-z][a-z0-9+.-]{0,20}://[^\s\"'<>:/@]{0,200}:([^\s\"'<>]{1,1000})@", re.I
)
_COOKIES = re.compile(r"((?:set-)?cookie\\?[\"']?\s*[:=]\s*)[^\n]+", re.I)
_SCHEME = re.compile(r"\b(bearer|basic|digest|token)\s+[\w.~+/=-]{8,}", re.I)
_SHAPES = re.compile(
    r"-----BEGIN [A-Z ]{0,40}PRIVATE KEY-----.*?(?:-----END [A-Z ]{0,40}PRIVATE KEY-----|\Z)"
    r"|AGE-SECRET-KEY-1[0-9A-Z]{20,}"
    r"|\b(?:AKIA|ASIA)[0-9A-Z]{16}\b"
    r"|\bAIza[\w-]{35}"
    r"|\bgh[pousr]_\w{20,}|\bgithub_pat_\w{20,}|\bglpat-[\w-]{16,}"
    r"|\bxox[abeprs]-[\w-]{10,}|\bsk[-_][\w-]{20,}|\bpn[ub]_\w{16,}"
    r"|\beyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]*",
    re.S,
)


def is_secret_name(name: str) -> bool:
    """Whether what bears this name must not leave: ``DATABASE_URL``, ``api_key``, ``token``."""
    return _NAME.search(name) is not None


def without_credentials(text: str) -> str:
    """The text without logins in its URLs and without keys of a known shape.

    The narrow net, for what people must still be able to read: errors, the journal, reports.
    """
    return _USERINFO.sub(rf"\1{FILTERED}@", _SHAPES.sub(FILTERED, text))


class Redactor:
    """Takes secrets out of texts and out of JSON-like trees.

    Args:
        secrets: values known to be secret; those shorter than ``SHORTEST`` are not looked for.
    """

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        spellings = {s for secret in secrets if len(secret) >= SHORTEST for s in _spelled(secret)}
        longest_first = sorted(spellings, key=lambda text: (-len(text), text))
        self._known = re.compile("|".join(map(re.escape, longest_first))) if spellings else None

    def text(self, text: str) -> str:
        """The text without its secrets; of a very long one its beginning."""
        text = text[:LONGEST]
        if self._known is not None:
            text = self._known.sub(FILTERED, text)
        text = _SHAPES.sub(FILTERED, text)
        text = _USERINFO.sub(rf"\1{FILTERED}@", text)
        text = _COOKIES.sub(rf"\1{FILTERED}", text)
        text = _SCHEME.sub(rf"\1 {FILTERED}", text)
        text = _PAIR.sub(rf"\1\2{FILTERED}", text)
        return _OPTION.sub(rf"\1 {FILTERED}", text)

    def tree(self, value: Any) -> Any:
        """The same tree without its secrets; what is neither tree, text nor number is dropped."""
        match value:
            case None | bool() | int() | float():
                return value
            case str():
                return self.text(value)
            case Mapping():
                return {self.text(str(k)): self._entry(str(k), v) for k, v in value.items()}
            case list() | tuple() | set() | frozenset():
                return [self.tree(item) for item in value]
            case _:
                return FILTERED

    def _entry(self, name: str, value: Any) -> Any:
        return FILTERED if value is not None and is_secret_name(name) else self.tree(value)


def _spelled(secret: str) -> Iterator[str]:
    """How a value may be written in a URL, in a representation, in JSON."""
    yield secret
    yield quote(secret, safe="")
    yield quote_plus(secret)
    yield repr(secret)[1:-1]
    yield json.dumps(secret)[1:-1]
    yield json.dumps(secret, ensure_ascii=False)[1:-1]


def secrets_in(named: Mapping[str, Any]) -> frozenset[str]:
    """The secret values among named objects, to be given to a ``Redactor``.

    Looks into mappings, sequences, models and data classes, to a bounded depth and number; a
    ``SecretStr`` gives its value, a text what its name or a password in its URL make secret.
    """
    found: set[str] = set()
    waiting = [(name, value, 0) for name, value in named.items()]
    for name, value, depth in waiting:  # grows while it is walked: what is near comes first
        if hasattr(type(value), "get_secret_value"):
            name, value = "secret", value.get_secret_value()
        if isinstance(value, bytes):
            value = value.decode("utf-8", "replace")
        if isinstance(value, str):
            found |= _secret_parts(name, value[:LONGEST])
        elif depth < _DEPTH and len(waiting) < _NODES:
            inside = islice(_parts(value), _NODES - len(waiting))
            waiting += [(inner or name, item, depth + 1) for inner, item in inside]
    return frozenset(found)


def _secret_parts(name: str, value: str) -> set[str]:
    parts = set(_URL_PASSWORD.findall(value))
    return parts | {value} if is_secret_name(name) else parts


def _parts(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        yield from ((str(k), v) for k, v in value.items())
    elif isinstance(value, list | tuple | set | frozenset):
        yield from (("", item) for item in value)
    elif isinstance(value, BaseModel):
        yield from value.__dict__.items()
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        # Not `asdict`: it would copy, and a property must not run.
        yield from ((f.name, getattr(value, f.name, None)) for f in dataclasses.fields(value))
