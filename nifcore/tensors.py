"""Quantised tensors: integer symbols and the exact rule that turns them into weights.

Both lattices are specified in ``docs/format.md``, section "Lattices".
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nifcore.errors import UsageError
from nifcore.header import LatticeKind

STEPS_PER_OCTAVE = 32
STEP_INDICES = 2048
"""Step indices run from 0 to 2047: steps from 2**-40 up to just below 2**24."""

_UNIT_INDEX = 40 * STEPS_PER_OCTAVE
_SYMBOL_MIN = -(2**31)
_SYMBOL_MAX = 2**31 - 1


def _root_mantissas() -> tuple[int, ...]:
    """Integers nearest to 2**(23 + j/32): nested integer square roots take the 32nd root."""
    mantissas = []
    for j in range(STEPS_PER_OCTAVE):
        root = 1 << STEPS_PER_OCTAVE * 24 + j
        for _ in range(STEPS_PER_OCTAVE.bit_length() - 1):
            root = math.isqrt(root)
        mantissas.append((root + 1) >> 1)
    return tuple(mantissas)


STEP_MANTISSAS = _root_mantissas()


@dataclass(frozen=True)
class UniformStep:
    """Step of the uniform lattice: about 2**(index / 32 - 40), for index 0 to 2047."""

    index: int

    def __post_init__(self) -> None:
        if not 0 <= self.index < STEP_INDICES:
            raise UsageError(f"step index is {self.index}; 0 to {STEP_INDICES - 1} is accepted")


@dataclass(frozen=True)
class PublishedStep:
    """Lattice of the published encoder: 2 to 8 bits, and the bound as 16 raw half bits.

    The bound is finite and not negative, so ``bound_bits`` runs from 0 to 0x7BFF.
    """

    bits: int
    bound_bits: int

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 8:
            raise UsageError(f"published lattice of {self.bits} bits; 2 to 8 is accepted")
        if not 0 <= self.bound_bits < 0x7C00:
            raise UsageError(
                f"bound bits are {self.bound_bits:#06x}; a finite half >= 0 is accepted"
            )

    @property
    def bound(self) -> float:
        """The largest magnitude of the lattice."""
        return float(np.uint16(self.bound_bits).view(np.float16))


Step = UniformStep | PublishedStep


@dataclass(frozen=True, eq=False)
class QuantisedTensor:
    """One weight or bias as it is coded.

    Attributes:
        symbols: int32 array, (out, in) or (out,); any int32 for :class:`UniformStep`,
            magnitudes below 2**(bits - 1) for :class:`PublishedStep`.
        step: how symbols become values.
    """

    symbols: NDArray[np.int32]
    step: Step

    def __post_init__(self) -> None:
        symbols = np.asarray(self.symbols)
        if symbols.ndim not in (1, 2) or symbols.size == 0:
            raise UsageError(f"symbols have shape {symbols.shape}; (out, in) or (out,) is accepted")
        if symbols.dtype.kind not in "iu":
            raise UsageError(f"symbols have dtype {symbols.dtype}; integers are accepted")
        low, high = int(symbols.min()), int(symbols.max())
        least, most = _SYMBOL_MIN, _SYMBOL_MAX
        if isinstance(self.step, PublishedStep):
            most = (1 << self.step.bits - 1) - 1
            least = -most
        if low < least or high > most:
            raise UsageError(
                f"symbols run from {low} to {high}; {least} to {most} is accepted for {self.step}"
            )
        object.__setattr__(self, "symbols", symbols.astype(np.int32, copy=False))

    @property
    def lattice(self) -> LatticeKind:
        """The kind of lattice that :attr:`step` belongs to."""
        return LatticeKind.UNIFORM if isinstance(self.step, UniformStep) else LatticeKind.PUBLISHED

    def values(self) -> NDArray[np.float32]:
        """Weights as float32, of the shape of ``symbols``; exact on every platform."""
        if isinstance(self.step, UniformStep):
            return self.symbols.astype(np.float32) * np.float32(step_size(self.step.index))
        unit = self.symbols.astype(np.float16) / np.float16((1 << self.step.bits - 1) - 1)
        bound = np.uint16(self.step.bound_bits).view(np.float16)
        return (unit * bound).astype(np.float32)


def step_size(index: int) -> float:
    """Return the step of ``index`` (0 to 2047): a float32 value, as a Python float."""
    step = UniformStep(index)
    octave, position = divmod(step.index, STEPS_PER_OCTAVE)
    return math.ldexp(STEP_MANTISSAS[position], octave - _UNIT_INDEX // STEPS_PER_OCTAVE - 23)


def nearest_step_index(step: float, *, base: int = 0, grain: int = 1) -> int:
    """Return the index ``base + grain * k`` whose step is nearest to ``step`` in ratio.

    Side information is shortest when the indices of a tile differ by multiples of 8, a quarter of
    an octave: pass one index of the tile as ``base`` and 8 as ``grain``.

    Raises:
        UsageError: ``step`` is not a finite number above 0.
    """
    if not (math.isfinite(step) and step > 0):
        raise UsageError(f"step is {step}; a finite number above 0 is accepted")
    distance = math.log2(step) * STEPS_PER_OCTAVE + _UNIT_INDEX - base
    least, most = -(base // grain), (STEP_INDICES - 1 - base) // grain
    return base + grain * min(max(round(distance / grain), least), most)
