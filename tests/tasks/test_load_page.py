"""The page of a load test, drawn by a real browser where there is one, and read by a parser."""

from __future__ import annotations

import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest

from domain.application import Objectives
from domain.load_report import LoadOutcome, LoadReport, figures_of
from domain.load_verdict import judge
from tasks.load_page import WORDS, page_of
from tests.domain.test_load_gate import report
from tests.domain.test_load_verdict import PROFILE, fail_some, run_of


def full_report(**more: object) -> LoadReport:
    run = run_of(**more)  # type: ignore[arg-type]
    figures = figures_of(run, judge(run, Objectives()))
    return report(**{"profile": PROFILE, **figures})


class Reader(HTMLParser):
    """Checks nesting, and collects what a reader needs."""

    VOID = ("meta", "br", "link", "img")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def read(page: str) -> Reader:
    reader = Reader()
    reader.feed(page)
    assert reader.open == []
    return reader


def test_a_page_has_the_verdict_first_and_every_chart_a_table() -> None:
    made = full_report()
    page = read(page_of(made))
    text = "".join(page.text)
    assert text.index("✔ passed") < text.index("Limits") < text.index("Throughput")
    assert made.reason in text and "shop 1.0 in staging" in text
    charts = sum(tag == "svg" and attrs.get("role") == "img" for tag, attrs in page.tags)
    tables = sum(tag == "details" for tag, _ in page.tags)
    assert charts == tables + 1 == 6  # the heat map's numbers are those of the latencies
    assert {attrs["lang"] for tag, attrs in page.tags if tag == "html"} == {"en"}
    assert all("scope" in attrs for tag, attrs in page.tags if tag == "th")


def test_a_page_asks_nobody_for_anything() -> None:
    page = read(page_of(full_report()))
    assert not [t for t, _ in page.tags if t in ("script", "link", "img", "iframe")]
    assert not [a for _, a in page.tags if "src" in a or "href" in a]
    assert len(page_of(full_report())) < 1_000_000


def test_the_same_report_makes_the_same_page() -> None:
    made = full_report()
    assert page_of(made) == page_of(LoadReport.model_validate_json(made.model_dump_json()))


def test_what_an_application_says_cannot_break_the_page() -> None:
    nasty = "<script>alert(1)</script>"
    page = page_of(report(reason=nasty, behaviours=nasty, outcome=LoadOutcome.FAILED))
    assert nasty not in page
    assert nasty in "".join(read(page).text)


@pytest.mark.parametrize("outcome", list(LoadOutcome))
def test_every_outcome_has_a_word_and_a_sign_of_its_own(outcome: LoadOutcome) -> None:
    assert WORDS[outcome] in page_of(report(outcome=outcome, profile=None))
    assert len({word[0] for word in WORDS.values()}) == len(LoadOutcome)


def test_failures_are_listed_with_their_count() -> None:
    text = "".join(read(page_of(full_report(change=fail_some(2)))).text)
    assert "✖ failed" in text and "× HTTP 500" in text


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_and_lines_can_be_told_from_the_page(scheme: str) -> None:
    """WCAG 2.2: text 4.5 to 1, graphics 3 to 1, from the colours of the page itself."""
    blocks = re.findall(r":root \{(.*?)\}", page_of(report()), re.DOTALL)
    colours = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", blocks[scheme == "dark"]))
    for name in ("text", "quiet", "good", "bad"):
        for ground in ("page", "soft"):
            assert contrast(colours[name], colours[ground]) >= 4.5, (name, ground)
    for name in ("line-0", "line-1", "line-2"):
        for ground in ("page", "judged"):
            assert contrast(colours[name], colours[ground]) >= 3, (name, ground)


def contrast(one: str, other: str) -> float:
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def luminance(colour: str) -> float:
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_a_browser_draws_it(tmp_path: Path) -> None:
    """A machine without Chromium has only the parser's word for it."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    page = tmp_path / "page.html"
    page.write_text(page_of(full_report()))
    read(page.read_text())
    if browser is None:
        return
    done = subprocess.run(
        [browser, "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=2000",
         f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", page.as_uri()],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.stdout.count("<path") >= 10, done.stderr[-500:]
    assert "✔ passed" in done.stdout
