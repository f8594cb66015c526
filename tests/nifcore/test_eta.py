"""The time left: the calibration's at first, then at the pace that is seen."""

from __future__ import annotations

import pytest

from nifcore.calibration import Durations
from nifcore.eta import Eta
from nifcore.workload import Workload

WORK = Workload("soap", 2, 100, 50, 1, 1, 1, 1, 1.0)
PLAN = Durations(open=1.0, fit=0.01, turn=0.5, quantise=0.02, close=3.0, workload=WORK)
TILE = 100 * 0.01 + 0.5 + 50 * 0.02


def run(eta: Eta, slower: float, tiles: int = 2) -> list[tuple[float, float | None]]:
    """Go through an encode whose parts take as planned, times ``slower``; return (true, told)."""
    total = slower * (tiles * PLAN.tile + PLAN.close)
    told = []
    for tile in range(tiles):
        for done in range(WORK.iterations + 1):
            now = slower * (tile * PLAN.tile + PLAN.iterations(done))
            counts = [WORK.iterations] * tile + [done]
            told.append((total - now, eta.fitting(now, counts)))
    for passed in (0.0, 1.0, 2.0):
        now = slower * (tiles * PLAN.tile + passed)
        told.append((total - now, eta.closing(now)))
    return told


def test_as_planned_every_word_is_true() -> None:
    for true, told in run(Eta(PLAN, calibrated=True), 1.0):
        assert told == pytest.approx(true)


def test_a_calibration_speaks_at_once_and_the_pace_corrects_it() -> None:
    told = run(Eta(PLAN, calibrated=True), 2.0)
    assert told[0][1] == pytest.approx(told[0][0] / 2)
    errors = [abs(each / true - 1) for true, each in told if each is not None]
    assert errors[0] > errors[len(errors) // 2] > errors[-5]
    assert errors[-5] < 0.25


def test_without_one_the_pace_is_awaited_and_alone_counts() -> None:
    told = run(Eta(PLAN, calibrated=False), 3.0)
    assert [each for _, each in told[:3]] == [None, None, None]
    for true, each in told[3:]:
        assert each == pytest.approx(true)


def test_tiles_at_once_go_at_the_pace_that_is_seen() -> None:
    eta = Eta(PLAN, calibrated=False)
    for done in range(WORK.iterations + 1):
        # two tiles in the time of one and a quarter
        now = 1.25 * PLAN.iterations(done)
        told = eta.fitting(now, [done, done])
        if done >= 2:
            true = 1.25 * (PLAN.tile - PLAN.iterations(done)) + 0.625 * PLAN.close
            assert told == pytest.approx(true)


def test_what_comes_after_the_fit_is_counted() -> None:
    eta = Eta(PLAN, calibrated=True)
    assert eta.fitting(0.0, [WORK.iterations, WORK.iterations]) == PLAN.close
    assert eta.closing(10.0) == pytest.approx(3.0)
    assert eta.closing(11.0) == pytest.approx(2.0)
    assert eta.closing(99.0) == 0.0


def test_finishing_early_leaves_the_iterations_that_are_left() -> None:
    eta = Eta(PLAN, calibrated=True)
    told = eta.fitting(0.0, [WORK.iterations, 10], left=48)
    assert told == pytest.approx(48 * 0.02 + 3.0)


def test_a_resumed_fit_is_paced_from_where_it_goes_on() -> None:
    eta = Eta(PLAN, calibrated=False)
    eta.begin(100.0, [WORK.iterations, 90])
    left = eta.fitting(100.0 + 5 * 0.01, [WORK.iterations, 95])
    assert left == pytest.approx(5 * 0.01 + 0.5 + 50 * 0.02 + 3.0)
