"""What is kept of Kubernetes objects."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from domain.kubernetes_objects import (
    LAST_APPLIED,
    RESTORE_ORDER,
    Resource,
    cleaned,
    left_out,
    secret_metadata,
)

OF_A_CLUSTER = ("uid", "resourceVersion", "managedFields", "creationTimestamp", "generation")
PLANTED = "planted-secret-value"
words = st.text(min_size=1, max_size=6)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=8,
)
objects = st.builds(
    lambda name, notes, fields: {
        "metadata": {"name": name, "annotations": notes, **dict.fromkeys(OF_A_CLUSTER, "x")},
        "status": {"phase": "x"},
        **fields,
    },
    words,
    st.dictionaries(st.sampled_from([LAST_APPLIED, "note", "other"]), words),
    st.dictionaries(st.sampled_from(["data", "rules", "subjects"]), values),
)


@given(objects, st.sampled_from(RESTORE_ORDER))
def test_what_is_the_clusters_goes_and_the_rest_stays(
    found: dict[str, Any], resource: Resource
) -> None:
    before = json.dumps(found)
    kept = cleaned(found, resource)
    assert json.dumps(found) == before  # nothing of the caller's was changed
    assert not kept["metadata"].keys() & set(OF_A_CLUSTER)
    assert "status" not in kept and LAST_APPLIED not in kept["metadata"].get("annotations", {})
    assert list(kept)[:2] == ["apiVersion", "kind"]
    for field in ("data", "rules", "subjects"):
        assert kept.get(field) == found.get(field)
    assert cleaned(kept, resource) == kept


@given(st.dictionaries(words, st.just(PLANTED)), st.dictionaries(words, st.just(PLANTED)))
def test_no_value_of_a_secret_is_kept(data: dict[str, str], notes: dict[str, str]) -> None:
    found = {"metadata": {"name": "s", "annotations": notes}, "data": data, "stringData": data}
    kept = secret_metadata(found)
    assert PLANTED not in json.dumps(kept)
    assert kept["keys"] == sorted(data) and kept["metadata"]["annotations"] == sorted(notes)
    assert kept["kind"] != "Secret"


def test_what_others_refer_to_comes_before_them() -> None:
    order = [resource.kind for resource in RESTORE_ORDER]
    for first, later in [
        ("PersistentVolumeClaim", "Pod"), ("Secret", "Pod"), ("ConfigMap", "Deployment"),
        ("ServiceAccount", "Deployment"), ("Deployment", "HorizontalPodAutoscaler"),
    ]:  # fmt: skip
        assert order.index(first) < order.index(later)


def test_an_object_without_an_owner_that_makes_it_is_saved() -> None:
    assert left_out({"metadata": {"ownerReferences": [{"kind": "ConfigMap"}]}}) == ""
    assert left_out({"metadata": {"ownerReferences": [{"controller": True}]}})


def test_a_job_loses_the_ids_of_its_cluster_and_keeps_a_chosen_selector() -> None:
    (job,) = [resource for resource in RESTORE_ORDER if resource.kind == "Job"]
    labels = {"controller-uid": "1", "app": "shop"}
    spec = {"selector": {"a": "b"}, "template": {"metadata": {"labels": dict(labels)}}}
    found = {"metadata": {"name": "j", "labels": labels}, "spec": spec}
    kept = cleaned(found, job)
    assert kept["metadata"]["labels"] == {"app": "shop"}
    assert kept["spec"] == {"template": {"metadata": {"labels": {"app": "shop"}}}}
    chosen = cleaned({**found, "spec": {**spec, "manualSelector": True}}, job)
    assert chosen["spec"]["selector"] == {"a": "b"}
