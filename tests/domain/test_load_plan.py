"""What a load test may do, decided before anything is sent."""

from __future__ import annotations

import pytest

from domain.application import parse
from domain.errors import UsageError
from domain.load_plan import (
    Operation,
    Target,
    calibration_of,
    check_ceiling,
    check_host,
    operations_of,
    workers_for,
)
from domain.load_profile import PROFILES

SHOP = parse(
    """\
name: shop
services: {web: {command: run, port: 8000, routes: [/]}}
environments: {staging: {}, production: {host: shop.example.com}}
load: {hosts: [canary.example.com]}
""",
    "application.yaml",
)


@pytest.mark.parametrize(
    "host", ["shop.example.com", "shop.staging.localhost", "canary.example.com"]
)
def test_the_hosts_of_the_application_may_be_loaded(host: str) -> None:
    check_host(SHOP, Target.of(f"https://{host}"))


@pytest.mark.parametrize("host", ["example.com", "evil.shop.example.com", "127.0.0.1"])
def test_no_other_host_is_loaded(host: str) -> None:
    with pytest.raises(UsageError) as refused:
        check_host(SHOP, Target.of(f"https://{host}"))
    assert refused.value.code == "SLP183"
    assert host in refused.value.cause and "canary.example.com" in refused.value.cause


def test_the_misspelt_name_of_a_limit_is_refused_and_never_passes() -> None:
    with pytest.raises(UsageError, match="p59"):
        parse("name: shop\nservices: {web: {command: run}}\nobjectives: {p59: 200ms}\n", "a.yaml")


@pytest.mark.parametrize("url", ["ftp://x", "shop", "", "http://"])
def test_what_is_no_url_is_no_target(url: str) -> None:
    with pytest.raises(ValueError, match="no http or https URL"):
        Target.of(url)


def test_ports_follow_the_scheme() -> None:
    assert Target.of("https://a").port == 443
    assert Target.of("http://a").port == 80
    assert Target.of("http://127.0.0.1:8080", "shop.test").host == "shop.test"


def test_a_profile_above_sixty_percent_of_the_ceiling_is_refused() -> None:
    assert check_ceiling(PROFILES["10k"], 0.0005, 1) == 2000
    with pytest.raises(UsageError) as refused:
        check_ceiling(PROFILES["10k"], 0.0007, 1)
    assert refused.value.code == "SLP185"
    assert "1429" in refused.value.cause


def test_calibration_is_a_small_part_of_the_load() -> None:
    for profile in PROFILES.values():
        assert calibration_of(profile).expected_rate() <= max(10, profile.expected_rate() / 2)


def test_workers_leave_a_core_to_the_application() -> None:
    assert workers_for(PROFILES["10k"], cores=2) == 1
    assert workers_for(PROFILES["10k"], cores=1) == 1
    assert workers_for(PROFILES["10k"].scaled(60_000), cores=8) == 4
    assert workers_for(PROFILES["10k"].scaled(200_000), cores=4) == 3


def test_operations_are_what_anybody_may_do() -> None:
    def parameter(name: str, where: str, **more: object) -> dict[str, object]:
        return {"name": name, "in": where, "required": where == "path", **more}

    openapi = {
        "paths": {
            "/": {"get": {}},
            "/foods": {"get": {"parameters": [parameter("q", "query", example="a b")]}},
            "/foods/{id}": {"get": {"parameters": [parameter("id", "path", example=3)]}},
            "/orders/{id}": {"get": {"parameters": [parameter("id", "path")]}},
            "/me": {"get": {"security": [{"bearer": []}]}},
            "/log": {"post": {}},
        }
    }
    assert list(operations_of(openapi)) == [
        Operation("GET", "/", "/"),
        Operation("GET", "/foods?q=a+b", "/foods"),
        Operation("GET", "/foods/3", "/foods/{id}"),
    ]


@pytest.mark.parametrize("openapi", [{}, {"paths": []}, {"paths": {"/": "x"}}])
def test_a_strange_openapi_has_no_operations(openapi: dict[str, object]) -> None:
    assert list(operations_of(openapi)) == []
