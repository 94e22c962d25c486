"""Build records and reports in an object store."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import json
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import ValidationError

from blocks.object_store import AlreadyExists, ObjectStore
from domain.backup_report import BackupReport
from domain.drill_report import RecoveryReport
from domain.errors import Failed, NeedsPerson
from domain.load_report import LoadReport
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

    def keep_backup_report(self, report: BackupReport) -> None:
        self._store.replace(f"reports/backups/{report.run}.json", report.model_dump_json().encode())

    def backup_report(self, run: str) -> BackupReport | None:
        content = self._store.read(f"reports/backups/{run}.json")
        return BackupReport.model_validate_json(content) if content else None

    def keep_load_report(self, report: LoadReport, page: str) -> str:
        """The report, and the page that shows it; returns the key of the page."""
        key = self._load_key(report.run)
        self._store.replace(f"{key}.html", page.encode())
        self._store.replace(f"{key}.json", report.model_dump_json().encode())
        return f"{key}.html"

    def load_report(self, run: str) -> LoadReport | None:
        content = self._store.read(f"{self._load_key(run)}.json")
        return LoadReport.model_validate_json(content) if content else None

    def load_reports(self) -> Iterator[LoadReport]:
        """All that are kept, in no order."""
        for key in self._store.list("reports/load"):
            if key.endswith(".json") and (content := self._store.read(key)):
                yield LoadReport.model_validate_json(content)

    def keep_recovery_report(self, report: RecoveryReport, page: str) -> str:
        """The report, and the page that shows it; returns the key of the page."""
        key = f"reports/recovery/{report.run}"
        self._store.replace(f"{key}.html", page.encode())
        self._store.replace(f"{key}.json", report.model_dump_json().encode())
        return f"{key}.html"

    def recovery_report(self, run: str) -> RecoveryReport | None:
        content = self._store.read(f"reports/recovery/{run}.json")
        return RecoveryReport.model_validate_json(content) if content else None

    def recovery_reports(self) -> Iterator[RecoveryReport]:
        """All that are kept, in no order."""
        for key in self._store.list("reports/recovery"):
            if key.endswith(".json") and (content := self._store.read(key)):
                yield RecoveryReport.model_validate_json(content)

    def keep_evidence(self, document: Mapping[str, Any]) -> str:
        """Store what a verdict was made from; returns its digest, which the journal keeps."""
        content = json.dumps(document, sort_keys=True, separators=(",", ":")).encode()
        digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
        with contextlib.suppress(AlreadyExists):
            self._store.create(self._evidence_key(digest), gzip.compress(content, mtime=0))
        return digest

    def evidence(self, digest: str) -> dict[str, Any]:
        """What ``keep_evidence`` stored.

        Raises:
            Failed: SLP056 when there is none.
            NeedsPerson: SLP021 when it is not what was judged.
        """
        stored = self._store.read(self._evidence_key(digest))
        if stored is None:
            raise Failed("SLP056", f"no evidence {digest[:19]} is kept",
                         help="it cannot be judged again; the journal has the verdict")  # fmt: skip
        try:
            content = gzip.decompress(stored)
        except (OSError, EOFError, zlib.error) as error:
            raise self._tampered(digest, f"cannot be read: {error}") from error
        if f"sha256:{hashlib.sha256(content).hexdigest()}" != digest:
            raise self._tampered(digest, "holds other content")
        document: dict[str, Any] = json.loads(content)
        return document

    def keep_progress(self, application: str, environment: str, document: Any) -> None:
        """How far a release under way is; for eyes only, so the last one wins."""
        content = json.dumps(document).encode()
        self._store.replace(f"progress/{application}/{environment}.json", content)

    def progress(self, application: str, environment: str) -> dict[str, Any] | None:
        content = self._store.read(f"progress/{application}/{environment}.json")
        return json.loads(content) if content else None

    def _load_key(self, run: str) -> str:
        return f"reports/load/{run}"

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

    def _tampered(self, digest: str, what: str) -> NeedsPerson:
        return NeedsPerson(
            "SLP021",
            f"the evidence {digest[:19]} {what}",
            help="the journal has the verdict; find out who changed what it was made from",
            where=self._evidence_key(digest),
        )

    @staticmethod
    def _evidence_key(digest: str) -> str:
        return f"evidence/{digest.removeprefix('sha256:')}.json.gz"

    @staticmethod
    def _record_key(digest: str) -> str:
        return f"builds/{digest.removeprefix('sha256:')}.json"
