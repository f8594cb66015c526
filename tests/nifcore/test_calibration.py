"""What an encode amounts to, coefficients that turn it into seconds, and where they are kept."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nifcore
from nifcore import calibration
from nifcore.calibration import ASSUMED, Calibration, calibration_file, identity_of, load, save
from nifcore.errors import InputError
from nifcore.header import Colour
from nifcore.presets import EFFORTS, PRESETS, find_recipe
from nifcore.workload import PARTS, Workload


def work(effort: int = 1, width: int = 768, height: int = 512, bpp: float = 0.5) -> Workload:
    size = bpp * width * height / 8
    return Workload.planned(find_recipe(None, effort), width, height, Colour.SRGB, size)


def table(value: float) -> dict[str, Any]:
    parts = {part: (value,) * len(work().features(part)) for part in PARTS}
    return {"soap": parts, "adamw": parts}


class TestWorkload:
    def test_it_is_what_an_encode_does(self) -> None:
        pixels = np.random.default_rng(0).integers(0, 256, (40, 64, 3), np.uint8)
        calls = []
        report = nifcore.encode(pixels, effort=1, bpp=3.0, control=lambda: calls.append(1)).report
        planned = work(1, 64, 40, 3.0)
        assert planned.iterations == len(calls) == report.passes
        assert (planned.weights, planned.tiles) == (report.parameters, report.tiles)
        assert planned.lattice == planned.pixels == 64 * 40  # so small that all pixels are used

    def test_large_pictures_have_tiles_and_lattices(self) -> None:
        large = work(1, 4000, 3000, 0.5)
        assert large.tiles > 1
        assert large.pixels == 12_000_000
        assert large.lattice < large.pixels / large.tiles

    def test_published_recipes_count_passes(self) -> None:
        planned = Workload.planned(PRESETS["paper-120"], 768, 512, Colour.SRGB, 0.0)
        assert planned.family == "adamw"
        assert planned.lattice == 768 * 512 / 4
        assert (planned.fit, planned.quantise) == (10 * 150 * 4, 5 * 40 * 4)


class TestSeconds:
    def test_the_whole_is_the_sum_of_its_parts(self) -> None:
        one = replace(work(), tiles=3)
        spent = replace(ASSUMED, overlap=0.0).durations(one)
        tile = one.fit * spent.fit + spent.turn + one.quantise * spent.quantise
        assert spent.total == pytest.approx(spent.open + 3 * tile + spent.close)
        # by twos, when half of what they take does not keep the device busy
        halves = replace(ASSUMED, lanes=2, overlap=0.5)
        spent = halves.durations(one)
        # the third one is alone
        assert spent.total == pytest.approx(spent.open + (1.5 + 1) * tile + spent.close)
        assert halves.estimate(one) == spent.total
        assert spent.iterations(one.fit) == pytest.approx(one.fit * spent.fit)
        assert spent.iterations(one.iterations) == pytest.approx(tile)

    def test_more_work_takes_longer(self) -> None:
        efforts = [ASSUMED.estimate(work(effort)) for effort in EFFORTS]
        assert efforts == sorted(set(efforts))
        rates = [ASSUMED.estimate(work(bpp=bpp)) for bpp in (0.1, 0.3, 1.0, 3.0)]
        assert rates == sorted(set(rates))
        sides = [ASSUMED.estimate(work(width=side, height=side)) for side in (64, 400, 900, 3000)]
        assert sides == sorted(set(sides))

    def test_coefficients_weigh_the_features(self) -> None:
        one = work()
        only = {part: (0.0,) * len(one.features(part)) for part in PARTS} | {"close": (0, 0, 0, 2)}
        found = Calibration("x", "cpu", {"soap": only})
        assert found.estimate(one) == 2 * one.pixels
        # of a family that was not measured, the estimate is that of another
        paper = Workload.planned(PRESETS["paper-120"], 8, 8, Colour.SRGB, 0.0)
        assert found.estimate(paper) == 2 * 64


class TestKeeping:
    def test_saved_and_loaded(self, tmp_path: Path) -> None:
        identity = identity_of("cpu", None, 2)
        path = calibration_file(tmp_path / "new" / "folder", "cpu", None, 2)
        assert load(path, identity) is None
        made = Calibration(identity, "cpu", table(0.25), 4, 0.3, 1.5)
        save(path, made)
        assert load(path, identity) == made
        assert Calibration.from_dict(json.loads(path.read_text())) == made

    def test_devices_kernels_and_threads_have_files_of_their_own(self, tmp_path: Path) -> None:
        names = {
            calibration_file(tmp_path, device, kernel, threads)
            for device in ("cpu", "cuda:0 (NVIDIA H200)")
            for kernel in (None, "fused:avx2")
            for threads in (1, 2)
        }
        assert len(names) == 8
        assert all(path.parent == tmp_path for path in names)

    def test_of_another_version_or_machine_it_is_ignored(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = tmp_path / "x.json"
        now = identity_of("cpu", None, 2)
        save(path, Calibration(now, "cpu", table(1.0)))
        assert load(path, now) is not None
        monkeypatch.setattr(nifcore, "__version__", "0.0.9")
        assert load(path, identity_of("cpu", None, 2)) is None
        monkeypatch.undo()
        monkeypatch.setattr(calibration, "_processor", lambda: "another processor")
        assert load(path, identity_of("cpu", None, 2)) is None

    @pytest.mark.parametrize(
        "text", ["", "{", "[]", "null", '{"format": 1}', "\xff\xfe", '{"format": 99}']
    )
    def test_damaged_it_is_ignored(self, tmp_path: Path, text: str) -> None:
        path = tmp_path / "x.json"
        path.write_text(text, encoding="latin-1")
        assert load(path, identity_of("cpu", None, 2)) is None

    def test_what_makes_no_sense_is_refused(self) -> None:
        good = Calibration("x", "cpu", table(1.0)).to_dict()
        assert Calibration.from_dict(good).identity == "x"
        short = json.loads(json.dumps(good))
        short["coefficients"]["soap"]["fit"].pop()
        negative = json.loads(json.dumps(good))
        negative["coefficients"]["soap"]["open"][0] = -1e-9
        endless = json.loads(json.dumps(good).replace("1.0", "NaN"))
        for bad in (
            short,
            negative,
            endless,
            good | {"coefficients": {}},
            good | {"format": 0},
            good | {"lanes": 0},
            good | {"overlap": 1.5},
        ):
            with pytest.raises(InputError, match="no calibration"):
                Calibration.from_dict(bad)
