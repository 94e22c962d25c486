"""Contracting a schema: looked at first, written down before, and never twice for nothing."""

from __future__ import annotations

from blocks.journal import Journal
from blocks.platform import Platform
from blocks.records import Records
from domain.contract import ACTION, check_contract
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
