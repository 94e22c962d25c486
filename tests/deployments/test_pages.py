"""Generated pages are in step with the code, and codes with what is raised."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from deployments import pages
from deployments.console import EXIT_CODES
from domain.errors import CATALOGUE

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("deployments", "sandbox", "flows", "tasks", "blocks", "domain")


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("errors.md", pages.errors_page),
        ("commands.md", pages.commands_page),
        ("application.schema.json", pages.schema_file),
    ],
)
def test_a_generated_page_is_in_step(name: str, make: object) -> None:
    assert callable(make)
    assert (ROOT / "docs" / name).read_text() == make(), "run: python -m deployments.pages"


def test_every_code_has_an_exit_code_of_the_table() -> None:
    for code, page in CATALOGUE.items():
        assert page.code == code and re.fullmatch(r"SLP\d{3}", code)
        assert page.exit_code in EXIT_CODES and page.exit_code != 0


def test_every_code_that_is_raised_has_a_page() -> None:
    for room in ROOMS:
        for file in (ROOT / room).rglob("*.py"):
            for code in re.findall(r"\bSLP\d{3}\b", file.read_text()):
                assert code in CATALOGUE, f"{file}: {code}"
