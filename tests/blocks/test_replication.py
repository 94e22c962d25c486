"""A database that follows another, on two real servers: rows, sequences, promotion, divergence."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from datetime import timedelta

import psycopg
import pytest

from blocks import keeper
from blocks.disposable_postgres import DisposableServer
from blocks.divergence import decode, unshipped
from blocks.fence import Fence
from blocks.replication import Replication, differences, forget_subscriptions
from domain.errors import Failed
from tests.scenarios.world import wait_until

TABLES = """
CREATE TABLE meal (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, what text);
CREATE TABLE log (line text);
INSERT INTO meal (what) SELECT 'apple ' || n FROM generate_series(1, 200) n;
"""


@pytest.fixture(scope="module")
def servers() -> Iterator[tuple[DisposableServer, DisposableServer]]:
    with (
        DisposableServer(publishes=True, tcp=True) as one,
        DisposableServer(publishes=True, tcp=True) as other,
    ):
        yield one, other


@pytest.fixture
def pair(servers: tuple[DisposableServer, DisposableServer]) -> Iterator[Replication]:
    name = f"r{uuid.uuid4().hex[:10]}"
    primary, standby = (server.database(name) for server in servers)
    with psycopg.connect(primary, autocommit=True) as connection:
        connection.execute(TABLES)
    Fence(primary).arm()
    Fence(primary).open(1, timedelta(minutes=5))
    replication = Replication(primary, standby, standby, name)
    replication.begin()
    replication.await_copied(60)
    Fence(standby).arm()
    yield replication
    forget_subscriptions(standby)
    replication.forget_at_primary()


def do(replication: Replication, statement: str) -> None:
    with psycopg.connect(replication.primary.url, autocommit=True) as connection:
        connection.execute(statement.encode())


def count(replication: Replication, table: str = "meal") -> int:
    with psycopg.connect(replication.standby.url) as connection:
        row = connection.execute(f"SELECT count(*) FROM {table}".encode()).fetchone()
    assert row is not None
    return int(row[0])


def test_rows_arrive_and_nobody_else_may_write_there(pair: Replication) -> None:
    assert pair.is_set_up() and count(pair) == 200
    do(pair, "INSERT INTO meal (what) VALUES ('pear'); INSERT INTO log VALUES ('a')")
    do(pair, "UPDATE log SET line = 'b'; DELETE FROM meal WHERE id = 1")
    wait_until(lambda: not differences(pair.primary.url, pair.standby.url), "all to arrive", 10)
    with (
        psycopg.connect(pair.standby.url, autocommit=True) as connection,
        pytest.raises(psycopg.errors.ReadOnlySqlTransaction),
    ):
        connection.execute("INSERT INTO log VALUES ('mine')")


def test_a_difference_is_named(pair: Replication) -> None:
    with psycopg.connect(pair.standby.url, autocommit=True) as connection:
        connection.execute("SET session_replication_role = replica")
        connection.execute("UPDATE meal SET what = 'changed' WHERE id = 7")
    found = differences(pair.primary.url, pair.standby.url)
    assert [line.split(":")[0] for line in found] == ["public.meal"]


def test_a_promoted_standby_draws_numbers_that_nobody_has_drawn(pair: Replication) -> None:
    """Sequences are not replicated: the next row would have taken a key that is in use."""
    do(pair, "SELECT setval('meal_id_seq', 5000)")  # drawn, and never used in a row
    with psycopg.connect(pair.primary.url, autocommit=True) as connection:
        keeper.record_sequences(connection)
    do(pair, "INSERT INTO log VALUES ('after the record')")
    wait_until(lambda: count(pair, "log") == 1, "all to arrive", 10)
    pair.promote()
    Fence(pair.standby.url).open(2, timedelta(minutes=5))
    with psycopg.connect(pair.standby.url, autocommit=True) as connection:
        row = connection.execute("INSERT INTO meal (what) VALUES ('x') RETURNING id").fetchone()
    assert row is not None and row[0] > 5000
    pair.promote()  # again: nothing to stop, and the numbers only grow
    with psycopg.connect(pair.standby.url, autocommit=True) as connection:
        again = connection.execute("INSERT INTO meal (what) VALUES ('y') RETURNING id").fetchone()
    assert again is not None and again[0] > row[0]


def test_what_the_old_side_committed_after_the_promotion_is_listed(pair: Replication) -> None:
    pair.promote()
    assert (found := unshipped(pair.primary.url, pair.name, pair.name)) and found.total == 0
    do(pair, "INSERT INTO meal (what) VALUES ('only here'), ('and here')")
    do(pair, "UPDATE log SET line = 'x'; DELETE FROM meal WHERE id = 3; TRUNCATE log")
    do(pair, "INSERT INTO slipway.heartbeat (sequence, source) VALUES (1, 'mine')")
    found = unshipped(pair.primary.url, pair.name, pair.name)
    assert found is not None
    assert found.counts == {
        "public.meal": {"insert": 2, "delete": 1},
        "public.log": {"truncate": 1},
    }
    assert any("what=only here" in row for row in found.rows)
    again = unshipped(pair.primary.url, pair.name, pair.name)
    assert again is not None and again.counts == found.counts  # looking takes nothing away


def test_nobody_can_say_what_is_lost_without_a_slot(pair: Replication) -> None:
    assert unshipped(pair.primary.url, "never_made", pair.name) is None
    assert decode([]).sentence() == "nothing"


def test_everything_committed_before_a_beat_is_there_when_the_beat_is(pair: Replication) -> None:
    with psycopg.connect(pair.primary.url, autocommit=True) as connection:
        connection.execute("INSERT INTO log SELECT 'x' FROM generate_series(1, 20000)")
        row = connection.execute(
            "INSERT INTO slipway.heartbeat (sequence, source) VALUES (1, 'last') RETURNING at"
        ).fetchone()
    assert row is not None
    assert pair.await_beat(row[0], 30)
    assert count(pair, "log") == 20000
    assert not pair.await_beat(row[0] + timedelta(hours=1), 0.2)


def test_a_server_that_publishes_nothing_is_told(
    servers: tuple[DisposableServer, DisposableServer],
) -> None:
    with DisposableServer() as plain:
        url = plain.database("plain")
        with pytest.raises(Failed, match="wal_level minimal") as caught:
            Replication(url, url, url, "x").begin()
    assert caught.value.code == "SLP207"
