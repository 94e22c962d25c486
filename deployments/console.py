"""How the command line talks: the result on stdout, everything else on stderr.

With ``--json`` stdout is exactly one JSON document, also when the command fails. Colour only
repeats what words and symbols already say.
"""

from __future__ import annotations

import difflib
import json
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TextIO

from domain.errors import SlipwayError

ColorChoice = Literal["auto", "always", "never"]

EXIT_CODES: Mapping[int, str] = {
    0: "done; of a release: the new version is live",
    1: "failed, but safe: it was stopped or taken back",
    2: "the request or a file is wrong; nothing was done",
    3: "failed, and a person must look: the system may not be as it should",
    4: "credentials are missing or were refused",
    5: "waits for a person's approval",
    6: "outcome unknown: stopped waiting, or the run left no result",
    130: "interrupted or cancelled",
}
"""The only exit codes that a command has."""

_STYLES = {"red": "31", "green": "32", "yellow": "33", "blue": "34", "dim": "2", "bold": "1"}
_OUTCOMES = {
    "PROMOTED": ("✔", "green"),
    "ROLLED_BACK": ("↩", "yellow"),
    "ROLLBACK_FAILED": ("✖", "red"),
    "REFUSED": ("✖", "red"),
}


@dataclass
class Console:
    """What was asked of the output, and the way to it."""

    json: bool = False
    quiet: bool = False
    verbose: int = 0
    debug: bool = False
    color: ColorChoice = "auto"
    environ: Mapping[str, str] = field(default_factory=lambda: os.environ)
    finished: bool = False

    @property
    def interactive(self) -> bool:
        """Whether a person can be asked; never in CI, where a question is a hang."""
        if self.environ.get("CI") or self.json:
            return False
        return sys.stdin.isatty() and sys.stderr.isatty()

    @property
    def github(self) -> bool:
        return self.environ.get("GITHUB_ACTIONS") == "true"

    def say(self, text: str) -> None:
        """Progress for people."""
        if not self.quiet:
            print(text, file=sys.stderr, flush=True)

    def detail(self, text: str) -> None:
        """What only ``-v`` shows."""
        if self.verbose:
            self.say(self.paint(text, "dim"))

    def warn(self, text: str) -> None:
        print(f"{self.paint('warning:', 'yellow')} {text}", file=sys.stderr, flush=True)

    def paint(self, text: str, style: str, stream: TextIO | None = None) -> str:
        if not self._coloured(stream or sys.stderr):
            return text
        return f"\x1b[{_STYLES[style]}m{text}\x1b[0m"

    def outcome(self, name: str, stream: TextIO | None = None) -> str:
        symbol, style = _OUTCOMES.get(name, ("?", "yellow"))
        return self.paint(f"{symbol} {name}", style, stream)

    def finish(
        self,
        text: str,
        document: Mapping[str, Any],
        *,
        next: Sequence[str] = (),
        undo: str = "",
    ) -> None:
        """The result of a command that did what it was asked."""
        self.finished = True
        if self.json:
            extra: dict[str, Any] = {"next": list(next[:3])} | ({"undo": undo} if undo else {})
            self._document({**document, **extra})
        elif text:
            print(text, flush=True)
        self.hints(next, undo)

    def hints(self, next: Sequence[str] = (), undo: str = "") -> None:
        if undo:
            self.say(f"to undo: {undo}")
        for line in next[:3]:
            self.say(f"next: {line}")

    def error(
        self,
        error: SlipwayError,
        *,
        next: Sequence[str] = (),
        document: Mapping[str, Any] | None = None,
    ) -> None:
        """An expected error, on every surface: text, JSON and GitHub annotation."""
        self.finished = True
        if self.json:
            whole = {**(document or {}), "error": error.to_dict(), "next": list(next[:3])}
            self._document(whole)
        head = self.paint(f"error[{error.code}]:", "red")
        lines = [f"{head} {error.cause}"]
        if error.where:
            lines.append(f"  where: {error.where}")
        lines += [f"  | {line}" for line in error.detail.splitlines()]
        lines.append(f"  help: {error.help}")
        lines.append(f"  docs: slipway explain {error.code}")
        print("\n".join(lines), file=sys.stderr, flush=True)
        if self.github:
            self.say_github(error)
        self.hints(next)

    def say_github(self, error: SlipwayError) -> None:
        """An annotation at the file and line that the error is about, when it names one."""
        path, _, rest = (error.where or "").partition(":")
        line = rest.partition(":")[0]
        place = f" file={_property(path)},line={line}" if path and line.isdigit() else ""
        title = f"{',' if place else ' '}title={error.code}"
        print(f"::error{place}{title}::{_data(f'{error.cause}. {error.help}')}", file=sys.stderr)

    def group(self, title: str) -> None:
        if self.github:
            print(f"::group::{_data(title)}", file=sys.stderr, flush=True)

    def end_group(self) -> None:
        if self.github:
            print("::endgroup::", file=sys.stderr, flush=True)

    def job_summary(self, markdown: str) -> None:
        """Append to the summary page of a GitHub job."""
        path = self.environ.get("GITHUB_STEP_SUMMARY")
        if not (self.github and path):
            return
        try:
            with open(path, "a", encoding="utf-8") as file:
                file.write(markdown.rstrip() + "\n")
        except OSError as error:
            self.warn(f"the job summary could not be written: {error}")

    def _coloured(self, stream: TextIO) -> bool:
        if self.color != "auto":
            return self.color == "always"
        if self.environ.get("NO_COLOR") or self.environ.get("TERM") == "dumb":
            return False
        return stream.isatty()

    def _document(self, document: Mapping[str, Any]) -> None:
        print(json.dumps(document, indent=2, ensure_ascii=False, default=str), flush=True)


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as their widest cell; nothing is ever cut."""
    whole = [tuple(heads), *(tuple(row) for row in rows)]
    widths = [max(len(row[i]) for row in whole) for i in range(len(heads))]
    lines = ("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) for row in whole)
    return "\n".join(line.rstrip() for line in lines)


def nearest(word: str, known: Iterable[str]) -> str:
    """What may have been meant, as a sentence."""
    names = list(known)
    close = difflib.get_close_matches(word, names, n=1, cutoff=0.6)
    return f"did you mean `{close[0]}`?" if close else f"known: {', '.join(names) or 'none'}"


def _data(text: str) -> str:
    """Escaped as GitHub's workflow commands want it."""
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
