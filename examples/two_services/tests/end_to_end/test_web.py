from __future__ import annotations

import os

import httpx
import pytest


def test_a_quotation_comes_through_both_services() -> None:
    base = os.environ.get("BASE_URL")
    if not base:
        pytest.fail("set BASE_URL to the address of a running candidate", pytrace=False)
    with httpx.Client(base_url=base, timeout=10.0) as client:
        assert client.get("/readyz").json() == {"status": "ready"}
        found = client.get("/").json()
        assert found["quote"].endswith(".")
        assert "/readyz" in client.get("/openapi.json").json()["paths"]
