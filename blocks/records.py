"""Build records and reports in an object store."""

from __future__ import annotations

import json

from pydantic import ValidationError

from blocks.object_store import AlreadyExists, ObjectStore
from domain.errors import Failed, NeedsPerson
from domain.release import BuildRecord, Report, record_digest


class Records:
    """Build records by digest, reports by flow run."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store

    def keep(self, record: BuildRecord) -> None:
        """Store a build record; one that is there already is the same by construction."""
        content = record.model_dump_json().encode()
        try:
            self._store.create(self._record_key(record.digest), content)
        except AlreadyExists:
            return

    def record(self, digest: str) -> BuildRecord:
        """Raises Failed SLP056 when there is none."""
        content = self._store.read(self._record_key(digest))
        if content is None:
            raise Failed(
                "SLP056",
                f"no build record {digest[:19]} is kept",
                help="release from source instead",
            )
        return self._parsed(content, digest)

    def keep_report(self, report: Report) -> None:
        self._store.replace(f"reports/{report.run}.json", report.model_dump_json().encode())

    def report(self, run: str) -> Report | None:
        content = self._store.read(f"reports/{run}.json")
        return Report.model_validate_json(content) if content else None

    def _parsed(self, content: bytes, digest: str) -> BuildRecord:
        try:
            record = BuildRecord.model_validate_json(content)
            found = record_digest(json.loads(content))
        except (ValidationError, KeyError, TypeError, AttributeError) as error:
            raise self._damaged(digest, f"cannot be read: {str(error).splitlines()[0]}") from error
        if not found == record.digest == digest:
            raise self._damaged(digest, f"holds other content ({found[:19]})")
        return record

    def _damaged(self, digest: str, what: str) -> NeedsPerson:
        return NeedsPerson(
            "SLP021",
            f"build record {digest[:19]} {what}",
            help="remove it and build again; then find out who changed it",
            where=self._record_key(digest),
        )

    @staticmethod
    def _record_key(digest: str) -> str:
        return f"builds/{digest.removeprefix('sha256:')}.json"
