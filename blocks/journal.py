"""The journal of an environment in an object store. Rules: domain.journal."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from blocks.object_store import AlreadyExists, ObjectStore
from domain.errors import Failed, NeedsPerson
from domain.journal import (
    Break,
    Entry,
    Kind,
    Release,
    next_entry,
    releases,
    unfinished,
    verify,
)
from domain.steering import Verb, check_request, paused_by

NOTES = frozenset({Kind.REFUSED, Kind.ASKED, Kind.FLAG})
"""Entries whose writer changes nothing by itself, so that they need not stop anybody."""
_FIRST = frozenset({Kind.REFUSED, Kind.STARTED})
"""Entries that give a release its number; two must not give the same one."""


class Journal:
    """Reads everything once, then appends; whoever appends in between makes us stop.

    That is the fence: a release that was thought dead and wakes up cannot act, because it
    cannot append the intent of its next action.
    """

    def __init__(
        self,
        store: ObjectStore,
        application: str,
        environment: str,
        *,
        actor: str = "unknown",
        run: str = "none",
        now: Callable[[], datetime] | None = None,
    ) -> None:
        now = now or _steady_clock()
        self._store, self.now = store, now
        self.application, self.environment = application, environment
        self.actor, self.run = actor, run
        self._tried: set[bytes] = set()
        self._entries = list(self._load())

    @property
    def entries(self) -> tuple[Entry, ...]:
        return tuple(self._entries)

    def history(self) -> tuple[Release, ...]:
        return releases(self._entries)

    def next_release(self) -> int:
        return max((entry.release for entry in self._numbered()), default=0) + 1

    def _numbered(self) -> Iterator[Entry]:
        """Entries that belong to a release; one about a flag only bears the newest's number."""
        return (entry for entry in self._entries if entry.kind is not Kind.FLAG)

    def draft(self, release: int, kind: Kind, data: Mapping[str, Any]) -> Entry:
        """The entry that would follow now; nothing is stored."""
        return next_entry(
            self._entries,
            at=self.now(),
            application=self.application,
            environment=self.environment,
            release=release,
            kind=kind,
            actor=self.actor,
            run=self.run,
            data=data,
        )

    def append(self, release: int, kind: Kind, data: Mapping[str, Any]) -> Entry:
        """Raises Failed SLP054 when somebody else has appended since we read."""
        entry = self.draft(release, kind, data)
        content = entry.to_bytes()
        # A signal can end this call after the entry was stored and before we know of it.
        self._tried.add(content)
        try:
            self._store.create(self._key(entry.sequence), content)
        except AlreadyExists:
            if self._only_notes_since() and not (kind in _FIRST and self._is_taken(release)):
                return self.append(release, kind, data)
            raise self._lost_race(entry) from None
        self._entries.append(entry)
        return entry

    def confirm_ours(self) -> None:
        """Right before an effect: raises Failed SLP054 when somebody else has appended."""
        key = self._key(len(self._entries) + 1)
        if self._store.read(key) is not None and not self._only_notes_since():
            raise self._lost_race(self.draft(1, Kind.INTENT, {}))

    def catch_up(self) -> None:
        """Read what people have asked meanwhile.

        Raises:
            Failed: SLP054 when somebody else acts in this environment.
        """
        self.confirm_ours()

    def ask(self, verb: Verb, reason: str) -> Entry:
        """Append a person's request to the release under way, which reads it and acts on it.

        Raises:
            UsageError: SLP061, nothing is under way, it changes nothing, or it lacks a reason.
        """
        where = f"{self.application} in {self.environment}"

        def number() -> int:
            left = unfinished(self.history())
            paused = left is not None and self._is_paused(left.number)
            return check_request(self.history(), verb, reason, paused=paused, where=where).number

        data = {"verb": verb.value, "reason": reason.strip()}
        return self._append_at_last(number, Kind.ASKED, data)

    def flag(self, data: Mapping[str, Any]) -> Entry:
        """Append what happens to a feature flag. It stops no release, and none stops it.

        Never with the journal of a release: that must not read on after it lost a race.
        """
        return self._append_at_last(lambda: max(1, self.next_release() - 1), Kind.FLAG, data)

    def refresh(self) -> None:
        """Read what others have appended. Only for one who does not act on a release."""
        self._entries = list(self._load())

    def _append_at_last(
        self, release: Callable[[], int], kind: Kind, data: Mapping[str, Any]
    ) -> Entry:
        while True:
            try:
                return self.append(release(), kind, data)
            except Failed as error:
                if error.code != "SLP054":
                    raise
                self._entries = list(self._load())

    def _is_paused(self, release: int) -> bool:
        return paused_by(e for e in self._entries if e.release == release) is not None

    def note(self, kind: Kind, data: Mapping[str, Any]) -> int:
        """Append an entry that nothing acts on, under a number of its own; returns the number.

        It does not stop a release under way, and a release under way does not keep it out.
        """
        while True:
            number = self.next_release()
            try:
                self.append(number, kind, data)
            except Failed as error:
                if error.code != "SLP054":
                    raise
                self._entries = list(self._load())
            else:
                return number

    def _only_notes_since(self) -> bool:
        """Read what was appended; True when none of it says that somebody else acts."""
        known = len(self._entries)
        entries = self._load()
        if any(e.kind not in NOTES and e.to_bytes() not in self._tried for e in entries[known:]):
            return False
        self._entries = list(entries)
        return True

    def _is_taken(self, release: int) -> bool:
        return any(entry.release == release for entry in self._numbered())

    def raw(self) -> dict[int, bytes]:
        """Stored bytes by sequence number, for ``verify``.

        Raises:
            NeedsPerson: SLP060 for an object that no journal writes.
        """
        found = {}
        for key in self._store.list(self._prefix):
            name = key.rsplit("/", 1)[-1].removesuffix(".json")
            number = int(name) if name.isascii() and name.isdigit() else 0
            if key != self._key(number):
                stranger = Break(number, f"{key} is not an entry; somebody else put it there")
                raise broken(self.application, self.environment, (stranger,))
            content = self._store.read(key)
            if content is not None:
                found[number] = content
        return found

    def _load(self) -> tuple[Entry, ...]:
        raw = self.raw()
        if breaks := verify(raw, self.application, self.environment):
            raise broken(self.application, self.environment, breaks)
        return tuple(Entry.model_validate_json(raw[number]) for number in sorted(raw))

    def _lost_race(self, ours: Entry) -> Failed:
        content = self._store.read(self._key(ours.sequence))
        theirs = Entry.model_validate_json(content) if content else None
        who = (
            f"{theirs.actor} wrote `{theirs.kind}` for release {theirs.release} "
            f"at {theirs.at:%H:%M:%S} UTC (run {theirs.run})"
            if theirs
            else "another writer was first"
        )
        return Failed(
            "SLP054",
            f"tried to write entry {ours.sequence} (`{ours.kind}`) of {self.application} in "
            f"{self.environment}, but {who}",
            help="this release stopped before its next action; see `slipway status`, and run it "
            "again when the other has ended",
        )

    @property
    def _prefix(self) -> str:
        return f"journal/{self.application}/{self.environment}"

    def _key(self, sequence: int) -> str:
        return f"{self._prefix}/{sequence:08d}.json"


def _steady_clock() -> Callable[[], datetime]:
    """The time now, then on by the monotonic clock: deadlines must not jump with the wall's."""
    began, mark = datetime.now(UTC), time.monotonic()
    return lambda: began + timedelta(seconds=time.monotonic() - mark)


def broken(application: str, environment: str, breaks: tuple[Break, ...]) -> NeedsPerson:
    first = breaks[0]
    return NeedsPerson(
        "SLP060",
        f"the journal of {application} in {environment} does not verify: entry "
        f"{first.sequence}: {first.problem}",
        help="compare it with its copies before releasing anything; "
        f"`slipway audit verify {application}` lists every break",
        detail="\n".join(f"entry {b.sequence}: {b.problem}" for b in breaks),
    )
