"""From trained weights to symbols: step sizes, and rounding that training can see through.

Our lattice gives every tensor the step that costs equal error per bit: the loss rise under small
uniform noise measures a tensor's sensitivity h (loss per unit of weight variance), a step d adds
about ``n h d^2 / 12``, and minimising that at a fixed rate makes d proportional to 1/sqrt(h). One
common factor then sets the rate.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from nifcore.kernels import Kernel
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

_NOISE = 1 / 16
"""Probe noise spans this fraction of a tensor's standard deviation."""
_PROBES = 3
_WIDEST = 1.0
"""Widest step, as a multiple of a tensor's root mean square."""
_GRAIN = 8
"""Index steps to which the ratios of steps are rounded: a quarter of an octave."""

Cost = Callable[[Sequence[QuantisedTensor]], float]
"""Bits that the coder spends on one tile's tensors."""


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

    def values(self, params: Sequence[Tensor]) -> Params:
        """Return ``params`` rounded to the lattice, as float32 weights."""
        pairs = zip(params, self.indices, strict=True)
        return [torch.round(p / step_size(i)).mul_(step_size(i)) for p, i in pairs]

    def round(self, params: Sequence[Tensor]) -> Rounded:
        """Return the weights and symbols of ``params``."""
        tensors = [
            QuantisedTensor(
                torch.round(p / step_size(i)).to(torch.int32).cpu().numpy(), UniformStep(i)
            )
            for p, i in zip(params, self.indices, strict=True)
        ]
        return _rounded(tensors, params)


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
    lattices: Sequence[tuple[Grid, Tensor]],
    generator: torch.Generator,
) -> list[float]:
    """Measure every tensor's rise of the mean squared error per unit of weight variance.

    Args:
        lattices: pairs of a grid and its target; the first few are used as probes.
        generator: CPU generator of the noise.

    Returns:
        One positive number per tensor: d(MSE) / d(variance of one of its weights).
    """
    probes = [lattices[i % len(lattices)] for i in range(_PROBES)]

    def error(weights: Params, probe: tuple[Grid, Tensor]) -> float:
        return float((kernel.forward(weights, probe[0]) - probe[1]).square().mean())

    still = [error(params, probe) for probe in probes]
    floor = 1e-6 * sum(still) + 1e-12
    result = []
    for index, p in enumerate(params):
        span = _NOISE * _spread(p)
        rise = 0.0
        for probe, before in zip(probes, still, strict=True):
            noise = (torch.rand(p.shape, generator=generator) - 0.5).mul_(span).to(p)
            # both signs, so that the slope at an unfinished fit cancels and curvature remains
            for moved in (p + noise, p - noise):
                rise += error([*params[:index], moved, *params[index + 1 :]], probe) - before
        result.append(max(rise, floor) / (2 * _PROBES) / (p.numel() * span**2 / 12))
    return result


def _spread(p: Tensor) -> float:
    return max(float(p.square().mean().sqrt()), 1e-4)


def lattice_for_rate(
    params: Sequence[Tensor], sensitivity: Sequence[float], bits: float, cost: Cost
) -> UniformLattice:
    """Choose steps by sensitivity so that the symbols cost at most ``bits`` bits.

    The steps keep fixed ratios, in quarter octaves (which the file stores briefly); their common
    index is the smallest that meets the rate.

    Args:
        bits: what the symbols may cost.
        cost: the coder's own account, in bits.
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

    def spent(base: int) -> float:
        return cost(at(base).round(params).tensors)

    # halving the steps costs a bit per weight: a good guess, then gallop and bisect
    size = sum(p.numel() for p in params)
    guess = nearest_step_index(widest[0] / 16)
    guess += round(STEPS_PER_OCTAVE * (spent(guess) - bits) / size)
    guess = min(max(guess, 0), STEP_INDICES - 1)
    reach = 2
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
