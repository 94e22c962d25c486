"""The flag: off without a file, sticky by player, counted by variant, killed while it runs."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

from test_http import TOKEN, ask, make

from diet_game import rules
from diet_game.api import Player
from diet_game.flags import DOUBLE_FIBRE, OFF, ON, Flags
from diet_game.models import Food
from diet_game.rules import Nutrition
from diet_game.settings import Settings

SOURCE = Path(__file__).parents[2] / "flags.json"
PLAYERS = range(400)


def write(path: Path, percent: int) -> None:
    document = json.loads(SOURCE.read_text())
    split = {"fractional": [["on", percent], ["off", 100 - percent]]}
    document["flags"][DOUBLE_FIBRE]["targeting"] = split
    path.write_text(json.dumps(document))


def on(flags: Flags) -> set[int]:
    return {player for player in PLAYERS if flags.variant(DOUBLE_FIBRE, player) == ON}


def until(seen: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not seen():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_off_without_a_flag_file() -> None:
    flags = Flags(None)
    flags.open()
    assert flags.variant(DOUBLE_FIBRE, 1) == OFF
    flags.close()


def test_off_while_the_file_is_not_there_and_on_when_it_comes(tmp_path: Path) -> None:
    flags = Flags(str(tmp_path / "flags.json"))
    flags.open()
    try:
        assert not on(flags)
        write(tmp_path / "flags.json", 100)
        until(lambda: len(on(flags)) == len(PLAYERS))
    finally:
        flags.close()


def test_a_share_is_sticky_and_a_kill_is_seen(tmp_path: Path) -> None:
    write(tmp_path / "flags.json", 10)
    flags = Flags(str(tmp_path / "flags.json"))
    flags.open()
    try:
        until(lambda: bool(on(flags)))
        few = on(flags)
        assert len(few) < 100
        write(tmp_path / "flags.json", 50)
        until(lambda: len(on(flags)) > len(few))
        assert few <= on(flags)
        write(tmp_path / "flags.json", 0)
        until(lambda: not on(flags))
    finally:
        flags.close()


def test_the_flag_file_of_the_source_has_it_off() -> None:
    flags = Flags(str(SOURCE))
    flags.open()
    try:
        assert not on(flags)
    finally:
        flags.close()


def test_settings_take_the_file_only_for_the_file_resolver() -> None:
    env = {"DATABASE_URL": "postgresql://x", "FLAGD_OFFLINE_FLAG_SOURCE_PATH": "/f.json"}
    assert Settings.from_environment(env).flags_file is None
    assert Settings.from_environment({**env, "FLAGD_RESOLVER": "file"}).flags_file == "/f.json"


def test_double_fibre_counts_fibre_twice_and_nothing_else() -> None:
    meal = Nutrition(100, 0, 0, 0, 4, 0)
    assert (rules.points(meal), rules.points(meal, double_fibre=True)) == (12, 14)
    plain = Nutrition(100, 10, 5, 5, 0, 5)
    assert rules.points(plain) == rules.points(plain, double_fibre=True)


def test_a_request_is_counted_under_the_variant_it_met(tmp_path: Path) -> None:
    """As the platform reads it: the same labels, on /metrics, also before the first request."""
    write(tmp_path / "flags.json", 100)
    app = make(flags_file=str(tmp_path / "flags.json"))
    families = ask(app, "GET", "/metrics").text
    assert "# TYPE feature_flag_requests_total counter" in families
    assert "# TYPE feature_flag_request_duration_seconds histogram" in families
    assert "process_start_time_seconds" in families
    api = app.state.api
    api.players.get_or_load = signed_in
    api.food.get_or_load = food
    api.flags.open()
    try:
        until(lambda: api.flags.variant(DOUBLE_FIBRE, 1) == ON)
        answer = ask(app, "POST", "/api/meals", headers=TOKEN, json={"food_id": 1, "grams": 1})
        assert answer.status_code == 503, "there is no database"
    finally:
        api.flags.close()
    ask(app, "POST", "/api/meals", headers=TOKEN, json={"food_id": 1, "grams": 1})
    text = ask(app, "GET", "/metrics").text
    for variant in (ON, OFF):
        labels = f'flag="double-fibre",variant="{variant}"'
        counted = f'feature_flag_requests_total{{code="503",{labels}}} 1.0'
        assert counted in text
        assert f"feature_flag_request_duration_seconds_count{{{labels}}} 1.0" in text


async def signed_in(key: object, load: object) -> Player:
    return Player(1, "ann", datetime.now(UTC) + timedelta(days=1))


async def food(key: object, load: object) -> Food:
    return Food(1, "oats", "grains", 380, 13, 7, 60, 10, 1)
