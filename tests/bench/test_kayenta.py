"""The peer in the benchmark behaves as the original was measured to, its defects included."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest

_specification = importlib.util.spec_from_file_location(
    "bench_kayenta", Path(__file__).with_name("kayenta.py")
)
assert _specification is not None and _specification.loader is not None
kayenta = importlib.util.module_from_spec(_specification)
_specification.loader.exec_module(kayenta)


def flagged(level: float, shift: float, trials: int = 100) -> float:
    random = np.random.default_rng(0)
    noise = 1 + 0.2 * random.standard_normal((2, trials, 60))
    pairs = zip(*noise, strict=True)
    return float(np.mean([kayenta.high(level * shift * a, level * b) for a, b in pairs]))


def test_a_shift_is_flagged_down_to_1e_3_and_not_below_1e_5() -> None:
    assert flagged(1.0, 1.3) == 1.0 and flagged(1e-3, 1.3) >= 0.97
    assert flagged(1e-5, 1.3) == 0.0 and flagged(1e-6, 1.3) == 0.0
    assert flagged(1.0, 1.0) <= 0.02


@pytest.mark.parametrize(("points", "needed"), [(10, 8), (20, 14), (60, 27)])
def test_of_a_constant_control_so_many_points_must_move(points: int, needed: int) -> None:
    control = np.ones(points)
    for moved in (needed - 1, needed):
        experiment = np.where(np.arange(points) < moved, 2.0, 1.0)
        assert kayenta.high(experiment, control) == (moved == needed)


def test_the_shift_is_the_median_difference_and_the_interval_is_below_it() -> None:
    random = np.random.default_rng(1)
    a, b = np.sort(random.standard_normal(40) + 1), np.sort(random.standard_normal(50))
    estimate = kayenta._root(a, b, 0.0)
    assert estimate == pytest.approx(np.median(np.subtract.outer(a, b)), abs=2e-3)
    assert kayenta._root(a, b, kayenta.Z) < estimate < kayenta._root(a, b, -kayenta.Z)


def test_no_data_equal_data_and_one_value_are_not_high() -> None:
    one, none = np.ones(5), np.full(5, np.nan)
    assert not kayenta.high(none, one) and not kayenta.high(one, none)
    assert not kayenta.high(one, one.copy()) and not kayenta.high(one, np.ones(3))
    assert kayenta.high(2 * one, one) and not kayenta.high(one, 2 * one)
