"""LocalCluster: versions as processes on this machine, kept by the sandbox's supervisor.

The supervisor does the work (and outlives whoever calls); this is its client. Every call is
idempotent, so a call that meets a supervisor being restarted is simply made again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self
from urllib.parse import quote

import httpx
from pydantic import TypeAdapter
from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_fixed

from domain.errors import Failed, NeedsPerson, SlipwayError
from domain.workload import Workload, WorkloadSpec

_WORKLOADS = TypeAdapter(tuple[Workload, ...])
_KINDS = {kind.exit_code: kind for kind in SlipwayError.__subclasses__()}
_STOP_WAIT_SECONDS = 20
_BROKEN_CONNECTION = (
    httpx.ConnectError,
    httpx.ReadError,
    httpx.WriteError,
    httpx.RemoteProtocolError,
)


class Bundles(Protocol):
    """Where the files of a version come from."""

    def materialize(self, digest: str) -> Path:
        """The unpacked, read-only folder of a bundle: ``app/`` and perhaps ``venv/``."""
        ...


class LocalCluster:
    """The Cluster protocol over the supervisor's unix socket.

    Args:
        socket: the supervisor's control socket.
        bundles: unpacks what a workload's digest names.
        patience_seconds: for how long a supervisor that does not answer is tried again.
    """

    def __init__(self, socket: Path, bundles: Bundles, *, patience_seconds: float = 5) -> None:
        self._socket, self._bundles, self._patience_seconds = socket, bundles, patience_seconds
        self._client = httpx.Client(
            transport=httpx.HTTPTransport(uds=str(socket), verify=False),
            base_url="http://cluster",
            timeout=httpx.Timeout(30, connect=2),
            trust_env=False,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        self._client.close()

    def apply(self, spec: WorkloadSpec) -> Workload:
        """See ``Cluster.apply``.

        Raises:
            Failed: SLP015 when the disk is full (nothing was started), SLP014 when the
                supervisor does not answer or the machine refused.
            UsageError: SLP005 when another version runs under this name, SLP002 when the spec
                cannot be run at all.
        """
        directory = self._bundles.materialize(spec.digest)
        body = {"spec": spec.model_dump(mode="json"), "directory": str(directory.absolute())}
        answer = self._call("PUT", _path(spec.name), content=json.dumps(body))
        return Workload.model_validate_json(answer.content)

    def get(self, name: str) -> Workload | None:
        answer = self._call("GET", _path(name))
        return None if answer.status_code == 404 else Workload.model_validate_json(answer.content)

    def workloads(self, application: str, environment: str) -> tuple[Workload, ...]:
        query = {"application": application, "environment": environment}
        return _WORKLOADS.validate_json(self._call("GET", "/workloads", params=query).content)

    def expire(self, name: str, at: datetime | None) -> bool:
        body = {"at": at.isoformat() if at else None}
        answer = self._call("POST", f"{_path(name)}/expire", content=json.dumps(body))
        return bool(answer.json()["exists"])

    def stop(self, name: str) -> None:
        """See ``Cluster.stop``.

        Raises:
            NeedsPerson: SLP013 when a process is still there although it was killed.
        """
        query = {"wait": str(_STOP_WAIT_SECONDS)}
        while not (answer := self._call("DELETE", _path(name), params=query).json())["gone"]:
            if "does not end" in answer["reason"]:
                raise NeedsPerson(
                    "SLP013",
                    f"tried to stop {name}, but {answer['reason']}",
                    help="end that process yourself, then run it again",
                    where=name,
                )

    def log_tail(self, name: str, lines: int = 20) -> str:
        answer = self._call("GET", f"{_path(name)}/log", params={"lines": str(lines)})
        return str(answer.json()["text"])

    def _call(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str] | None = None,
        content: str | None = None,
    ) -> httpx.Response:
        try:
            for attempt in Retrying(
                retry=retry_if_exception_type(_BROKEN_CONNECTION),
                stop=stop_after_delay(self._patience_seconds),
                wait=wait_fixed(0.1),
                reraise=True,
            ):
                with attempt:
                    answer = self._client.request(method, path, params=params, content=content)
        except (httpx.TransportError, OSError) as error:
            raise self._unreachable(f"{method} {path}", error) from error
        if answer.status_code in (200, 404):
            return answer
        raise _as_error(answer, where=str(self._socket))

    def _unreachable(self, tried: str, error: Exception) -> Failed:
        return Failed(
            "SLP014",
            f"the local cluster's supervisor did not answer {tried} "
            f"within {self._patience_seconds:g} s: {error or type(error).__name__}",
            help="see `slipway status`; if the sandbox is down, start it with `slipway up`",
            where=str(self._socket),
        )


def _path(name: str) -> str:
    return f"/workloads/{quote(name, safe='')}"


def _as_error(answer: httpx.Response, where: str) -> SlipwayError:
    """The error as the supervisor raised it; an answer that is none is an error of its own."""
    try:
        said: dict[str, Any] = answer.json()["error"]
        return _KINDS.get(said["exit_code"], Failed)(
            said["code"],
            said["message"],
            help=said["hint"],
            where=said["where"],
            detail=said["detail"] or "",
        )
    except (ValueError, KeyError, TypeError):
        return Failed(
            "SLP014",
            f"the local cluster's supervisor answered {answer.status_code}",
            help="see its log with `slipway status`",
            where=where,
            detail=answer.text[:500],
        )
