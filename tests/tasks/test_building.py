"""The build tasks in a real Prefect engine: "no rebuild" is visible, and only what may get
better is tried again."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey

from blocks import builder
from blocks.builder import BuildRequest, BuildResult
from blocks.bundles import BundleStore
from domain.artifact import Artifact, Revision, ServiceBundle, digest_of
from domain.errors import Failed
from tasks import building

pytestmark = pytest.mark.usefixtures("prefect_harness")


@pytest.fixture
def request_(tmp_path: Path) -> BuildRequest:
    source = tmp_path / "source"
    source.mkdir()
    (source / "app.py").write_text("print('app')\n")
    return BuildRequest("shop", "web", source)


def test_a_second_build_is_visibly_none(
    request_: BuildRequest,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    events: list[tuple[str, str]] = []

    @flow
    def ship() -> list[BuildResult]:
        results = [building.build_service(request_, tmp_path / "store") for _ in range(2)]
        bundles = {"web": results[0].bundle}
        artifact = Artifact(application="shop", version="1.0.0", services=bundles)
        building.publish_build(artifact, results)
        return results

    def heard(event: str, resource: dict[str, str], payload: dict[str, object]) -> None:
        events.append((event, resource["prefect.resource.id"]))

    monkeypatch.setattr(building, "emit_event", heard)
    with caplog.at_level(logging.INFO), caplog.at_level(logging.INFO, logger="prefect"):
        first, second = ship()
    assert first.rebuilt and not second.rebuilt and first.bundle == second.bundle
    assert "nothing was built" in caplog.text
    name = f"slipway.bundle.{first.bundle.digest}"
    assert events == [("slipway.bundle.built", name), ("slipway.bundle.reused", name)]
    assert BundleStore(tmp_path / "store").has(first.bundle.digest)
    with get_client(sync_client=True) as client:
        wanted = ArtifactFilter(key=ArtifactFilterKey(any_=["build-shop"]))
        (found,) = client.read_artifacts(artifact_filter=wanted)
    assert "no rebuild" in str(found.data) and "1 of 2 bundles built" in str(found.description)


@pytest.mark.parametrize(("code", "calls"), [("SLP014", 2), ("SLP020", 1)])
def test_only_an_index_that_did_not_answer_is_asked_again(
    request_: BuildRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    code: str,
    calls: int,
) -> None:
    real, seen = builder.build, []

    def flaky(request: BuildRequest, store: BundleStore, *, invocation: str) -> BuildResult:
        seen.append(invocation)
        if len(seen) == 1:
            raise Failed(code, "it did not work", help="try again")
        return real(request, store, invocation=invocation)

    monkeypatch.setattr(building.builder, "build", flaky)
    quick = building.build_service.with_options(retry_delay_seconds=0)

    @flow
    def ship() -> BuildResult:
        return quick(request_, tmp_path / "store")

    if code == "SLP014":
        assert ship().rebuilt
    else:
        with pytest.raises(Failed, match=code):
            ship()
    assert len(seen) == calls and "local" not in seen, "the run names itself in the provenance"


def test_a_row_says_what_is_not_pinned_by_a_hash() -> None:
    digest = digest_of("x")
    bundle = ServiceBundle(digest=digest, size_bytes=2_500_000, built_from=digest)
    result = BuildResult(
        "shop/web", bundle, True, "", 1.25, Revision("c" * 40, True), 3, unhashed=("six",)
    )
    row = building.row(result)
    assert row["service"] == "web" and row["MB"] == "2.5"
    assert row["packages"] == "3 (1 without hash)"
    assert row["revision"] == "c" * 12 + " + changes"
