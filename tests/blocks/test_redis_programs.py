"""A Redis server to throw away."""

from __future__ import annotations

import os
from pathlib import Path

import psutil
import pytest
import redis

from blocks.redis_programs import disposable, find_server
from domain.errors import Failed


def test_it_is_empty_reached_by_nobody_else_and_gone_afterwards() -> None:
    program = find_server()
    assert program is not None
    before = {p.pid for p in psutil.Process().children()}
    with disposable(program) as url:
        socket = Path(url.removeprefix("unix://").partition("?")[0])
        (mine,) = [p for p in psutil.Process().children() if p.pid not in before]
        assert [c for c in mine.net_connections("inet") if c.status == "LISTEN"] == []
        assert socket.parent.stat().st_mode & 0o077 == 0
        with redis.Redis.from_url(url) as client:
            assert client.dbsize() == 0
            client.set("a", "b")
    assert not mine.is_running()
    assert not socket.parent.exists()


def test_a_program_that_ends_at_once_is_told(tmp_path: Path) -> None:
    fake = tmp_path / "redis-server"
    fake.write_text("#!/bin/sh\necho no memory left; exit 1\n")
    os.chmod(fake, 0o755)
    with pytest.raises(Failed, match="did not start") as caught, disposable(fake):
        pass
    assert "no memory left" in (caught.value.detail or "")
