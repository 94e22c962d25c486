"""Contracting a schema: looked at first, written down before, and never twice for nothing."""

from __future__ import annotations

from blocks.journal import Journal
from blocks.platform import Platform
from blocks.records import Records
from domain.contract import ACTION, Contraction, check_contract, contraction_of
from domain.errors import Failed
from domain.journal import Kind, Release, live
from tasks.databases import contract_database


def contract_schema(platform: Platform, journal: Journal) -> Release:
    """Run the contraction of the live release; returns that release.

    Raises:
        UsageError: SLP006, SLP064.
        Failed: SLP063 when a version that needs the old schema may come back; SLP052 when the
            command failed.
    """
    current = live(journal.history())
    record = Records(platform.store).record(current.digest) if current else None
    database = record.application.database if record else None
    there = platform.cluster.workloads(journal.application, journal.environment)
    release = check_contract(
        journal.history(),
        [workload.name for workload in there],
        database.contract if database else None,
        f"{journal.application} in {journal.environment}",
    )
    assert record is not None
    journal.append(release.number, Kind.INTENT, {"action": ACTION})
    contract_database(platform, record, journal.environment)
    journal.append(release.number, Kind.DONE, {"action": ACTION})
    return release


def contract_when_due(platform: Platform, journal: Journal) -> str:
    """Run what the live release asks for, or what was begun and never ended; a word about it.

    Raises:
        Failed: SLP052 when the command failed.
    """
    current = live(journal.history())
    known = contraction_of(journal.entries, current.number) if current else Contraction.NOT_ASKED
    if known not in (Contraction.DUE, Contraction.BEGUN):
        return ""
    try:
        contract_schema(platform, journal)
    except Failed as error:
        if error.code != "SLP063":
            raise
        return f"the schema is not contracted yet: {error.cause}"
    return "the schema was contracted"


def require_whole(journal: Journal, release: int) -> None:
    """Raises Failed SLP052 for a promoted release whose contraction was begun and failed."""
    if contraction_of(journal.entries, release) is not Contraction.BEGUN:
        return
    where = f"{journal.application} --environment {journal.environment}"
    raise Failed(
        "SLP052",
        next(r.reason for r in journal.history() if r.number == release),
        help=f"the version serves, and no earlier one can come back; correct the contraction, "
        f"then run `slipway recover {where}`",
    )
