"""The emulator takes what Google's documents describe, and answers as they allow; nothing else."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from googleapiclient.discovery_cache import get_static_doc

from sandbox.discovery import Api, _methods
from sandbox.google_apis import GoogleApis

ZONES = "dns/v1/projects/slipway/managedZones"
INSTANCE = "v1/projects/slipway/instances/standby"
ZONE = {"name": "z", "dnsName": "slipway.test.", "description": "d"}
A = {"name": "a.slipway.test.", "type": "A", "ttl": 5, "rrdatas": ["127.0.0.1"]}


@pytest.fixture
def google() -> GoogleApis:
    return GoogleApis(16)


def ask(google: GoogleApis, verb: str, path: str, body: Any = None, **query: str) -> Any:
    content = b"" if body is None else json.dumps(body).encode()
    status, document = google.answer(verb, path, {k: [v] for k, v in query.items()}, content)
    if status != 200:
        assert document["error"]["code"] == status
        return status, document["error"]["errors"][0]["reason"], document["error"]["message"]
    return document


@pytest.mark.parametrize(
    ("verb", "path", "body", "query", "said"),
    [
        ("GET", "dns/v2/projects/slipway/zones", None, {}, "no method of these APIs"),
        ("PUT", ZONES, ZONE, {}, "no method of these APIs"),
        ("GET", ZONES, None, {"domain": "x"}, 'Unknown name "domain"'),
        ("GET", ZONES, None, {"maxResults": "many"}, "int32"),
        ("POST", ZONES, {**ZONE, "dns_name": "x."}, {}, 'Unknown name "dns_name"'),
        ("POST", ZONES, {**ZONE, "visibility": "secret"}, {}, "one of public, private"),
        ("POST", ZONES, None, {}, "needs a body"),
        ("POST", ZONES, {**ZONE, "labels": {"a": 1}}, {}, "'labels.a' (string)"),
        ("POST", f"{ZONES}/z/changes", {"additions": [{**A, "ttl": "5"}]}, {},
         "'additions[0].ttl' (int32)"),
        ("POST", f"{ZONES}/z/changes", {"additions": [{**A, "ttl": 1 << 40}]}, {}, "int32"),
        ("POST", f"{ZONES}/z/changes", {"additions": A}, {}, "'additions' (list)"),
        ("POST", f"{ZONES}/z/changes", {"additions": [{**A, "kind": "x"}]}, {}, "service alone"),
        ("PATCH", INSTANCE, {"settings": {"dataDiskSizeGb": 10}}, {}, "dataDiskSizeGb' (string)"),
        ("PATCH", INSTANCE, {"settings": {"dataDiskSizeGb": "ten"}}, {}, "int64"),
    ],
)  # fmt: skip
def test_what_the_documents_do_not_describe_is_refused(
    google: GoogleApis, verb: str, path: str, body: Any, query: dict[str, str], said: str
) -> None:
    status, _, message = ask(google, verb, path, body, **query)
    assert status in (400, 404) and said in message, message


def test_what_they_describe_and_it_does_not_do_is_no_success(google: GoogleApis) -> None:
    status, _, message = ask(google, "DELETE", INSTANCE)
    assert status == 501 and "sql.instances.delete" in message


@pytest.mark.parametrize(
    ("body", "status", "reason"),
    [
        ({"deletions": [A]}, 404, "notFound"),
        ({"additions": [{**A, "name": "a.other.test."}]}, 400, "invalid"),
        ({"additions": [{**A, "name": "a.slipway.test"}]}, 400, "invalid"),
        ({"additions": [A, A]}, 409, "alreadyExists"),
        ({}, 400, "required"),
        ({"additions": [{"name": "a.slipway.test.", "ttl": 5}]}, 400, "required"),
    ],
)
def test_a_change_that_does_not_fit_changes_nothing(
    google: GoogleApis, body: Any, status: int, reason: str
) -> None:
    ask(google, "POST", ZONES, ZONE)
    before = ask(google, "GET", f"{ZONES}/z/rrsets")
    assert [r["type"] for r in before["rrsets"]] == ["NS", "SOA"]
    assert ask(google, "POST", f"{ZONES}/z/changes", body)[:2] == (status, reason)
    assert ask(google, "GET", f"{ZONES}/z/rrsets") == before


def test_a_change_names_exactly_what_it_replaces(google: GoogleApis) -> None:
    ask(google, "POST", ZONES, ZONE)
    new = {**A, "rrdatas": ["127.0.0.2"]}
    assert ask(google, "POST", f"{ZONES}/z/changes", {"additions": [A]})["status"] == "pending"
    stale = {"additions": [new], "deletions": [{**A, "ttl": 6}]}
    assert ask(google, "POST", f"{ZONES}/z/changes", stale)[:2] == (412, "conditionNotMet")
    ask(google, "POST", f"{ZONES}/z/changes", {"additions": [new], "deletions": [A]})
    found = ask(google, "GET", f"{ZONES}/z/rrsets", name="a.slipway.test.", type="A")
    assert [r["rrdatas"] for r in found["rrsets"]] == [["127.0.0.2"]]


def test_an_answer_that_google_would_never_give_is_a_fault_of_the_emulator(
    google: GoogleApis, monkeypatch: pytest.MonkeyPatch
) -> None:
    handlers = {**google._handlers, "sql.instances.get": lambda *_: {"name": "x", "mood": "good"}}
    monkeypatch.setattr(google, "_handlers", handlers)
    status, _, message = ask(google, "GET", INSTANCE)
    assert status == 500 and 'Unknown name "mood"' in message


def test_a_disk_only_grows(google: GoogleApis) -> None:
    smaller = ask(google, "PATCH", INSTANCE, {"settings": {"dataDiskSizeGb": "1"}})
    assert smaller[:2] == (400, "invalid")
    done = ask(google, "PATCH", INSTANCE, {"settings": {"dataDiskSizeGb": "200"}})
    assert ask(google, "GET", f"v1/projects/slipway/operations/{done['name']}") == done
    assert ask(google, "GET", INSTANCE)["settings"]["dataDiskSizeGb"] == "200"


@pytest.mark.parametrize(("name", "version"), [("dns", "v1"), ("sqladmin", "v1")])
def test_every_method_is_found_by_its_own_address(name: str, version: str) -> None:
    api, seen = Api(name, version), 0
    for raw in _methods(json.loads(get_static_doc(name, version))):
        path = re.sub(r"\{(\w+)\}", r"\1", raw.get("flatPath", raw["path"]))
        call = api.call(raw["httpMethod"], path)
        assert call is not None and call.method.id == raw["id"], path
        seen += 1
    assert seen > 30
