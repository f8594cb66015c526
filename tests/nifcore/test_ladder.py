"""The ladder's numbers, against ones worked out by hand."""

from __future__ import annotations

import pytest

from nifcore.ladder import LadderRun, rungs


def run(effort: int, seconds: float, psnr: float, picture: str = "a", **more: object) -> LadderRun:
    values = {"pixels": 8000, "bytes": 1000, "ms_ssim": 0.9} | more  # 1 bit per pixel
    return LadderRun(picture, effort=effort, seconds=seconds, psnr_db=psnr, **values)  # type: ignore[arg-type]


def test_the_psnr_is_moved_to_the_exact_rate() -> None:
    assert run(1, 1.0, 30.0).psnr_at(1.0) == 30.0
    assert run(1, 1.0, 30.0).psnr_at(2.0) == 32.5
    assert run(1, 1.0, 30.0, bytes=2000).psnr_at(1.0) == 27.5


def test_means_gains_and_seconds() -> None:
    runs = [
        run(1, 1.0, 30.0),
        run(1, 3.0, 32.0, "b", pixels=24000, bytes=3000),
        run(3, 5.0, 31.0),
        run(3, 11.0, 35.0, "b", pixels=24000, bytes=3000, ms_ssim=None),
    ]
    first, second = rungs(runs, 1.0)
    assert (first.effort, second.effort) == (1, 3)
    assert (first.seconds, second.seconds) == (2.0, 8.0)
    assert first.seconds_per_megapixel == 4.0 / 0.032
    assert (first.psnr_db, second.psnr_db) == (31.0, 33.0)
    assert first.gain_db is None
    assert second.gain_db == pytest.approx(1.0)  # 2 dB over two doublings
    assert first.ms_ssim == pytest.approx(0.9)
    assert second.ms_ssim is None


def test_the_front_leaves_out_what_another_beats() -> None:
    runs = [run(1, 1.0, 30.0), run(2, 4.0, 30.5), run(3, 2.0, 31.0), run(4, 8.0, 31.0)]
    assert [level.on_front for level in rungs(runs, 1.0)] == [True, False, True, False]


def test_only_pictures_that_every_level_has_count() -> None:
    runs = [run(1, 1.0, 30.0), run(2, 2.0, 31.0), run(1, 9.0, 50.0, "b")]
    assert [level.psnr_db for level in rungs(runs, 1.0)] == [30.0, 31.0]
    assert rungs([run(1, 1.0, 30.0), run(2, 1.0, 30.0, "b")], 1.0) == []


def test_a_repeated_encode_replaces_the_earlier_one() -> None:
    (level,) = rungs([run(1, 1.0, 30.0), run(1, 2.0, 33.0)], 1.0)
    assert (level.seconds, level.psnr_db) == (2.0, 33.0)
