"""Measuring a machine: what is made of the clock's readings."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from nifcore import timing
from nifcore.calibration import ASSUMED, Calibration, identity_of
from nifcore.header import Colour
from nifcore.presets import find_recipe
from nifcore.workload import PARTS, Workload


def works() -> list[Workload]:
    sizes = ((512, 384, 0.45), (512, 384, 0.12), (128, 96, 2.0), (96, 64, 14.0), (512, 384, 1.1))
    recipe = find_recipe(None, 1)
    return [Workload.planned(recipe, w, h, Colour.SRGB, bpp * w * h / 8) for w, h, bpp in sizes]


def test_seconds_that_follow_the_features_are_explained() -> None:
    true = Calibration(
        "x",
        "cpu",
        {
            "soap": {
                "open": (0.01, 1e-7),
                "fit": (1e-3, 2e-11, 0.0, 0.0, 1e-10),
                "turn": (0.0, 1e-9, 0.0, 0.0),
                "quantise": (2e-3, 2e-11, 0.0, 0.0, 1e-10, 0.0),
                "close": (0.01, 1e-5, 0.0, 5e-7),
            }
        },
    )
    samples = [
        (work, {part: getattr(true.durations(work), part) for part in PARTS}) for work in works()
    ]
    found = Calibration("y", "cpu", {"soap": timing.solve(samples)})
    # one that is larger and longer than any that was measured
    other = Workload.planned(find_recipe(None, 3), 768, 512, Colour.SRGB, 60_000)
    assert found.estimate(other) == pytest.approx(true.estimate(other), rel=0.02)


def test_coefficients_are_never_negative() -> None:
    random = np.random.default_rng(0)
    for _ in range(20):
        samples = [(w, {part: float(random.uniform(1e-4, 1.0)) for part in PARTS}) for w in works()]
        assert all(min(values) >= 0.0 for values in timing.solve(samples).values())


def test_one_wait_for_a_processor_is_not_one_probes_own() -> None:
    steps = np.full(20, 0.01)
    waited = steps.copy()
    waited[7] = 1.0
    assert timing._capped(steps).mean() == pytest.approx(0.01)
    assert timing._capped(waited).mean() < 0.012


@pytest.mark.parametrize(("lanes", "overlap"), [(2, 0.0), (2, 0.3), (16, 0.3), (2, 1.0)])
def test_what_passes_at_the_same_time_is_found(
    monkeypatch: pytest.MonkeyPatch, lanes: int, overlap: float
) -> None:
    alone = replace(ASSUMED, lanes=1, overlap=0.0)
    true = replace(ASSUMED, lanes=lanes, overlap=overlap)
    recipe = find_recipe(None, 1)

    def run(what: timing._Probe, *_: object) -> tuple[float, Workload]:
        size = 0.45 * what.width * what.height / 8
        work = Workload.planned(recipe, what.width, what.height, Colour.SRGB, size)
        assert work.tiles == (2 if what is timing._TILED else 1)
        return true.durations(work).tiles, work

    monkeypatch.setattr(timing, "_run_tiles", run)

    found = timing._overlap(alone, lanes, torch.device("cpu"), None)

    assert found == pytest.approx(overlap)
    assert timing._overlap(alone, 1, torch.device("cpu"), None) == 0.0


def test_this_machine_is_measured_with_the_real_code(monkeypatch: pytest.MonkeyPatch) -> None:
    # the small ones of the probes, once
    small = [each for each in timing._PROBES if each.width <= 128]
    monkeypatch.setattr(timing, "_PROBES", tuple(small))
    monkeypatch.setattr(timing, "_WARM_UPS", ())
    monkeypatch.setattr(timing, "_MOST_ROUNDS", 1)
    monkeypatch.setattr(timing, "_TILED_ROUNDS", 1)
    found = timing.calibrate(torch.device("cpu"))
    assert found.identity == identity_of("cpu", None, torch.get_num_threads())
    assert set(found.coefficients) == {"soap", "adamw"}
    assert Calibration.from_dict(found.to_dict()) == found
    assert found.lanes == torch.get_num_threads()
    assert 0.0 <= found.overlap <= 1.0
    for work in works():
        spent = found.durations(work)
        assert spent.fit > 0.0
        assert spent.quantise > 0.0
        assert spent.total < 3600
