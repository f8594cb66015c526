"""From trained weights to symbols: step sizes, and rounding that training can see through.

Our lattice gives every tensor the step that costs equal error per bit: a tensor's sensitivity h is
what the error rises by per unit of its weights' variance, a step d adds about ``n h d^2 / 12``, and
minimising that at a fixed rate makes d proportional to 1/sqrt(h). One common factor then sets the
rate.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nifcore.flat import flattened, joined, parts, spread
from nifcore.kernels import Kernel
from nifcore.losses import Objective
from nifcore.network import Grid, Params
from nifcore.tensors import (
    STEP_INDICES,
    STEPS_PER_OCTAVE,
    PublishedStep,
    QuantisedTensor,
    UniformStep,
    nearest_step_index,
    step_size,
)

LEAST_SENSITIVITY = 1e-12
"""Of a tensor that no output depends on, so that its step stays finite."""
_WIDEST = 1.0
"""Widest step, as a multiple of a tensor's root mean square."""
_GRAIN = 8
"""Index steps to which the ratios of steps are rounded: a quarter of an octave."""

WIDTH = 8.69
"""Squared spread of a symbol per square of its expected magnitude, of which 1 more is the least."""

Cost = Callable[[Sequence[QuantisedTensor]], float]
"""Bits that the coder spends on one tile's tensors."""
Magnitudes = Callable[[Sequence[QuantisedTensor]], list[NDArray[np.float64]]]
"""What magnitude the entropy model expects of every symbol, one array per tensor."""


@dataclass(frozen=True)
class Rounded:
    """Weights as the decoder will see them, and the symbols they come from.

    Attributes:
        values: float32 tensors in file order, for the forward pass.
        tensors: the symbols and steps, ready to be coded.
    """

    values: Params
    tensors: list[QuantisedTensor]


@dataclass(frozen=True)
class UniformLattice:
    """Round to nearest on one uniform lattice per tensor."""

    indices: tuple[int, ...]
    _rows: dict[torch.device, Tensor] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def values(self, params: Sequence[Tensor]) -> Params:
        """Return ``params`` rounded to the lattice, as float32 weights."""
        steps = self.steps(params)
        return parts(torch.round(flattened(params) / steps).mul_(steps), params)

    def steps(self, params: Sequence[Tensor]) -> Tensor:
        """Return the step of every weight, (N,), one tensor's weights behind the other's."""
        found = self._rows.get(params[0].device)
        if found is None:
            found = spread([step_size(index) for index in self.indices], params)
            self._rows[params[0].device] = found
        return found

    def round(self, params: Sequence[Tensor]) -> Rounded:
        """Return the weights and symbols of ``params``."""
        return _rounded(self.symbols(params), params)

    def symbols(self, params: Sequence[Tensor]) -> list[QuantisedTensor]:
        """Return the symbols of ``params``."""
        row = torch.round(flattened(params) / self.steps(params)).to(torch.int32).cpu()
        pairs = zip(parts(row, params), self.indices, strict=True)
        return [QuantisedTensor(part.numpy(), UniformStep(i)) for part, i in pairs]


class Rounding:
    """Rounds tensors to one lattice in every iteration, with few operations and in the same memory.

    Args:
        params: what to round, as it is at each call.
        lattice: where to.
        widths: squared spread of every symbol under the entropy model, or empty where no rate
            gradient is wanted.
    """

    def __init__(self, params: Params, lattice: UniformLattice, widths: Params) -> None:
        self.params, self.lattice, self.widths = params, lattice, widths
        self._steps = lattice.steps(params)
        self._source = joined(params)
        self._row = torch.empty_like(self._steps)
        self._weights = parts(self._row, params)
        self._spread = flattened(widths) * self._steps.square() if widths else None

    def weights(self, rounded: bool = True) -> Params:
        """Return :meth:`UniformLattice.values`, or the weights as they are.

        They are to be used before the next call.
        """
        source = flattened(self.params) if self._source is None else self._source
        if rounded:
            torch.div(source, self._steps, out=self._row).round_().mul_(self._steps)
        else:
            self._row.copy_(source)
        return self._weights

    def add_rate_gradient(self, gradients: Sequence[Tensor], price: float) -> None:
        """Add the gradient of ``price / 2 * log(1 + q**2 / c)``, summed, to ``gradients``.

        The symbols q are those of the last :meth:`weights`, fractions where those were not
        rounded; c are the widths.
        """
        assert self._spread is not None
        # q / (q^2 + c) / step with q = w / step
        below = torch.addcmul(self._spread, self._row, self._row)
        row = joined(gradients)
        if row is not None:
            row.addcdiv_(self._row, below, value=price)
            return
        for g, slope in zip(gradients, parts(self._row / below, gradients), strict=True):
            g.add_(slope, alpha=price)


def squared_widths(magnitudes: Sequence[NDArray[np.float64]], like: Sequence[Tensor]) -> Params:
    """Return the squared spread c of every symbol, tensors like ``like``.

    The bits of a symbol q are about ``4 log2(1 + q^2 / c)``, see
    :func:`nifcore.entropy.expected_magnitudes`, which gives the ``magnitudes``.
    """
    return [
        torch.from_numpy(WIDTH * m * m + 1.0).to(p) for m, p in zip(magnitudes, like, strict=True)
    ]


@dataclass(frozen=True)
class PublishedLattice:
    """The published rule: divide by the largest magnitude and truncate, in half precision.

    https://github.com/aegroto/nif, compression; truncation instead of rounding is theirs.
    """

    bits: int

    def values(self, params: Sequence[Tensor]) -> Params:
        """Return ``params`` truncated to the lattice, as float32 weights."""
        values = []
        levels = 2 ** (self.bits - 1) - 1
        for p in params:
            bound = p.abs().max().half()
            if bound == 0:
                values.append(torch.zeros_like(p))
                continue
            values.append((self._symbols(p, bound).half() / levels * bound).float())
        return values

    def round(self, params: Sequence[Tensor]) -> Rounded:
        """Return the weights and symbols of ``params``."""
        tensors = []
        for p in params:
            bound = p.abs().max().half()
            symbols = self._symbols(p, bound) if bound > 0 else torch.zeros_like(p)
            raw = int(np.float16(bound.item()).view(np.uint16))
            tensors.append(
                QuantisedTensor(
                    symbols.to(torch.int32).cpu().numpy(), PublishedStep(self.bits, raw)
                )
            )
        return _rounded(tensors, params)

    def _symbols(self, p: Tensor, bound: Tensor) -> Tensor:
        levels = 2 ** (self.bits - 1) - 1
        unit = p.clamp(-bound.float(), bound.float()).div(bound.float()).half()
        return unit.mul(levels).trunc()


Lattice = UniformLattice | PublishedLattice


def _rounded(tensors: list[QuantisedTensor], like: Sequence[Tensor]) -> Rounded:
    values = [as_weights(t, p.device) for t, p in zip(tensors, like, strict=True)]
    return Rounded(values, tensors)


def as_weights(tensor: QuantisedTensor, device: torch.device) -> Tensor:
    """Return the float32 weights of a coded tensor, in memory of torch's own.

    NumPy aligns its memory less strictly, and a matrix product's last bits depend on alignment:
    with borrowed memory, two runs could differ.
    """
    return torch.tensor(tensor.values(), device=device)


def sensitivities(
    kernel: Kernel,
    params: Params,
    probes: Sequence[tuple[Grid, Tensor]],
    generator: torch.Generator,
) -> list[float]:
    """Estimate every tensor's rise of the mean squared error per unit of weight variance.

    To second order that rise is ``mean((d output / d weight)**2)``, whatever the error is now (the
    Gauss-Newton part of the curvature, which is never negative). The gradient of the error towards
    a target that differs from the output by random signs squares to it in the mean (Hutchinson's
    estimator), so that one gradient probes all tensors.

    Args:
        probes: pairs of a grid and a target (channels, rows, cols); one gradient is taken on each.
        generator: of the signs, on the device of the targets.

    Returns:
        One positive number per tensor, or NaN where the gradients are not finite: d(MSE) /
        d(variance of one of its weights).
    """
    sums = [0.0] * len(params)
    for grid, like in probes:
        output = kernel.forward(params, grid)
        drawn = torch.randint(0, 2, like.shape, generator=generator, device=like.device)
        signs = drawn.mul_(2).sub_(1).to(like)
        _, gradients, _ = kernel.loss_and_gradient(params, grid, output - signs, Objective())
        for index, gradient in enumerate(gradients):
            sums[index] += float(gradient.square().mean()) * like.numel() / 4.0
    return [max(total / len(probes), LEAST_SENSITIVITY) for total in sums]


def _spread(p: Tensor) -> float:
    return max(float(p.square().mean().sqrt()), 1e-4)


def lattice_for_rate(
    params: Sequence[Tensor],
    sensitivity: Sequence[float],
    bits: float,
    cost: Cost,
    near: UniformLattice | None = None,
) -> UniformLattice:
    """Choose steps by sensitivity so that the symbols cost at most ``bits`` bits.

    The steps keep fixed ratios, in quarter octaves (which the file stores briefly); their common
    index is the smallest that meets the rate.

    Args:
        bits: what the symbols may cost.
        cost: the coder's own account, in bits.
        near: a lattice that met the rate of similar weights, where the search begins.
    """
    ideal = [1.0 / math.sqrt(h) for h in sensitivity]
    # a tensor that seemed insensitive must not be rounded away altogether
    widest = [_WIDEST * _spread(p) for p in params]

    def at(base: int) -> UniformLattice:
        factor = step_size(base) / ideal[0]
        return UniformLattice(
            tuple(
                nearest_step_index(min(factor * d, w), base=base, grain=_GRAIN)
                for d, w in zip(ideal, widest, strict=True)
            )
        )

    @cache
    def spent(base: int) -> float:
        return cost(at(base).symbols(params))

    # halving the steps costs a bit per weight: a good guess, then gallop and bisect
    size = sum(p.numel() for p in params)
    guess = nearest_step_index(widest[0] / 16) if near is None else near.indices[0]
    guess += round(STEPS_PER_OCTAVE * (spent(guess) - bits) / size)
    guess = min(max(guess, 0), STEP_INDICES - 1)
    reach = 2 if near is None else 1
    if spent(guess) > bits:
        low, high = guess, min(guess + reach, STEP_INDICES - 1)
        while spent(high) > bits and high < STEP_INDICES - 1:
            reach *= 2
            low, high = high, min(high + reach, STEP_INDICES - 1)
    else:
        low, high = max(guess - reach, 0), guess
        while spent(low) <= bits and low > 0:
            reach *= 2
            low, high = max(low - reach, 0), low
    while high - low > 1:
        middle = (low + high) // 2
        if spent(middle) > bits:
            low = middle
        else:
            high = middle
    return at(high)


def coarser(lattice: UniformLattice, increments: int) -> UniformLattice:
    """Widen all steps by ``increments`` index steps, 2 % each."""
    return UniformLattice(
        tuple(min(index + increments, STEP_INDICES - 1) for index in lattice.indices)
    )
