"""Which files of a source tree the scanners look at: the ones that the build takes."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from blocks.builder import list_source
from blocks.scanners.evidence import blind


def source_files(root: Path) -> list[PurePosixPath]:
    """Every regular file of the source, relative to it, sorted.

    Symbolic links are not followed: what they point at inside the source is listed as itself.

    Raises:
        Failed: SLP041 when there is no such folder, or a link leads out of it: what ships
            through such a link could not be scanned.
    """
    if not root.is_dir():
        raise blind(
            "tried to list the source and found no folder there",
            help="pass the folder that holds the application",
            where=root.name,
        )
    fence = root.resolve()
    files: list[PurePosixPath] = []
    for name in list_source(root):
        path = root / name
        if path.is_symlink():
            _check_link(path, fence, name)
        elif path.is_file():
            files.append(PurePosixPath(name))
    return files


def is_test(file: PurePosixPath) -> bool:
    """Whether a Python file is test code: it does not serve, and asserts by trade."""
    return (
        not {"test", "tests"}.isdisjoint(file.parts[:-1])
        or file.name == "conftest.py"
        or file.name.startswith("test_")
        or file.stem.endswith("_test")
    )


def _check_link(link: Path, fence: Path, name: str) -> None:
    if link.exists() and not link.resolve().is_relative_to(fence):
        raise blind(
            "a symbolic link leads out of the source, and what it points at was not scanned",
            help="put the file itself into the source, or remove the link",
            where=name,
        )
