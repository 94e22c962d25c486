"""Pages about the command line, made from the code so that they cannot disagree with it.

``python -m deployments.pages`` writes docs/errors.md, docs/commands.md and
docs/application.schema.json; tests compare them with what this module makes.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deployments.console import EXIT_CODES, nearest
from domain.errors import CATALOGUE, Page, UsageError

if TYPE_CHECKING:
    from deployments.console import Console

DOCS = Path(__file__).resolve().parent.parent / "docs"


def explain(code: str, console: Console) -> int:
    """Raises UsageError SLP000 for a code that there is not."""
    page = CATALOGUE.get(code.upper())
    if page is None:
        raise UsageError(
            "SLP000",
            f"there is no error code {code!r}",
            help=f"{nearest(code.upper(), CATALOGUE)}; all of them are in docs/errors.md",
        )
    console.finish("\n".join(_explained(page)), {**vars(page)})
    return 0


def _explained(page: Page) -> Iterator[str]:
    yield f"{page.code}: {page.title}"
    yield ""
    yield from textwrap.wrap(page.meaning, 78)
    yield ""
    yield from textwrap.wrap(f"What to do: {page.fix}", 78)
    yield ""
    yield f"exit code {page.exit_code}: {EXIT_CODES[page.exit_code]}"


def errors_page() -> str:
    """docs/errors.md."""
    lines = [
        "# Errors",
        "",
        "Made from `domain/errors.py` by `python -m deployments.pages`; "
        "`slipway explain CODE` prints one.",
        "",
        *_exit_codes(),
    ]
    for page in CATALOGUE.values():
        lines += ["", f"## {page.code}: {page.title}", "", page.meaning, ""]
        lines += [f"**What to do:** {page.fix}", "", f"Exit code {page.exit_code}."]
    return "\n".join(lines) + "\n"


def _exit_codes() -> list[str]:
    rows = [f"| {code} | {meaning} |" for code, meaning in EXIT_CODES.items()]
    return ["| exit code | meaning |", "|---|---|", *rows]


def commands_page() -> str:
    """docs/commands.md."""
    import typer

    from deployments.cli import PROGRAM, app
    from deployments.command import EVERYWHERE

    lines = [
        "# Commands",
        "",
        "Made from `deployments/cli.py` by `python -m deployments.pages`. Every command takes:",
        "",
        *[f"- `{switch}`: {meaning}" for switch, meaning in EVERYWHERE.items()],
        "",
        "The result is on stdout and everything else on stderr. Exit codes:",
        "",
        *_exit_codes(),
    ]
    for path, one in _commands(typer.main.get_command(app), PROGRAM):
        lines += ["", f"## {path}", "", *_described(one)]
    return "\n".join(lines) + "\n"


def _commands(group: Any, path: str) -> Iterator[tuple[str, Any]]:
    for name, one in group.commands.items():
        if hasattr(one, "commands"):
            yield from _commands(one, f"{path} {name}")
        else:
            yield f"{path} {name}", one


def _described(one: Any) -> Iterator[str]:
    from deployments.command import split_help

    text, examples = split_help(one.help or "")
    yield text
    yield from ["", "```", *examples, "```"]
    shown = [p for p in one.params if p.name != "help"]
    if shown:
        yield ""
    for parameter in shown:
        words = ", ".join(parameter.opts) if parameter.param_type_name == "option" else ""
        name = words or parameter.metavar or parameter.name
        yield f"- `{name}`{' (required)' if parameter.required else ''}: {parameter.help}"


def schema_file() -> str:
    """docs/application.schema.json."""
    from domain.application import json_schema

    return json.dumps(json_schema(), indent=2, ensure_ascii=False) + "\n"


def write(folder: Path = DOCS) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "errors.md").write_text(errors_page(), encoding="utf-8")
    (folder / "commands.md").write_text(commands_page(), encoding="utf-8")
    (folder / "application.schema.json").write_text(schema_file(), encoding="utf-8")


if __name__ == "__main__":
    write()
