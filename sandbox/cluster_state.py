"""What the cluster of the sandbox remembers: one file a workload, written before every act.

A record is on disk before the process that it speaks of is started, and again once its pid is
known. A supervisor that was killed between the two finds a marker without a pid, and ends
whatever bears that marker. Files hold the environment of replicas, secrets included, so only
the owner may read them.
"""

from __future__ import annotations

import errno
import logging
import os
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from domain.errors import Failed, SlipwayError
from domain.workload import WorkloadSpec

log = logging.getLogger(__name__)

_NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class ReplicaRecord(BaseModel):
    """One replica: the process it has, or is about to have, and its past."""

    model_config = ConfigDict(extra="forbid")

    index: int
    marker: str | None = Field(None, description="In the environment of each of its processes.")
    port: int | None = None
    pid: int | None = None
    born: float | None = Field(None, description="When the pid was made: guards against reuse.")
    direct: bool = Field(True, description="The pid is the program itself, not a shell around it.")
    log_start: int = Field(0, description="Where the output of this process begins in the log.")
    restarts: int = 0
    exit_code: int | None = None
    was_ready: bool = Field(False, description="Of any of its processes so far.")


class WorkloadRecord(BaseModel):
    """One workload: what is wanted, and every process that may exist because of it."""

    model_config = ConfigDict(extra="forbid")

    spec: WorkloadSpec
    directory: Path
    removed: bool = False
    replicas: list[ReplicaRecord] = []
    leaving: list[ReplicaRecord] = []


class StateFolder:
    """Records by workload name, each replaced as one."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.chmod(0o700)
        self._folder = folder

    def write(self, record: WorkloadRecord) -> None:
        """Replace the record, durably. OSError when that cannot be done; then the old one stays."""
        final = self._folder / f"{record.spec.name}.json"
        fresh = final.with_suffix(".new")
        content = record.model_dump_json().encode()
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as stream:
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
            fresh.replace(final)
        except OSError:
            fresh.unlink(missing_ok=True)
            raise
        self._sync_folder()

    def remove(self, name: str) -> None:
        (self._folder / f"{name}.json").unlink(missing_ok=True)
        self._sync_folder()

    def read_all(self) -> list[WorkloadRecord]:
        """Every record; one that cannot be read is set aside and said, never guessed at."""
        records = []
        for path in sorted(self._folder.glob("*.json")):
            try:
                records.append(WorkloadRecord.model_validate_json(path.read_bytes()))
            except ValidationError as error:
                aside = path.with_suffix(".damaged")
                path.replace(aside)
                problems = error.errors(include_input=False, include_url=False)
                log.error("%s is not a record, moved to %s: %s", path, aside, problems)
        return records

    def _sync_folder(self) -> None:
        descriptor = os.open(self._folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def explain(error: OSError, tried: str) -> SlipwayError:
    """The error a person meets when the machine refuses a file or a process."""
    seen = error.strerror or str(error)
    where = str(error.filename) if error.filename else None
    if error.errno in _NO_SPACE:
        return Failed(
            "SLP015",
            f"{tried}, but {seen.lower()}; nothing was changed",
            help="free some space and run it again",
            where=where,
        )
    return Failed(
        "SLP014",
        f"{tried}, but the machine refused: {seen.lower()}; nothing was changed",
        help="see the supervisor's log with `slipway status`, mend the cause and run it again",
        where=where,
    )
