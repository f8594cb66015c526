import io
import math

import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image

import nifcore
from nifcore import metrics
from nifcore.errors import (
    Cancelled,
    DeviceError,
    ImpossibleTarget,
    LimitExceeded,
    NotAnImage,
    UnknownPreset,
    UsageError,
)
from tests.nifcore.checkpoints import Memory
from tests.nifcore.recipes import BRIEF


def photo(width, height, mode="RGB"):
    image = Image.fromarray(skimage.data.astronaut()).crop((90, 0, 410, 240))
    return image.resize((width, height), Image.Resampling.LANCZOS).convert(mode)


SMALL = photo(64, 48)


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "LA"])
def test_a_report_is_what_an_independent_decode_measures(mode):
    image = photo(64, 48, mode.replace("A", "") if mode == "LA" else mode.rstrip("A"))
    if mode.endswith("A"):
        image.putalpha(Image.linear_gradient("L").resize(image.size))

    encoded = nifcore.encode(image, effort=1, bpp=3.0)

    decoded = nifcore.decode(encoded.data)
    report = encoded.report
    assert decoded.mode == image.mode
    difference = np.asarray(image).astype(float) - np.asarray(decoded)
    assert report.psnr_db == pytest.approx(10 * np.log10(255**2 / (difference**2).mean()))
    assert report.psnr_db > 17
    assert (report.width, report.height, report.bytes) == (64, 48, len(encoded.data))
    assert report.bpp == pytest.approx(len(encoded.data) * 8 / (64 * 48))
    assert report.bpp <= 3.0
    assert (report.effort, report.preset, report.complete) == (1, None, True)


def test_the_same_seed_gives_the_same_file_and_another_seed_another():
    first, again, other = (
        nifcore.encode(SMALL, effort=1, bpp=2.0, seed=seed).data for seed in (1, 1, 2)
    )

    assert first == again
    assert first != other


@pytest.mark.parametrize("size", [(1, 1), (8, 8), (9, 31), (1, 40), (200, 3)])
def test_tiny_and_odd_pictures_keep_their_size(size):
    image = photo(*size)

    encoded = nifcore.encode(image, effort=1, quality=100)

    assert nifcore.decode(encoded.data).size == size


def test_a_flat_picture_is_nearly_exact():
    encoded = nifcore.encode(np.full((8, 8, 3), [10, 200, 90], np.uint8), effort=1)

    assert encoded.report.psnr_db > 45


def test_a_byte_budget_is_kept_and_used():
    encoded = nifcore.encode(SMALL, effort=1, max_bytes=900)

    assert 800 < len(encoded.data) <= 900


def test_quality_is_monotone_in_bytes_and_psnr():
    reports = [nifcore.encode(photo(128, 96), effort=1, quality=q).report for q in (40, 70, 95)]

    assert [r.bytes for r in reports] == sorted(r.bytes for r in reports)
    assert [r.psnr_db for r in reports] == sorted(r.psnr_db for r in reports)


def test_a_wanted_psnr_is_reached_without_wasting_much():
    encoded = nifcore.encode(photo(160, 120), effort=1, psnr=24.0)

    # so small a fit scatters by a dB and more between sizes
    assert 24.0 <= encoded.report.psnr_db < 26.5


def test_an_unreachable_psnr_says_what_was_reached():
    noise = np.random.default_rng(0).integers(0, 256, (24, 24, 3), np.uint8)

    with pytest.raises(ImpossibleTarget, match=r"70.00 dB asked; the best of .* reached"):
        nifcore.encode(noise, effort=1, psnr=70.0)


def test_a_published_preset_keeps_its_networks_and_lattice():
    encoded = nifcore.encode(
        photo(32, 24), preset="paper-icb-360", control=lambda: nifcore.Control.FINISH
    )

    header = nifcore.read_header(encoded.data)
    assert header.genesis.hidden == (360, 150, 70, 32)
    assert header.lattice.name == "PUBLISHED"
    assert encoded.report.preset == "paper-icb-360"
    assert not encoded.report.complete


def test_tiles_of_a_large_picture_fit_together(monkeypatch):
    monkeypatch.setattr("nifcore.plan._TILE_PIXELS", 64 * 48)
    monkeypatch.setattr("nifcore.plan._TILE_PARAMETERS", 500)
    image = photo(128, 96)

    encoded = nifcore.encode(image, effort=1, bpp=2.0)

    assert encoded.report.tiles == 4
    assert encoded.report.bpp <= 2.0
    assert encoded.report.psnr_db > 18
    # no seam: the error along the cuts is like that elsewhere
    error = np.abs(np.asarray(image).astype(int) - np.asarray(nifcore.decode(encoded.data)))
    assert error[47:49].mean() < 2.5 * error.mean()


def test_progress_tells_phases_in_order_with_growing_iterations():
    events = []
    nifcore.encode(SMALL, effort=2, bpp=2.0, progress=events.append)

    phases = list(dict.fromkeys(event.phase for event in events))
    assert phases[0] == "prepare"
    assert [p for p in phases if p in ("fit", "quantise")] == ["fit", "quantise"]
    assert phases[-1] == "verify"
    fits = [event for event in events if event.phase in ("fit", "quantise") and not event.message]
    assert [e.iteration for e in fits] == sorted(e.iteration for e in fits)
    assert all(0 <= e.iteration <= e.iterations for e in fits)
    assert any(e.psnr_db for e in fits)
    assert any(e.eta_seconds for e in fits)
    previews = [e.preview for e in fits if e.preview is not None]
    assert previews
    assert previews[0].shape == (48, 64, 3)


class Asked:
    """A control that counts how often it is asked, and wishes something after so many times."""

    def __init__(self, wish=nifcore.Control.CONTINUE, after=math.inf):
        self.wish, self.after, self.count = wish, after, 0

    def __call__(self):
        self.count += 1
        return self.wish if self.count > self.after else nifcore.Control.CONTINUE


@pytest.fixture(scope="module")
def whole():
    """An undisturbed encode of SMALL, and how often its control was asked."""
    control = Asked()
    encoded = nifcore.encode(SMALL, effort=1, bpp=2.0, seed=3, control=control)
    return encoded, control.count


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_cancelled_encode_resumes_to_the_same_file(share, whole):
    expected, count = whole
    settings = {"effort": 1, "bpp": 2.0, "seed": 3}
    # saves once a second at most, and when it is cancelled
    memory = Memory(interval_seconds=1.0)
    control = Asked(nifcore.Control.CANCEL, round(share * count))

    with pytest.raises(Cancelled):
        nifcore.encode(SMALL, **settings, checkpoint=memory, control=control)
    resumed = nifcore.encode(SMALL, **settings, checkpoint=memory)

    assert resumed.data == expected.data
    assert any("resumed from a checkpoint" in note for note in resumed.report.notes)


def test_a_killed_encode_resumes_from_its_last_save_to_the_same_file(whole):
    """Without a word of warning, from what was saved between two iterations."""

    class Killed(BaseException):
        pass

    class Third(Memory):
        saves = 0

        def save(self, data):
            super().save(data)
            self.saves += 1
            if self.saves == 3:
                raise Killed

    settings = {"effort": 1, "bpp": 2.0, "seed": 3}
    memory = Third()

    with pytest.raises(Killed):
        nifcore.encode(SMALL, **settings, checkpoint=memory)
    memory.interval_seconds = math.inf
    resumed = nifcore.encode(SMALL, **settings, checkpoint=memory)

    assert resumed.data == whole[0].data


def test_cancelling_is_heard_after_finishing_was_asked_for():
    answers = iter([nifcore.Control.FINISH, nifcore.Control.FINISH, nifcore.Control.CANCEL])

    with pytest.raises(Cancelled):
        nifcore.encode(SMALL, effort=1, bpp=2.0, control=lambda: next(answers))


def test_resuming_between_tiles_and_between_tried_sizes(monkeypatch):
    monkeypatch.setattr("nifcore.plan._TILE_PIXELS", 64 * 48)
    monkeypatch.setattr("nifcore.plan._TILE_PARAMETERS", 100)
    # with a quarter of the effort the size that it begins with is too small by far
    monkeypatch.setattr("nifcore.presets.EFFORTS", {1: BRIEF})
    image, settings = photo(128, 48), {"effort": 1, "psnr": 18.0}
    asked, begun, last = Asked(), [], None

    def watch(event):
        nonlocal last
        if not event.message:
            if event.phase == "fit" and last != "fit":
                begun.append(asked.count)
            last = event.phase

    whole = nifcore.encode(image, **settings, progress=watch, control=asked)
    assert len(begun) >= 4  # two tiles of two sizes
    cuts = sorted({*begun[1:], begun[0] + 37, begun[1] + 41, begun[2] + 83})
    memory, done, states = Memory(interval_seconds=math.inf), 0, []
    for cut in cuts:
        control = Asked(nifcore.Control.CANCEL, cut - done)
        with pytest.raises(Cancelled):
            nifcore.encode(image, **settings, checkpoint=memory, control=control)
        done = cut
        state = torch.load(io.BytesIO(memory.data), weights_only=True)
        states.append((len(state["tried"]), len(state["tiles"])))
    control = Asked()
    resumed = nifcore.encode(image, **settings, checkpoint=memory, control=control)

    assert resumed.data == whole.data
    assert control.count == asked.count - done
    assert {(0, 0), (0, 1), (1, 0), (1, 1)} <= set(states)


@pytest.mark.parametrize("data", [b"", b"garbage", b"PK\x03\x04 not a checkpoint"])
def test_a_damaged_checkpoint_is_said_and_ignored(data, whole):
    memory = Memory(data, interval_seconds=math.inf)

    encoded = nifcore.encode(SMALL, effort=1, bpp=2.0, seed=3, checkpoint=memory)

    assert any("cannot be read: starting afresh" in note for note in encoded.report.notes)
    assert encoded.data == whole[0].data


def checkpoint_of(**settings):
    """Return a checkpoint from the middle of an encode of SMALL."""
    memory = Memory(interval_seconds=math.inf)
    control = Asked(nifcore.Control.CANCEL, 150)
    with pytest.raises(Cancelled):
        nifcore.encode(SMALL, effort=1, **settings, checkpoint=memory, control=control)
    return memory


def test_a_checkpoint_of_a_version_that_planned_otherwise_is_said_and_ignored(monkeypatch):
    memory = checkpoint_of(bpp=2.0)
    monkeypatch.setattr("nifcore.plan.BITS_PER_PARAMETER", 9.0)
    encoded = nifcore.encode(SMALL, effort=1, bpp=2.0, checkpoint=memory)
    assert any("other sizes: starting afresh" in note for note in encoded.report.notes)
    assert encoded.data == nifcore.encode(SMALL, effort=1, bpp=2.0).data


def test_a_checkpoint_of_another_picture_is_said_and_ignored(whole):
    memory = checkpoint_of(bpp=2.5, seed=3)

    encoded = nifcore.encode(SMALL, effort=1, bpp=2.0, seed=3, checkpoint=memory)

    assert any("another picture" in note for note in encoded.report.notes)
    assert encoded.data == whole[0].data


@pytest.mark.parametrize("share", [0.0, 0.4, 0.9])
def test_finish_now_gives_a_valid_file_in_every_phase(share, whole):
    control = Asked(nifcore.Control.FINISH, round(share * whole[1]))

    encoded = nifcore.encode(SMALL, effort=1, bpp=2.0, control=control)

    assert not encoded.report.complete
    assert any("finishing early" in note for note in encoded.report.notes)
    assert len(encoded.data) <= 2.0 * 64 * 48 / 8
    assert metrics.psnr(np.asarray(SMALL), np.asarray(nifcore.decode(encoded.data))) > (
        10 if share == 0.0 else 13
    )


@pytest.mark.parametrize(
    ("asked", "error", "message"),
    [
        ({"bpp": 1.0, "psnr": 30.0}, UsageError, "bpp.* exclude each other|psnr and bpp"),
        ({"preset": "paper-120", "bpp": 1.0}, UsageError, "fixed size"),
        ({"preset": "paper-120", "effort": 3}, UsageError, "exclude"),
        ({"preset": "paper-121"}, UnknownPreset, "paper-120"),
        ({"quality": 0}, UsageError, "1 to 100"),
        ({"quality": float("nan")}, UsageError, "1 to 100"),
        ({"bpp": -1.0}, UsageError, "is accepted"),
        ({"psnr": 400.0}, UsageError, "5 to 100"),
        ({"max_bytes": 0}, UsageError, "at least 1"),
        ({"max_bytes": 10}, ImpossibleTarget, "smallest file"),
        ({"effort": 12}, UsageError, "1 to 9"),
        ({"device": "tpu"}, DeviceError, "auto, cpu, cuda"),
        ({"device": "cuda:99"}, DeviceError, "is not there"),
        ({"kernel": "magic"}, UsageError, "chunked"),
    ],
)
def test_wrong_parameters_say_what_is_accepted(asked, error, message):
    with pytest.raises(error, match=message):
        nifcore.encode(SMALL, **asked)


def test_wrong_pictures_are_refused():
    with pytest.raises(NotAnImage):
        nifcore.encode(b"no picture at all")
    with pytest.raises(LimitExceeded):
        nifcore.encode(SMALL, limits=nifcore.Limits(max_pixels=1000))


def test_torch_keeps_its_threads_and_any_number_gives_the_same_file(whole):
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        encoded = nifcore.encode(SMALL, effort=1, bpp=2.0, seed=3)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)

    assert encoded.data == whole[0].data
