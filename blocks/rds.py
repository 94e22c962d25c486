"""RDS snapshots: made, waited for, copied to another region, listed and deleted.

They are what recovery inside AWS is fast with. They cannot leave AWS, which the logical dump is
for. Every call may be made again: a snapshot is named after its recovery point, so that a second
attempt after a crash finds the first one's and goes on with it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime, timedelta
from functools import partial
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError

from blocks.metrics import Clock, utc_now
from domain.errors import Failed, Unauthorised, UsageError
from domain.rds_snapshots import COPY_OF, Owner, Snapshot, Window, why_kept
from domain.recovery import Facts

PATIENCE = timedelta(hours=4)
ASK_EVERY_SECONDS = 15.0
MAX_PAGES = 1000

Progress = Callable[[Snapshot], None]

_REFUSALS = frozenset(
    {"AccessDenied", "AccessDeniedException", "UnauthorizedOperation", "InvalidClientTokenId",
     "ExpiredToken", "SignatureDoesNotMatch", "MissingAuthenticationToken"}
)  # fmt: skip
_HELP = {
    "SnapshotQuotaExceeded": "delete manual snapshots that nobody needs, or raise the quota",
    "KMSKeyNotAccessible": "enable the key, and let this login use it in both regions",
    "DBInstanceNotFound": "correct the name of the instance",
    "InvalidDBSnapshotState": "wait until the snapshot is available, then run it again",
}


class RdsSnapshots:
    """The snapshots of one owner in one region.

    Args:
        client: boto3 client of ``rds``.
        patience: for how long a snapshot is waited for.
    """

    def __init__(
        self,
        client: Any,
        owner: Owner,
        *,
        patience: timedelta = PATIENCE,
        now: Clock = utc_now,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        self._client, self._owner = client, owner
        self._patience, self._now, self._pause = patience, now, pause

    def create(self, instance: str, point: str) -> Snapshot:
        """Begin a snapshot, or find the one that an earlier attempt began; does not wait for it.

        A failed one of an earlier attempt is removed first: it holds nothing. While the instance
        is busy (its own nightly backup, a change), it is asked again.

        Raises:
            Failed: SLP137, RDS refused, or the name is taken by a snapshot of somebody else.
            Unauthorised: SLP139.
        """
        identifier = self._owner.identifier(point)
        ask = partial(
            self._client.create_db_snapshot,
            DBSnapshotIdentifier=identifier,
            DBInstanceIdentifier=instance,
            Tags=_tag_list(self._owner.tags(point)),
        )
        self._retire_failed(identifier, instance=instance, source=None)
        return self._begin(ask, identifier, instance=instance, source=None)

    def copy(self, source: Snapshot, kms_key: str | None) -> Snapshot:
        """Begin to copy an available snapshot of another region to this one, or find the copy.

        Args:
            kms_key: of this region. An encrypted snapshot cannot be copied without one: keys
                do not leave their region.

        Raises:
            UsageError: SLP138, it is encrypted and there is no key, or it is not available.
            Failed: SLP137, RDS refused.
        """
        if not source.is_available:
            raise _usage(source, f"is {source.status}", "wait until it is available")
        if source.encrypted and kms_key is None:
            raise _usage(source, "is encrypted", "name a KMS key of the region it is copied to")
        request: dict[str, Any] = {
            "SourceDBSnapshotIdentifier": source.arn,
            "TargetDBSnapshotIdentifier": source.identifier,
            "SourceRegion": source.region,
            "Tags": _tag_list({**self._owner.tags(source.point), COPY_OF: source.arn}),
        }
        if kms_key is not None:
            request["KmsKeyId"] = kms_key
        self._retire_failed(source.identifier, instance=source.instance, source=source.arn)
        ask = partial(self._client.copy_db_snapshot, **request)
        return self._begin(ask, source.identifier, instance=source.instance, source=source.arn)

    def wait(self, identifier: str, progress: Progress = lambda _: None) -> Snapshot:
        """Until it is available.

        Args:
            progress: told each state; ``percent`` goes to 100.

        Raises:
            Failed: SLP137, it failed, vanished, or takes longer than there is patience.
        """
        until = self._now() + self._patience
        seen: Snapshot | None = None
        while True:
            found = self.find(identifier)
            if found is None and seen is not None:
                raise self._failed(identifier, "it was deleted while it was being waited for")
            if found is not None:
                seen = found
                progress(found)
                if found.is_available:
                    return found
                if found.has_failed:
                    raise self._failed(identifier, f"it ended {found.status}")
            if self._now() >= until:
                state = f"{seen.status}, {seen.percent}%" if seen else "not to be seen"
                raise self._failed(identifier, f"after {self._patience} it is still {state}")
            self._pause(ASK_EVERY_SECONDS)

    def find(self, identifier: str) -> Snapshot | None:
        """Any snapshot of that name, also of somebody else."""
        try:
            answer = self._ask(
                partial(self._client.describe_db_snapshots, DBSnapshotIdentifier=identifier)
            )
        except _Refused as refusal:
            if refusal.code == "DBSnapshotNotFound":
                return None
            raise refusal.error(identifier) from refusal
        found = [_snapshot(said) for said in answer["DBSnapshots"]]
        return next((s for s in found if s.identifier == identifier), None)

    def list(self) -> tuple[Snapshot, ...]:
        """All of this owner in this region, whatever their state; oldest point first.

        Raises:
            Failed: SLP137, the list is not complete.
        """
        found = (_snapshot(said) for said in self._pages())
        return tuple(
            sorted((s for s in found if self._owner.owns(s)), key=lambda s: (s.point, s.identifier))
        )

    def delete(self, identifier: str, held: Mapping[str, str]) -> None:
        """Remove one of ours; that it is gone already is no error.

        Args:
            held: points that must stay, with the reason.

        Raises:
            UsageError: SLP138, it is not ours, held, in use, or not made by hand.
        """
        found = self.find(identifier)
        if found is None:
            return
        if why := why_kept(found, self._owner, held):
            raise UsageError(
                "SLP138",
                f"the snapshot may not be deleted: {why}",
                help="nothing was deleted",
                where=identifier,
            )
        self._remove(identifier)

    def window(self, instance: str) -> Window:
        """Between which moments RDS can restore the instance to any.

        Raises:
            Failed: SLP137, it has no automated backups, or does not exist.
        """
        ask = partial(
            self._client.describe_db_instance_automated_backups, DBInstanceIdentifier=instance
        )
        try:
            found = self._ask(ask)["DBInstanceAutomatedBackups"]
        except _Refused as refusal:
            raise refusal.error(instance) from refusal
        windows = [b["RestoreWindow"] for b in found if b.get("Status") == "active"]
        if len(windows) != 1 or not {"EarliestTime", "LatestTime"} <= windows[0].keys():
            raise self._failed(instance, "it has no automated backups to restore from")
        return Window(windows[0]["EarliestTime"], windows[0]["LatestTime"])

    def check_restorable(self, instance: str, at: datetime) -> None:
        """Raises UsageError SLP138 unless the instance can be restored to that moment.

        Asked before a restore: an error of RDS would come after the new instance was begun.
        """
        window = self.window(instance)
        if not window.holds(at):
            raise UsageError(
                "SLP138",
                f"the instance cannot be restored to {at.isoformat()}",
                help=f"choose a moment from {window.earliest.isoformat()} "
                f"to {window.latest.isoformat()}",
                where=instance,
            )

    def _begin(
        self, ask: Callable[[], Any], identifier: str, *, instance: str, source: str | None
    ) -> Snapshot:
        until = self._now() + self._patience
        while True:
            try:
                self._ask(ask)
            except _Refused as refusal:
                if refusal.code == "InvalidDBInstanceState" and self._now() < until:
                    self._pause(ASK_EVERY_SECONDS)
                    continue
                if refusal.code != "DBSnapshotAlreadyExists":
                    raise refusal.error(identifier) from refusal
            found = self._find_soon(identifier, until)
            self._require(found, instance=instance, source=source)
            return found

    def _find_soon(self, identifier: str, until: datetime) -> Snapshot:
        """What RDS has just confirmed may not be listed yet."""
        while (found := self.find(identifier)) is None:
            if self._now() >= until:
                raise self._failed(identifier, "RDS confirmed it, but does not list it")
            self._pause(ASK_EVERY_SECONDS)
        return found

    def _require(self, found: Snapshot, *, instance: str, source: str | None) -> None:
        """It is what this call would have made."""
        if not self._owner.owns(found):
            raise self._failed(found.identifier, "a snapshot of somebody else has this name")
        if found.instance != instance or found.source != source:
            raise self._failed(
                found.identifier,
                f"the snapshot of this name is of {found.source or found.instance}, "
                f"not of {source or instance}",
            )

    def _retire_failed(self, identifier: str, *, instance: str, source: str | None) -> None:
        found = self.find(identifier)
        if found is not None and found.has_failed:
            self._require(found, instance=instance, source=source)
            if not why_kept(found, self._owner, {}):
                self._remove(identifier)

    def _remove(self, identifier: str) -> None:
        try:
            self._ask(partial(self._client.delete_db_snapshot, DBSnapshotIdentifier=identifier))
        except _Refused as refusal:
            if refusal.code != "DBSnapshotNotFound":
                raise refusal.error(identifier) from refusal

    def _pages(self) -> Iterator[dict[str, Any]]:
        more: dict[str, str] = {}
        for _ in range(MAX_PAGES):
            try:
                page = self._ask(
                    partial(self._client.describe_db_snapshots, SnapshotType="manual", **more)
                )
            except _Refused as refusal:
                raise refusal.error("the list of snapshots") from refusal
            yield from page["DBSnapshots"]
            if not page.get("Marker"):
                return
            more = {"Marker": page["Marker"]}
        raise self._failed("the list of snapshots", f"it had more pages after {MAX_PAGES}")

    def _ask(self, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except NoCredentialsError as error:
            raise _unauthorised(error) from error
        except ClientError as error:
            code = str(error.response.get("Error", {}).get("Code", ""))
            if code in _REFUSALS:
                raise _unauthorised(error) from error
            raise _Refused(code.removesuffix("Fault"), str(error)) from error
        except BotoCoreError as error:
            raise self._failed("RDS", f"it did not answer: {error}") from error

    def _failed(self, what: str, seen: str) -> Failed:
        return _Refused("", seen).error(what)


def facts(snapshot: Snapshot) -> Facts:
    """Of an available snapshot, for the manifest of its recovery point.

    Raises:
        ValueError: it is not available.
    """
    if not snapshot.is_available or snapshot.taken_at is None:
        raise ValueError(f"the snapshot {snapshot.identifier} is {snapshot.status}")
    return Facts(
        data_time=snapshot.taken_at,
        tools={"rds": snapshot.engine},
        inventory={
            "arn": snapshot.arn,
            "instance": snapshot.instance,
            "encrypted": snapshot.encrypted,
            "kms_key": snapshot.kms_key,
            "gibibytes": snapshot.gibibytes,
            "copy_of": snapshot.source,
        },
    )


class _Refused(Exception):
    """RDS answered with an error."""

    def __init__(self, code: str, seen: str) -> None:
        super().__init__(code, seen)
        self.code, self.seen = code, seen

    def error(self, where: str) -> Failed:
        return Failed(
            "SLP137",
            f"the snapshot was not made, found or removed: {self.seen}",
            help=_HELP.get(self.code, "correct what RDS says, then run it again: it goes on"),
            where=where,
        )


def _unauthorised(error: Exception) -> Unauthorised:
    return Unauthorised(
        "SLP139",
        f"AWS refuses the login: {error}",
        help="it needs the rights to create, copy, describe, tag and delete RDS snapshots",
    )


def _usage(source: Snapshot, seen: str, help: str) -> UsageError:
    return UsageError("SLP138", f"the snapshot to copy {seen}", help=help, where=source.identifier)


def _tag_list(tags: Mapping[str, str]) -> list[dict[str, str]]:
    return [{"Key": key, "Value": value} for key, value in tags.items()]


def _snapshot(said: Mapping[str, Any]) -> Snapshot:
    """``OriginalSnapshotCreateTime`` stays when a snapshot is copied; the other does not."""
    tags = {tag["Key"]: tag["Value"] for tag in said.get("TagList", ())}
    return Snapshot(
        identifier=said["DBSnapshotIdentifier"],
        arn=said["DBSnapshotArn"],
        instance=said["DBInstanceIdentifier"],
        kind=said["SnapshotType"],
        status=said["Status"],
        percent=int(said.get("PercentProgress", 100 if said["Status"] == "available" else 0)),
        taken_at=said.get("OriginalSnapshotCreateTime") or said.get("SnapshotCreateTime"),
        encrypted=bool(said.get("Encrypted")),
        kms_key=said.get("KmsKeyId"),
        engine=f"{said.get('Engine', '')} {said.get('EngineVersion', '')}".strip(),
        gibibytes=int(said.get("AllocatedStorage", 0)),
        source=said.get("SourceDBSnapshotIdentifier") or tags.get(COPY_OF),
        tags=tags,
    )
