"""The Prefect server over plain HTTP: start a run, look at it, cancel it.

Prefect's own client is not used here because importing it takes longer than most commands.
"""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import httpx

from domain.errors import Failed, SlipwayError, Unauthorised, UsageError

TERMINAL = frozenset({"COMPLETED", "FAILED", "CRASHED", "CANCELLED"})
PATIENCE_SECONDS = 60.0
"""How long a lost connection is waited for before giving up."""

_PAGE = 200  # the server's own limit
_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", re.I)


@dataclass(frozen=True)
class Run:
    """A flow run as the server shows it."""

    id: str
    name: str
    flow_id: str
    state: str
    state_name: str
    message: str
    tags: tuple[str, ...] = ()
    started: datetime | None = None
    seconds: float = 0.0

    @property
    def ended(self) -> bool:
        return self.state in TERMINAL

    def tag(self, kind: str) -> str:
        """The value of a tag such as ``app:diet-game``; empty when there is none."""
        prefix = f"{kind}:"
        return next((t.removeprefix(prefix) for t in self.tags if t.startswith(prefix)), "")


@dataclass(frozen=True)
class Log:
    """One line that a run wrote."""

    id: str
    run: str
    at: datetime
    level: int
    logger: str
    message: str


class PrefectServer:
    """A Prefect API; every request is repeated while the server does not answer.

    Args:
        api: base URL that ends in ``/api``.
        key: API key, sent as bearer token.
        patience_seconds: how long one request is tried.
        on_lost: told once, when the connection is lost for the first time.
    """

    def __init__(
        self,
        api: str,
        *,
        key: str = "",
        patience_seconds: float = PATIENCE_SECONDS,
        timeout_seconds: float = 10.0,
        on_lost: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.api, self._patience, self._on_lost = api.rstrip("/"), patience_seconds, on_lost
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._http = httpx.Client(
            base_url=self.api, headers=headers, timeout=timeout_seconds, trust_env=False
        )

    def close(self) -> None:
        self._http.close()

    def __enter__(self) -> PrefectServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- runs ------------------------------------------------------------------------------

    def deployment(self, name: str) -> str:
        """The id of ``flow/deployment``.

        Raises:
            UsageError: SLP074, there is no such deployment.
        """
        found = self._ask("GET", f"/deployments/name/{name}")
        if found is None:
            raise UsageError(
                "SLP074",
                f"the Prefect server has no deployment {name!r}",
                help="register the flows: slipway up",
                where=self.api,
            )
        return str(found["id"])

    def start(
        self, deployment: str, parameters: Mapping[str, Any], name: str, tags: Sequence[str]
    ) -> Run:
        """Create a run of ``flow/deployment``; a repeated request does not make two.

        Raises:
            UsageError: SLP074, or SLP075 when the server refuses the parameters.
        """
        body = {
            "parameters": dict(parameters),
            "name": name[:60],
            "tags": list(tags),
            "idempotency_key": str(uuid.uuid4()),
            "state": {"type": "SCHEDULED"},
        }
        identity = self.deployment(deployment)
        created = self._ask("POST", f"/deployments/{identity}/create_flow_run", body)
        if created is None:
            raise self._wrong(404, f"deployment {deployment} has just been removed")
        return _run(created)

    def run(self, identity: str) -> Run:
        """Raises UsageError SLP076 when there is no such run."""
        found = self._ask("GET", f"/flow_runs/{identity}")
        if found is None:
            raise _no_run(identity, self.api)
        return _run(found)

    def find(self, text: str) -> Run:
        """A run by its id, the start of its id, its name, or an address that holds its id."""
        if match := _UUID.search(text):
            return self.run(match[0].lower())
        recent = self._runs({"sort": "EXPECTED_START_TIME_DESC", "limit": _PAGE})
        fits = [r for r in recent if r.name == text] or [
            r for r in recent if len(text) >= 4 and r.id.startswith(text.lower())
        ]
        if not fits:
            raise _no_run(text, self.api)
        return fits[0]

    def children(self, parents: Iterable[str]) -> list[Run]:
        """Runs of subflows, oldest first."""
        wanted = {"flow_runs": {"parent_flow_run_id": {"any_": list(parents)}}}
        return self._runs({**wanted, "sort": "START_TIME_ASC", "limit": _PAGE})

    def logs(self, runs: Iterable[str], after: datetime | None) -> list[Log]:
        """Lines of these runs later than ``after``, oldest first."""
        wanted: dict[str, Any] = {"flow_run_id": {"any_": list(runs)}}
        if after is not None:
            wanted["timestamp"] = {"after_": after.isoformat()}
        lines: list[Log] = []
        while True:
            page = {"logs": wanted, "sort": "TIMESTAMP_ASC", "limit": _PAGE, "offset": len(lines)}
            found = self._ask("POST", "/logs/filter", page) or []
            lines += [_log(raw) for raw in found]
            if len(found) < _PAGE:
                return lines

    def flow_name(self, identity: str) -> str:
        found = self._ask("GET", f"/flows/{identity}")
        return str(found["name"]) if found else "flow"

    def cancel(self, run: Run) -> None:
        """Ask the run to end; it undoes what it holds first.

        Raises:
            Failed: SLP077, the server refused.
        """
        body = {"state": {"type": "CANCELLING", "name": "Cancelling"}, "force": False}
        answer = self._ask("POST", f"/flow_runs/{run.id}/set_state", body)
        if answer is None:
            raise _no_run(run.id, self.api)
        if answer.get("status") not in ("ACCEPT", "REJECT"):
            why = (answer.get("details") or {}).get("reason") or answer.get("status")
            raise Failed(
                "SLP077",
                f"tried to cancel run {run.name}, the server refused: {why}",
                help=f"look at it: slipway watch {run.id}",
            )

    def block(self, kind: str, name: str) -> dict[str, Any] | None:
        """The public fields of a block document; None when there is none."""
        found = self._ask("GET", f"/block_types/slug/{kind}/block_documents/name/{name}")
        return dict(found["data"]) if found else None

    def deployments(self) -> set[str]:
        """Ids of every deployment of ours, which all are named ``slipway``."""
        body = {"deployments": {"name": {"any_": ["slipway"]}}, "limit": _PAGE}
        return {str(found["id"]) for found in self._ask("POST", "/deployments/filter", body) or []}

    def _runs(self, body: Mapping[str, Any]) -> list[Run]:
        return [_run(raw) for raw in self._ask("POST", "/flow_runs/filter", body) or []]

    # --- the wire --------------------------------------------------------------------------

    def _ask(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """The answer as JSON; None for 404. Repeats what a repeat can mend."""
        deadline, pause, told = time.monotonic() + self._patience, 0.2, False
        while True:
            try:
                answer = self._http.request(method, path, json=body)
                if answer.status_code < 500 and answer.status_code != 429:
                    return self._read(answer)
                seen = f"it answered {answer.status_code}"
            except httpx.TransportError as error:
                seen = f"{type(error).__name__}: {error}".rstrip(": ")
            if time.monotonic() + pause > deadline:
                raise Failed(
                    "SLP070",
                    f"asked the Prefect server for {self._patience:.0f} s, {seen}",
                    help="see `slipway status`; start it with `slipway up`",
                    where=self.api,
                )
            if not told:
                told = True
                self._on_lost(f"the Prefect server does not answer ({seen}); trying again")
            time.sleep(pause)
            pause = min(pause * 2, 5.0)

    def _read(self, answer: httpx.Response) -> Any:
        match answer.status_code:
            case 401 | 403:
                raise Unauthorised(
                    "SLP073",
                    f"the Prefect server refused the credentials ({answer.status_code})",
                    help="set PREFECT_API_KEY to a valid key",
                    where=self.api,
                )
            case 404:
                return None
            case 409 | 422:
                raise self._refused(answer)
            case code if code >= 300:
                raise self._wrong(code, answer.text[:200])
        try:
            return answer.json() if answer.content else {}
        except ValueError:
            kind = answer.headers.get("content-type", "no content type")
            raise self._wrong(answer.status_code, f"expected JSON, got {kind}") from None

    def _refused(self, answer: httpx.Response) -> UsageError:
        return UsageError(
            "SLP075",
            f"the Prefect server refused the request ({answer.status_code})",
            help="correct what it names; `slipway up` registers flows whose parameters changed",
            where=self.api,
            detail=answer.text[:1000],
        )

    def _wrong(self, code: int, seen: str) -> SlipwayError:
        return Failed(
            "SLP070",
            f"the address does not answer like a Prefect API ({code}): {seen}",
            help="check PREFECT_API_URL; it ends in /api",
            where=self.api,
        )


def _run(raw: Mapping[str, Any]) -> Run:
    state = raw.get("state") or {}
    return Run(
        id=str(raw["id"]),
        name=str(raw.get("name") or ""),
        flow_id=str(raw.get("flow_id") or ""),
        state=str(raw.get("state_type") or state.get("type") or "SCHEDULED"),
        state_name=str(raw.get("state_name") or state.get("name") or "Scheduled"),
        message=str(state.get("message") or ""),
        tags=tuple(raw.get("tags") or ()),
        started=_time(raw.get("start_time")),
        seconds=float(raw.get("total_run_time") or raw.get("estimated_run_time") or 0),
    )


def _log(raw: Mapping[str, Any]) -> Log:
    at = _time(raw["timestamp"])
    assert at is not None
    return Log(
        id=str(raw["id"]),
        run=str(raw.get("flow_run_id") or ""),
        at=at,
        level=int(raw["level"]),
        logger=str(raw["name"]),
        message=str(raw["message"]),
    )


def _time(text: Any) -> datetime | None:
    return datetime.fromisoformat(str(text).replace("Z", "+00:00")) if text else None


def _no_run(text: str, api: str) -> UsageError:
    return UsageError(
        "SLP076",
        f"the Prefect server knows no run {text!r}",
        help="give the run's id, its name, or its address; `slipway history` lists them",
        where=api,
    )
