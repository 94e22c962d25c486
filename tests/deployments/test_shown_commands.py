"""Every command that a page or an example shows is one that the command line takes."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from ruamel.yaml import YAML

from deployments.cli import app
from deployments.command import take_switches
from domain.application import parse as parse_application

ROOT = Path(__file__).resolve().parents[2]
WORKFLOW = ROOT / "examples" / "github" / "release.yml"
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/**/*.md")])
_END = {">", "<", "|", "||", "&", "&&", ";", "2>", ">>"}


def parse(words: list[str]) -> None:
    """Parse as the program does, without running anything."""
    _, rest = take_switches(words)
    here: Any = typer.main.get_command(app)
    context = here.make_context("slipway", rest, resilient_parsing=False)
    while hasattr(here, "commands") and (left := [*context._protected_args, *context.args]):
        name, here, rest = here.resolve_command(context, left)
        context = here.make_context(name, rest, parent=context)


def commands_in(text: str) -> Iterator[list[str]]:
    """The `slipway` calls of a shell text, cut at redirections and pipes."""
    for line in re.sub(r"\\\n\s*", " ", text).splitlines():
        lexer = shlex.shlex(line.strip(), posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        words = list(lexer)
        while "slipway" in words:
            words = words[words.index("slipway") + 1 :]
            end = next((i for i, word in enumerate(words) if word in _END), len(words))
            yield words[:end]


def in_blocks(page: str) -> Iterator[list[str]]:
    for block in re.findall(r"```(?:sh|console|)\n(.*?)```", page, re.S):
        calls = (line for line in block.splitlines() if re.match(r"(\S+=\S+ )*slipway ", line))
        yield from commands_in("\n".join(calls))


def in_sentences(page: str) -> Iterator[list[str]]:
    for quoted in re.findall(r"`(slipway [^`]+)`", re.sub(r"```.*?```", "", page, flags=re.S)):
        yield from commands_in(quoted)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_page_shows_commands_that_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    calls = [(words, True) for words in in_blocks(text)]
    calls += [(words, False) for words in in_sentences(text)]
    for words, whole in calls:
        try:
            parse(["0" if word == "N" else word for word in words])
        except typer.Exit:
            continue  # it asked for help
        except typer.TyperException as error:
            # A sentence may speak of a command without its arguments.
            if whole or type(error).__name__ != "MissingParameter":
                pytest.fail(f"`slipway {' '.join(words)}`: {error.format_message()}")


def workflow() -> dict[str, Any]:
    return dict(YAML(typ="safe").load(WORKFLOW.read_text(encoding="utf-8")))


def steps() -> list[dict[str, Any]]:
    return [step for job in workflow()["jobs"].values() for step in job["steps"]]


def test_the_workflow_calls_what_the_command_line_takes() -> None:
    calls = [words for step in steps() for words in commands_in(step.get("run", ""))]
    assert [words[0] for words in calls] == ["doctor", "release", "release", "cancel"]
    for words in calls:
        parse(words)


def test_the_workflow_ends_as_the_release_does() -> None:
    (release,) = [step for step in steps() if step.get("name") == "Release"]
    assert "--json" in release["run"]
    assert not release.get("continue-on-error")
    # A pipe or a second command would end with another code than the release.
    assert not re.search(r"[|;&]", release["run"])


def test_the_workflow_may_only_read_and_keeps_releases_of_an_environment_apart() -> None:
    whole = workflow()
    assert whole["permissions"] == {"contents": "read"}
    assert "inputs.environment" in whole["concurrency"]["group"]
    assert whole["concurrency"]["cancel-in-progress"] is False
    assert all("permissions" not in job for job in whole["jobs"].values())


def test_actions_are_pinned_by_major_version() -> None:
    used = [step["uses"] for step in steps() if "uses" in step]
    assert used
    assert all(re.fullmatch(r"actions/[a-z-]+@v\d+", action) for action in used)


def test_no_input_becomes_text_of_a_command() -> None:
    assert not any("${{" in step.get("run", "") for step in steps())


def test_a_wrong_command_is_seen() -> None:
    (words,) = commands_in("slipway release . --enviroment production > release.json")
    with pytest.raises(typer.TyperException):
        parse(words)


@pytest.mark.parametrize("page", ["releasing.md", "scanning.md"])
def test_an_application_yaml_that_a_page_shows_is_valid(page: str) -> None:
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    (shown,) = re.findall(r"```yaml\n(.*?)```", text, re.S)
    least = "name: shop\nservices: {web: {command: python -m shop}}\n"
    parse_application(shown if "services:" in shown else least + shown)


def anchors_of(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    heads = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_link_leads_to_a_file_and_a_heading_that_exist(page: Path) -> None:
    links = re.findall(r"\]\((?!https?:)([^)\s#]*)(?:#([^)\s]+))?\)", page.read_text("utf-8"))
    for path, anchor in links:
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), path
        assert not anchor or anchor in anchors_of(target), f"{path}#{anchor}"
