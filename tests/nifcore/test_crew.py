"""Tiles fitted side by side, against the same tiles one after the other."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator

import pytest
import skimage.data
import torch
from PIL import Image

import nifcore
from nifcore.architecture import Architecture
from nifcore.crew import Crew
from nifcore.errors import Cancelled
from nifcore.header import NetShape
from nifcore.kernels.fused import FusedKernel
from tests.nifcore.checkpoints import Memory
from tests.nifcore.recipes import BRIEF

ARCH = Architecture(NetShape((12, 8), 3), None, 3)
PICTURE = Image.fromarray(skimage.data.astronaut()).resize((120, 96))
SETTINGS = {"effort": 1, "bpp": 2.0}
TILES = 4


@pytest.fixture(autouse=True, scope="module")
def few_iterations_of_four_tiles() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nifcore.plan._TILE_PIXELS", 60 * 48)
        patch.setattr("nifcore.plan._TILE_PARAMETERS", 500)
        patch.setattr("nifcore.presets.EFFORTS", {1: BRIEF})
        yield


@pytest.fixture
def three_threads() -> Iterator[None]:
    """Let torch use three threads, however many cores there are."""
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    assert torch.get_num_threads() == 3
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def one_by_one(few_iterations_of_four_tiles: None) -> bytes:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    encoded = nifcore.encode(PICTURE, **SETTINGS)
    torch.set_num_threads(before)
    assert encoded.report.tiles == TILES
    return encoded.data


def test_the_file_is_the_same_for_any_number_of_threads(one_by_one: bytes, three_threads) -> None:
    assert nifcore.encode(PICTURE, **SETTINGS).data == one_by_one


def test_callbacks_come_one_at_a_time_and_tell_of_the_whole_picture(three_threads) -> None:
    inside, callers, events = threading.Lock(), set(), []

    def enter() -> None:
        assert inside.acquire(blocking=False), "two at once"
        callers.add(threading.get_ident())
        time.sleep(2e-4)  # others have the time to come in
        inside.release()

    def watch(event: nifcore.ProgressEvent) -> None:
        enter()
        events.append(event)

    def control() -> nifcore.Control:
        enter()
        return nifcore.Control.CONTINUE

    encoded = nifcore.encode(PICTURE, **SETTINGS, progress=watch, control=control)

    if encoded.report.kernel.startswith("fused"):
        assert len(callers) == 4  # three fits, and the caller
    counts = [event.iteration for event in events if event.phase in ("fit", "quantise")]
    assert counts == sorted(counts)


def test_cancelling_ends_all_fits_and_the_checkpoint_has_all_of_them(
    one_by_one: bytes, three_threads
) -> None:
    threads = threading.active_count()
    for moment in (1, 40, 150, 330):
        memory, asked = Memory(interval_seconds=math.inf), iter(range(moment))

        def control(asked=asked) -> nifcore.Control:
            return nifcore.Control.CANCEL if next(asked, None) is None else nifcore.Control.CONTINUE

        with pytest.raises(Cancelled):
            nifcore.encode(PICTURE, **SETTINGS, checkpoint=memory, control=control)
        assert threading.active_count() <= threads

        resumed = nifcore.encode(PICTURE, **SETTINGS, checkpoint=memory)

        assert resumed.data == one_by_one
        assert any("resumed" in note for note in resumed.report.notes)


def test_finishing_early_gives_a_whole_file(three_threads) -> None:
    asked = iter(range(60))

    def control() -> nifcore.Control:
        return nifcore.Control.FINISH if next(asked, None) is None else nifcore.Control.CONTINUE

    encoded = nifcore.encode(PICTURE, **SETTINGS, control=control)

    assert not encoded.report.complete
    assert encoded.report.bpp <= 2.0
    assert nifcore.decode(encoded.data).size == PICTURE.size


@pytest.mark.parametrize("kind", [RuntimeError, KeyboardInterrupt])
def test_what_a_callback_raises_comes_out(three_threads, kind: type[BaseException]) -> None:
    asked = iter(range(50))

    def control() -> nifcore.Control:
        if next(asked, None) is None:
            raise kind("enough")
        return nifcore.Control.CONTINUE

    with pytest.raises(kind, match="enough"):
        nifcore.encode(PICTURE, **SETTINGS, control=control)


def test_no_more_tasks_are_begun_once_one_has_failed_or_ended(three_threads) -> None:
    for end in (False, ZeroDivisionError):
        crew, begun, met = Crew(ARCH, None, "cpu", 9), [], threading.Barrier(3)
        if len(crew.kernels) == 1:
            pytest.skip(f"kernel {crew.kernels[0].name} threads by itself")

        def do(task: int, kernel: FusedKernel, end=end, begun=begun, met=met) -> bool:
            begun.append(task)
            met.wait(60)
            if end is False:
                return False
            raise end

        if end is False:
            crew.work(range(9), do)
        else:
            with pytest.raises(end):
                crew.work(range(9), do)
        assert sorted(begun) == [0, 1, 2]
        assert crew.stopped


def test_cores_left_over_serve_the_kernels(three_threads) -> None:
    crew = Crew(ARCH, None, "cpu", 2)
    if len(crew.kernels) == 1:
        pytest.skip(f"kernel {crew.kernels[0].name} threads by itself")
    seen, both, first_left = [], threading.Barrier(2), threading.Event()

    def do(task: int, kernel: FusedKernel) -> bool:
        both.wait(60)
        if task == 1:
            first_left.wait(60)
            deadline = time.monotonic() + 60
            while kernel.threads != 3:  # until the other one has told that it is gone
                assert time.monotonic() < deadline
                time.sleep(1e-3)
        else:
            seen.append(sorted(each.threads for each in crew.kernels))
            first_left.set()
        return True

    crew.work(range(2), do)

    assert seen == [[1, 2]]
