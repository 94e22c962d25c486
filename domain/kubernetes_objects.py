"""Kubernetes objects as they are saved: without what a cluster adds, and in an order to restore.

The order is Velero's (its default ``--restore-resource-priorities``), of what has a namespace:
what others refer to comes first. What is taken away is what Velero takes away at a restore, too:
fields that the new cluster sets itself, and would refuse or misread from another one.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, NamedTuple

Object = dict[str, Any]

LAST_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"
"""A whole copy of the object, with the values of a Secret among it."""

_OF_THE_CLUSTER = frozenset(
    {"managedFields", "uid", "resourceVersion", "generation", "creationTimestamp", "selfLink",
     "deletionTimestamp", "deletionGracePeriodSeconds", "ownerReferences"}
)  # fmt: skip
_ANNOTATIONS = frozenset(
    {LAST_APPLIED, "deployment.kubernetes.io/revision", "pv.kubernetes.io/bind-completed",
     "pv.kubernetes.io/bound-by-controller", "volume.kubernetes.io/selected-node",
     "volume.kubernetes.io/storage-provisioner", "volume.beta.kubernetes.io/storage-provisioner"}
)  # fmt: skip
_JOB_LABELS = frozenset(
    {"controller-uid", "batch.kubernetes.io/controller-uid", "job-name",
     "batch.kubernetes.io/job-name"}
)  # fmt: skip


class Resource(NamedTuple):
    """What the API lists under one path.

    Attributes:
        group: with its version, as ``apps/v1``; ``v1`` for the core.
        always: part of every cluster, so that its absence is an error.
    """

    group: str
    plural: str
    kind: str
    always: bool = True

    @property
    def path(self) -> str:
        root = "api" if "/" not in self.group else "apis"
        return f"/{root}/{self.group}/namespaces/{{namespace}}/{self.plural}"

    def __str__(self) -> str:
        return f"{self.plural}.{self.group}" if "/" in self.group else self.plural


SECRETS = Resource("v1", "secrets", "Secret")

RESTORE_ORDER = (
    Resource("v1", "persistentvolumeclaims", "PersistentVolumeClaim"),
    Resource("v1", "serviceaccounts", "ServiceAccount"),
    SECRETS,
    Resource("v1", "configmaps", "ConfigMap"),
    Resource("v1", "limitranges", "LimitRange"),
    Resource("v1", "resourcequotas", "ResourceQuota"),
    Resource("v1", "pods", "Pod"),
    Resource("apps/v1", "replicasets", "ReplicaSet"),
    Resource("apps/v1", "daemonsets", "DaemonSet"),
    Resource("apps/v1", "deployments", "Deployment"),
    Resource("apps/v1", "statefulsets", "StatefulSet"),
    Resource("autoscaling/v2", "horizontalpodautoscalers", "HorizontalPodAutoscaler"),
    Resource("batch/v1", "cronjobs", "CronJob"),
    Resource("batch/v1", "jobs", "Job"),
    Resource("gateway.networking.k8s.io/v1", "gateways", "Gateway", always=False),
    Resource("gateway.networking.k8s.io/v1", "httproutes", "HTTPRoute", always=False),
    Resource("networking.istio.io/v1", "virtualservices", "VirtualService", always=False),
    Resource("networking.k8s.io/v1", "ingresses", "Ingress"),
    Resource("networking.k8s.io/v1", "networkpolicies", "NetworkPolicy"),
    Resource("policy/v1", "poddisruptionbudgets", "PodDisruptionBudget"),
    Resource("rbac.authorization.k8s.io/v1", "roles", "Role"),
    Resource("rbac.authorization.k8s.io/v1", "rolebindings", "RoleBinding"),
    Resource("v1", "services", "Service"),
)


def left_out(found: Mapping[str, Any]) -> str:
    """Why an object is not saved; empty for one that is."""
    metadata = found["metadata"]
    if metadata.get("deletionTimestamp"):
        return "being deleted"
    if any(owner.get("controller") for owner in metadata.get("ownerReferences", ())):
        return "made again by its owner"
    return ""


def cleaned(found: Mapping[str, Any], resource: Resource) -> Object:
    """As it would be written by hand. Items of a list lack their kind, which is added."""
    kept = copy.deepcopy(dict(found))
    kept.pop("status", None)
    kept["metadata"] = _cleaned_metadata(kept["metadata"])
    kept |= {"apiVersion": resource.group, "kind": resource.kind}
    if trim := _TRIM.get(resource.kind):
        trim(kept)
    return {name: kept[name] for name in ("apiVersion", "kind", *kept)}


def secret_metadata(found: Mapping[str, Any]) -> Object:
    """What may be known of a Secret: never a value, nor a hash of one, which could be guessed.

    Of annotations the names alone: their values hold tokens, and one is a copy of the Secret.
    Not of kind Secret, so that nobody applies it and empties the real one.
    """
    metadata = found["metadata"]
    return {
        "apiVersion": "slipway/v1",
        "kind": "SecretMetadata",
        "metadata": {
            "name": metadata["name"],
            "namespace": metadata.get("namespace"),
            "labels": metadata.get("labels", {}),
            "annotations": sorted(metadata.get("annotations", {})),
            "creationTimestamp": metadata.get("creationTimestamp"),
            "resourceVersion": metadata.get("resourceVersion"),
        },
        "type": found.get("type", "Opaque"),
        "immutable": bool(found.get("immutable")),
        "keys": sorted({*(found.get("data") or {}), *(found.get("stringData") or {})}),
    }


def _cleaned_metadata(metadata: Mapping[str, Any]) -> Object:
    kept = {name: value for name, value in metadata.items() if name not in _OF_THE_CLUSTER}
    notes = kept.pop("annotations", None) or {}
    notes = {name: value for name, value in notes.items() if name not in _ANNOTATIONS}
    return kept | ({"annotations": notes} if notes else {})


def _trim_service(service: Object) -> None:
    """Addresses and ports that this cluster gave out; ``None`` (headless) is a choice."""
    spec = service.get("spec", {})
    if spec.get("clusterIP") != "None":
        spec.pop("clusterIP", None)
        spec.pop("clusterIPs", None)
    spec.pop("healthCheckNodePort", None)
    for port in spec.get("ports", ()):
        port.pop("nodePort", None)


def _trim_claim(claim: Object) -> None:
    """Its volume is in the old cluster."""
    claim.get("spec", {}).pop("volumeName", None)


def _trim_account(account: Object) -> None:
    """Tokens that this cluster made."""
    account.pop("secrets", None)


def _trim_pod(pod: Object) -> None:
    pod.get("spec", {}).pop("nodeName", None)


def _trim_job(job: Object) -> None:
    """Its selector is by an ID of this cluster, unless it was chosen by hand."""
    spec = job.get("spec", {})
    if spec.get("manualSelector"):
        return
    spec.pop("selector", None)
    for metadata in (job["metadata"], spec.get("template", {}).get("metadata", {})):
        labels = metadata.get("labels") or {}
        for name in _JOB_LABELS & labels.keys():
            del labels[name]


_TRIM = {
    "Service": _trim_service,
    "PersistentVolumeClaim": _trim_claim,
    "ServiceAccount": _trim_account,
    "Pod": _trim_pod,
    "Job": _trim_job,
}
