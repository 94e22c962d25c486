"""Public DNS names, and what they lead to: Route 53 or Cloud DNS.

What both promise is in tests/blocks/test_names.py, which runs against each.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field

from domain.errors import UsageError


class NameService(BaseModel):
    """Where the zone is kept; its secrets are in the platform's `backup_credentials`, `dns`."""

    model_config = ConfigDict(extra="forbid")

    kind: Literal["route53", "cloud-dns"] = "route53"
    zone: str = Field(description="The zone's domain, without a last dot.")
    region: str = Field("us-east-1", description="For signing (route53).")
    project: str = Field("", description="Google Cloud project (cloud-dns).")
    endpoint: str = Field("", description="Other than the cloud's own.")
    resolver: str = Field("", description="host:port of a name server to check answers with.")
    create: bool = Field(False, description="Make the zone where it is missing (emulators).")


@dataclass(frozen=True)
class Record:
    """An A record.

    Attributes:
        addresses: sorted.
        ttl_seconds: how long resolvers may keep it.
    """

    name: str
    addresses: tuple[str, ...]
    ttl_seconds: int


class Names(Protocol):
    """A records of one zone.

    Raises:
        Failed: SLP208, the service does not answer or refuses: the name leads where it led before.
        UsageError: SLP208, the zone is not there, or the name is not in it.
    """

    zone: str

    def read(self, name: str) -> Record | None:
        """The record of a name, or None."""
        ...

    def point(self, record: Record) -> None:
        """Let a name lead to these addresses, whatever it led to before."""
        ...

    def remove(self, name: str) -> None:
        """Harmless when there is none."""
        ...

    def names(self) -> tuple[str, ...]:
        """Every name with an A record."""
        ...


def open_names(where: NameService, secrets: Mapping[str, Any] | None = None) -> Names:
    """The names of a zone; nothing is asked yet.

    Args:
        secrets: `access_key` and `secret_key` (Route 53), or the JSON of a service account (Cloud
            DNS); without, the machine's own credentials.
    """
    if where.kind == "cloud-dns":
        from blocks.cloud_dns_names import CloudDnsNames  # Google's library is slow to import

        return CloudDnsNames(where, secrets)
    from blocks.route53_names import Route53Names  # and so is boto3

    return Route53Names(where, secrets)


def require_within(name: str, zone: str) -> None:
    """Raises UsageError SLP208: a name of another zone would be made and lead nobody."""
    if not name.endswith(f".{zone}"):
        raise UsageError("SLP208", f"{name} is not in the zone {zone}",
                         help="correct `recovery.name` or the platform's zone")  # fmt: skip


def no_zone(service: str, zone: str) -> UsageError:
    return UsageError("SLP208", f"{service} has no zone {zone}",
                      help="make it, or correct `names` in the platform block")  # fmt: skip
