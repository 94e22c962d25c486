"""Secrets are taken out by name, by shape and by known value, and the rest stays readable."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, SecretStr

from domain.redaction import FILTERED, LONGEST, Redactor, is_secret_name, secrets_in

VALUE = "n7Qx-planted-9fL"


@pytest.mark.parametrize(
    "text",
    [
        f"postgresql://slipway:{VALUE}@127.0.0.1:5432/shop",
        f"https://{VALUE}@git.example.com/shop.git",
        f"postgresql://slipway:with/slash@and-at{VALUE}@db/shop",
        f"password={VALUE}",
        f"host=db user=shop password='{VALUE}' dbname=shop",
        f'{{"api_key": "{VALUE}", "name": "shop"}}',
        f"{{\\'client_secret\\': \\'{VALUE}\\'}}",
        f"DATABASE_URL={VALUE}",
        f"X-Api-Key: {VALUE}",
        f"Authorization: Bearer {VALUE}",
        f"Authorization: Basic {VALUE}",
        f"Cookie: theme=dark; session={VALUE}; lang=en",
        f"psql --password {VALUE}",
        f"login --token={VALUE}",
        f'PASSWORD="{VALUE} and more',
    ],
)
def test_a_text_that_shows_a_secret_loses_it(text: str) -> None:
    assert VALUE not in Redactor().text(text)


@pytest.mark.parametrize(
    "text",
    [
        "AKIA" + "ABCDEFGHIJKLMNOP",
        "ghp_" + "a1B2" * 9,
        "glpat-" + "a1B2" * 5,
        "xoxb-" + "1234567890-abc",
        "sk-" + "a1B2" * 8,
        "pnu_" + "a1B2" * 9,
        "eyJhbGciOiJIUzI1NiJ9" + ".eyJzdWIiOiIxMjM0In0.c2lnbmF0dXJl",
        "AGE-SECRET-KEY-1" + "QQPQYQ" * 9,
        "-----BEGIN OPENSSH " + "PRIVATE KEY-----\nb3BlbnNzaA==\n-----END OPENSSH PRIVATE KEY-----",
        "-----BEGIN " + "PRIVATE KEY-----\nMIIEvQIBADANBg",
    ],
)
def test_a_credential_is_known_by_its_shape(text: str) -> None:
    assert Redactor().text(f"seen: {text}") == f"seen: {FILTERED}"


@pytest.mark.parametrize(
    "text",
    [
        "release 12 of shop in production: PROMOTED after 43.2 s",
        "GET http://127.0.0.1:8000/readyz answered 503, expected 200",
        "shop.production.api.r12 has 1 of 2 replicas ready: probe http://10.0.0.7:9000/readyz",
        "sha256:6c2f0a9d5b1e4f70 is already live since release 11",
        "services.api.command: field required",
    ],
)
def test_ordinary_words_stay(text: str) -> None:
    assert Redactor().text(text) == text


@pytest.mark.timeout(20)
@pytest.mark.parametrize("piece", ["x", "-", "a://", "token", "password=", "a.b", "'", "BEGIN "])
def test_a_huge_text_takes_no_time(piece: str) -> None:
    assert len(Redactor(["abcdef"]).text(piece * 100_000)) <= 10 * LONGEST


def test_what_is_named_like_a_secret_goes_whatever_it_holds() -> None:
    tree = {"PASSWORD": 12345678, "token": ["a", "b"], "database_url": {"host": "db"}, "port": 5432}
    assert Redactor().tree(tree) == {
        "PASSWORD": FILTERED,
        "token": FILTERED,
        "database_url": FILTERED,
        "port": 5432,
    }


@given(
    secret=st.text(min_size=6, max_size=30),
    before=st.text(max_size=20),
    after=st.text(max_size=20),
)
def test_a_known_value_never_stays(secret: str, before: str, after: str) -> None:
    redactor = Redactor([secret])
    for written in (secret, quote(secret, safe=""), repr(secret)[1:-1], json.dumps(secret)[1:-1]):
        left = redactor.text(f"{before}{written}{after}")
        assert secret not in left.replace(FILTERED, "\0")


json_trees = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@given(json_trees)
def test_a_tree_keeps_a_shape_that_json_can_hold(tree: Any) -> None:
    json.dumps(Redactor(["abcdef"]).tree(tree))


def test_an_object_that_is_no_tree_is_not_sent() -> None:
    assert Redactor().tree({"at": object()}) == {"at": FILTERED}


class _Block(BaseModel):
    database: SecretStr
    host: str


@dataclass
class _Holder:
    block: _Block
    notes: list[str]


def test_secrets_are_found_inside_live_objects() -> None:
    block = _Block(database=SecretStr("one-of-three"), host="db.example.com")
    found = secrets_in(
        {
            "holder": _Holder(block, ["redis://:two-of-three@cache:6379/0", "a note"]),
            "environ": {"STRIPE_API_KEY": b"three-of-three", "LANG": "C.UTF-8"},
        }
    )
    assert found == {"one-of-three", "two-of-three", "three-of-three"}


def test_looking_for_secrets_ends_in_a_circle() -> None:
    circle: dict[str, Any] = {"password": "in-a-circle"}
    circle["again"] = circle
    assert secrets_in(circle) == {"in-a-circle"}


@pytest.mark.parametrize("name", ["DATABASE_URL", "apiKey", "X-Auth-Token", "db_pass", "pwd"])
def test_names_of_secrets(name: str) -> None:
    assert is_secret_name(name)


@pytest.mark.parametrize("name", ["passed", "author", "environment", "url", "keyboard", "monkey"])
def test_names_that_only_look_similar(name: str) -> None:
    assert not is_secret_name(name)
