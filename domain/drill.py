"""Drills as data: what is broken on purpose, and what must come of it."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import Final

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from domain.failover import Phase, Tier


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Fault(StrEnum):
    """What is done to the twin of the primary."""

    KILL = "kill"
    """Database and replicas die at once: the region is lost."""
    FREEZE = "freeze"
    """They stop where they are, and go on after the failover: the region comes back."""
    CUT = "cut"
    """Users and the epochs cannot be reached; database and replicas go on."""
    CREDENTIALS = "credentials"
    """The database refuses the application's login."""
    MIGRATION = "migration"
    """A migration drops the application's tables; the database itself is well."""
    CORRUPT = "corrupt"
    """The newest backup that is kept outside is overwritten, then the region is lost."""


class Scenario(_Model):
    """A game day.

    Attributes:
        expected: what must come of it, as a person is told before.
        tier: of the standby, unless another one is asked for; None: the declared one.
        names_down: the name service takes no change.
        standby_full: the standby's server lets the application have no connection.
        stops_at: the phase that must stop the failover, with nobody led to the new side; None:
            users must be served again.
    """

    name: str
    story: str
    fault: Fault
    tier: Tier | None = None
    names_down: bool = False
    standby_full: bool = False
    stops_at: Phase | None = None
    expected: str


SCENARIOS: Final[Mapping[str, Scenario]] = MappingProxyType(
    {
        scenario.name: scenario
        for scenario in (
            Scenario(
                name="region-loss",
                story="the whole region is gone within a second",
                fault=Fault.KILL,
                expected="users are served by the standby within the objectives",
            ),
            Scenario(
                name="region-returns",
                story="the region stops answering, and comes back after the failover",
                fault=Fault.FREEZE,
                expected="what comes back may not write, and what it still wrote is listed",
            ),
            Scenario(
                name="partition",
                story="the region works, but neither users nor the epochs can be reached from it",
                fault=Fault.CUT,
                expected="the old side stops writing by itself before the standby begins",
            ),
            Scenario(
                name="credentials-revoked",
                story="the database refuses the application's login",
                fault=Fault.CREDENTIALS,
                expected="users are served by the standby, whose login is another one",
            ),
            Scenario(
                name="bad-migration",
                story="a migration drops the tables that users need",
                fault=Fault.MIGRATION,
                expected="users are served by the standby, which has the tables still",
            ),
            Scenario(
                name="dns-down",
                story="the name service refuses changes while the region is lost",
                fault=Fault.KILL,
                names_down=True,
                stops_at=Phase.SWITCH,
                expected="the standby is ready, nobody is led to it, and the run says so",
            ),
            Scenario(
                name="ransomware",
                story="somebody encrypts the newest backup in place, and the region is lost",
                fault=Fault.CORRUPT,
                tier=Tier.BACKUP,
                expected="the damage is recognised by its hash, and another copy is restored",
            ),
            Scenario(
                name="standby-too-small",
                story="the standby's server has no connections left for the application",
                fault=Fault.KILL,
                tier=Tier.WARM,
                standby_full=True,
                stops_at=Phase.SCALE,
                expected="no replica becomes ready, nobody is led there, and the run says so",
            ),
        )
    }
)


class DrillRecord(_Model):
    """Written before a drill makes anything: what there may be of it, and until when.

    Attributes:
        database: in the standby's server.
        folder: of the twin's database server.
        platforms: the blocks of both sides.
    """

    id: str = Field(pattern=r"^[a-z0-9]{6,16}$")
    application: str
    environment: str
    tier: Tier
    fault: Fault
    run: str
    created_at: AwareDatetime
    expires_at: AwareDatetime
    host: str
    database: str
    folder: str
    platforms: tuple[str, str]
    closed_at: AwareDatetime | None = None

    @property
    def side_environment(self) -> str:
        """Under which both clusters and edges know it."""
        return f"drill-{self.id}"

    @property
    def replication(self) -> str:
        """Name of publication, subscription and slot."""
        return f"slipway_drill_{self.id}"
