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
from nifcore.tensors import PublishedStep, QuantisedTensor, UniformStep, nearest_step_index, step_size

_NOISE = 1 / 16
"""Probe noise spans this fraction of a tensor's standard deviation."""
_PROBES = 3
_WIDEST = 1.0
"""Widest step, as a multiple of a tensor's root mean square."""
_GAUSSIAN = 2 * math.pi * math.e

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
    values = [torch.from_numpy(t.values()).to(p) for t, p in zip(tensors, like, strict=True)]
    return Rounded(values, tensors)


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

    The common factor is bisected on a cheap estimate, which is scaled once to the coder's own
    account of the result.

    Args:
        bits: what the symbols may cost.
        cost: the coder's own account, in bits.
    """
    spreads = [_spread(p) for p in params]
    sizes = [p.numel() for p in params]
    ideal = [1.0 / math.sqrt(h) for h in sensitivity]

    def estimate(factor: float) -> float:
        # differential entropy of a Gaussian, floored where a tensor rounds to almost nothing
        return sum(
            n * 0.5 * math.log2(1.0 + _GAUSSIAN * (s / min(factor * d, _WIDEST * s)) ** 2)
            for n, s, d in zip(sizes, spreads, ideal, strict=True)
        )

    def at(factor: float) -> UniformLattice:
        # a tensor that seemed insensitive must not be rounded away altogether
        pairs = zip(ideal, spreads, strict=True)
        return UniformLattice(
            tuple(nearest_step_index(min(factor * d, _WIDEST * s)) for d, s in pairs)
        )

    wanted = bits
    lattice = at(1.0)
    for _ in range(3):
        low, high = -60.0, 60.0
        for _ in range(60):
            middle = (low + high) / 2
            if estimate(math.exp(middle)) > wanted:
                low = middle
            else:
                high = middle
        lattice = at(math.exp(high))
        real = cost(lattice.round(params).tensors)
        if 0.995 * bits <= real <= bits:
            break
        wanted *= bits / real * 0.998
    return lattice


def coarser(lattice: UniformLattice, sizes: Sequence[int], increments: int) -> UniformLattice:
    """Widen steps by ``increments`` index steps in all, spread evenly, largest tensors first."""
    rounds, rest = divmod(increments, len(sizes))
    order = sorted(range(len(sizes)), key=lambda i: -sizes[i])
    extra = set(order[:rest])
    return UniformLattice(
        tuple(index + rounds + (i in extra) for i, index in enumerate(lattice.indices))
    )
