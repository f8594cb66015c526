import copy
import functools
import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from nifcore.architecture import Architecture
from nifcore.bitstream import code_length, expected_magnitudes, pack
from nifcore.errors import FitDiverged
from nifcore.events import Control
from nifcore.fit import Budget, TileFit
from nifcore.header import Colour, Header, NetShape
from nifcore.kernels.chunked import ChunkedKernel
from nifcore.network import from_bytes
from nifcore.presets import PRESETS, shortened
from tests.nifcore.recipes import BRIEF

GENESIS, MODULATION = NetShape((16, 10), 6), NetShape((5,), 2)
HEADER = Header(width=48, height=40, colour=Colour.SRGB, genesis=GENESIS, modulation=MODULATION)
ARCH = Architecture.of(HEADER)
BUDGET = Budget(
    6.0 * ARCH.parameters,
    lambda tensors: code_length(HEADER, tensors),
    lambda tensors: 8.0 * len(pack(HEADER, [tensors])),
    lambda tensors: expected_magnitudes(HEADER, tensors),
)
EFFORT = replace(BRIEF, shallow=None)
PAPER = shortened(PRESETS["paper-120"], 0.007)  # its ten and five steps, a pass each


class Watch:
    """A monitor that follows a script and keeps what it is told."""

    def __init__(self, script=None):
        self.script = script or (lambda fit: Control.CONTINUE)
        self.messages = []
        self.ticks = 0
        self.phases = []

    def tick(self, fit):
        self.ticks += 1
        if fit.stage.phase not in self.phases:
            self.phases.append(fit.stage.phase)
        return self.script(fit)

    def say(self, message):
        self.messages.append(message)


def picture():
    rows, cols = np.mgrid[0:40, 0:48] / 40.0
    waves = [np.sin(5 * rows + 3 * cols), np.cos(9 * rows * cols), np.sin(7 * cols - 2 * rows)]
    pixels = ((np.stack(waves, -1) + 1) * 127.5).astype(np.uint8)
    return from_bytes(torch.from_numpy(pixels))


def make(recipe=EFFORT, kernel=None, seed=0):
    budget = BUDGET if recipe.published_bits is None else None
    kernel = kernel or ChunkedKernel(ARCH, threads=1)
    return TileFit(ARCH, kernel, picture(), recipe, budget, seed)


def symbols(result):
    return [(t.symbols.tolist(), t.step) for t in result.rounded.tensors]


def psnr_of_a_constant():
    around_mean = picture() - picture().mean((1, 2), keepdim=True)
    return 10 * math.log10(4 / float(around_mean.square().mean()))


def psnr_of(fit, result):
    return 10 * math.log10(4 / fit.full_error(result.rounded.values))


@functools.cache
def undisturbed(recipe):
    """Return a fit that ran to its end, its monitor and its result, to look at."""
    fit, watch = make(recipe), Watch()
    return fit, watch, fit.run(watch)


@pytest.mark.parametrize(("recipe", "gain"), [(EFFORT, 10), (PAPER, 1)], ids=["effort", "paper"])
def test_a_fit_learns_the_picture_within_its_budget(recipe, gain):
    fit, watch, result = undisturbed(recipe)

    assert result.complete
    assert watch.phases == ["fit", "quantise"]
    assert fit.cursor.done == fit.iterations
    assert psnr_of(fit, result) > psnr_of_a_constant() + gain
    if recipe.published_bits is None:
        assert BUDGET.exact(result.rounded.tensors) <= BUDGET.bits


@pytest.mark.parametrize("recipe", [EFFORT, PAPER], ids=["effort", "paper"])
def test_resuming_anywhere_gives_the_same_file_bit_for_bit(recipe):
    saved = {}
    last = make(recipe).iterations - 1
    moments = {0, last // 3, last * 4 // 5, last}

    def keep(fit):
        if fit.cursor.done in moments:
            saved[fit.cursor.done] = copy.deepcopy(fit.state())
        return Control.CONTINUE

    whole = make(recipe).run(Watch(keep))

    assert symbols(whole) == symbols(undisturbed(recipe)[2])
    for moment in moments:
        resumed = make(recipe, seed=99)  # the saved state must bring its own random numbers
        resumed.load(saved[moment])
        assert symbols(resumed.run(Watch())) == symbols(whole), f"resumed at {moment}"


@pytest.mark.parametrize("recipe", [EFFORT, PAPER], ids=["effort", "paper"])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.6, 0.9])
def test_finishing_early_codes_a_usable_state_soon(recipe, share):
    fit = make(recipe)
    at = int(share * fit.iterations)
    watch = Watch(lambda f: Control.FINISH if f.cursor.done >= at else Control.CONTINUE)

    result = fit.run(watch)

    assert not result.complete
    assert watch.ticks <= at + 60
    assert any("finishing early" in m for m in watch.messages)
    if share >= 0.3:
        whole_fit, _, whole = undisturbed(recipe)
        assert psnr_of(fit, result) > psnr_of(whole_fit, whole) - 12
    if recipe.published_bits is None:
        assert BUDGET.exact(result.rounded.tensors) <= BUDGET.bits


@pytest.mark.parametrize("share", [0.0, 0.5, 0.95])
def test_cancelling_stops_before_the_next_iteration(share):
    fit = make()
    at = int(share * fit.iterations)
    watch = Watch(lambda f: Control.CANCEL if f.cursor.done >= at else Control.CONTINUE)

    assert fit.run(watch) is None
    assert watch.ticks == at + 1


class Poisoned(ChunkedKernel):
    """The real kernel, whose gradients turn into NaN at chosen calls."""

    def __init__(self, bad):
        super().__init__(ARCH, threads=1)
        self.calls = itertools.count()
        self.bad = bad

    def loss_and_gradient(self, params, grid, target, objective):
        loss, gradients, error = super().loss_and_gradient(params, grid, target, objective)
        if self.bad(next(self.calls)):
            gradients = [g * math.nan for g in gradients]
        return loss, gradients, error


@pytest.mark.parametrize("when", [7, 19])
def test_nan_sends_the_fit_back_to_its_best_state_with_a_smaller_step(when):
    fit, watch = make(kernel=Poisoned(lambda call: call == when)), Watch()

    result = fit.run(watch)

    assert fit.cursor.rate_scale == 0.5
    assert any("back to the best state" in m and "halved" in m for m in watch.messages)
    assert psnr_of(fit, result) > psnr_of_a_constant() + 3


def test_a_fit_that_never_gets_better_than_nan_gives_up_with_a_reason():
    with pytest.raises(FitDiverged, match="diverged 7 times"):
        make(kernel=Poisoned(lambda call: True)).run(Watch())


def test_restarts_disturb_the_published_share_of_inner_weights_only():
    fit = make(PAPER)
    before = [p.clone() for p in fit.params]
    restart = PAPER.stages[0].restart

    fit._disturb(restart, 1.0)

    heads = {0, ARCH.genesis_tensors}
    for index, (old, new) in enumerate(zip(before, fit.params, strict=True)):
        moved = (old != new).float().mean()
        if old.dim() == 1 or index in heads:
            assert moved == 0
        elif old.numel() > 100:
            assert moved == pytest.approx(0.7, abs=0.15)
            reach = float(old.abs().mean()) * 0.2 / 0.7
            assert 0.8 * reach < (new - old).abs().max() <= reach * 1.001


class Dead(TileFit):
    """A fit whose first initialisations are all zero: sines of nothing, gradients of nothing."""

    dead = 1

    def _start(self):
        params = super()._start()
        if self.dead > 0:
            self.dead -= 1
            for p in params:
                p.zero_()
        return params


def make_dead(starts, recipe, target=None):
    budget = BUDGET if recipe.published_bits is None else None
    kind = type("DeadFor", (Dead,), {"dead": starts})
    target = picture() if target is None else target
    return kind(ARCH, ChunkedKernel(ARCH, threads=1), target, recipe, budget, seed=0)


def test_a_collapsed_fit_starts_again_and_learns_the_picture():
    fit, watch = make_dead(1, EFFORT), Watch()
    result = fit.run(watch)
    assert [m for m in watch.messages if "collapsed" in m] == [
        "the fit collapsed to a constant: starting again from other weights (start 2 of 3)"
    ]
    assert psnr_of(fit, result) > psnr_of_a_constant() + 6
    assert result.complete
    assert fit.budget.exact(result.rounded.tensors) <= fit.budget.bits


def test_a_picture_that_cannot_be_learnt_is_coded_after_the_last_start():
    noise = torch.rand((3, 40, 48), generator=torch.Generator().manual_seed(4)) * 2 - 1
    fit, watch = make_dead(9, EFFORT, noise), Watch()
    result = fit.run(watch)
    assert len([m for m in watch.messages if "collapsed" in m]) == 2
    assert result is not None
    assert result.complete


def test_a_flat_picture_is_no_collapse():
    fit, watch = make_dead(9, EFFORT, torch.full((3, 40, 48), 0.25)), Watch()
    assert fit.run(watch) is not None
    assert watch.messages == []


class Misjudged(TileFit):
    """A fit whose lattices round all but one tensor away, as wrong sensitivities would."""

    def _probe(self):
        super()._probe()
        if self.rounding and not self.cursor.recoveries:
            self.sensitivity[1:] = [1e-12] * (len(self.params) - 1)


def test_steps_that_undo_a_fit_are_noticed_and_chosen_again(monkeypatch):
    monkeypatch.setattr("nifcore.quantise._WIDEST", 8.0)
    stages = EFFORT.stages[0], replace(EFFORT.stages[1], rounded=40)
    budget, watch = BUDGET, Watch()
    recipe = replace(EFFORT, stages=stages)
    fit = Misjudged(ARCH, ChunkedKernel(ARCH, threads=1), picture(), recipe, budget, seed=0)

    result = fit.run(watch)

    assert [m for m in watch.messages if "back to the best state" in m]
    assert psnr_of(fit, result) > psnr_of_a_constant() + 6
    assert budget.exact(result.rounded.tensors) <= budget.bits


def test_a_collapsed_fit_resumes_after_its_second_start():
    whole = make_dead(1, EFFORT).run(Watch())
    first = make_dead(1, EFFORT)
    started = lambda fit: fit.cursor.starts == 2 and fit.cursor.done == 30  # noqa: E731
    stop = Watch(lambda fit: Control.CANCEL if started(fit) else Control.CONTINUE)
    assert first.run(stop) is None
    second = make_dead(0, EFFORT)
    second.load(first.state())
    assert symbols(second.run(Watch())) == symbols(whole)
