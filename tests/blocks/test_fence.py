"""The fence on a real PostgreSQL: who may write, also after a server was frozen."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import psycopg
import pytest

from blocks import drill_processes, fence, keeper
from blocks.backup_locations import BackupLocation
from blocks.disposable_postgres import DisposableServer
from blocks.epochs import Epochs
from blocks.fence import Fence
from blocks.file_store import FileStore
from blocks.keeper import Assignment, KeeperProcess
from domain.errors import Failed
from domain.failover import Epoch
from tests.scenarios.world import wait_until

LEASE = timedelta(seconds=1)
TABLES = """
CREATE TABLE meal (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, what text);
CREATE TABLE log (line text);
"""


@pytest.fixture(scope="module")
def server() -> Iterator[DisposableServer]:
    with DisposableServer(publishes=True) as running:
        yield running


@pytest.fixture
def url(server: DisposableServer, request: pytest.FixtureRequest) -> str:
    made = server.database(f"d{abs(hash(request.node.nodeid)) % 10**12}")
    with psycopg.connect(made, autocommit=True) as connection:
        connection.execute(TABLES)
    return made


def write(url: str, table: str = "meal (what)") -> bool:
    """Whether a write is taken; anything but the fence's refusal is an error."""
    with psycopg.connect(url, autocommit=True) as connection:
        try:
            connection.execute(f"INSERT INTO {table} VALUES ('apple')".encode())
        except psycopg.errors.ReadOnlySqlTransaction:
            return False
    return True


def test_without_a_lease_nothing_is_written_and_everything_is_read(url: str) -> None:
    guard = Fence(url)
    assert write(url)
    guard.arm()
    state = guard.state()
    assert state.armed and not state.writable
    assert not write(url) and not write(url, "log")
    with psycopg.connect(url, autocommit=True) as connection:
        assert connection.execute("SELECT count(*) FROM meal").fetchone() == (1,)
        for statement in ("UPDATE meal SET what = 'x'", "DELETE FROM meal", "TRUNCATE log"):
            with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
                connection.execute(statement.encode())
    guard.open(1, LEASE)
    assert guard.state().writable and write(url)
    guard.arm()  # again: the lease in force stays
    assert write(url)


def test_a_lease_runs_out_by_itself(url: str) -> None:
    guard = Fence(url)
    guard.arm()
    guard.open(1, timedelta(seconds=0.2))
    wait_until(lambda: not guard.state().writable, "the lease to run out", 5)
    assert not write(url)


def test_a_long_transaction_sees_the_lease_that_was_renewed_after_it_began(url: str) -> None:
    """A row would be seen as it was in the snapshot: that transaction would be refused."""
    guard = Fence(url)
    guard.arm()
    guard.open(1, timedelta(seconds=0.5))
    with psycopg.connect(url) as connection:
        connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        connection.execute("SELECT count(*) FROM meal")
        wait_until(lambda: not guard.state().writable, "the first lease to run out", 5)
        guard.open(1, timedelta(seconds=30))
        connection.execute("INSERT INTO meal (what) VALUES ('late')")


def test_closing_ends_the_sessions_that_passed_the_check_before(url: str) -> None:
    guard = Fence(url)
    guard.arm()
    guard.open(1, timedelta(seconds=30))
    with psycopg.connect(url) as connection:
        connection.execute("INSERT INTO meal (what) VALUES ('under way')")
        assert guard.close(2) >= 1
        with pytest.raises(psycopg.OperationalError):
            connection.commit()
    assert not write(url)
    with psycopg.connect(url) as connection:
        assert connection.execute("SELECT count(*) FROM meal").fetchone() == (0,)


def test_an_older_epoch_grants_nothing(url: str) -> None:
    guard = Fence(url)
    guard.arm()
    guard.close(5)
    with pytest.raises(Failed, match="under epoch 5") as caught:
        guard.open(4, LEASE)
    assert caught.value.code == "SLP203"
    assert not write(url)


def test_a_table_that_comes_later_is_seen_and_covered(url: str) -> None:
    guard = Fence(url)
    guard.arm()
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("CREATE TABLE late (what text)")
    state = guard.state()
    assert state.unfenced == ("public.late",) and state.writable
    assert guard.cover() == ("public.late",)
    assert not guard.state().writable and not write(url, "late")


def test_a_table_without_a_key_can_still_be_updated_when_it_is_published(url: str) -> None:
    """Publishing all tables made updates of such tables fail: an outage by a backup."""
    guard = Fence(url)
    guard.arm()
    guard.open(1, timedelta(seconds=30))
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("CREATE PUBLICATION every FOR ALL TABLES")
        connection.execute("INSERT INTO log VALUES ('a')")
        connection.execute("UPDATE log SET line = 'b'")
        connection.execute("DROP PUBLICATION every")


def test_a_copy_under_another_name_is_nobodys_side(server: DisposableServer, url: str) -> None:
    """The proof of a backup plays a round on the restored copy: that must not be refused."""
    Fence(url).arm()
    copy = server.url_of("copy_of_it")
    name = url.partition("?")[0].rpartition("/")[2]
    with psycopg.connect(server.url, autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE copy_of_it TEMPLATE "{name}"'.encode())
    try:
        assert write(copy)
    finally:
        server.drop("copy_of_it")


def test_the_fence_can_be_taken_down(url: str) -> None:
    guard = Fence(url)
    guard.arm()
    guard.disarm()
    assert not guard.state().armed and write(url)


def test_a_server_that_was_frozen_wakes_up_fenced(tmp_path: Path) -> None:
    """No process acts: the comparison with the server's own clock is enough."""
    with DisposableServer() as own:
        url = own.database("frozen")
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(TABLES)
        guard = Fence(url)
        guard.arm()
        guard.open(1, LEASE)
        family = drill_processes.family(own.pid)
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("INSERT INTO meal (what) VALUES ('before')")
            family = drill_processes.family(own.pid)
            drill_processes.freeze(family)
            refused: list[Exception] = []

            def write_on() -> None:
                try:
                    connection.execute("INSERT INTO meal (what) VALUES ('after')")
                except psycopg.Error as error:
                    refused.append(error)

            waiting = threading.Thread(target=write_on)
            waiting.start()
            end = time.monotonic() + LEASE.total_seconds() * 1.5
            wait_until(lambda: time.monotonic() > end, "the lease to run out", 5)
            drill_processes.thaw(family)
            waiting.join(10)
        assert [type(error) for error in refused] == [psycopg.errors.ReadOnlySqlTransaction]


# Keepers


@pytest.fixture
def epochs(tmp_path: Path) -> Epochs:
    return Epochs(FileStore(tmp_path / "epochs"), "shop", "production")


def claim(epochs: Epochs, side: str) -> Epoch:
    newest = epochs.newest()
    number = newest.number + 1 if newest else 1
    made = Epoch(number=number, side=side, claimed_at=_now(), actor="test", reason="test")
    epochs.claim(made)
    return made


def _now():  # type: ignore[no-untyped-def]
    from datetime import UTC, datetime

    return datetime.now(UTC)


def assignment(url: str, tmp_path: Path) -> Assignment:
    where = BackupLocation(name="epochs", kind="file", bucket=str(tmp_path / "epochs"))
    return Assignment(url, where, {}, "shop", "production", "aws", LEASE.total_seconds())


def test_a_keeper_renews_until_the_epoch_is_anothers(
    url: str, epochs: Epochs, tmp_path: Path
) -> None:
    claim(epochs, "aws")
    guard = Fence(url)
    guard.arm()
    guard.open(1, LEASE)
    running = KeeperProcess(assignment(url, tmp_path), tmp_path / "log")
    try:
        first = guard.state().until
        wait_until(lambda: guard.state().until > first + LEASE, "the lease to be renewed", 20)
        claim(epochs, "gcp")
        wait_until(lambda: not guard.state().writable, "the side to be closed", 10)
        assert guard.state().epoch == 2
        claim(epochs, "aws")
        guard.open(3, LEASE)
        first = guard.state().until
        wait_until(lambda: guard.state().until > first + LEASE, "the keeper to go on", 10)
    finally:
        running.close()


@pytest.mark.parametrize("how", ["killed", "frozen", "left alone"])
def test_with_its_keeper_gone_a_side_is_fenced(
    url: str, epochs: Epochs, tmp_path: Path, how: str
) -> None:
    claim(epochs, "aws")
    guard = Fence(url)
    guard.arm()
    guard.open(1, LEASE)
    first = guard.state().until
    running = KeeperProcess(assignment(url, tmp_path), tmp_path / "log")
    try:
        wait_until(lambda: guard.state().until > first, "the keeper to begin", 20)
        if how == "killed":
            running.process.kill()
        elif how == "frozen":
            drill_processes.freeze(drill_processes.family(running.pid))
        else:
            assert running.process.stdin is not None
            running.process.stdin.close()  # whoever started it died
        wait_until(lambda: not guard.state().writable, "the lease to run out", 5)
        assert not write(url)
    finally:
        running.close() if how != "left alone" else running.process.wait(10)


def test_a_keeper_that_cannot_see_the_epochs_grants_nothing(url: str, tmp_path: Path) -> None:
    guard = Fence(url)
    guard.arm()
    mine = keeper.Keeper(assignment(url, tmp_path))  # nothing was ever claimed
    with guard.connection() as connection:
        mine.round(connection)
    assert not guard.state().writable


def test_a_keeper_does_not_open_what_no_failover_has_opened(
    url: str, epochs: Epochs, tmp_path: Path
) -> None:
    """Between the claim and the end of the old side's lease both would be writable."""
    claim(epochs, "gcp")
    guard = Fence(url)
    guard.arm()
    mine = keeper.Keeper(assignment(url, tmp_path))
    with guard.connection() as connection:
        mine.round(connection)
        claim(epochs, "aws")
        mine.round(connection)
        mine.round(connection)
        assert not guard.state().writable
        guard.open(2, LEASE)
        until = guard.state().until
        mine.round(connection)
        assert guard.state().until > until


def test_sequences_go_past_what_was_recorded_and_what_is_there(url: str) -> None:
    Fence(url).arm()
    with psycopg.connect(url, autocommit=True) as connection:
        fence.clock(connection)
        connection.execute("CREATE SEQUENCE ticket INCREMENT 5")
        connection.execute("CREATE SEQUENCE down INCREMENT -1")
        Fence(url).open(1, timedelta(seconds=30))
        connection.execute("INSERT INTO meal (what) SELECT 'x' FROM generate_series(1, 50)")
        connection.execute("SELECT nextval('ticket'), nextval('down')")
        keeper.record_sequences(connection)
        connection.execute("SELECT setval('meal_id_seq', 1)")  # as in a copy without its values
        keeper.advance_sequences(connection, margin=10)
        rows = connection.execute(
            "SELECT nextval('meal_id_seq'), nextval('ticket'), nextval('down')"
        ).fetchone()
    assert rows is not None
    assert rows[0] > 60 and rows[1] > 1 + 50 and rows[2] < -1 - 10
