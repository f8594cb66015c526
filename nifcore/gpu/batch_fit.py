"""B fits in lockstep: one architecture, one recipe, one stride; all else is each fit's own.

::

    TileFit, TileFit, ... ─► BatchFit ─► per iteration, one launch each for all of them:
      targets, seeds,          lattice ─► rounding ─► loss, gradient ─► rate term ─► optimiser
      budgets, monitors      ─► per pass, one look at the device:
                               errors ─► best state kept, or back to it ─► monitors
                             ─► FitResult | None (cancelled) | error, per fit

Every item is a :class:`~nifcore.fit.TileFit`. It draws its own random numbers, makes its own
decisions about steps and rates, and at the end rounds its own weights; this module only moves the
tensors of all of them together. An item that is cancelled or fails leaves and the others never
notice; one that is to finish early leaves as well and goes on alone.

No step waits for the host. What is not finite is masked where it arises, and seen when the host
next looks, at the end of the pass; the monitors are asked before every iteration all the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from nifcore import fit as single
from nifcore.architecture import Architecture
from nifcore.errors import FitDiverged, UsageError
from nifcore.events import Control
from nifcore.fit import Budget, FitResult, Monitor, TileFit
from nifcore.gpu.account import Account
from nifcore.gpu.base import BatchKernel
from nifcore.gpu.graphs import Recorder
from nifcore.gpu.lattices import Batch, LatticeStore
from nifcore.gpu.layout import Layout
from nifcore.gpu.soap import BatchAdamW, BatchOptimiser, BatchSoap
from nifcore.gpu.stacked import inside
from nifcore.kernels import Kernel
from nifcore.losses import Objective
from nifcore.network import Params
from nifcore.presets import Moment, Optimiser, Recipe
from nifcore.quantise import LEAST_SENSITIVITY, WIDTH, PublishedLattice, UniformLattice
from nifcore.soap import Soap
from nifcore.tensors import step_size

Outcome = FitResult | Exception | None
"""What became of one fit: its result, why it failed, or None where its monitor cancelled."""


class Seat(TileFit):
    """A fit whose tensors lie in a batch while it has a place there.

    Reading its weights or its state fetches them from the device first, so monitors may draw
    previews and save checkpoints as of any other fit.
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
        self.batch: BatchFit | None = None
        super().__init__(arch, kernel, target, recipe, budget, seed, stride)

    @property
    def params(self) -> Params:
        return self._params if self.batch is None else self.batch.weights_of(self)

    @params.setter
    def params(self, params: Params) -> None:
        self._params = params

    def state(self) -> dict[str, Any]:
        if self.batch is not None:
            self.batch.fetch(self)
        return super().state()


@dataclass(frozen=True)
class Company:
    """What fits must share to go together.

    Attributes:
        arch: of their networks.
        recipe: that they run.
        stride: of their lattices.
        budgeted: whether their rate is held to a budget.
    """

    arch: Architecture
    recipe: Recipe
    stride: int
    budgeted: bool


def company_of(fit: TileFit) -> Company:
    """Return what other fits must have in common with ``fit`` to be fitted together.

    Lattices of one stride may be of any shape: all are padded to the longest sides, which costs
    less than a launch for each shape.
    """
    return Company(fit.arch, fit.recipe, fit.stride, fit.budget is not None)


class BatchFit:
    """Fits B tiles together.

    Args:
        seats: fits that have not begun; equal in :func:`company_of`.
        kernel: batched implementation to run.
        monitors: one per fit.
        account: chooses the steps of all on the device; None lets every fit do it on the host.
        settled: told what became of a fit as soon as that is known, while others go on.

    Raises:
        UsageError: the fits do not go together, or have begun.
    """

    def __init__(
        self,
        seats: Sequence[Seat],
        kernel: BatchKernel,
        monitors: Sequence[Monitor],
        account: Account | None = None,
        settled: Callable[[Seat, Outcome], None] | None = None,
    ) -> None:
        companies = {company_of(seat) for seat in seats}
        if len(companies) != 1 or any(seat.cursor.done for seat in seats):
            raise UsageError(
                f"got {len(seats)} fits of {len(companies)} kinds, "
                f"{sum(seat.cursor.done > 0 for seat in seats)} of them begun; fits of one kind "
                "that have not begun are accepted"
            )
        first = seats[0]
        self.account = account
        self._settled = settled
        self.arch, self.recipe, self.kernel = first.arch, first.recipe, kernel
        self.device = first.target.device
        self.layout = Layout(self.arch)
        self.seats = list(seats)
        self.monitors = dict(zip(map(id, seats), monitors, strict=True))
        self.store = LatticeStore(self.arch, [s.target for s in seats], first.stride, self.device)
        self.weights = self.layout.pack([seat.params for seat in seats], self.device)
        self.best, self.kept = self.weights.clone(), self.weights.clone()
        endless = self.weights.new_full((len(seats),), math.inf)
        self.best_error, self.kept_error = endless, endless.clone()
        self.error_limit = endless.clone()
        self.error_sum, self.samples = torch.zeros_like(endless), torch.zeros_like(endless)
        self.loss = torch.zeros_like(endless)
        self.bad = torch.zeros_like(endless, dtype=torch.bool)
        # of the pass at work: by iteration and item
        self.order = torch.zeros(
            self.store.count, len(seats), dtype=torch.int64, device=self.device
        )
        self.rates = torch.zeros(self.store.count, len(seats), device=self.device)
        self.position = torch.zeros(1, dtype=torch.int64, device=self.device)
        # of the lattice: by weight
        self.steps = torch.ones_like(self.weights)
        self.widths = torch.ones_like(self.weights)
        self.bits = torch.tensor(
            [math.inf if s.budget is None else s.budget.bits for s in seats], device=self.device
        )
        self.sensitivity = self.weights.new_ones(len(seats), len(self.layout.shapes))
        self._owners = self.layout.owners(self.device)
        self._optimiser: BatchOptimiser | None = None
        self._recorder = Recorder(self.device)
        self._drawn: list[list[int]] = [[] for _ in seats]
        self._at = 0  # in the pass
        self._fetched: dict[int, tuple[int, int, int]] = {}
        for seat in seats:
            seat.batch = self

    # ------------------------------------------------------------------ the whole fit

    @torch.no_grad()
    def run(self) -> list[Outcome]:
        """Fit all to the end; return what became of each, in the order given."""
        everyone = list(self.seats)
        self._outcomes: dict[int, Outcome] = {}
        while self.seats and self._clock.stage < len(self.recipe.stages):
            self._ask()
            if not self.seats:
                break
            clock = self._clock
            if clock.iteration == 0 and clock.step == 0:
                self._begin_stage()
            if self._at == len(self._drawn[0]):
                self._begin_pass()
            self._iterate()
            if self._at == len(self._drawn[0]) or self._step_over:
                self._end_pass()
            if self.seats and self._step_over:
                self._end_step()
        for seat in list(self.seats):
            self._leave(seat)
            self._settle(seat, seat._result())
        return [self._outcomes[id(seat)] for seat in everyone]

    @property
    def _clock(self) -> single._Cursor:
        """The cursor that all share as far as stage, step and iteration go."""
        return self.seats[0].cursor

    @property
    def _step_over(self) -> bool:
        return self._clock.iteration >= self.seats[0].stage.iterations(self.store.count)

    def _ask(self) -> None:
        """Ask every monitor what to do with its item; those that stop leave."""
        for seat in list(self.seats):
            monitor = self.monitors[id(seat)]
            outcome: Outcome = None
            try:
                wish = monitor.tick(seat)
                if wish is Control.CONTINUE:
                    continue
                self._leave(seat)
                if wish is Control.FINISH:
                    outcome = seat.run(_Once(monitor, wish))
            except Exception as error:
                # One item's trouble, whatever it is, must not become the others'.
                outcome = error
                if seat in self.seats:
                    self._leave(seat)
            self._settle(seat, outcome)

    def _settle(self, seat: Seat, outcome: Outcome) -> None:
        self._outcomes[id(seat)] = outcome
        if self._settled is not None:
            self._settled(seat, outcome)

    # ------------------------------------------------------------------ stages, steps, passes

    def _begin_stage(self) -> None:
        stage = self.seats[0].stage
        if stage.optimiser is not None or self._optimiser is None:
            self._optimiser = self._make_optimiser(stage.optimiser or Optimiser("soap"))
        if stage.phase == "quantise":
            fitted = torch.minimum(self.best_error, self.kept_error)
            self.error_limit.copy_(self._lost_above(fitted))
            if self.recipe.published_bits is not None:
                for seat in self.seats:
                    seat.lattice = PublishedLattice(self.recipe.published_bits)
        self.best_error.fill_(math.inf)
        self.kept_error.fill_(math.inf)

    def _lost_above(self, error: Tensor) -> Tensor:
        """Return, for all items, what :meth:`TileFit.lost_above` does."""
        pairs = zip(self.seats, error.tolist(), strict=True)
        return torch.tensor([seat.lost_above(each) for seat, each in pairs]).to(error)

    def _probe(self) -> None:
        """Bring the sensitivities of all up to date, see :meth:`TileFit._probe`."""
        known = bool(self.seats[0].sensitivity)
        first, count = (self.seats[0].rate_turn or 0, 1) if known else (0, single._PROBES)
        found = self._sensitivities(first, count)
        weight = single._PROBE_WEIGHT if known else 1.0
        mean = (1.0 - weight) * self.sensitivity + weight * found
        self.sensitivity.copy_(torch.where(found.isfinite(), mean, self.sensitivity))
        for seat, sensitivity in zip(self.seats, self.sensitivity.tolist(), strict=True):
            seat.sensitivity = sensitivity

    def _sensitivities(self, first: int, count: int) -> Tensor:
        """Return (B, tensors) from ``count`` lattices, ``first`` and those after it."""
        lattices = [(first + i) % self.store.count for i in range(count)]
        probes = [self.store.gather(torch.full_like(self._items(), each)) for each in lattices]
        generators = [seat.signs() for seat in self.seats]
        return batch_sensitivities(self.kernel, self.layout, self.weights, probes, generators)

    def _make_optimiser(self, spec: Optimiser) -> BatchOptimiser:
        self._recorder.forget()
        if spec.name == "soap":
            return BatchSoap(self.layout, self.weights)
        return BatchAdamW(self.layout, self.weights, spec.weight_decay)

    def _begin_pass(self) -> None:
        """Draw every item's lattices, and work out the learning rates of the pass."""
        count = self.store.count
        if self.recipe.sampling.shuffled:
            self._drawn = [
                torch.randperm(count, generator=seat.generator).tolist() for seat in self.seats
            ]
        else:
            self._drawn = [list(range(count - 1, -1, -1)) for _ in self.seats]
        self._at = 0
        self.position.zero_()
        # the single fit takes the last one first
        self.order.copy_(torch.tensor(self._drawn).flip(1).mT)
        clock, stage = self._clock, self.seats[0].stage
        total, before = self.seats[0].iterations, clock.step * stage.iterations(count)
        rates = [
            stage.schedule.rate(
                Moment(clock.done + i, total, (before + clock.iteration + i) // count)
            )
            for i in range(count)
        ]
        scales = torch.tensor([seat.cursor.rate_scale for seat in self.seats])
        self.rates.copy_(torch.tensor(rates)[:, None] * scales)

    def _end_pass(self) -> None:
        """Keep what is best, and let the host see how all are doing."""
        error = self.error_sum / self.samples
        known = self.best_error
        limit = torch.minimum(_limit(known), self.error_limit)
        counted = self.samples > 0
        worse = ~error.isfinite() | (error > limit)
        diverged = self.bad | (counted & worse)
        better = counted & ~diverged & (error < known)
        self.best.copy_(torch.where(better[:, None], self.weights, self.best))
        known.copy_(torch.where(better, error, known))
        seen = torch.stack([error, self.loss, diverged.to(error)]).tolist()
        for accumulated in (self.error_sum, self.samples, self.bad):
            accumulated.zero_()
        self._drawn = [[] for _ in self.seats]
        self._at = 0
        fallen, collapsed = [], []
        for seat, mean, loss, has_diverged in zip(self.seats, *seen, strict=True):
            if has_diverged:
                fallen.append(seat)
            elif math.isfinite(mean):
                seat.cursor.loss = loss
                seat.cursor.psnr_db = 10.0 * math.log10(4.0 / max(mean, 1e-12))
                if seat.collapsed(mean):
                    collapsed.append(seat)
        for seat in fallen:
            if seat.stage.phase == "fit":
                self._recover(seat)
            else:
                self._go_alone(seat, seat._recover)
        for seat in collapsed:
            self._go_alone(seat, seat._start_again)

    def _recover(self, seat: Seat) -> None:
        """Take an item back to its best state with half the learning rate and fresh moments."""
        assert self._optimiser is not None
        try:
            seat.slow_down()
        except FitDiverged as diverged:
            self._leave(seat)
            self._settle(seat, diverged)
            return
        row = self.seats.index(seat)
        self.weights[row] = self.best[row]
        self._optimiser.restart([row])
        self.monitors[id(seat)].say(seat.recovered)

    def _go_alone(self, seat: Seat, again: Callable[[Monitor], None]) -> None:
        """Let a fit begin ``again``, from other weights, steps or rates than the others have."""
        monitor = self.monitors[id(seat)]
        outcome: Outcome
        self._leave(seat)
        try:
            again(monitor)
            outcome = seat.run(monitor)
        except Exception as error:
            # as in _ask: one item's trouble stays its own
            outcome = error
        self._settle(seat, outcome)

    def _end_step(self) -> None:
        clock, stage = self._clock, self.seats[0].stage
        better = self.best_error < self.kept_error
        self.kept_error.copy_(torch.where(better, self.best_error, self.kept_error))
        self.kept.copy_(torch.where(better[:, None], self.best, self.kept))
        step = clock.step + 1
        last = step >= stage.steps
        if stage.steps > 1:
            source = self.best if stage.phase == "fit" and not last else self.kept
            self.weights.copy_(source)
        if not last and stage.restart is not None:
            self.error_limit.fill_(math.inf)
            for row, seat in enumerate(self.seats):
                self._disturb(row, seat, step / stage.steps)
        self.best_error.fill_(math.inf)
        for seat in self.seats:
            cursor = seat.cursor
            cursor.step, cursor.iteration = (0, 0) if last else (step, 0)
            cursor.stage += last

    def _disturb(self, row: int, seat: Seat, progress: float) -> None:
        """Let a fit disturb its weights as it would alone."""
        restart = seat.stage.restart
        assert restart is not None
        seat.batch = None
        seat.params = self.layout.unpack(self.weights[row])
        seat._disturb(restart, progress)
        self.weights[row] = torch.cat([p.flatten() for p in seat.params])
        seat.batch = self

    # ------------------------------------------------------------------ one iteration

    def _iterate(self) -> None:
        optimiser, stage = self._optimiser, self.seats[0].stage
        assert optimiser is not None
        if stage.phase == "quantise":
            self._control_rates()
        name = (self._clock.stage, self.seats[0].rounding, optimiser.due)
        if optimiser.fresh:
            self._work(begin=True)
        else:
            self._recorder.run(name, self._work)
        optimiser.advance()
        self._at += 1
        for seat in self.seats:
            seat.cursor.iteration += 1
            seat.cursor.done += 1

    def _work(self, begin: bool = False) -> None:
        """One optimiser iteration of all items; without ``begin`` it can be recorded."""
        optimiser, stage = self._optimiser, self.seats[0].stage
        assert optimiser is not None
        batch = self.store.gather(self.order.index_select(0, self.position)[0])
        weights = self._rounded() if stage.phase == "quantise" else self.weights
        loss, gradient, error = self.kernel.loss_and_gradient(weights, batch, stage.objective)
        if stage.phase == "quantise" and self.recipe.rate_weight and self.bits.numel():
            self._add_rate_gradient(gradient, weights, error)
        finite = (gradient.sum(1) + error).isfinite()
        self.bad |= ~finite
        gradient = torch.where(finite[:, None], gradient, 0.0)
        rate = self.rates.index_select(0, self.position)[0] * finite
        if begin:
            optimiser.begin(gradient, rate)
        else:
            optimiser.step(gradient, rate, due=optimiser.due)
        pixels = (batch.rows * batch.cols).float() * finite
        self.error_sum += torch.where(finite, error, 0.0) * pixels
        self.samples += pixels
        self.loss.copy_(loss)
        self.position += 1

    def _rounded(self) -> Tensor:
        """Return the weights as the iteration sees them."""
        if not self.seats[0].rounding:
            return self.weights
        if self.recipe.published_bits is None:
            return torch.round(self.weights / self.steps) * self.steps
        levels = 2 ** (self.recipe.published_bits - 1) - 1
        result = torch.empty_like(self.weights)
        views = zip(self.layout.views(self.weights), self.layout.views(result), strict=True)
        for view, rounded in views:
            p = view.flatten(1)
            bound = p.abs().amax(1, keepdim=True).half()
            span = bound.float().clamp_min(1e-37)
            unit = (p.clamp(-span, span) / span).half()
            # half precision at every step, as the published decoder has it
            values = unit.mul(levels).trunc().half().div(levels).mul(bound).float()
            rounded.copy_(torch.where(bound > 0, values, 0.0).view_as(rounded))
        return result

    def _control_rates(self) -> None:
        """Let every fit keep its steps at its budget, where that is due."""
        if self.recipe.published_bits is not None:
            return
        choose = self.seats[0].steps_due
        if not choose and self.seats[0].rate_turn is None:
            return
        if choose:
            self._probe()
        if self.account is not None:
            self._choose_steps(self.account)
            return
        host = self.weights.cpu()
        steps, widths, changed = [], [], False
        for row, seat in enumerate(self.seats):
            before = seat.lattice
            seat.batch = None
            seat.params = [view[0] for view in self.layout.views(host[row : row + 1])]
            seat._control_rate(probed=True)
            seat.batch = self
            changed = changed or seat.lattice is not before
            assert isinstance(seat.lattice, UniformLattice)
            steps.append([step_size(index) for index in seat.lattice.indices])
            if seat.widths:
                widths.append(torch.cat([w.flatten().cpu() for w in seat.widths]))
        self.steps.copy_(torch.tensor(steps, device=self.device)[:, self._owners])
        if widths:
            self.widths.copy_(torch.stack(widths))
        if changed:
            self._forget_errors()

    def _choose_steps(self, account: Account) -> None:
        """Do on the device what :meth:`TileFit._control_rate` does for one fit."""
        if self.seats[0].steps_due:
            indices = account.choose(self.weights, self.sensitivity, self.bits)
            self.steps.copy_(account.steps[indices][:, self._owners])
            for each, found in zip(self.seats, indices.tolist(), strict=True):
                each.lattice = UniformLattice(tuple(found))
            self._forget_errors()
        if self.recipe.rate_weight:
            lattices = [seat.lattice for seat in self.seats]
            chosen = [each.indices for each in lattices if isinstance(each, UniformLattice)]
            indices = torch.tensor(chosen, device=self.device)
            expected = account.magnitudes(account.symbols(self.weights, indices), indices)
            self.widths.copy_(WIDTH * expected.square() + 1.0)

    def _forget_errors(self) -> None:
        """Errors under other steps are comparable only roughly."""
        known = self.best_error
        limit = torch.minimum(_limit(known), self._lost_above(known))
        limit = torch.minimum(self.error_limit, limit)
        if self.seats[0].rounding_begins:
            constants = torch.tensor([single._COLLAPSED * seat.spread for seat in self.seats])
            limit = torch.maximum(limit, constants.to(limit))
        self.error_limit.copy_(limit)
        self.best_error.fill_(math.inf)
        self.error_sum.zero_()
        self.samples.zero_()

    def _add_rate_gradient(self, gradient: Tensor, weights: Tensor, error: Tensor) -> None:
        """Add the gradient of ``lambda * bits``, see :meth:`TileFit._add_rate_gradient`."""
        price = self.recipe.rate_weight * single._RATE_SLOPE * 8.0 / math.log(2.0)
        q = weights / self.steps
        scale = (price * error / self.bits)[:, None] / self.steps
        gradient += scale * q / (q.square() + self.widths)

    # ------------------------------------------------------------------ leaving

    def _items(self) -> Tensor:
        return torch.arange(len(self.seats), device=self.device)

    def weights_of(self, seat: Seat) -> Params:
        """Return an item's weights as they are now."""
        return self.layout.unpack(self.weights[self.seats.index(seat)])

    def fetch(self, seat: Seat) -> None:
        """Copy an item's tensors into its fit, so that it could go on alone from here."""
        moment = (seat.cursor.stage, seat.cursor.step, seat.cursor.done)
        if self._fetched.get(id(seat)) == moment:
            return
        self._fetched[id(seat)] = moment
        row, cursor = self.seats.index(seat), seat.cursor
        seat._params = self.layout.unpack(self.weights[row])
        seat.best, seat.kept = (self.layout.unpack(t[row]) for t in (self.best, self.kept))
        drawn = self._drawn[row]
        cursor.order = drawn[: len(drawn) - self._at]
        cursor.error_sum, cursor.error_count = float(self.error_sum[row]), int(self.samples[row])
        cursor.best_error = float(self.best_error[row])
        cursor.kept_error = float(self.kept_error[row])
        cursor.error_limit = float(self.error_limit[row])
        if isinstance(seat.lattice, UniformLattice):
            seat.widths = self.layout.unpack(self.widths[row])
        if self._optimiser is None:
            return
        state = self._optimiser.state_of(row)
        if isinstance(self._optimiser, BatchSoap):
            soap = Soap(seat._params)
            soap.load(state)
            seat._optimiser = soap
        else:
            assert isinstance(self._optimiser, BatchAdamW)
            alone = single._AdamW(seat._params, self._optimiser.weight_decay)
            alone.load({**alone.state(), "state": state})
            seat._optimiser = alone

    def _leave(self, seat: Seat) -> None:
        """Give a fit its tensors back and close the ranks."""
        self.fetch(seat)
        seat.batch = None
        row = self.seats.index(seat)
        self.seats.pop(row)
        self._drawn.pop(row)
        if not self.seats:
            return
        others = [i for i in range(len(self.seats) + 1) if i != row]
        items = torch.tensor(others, device=self.device)
        for name in (
            "weights", "best", "kept", "best_error", "kept_error", "error_limit", "error_sum",
            "samples", "loss", "bad", "steps", "widths", "bits", "sensitivity",
        ):  # fmt: skip
            setattr(self, name, getattr(self, name).index_select(0, items))
        self.order = self.order.index_select(1, items)
        self.rates = self.rates.index_select(1, items)
        self.store.keep(items)
        if self._optimiser is not None:
            self._optimiser.keep(items, self.weights)
        self._recorder.forget()


def _limit(error: Tensor) -> Tensor:
    """Return, for all items, what :func:`nifcore.fit._limit` does."""
    return (single._DIVERGED * error).clamp_min(single._DIVERGED_LEAST)


class _Once:
    """Hands on a wish that was heard already, then asks the monitor as usual."""

    def __init__(self, monitor: Monitor, wish: Control) -> None:
        self._monitor, self._wish = monitor, wish

    def tick(self, fit: TileFit) -> Control:
        wish, self._wish = self._wish, Control.CONTINUE
        return wish if wish is not Control.CONTINUE else self._monitor.tick(fit)

    def say(self, message: str) -> None:
        self._monitor.say(message)


def batch_sensitivities(
    kernel: BatchKernel,
    layout: Layout,
    weights: Tensor,
    probes: Sequence[Batch],
    generators: Sequence[torch.Generator],
) -> Tensor:
    """Estimate what :func:`nifcore.quantise.sensitivities` does, for all items at once.

    Args:
        weights: (B, N).
        probes: what the items see; one gradient is taken on each.
        generators: of the signs, one per item, on the device of ``weights``.

    Returns:
        (B, tensors): d(MSE) / d(variance of one of a tensor's weights).
    """
    sums = weights.new_zeros(len(weights), len(layout.shapes))
    for probe in probes:
        shape = probe.target.shape[1:]
        drawn = [
            torch.randint(0, 2, shape, generator=g, device=weights.device, dtype=torch.int8)
            for g in generators
        ]
        signs = torch.stack(drawn).mul_(2).sub_(1).to(weights)
        target = torch.where(inside(probe), kernel.forward(weights, probe) - signs, 0.0)
        _, gradient, _ = kernel.loss_and_gradient(
            weights, replace(probe, target=target), Objective()
        )
        for index, view in enumerate(layout.views(gradient)):
            mean = view.square().flatten(1).mean(1)
            sums[:, index] += mean * probe.samples / 4.0
    return (sums / len(probes)).clamp_min(LEAST_SENSITIVITY)
