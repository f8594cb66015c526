"""What encodes on which device, and what happens where that does not work."""

from __future__ import annotations

import sys
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
import torch

import nifcore
from nifcore import encoder
from nifcore.architecture import Architecture
from nifcore.encoder import session_kind
from nifcore.errors import Cancelled, DeviceError
from nifcore.events import Control
from nifcore.gpu import batch_encode
from nifcore.gpu.batch_encode import BatchSession, Gathering, Job, encode_many, kernel_for
from nifcore.gpu.stacked import StackedKernel
from nifcore.header import NetShape
from nifcore.limits import Limits
from nifcore.metrics import psnr
from nifcore.picture import read_picture
from nifcore.presets import Optimiser
from nifcore.session import Session
from nifcore.target import make_target
from tests.nifcore.checkpoints import Memory
from tests.nifcore.recipes import BRIEF

# SOAP magnifies rounding, which differs between kernels
STEADY = replace(
    BRIEF,
    stages=(replace(BRIEF.stages[0], optimiser=Optimiser("adamw")), *BRIEF.stages[1:]),
    shallow=None,
)


@pytest.fixture(autouse=True)
def _brief(monkeypatch):
    """Every effort is a hundred iterations here."""
    for module in (encoder, batch_encode):
        monkeypatch.setattr(module, "find_recipe", lambda preset, effort: BRIEF)
    # batches of one are worth it on a GPU only; here they stand for that
    monkeypatch.setattr(batch_encode, "_worth_it", lambda seat: True)


def picture(number=0, height=48, width=64):
    y, x = np.mgrid[0:height, 0:width] / 48.0
    waves = [np.sin((4 + number) * y + 3 * x), np.cos(5 * y * x + number), np.sin(6 * x - 2 * y)]
    return ((np.stack(waves, -1) + 1) * 127.5).astype(np.uint8)


def session(gathering, *, recipe=BRIEF, kernel=None, progress=None, control=None, checkpoint=None):
    made = BatchSession(
        read_picture(picture(), Limits(), False),
        recipe,
        torch.device("cpu"),
        kernel,
        0,
        progress,
        control,
        checkpoint,
        make_target(None, None, None, 3.0, None),
        time.monotonic(),
    )
    made.gathering = gathering
    return made


class Failing(StackedKernel):
    """Fails after so many launches, as a device or a compiler may."""

    name = "failing"

    def __init__(self, arch, launches):
        super().__init__(arch)
        self.left = launches

    def loss_and_gradient(self, flat, batch, objective):
        self.left -= 1
        if self.left < 0:
            raise RuntimeError("out of resource: shared memory\nand a long story")
        return super().loss_and_gradient(flat, batch, objective)


@pytest.mark.parametrize(
    ("device", "kernel", "kind"),
    [
        ("cpu", None, Session),
        ("cpu", "chunked", Session),
        ("cpu", "triton", Session),  # in Triton's interpreter
        ("cuda", None, BatchSession),
        ("cuda:1", None, BatchSession),
        ("cuda", "triton", BatchSession),
        ("cuda", "chunked", Session),
        ("cuda", "reference", Session),
    ],
)
def test_a_cuda_device_encodes_in_batches_unless_another_kernel_is_asked_for(device, kernel, kind):
    assert session_kind(torch.device(device), kernel) is kind


def test_a_batch_of_one_is_what_a_fit_alone_is(monkeypatch):
    monkeypatch.setattr(encoder, "find_recipe", lambda preset, effort: STEADY)
    together = session(Gathering(StackedKernel), recipe=STEADY)
    data = together.run()
    report = together.report(data, None, 1)
    alone = nifcore.encode(picture(), effort=1, bpp=3.0, device="cpu", kernel="chunked").report

    assert report.kernel == "stacked"
    assert report.notes == alone.notes
    assert report.passes == alone.passes
    # not the same file: rounding differs
    assert report.psnr_db == pytest.approx(alone.psnr_db, abs=0.3)


@pytest.mark.parametrize("launches", [0, 60])
def test_a_failing_launch_costs_no_picture(launches):
    heard = []
    tried = session(Gathering(lambda arch: Failing(arch, launches)), progress=heard.append)
    data = tried.run()
    report = tried.report(data, None, 1)
    plain = nifcore.encode(picture(), effort=1, bpp=3.0, device="cpu")

    assert data == plain.data
    assert (report.passes, report.complete) == (plain.report.passes, True)
    assert report.kernel == plain.report.kernel
    (note,) = report.notes
    assert "RuntimeError: out of resource: shared memory" in note
    assert "story" not in note
    assert any(event.message == note for event in heard)


def test_a_machine_without_triton_encodes_all_the_same(monkeypatch):
    for name in [each for each in sys.modules if each.startswith("nifcore.gpu.fused")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "triton", None)
    tried = session(Gathering(kernel_for(torch.device("cuda"))))
    report = tried.report(tried.run(), None, 1)

    (note,) = report.notes
    assert "triton" in note
    assert report.psnr_db > 12


def test_the_bases_of_the_optimiser_need_triton_on_a_gpu_only(monkeypatch):
    for name in [each for each in sys.modules if each.startswith("nifcore.gpu")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "triton", None)
    import nifcore.gpu.batch_encode as anew

    monkeypatch.setattr(anew, "find_recipe", lambda preset, effort: BRIEF)
    results = anew.encode_many([anew.Job(picture(n), effort=1, bpp=3.0) for n in (0, 1)])
    assert [result.report.kernel for result in results] == ["stacked", "stacked"]


def test_a_kernel_that_was_asked_for_by_name_is_not_replaced():
    with pytest.raises(DeviceError, match="'triton' failed: RuntimeError: out of resource"):
        session(Gathering(lambda arch: Failing(arch, 0)), kernel="triton").run()


def test_a_failing_batch_of_several_fits_each_by_itself():
    jobs = [Job(picture(n), effort=1, bpp=3.0, seed=n) for n in range(3)]
    heard = {}

    results = encode_many(
        jobs,
        device="cpu",
        kernel=lambda arch: Failing(arch, 50),
        on_result=lambda index, result: heard.setdefault(index, result),
    )

    for index, (job, result) in enumerate(zip(jobs, results, strict=True)):
        plain = nifcore.encode(job.image, effort=1, bpp=3.0, seed=index, device="cpu")
        assert result.data == plain.data
        assert heard[index] is result


@pytest.mark.parametrize("where", ["progress", "control"])
def test_what_a_callback_raises_reaches_the_caller(where, monkeypatch):
    monkeypatch.setattr("nifcore.session._EVENT_SECONDS", 0.0)  # every iteration is told
    asked = []

    def breaks(*_):
        asked.append(None)
        if len(asked) > 5:
            raise KeyError("the caller's own")

    with pytest.raises(KeyError, match="own"):
        session(Gathering(StackedKernel), **{where: breaks}).run()


def test_an_unlike_picture_holds_nobody_up():
    """Results come when they are there: those that go together first, then the odd one."""
    order = []
    jobs = [
        Job(picture(0, 40, 40), effort=2, bpp=4.0),
        *(Job(picture(n), effort=1, bpp=3.0) for n in range(3)),
    ]
    encode_many(jobs, device="cpu", on_result=lambda index, _: order.append(index))

    assert sorted(order) == [0, 1, 2, 3]
    assert order[-1] == 0


def test_one_that_ends_early_does_not_wait_for_the_others():
    ended, early = threading.Event(), []

    def finish():
        early.append(None)
        return Control.FINISH if len(early) > 10 else Control.CONTINUE

    def wait():
        # the whole batch waits here; were the early one part of it still, it would be for ever
        if len(early) > 10:
            ended.wait(60)
        return Control.CONTINUE

    def tell(index, result):
        order.append(index)
        ended.set()

    order = []
    jobs = [
        Job(picture(0), effort=1, bpp=3.0, control=finish),
        Job(picture(1), effort=1, bpp=3.0, control=wait),
    ]
    first, other = encode_many(jobs, device="cpu", on_result=tell)
    assert order == [0, 1]
    assert ended.is_set()
    assert (first.report.complete, other.report.complete) == (False, True)


def test_all_tiles_of_a_cancelled_picture_go_on_from_where_they_were(monkeypatch):
    from nifcore import plan

    monkeypatch.setattr(plan, "_TILE_PIXELS", 1500)
    monkeypatch.setattr(plan, "_TILE_PARAMETERS", 300)
    monkeypatch.setattr("nifcore.session._EVENT_SECONDS", 0.0)  # every iteration is told
    memory, asked, events = Memory(interval_seconds=3600.0), [], []

    def cancel():
        asked.append(None)
        return Control.CANCEL if len(asked) > 40 else Control.CONTINUE

    with pytest.raises(Cancelled):
        session(Gathering(StackedKernel), control=cancel, checkpoint=memory).run()
    resumed = session(Gathering(StackedKernel), progress=events.append, checkpoint=memory)
    data = resumed.run()
    report = resumed.report(data, None, 1)

    whole = BRIEF.iterations(1)
    first = next(event for event in events if event.phase in ("fit", "quantise"))
    assert report.tiles > 1
    assert first.iteration >= 40 * report.tiles
    done = [event.iteration for event in events if event.phase in ("fit", "quantise")]
    assert done == sorted(done)
    assert done[-1] <= first.iterations == whole * report.tiles
    assert any("resumed" in note for note in report.notes)
    shown = np.asarray(nifcore.decode(data, device="cpu"))
    assert psnr(picture(), shown) == pytest.approx(report.psnr_db, abs=0.01)
    assert report.psnr_db > 12


def test_programs_are_made_when_first_used_not_before():
    """So that a device without Triton is found out where there is something to fall back on."""
    made = kernel_for(torch.device("cuda"))
    arch = Architecture(NetShape((20, 8), 4), None, 3)
    assert made(arch).name == "triton"
    assert kernel_for(torch.device("cpu"))(arch).name == "stacked"
