"""Table artifacts as Prefect shows them: it cuts cells at about forty characters, in silence."""

from __future__ import annotations

CELL = 40


def cell(text: str, *, keep_end: bool = False) -> str:
    """One line that fits; what is cut shows as an ellipsis. A test's name tells most at its end."""
    line = " ".join(text.split())
    if len(line) <= CELL:
        return line
    return "…" + line[-(CELL - 1) :] if keep_end else line[: CELL - 1] + "…"
