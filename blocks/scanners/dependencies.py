"""Dependencies against OSV advisories."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date
from pathlib import Path

from blocks.osv import Advisories, OsvApi, OsvDirectory, installed_packages, locked_packages
from blocks.scanners.evidence import NothingToDo, Seen, blind, report
from domain.advisories import Package, too_old
from domain.findings import ONLINE, Scanner, ScannerReport, ScanPolicy


def advisories_of(policy: ScanPolicy, base: Path) -> Advisories:
    """Where the policy takes its advisories from.

    Args:
        base: folder of application.yaml, to which a directory in the policy is relative.
    """
    if policy.advisories == ONLINE:
        return OsvApi()
    return OsvDirectory(base / policy.advisories, shown_as=policy.advisories)


def scan_installed(
    root: Path, advisories: Advisories, *, today: date, max_age_days: int, scope: str = ""
) -> ScannerReport:
    """Look up what a built bundle really holds; ``root`` is its virtual environment."""

    def packages() -> tuple[tuple[Package, ...], str]:
        found = installed_packages(root)
        return found, f"{len(found)} installed packages"

    return _scan(packages, advisories, today, max_age_days, scope)


def scan_lock(
    lock: Path | None,
    advisories: Advisories,
    *,
    today: date,
    max_age_days: int,
    scope: str = "",
) -> ScannerReport:
    """Look up what a requirements lock pins; ``None``: the service declares no packages."""

    def packages() -> tuple[tuple[Package, ...], str]:
        if lock is None:
            return (), "no lock file"
        found = locked_packages(lock)
        others = f", {len(found.left_out)} of other platforms left out" if found.left_out else ""
        return found.packages, f"{len(found.packages)} locked packages{others}"

    return _scan(packages, advisories, today, max_age_days, scope)


def _scan(
    packages: Callable[[], tuple[tuple[Package, ...], str]],
    advisories: Advisories,
    today: date,
    max_age_days: int,
    scope: str,
) -> ScannerReport:
    def work() -> Seen | NothingToDo:
        wanted, sentence = packages()
        if not wanted:
            return NothingToDo(f"the service declares no packages ({sentence})")
        found = advisories.lookup(wanted, today)
        if problem := too_old(found.newest, today, max_age_days):
            raise blind(
                f"checked {sentence} against {found.source}: {problem}",
                help="refresh the advisories, or raise `advisories_max_age_days` of the policy",
            )
        return Seen(
            checked=len(wanted),
            checked_against=f"{sentence} against {found.source}",
            findings=found.findings,
            tool="osv",
        )

    return report(Scanner.OSV, scope, "osv", work)
