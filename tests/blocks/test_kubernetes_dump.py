"""Kubernetes objects from a strict stand-in, workloads of a local cluster, secrets' metadata."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from kubernetes.client import ApiClient, Configuration

from blocks.kubernetes_dump import (
    KubernetesSource,
    LocalClusterSource,
    SecretMetadata,
    SecretsSource,
    prefect_secret,
)
from domain import routing
from domain.errors import Failed, SlipwayError, Unauthorised
from domain.kubernetes_objects import LAST_APPLIED
from domain.routing import Backend, Route, Routing
from domain.workload import Phase, Replica, Workload
from tests.blocks.kubernetes_fake import FakeKubernetes

PLANTED = "planted-secret-value"
OURS = {"app.kubernetes.io/part-of": "shop"}
SELECTOR = "app.kubernetes.io/part-of=shop"
NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


def item(name: str, *, labels: dict[str, str] | None = None, **more: Any) -> dict[str, Any]:
    metadata = {
        "name": name,
        "uid": f"uid-{name}",
        "managedFields": [{"manager": "x"}],
        "labels": OURS if labels is None else labels,
        **more.pop("metadata", {}),
    }
    return {"metadata": metadata, "status": {"ready": 1}} | more


@pytest.fixture
def fake() -> Iterator[FakeKubernetes]:
    yield FakeKubernetes("shop-production", "right")


@pytest.fixture
def url(fake: FakeKubernetes) -> Iterator[str]:
    with fake.serving() as url:
        yield url


def source(url: str, token: str = "right", **options: Any) -> KubernetesSource:
    configuration = Configuration()
    configuration.host = url
    configuration.api_key = {"authorization": f"Bearer {token}"}
    configuration.retries = False  # type: ignore[assignment]
    return KubernetesSource(ApiClient(configuration), "shop-production", SELECTOR, **options)


def dump(source: Any, size: int = 100) -> tuple[list[dict[str, Any]], bytes, Any]:
    with source.open() as stream:
        content = b"".join(iter(lambda: stream.read(size), b""))
        return [json.loads(line) for line in content.splitlines()], content, stream.facts()


def test_objects_come_clean_and_in_velero_s_order(fake: FakeKubernetes, url: str) -> None:
    fake.add("services", item("web", spec={
        "clusterIP": "10.0.0.7", "clusterIPs": ["10.0.0.7"],
        "ports": [{"port": 80, "nodePort": 31000}]}))  # fmt: skip
    fake.add("services", item("peers", spec={"clusterIP": "None"}))
    fake.add("deployments", item(
        "web", spec={"replicas": 3, "aFieldOfTomorrow": {"kept": True}},
        metadata={"annotations": {LAST_APPLIED: "{}", "note": "kept"}}))  # fmt: skip
    fake.add("configmaps", item("settings", data={"a": "1"}))
    fake.add("persistentvolumeclaims", item("data", spec={"volumeName": "pv-1"}))
    fake.add("configmaps", item("someone-else", labels={"app": "other"}))
    found, _, facts = dump(source(url))
    assert [(o["kind"], o["metadata"]["name"]) for o in found] == [
        ("PersistentVolumeClaim", "data"), ("ConfigMap", "settings"), ("Deployment", "web"),
        ("Service", "peers"), ("Service", "web"),
    ]  # fmt: skip
    claim, settings, deployment, peers, web = found
    assert deployment == {
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": "web", "namespace": "shop-production", "labels": OURS,
                     "annotations": {"note": "kept"}},
        "spec": {"replicas": 3, "aFieldOfTomorrow": {"kept": True}},
    }  # fmt: skip
    assert web["spec"] == {"ports": [{"port": 80}]}
    assert peers["spec"] == {"clusterIP": "None"}
    assert claim["spec"] == {} and settings["data"] == {"a": "1"}
    assert facts.inventory["objects"]["Service"] == 2
    assert "httproutes.gateway.networking.k8s.io/v1" in facts.inventory["not_installed"]
    assert facts.tools == {"kubernetes": "v1.34.1"}
    assert facts.data_time.tzinfo is not None


def test_of_secrets_there_is_nothing_but_their_names(fake: FakeKubernetes, url: str) -> None:
    """The annotation of kubectl apply holds the whole Secret once more."""
    fake.add("secrets", item(
        "login", type="Opaque", data={"password": PLANTED, "user": "YQ=="},
        stringData={"extra": PLANTED},
        metadata={"annotations": {LAST_APPLIED: PLANTED, "token": PLANTED},
                  "creationTimestamp": "2026-01-01T00:00:00Z"}))  # fmt: skip
    fake.add("configmaps", item("settings", metadata={"annotations": {LAST_APPLIED: PLANTED}}))
    found, content, facts = dump(source(url))
    assert PLANTED not in content.decode() + facts.model_dump_json()
    (secret,) = [o for o in found if o["kind"] == "SecretMetadata"]
    assert secret["keys"] == ["extra", "password", "user"]
    assert secret["metadata"]["annotations"] == [LAST_APPLIED, "token"]
    assert secret["metadata"]["resourceVersion"]
    assert not any(o["kind"] == "Secret" for o in found)  # applied, it would empty the real one


def test_what_an_owner_makes_again_is_left_out_and_counted(fake: FakeKubernetes, url: str) -> None:
    fake.add("pods", item("made", metadata={"ownerReferences": [{"controller": True}]}))
    fake.add("pods", item("going", metadata={"deletionTimestamp": "2026-01-01T00:00:00Z"}))
    fake.add("pods", item("alone", spec={"nodeName": "node-1", "x": 1}))
    found, _, facts = dump(source(url))
    assert [(o["metadata"]["name"], o["spec"]) for o in found] == [("alone", {"x": 1})]
    assert facts.inventory["left_out"] == {"being deleted": 1, "made again by its owner": 1}


def test_all_pages_are_read(fake: FakeKubernetes, url: str) -> None:
    for n in range(23):
        fake.add("configmaps", item(f"c{n:02}"))
    found, _, _ = dump(source(url, page_items=5))
    assert [o["metadata"]["name"] for o in found] == [f"c{n:02}" for n in range(23)]
    pages = [query for path, query in fake.asked if path.endswith("/configmaps")]
    assert len(pages) == 5 and all(query["labelSelector"] == SELECTOR for query in pages)


def test_a_list_that_the_server_forgot_begins_anew(fake: FakeKubernetes, url: str) -> None:
    """Its first pages are of another moment: an object could be missing in both halves."""
    for n in range(12):
        fake.add("configmaps", item(f"c{n:02}"))
    once = iter([True])

    def forget(path: str, query: dict[str, str]) -> None:
        if "continue" in query and next(once, False):
            fake.objects[path] = fake.objects[path][1:]
            fake.version += 1
            fake.forget_lists()

    fake.fault = forget
    found, _, _ = dump(source(url, page_items=5))
    assert [o["metadata"]["name"] for o in found] == [f"c{n:02}" for n in range(1, 12)]


def test_a_list_that_is_forgotten_each_time_is_an_error(fake: FakeKubernetes, url: str) -> None:
    for n in range(12):
        fake.add("configmaps", item(f"c{n:02}"))
    fake.fault = lambda _path, _query: fake.forget_lists()  # type: ignore[func-returns-value]
    with pytest.raises(Failed, match="forgotten 4 times") as raised:
        dump(source(url, page_items=5))
    assert raised.value.code == "SLP136"


def test_a_page_of_another_moment_is_not_joined_to_the_first(
    fake: FakeKubernetes, url: str
) -> None:
    for n in range(12):
        fake.add("configmaps", item(f"c{n:02}"))

    def newer(path: str, query: dict[str, str]) -> tuple[int, Any] | None:
        if "continue" not in query:
            return None
        return 200, {"kind": "ConfigMapList", "metadata": {"resourceVersion": "999"}, "items": []}

    fake.fault = newer
    with pytest.raises(Failed, match="forgotten"):
        dump(source(url, page_items=5))


@pytest.mark.parametrize(
    ("code", "said", "error"),
    [(500, {"message": "etcd is away"}, "SLP136"), (429, {}, "SLP136"), (404, {}, "SLP136"),
     (200, b"{", "SLP136"), (200, b"[]", "SLP136"), (200, {"kind": "Status"}, "SLP136"),
     (403, {"message": "cannot list configmaps"}, "SLP139")],
)  # fmt: skip
def test_an_answer_that_is_no_list_is_no_empty_list(
    fake: FakeKubernetes, url: str, code: int, said: Any, error: str
) -> None:
    fake.fault = lambda path, _: (code, said) if path.endswith("/configmaps") else None
    with source(url).open() as stream:
        for _ in range(2):
            with pytest.raises(SlipwayError) as raised:
                while stream.read(100):
                    pass
            assert raised.value.code == error
        with pytest.raises(RuntimeError):
            stream.facts()


def test_a_wrong_token_and_a_server_that_is_away(fake: FakeKubernetes, url: str) -> None:
    with pytest.raises(Unauthorised):
        dump(source(url, token=PLANTED))
    with pytest.raises(Failed) as raised:
        dump(source("http://127.0.0.1:9"))
    assert raised.value.code == "SLP136"


class Runs:
    """A cluster and an edge that say one thing."""

    def workloads(self, application: str, environment: str) -> tuple[Workload, ...]:
        replica = Replica(index=0, phase=Phase.READY, address="127.0.0.1:1", pid=7, log="/x/log")
        return (
            Workload(
                name="shop-web-1", application=application, environment=environment, service="web",
                version="1.0.0", digest="sha256:1", desired=1, replicas=(replica,),
            ),
        )  # fmt: skip

    def read(self, application: str, environment: str) -> Routing:
        route = Route(
            service="web", paths=("/",), backends=(Backend(workload="shop-web-1", addresses=()),),
            weights={"shop-web-1": 100},
            testing=routing.Testing(
                carrier="cookie", name="t", value=PLANTED, workload="shop-web-1"
            ),
        )  # fmt: skip
        return Routing(
            application=application, environment=environment, host="shop.localhost",
            routes=(route,),
        )  # fmt: skip


def test_a_local_cluster_says_which_versions_run_and_where_traffic_goes() -> None:
    runs: Any = Runs()
    found, content, facts = dump(
        LocalClusterSource(runs, runs, "shop", "production", now=lambda: NOON)
    )
    workload, routes = found
    assert (workload["digest"], workload["replicas"]) == ("sha256:1", ["ready"])
    assert routes["routes"][0]["weights"] == {"shop-web-1": 100}
    assert PLANTED not in content.decode() and "/x/log" not in content.decode()
    assert facts.data_time == NOON
    assert facts.inventory["objects"] == {"Routing": 1, "Workload": 1}


def test_a_cluster_that_does_not_answer_has_not_nothing() -> None:
    class Away(Runs):
        def workloads(self, application: str, environment: str) -> tuple[Workload, ...]:
            raise Failed("SLP014", "it does not answer", help="start it")

    away: Any = Away()
    with pytest.raises(Failed):
        dump(LocalClusterSource(away, away, "shop", "production"))


def test_secrets_are_named_with_their_times() -> None:
    known = {"shop-login": SecretMetadata("prefect secret", "id-1", NOON, NOON)}
    secrets = {"PASSWORD": "shop-login", "USER": "shop-login", "TOKEN": "nowhere"}
    found, _, facts = dump(SecretsSource(secrets, known.get, now=lambda: NOON))
    assert [(s["name"], s["exists"], s["variables"]) for s in found] == [
        ("nowhere", False, ["TOKEN"]), ("shop-login", True, ["PASSWORD", "USER"])
    ]  # fmt: skip
    assert found[1]["updated"] == NOON.isoformat()
    assert facts.inventory["left_out"] == {"missing": 1}


@pytest.mark.slow
def test_a_planted_secret_of_prefect_is_nowhere_in_the_dump() -> None:
    from prefect.blocks.system import Secret
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness():
        Secret(value=PLANTED).save("planted")  # type: ignore[unused-coroutine, unused-ignore]
        found, content, facts = dump(SecretsSource({"A": "planted", "B": "absent"}, prefect_secret))
    assert [s["exists"] for s in found] == [False, True]
    assert found[1]["created"] and found[1]["version"]
    assert PLANTED not in content.decode() + facts.model_dump_json()
