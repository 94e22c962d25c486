"""A strict stand-in for RDS' snapshots.

Emulators make every snapshot at once, copy with disabled keys and delete automated ones. This one
is checked on both sides against the service model that botocore ships; snapshots take their time,
and refusals are those of the API reference.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import botocore.session
from botocore.exceptions import ClientError, EndpointConnectionError
from botocore.validate import validate_parameters

_MODEL = botocore.session.get_session().get_service_model("rds")
MINUTES = 10
"""That a snapshot takes."""


@dataclass
class FakeClock:
    now: datetime = datetime(2026, 3, 1, 2, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now

    def pause(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)


@dataclass
class FakeRds:
    """One region; ``others`` are the regions that it may copy from.

    Attributes:
        busy_until: the instance makes its own backup until then.
        lose: name of an operation whose next answer is lost after it was done.
        unlisted: how many times a new snapshot is not listed yet.
        fate: what becomes of a snapshot at its end.
    """

    clock: FakeClock
    region: str = "eu-central-1"
    others: tuple[FakeRds, ...] = ()
    instances: set[str] = field(default_factory=lambda: {"shop-db"})
    encrypted: bool = True
    quota: int = 100
    keys: dict[str, bool] = field(default_factory=lambda: {"key-eu": True})
    busy_until: datetime | None = None
    lose: str = ""
    unlisted: int = 0
    fate: str = "available"
    page_size: int = 100
    snapshots: dict[str, dict[str, Any]] = field(default_factory=dict)
    calls: Counter[str] = field(default_factory=Counter)
    error: str = ""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        operation = "".join(part.capitalize() for part in name.split("_")).replace("Db", "DB")
        if operation not in _MODEL.operation_names:
            raise AttributeError(name)
        model, do = _MODEL.operation_model(operation), getattr(self, f"do_{name}")

        def call(**request: Any) -> Any:
            known = {k: v for k, v in request.items() if k != "SourceRegion"}  # botocore's own
            report = validate_parameters(known, model.input_shape)
            assert report is None
            self.calls[name] += 1
            if self.error:
                raise self.refusal(self.error, operation)
            answer = do(**request)
            validate_parameters(answer, model.output_shape)
            if self.lose == name:
                self.lose = ""
                raise EndpointConnectionError(endpoint_url="https://rds")
            return answer

        return call

    @staticmethod
    def refusal(code: str, operation: str = "") -> ClientError:
        return ClientError({"Error": {"Code": code, "Message": f"because of {code}"}}, operation)

    def do_create_db_snapshot(
        self, *, DBSnapshotIdentifier: str, DBInstanceIdentifier: str, Tags: list[Any]
    ) -> Any:
        if DBInstanceIdentifier not in self.instances:
            raise self.refusal("DBInstanceNotFound")
        if DBSnapshotIdentifier in self.snapshots:
            raise self.refusal("DBSnapshotAlreadyExists")
        if self.busy_until and self.clock.now < self.busy_until:
            raise self.refusal("InvalidDBInstanceState")
        return self._add(DBSnapshotIdentifier, DBInstanceIdentifier, Tags, self.encrypted)

    def do_copy_db_snapshot(
        self, *, SourceDBSnapshotIdentifier: str, TargetDBSnapshotIdentifier: str,
        SourceRegion: str, Tags: list[Any], KmsKeyId: str | None = None,
    ) -> Any:  # fmt: skip
        (other,) = [o for o in self.others if o.region == SourceRegion]
        (source,) = [
            s for s in other.snapshots.values() if s["DBSnapshotArn"] == SourceDBSnapshotIdentifier
        ]
        if TargetDBSnapshotIdentifier in self.snapshots:
            raise self.refusal("DBSnapshotAlreadyExists")
        if other.told(source)["Status"] != "available":
            raise self.refusal("InvalidDBSnapshotState")
        if source["Encrypted"] and not self.keys.get(KmsKeyId or "", False):
            raise self.refusal("KMSKeyNotAccessibleFault")
        answer = self._add(
            TargetDBSnapshotIdentifier, source["DBInstanceIdentifier"], Tags, source["Encrypted"]
        )
        self.snapshots[TargetDBSnapshotIdentifier] |= {
            "SourceDBSnapshotIdentifier": SourceDBSnapshotIdentifier,
            "OriginalSnapshotCreateTime": source["OriginalSnapshotCreateTime"],
        } | ({"KmsKeyId": KmsKeyId} if KmsKeyId else {})
        return answer

    def do_describe_db_snapshots(
        self, *, DBSnapshotIdentifier: str = "", SnapshotType: str = "", Marker: str = ""
    ) -> Any:
        if DBSnapshotIdentifier:
            if DBSnapshotIdentifier not in self.snapshots:
                raise self.refusal("DBSnapshotNotFound")
            if self.unlisted:
                self.unlisted -= 1
                raise self.refusal("DBSnapshotNotFound")
            return {"DBSnapshots": [self.told(self.snapshots[DBSnapshotIdentifier])]}
        found = [self.told(s) for s in self.snapshots.values() if s["SnapshotType"] == SnapshotType]
        start = int(Marker or 0)
        end = start + self.page_size
        more = {"Marker": str(end)} if found[end:] else {}
        return {"DBSnapshots": found[start:end], **more}

    def do_delete_db_snapshot(self, *, DBSnapshotIdentifier: str) -> Any:
        if DBSnapshotIdentifier not in self.snapshots:
            raise self.refusal("DBSnapshotNotFound")
        found = self.told(self.snapshots[DBSnapshotIdentifier])
        if found["SnapshotType"] != "manual" or found["Status"] not in ("available", "failed"):
            raise self.refusal("InvalidDBSnapshotState")
        del self.snapshots[DBSnapshotIdentifier]
        return {"DBSnapshot": found}

    def do_describe_db_instance_automated_backups(self, *, DBInstanceIdentifier: str) -> Any:
        if DBInstanceIdentifier not in self.instances:
            raise self.refusal("DBInstanceAutomatedBackupNotFound")
        latest = self.clock.now - timedelta(minutes=5)
        window = {"EarliestTime": latest - timedelta(days=7), "LatestTime": latest}
        return {"DBInstanceAutomatedBackups": [{"Status": "active", "RestoreWindow": window}]}

    def told(self, snapshot: dict[str, Any]) -> dict[str, Any]:
        """As it is at this moment."""
        minutes = (self.clock.now - snapshot["began"]) / timedelta(minutes=1)
        told = {k: v for k, v in snapshot.items() if k not in ("began", "fate")}
        if minutes >= MINUTES:
            return told | {"Status": snapshot["fate"], "PercentProgress": 100}
        percent = int(minutes * 100 / MINUTES)
        return told | {"Status": "creating", "PercentProgress": percent}

    def _add(self, name: str, instance: str, tags: list[Any], encrypted: bool) -> Any:
        if sum(s["SnapshotType"] == "manual" for s in self.snapshots.values()) >= self.quota:
            raise self.refusal("SnapshotQuotaExceeded")
        self.snapshots[name] = {
            "DBSnapshotIdentifier": name,
            "DBSnapshotArn": f"arn:aws:rds:{self.region}:123456789012:snapshot:{name}",
            "DBInstanceIdentifier": instance,
            "SnapshotType": "manual",
            "SnapshotCreateTime": self.clock.now,
            "OriginalSnapshotCreateTime": self.clock.now,
            "Encrypted": encrypted,
            "Engine": "postgres",
            "EngineVersion": "18.1",
            "AllocatedStorage": 20,
            "TagList": tags,
            "began": self.clock.now,
            "fate": self.fate,
        }
        return {"DBSnapshot": self.told(self.snapshots[name])}
