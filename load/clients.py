"""Clients of a drill: ``python -m load.clients``, started and fed by ``blocks.drill_clients``.

They do transactions of the application through its public name, resolving it as browsers do: by
asking the name server and keeping the answer for its TTL. Each transaction is written, then read
back through the name. One JSON line a transaction goes to stdout. With stdin closed they end.

The application's file has ``begin(http)``, ``write(http, key)``, ``read(http, key)`` and
``LEDGER``, an SQL query whose first column has the keys that are in a database.
"""

from __future__ import annotations

import importlib.util
import itertools
import json
import sys
import threading
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import dns.exception
import dns.resolver
import httpx

_RESOLVE_SECONDS = 1.0
_JOIN_SECONDS = 5.0


class Resolving(httpx.BaseTransport):
    """Sends each request to the address that the name has now, by a resolver that keeps TTLs."""

    def __init__(self, resolver: dns.resolver.Resolver) -> None:
        self._resolver = resolver
        self._inner = httpx.HTTPTransport(retries=0)
        self.address = ""

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        try:
            answer = self._resolver.resolve(request.url.host, "A", lifetime=_RESOLVE_SECONDS)
        except dns.exception.DNSException as error:
            raise httpx.ConnectError(f"{request.url.host}: {type(error).__name__}") from error
        self.address = str(answer[0])
        request.url = request.url.copy_with(host=self.address)
        return self._inner.handle_request(request)  # the Host header names what was asked for

    def close(self) -> None:
        self._inner.close()


class Lane(threading.Thread):
    """One client: a transaction after another."""

    def __init__(self, given: dict[str, Any], behaviour: ModuleType | None, shared: Shared) -> None:
        super().__init__(daemon=True)
        self._given, self._behaviour, self._shared = given, behaviour, shared
        self._transport = Resolving(shared.resolver)
        self._http = httpx.Client(
            transport=self._transport,
            base_url=given["url"],
            timeout=given["timeout_seconds"],
            headers={"User-Agent": "slipway-drill"},
        )
        self._begun = False

    def run(self) -> None:
        pause = float(self._given["pause_seconds"])
        while not self._shared.over.wait(pause):
            self._shared.say(self._attempt(next(self._shared.numbers)))

    def _attempt(self, number: int) -> dict[str, Any]:
        key = f"{self._given['prefix']}{number}"
        acknowledged = read_back = False
        error = ""
        sent = time.time()
        try:
            if self._behaviour is None:
                answer = self._http.get(self._given["path"])
                acknowledged = read_back = answer.status_code == self._given["status"]
                error = "" if acknowledged else f"status {answer.status_code}"
            else:
                if not self._begun:
                    self._behaviour.begin(self._http)
                    self._begun = True
                self._behaviour.write(self._http, key)
                acknowledged = True
                read_back = bool(self._behaviour.read(self._http, key))
        except Exception as problem:  # whatever it is: this user had no success
            self._begun = False
            error = f"{type(problem).__name__}: {problem}".splitlines()[0][:200]
        return {
            "sequence": number,
            "sent": sent,
            "done": time.time(),
            "acknowledged": acknowledged,
            "read_back": read_back,
            "address": self._transport.address,
            "error": error,
        }


class Shared:
    """What all lanes have in common: the numbers, the resolver's cache, and stdout."""

    def __init__(self, nameserver: str) -> None:
        host, _, port = nameserver.rpartition(":")
        self.resolver = dns.resolver.Resolver(configure=False)
        self.resolver.nameservers = [host]
        self.resolver.port = int(port)
        self.resolver.cache = dns.resolver.Cache()
        self.numbers = itertools.count(1)
        self.over = threading.Event()
        self._lock = threading.Lock()

    def say(self, attempt: dict[str, Any]) -> None:
        line = json.dumps(attempt)
        with self._lock:
            print(line, flush=True)


def _load(file: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location("drill_transactions", Path(file))
    if spec is None or spec.loader is None:
        raise SystemExit(f"{file} is no Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    missing = [n for n in ("begin", "write", "read", "LEDGER") if not hasattr(module, n)]
    if missing:
        raise SystemExit(f"{file} has no {', '.join(missing)}")
    return module


def main() -> None:
    given = json.loads(sys.stdin.readline())
    behaviour = _load(given["transactions"]) if given["transactions"] else None
    print(json.dumps({"ledger": getattr(behaviour, "LEDGER", "")}), flush=True)
    shared = Shared(given["nameserver"])
    lanes = [Lane(given, behaviour, shared) for _ in range(int(given["lanes"]))]
    for lane in lanes:
        lane.start()
    sys.stdin.read()  # until whoever started us leaves
    shared.over.set()
    deadline = time.monotonic() + _JOIN_SECONDS
    for lane in lanes:
        lane.join(max(0.0, deadline - time.monotonic()))


if __name__ == "__main__":
    main()
