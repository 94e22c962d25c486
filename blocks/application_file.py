"""Reading application.yaml from a folder."""

from __future__ import annotations

from pathlib import Path

from domain.application import FILE_NAME, Application, parse
from domain.errors import UsageError


def read_application(source: str | Path) -> Application:
    """The application in a folder (or in the file itself).

    Raises:
        UsageError: SLP001 when there is none, SLP002 when it is not valid.
    """
    path = application_file(source)
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(
            "SLP002",
            f"{path} is not UTF-8 text: {error.reason} at byte {error.start}",
            help="save the file as UTF-8",
            where=str(path),
        ) from error
    except OSError as error:
        raise UsageError(
            "SLP001",
            f"looked for {path}, found nothing to read there ({error.strerror})",
            help=f"pass the folder that holds {FILE_NAME}, or write one with `slipway init`",
            where=str(path),
        ) from error
    return parse(text, str(path))


def application_file(source: str | Path) -> Path:
    path = Path(source).expanduser().absolute()
    return path if path.name == FILE_NAME else path / FILE_NAME
