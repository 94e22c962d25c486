"""What Cloud SQL says of an instance: whether it runs, and how much it can take."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from domain.errors import Failed


class CloudSqlInstance(BaseModel):
    """An instance; its service account is in the platform's `backup_credentials`, `cloud-sql`."""

    model_config = ConfigDict(extra="forbid")

    project: str
    instance: str
    endpoint: str = Field("", description="Other than Google's own.")


@dataclass(frozen=True)
class SqlInstance:
    """As Cloud SQL describes it.

    Attributes:
        state: RUNNABLE when it can be used.
        stopped: it is there and its owner has switched it off.
        major: of PostgreSQL; 0 for another database.
        machine: the tier, as in ``db-custom-2-7680``.
        disk_bytes: of its disk now.
        most_bytes: to which its disk may grow by itself; None: without a limit.
    """

    name: str
    state: str
    stopped: bool
    major: int
    machine: str
    disk_bytes: int
    most_bytes: int | None


def look(where: CloudSqlInstance, account: Mapping[str, Any] | None = None) -> SqlInstance:
    """Ask for an instance.

    Raises:
        Failed: SLP215, there is none of that name, or Cloud SQL does not answer or refuses.
    """
    from blocks import google_api  # slow to import

    what = f"describe {where.project}/{where.instance}"
    help = "see `cloud_sql` in the platform block, and whether its account may read instances"
    with google_api.asking("SLP215", "Cloud SQL", what, help):
        api = google_api.client("sqladmin", "v1", where.endpoint, account)
        request = api.instances().get(project=where.project, instance=where.instance)
        found = request.execute(num_retries=google_api.RETRIES)
    try:
        return _described(found)
    except (KeyError, ValueError) as error:
        raise Failed(
            "SLP215",
            f"Cloud SQL described {where.instance} without {error}",
            help="see whether the instance is of a kind that has it",
        ) from error


def _described(found: Mapping[str, Any]) -> SqlInstance:
    settings = found["settings"]
    version = re.match(r"POSTGRES_(\d+)", found["databaseVersion"])
    disk = int(settings["dataDiskSizeGb"]) << 30
    grows = bool(settings.get("storageAutoResize"))
    limit = int(settings.get("storageAutoResizeLimit", "0")) << 30
    return SqlInstance(
        name=str(found["name"]),
        state=str(found["state"]),
        stopped=settings.get("activationPolicy") == "NEVER",
        major=int(version[1]) if version else 0,
        machine=str(settings["tier"]),
        disk_bytes=disk,
        most_bytes=(limit or None) if grows else disk,
    )
