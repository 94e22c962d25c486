"""What an application is made of where it runs: Kubernetes objects, workloads, secrets' metadata.

Each dump is JSON, one object a line, in an order in which it can be restored. With standard
tools: ``grep -v '^{"apiVersion":"slipway/v1"' FILE | kubectl apply -f -``. Lines of Slipway's own
kinds (``SecretMetadata``, ``Workload``, ``Routing``) are to be read by a person.

Values of secrets are in none of them.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

from kubernetes.client import ApiClient
from kubernetes.client.exceptions import ApiException
from urllib3.exceptions import HTTPError

from blocks.cluster import Cluster
from blocks.edge import Edge
from blocks.metrics import utc_now
from blocks.pieces import Pieces
from domain.errors import Failed, Unauthorised
from domain.kubernetes_objects import (
    RESTORE_ORDER,
    SECRETS,
    Object,
    Resource,
    cleaned,
    left_out,
    secret_metadata,
)
from domain.recovery import Facts, MemberKind

PAGE_ITEMS = 250
BEGINNINGS = 4
"""How often a list is begun anew when the server has forgotten the one that is being read."""

MAX_PAGES = 10_000
_ASK_SECONDS = (5, 60)
_NOT_INSTALLED = 404


class Listing:
    """Counts the lines of a dump while they go by."""

    def __init__(self, at: datetime, tools: Mapping[str, str]) -> None:
        self.data_time, self.tools = at, tools
        self.kinds: Counter[str] = Counter()
        self.left_out: Counter[str] = Counter()
        self.absent: list[str] = []
        self._hash = hashlib.sha256()

    def line(self, said: Object) -> bytes:
        line = json.dumps(said, separators=(",", ":")).encode() + b"\n"
        self.kinds[said["kind"]] += 1
        self._hash.update(line)
        return line

    def facts(self) -> Facts:
        return Facts(
            data_time=self.data_time,
            tools=self.tools,
            inventory={
                "objects": dict(sorted(self.kinds.items())),
                "left_out": dict(sorted(self.left_out.items())),
                "not_installed": self.absent,
                "sha256": self._hash.hexdigest(),
            },
        )


class LinesStream:
    """A dump of lines under way; see ``blocks.dump.Stream``."""

    def __init__(self, lines: Iterator[bytes], listing: Listing) -> None:
        self._pieces, self._listing = Pieces(lines), listing

    def read(self, size: int) -> bytes:
        return self._pieces.read(size)

    def facts(self) -> Facts:
        if not self._pieces.ended:
            raise RuntimeError("the dump has not ended")
        return self._listing.facts()


class KubernetesSource:
    """Objects with a label, of one namespace, each kind complete at one moment.

    What another object makes (the pods of a deployment) is left out and counted. Kinds that are
    not installed are named in the inventory. One kind at a time is held in memory, since a list
    that the server forgets in the middle has to begin anew.

    Args:
        api: as ``kubernetes.config`` makes it.
        labels: selector, such as ``app.kubernetes.io/part-of=shop``; empty for all.
    """

    kind = MemberKind.KUBERNETES

    def __init__(
        self,
        api: ApiClient,
        namespace: str,
        labels: str,
        *,
        resources: tuple[Resource, ...] = RESTORE_ORDER,
        page_items: int = PAGE_ITEMS,
    ) -> None:
        self._api, self._namespace, self._labels = api, namespace, labels
        self._resources, self._page_items = resources, page_items

    @contextmanager
    def open(self) -> Iterator[LinesStream]:
        """See ``blocks.dump.Source.open``.

        Raises:
            Failed: SLP136, the API server does not answer.
            Unauthorised: SLP139, it refuses the login.
        """
        try:
            said, at = self._ask("/version", {})
        except (_Forgotten, _Absent):
            raise self._failed("it does not say its version") from None
        listing = Listing(at, {"kubernetes": str(said.get("gitVersion", "unknown"))})
        yield LinesStream(self._lines(listing), listing)

    def _lines(self, listing: Listing) -> Iterator[bytes]:
        for resource in self._resources:
            found = self._list(resource)
            if found is None:
                listing.absent.append(str(resource))
            for item in sorted(found or (), key=lambda item: str(item["metadata"]["name"])):
                if resource is SECRETS:
                    yield listing.line(secret_metadata(item))
                elif why := left_out(item):
                    listing.left_out[why] += 1
                else:
                    yield listing.line(cleaned(item, resource))

    def _list(self, resource: Resource) -> list[Object] | None:
        """All of a kind; None when the cluster has no such kind.

        A server keeps a list for some minutes, then answers 410: what was read until then and
        what a new list says are of two moments, so that it begins anew.
        """
        for _ in range(BEGINNINGS):
            try:
                return self._pages(resource)
            except _Forgotten:
                continue
            except _Absent:
                if not resource.always:
                    return None
                raise self._failed(f"it has no {resource}") from None
        raise self._failed(
            f"the list of {resource} was forgotten {BEGINNINGS} times before its last page"
        )

    def _pages(self, resource: Resource) -> list[Object]:
        path = resource.path.format(namespace=self._namespace)
        found: list[Object] = []
        names: set[str] = set()
        token, version = "", ""
        for _ in range(MAX_PAGES):
            query = {"limit": str(self._page_items), "labelSelector": self._labels}
            page, _at = self._ask(path, query | ({"continue": token} if token else {}))
            metadata = page.get("metadata")
            if page.get("kind") != f"{resource.kind}List" or not isinstance(metadata, dict):
                raise self._failed(f"{path} answered with no list of {resource}")
            if token and metadata.get("resourceVersion") != version:
                raise _Forgotten  # an inconsistent list: of another moment than its first page
            for item in page.get("items") or ():
                if (name := item["metadata"]["name"]) in names:
                    raise _Forgotten
                names.add(name)
                found.append(item)
            version, token = str(metadata.get("resourceVersion")), metadata.get("continue", "")
            if not token:
                return found
        raise self._failed(f"the list of {resource} had still more pages after {MAX_PAGES}")

    def _ask(self, path: str, query: Mapping[str, str]) -> tuple[Object, datetime]:
        """The answer as it is, and the server's time.

        Not through the client's models: these drop every field that they do not know.
        """
        try:
            request = self._api.param_serialize(
                "GET",
                path,
                query_params=[(name, value) for name, value in query.items() if value],
                header_params={"Accept": "application/json"},
                auth_settings=["BearerToken"],
            )
            answer = self._api.call_api(*request, _request_timeout=_ASK_SECONDS)
            content: bytes = answer.read()  # type: ignore[no-untyped-call]
            headers = answer.getheaders()  # type: ignore[no-untyped-call]
        except (ApiException, HTTPError, OSError) as error:
            raise self._failed(f"{path}: {type(error).__name__}: {error}") from error
        if answer.status == 410:
            raise _Forgotten
        if answer.status == _NOT_INSTALLED:
            raise _Absent
        if answer.status in (401, 403):
            raise Unauthorised(
                "SLP139",
                f"Kubernetes refuses to show {path}: {_message(content)}",
                help="give the login of the backup the right to list it",
                where=self._namespace,
            )
        if answer.status != 200:
            raise self._failed(f"{path} answered {answer.status}: {_message(content)}")
        try:
            said = json.loads(content)
            at = parsedate_to_datetime(headers["date"])
        except (ValueError, KeyError, TypeError) as error:
            raise self._failed(f"{path} answered with no whole JSON, or without a date") from error
        if not isinstance(said, dict):
            raise self._failed(f"{path} answered with no object")
        return said, at.astimezone(UTC)

    def _failed(self, seen: str) -> Failed:
        return Failed(
            "SLP136",
            f"the objects of the namespace could not be read: {seen}",
            help="run it again when the API server is well",
            where=self._namespace,
        )


class _Forgotten(Exception):
    """The server does not know that list any more."""


class _Absent(Exception):
    """The server has no such path."""


def _message(content: bytes) -> str:
    try:
        return str(json.loads(content)["message"])[:300]
    except (ValueError, KeyError, TypeError):
        return repr(content[:200])


class LocalClusterSource:
    """What a cluster without Kubernetes says of an environment: its versions and their routes.

    Neither variables (secrets are among them) nor what only this machine knows (processes, logs),
    nor the cookie by which testers reach a new version.
    """

    kind = MemberKind.KUBERNETES

    def __init__(
        self,
        cluster: Cluster,
        edge: Edge,
        application: str,
        environment: str,
        *,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        self._cluster, self._edge, self._now = cluster, edge, now
        self._application, self._environment = application, environment

    @contextmanager
    def open(self) -> Iterator[LinesStream]:
        listing = Listing(self._now(), {})
        yield LinesStream(self._lines(listing), listing)

    def _lines(self, listing: Listing) -> Iterator[bytes]:
        found = self._cluster.workloads(self._application, self._environment)
        for workload in sorted(found, key=lambda w: w.name):
            said = workload.model_dump(mode="json", exclude={"replicas"})
            phases = [replica.phase.value for replica in workload.replicas]
            yield listing.line(_own("Workload", said | {"replicas": phases}))
        routing = self._edge.read(self._application, self._environment)
        if routing is not None:
            said = routing.model_dump(
                mode="json", exclude={"routes": {"__all__": {"testing": {"value"}}}}
            )
            yield listing.line(_own("Routing", said))


@dataclass(frozen=True)
class SecretMetadata:
    """What may be known of a secret.

    Attributes:
        kind: what holds it, such as a Prefect block type.
        version: an ID that a new secret of the same name does not share.
    """

    kind: str
    version: str
    created: datetime | None
    updated: datetime | None


class SecretsSource:
    """The secrets that an application names: when they were made and changed, never their values.

    A restore tells by it which of them are missing, or are older than the data.

    Args:
        secrets: variable to the name of its secret, as application.yaml has it.
        lookup: tells of one; None when there is none of that name. Must raise when it cannot
            look, see ``prefect_secret``.
    """

    kind = MemberKind.SECRETS

    def __init__(
        self,
        secrets: Mapping[str, str],
        lookup: Callable[[str], SecretMetadata | None],
        *,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        self._secrets, self._lookup, self._now = secrets, lookup, now

    @contextmanager
    def open(self) -> Iterator[LinesStream]:
        listing = Listing(self._now(), {})
        yield LinesStream(self._lines(listing), listing)

    def _lines(self, listing: Listing) -> Iterator[bytes]:
        for name in sorted(set(self._secrets.values())):
            variables = sorted(v for v, secret in self._secrets.items() if secret == name)
            found = self._lookup(name)
            if found is None:
                listing.left_out["missing"] += 1
            yield listing.line(
                _own(
                    "SecretMetadata",
                    {
                        "name": name,
                        "variables": variables,
                        "exists": found is not None,
                        "type": found and found.kind,
                        "version": found and found.version,
                        "created": found and found.created and found.created.isoformat(),
                        "updated": found and found.updated and found.updated.isoformat(),
                    },
                )
            )


def prefect_secret(name: str) -> SecretMetadata | None:
    """Of a Prefect Secret block; the server is asked to leave its value out.

    Raises:
        Failed: SLP136, the server could not be asked.
    """
    import httpx
    from prefect.client.orchestration import get_client
    from prefect.exceptions import ObjectNotFound, PrefectException

    try:
        with get_client(sync_client=True) as client:
            found = client.read_block_document_by_name(name, "secret", include_secrets=False)
    except ObjectNotFound:
        return None
    except (PrefectException, httpx.HTTPError, OSError) as error:
        raise Failed(
            "SLP136",
            f"Prefect could not be asked about the secret {name}: {error}",
            help="run it again when the Prefect server is back",
        ) from error
    return SecretMetadata("prefect secret", str(found.id), found.created, found.updated)


def _own(kind: str, said: Mapping[str, Any]) -> Object:
    return {"apiVersion": "slipway/v1", "kind": kind, **said}
