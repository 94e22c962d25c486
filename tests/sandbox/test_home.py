"""Where a sandbox lives and what it remembers."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from domain.errors import UsageError
from sandbox.home import Home, Memory, Started, inherited


def test_the_nearest_folder_that_holds_a_state_root_is_used(tmp_path: Path) -> None:
    (tmp_path / ".slipway").mkdir()
    below = tmp_path / "a" / "b"
    below.mkdir(parents=True)
    assert Home.find(below, environ={}).root == tmp_path.resolve() / ".slipway"


def test_without_any_state_root_the_folder_itself_gets_one(tmp_path: Path) -> None:
    (tmp_path / "project").mkdir()
    found = Home.find(tmp_path / "project", environ={})
    assert found.root == tmp_path.resolve() / "project" / ".slipway"


def test_the_environment_names_another_root(tmp_path: Path) -> None:
    assert Home.find(environ={"SLIPWAY_HOME": str(tmp_path / "x")}).root == tmp_path / "x"


def test_socket_paths_are_short_however_deep_the_checkout_is(tmp_path: Path) -> None:
    home = Home.at(tmp_path.joinpath(*["a-long-folder-name"] * 12))
    assert len(os.fsencode(home.cluster_socket())) < 104
    assert home.run != Home.at(tmp_path).run


def test_memory_survives_and_only_its_owner_can_read_it(tmp_path: Path) -> None:
    home = Home.at(tmp_path)
    memory = Memory({"web": 8080}, {}, {"redis": Started(12, 3.5)})
    password = memory.secret("database")
    memory.save(home)
    assert Memory.load(home) == memory
    assert Memory.load(home).secret("database") == password
    assert home.state_file.stat().st_mode & 0o777 == 0o600
    assert password not in repr(memory)
    assert [path.name for path in tmp_path.iterdir()] == ["sandbox.json"]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"ports": {}}', '{"ports": 1, "secrets": {}}'])
def test_a_damaged_memory_is_named_with_the_way_out(tmp_path: Path, text: str) -> None:
    home = Home.at(tmp_path)
    home.state_file.write_text(text)
    with pytest.raises(UsageError) as caught:
        Memory.load(home)
    assert caught.value.code == "SLP016"
    assert str(home.state_file) in caught.value.help


def test_a_root_that_cannot_be_made_is_a_usage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError) as caught:
        Home.at(tmp_path / "file" / "root").make()
    assert caught.value.code == "SLP016"


def test_a_socket_folder_that_others_can_enter_is_refused(tmp_path: Path) -> None:
    home = Home.at(tmp_path)
    home.run.mkdir(mode=0o700)
    try:
        home.run.chmod(0o777)
        with pytest.raises(UsageError) as caught:
            home.make()
        assert caught.value.code == "SLP016"
    finally:
        home.run.rmdir()


def test_the_lock_is_held_by_one_and_free_again_after_it(tmp_path: Path) -> None:
    home = Home.at(tmp_path)
    with home.locked() as first:
        assert first
        assert home.lock_file.read_text().strip() == str(os.getpid())
        with home.locked() as second:
            assert not second
    with home.locked() as third:
        assert third


def test_a_persons_prefect_settings_do_not_reach_the_sandbox() -> None:
    environ = {"PREFECT_API_KEY": "k", "PREFECT_PROFILE": "cloud", "LANG": "C"}
    assert inherited({**environ, "PYTHONDONTWRITEBYTECODE": "1"}) == {"LANG": "C"}
