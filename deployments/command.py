"""Commands as this program has them: examples first in the help, the same switches everywhere."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from deployments.console import Console

EVERYWHERE: Mapping[str, str] = {
    "--json": "One JSON document on stdout, for errors too.",
    "-q, --quiet": "No progress; results and errors only.",
    "-v, --verbose": "More progress; -vv for everything.",
    "--debug": "Tracebacks.",
    "--color WHEN": "auto (default), always or never; NO_COLOR is respected.",
}
"""Switches that every command takes, in any place."""

_FLAGS = {"--json": "json", "-q": "quiet", "--quiet": "quiet", "--debug": "debug"}


class SwitchError(Exception):
    """A switch of EVERYWHERE was used wrongly."""


def take_switches(argv: Sequence[str]) -> tuple[Console, list[str]]:
    """The console that the switches ask for, and the arguments without them.

    They are read before the command is parsed, so that a mistyped command is already reported
    in the form that was asked for.
    """
    console = Console()
    rest: list[str] = []
    words = iter(argv)
    for word in words:
        if word == "--":
            return console, [*rest, word, *words]
        if word in _FLAGS:
            setattr(console, _FLAGS[word], True)
        elif word in ("-v", "-vv", "--verbose"):
            console.verbose += word.count("v") if word != "--verbose" else 1
        elif word == "--color" or word.startswith("--color="):
            chosen = word.partition("=")[2] if "=" in word else next(words, "")
            if chosen not in ("auto", "always", "never"):
                raise SwitchError(f"--color is {chosen!r}; use auto, always or never")
            console.color = chosen  # type: ignore[assignment]
        else:
            rest.append(word)
    return console, rest


def split_help(text: str) -> tuple[str, list[str]]:
    """A docstring's text, and the indented lines below its last line ``Examples:``."""
    text, _, examples = inspect.cleandoc(text or "").partition("Examples:\n")
    return text.strip(), [line.strip() for line in examples.splitlines() if line.strip()]


class _ExamplesFirst:
    help: str | None

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Examples, then usage, then the words: most people only need the first."""
        text, examples = split_help(self.help or "")
        if examples:
            with formatter.section("Examples"):
                for line in examples:
                    formatter.write(f"  {line}\n")
            formatter.write("\n")
        self.format_usage(ctx, formatter)  # type: ignore[attr-defined]
        formatter.write_paragraph()
        formatter.write_text(text)
        self.format_options(ctx, formatter)  # type: ignore[attr-defined]
        with formatter.section("Everywhere"):
            formatter.write_dl(list(EVERYWHERE.items()))

    def get_short_help_str(self, limit: int = 80) -> str:
        return split_help(self.help or "")[0].split("\n\n")[0].replace("\n", " ").rstrip(".")


class Command(_ExamplesFirst, TyperCommand):
    """A command whose docstring may end in ``Examples:``."""


class Group(_ExamplesFirst, TyperGroup):
    """A group of commands; called without one it shows its help."""


def new_app(help: str) -> typer.Typer:
    return typer.Typer(
        cls=Group,
        help=help,
        rich_markup_mode=None,  # Rich costs a third of the time that help may take
        pretty_exceptions_enable=False,
        add_completion=False,
        invoke_without_command=True,
        context_settings={"help_option_names": ["-h", "--help"]},
    )


def command(app: typer.Typer, name: str) -> Callable[[Callable[..., int]], Callable[..., int]]:
    """Register a function that returns its exit code."""
    return app.command(name, cls=Command, rich_help_panel=None)
