"""Tiny applications for the scenarios: one file, no lock, so that a build takes milliseconds.

What is wrong with a version is a knob in its source, so that it is part of what is shipped.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

Document = dict[str, Any]

SERVER = r'''
"""An HTTP server that does what knobs.json says; without knobs it behaves."""
import asyncio
import json
import os
import random
import signal
import sys
import time

with open("knobs.json", encoding="utf-8") as file:
    KNOBS = json.load(file)
VERSION = os.environ["SLIPWAY_VERSION"]
idle, stopping = set(), asyncio.Event()


async def answer(path, host):
    if path == "/readyz":
        return KNOBS.get("ready", 200), "readiness of " + VERSION
    if path == "/healthz":
        return 200, "alive"
    if path == "/smoke" and host.endswith(".localhost") or ".localhost:" in host:
        return KNOBS.get("public_smoke", 200), "smoke of " + VERSION
    if path == "/peer":
        return await ask_peer()
    await asyncio.sleep(KNOBS.get("slow", 0))
    if random.random() < KNOBS.get("flaky", 0):
        return 500, "out of luck"
    return KNOBS.get("answer", 200), VERSION


async def ask_peer():
    """The version of the other service, as this one finds it."""
    rest = os.environ["PEER_URL"].removeprefix("http://")
    address, _, prefix = rest.partition("/")
    host, _, port = address.partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    request = f"GET /{prefix}/version HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n"
    writer.write(request.encode())
    whole = (await reader.read()).decode()
    writer.close()
    head, _, body = whole.partition("\r\n\r\n")
    return int(head.split()[1]), VERSION + "+" + body


async def serve(reader, writer):
    try:
        while not stopping.is_set():
            idle.add(writer)
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            idle.discard(writer)
            host = next((line[6:] for line in head.lower().split("\r\n")
                         if line.startswith("host: ")), "")
            status, text = await answer(head.split()[1].partition("?")[0], host)
            last = "Connection: close\r\n" if stopping.is_set() else ""
            whole = f"HTTP/1.1 {status} X\r\n{last}Content-Length: {len(text)}\r\n\r\n{text}"
            writer.write(whole.encode())
            await writer.drain()
    except (EOFError, OSError):
        return
    finally:
        idle.discard(writer)
        writer.close()


async def main():
    print("starts as", VERSION, flush=True)
    if "exit" in KNOBS:
        print("the flux capacitor is missing", flush=True)
        sys.exit(KNOBS["exit"])
    await asyncio.sleep(KNOBS.get("start", 0))
    port = KNOBS.get("port") or int(os.environ["PORT"])
    server = await asyncio.start_server(serve, "127.0.0.1", port, backlog=512)
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, stopping.set)
    if "exit_after" in KNOBS:
        loop.call_later(KNOBS["exit_after"], os._exit, 7)
    await stopping.wait()
    server.close()
    for writer in list(idle):
        writer.close()
    while tasks := asyncio.all_tasks() - {asyncio.current_task()}:
        await asyncio.wait(tasks)


asyncio.run(main())
'''

WORKER = r'''
"""A service that listens to nobody."""
import signal
import threading

done = threading.Event()
signal.signal(signal.SIGTERM, lambda *_: done.set())
print("works", flush=True)
done.wait()
'''

SERVE = "python -IS serve.py"
WORK = "python -IS work.py"


class App:
    """The source of one application; ``source`` writes a version of it.

    Args:
        folder: where its source lies.
        name: its name in application.yaml; each test has its own.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self.folder, self.name = folder, name
        self._named = 0
        folder.mkdir(parents=True, exist_ok=True)

    def fresh(self) -> str:
        """A version name that nobody has used: one that was taken back cannot be used again."""
        self._named += 1
        return f"1.1.{self._named}"

    def source(
        self,
        version: str,
        *,
        files: Mapping[str, str] | None = None,
        web: Mapping[str, Any] | None = None,
        **knobs: Any,
    ) -> str:
        """Write a version; returns the folder as flows take it.

        Args:
            files: further files by path.
            web: fields of the service ``web`` that differ from ``service()``.
            knobs: what is wrong with the server (see ``SERVER``).
        """
        return self.write({"version": version, "services": {"web": service(**(web or {}))}},
                          files, **knobs)  # fmt: skip

    def write(
        self, document: Mapping[str, Any], files: Mapping[str, str] | None = None, **knobs: Any
    ) -> str:
        """Write a version from parts of its application.yaml."""
        for old in sorted(self.folder.rglob("*"), reverse=True):
            old.rmdir() if old.is_dir() else old.unlink()
        whole = {**self.defaults(), **document}
        given = {
            "application.yaml": json.dumps(whole, indent=1),
            "serve.py": SERVER,
            "work.py": WORKER,
            # The version is content too: one name, one content.
            "knobs.json": json.dumps({**knobs, "name": whole["version"]}),
            **(files or {}),
        }
        for path, text in given.items():
            file = self.folder / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8")
        return str(self.folder)

    def defaults(self) -> Document:
        return {
            "name": self.name,
            "services": {"web": service()},
            "smoke": [{"path": "/healthz"}, {"path": "/version"}],
            "environments": {"production": {"strategy": "blue-green"}, "staging": {}},
        }


def service(**fields: Any) -> Document:
    """A service that serves at ``/``; ``fields`` replace what it is by default."""
    return {
        "command": SERVE,
        "routes": ["/"],
        "health": "/healthz",
        "ready": "/readyz",
        "start": "15s",
        "drain": "3s",
        **fields,
    }
