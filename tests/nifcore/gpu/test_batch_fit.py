import functools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from nifcore.bitstream import code_length, expected_magnitudes, pack
from nifcore.errors import FitDiverged, UsageError
from nifcore.events import Control
from nifcore.fit import Budget, TileFit
from nifcore.gpu.account import Account
from nifcore.gpu.batch_fit import BatchFit, Seat, batch_sensitivities, company_of
from nifcore.gpu.lattices import LatticeStore
from nifcore.gpu.layout import Layout
from nifcore.gpu.stacked import StackedKernel
from nifcore.header import Colour, Header, NetShape
from nifcore.kernels.chunked import ChunkedKernel
from nifcore.network import Architecture
from nifcore.presets import PRESETS, Optimiser, Sampling, shortened
from nifcore.quantise import sensitivities
from tests.nifcore.recipes import BRIEF

HEADER = Header(
    width=40,
    height=36,
    colour=Colour.SRGB,
    genesis=NetShape((16, 10), 5),
    modulation=NetShape((5,), 2),
)
ARCH = Architecture.of(HEADER)
# a hundred iterations
EFFORT = replace(BRIEF, sampling=Sampling(stride=3), shallow=None)
# SOAP magnifies rounding where gradients have no rank: to be compared step by step with single
# fits, the same recipe runs on AdamW
STEADY = replace(
    EFFORT,
    stages=(replace(EFFORT.stages[0], optimiser=Optimiser("adamw")), EFFORT.stages[1]),
)
PAPER = shortened(PRESETS["paper-120"], 0.007)  # its ten and five steps, a pass each
SIZES = [(36, 42), (35, 42), (36, 41)]


def budget(bits_per_weight=6.0):
    return Budget(
        bits_per_weight * ARCH.parameters,
        lambda tensors: code_length(HEADER, tensors),
        lambda tensors: 8.0 * len(pack(HEADER, [tensors])),
        lambda tensors: expected_magnitudes(HEADER, tensors),
    )


def picture(number, rows, cols):
    y, x = np.mgrid[0:rows, 0:cols] / 40.0
    waves = [np.sin((5 + number) * y + 3 * x), np.cos(9 * y * x + number), np.sin(7 * x - 2 * y)]
    return torch.from_numpy(np.stack(waves)).float()


def fits(kind, recipe, count=3):
    made = []
    for number in range(count):
        limit = None if recipe.published_bits else budget(5.0 + number)
        kernel = ChunkedKernel(ARCH, threads=1)
        made.append(kind(ARCH, kernel, picture(number, *SIZES[number]), recipe, limit, number))
    return made


class Watch:
    """A monitor that follows a script and keeps what it is told."""

    def __init__(self, script=None):
        self.script = script or (lambda fit: Control.CONTINUE)
        self.messages, self.ticks, self.phases = [], 0, []

    def tick(self, fit):
        self.ticks += 1
        if fit.stage.phase not in self.phases:
            self.phases.append(fit.stage.phase)
        return self.script(fit)

    def say(self, message):
        self.messages.append(message)


class Path(Watch):
    """A monitor that keeps the weights before every iteration."""

    def __init__(self, script=None):
        super().__init__(script)
        self.weights = {}

    def tick(self, fit):
        self.weights[fit.cursor.done] = torch.cat([p.flatten() for p in fit.params])
        return super().tick(fit)


def together(recipe, scripts=(None, None, None), kernel=None, account=None):
    seats, watches = fits(Seat, recipe), [Path(script) for script in scripts]
    outcomes = BatchFit(seats, kernel or StackedKernel(ARCH), watches, account).run()
    return seats, watches, outcomes


@functools.cache
def undisturbed(recipe):
    """Return what :func:`together` does where nothing happens, to look at."""
    return together(recipe)


@functools.cache
def alone(recipe):
    """Return the fits each by itself, and their results, to look at."""
    made = fits(TileFit, recipe)
    return made, [fit.run(Watch()) for fit in made]


def assert_the_same_way(found, expected, done, until):
    """Check weights from iteration ``done`` on: they differ by rounding alone.

    An item that moved to another place in the batch may be rounded otherwise, by 1e-8 of its way at
    first and ten times that every twenty iterations; who saw anything of another's went elsewhere.
    """
    assert torch.equal(found.weights[done], expected.weights[done])
    for at in range(done + 1, until):
        way = expected.weights[at] - expected.weights[done]
        assert float((found.weights[at] - expected.weights[at]).norm()) < 1e-3 * float(way.norm())


def psnr(fit, result):
    return 10 * math.log10(4 / fit.full_error(result.rounded.values))


@pytest.mark.parametrize("recipe", [STEADY, PAPER], ids=["effort", "paper"])
def test_each_of_a_batch_ends_where_it_would_alone(recipe):
    seats, watches, outcomes = undisturbed(recipe)

    for seat, watch, found, fit, expected in zip(
        seats, watches, outcomes, *alone(recipe), strict=True
    ):
        assert psnr(seat, found) == pytest.approx(psnr(fit, expected), abs=0.3)
        assert found.complete
        assert found.passes == expected.passes
        assert watch.phases == ["fit", "quantise"]
        assert watch.ticks == seat.iterations
        if seat.budget is not None:
            assert seat.budget.exact(found.rounded.tensors) <= seat.budget.bits


@pytest.mark.parametrize("recipe", [STEADY, PAPER], ids=["effort", "paper"])
def test_the_first_passes_are_those_of_the_single_fit_to_rounding(recipe):
    def stop(fit):
        return Control.CANCEL if fit.cursor.done >= 2 * fit.pass_length else Control.CONTINUE

    seats, _, outcomes = together(recipe, (stop, stop, stop))

    assert outcomes == [None] * 3
    for seat, fit in zip(seats, fits(TileFit, recipe), strict=True):
        assert fit.run(Watch(stop)) is None
        for ours, truth in zip(seat.params, fit.params, strict=True):
            torch.testing.assert_close(ours, truth, rtol=2e-3, atol=2e-5)


def test_steps_chosen_on_the_device_serve_as_well_as_those_of_the_host():
    seats, _, outcomes = together(STEADY, account=Account(HEADER, torch.device("cpu")))

    for seat, found, fit, expected in zip(seats, outcomes, *alone(STEADY), strict=True):
        assert psnr(seat, found) == pytest.approx(psnr(fit, expected), abs=0.6)
        assert seat.budget.exact(found.rounded.tensors) <= seat.budget.bits


def test_soap_learns_every_picture_of_a_batch():
    seats, _, outcomes = together(EFFORT)

    for seat, found in zip(seats, outcomes, strict=True):
        around = seat.target - seat.target.mean((1, 2), keepdim=True)
        assert psnr(seat, found) > 10 * math.log10(4 / float(around.square().mean())) + 5


@pytest.mark.parametrize("done", [13, 47], ids=["fit", "quantise"])
def test_cancelling_one_leaves_the_others_as_they_were(done):
    _, expected, before = undisturbed(STEADY)

    def cancel(fit):
        return Control.CANCEL if fit.cursor.done == done else Control.CONTINUE

    seats, found, outcomes = together(STEADY, (None, cancel, None))

    assert outcomes[1] is None
    assert found[1].ticks == done + 1
    for index in (0, 2):
        assert_the_same_way(found[index], expected[index], done, done + 12)
        assert outcomes[index].complete
        assert psnr(seats[index], outcomes[index]) == pytest.approx(
            psnr(seats[index], before[index]), abs=0.3
        )


@pytest.mark.parametrize("share", [0.0, 0.3, 0.8])
def test_finishing_one_early_codes_it_soon(share):
    def finish(fit):
        done = fit.cursor.done >= share * fit.iterations
        return Control.FINISH if done else Control.CONTINUE

    seats, watches, outcomes = together(EFFORT, (finish, None, None))

    assert not outcomes[0].complete
    assert any("finishing early" in message for message in watches[0].messages)
    assert watches[0].ticks <= share * seats[0].iterations + 60
    assert seats[0].budget.exact(outcomes[0].rounded.tensors) <= seats[0].budget.bits
    assert outcomes[1].complete
    assert outcomes[2].complete


class Poisoned(StackedKernel):
    """The real kernel, whose gradients of one item turn into NaN at chosen calls."""

    def __init__(self, item, calls):
        super().__init__(ARCH)
        self.item, self.calls, self.count = item, calls, 0

    def loss_and_gradient(self, flat, batch, objective):
        loss, gradient, error = super().loss_and_gradient(flat, batch, objective)
        if self.count in self.calls and len(flat) == 3:
            gradient[self.item] = math.nan
        self.count += 1
        return loss, gradient, error


def test_nan_sends_one_item_back_with_a_smaller_step():
    seats, watches, outcomes = together(EFFORT, kernel=Poisoned(1, {22}))

    assert [seat.cursor.rate_scale for seat in seats] == [1.0, 0.5, 1.0]
    assert any("halved" in message for message in watches[1].messages)
    assert not watches[0].messages
    around = seats[1].target - seats[1].target.mean((1, 2), keepdim=True)
    assert psnr(seats[1], outcomes[1]) > 10 * math.log10(4 / float(around.square().mean())) + 3


def test_one_that_never_recovers_fails_alone():
    long = replace(EFFORT, stages=(EFFORT.stages[0].lasting(80), EFFORT.stages[1]))
    _, _, outcomes = together(long, kernel=Poisoned(2, range(10_000)))

    assert isinstance(outcomes[2], FitDiverged)
    assert "diverged 7 times" in str(outcomes[2])
    assert outcomes[0].complete
    assert outcomes[1].complete


def test_a_monitor_that_breaks_ends_its_own_fit_only():
    def broken(fit):
        raise RuntimeError("the listener is gone")

    _, _, outcomes = together(EFFORT, (broken, None, None))

    assert str(outcomes[0]) == "the listener is gone"
    assert outcomes[1].complete


def test_a_state_saved_in_a_batch_goes_on_alone():
    saved = {}

    def keep(fit):
        if fit.cursor.done in (20, 70):
            saved[fit.cursor.done] = fit.state()
        return Control.CONTINUE

    seats, _, outcomes = together(STEADY, (keep, None, None))

    for state in saved.values():
        (resumed,) = fits(TileFit, STEADY, count=1)
        resumed.load(state)
        found = resumed.run(Watch())
        assert psnr(resumed, found) == pytest.approx(psnr(seats[0], outcomes[0]), abs=0.3)
    assert len(saved) == 2


def test_sensitivities_are_what_every_item_would_find_alone():
    single = fits(TileFit, STEADY)
    cpu = torch.device("cpu")
    store = LatticeStore(ARCH, [fit.target for fit in single], 3, cpu)
    weights = Layout(ARCH).pack([fit.params for fit in single], cpu)
    probes = [store.gather(torch.full((3,), index)) for index in range(6)]

    found = batch_sensitivities(
        StackedKernel(ARCH),
        Layout(ARCH),
        weights,
        probes,
        [torch.Generator().manual_seed(number) for number in range(3)],
    )

    for number, fit in enumerate(single):
        lattices = [fit.lattice_of(index) for index in range(6)]
        generator = torch.Generator().manual_seed(number)
        expected = sensitivities(fit.kernel, fit.params, lattices, generator)
        # padding draws other signs: those fits agree in the mean only
        near = 1e-3 if number == 0 else 0.8
        assert found[number].tolist() == pytest.approx(expected, rel=near)


def test_fits_that_do_not_go_together_are_refused():
    first, second = fits(Seat, EFFORT, 1)[0], fits(Seat, PAPER, 1)[0]

    assert company_of(first) != company_of(second)
    with pytest.raises(UsageError, match="2 kinds"):
        BatchFit([first, second], StackedKernel(ARCH), [Watch(), Watch()])


class Dead(Seat):
    """A fit whose first initialisation is all zero: sines of nothing, gradients of nothing."""

    def _start(self):
        params = super()._start()
        if not hasattr(self, "began"):
            self.began = True
            for p in params:
                p.zero_()
        return params


def test_one_that_collapses_starts_again_alone_and_the_others_do_not_notice():
    seats = fits(Seat, STEADY)
    seats[1] = fits(Dead, STEADY)[1]
    watches, settled = [Path() for _ in seats], []
    batch = BatchFit(
        seats, StackedKernel(ARCH), watches, settled=lambda seat, _: settled.append(seat)
    )
    found = batch.run()
    assert [len(watch.messages) for watch in watches] == [0, 1, 0]
    assert "starting again" in watches[1].messages[0]
    assert settled[0] is seats[1]
    assert len(settled) == 3
    _, paths, expected = undisturbed(STEADY)
    for index in (0, 2):
        # after 30 iterations it should have learnt something; that pass ends after the 34th
        assert_the_same_way(watches[index], paths[index], 34, 45)
        assert psnr(seats[index], found[index]) == pytest.approx(
            psnr(seats[index], expected[index]), abs=0.3
        )
    assert psnr(seats[1], found[1]) > 10 * math.log10(4 / seats[1].spread) + 3
