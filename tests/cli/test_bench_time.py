"""``nif bench calibrate`` and ``nif bench estimate``."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from nifcore import timing
from nifcore.calibration import ASSUMED, Calibration, calibration_file, identity_of
from nifcore.header import Colour
from nifcore.presets import find_recipe
from nifcore.workload import Workload
from tests.cli.conftest import HEIGHT, WIDTH, Coded
from tests.cli.program import nif_here


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the file that this machine's calibration is kept in, which is not there yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return calibration_file(tmp_path / "nif", "cpu", None, torch.get_num_threads())


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Put a known calibration in place of the measurement; the list grows with each."""
    count: list[int] = []

    def calibrate(device: torch.device, kernel: str | None = None) -> Calibration:
        count.append(1)
        return replace(
            ASSUMED, identity=identity_of("cpu", None, torch.get_num_threads()), seconds=1.0
        )

    monkeypatch.setattr(timing, "calibrate", calibrate)
    return count


def test_a_calibration_is_kept_and_reused(cache: Path, measured: list[int]) -> None:
    run = nif_here("bench", "calibrate", "--dry-run", "--json", "--device", "cpu")
    assert run.code == 0, run.stderr
    assert not cache.exists()
    assert nif_here("bench", "calibrate", "--quiet", "--device", "cpu").code == 0
    kept = json.loads(cache.read_text())
    assert run.objects == [{"schema_version": 1} | kept]
    assert len(measured) == 2
    again = nif_here("bench", "calibrate", "--reuse", "--json", "--device", "cpu")
    assert again.objects == run.objects
    assert len(measured) == 2
    cache.write_text("damaged")
    nif_here("bench", "calibrate", "--reuse", "--quiet", "--device", "cpu")
    assert len(measured) == 3
    assert json.loads(cache.read_text()) == kept


def test_the_table_shows_every_effort(cache: Path, measured: list[int]) -> None:
    run = nif_here("bench", "calibrate", "--device", "cpu")
    rows = [line.split() for line in run.text.splitlines() if line[:8].strip().isdigit()]
    assert [row[0] for row in rows] == [str(effort) for effort in range(1, 10)]


def test_a_cache_that_cannot_be_written_is_an_error_of_its_own(
    cache: Path, measured: list[int]
) -> None:
    cache.parent.write_text("a file where the folder should be")
    run = nif_here("bench", "calibrate", "--device", "cpu")
    assert run.code == 1
    assert "cannot write" in run.stderr


def test_estimates_are_set_beside_what_encodes_took(
    coded: Coded, cache: Path, measured: list[int]
) -> None:
    arguments = ("bench", "estimate", coded.picture, "-e", 1, "--bpp", 4, "--device", "cpu")
    run = nif_here(*arguments, "--size", f"{WIDTH}x{HEIGHT}", "--size", "24x16", "--json")
    assert run.code == 0, run.stderr
    assert len(measured) == 1
    for said, (width, height) in zip(run.objects, ((WIDTH, HEIGHT), (24, 16)), strict=True):
        assert (said["width"], said["height"]) == (width, height)
        work = Workload.planned(
            find_recipe(None, 1), width, height, Colour.SRGB, 4 * width * height / 8
        )
        assert said["predicted"] == ASSUMED.estimate(work)
        assert said["error"] == pytest.approx(said["predicted"] / said["seconds"] - 1)
        assert said["eta_total"] > 0
    text = nif_here(*arguments, "--size", "24x16").text
    assert "within 25%" in text
    assert nif_here(*arguments, "--size", "4000x10").code == 3
