"""The cluster supervisor's calls: JSON over a unix socket that only its owner can open.

::

    PUT    /workloads/{name}               declare: {"spec": WorkloadSpec, "directory": PATH}
    GET    /workloads?application=&environment=
    GET    /workloads/{name}
    POST   /workloads/{name}/expire        {"at": TIME or null}
    DELETE /workloads/{name}?wait=SECONDS  drain; answers when gone, or says why not yet
    GET    /workloads/{name}/log?lines=N
    GET    /healthz
    POST   /shutdown?forget=BOOLEAN        end every replica, then exit

Errors are ``{"error": SlipwayError.to_dict()}``. No answer holds a replica's environment.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import stat
import struct
import sys
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import uvicorn
from pydantic import AwareDatetime, BaseModel, ConfigDict, ValidationError
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from uvicorn.protocols.http.h11_impl import H11Protocol

from domain.errors import Failed, SlipwayError, UsageError
from domain.workload import WorkloadSpec

if TYPE_CHECKING:
    import asyncio

    from sandbox.cluster_supervisor import Supervisor

log = logging.getLogger(__name__)

_STATUS = {"SLP015": 507, "SLP005": 409, "SLP002": 422, "SLP010": 503}
_WAIT_LIMIT_SECONDS = 30.0
_LINES_LIMIT = 2000


class Declaration(BaseModel):
    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    spec: WorkloadSpec
    directory: Path


class Expiry(BaseModel):
    model_config = ConfigDict(extra="forbid")

    at: AwareDatetime | None


class ClusterServer(uvicorn.Server):
    """uvicorn without its signal handling: what a signal means is the supervisor's affair."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield

    def stop(self) -> None:
        self.should_exit = True


def server(supervisor: Supervisor) -> ClusterServer:
    made: list[ClusterServer] = []
    config = uvicorn.Config(
        _application(supervisor, stop=lambda: made[0].stop()),
        http=_OwnerOnly,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=1,
    )
    made.append(ClusterServer(config))
    return made[0]


def _application(supervisor: Supervisor, stop: Callable[[], None]) -> Starlette:
    calls = _Calls(supervisor, stop)
    return Starlette(
        routes=[
            Route("/healthz", calls.healthz),
            Route("/shutdown", calls.shutdown, methods=["POST"]),
            Route("/workloads", calls.workloads),
            Route("/workloads/{name}", calls.get, methods=["GET"]),
            Route("/workloads/{name}", calls.declare, methods=["PUT"]),
            Route("/workloads/{name}", calls.remove, methods=["DELETE"]),
            Route("/workloads/{name}/expire", calls.expire, methods=["POST"]),
            Route("/workloads/{name}/log", calls.log, methods=["GET"]),
        ],
        exception_handlers={
            SlipwayError: _expected,
            ValidationError: _invalid,
            OSError: _refused,
        },
    )


class _Calls:
    def __init__(self, supervisor: Supervisor, stop: Callable[[], None]) -> None:
        self._supervisor, self._stop = supervisor, stop

    async def healthz(self, request: Request) -> Response:
        return JSONResponse({"pid": os.getpid()})

    async def workloads(self, request: Request) -> Response:
        found = self._supervisor.workloads(
            request.query_params.get("application"), request.query_params.get("environment")
        )
        return JSONResponse([workload.model_dump(mode="json") for workload in found])

    async def get(self, request: Request) -> Response:
        found = self._supervisor.get(request.path_params["name"])
        return _json(found) if found else JSONResponse(None, status_code=404)

    async def declare(self, request: Request) -> Response:
        wanted = Declaration.model_validate_json(await request.body())
        if wanted.spec.name != request.path_params["name"]:
            raise UsageError(
                "SLP002",
                f"asked for {request.path_params['name']} with a spec named {wanted.spec.name}",
                help="use one name",
            )
        return _json(self._supervisor.declare(wanted.spec, wanted.directory))

    async def expire(self, request: Request) -> Response:
        expiry = Expiry.model_validate_json(await request.body())
        there = self._supervisor.expire(request.path_params["name"], expiry.at)
        return JSONResponse({"exists": there})

    async def remove(self, request: Request) -> Response:
        wait = min(_number(request, "wait", 20.0), _WAIT_LIMIT_SECONDS)
        why = await self._supervisor.remove(request.path_params["name"], wait)
        return JSONResponse({"gone": why is None, "reason": why or ""})

    async def log(self, request: Request) -> Response:
        lines = int(min(_number(request, "lines", 20), _LINES_LIMIT))
        return JSONResponse({"text": self._supervisor.log_tail(request.path_params["name"], lines)})

    async def shutdown(self, request: Request) -> Response:
        forget = request.query_params.get("forget", "false").lower() in ("1", "true", "yes")
        await self._supervisor.shutdown(forget=forget)
        self._stop()
        return JSONResponse({"stopped": True})


def _json(model: BaseModel) -> Response:
    return Response(model.model_dump_json(), media_type="application/json")


def _number(request: Request, name: str, default: float) -> float:
    text = request.query_params.get(name, str(default))
    try:
        number = float(text)
    except ValueError:
        number = -1
    if not 0 <= number < float("inf"):
        raise UsageError("SLP002", f"{name}={text} is not a number from 0 on", help="correct it")
    return number


# -- errors ----------------------------------------------------------------------------------


async def _expected(request: Request, error: Exception) -> Response:
    assert isinstance(error, SlipwayError)
    return JSONResponse({"error": error.to_dict()}, status_code=_STATUS.get(error.code, 500))


async def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, ValidationError)
    problems = error.errors(include_input=False, include_url=False, include_context=False)
    said = "; ".join(f"{'.'.join(map(str, p['loc']))}: {p['msg']}" for p in problems)
    problem = UsageError("SLP002", f"the cluster was asked for what it cannot read: {said}",
                         help="correct the named fields")  # fmt: skip
    return await _expected(request, problem)


async def _refused(request: Request, error: Exception) -> Response:
    log.error("%s %s: %s", request.method, request.url.path, error)
    problem = Failed("SLP014", f"the cluster supervisor was refused by the machine: {error}",
                     help="see its log with `slipway status`")  # fmt: skip
    return await _expected(request, problem)


# -- the socket ------------------------------------------------------------------------------


@contextlib.contextmanager
def owner_only_socket(path: Path) -> Iterator[socket.socket]:
    """A listening socket (0600 in a folder that is ours alone); taken away again at the end."""
    folder = path.parent
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = folder.stat()
    if found.st_uid != os.getuid() or stat.S_IMODE(found.st_mode) & 0o077:
        raise Failed(
            "SLP011",
            "tried to open the cluster's control socket, but others may enter its folder",
            help=f"run: chmod 700 {folder}",
            where=str(folder),
        )
    path.unlink(missing_ok=True)  # a killed supervisor's; the lock says that none runs
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        try:
            listener.bind(str(path))
        except OSError as error:
            raise Failed(
                "SLP011",
                f"tried to open the cluster's control socket, but {error}",
                help="give a shorter path, in a folder that can be written",
                where=str(path),
            ) from error
        path.chmod(0o600)
        listener.listen(128)
        try:
            yield listener
        finally:
            path.unlink(missing_ok=True)


class _OwnerOnly(H11Protocol):
    """Closes connections of other users, should the folder's mode ever be loosened."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        peer = _peer_uid(transport.get_extra_info("socket"))
        if peer not in (None, os.getuid()):
            log.error("refused a connection of user %s", peer)
            transport.abort()


def _peer_uid(connection: socket.socket) -> int | None:
    """Who is at the other end; None where the system does not tell."""
    if sys.platform != "linux":
        return None
    credentials = connection.getsockopt(
        socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")
    )
    return int(struct.unpack("3i", credentials)[1])
