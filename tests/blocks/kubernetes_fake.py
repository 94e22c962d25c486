"""A strict stand-in for the Kubernetes API: lists in pages, forgets them, and refuses the rest."""

from __future__ import annotations

import http.server
import json
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import parse_qs, urlsplit

from domain.kubernetes_objects import RESTORE_ORDER

Fault = Callable[[str, dict[str, str]], tuple[int, Any] | None]


class FakeKubernetes:
    """Objects of one namespace.

    Attributes:
        asked: path and parameters of every list.
        fault: may answer in the place of the server; raw bytes are sent as they are.
    """

    def __init__(self, namespace: str, token: str) -> None:
        self.namespace, self.token = namespace, token
        self.objects: dict[str, list[dict[str, Any]]] = defaultdict(list)
        self.asked: list[tuple[str, dict[str, str]]] = []
        self.fault: Fault = lambda _path, _query: None
        self.version = 100
        self._kinds = {
            r.path.format(namespace=namespace): r.kind for r in RESTORE_ORDER if r.always
        }
        self._snapshots: dict[str, tuple[str, list[dict[str, Any]]]] = {}

    def add(self, plural: str, item: dict[str, Any]) -> None:
        self.version += 1
        (path,) = [p for p in self._kinds if p.endswith(f"/{plural}")]
        item["metadata"] |= {"namespace": self.namespace, "resourceVersion": str(self.version)}
        self.objects[path].append(item)

    def forget_lists(self) -> None:
        self._snapshots.clear()

    def answer(self, path: str, query: dict[str, str], token: str) -> tuple[int, Any]:
        if token != f"Bearer {self.token}":
            return 401, {"message": "Unauthorized"}
        if (fault := self.fault(path, query)) is not None:
            return fault
        if path == "/version":
            return 200, {"gitVersion": "v1.34.1"}
        self.asked.append((path, query))
        if path not in self._kinds:
            return 404, {"message": "the server could not find the requested resource"}
        if query.keys() - {"limit", "labelSelector", "continue"}:
            return 400, {"message": f"unknown parameters {query}"}
        if "continue" in query:
            if query["continue"] not in self._snapshots:
                return 410, {"reason": "Expired", "message": "The provided continue is too old"}
            version, items = self._snapshots.pop(query["continue"])
        else:
            version, items = str(self.version), self._selected(path, query.get("labelSelector"))
        limit = int(query.get("limit", "500"))
        metadata: dict[str, Any] = {"resourceVersion": version}
        if items[limit:]:
            metadata["continue"] = f"{path}-{version}-{len(items)}-{len(self.asked)}"
            self._snapshots[metadata["continue"]] = version, items[limit:]
        return 200, {"kind": f"{self._kinds[path]}List", "apiVersion": "v1", "metadata": metadata,
                     "items": items[:limit]}  # fmt: skip

    def _selected(self, path: str, selector: str | None) -> list[dict[str, Any]]:
        wanted = dict(part.split("=") for part in (selector or "").split(",") if part)
        return [
            item for item in self.objects[path]
            if wanted.items() <= item["metadata"].get("labels", {}).items()
        ]  # fmt: skip

    @contextmanager
    def serving(self) -> Iterator[str]:
        fake = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            wbufsize = -1  # one packet an answer: two would wait for each other

            def do_GET(self) -> None:
                parts = urlsplit(self.path)
                query = {k: v[0] for k, v in parse_qs(parts.query, strict_parsing=False).items()}
                code, said = fake.answer(parts.path, query, self.headers.get("Authorization", ""))
                content = said if isinstance(said, bytes) else json.dumps(said).encode()
                self.send_response(code)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: object) -> None:
                pass

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            server.server_close()
            thread.join()
