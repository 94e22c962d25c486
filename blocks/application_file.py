"""Reading application.yaml from a folder."""

from __future__ import annotations

from pathlib import Path

from domain.application import FILE_NAME, Application, parse
from domain.errors import UsageError
from domain.flags import Definition
from domain.flags import parse as parse_flags


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


def read_flags(application: Application, source: str | Path) -> str:
    """The content of the flagd file that the application names, checked; empty: it names none.

    Raises:
        UsageError: SLP080, it is not there, not valid, or a carried flag is no on/off switch.
    """
    if application.flags is None:
        return ""
    path = application_file(source).parent / application.flags.file
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        seen = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise UsageError(
            "SLP080",
            f"application.yaml names the flagd file {application.flags.file!r}; tried to read it "
            f"and saw: {seen}",
            help="correct `flags.file` in application.yaml, or write the file",
            where=str(path),
        ) from error
    Definition.empty().carrying(parse_flags(text, str(path)), application.flags.carry)
    return text


def application_file(source: str | Path) -> Path:
    path = Path(source).expanduser().absolute()
    return path if path.name == FILE_NAME else path / FILE_NAME
