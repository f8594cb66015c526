from dataclasses import replace

import numpy as np
import pytest
import torch

from nifcore.decoder import decode_pixels
from nifcore.errors import Cancelled, NotAnImage, UsageError
from nifcore.events import Control
from nifcore.gpu.batch_encode import Job, encode_many
from nifcore.limits import Limits
from nifcore.metrics import psnr
from tests.nifcore.checkpoints import Memory
from tests.nifcore.recipes import BRIEF


@pytest.fixture(autouse=True)
def _brief(monkeypatch):
    """Effort 1 is a hundred iterations here."""
    monkeypatch.setattr("nifcore.presets.EFFORTS", {1: BRIEF})


def picture(number, height=48, width=64):
    y, x = np.mgrid[0:height, 0:width] / 48.0
    waves = [np.sin((4 + number) * y + 3 * x), np.cos(5 * y * x + number), np.sin(6 * x - 2 * y)]
    return ((np.stack(waves, -1) + 1) * 127.5).astype(np.uint8)


def test_every_picture_gets_its_own_file_and_report():
    events = {0: [], 1: []}
    jobs = [
        Job(picture(0), effort=1, bpp=3.0, progress=events[0].append),
        Job(picture(1), effort=1, bpp=3.0, seed=5, progress=events[1].append),
        Job(picture(2, 40, 40), effort=1, bpp=4.0),
    ]

    results = encode_many(jobs, device="cpu")

    for job, result in zip(jobs, results, strict=True):
        decoded = decode_pixels(
            result.data, device=torch.device("cpu"), kernel=None, limits=Limits()
        )
        assert psnr(job.image, decoded) == pytest.approx(result.report.psnr_db, abs=1e-6)
        assert result.report.psnr_db > 14
        assert result.report.bpp <= job.bpp
        assert result.report.kernel == "stacked"
        assert result.report.seed == job.seed
    for heard in events.values():
        phases = [event.phase for event in heard]
        assert phases[0] == "prepare"
        assert phases[-1] == "verify"


def test_one_failure_and_one_cancellation_leave_the_rest_alone():
    asked = []

    def cancel():
        asked.append(None)
        return Control.CANCEL if len(asked) > 20 else Control.CONTINUE

    jobs = [
        Job(b"no picture at all", effort=1),
        Job(picture(0), effort=1, bpp=3.0, control=cancel),
        Job(picture(1), effort=1, bpp=3.0),
    ]

    results = encode_many(jobs, device="cpu")

    assert isinstance(results[0], NotAnImage)
    assert isinstance(results[1], Cancelled)
    assert results[2].report.complete


def test_finishing_one_early_keeps_its_best():
    asked = []

    def finish():
        asked.append(None)
        return Control.FINISH if len(asked) > 60 else Control.CONTINUE

    early, whole = encode_many(
        [
            Job(picture(0), effort=1, bpp=3.0, control=finish),
            Job(picture(1), effort=1, bpp=3.0),
        ],
        device="cpu",
    )

    assert not early.report.complete
    assert early.report.bpp <= 3.0
    assert whole.report.complete


def test_what_was_cancelled_goes_on_from_its_checkpoint_beside_others():
    memory, asked = Memory(interval_seconds=1.0), []

    def cancel():
        asked.append(None)
        return Control.CANCEL if len(asked) > 60 else Control.CONTINUE

    first = Job(picture(0), effort=1, bpp=3.0, checkpoint=memory, control=cancel)
    (stopped,) = encode_many([first], device="cpu")
    resumed, other = encode_many(
        [replace(first, control=None), Job(picture(1), effort=1, bpp=3.0)], device="cpu"
    )

    assert isinstance(stopped, Cancelled)
    assert any("resumed" in note for note in resumed.report.notes)
    assert resumed.report.psnr_db > 14
    assert other.report.complete


def test_a_wanted_psnr_is_searched_for_within_the_batch():
    wanted = 15.0

    sought, other = encode_many(
        [Job(picture(0), effort=1, psnr=wanted), Job(picture(1), effort=1, bpp=3.0)], device="cpu"
    )

    assert sought.report.psnr_db >= wanted
    assert other.report.complete


def test_tiles_of_one_picture_are_fitted_together(monkeypatch):
    from nifcore import plan

    monkeypatch.setattr(plan, "_TILE_PIXELS", 1500)
    monkeypatch.setattr(plan, "_TILE_PARAMETERS", 300)
    events = []

    (result,) = encode_many(
        [Job(picture(3), effort=1, bpp=4.0, progress=events.append)], device="cpu"
    )

    assert result.report.tiles > 1
    assert result.report.psnr_db > 14
    assert result.report.passes == pytest.approx(BRIEF.iterations(1), rel=0.01)
    done = [event.iteration for event in events if event.phase in ("fit", "quantise")]
    assert done == sorted(done)
    assert max(done) <= BRIEF.iterations(1) * result.report.tiles


def test_no_batch_is_empty():
    with pytest.raises(UsageError, match="together is 0"):
        encode_many([Job(picture(0))], device="cpu", together=0)
    assert encode_many([], device="cpu") == []
