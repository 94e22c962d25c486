"""Rules between the build record and the report."""

from __future__ import annotations

import pytest

from domain.application import Application, Strategy, parse
from domain.artifact import Artifact, ServiceBundle, digest_of
from domain.errors import UsageError
from domain.journal import Outcome, releases
from domain.release import (
    BuildRecord,
    Report,
    limits_of,
    policy_for,
    refuse_repeat,
    routing_for,
    targets,
    url_variable,
    version_of,
    workload_name,
)
from domain.routing import Backend, Counts, Route, Routing
from domain.workload import Phase, Replica, Workload
from tests.domain.test_journal import chain, ended, promoted, started

ONE = "{web: {command: run, routes: [/], replicas: {default: 4}}}"
SPLIT = "{web: {command: run, replicas: {default: 4}}, api: {command: run, routes: [/api]}}"


def application(services: str = ONE) -> Application:
    return parse(f"name: shop\nservices: {services}\nenvironments: {{test: {{}}}}\n")


def record(services: str = ONE, version: str = "1", content: str = "x") -> BuildRecord:
    shop = application(services)
    bundle = ServiceBundle(digest=digest_of(content), size_bytes=1, built_from=digest_of("i"))
    artifact = Artifact(
        application="shop", version=version, services=dict.fromkeys(shop.services, bundle)
    )
    return BuildRecord.of(shop, artifact, "unversioned")


def workload(name: str, ready: int = 1) -> Workload:
    replicas = tuple(
        Replica(index=i, phase=Phase.READY, address=f"{name}:{i + 1}") for i in range(ready)
    )
    return Workload(
        name=name, application="shop", environment="test", service="web", version="1",
        digest="d", desired=ready, replicas=replicas,
    )  # fmt: skip


def route(old: str, new: str, weights: dict[str, dict[str, int]], known: Routing | None = None,
          gone: tuple[str, ...] = ()) -> Routing:  # fmt: skip
    parts = []
    for number, services in ((1, old), (2, new)):
        shop = record(services)
        names = {s: f"{s}.r{number}" for s in shop.application.services}
        for target in targets(shop, "test", names):
            there = None if target.workload in gone else workload(target.workload)
            parts.append((target, shop.application.services[target.service], there))
    return routing_for("h", "shop", "test", parts, weights, known)


def paths(routing: Routing) -> dict[str, tuple[str, ...]]:
    return {r.service: r.paths for r in routing.routes}


def test_the_digest_names_content_configuration_and_version() -> None:
    same, other = record(), record(content="y")
    assert record().digest == same.digest != other.digest
    assert record(version="2").digest != same.digest
    assert record(SPLIT).digest != same.digest
    assert BuildRecord.model_validate_json(same.model_dump_json()) == same


@pytest.mark.parametrize(
    ("asked", "revision", "version"),
    [("9", "abc", "9"), ("", "0123456789abcdef", "0123456789ab"), ("", "abc-dirty", "abc")],
)
def test_a_version_is_asked_for_or_the_revision(asked: str, revision: str, version: str) -> None:
    assert version_of(application(), asked, revision) == version


def test_a_source_without_a_revision_is_named_by_its_content() -> None:
    digest = "sha256:" + "ab" * 32
    assert version_of(application(), "", "unversioned", digest) == "abababababab"
    assert version_of(application(), "9", "unversioned", digest) == "9"
    assert version_of(application(), "", "0123", digest) == "0123"


def test_names_that_others_read() -> None:
    assert url_variable("price-list") == "PRICE_LIST_URL"
    assert workload_name("shop", "test", "web", 3) == "shop.test.web.r3"


def test_a_version_that_waits_takes_no_path_from_the_one_that_serves() -> None:
    """Else ``/api`` would answer 503 before the switch, and again after the way back."""
    before = route(ONE, SPLIT, {"web": {"web.r1": 100}})
    assert paths(before) == {"web": ("/",), "api": ()}
    after = route(ONE, SPLIT, {"web": {"web.r2": 100}, "api": {"api.r2": 100}})
    assert paths(after) == {"web": ("/",), "api": ("/api",)}
    back = route(SPLIT, ONE, {"web": {"web.r2": 100}})
    assert paths(back) == {"web": ("/",), "api": ()}


def test_every_ready_workload_has_a_private_address_and_others_none() -> None:
    routing = route(ONE, ONE, {"web": {"web.r1": 100}}, gone=("web.r2",))
    assert [b.workload for r in routing.routes for b in r.backends] == ["web.r1"]
    assert route(ONE, ONE, {}, gone=("web.r1", "web.r2")).routes == ()


def test_a_restarting_replica_keeps_its_place_and_a_stranger_gets_none() -> None:
    backend = Backend(workload="web.r1", addresses=("a:1",))
    there = Route(service="web", paths=("/",), backends=(backend,), weights={"web.r1": 100})
    known = Routing(application="shop", environment="test", host="h", routes=(there,))
    kept = route(ONE, ONE, {"web": {"web.r1": 100}}, known, gone=("web.r1",))
    assert backend in kept.routes[0].backends
    with pytest.raises(ValueError, match=r"web\.r1 would get 100%"):
        route(ONE, ONE, {"web": {"web.r1": 100}}, gone=("web.r1",))


def test_what_a_failed_release_left_with_weight_stays_reachable_until_it_is_moved() -> None:
    backend = Backend(workload="old.r7", addresses=("a:1",))
    there = Route(service="old", paths=("/old",), backends=(backend,), weights={"old.r7": 100})
    known = Routing(application="shop", environment="test", host="h", routes=(there,))
    kept = route(ONE, ONE, {"old": {"old.r7": 100}}, known)
    assert paths(kept)["old"] == ("/old",) and kept.weight("old.r7") == 100
    moved = route(ONE, ONE, {"web": {"web.r2": 100}}, known)
    assert "old" not in paths(moved)


def test_rolling_goes_in_one_step_when_the_public_paths_are_divided_anew() -> None:
    def steps(old: BuildRecord | None, new: BuildRecord) -> int:
        policy = policy_for(new, "test", Strategy.ROLLING, migrate=True, stable=old)
        return len(policy.steps)

    assert steps(record(), record()) == steps(None, record()) == 4
    assert steps(record(), record(SPLIT)) == steps(record(SPLIT), record()) == 1


def test_a_new_version_may_be_slower_by_a_hundredth_of_what_users_were_promised() -> None:
    def margin(rest: str) -> float:
        text = f"name: shop\nservices: {ONE}\nenvironments: {{test: {{}}}}\n{rest}"
        return limits_of(parse(text)).margin_seconds

    assert margin("objectives: {p95: 200ms}") == 0.002
    assert margin("objectives: {p95: 200ms}\ncanary: {margin: 10ms}") == 0.01
    assert margin("canary: {margin: 0s}") == 0


def test_live_content_is_not_shipped_again_and_a_name_is_not_used_twice() -> None:
    history = releases(promoted("a"))
    with pytest.raises(UsageError) as caught:
        refuse_repeat(history, "v1", "a")
    assert caught.value.code == "SLP004"
    with pytest.raises(UsageError) as caught:
        refuse_repeat(history, "v1", "b")
    assert caught.value.code == "SLP005"
    refuse_repeat(history, "v2", "b")
    refused = releases(chain(started(1, "a"), ended(1, Outcome.REFUSED)))
    refuse_repeat(refused, "v1", "b")


@pytest.mark.parametrize(
    ("outcome", "previous", "said"),
    [
        (Outcome.PROMOTED, 1, "is live after"),
        (Outcome.ROLLED_BACK, 1, "the old version serves"),
        (Outcome.ROLLED_BACK, None, "nothing is live, as before"),
        (Outcome.ROLLBACK_FAILED, 1, "COULD NOT BE PROVED"),
        (Outcome.REFUSED, 1, "before any traffic moved"),
    ],
)
def test_a_report_says_how_it_ended(outcome: Outcome, previous: int | None, said: str) -> None:
    report = Report(application="shop", environment="test", version="1", outcome=outcome,
                    previous=previous)  # fmt: skip
    assert said in report.sentence()


def test_counts_are_what_was_added_even_over_a_restart_of_the_edge() -> None:
    before = Counts(requests=10, errors=2, buckets={"0.1": 5})
    after = Counts(requests=15, errors=3, buckets={"0.1": 9})
    assert after.since(before) == Counts(requests=5, errors=1, buckets={"0.1": 4})
    restarted = Counts(requests=4, errors=1)
    assert restarted.since(before) == restarted
    for overtaken in (
        Counts(requests=12, errors=0, buckets={"0.1": 5}),
        Counts(requests=12, errors=2, buckets={"0.1": 4}),
        Counts(requests=12, errors=2),
    ):
        assert overtaken.since(before) == overtaken
