"""Fitting one tile: stepwise training, then stepwise training through quantisation.

The loop is flat over a cursor (stage, step, iteration), so that its whole state can be saved
between any two iterations and a resumed fit goes on bit for bit. The best state met is kept
throughout: at the end of a pass its mean error over all lattices is compared with the best so far.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from nifcore.architecture import Architecture
from nifcore.devices import single_threaded
from nifcore.errors import FitDiverged
from nifcore.events import Control
from nifcore.flat import all_finite, in_a_row
from nifcore.kernels import Kernel
from nifcore.kernels.soap import make_soap
from nifcore.network import Grid, Params, initialise, pixel_grid
from nifcore.presets import Moment, Optimiser, Recipe, Restart, Stage
from nifcore.quantise import (
    Cost,
    Lattice,
    Magnitudes,
    PublishedLattice,
    Rounded,
    Rounding,
    UniformLattice,
    lattice_for_rate,
    sensitivities,
    squared_widths,
)
from nifcore.soap import Soap
from nifcore.trimming import within

_RATE_UPDATE = 30
"""Least iterations between adjustments of the steps to the rate,"""
_RATE_UPDATES = 50
"""and how many of them a step is given."""
_PROBES = 8
"""Gradients that sensitivities are first estimated from; later ones are averaged in."""
_PROBE_WEIGHT = 0.2
"""Weight of the newest probe in the running mean of the sensitivities."""
_RATE_SLOPE = 0.83
"""-d(log MSE)/d(log rate) of the published Kodak curve: 2.5 dB per doubling of the rate."""
_FINISH_ITERATIONS = 48
"""Iterations of quantisation fine-tuning after an early finish."""
_RECOVERIES = 6
_DIVERGED = 20.0
"""A pass this many times worse than the best one counts as diverged,"""
_DIVERGED_LEAST = 1e-3
"""unless its mean squared error is below this (36 dB): next to a perfect fit all is worse."""
_COLLAPSE_ITERATIONS = 30, 150
"""A fit must have learnt something after three tenths of its iterations, or after the second of
these; one that is to show it before the first is too short to tell."""
_COLLAPSED = 0.9
"""A fit whose error is more than this share of a constant picture's has learnt nothing."""
_FLAT = 1e-4
"""Below this mean squared error a constant is a fair picture of the tile (46 dB)."""
_STARTS = 3
"""Initialisations tried; if all collapse it is the picture, not the start."""


class Monitor(Protocol):
    """What the fit reports to, and is steered by."""

    def tick(self, fit: TileFit) -> Control:
        """Called before every iteration; returns what to do."""

    def say(self, message: str) -> None:
        """Called when something unusual happened."""


@dataclass(frozen=True)
class Budget:
    """What one tile's coded weights may cost.

    Attributes:
        bits: at most this many.
        estimate: the coder's cost, quick and good to a percent, for steering.
        exact: what the tile really takes, for the last word.
        magnitudes: the mean magnitude that the entropy model expects of every symbol.
    """

    bits: float
    estimate: Cost
    exact: Cost
    magnitudes: Magnitudes


class _AdamW:
    """torch's AdamW behind the same two calls as :class:`~nifcore.soap.Soap`."""

    def __init__(self, params: Params, weight_decay: float) -> None:
        self.params = params
        self._inner = torch.optim.AdamW(params, lr=1e-3, weight_decay=weight_decay)

    def step(self, gradients: Sequence[Tensor], rate: float) -> bool:
        if not all_finite(gradients):
            return False
        for p, g in zip(self.params, gradients, strict=True):
            p.grad = g
        self._inner.param_groups[0]["lr"] = rate
        self._inner.step()
        return True

    def state(self) -> dict[str, Any]:
        return self._inner.state_dict()

    def load(self, state: dict[str, Any]) -> None:
        self._inner.load_state_dict(state)


@dataclass
class _Cursor:
    """How far the fit is: everything but tensors that a resumed fit must know."""

    stage: int = 0
    step: int = 0
    iteration: int = 0  # within the step
    done: int = 0  # over all stages
    order: list[int] = field(default_factory=list)  # lattices left in this pass, last one next
    error_sum: float = 0.0
    error_count: int = 0
    best_error: float = math.inf  # of this step
    error_limit: float = math.inf  # a pass that errs more than this has diverged
    kept_error: float = math.inf  # of this stage
    psnr_db: float | None = None
    loss: float | None = None
    rate_scale: float = 1.0
    recoveries: int = 0
    starts: int = 1
    learnt: bool = False
    finishing: bool = False


@dataclass(frozen=True)
class FitResult:
    """What a fitted tile yields.

    Attributes:
        rounded: the weights to code.
        passes: passes over every pixel that were run.
        complete: False when it was finished early.
    """

    rounded: Rounded
    passes: float
    complete: bool


class TileFit:
    """Fits one tile with one recipe.

    Args:
        arch: shape of the networks.
        kernel: implementation to run.
        target: (channels, rows, cols) float32 in [-1, 1], on the device to use.
        recipe: what to run; of it, what suits the network is.
        budget: what the coded weights may cost, or None for the published lattice.
        seed: of initial weights, order and noise; the same seed repeats the fit on one device.
        stride: of the lattices, at most the shorter side; None for what suits a tile by itself.
    """

    def __init__(
        self,
        arch: Architecture,
        kernel: Kernel,
        target: Tensor,
        recipe: Recipe,
        budget: Budget | None,
        seed: int,
        stride: int | None = None,
    ) -> None:
        self.arch, self.kernel, self.target = arch, kernel, target
        self.recipe = recipe = recipe.suited_to(len(arch.genesis.hidden))
        self.budget = budget
        self.generator = torch.Generator().manual_seed(seed)
        _, rows, cols = target.shape
        self.grid = pixel_grid(arch, rows, cols, target.device)
        self.stride = stride = min(stride or recipe.sampling.stride_for(rows, cols), rows, cols)
        self._lattices: list[tuple[Grid, Tensor] | None] = [None] * stride**2
        start = self._start()
        self.params: Params = in_a_row([p.to(target.device) for p in start])
        # what a constant picture of the mean colour errs by
        self.spread = float((target - target.mean((1, 2), keepdim=True)).square().mean())
        self.cursor = _Cursor(rate_scale=recipe.rate_scale(arch.parameters))
        self.best: Params = _clone(self.params)  # of this step
        self.kept: Params = _clone(self.params)  # of this stage
        self.sensitivity: list[float] = []
        self.widths: Params = []  # squared spread of every symbol under the entropy model
        self.lattice: Lattice | None = None
        self._rounding: Rounding | None = None
        self._optimiser: Soap | _AdamW | None = None

    def _start(self) -> Params:
        """Draw initial parameters."""
        mean = self.target.mean((1, 2)).tolist() if self.recipe.mean_start else []
        return initialise(self.arch, self.generator, mean, self.recipe.bias_scale)

    @property
    def stage(self) -> Stage:
        """The stage at work."""
        return self.recipe.stages[min(self.cursor.stage, len(self.recipe.stages) - 1)]

    @property
    def pass_length(self) -> int:
        """Iterations per pass: the number of lattices."""
        return self.stride**2

    @property
    def iterations(self) -> int:
        """Iterations planned over all stages."""
        return self.recipe.iterations(self.pass_length)

    def lattice_of(self, index: int) -> tuple[Grid, Tensor]:
        """Return the grid and target of lattice ``index`` (row offset * stride + column offset)."""
        found = self._lattices[index]
        if found is None:
            row, col = divmod(index, self.stride)
            grid = self.grid.lattice(self.stride, row, col)
            part = self.target[:, row :: self.stride, col :: self.stride].contiguous()
            found = self._lattices[index] = (grid, part)
        return found

    def run(self, monitor: Monitor) -> FitResult | None:
        """Fit from where the cursor stands to the end; None if the monitor cancelled."""
        with single_threaded():
            return self._run(monitor)

    def _run(self, monitor: Monitor) -> FitResult | None:
        cursor = self.cursor
        while cursor.stage < len(self.recipe.stages):
            wish = monitor.tick(self)
            if wish is Control.CANCEL:
                return None
            if wish is Control.FINISH and not cursor.finishing:
                self._finish_early(monitor)
                continue
            if cursor.iteration == 0 and cursor.step == 0:
                self._begin_stage()
            if not self._iterate():
                self._recover(monitor)
                continue
            if not cursor.order or self._step_over():
                self._end_pass(monitor)
            if self._step_over():
                self._end_step()
        return self._result()

    # ------------------------------------------------------------------ stages and steps

    def _length(self, stage: Stage) -> int:
        """Iterations of the step at work; a finishing fit cuts it short."""
        length = stage.iterations(self.pass_length)
        return min(length, _FINISH_ITERATIONS) if self.cursor.finishing else length

    def _step_over(self) -> bool:
        return self.cursor.iteration >= self._length(self.stage)

    @property
    def remaining(self) -> int:
        """Iterations still to run, as planned now."""
        if self.cursor.finishing:
            return self._length(self.stage) - self.cursor.iteration
        return self.iterations - self.cursor.done

    def _begin_stage(self) -> None:
        stage, cursor = self.stage, self.cursor
        if stage.optimiser is not None:
            self._optimiser = _make_optimiser(stage.optimiser, self.params, self.kernel)
        elif self._optimiser is None:
            self._optimiser = _make_optimiser(Optimiser("soap"), self.params, self.kernel)
        if stage.phase == "quantise":
            cursor.error_limit = self.lost_above(min(cursor.best_error, cursor.kept_error))
            if self.recipe.published_bits is not None:
                self.lattice = PublishedLattice(self.recipe.published_bits)
        cursor.best_error = cursor.kept_error = math.inf

    def lost_above(self, error: float) -> float:
        """Return the mean squared error that shows that a fit of ``error`` has been undone."""
        constant = _COLLAPSED * self.spread
        return constant if error < constant / 2.0 and self.spread > _FLAT else math.inf

    def _finish_early(self, monitor: Monitor) -> None:
        """Make this the last step: quantise at once, or stop if that is under way."""
        cursor = self.cursor
        cursor.finishing = True
        cursor.order, cursor.error_sum, cursor.error_count = [], 0.0, 0
        last = len(self.recipe.stages) - 1
        if cursor.stage == last and self.rounding and self.lattice is not None:
            self._end_step()
            monitor.say("finishing early: coding the best state so far")
            return
        monitor.say("finishing early: quantising the best state so far")
        if math.isfinite(min(cursor.best_error, cursor.kept_error)):
            better = self.best if cursor.best_error <= cursor.kept_error else self.kept
            _copy_into(self.params, better)
        cursor.stage, cursor.step, cursor.iteration = last, 0, 0

    def _end_step(self) -> None:
        stage, cursor = self.stage, self.cursor
        if cursor.best_error < cursor.kept_error:
            cursor.kept_error = cursor.best_error
            _copy_into(self.kept, self.best)
        cursor.step += 1
        cursor.iteration = 0
        cursor.order = []
        last = cursor.step >= stage.steps or cursor.finishing
        if stage.steps > 1:
            # published: a fitting step goes on from its own best, a quantisation step from the best
            source = self.best if stage.phase == "fit" and not last else self.kept
            _copy_into(self.params, source)
        if not last and stage.restart is not None:
            self._disturb(stage.restart, cursor.step / stage.steps)
            cursor.error_limit = math.inf  # a restart may well raise the error
        cursor.best_error = math.inf
        if last:
            cursor.stage += 1
            cursor.step = 0

    def _disturb(self, restart: Restart, progress: float) -> None:
        amount, span = restart.amount.at(progress), restart.span.at(progress)
        heads = {0, self.arch.genesis_tensors}
        for index, p in enumerate(self.params):
            if p.dim() != 2 or index in heads:
                continue
            noise = torch.rand(p.shape, generator=self.generator) * 2.0 - 1.0
            chosen = torch.rand(p.shape, generator=self.generator) < amount
            reach = float(p.abs().mean()) * span / amount
            p.add_((noise * chosen * reach).to(p))

    # ------------------------------------------------------------------ one iteration

    def _iterate(self) -> bool:
        """Run one optimiser iteration; False if nothing finite came out (and nothing changed)."""
        cursor, stage = self.cursor, self.stage
        if not cursor.order:
            count = self.pass_length
            if self.recipe.sampling.shuffled:
                cursor.order = torch.randperm(count, generator=self.generator).tolist()
            else:
                cursor.order = list(range(count - 1, -1, -1))
        grid, target = self.lattice_of(cursor.order.pop())
        weights = self.params
        if stage.phase == "quantise":
            self._control_rate()
            weights = self._rounded_weights()
        loss, gradients, error = self.kernel.loss_and_gradient(
            weights, grid, target, stage.objective
        )
        mean_error, pixels = float(error), target[0].numel()
        if stage.phase == "quantise" and self.recipe.rate_weight and self.budget:
            self._add_rate_gradient(gradients, mean_error)
        assert self._optimiser is not None
        if not (math.isfinite(mean_error) and self._optimiser.step(gradients, self._rate())):
            return False
        cursor.loss = float(loss)
        cursor.error_sum += mean_error * pixels
        cursor.error_count += pixels
        cursor.iteration += 1
        cursor.done += 1
        return True

    def _rate(self) -> float:
        cursor, stage = self.cursor, self.stage
        done, total = cursor.done, self.iterations
        if cursor.finishing:
            # run the schedule's last stretch, whatever came before
            left = self.remaining / max(1, self._length(stage))
            done = total - round(left * total / 6)
        before = cursor.step * stage.iterations(self.pass_length)
        at = (before + cursor.iteration) // self.pass_length
        return stage.schedule.rate(Moment(done, total, at)) * cursor.rate_scale

    @property
    def phase(self) -> Literal["fit", "quantise"]:
        """What the iteration at hand is to people: "quantise" once weights are rounded."""
        return "quantise" if self.rounding else "fit"

    @property
    def rounding(self) -> bool:
        """Whether the iteration at hand sees rounded weights."""
        return self._rounded_for >= 0

    @property
    def rounding_begins(self) -> bool:
        """Whether the iteration at hand is the step's first that sees rounded weights."""
        return self._rounded_for == 0

    @property
    def _rounded_for(self) -> int:
        """How many iterations of the step saw rounded weights; negative before the first."""
        stage = self.stage
        if stage.phase == "fit":
            return -1
        length = self._length(stage)
        return self.cursor.iteration - max(0, length - (stage.rounded or length))

    @property
    def rate_turn(self) -> int | None:
        """How many adjustments to the rate the step has had, where the next one is due."""
        every = max(_RATE_UPDATE, self._length(self.stage) // _RATE_UPDATES)
        turn, past = divmod(self.cursor.iteration, every)
        return None if past else turn

    @property
    def steps_due(self) -> bool:
        """Whether the iteration at hand chooses the steps, where the lattice is uniform."""
        rounded, left = self._rounded_for, self._length(self.stage) - self.cursor.iteration
        due = self.rate_turn is not None and rounded < left
        return self.lattice is None or self.rounding_begins or due

    def _control_rate(self, *, probed: bool = False) -> None:
        """Keep the uniform lattice's steps at the bit budget until weights settle on them.

        Args:
            probed: the sensitivities are those of the weights as they are.
        """
        if self.recipe.published_bits is not None:
            return
        cursor, chosen = self.cursor, self.steps_due
        due = chosen or self.rate_turn is not None
        if chosen:
            assert self.budget is not None
            if not probed:
                self._probe()
            self.lattice = lattice_for_rate(
                self.params,
                self.sensitivity,
                self.budget.bits,
                self.budget.estimate,
                self.lattice if isinstance(self.lattice, UniformLattice) else None,
            )
            # errors under other steps are comparable only roughly
            known = cursor.best_error
            cursor.error_limit = min(cursor.error_limit, _limit(known), self.lost_above(known))
            if self.rounding_begins:  # which may well raise the error, if not so far as this
                cursor.error_limit = max(cursor.error_limit, _COLLAPSED * self.spread)
            cursor.best_error = math.inf
            cursor.error_sum, cursor.error_count = 0.0, 0
        if due and self.recipe.rate_weight and self.budget is not None:
            assert isinstance(self.lattice, UniformLattice)
            found = self.budget.magnitudes(self.lattice.symbols(self.params))
            self.widths = squared_widths(found, self.params)

    def _probe(self) -> None:
        """Bring the tensors' sensitivities up to date."""
        first, count = (self.rate_turn or 0, 1) if self.sensitivity else (0, _PROBES)
        probes = [self.lattice_of((first + i) % self.pass_length) for i in range(count)]
        found = sensitivities(self.kernel, self.params, probes, self.signs())
        known, weight = self.sensitivity, _PROBE_WEIGHT
        if not known:
            known, weight = [1.0] * len(found), 1.0
        self.sensitivity = [
            (1.0 - weight) * old + weight * new if math.isfinite(new) else old
            for old, new in zip(known, found, strict=True)
        ]

    def signs(self) -> torch.Generator:
        """Return a generator of random signs on the device of the fit."""
        seed = int(torch.randint(0, 2**62, (), generator=self.generator))
        return torch.Generator(self.target.device).manual_seed(seed)

    def _rounded_weights(self) -> Params:
        """Return the weights that the iteration sees; the next call may overwrite them."""
        lattice, rounding = self.lattice, self._rounding
        assert lattice is not None
        if not isinstance(lattice, UniformLattice):
            return lattice.values(self.params)
        if (
            rounding is None
            or rounding.lattice is not lattice
            or rounding.params is not self.params
            or rounding.widths is not self.widths
        ):
            rounding = self._rounding = Rounding(self.params, lattice, self.widths)
        return rounding.weights(self.rounding)

    def _add_rate_gradient(self, gradients: list[Tensor], error: float) -> None:
        """Add the gradient of ``lambda * bits`` to ``gradients``.

        Lambda is the slope of the published curve at the present error and the budgeted rate; the
        bits of a symbol q are about 4 log2(1 + q^2 / c), with c from the scales that the entropy
        model adapted to (:func:`nifcore.entropy.expected_magnitudes`).
        """
        assert self.budget is not None
        assert self._rounding is not None
        price = self.recipe.rate_weight * _RATE_SLOPE * error / self.budget.bits
        self._rounding.add_rate_gradient(gradients, price * 8.0 / math.log(2.0))

    def _end_pass(self, monitor: Monitor) -> None:
        cursor = self.cursor
        cursor.order = []
        if not cursor.error_count:
            return
        error = cursor.error_sum / cursor.error_count
        cursor.error_sum, cursor.error_count = 0.0, 0
        limit = min(cursor.error_limit, _limit(cursor.best_error))
        if error > limit and cursor.recoveries < _RECOVERIES:  # after those, better bad than none
            self._recover(monitor)
            return
        cursor.psnr_db = 10.0 * math.log10(4.0 / max(error, 1e-12))
        if error < cursor.best_error:
            cursor.best_error = error
            _copy_into(self.best, self.params)
        if self.collapsed(error):
            self._start_again(monitor)

    def collapsed(self, error: float) -> bool:
        """Tell whether a pass of mean squared ``error`` shows that the fit has learnt nothing.

        Asked once, when it should have: later errors are the picture's, not the start's.
        """
        cursor = self.cursor
        least, most = _COLLAPSE_ITERATIONS
        due = min(self.iterations * 3 // 10, most)
        if cursor.learnt or cursor.finishing or due < least or cursor.done < due:
            return False
        lost = error > _COLLAPSED * self.spread and self.spread > _FLAT
        cursor.learnt = not lost or cursor.starts >= _STARTS
        return not cursor.learnt

    def _start_again(self, monitor: Monitor) -> None:
        """Forget the fit so far and begin from other weights."""
        starts, scale = self.cursor.starts + 1, self.recipe.rate_scale(self.arch.parameters)
        vars(self.cursor).update(vars(_Cursor(starts=starts, rate_scale=scale)))
        _copy_into(self.params, self._start())
        self._optimiser = self.lattice = None
        self.sensitivity, self.widths = [], []
        monitor.say(
            "the fit collapsed to a constant: starting again from other weights "
            f"(start {starts} of {_STARTS})"
        )

    def _recover(self, monitor: Monitor) -> None:
        """Go back to the best state with half the learning rate and a fresh optimiser."""
        cursor = self.cursor
        self.slow_down()
        _copy_into(self.params, self.best)
        cursor.order, cursor.error_sum, cursor.error_count = [], 0.0, 0
        if self.recipe.published_bits is None:
            # it may be the steps that undid the fit
            self.lattice, self.sensitivity = None, []
        spec = next(
            s.optimiser for s in self.recipe.stages[cursor.stage :: -1] if s.optimiser is not None
        )
        self._optimiser = _make_optimiser(spec, self.params, self.kernel)
        monitor.say(self.recovered)

    def slow_down(self) -> None:
        """Halve the learning rates.

        Raises:
            FitDiverged: that was done too often.
        """
        cursor = self.cursor
        cursor.recoveries += 1
        if cursor.recoveries > _RECOVERIES:
            raise FitDiverged(
                f"fitting diverged {cursor.recoveries} times in spite of "
                f"learning rates down to {cursor.rate_scale:g} of the preset's"
            )
        cursor.rate_scale *= 0.5

    @property
    def recovered(self) -> str:
        """What to say of the recovery just made."""
        return (
            "the fit diverged: back to the best state with the learning rate halved "
            f"(recovery {self.cursor.recoveries} of {_RECOVERIES})"
        )

    # ------------------------------------------------------------------ result

    @torch.no_grad()
    def full_error(self, weights: Params) -> float:
        """Return the mean squared error over all pixels, on the scale [-1, 1], clamped."""
        output = self.kernel.forward(weights, self.grid).clamp_(-1.0, 1.0)
        return float((output - self.target).square().mean())

    def _result(self) -> FitResult:
        """Round the better of the kept and the last state, within the budget."""
        cursor = self.cursor
        sources = [self.params]
        if math.isfinite(cursor.kept_error):
            sources.append(self.kept)
        candidates = [self._rounded(source) for source in sources]
        errors = [self.full_error(rounded.values) for rounded in candidates]
        error = min(errors)
        best = candidates[errors.index(error)]
        cursor.psnr_db = 10.0 * math.log10(4.0 / max(error, 1e-12))
        return FitResult(best, cursor.done / self.pass_length, not cursor.finishing)

    def _rounded(self, params: Params) -> Rounded:
        """Round ``params``, within the budget."""
        lattice, budget = self.lattice, self.budget
        assert lattice is not None
        if budget is None or not isinstance(lattice, UniformLattice):
            return lattice.round(params)
        bits, cost, magnitudes = budget.bits, budget.exact, budget.magnitudes
        return within(params, lattice, self.sensitivity, magnitudes, bits, cost)

    # ------------------------------------------------------------------ saving and resuming

    def state(self) -> dict[str, Any]:
        """Return everything a resumed fit needs, as tensors, numbers, strings and containers."""
        return {
            "cursor": copy.deepcopy(vars(self.cursor)),
            "params": _clone(self.params),
            "best": _clone(self.best),
            "kept": _clone(self.kept),
            "sensitivity": list(self.sensitivity),
            "widths": _clone(self.widths),
            "indices": list(self.lattice.indices)
            if isinstance(self.lattice, UniformLattice)
            else None,
            "generator": self.generator.get_state(),
            "optimiser": None
            if self._optimiser is None
            else copy.deepcopy(self._optimiser.state()),
        }

    def load(self, state: dict[str, Any]) -> None:
        """Go on from a state that :meth:`state` returned."""
        self.cursor = _Cursor(**state["cursor"])
        for mine, saved in (
            (self.params, state["params"]),
            (self.best, state["best"]),
            (self.kept, state["kept"]),
        ):
            _copy_into(mine, [t.to(self.target.device) for t in saved])
        self.sensitivity = list(state["sensitivity"])
        self.widths = [t.to(self.target.device) for t in state["widths"]]
        self.generator.set_state(state["generator"])
        if state["indices"] is not None:
            self.lattice = UniformLattice(tuple(state["indices"]))
        elif self.recipe.published_bits is not None and self.stage.phase == "quantise":
            self.lattice = PublishedLattice(self.recipe.published_bits)
        if state["optimiser"] is not None:
            stages = self.recipe.stages[: self.cursor.stage + 1]
            spec = next(s.optimiser for s in reversed(stages) if s.optimiser is not None)
            self._optimiser = _make_optimiser(spec, self.params, self.kernel)
            self._optimiser.load(state["optimiser"])


def _make_optimiser(spec: Optimiser, params: Params, kernel: Kernel) -> Soap | _AdamW:
    if spec.name == "soap":
        return make_soap(params, kernel)
    return _AdamW(params, spec.weight_decay)


def _limit(error: float) -> float:
    """Return the error of a pass that, after one of ``error``, counts as diverged."""
    return max(_DIVERGED * error, _DIVERGED_LEAST)


def _clone(params: Params) -> Params:
    return [p.clone() for p in params]


@torch.no_grad()
def _copy_into(target: Params, source: Params) -> None:
    for mine, theirs in zip(target, source, strict=True):
        mine.copy_(theirs)
