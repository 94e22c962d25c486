"""Names of runs: what, of which application and version, where. Never a path, never an animal."""

from __future__ import annotations

from prefect.runtime import flow_run

from blocks.application_file import read_application
from domain.artifact import short
from domain.errors import SlipwayError

LONGEST = 60


def run_name() -> str:
    """``release diet-game 1.1.0 production`` from the parameters of the run."""
    given = flow_run.parameters
    words = [flow_run.flow_name, *_subject(given), str(given.get("environment") or "")]
    return " ".join(word for word in words if word)[:LONGEST]


def _subject(given: dict[str, str]) -> tuple[str, ...]:
    """Application and version, as far as the parameters tell."""
    if name := given.get("application"):
        return (name,)
    if source := given.get("source"):
        try:
            application = read_application(source)
        except SlipwayError:
            return (source[-LONGEST // 2 :],)  # the flow itself says what is wrong with it
        return application.name, given.get("version") or application.version or ""
    return (short(given.get("digest", "")),)
