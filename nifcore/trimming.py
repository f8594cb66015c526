"""Meeting a bit budget with weights that were trained on a lattice.

Their rounded values are what the training made good for, so that another lattice, even one two
percent coarser, undoes it: half a decibel of a tile at 0.23 bpp. A few symbols one nearer to zero
save as much, and of those that lie next to the border between two symbols nobody notices.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from nifcore.flat import flattened, parts, spread
from nifcore.network import Params
from nifcore.quantise import (
    Cost,
    Magnitudes,
    Rounded,
    UniformLattice,
    coarser,
    squared_widths,
)
from nifcore.tensors import STEP_INDICES

_MOST = 0.05
"""Share of the budget up to which symbols are moved; what is further above takes coarser steps."""
_LEAST_BITS = 4.0
"""By which the wish grows at least from one try to the next."""


def within(
    params: Params,
    lattice: UniformLattice,
    sensitivity: Sequence[float],
    magnitudes: Magnitudes,
    bits: float,
    cost: Cost,
) -> Rounded:
    """Round ``params``, a little coarser where the budget demands it.

    Args:
        params: float32 tensors, as trained.
        lattice: that they were trained on.
        sensitivity: of every tensor, see :func:`nifcore.quantise.sensitivities`.
        magnitudes: tells what the entropy model expects; asked only where the budget is exceeded.
        bits: what they may cost; exceeded only if the coarsest steps there are do.
        cost: what tensors really cost, in bits.
    """
    rounded = lattice.round(params)
    over = cost(rounded.tensors) - bits
    if over <= 0.0:
        return rounded
    if over <= _MOST * bits:
        expected = magnitudes(rounded.tensors)
        found = _Trimming(params, lattice, sensitivity, expected).until(bits, cost, over)
        if found is not None:
            return found
    for increments in range(1, STEP_INDICES):
        rounded = coarser(lattice, increments).round(params)
        if cost(rounded.tensors) <= bits:
            break
    return rounded


class _Trimming:
    """The symbols of a tile that may go one nearer to zero, cheapest first.

    Only those are candidates that rounding had moved away from zero. One that lies e steps from
    its weight lies 1 - e steps from it afterwards: the squared error grows by ``1 - 2 e`` steps
    squared, times the tensor's sensitivity. The bits of a symbol q are about
    ``4 log2(1 + q^2 / c)`` (:func:`nifcore.entropy.expected_magnitudes`).
    """

    def __init__(
        self,
        params: Params,
        lattice: UniformLattice,
        sensitivity: Sequence[float],
        magnitudes: Sequence[NDArray[np.float64]],
    ) -> None:
        self._params = params
        self._steps = steps = lattice.steps(params)
        self._lattice = lattice
        exact = flattened(params) / steps
        self._symbols = symbols = torch.round(exact)
        sizes, known = symbols.abs(), flattened(squared_widths(magnitudes, params))
        away = (sizes > exact.abs()).nonzero()[:, 0]
        size, error = sizes[away], sizes[away] - exact[away].abs()
        saved = 4.0 * torch.log2((size**2 + known[away]) / ((size - 1.0) ** 2 + known[away]))
        weight = spread(list(sensitivity), params)[away] * steps[away] ** 2
        order = torch.argsort(weight * (1.0 - 2.0 * error) / saved)
        self._candidates = away[order]
        self._saved = torch.cumsum(saved[order].double(), 0)

    def until(self, bits: float, cost: Cost, over: float) -> Rounded | None:
        """Move symbols until the cost is within ``bits``; None if too many would have to.

        Args:
            over: bits too many of the symbols as they are.
        """
        wanted = over
        while len(self._saved) and wanted <= min(2.0 * _MOST * bits, float(self._saved[-1])):
            rounded = self._moved(wanted)
            over = cost(rounded.tensors) - bits
            if over <= 0.0:
                return rounded
            wanted += max(over, _LEAST_BITS)
        return None

    def _moved(self, wanted: float) -> Rounded:
        """Return the weights with as many symbols moved as save about ``wanted`` bits."""
        count = int(torch.searchsorted(self._saved, wanted)) + 1
        chosen = self._candidates[:count]
        symbols = self._symbols.clone()
        symbols[chosen] -= symbols[chosen].sign()
        # a multiple of a step rounds to itself
        return self._lattice.round(parts(symbols * self._steps, self._params))
