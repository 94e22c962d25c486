"""Software bill of materials of a bundle, in CycloneDX 1.6 JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable
from importlib.metadata import Distribution, distributions
from pathlib import Path
from uuid import NAMESPACE_URL, uuid5

from cyclonedx.contrib.license.factories import LicenseFactory
from cyclonedx.model import HashAlgorithm, HashType, Property
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.model.license import License, LicenseAcknowledgement
from cyclonedx.output.json import JsonV1Dot6
from packageurl import PackageURL
from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import NormalizedName, canonicalize_name

from domain.artifact import Lock, Package, short


def installed(site_packages: Path) -> tuple[Distribution, ...]:
    """The distributions whose metadata lies in a folder, by name."""
    named = (d for d in distributions(path=[str(site_packages)]) if "Name" in d.metadata)
    return tuple(sorted(named, key=lambda dist: canonicalize_name(dist.name)))


def packages(found: Iterable[Distribution], lock: Lock) -> tuple[Package, ...]:
    """What is installed, each with the hashes that the lock accepts for it."""
    return tuple(
        Package(canonicalize_name(d.name), d.version, lock.hashes(d.name, d.version)) for d in found
    )


def make_sbom(name: str, digest: str, found: Iterable[Distribution], lock: Lock) -> bytes:
    """The document for one bundle; the same content gives the same bytes.

    It has no timestamp, and its serial number is derived from the digest: a bill of materials
    belongs to what it describes, not to the moment of writing.
    """
    found = tuple(found)
    bom = Bom(serial_number=uuid5(NAMESPACE_URL, f"urn:slipway:bundle:{digest}"))
    root = Component(
        name=name, version=short(digest), type=ComponentType.APPLICATION, bom_ref=digest
    )
    bom.metadata.component = root
    components = {canonicalize_name(dist.name): _component(dist, lock) for dist in found}
    bom.components.update(components.values())
    bom.register_dependency(root, components.values())
    for dist in found:
        wanted = (components[name] for name in _requires(dist) if name in components)
        bom.register_dependency(components[canonicalize_name(dist.name)], wanted)
    document = json.loads(JsonV1Dot6(bom).output_as_string())
    document["metadata"].pop("timestamp", None)
    return json.dumps(document, indent=1, sort_keys=True).encode() + b"\n"


def _component(dist: Distribution, lock: Lock) -> Component:
    name = canonicalize_name(dist.name)
    purl = PackageURL("pypi", name=name, version=dist.version)
    hashes = lock.hashes(name, dist.version)
    # A lock lists every file of a release. Only a single hash can be that of this component;
    # several are recorded as what they are: the ones that would have been accepted.
    exact = hashes if len(hashes) == 1 else ()
    return Component(
        name=name,
        version=dist.version,
        type=ComponentType.LIBRARY,
        purl=purl,
        bom_ref=purl.to_string(),
        licenses=_licences(dist),
        hashes=[HashType(alg=HashAlgorithm.SHA_256, content=value) for value in exact],
        properties=[
            Property(name="slipway:lock:accepted-sha256", value=value)
            for value in hashes
            if not exact
        ],
    )


def _licences(dist: Distribution) -> list[License]:
    """SPDX expression where there is one (PEP 639), else the free field, else classifiers."""
    factory, declared = LicenseFactory(), LicenseAcknowledgement.DECLARED
    expression = _field(dist, "License-Expression")
    if expression:
        return [factory.make_from_string(expression, license_acknowledgement=declared)]
    name = _field(dist, "License")
    if name and "\n" not in name and name.upper() != "UNKNOWN":
        return [factory.make_from_string(name, license_acknowledgement=declared)]
    classified = dist.metadata.get_all("Classifier") or []
    names = sorted({c.rpartition(" :: ")[2] for c in classified if c.startswith("License :: ")})
    return [factory.make_with_name(name, acknowledgement=declared) for name in names]


def _field(dist: Distribution, name: str) -> str:
    return dist.metadata[name].strip() if name in dist.metadata else ""


def _requires(dist: Distribution) -> Iterable[NormalizedName]:
    for line in dist.requires or ():
        try:
            requirement = Requirement(line)
        except InvalidRequirement:
            continue  # old metadata that no current tool can read either
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            yield canonicalize_name(requirement.name)
