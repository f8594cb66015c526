"""The coder's account of B sets of symbols, and steps that meet a rate, on the device.

:func:`nifcore.bitstream.code_length` and :func:`nifcore.quantise.lattice_for_rate` on the host take
tens of milliseconds per network, twenty times an encode: more than the fit itself on a GPU. Here
the same integers are computed for all networks at once, and nothing waits for the host. A test
holds both to the same numbers.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nifcore import bitstream, entropy
from nifcore.architecture import Architecture
from nifcore.entropy import Role
from nifcore.gpu.layout import Layout
from nifcore.header import Header, LatticeKind
from nifcore.probability import MAX_TABLE_SCALE, SCALE_INDEX, SCALE_UNIT, code_lengths
from nifcore.quantise import _GRAIN, _WIDEST
from nifcore.tensors import STEP_INDICES, STEPS_PER_OCTAVE, UniformStep, step_size

_GRAIN_EXPONENT = _GRAIN.bit_length() - 1


class Account:
    """Counts bits and chooses steps for networks of one header, on the uniform lattice.

    Args:
        header: of the file; its size and tiles do not matter.
        device: where to compute.
    """

    def __init__(self, header: Header, device: torch.device) -> None:
        assert header.lattice is LatticeKind.UNIFORM
        self.layout = Layout(Architecture.of(header))
        self._roles = bitstream._roles(header)
        self._owners = self.layout.owners(device)
        self.steps = torch.tensor([step_size(i) for i in range(STEP_INDICES)], device=device)
        radii, starts, lengths = code_lengths()
        self._radii = torch.from_numpy(radii).to(device)
        self._starts = torch.from_numpy(starts).to(device)
        self._lengths = torch.from_numpy(lengths).to(device)
        self._numbers = torch.tensor(SCALE_INDEX, device=device)
        self._profiles = [
            torch.from_numpy(
                entropy.prior_of(role, shape[1] if len(shape) == 2 else 1, UniformStep(0)).profile
            ).to(device)
            for role, shape in zip(self._roles, self.layout.shapes, strict=True)
        ]
        self._flat = torch.full((1,), 64, dtype=torch.int64, device=device)

    def symbols(self, weights: Tensor, indices: Tensor) -> Tensor:
        """Round ``weights`` (B, N) with steps ``indices`` (B, tensors); int64 (B, N)."""
        steps = self.steps[indices][:, self._owners]
        return torch.round(weights / steps).to(torch.int64)

    def bits(self, symbols: Tensor, indices: Tensor) -> Tensor:
        """Return the bits of every network's symbols and steps, float64 (B,)."""
        differences = (indices.diff(dim=1) >> _GRAIN_EXPONENT)[:, :, None]
        exponent = torch.full_like(indices[:, 0], 4 - _GRAIN_EXPONENT)
        fixed = bitstream._INDEX_BITS + bitstream._GRAIN_BITS
        total = fixed + self._length(differences, _scales(differences, exponent, self._flat))
        for number, view in enumerate(self._matrices(symbols)):
            role, rows = self._roles[number], view.shape[1]
            exponent = _exponent(role, indices[:, number], rows)
            coded = _ascending_differences(view) if role is Role.ORDERED_BIAS else view
            scales = _scales(coded, exponent, self._profiles[number])
            total = total + self._length(coded, scales)
        return total

    def magnitudes(self, symbols: Tensor, indices: Tensor) -> Tensor:
        """Return the magnitude that the model expects of every symbol, float64 (B, N)."""
        found = []
        for number, view in enumerate(self._matrices(symbols)):
            exponent = _exponent(self._roles[number], indices[:, number])
            found.append(_scales(view, exponent, self._profiles[number]).flatten(1))
        return torch.cat(found, 1).double() / SCALE_UNIT

    def choose(self, weights: Tensor, sensitivity: Tensor, bits: Tensor) -> Tensor:
        """Return step indices (B, tensors) by sensitivity, as fine as ``bits`` (B,) allow.

        Args:
            sensitivity: (B, tensors), see :func:`nifcore.quantise.sensitivities`.
        """
        ideal = sensitivity.double().rsqrt()
        views = self.layout.views(weights)
        sizes = [view.flatten(1).square().mean(1).sqrt().clamp_min(1e-4) for view in views]
        widest = _WIDEST * torch.stack(sizes, 1).double()
        low = torch.full_like(bits, -1, dtype=torch.int64)  # does not meet the rate
        high = torch.full_like(low, STEP_INDICES - 1)
        for _ in range(STEP_INDICES.bit_length()):
            middle = (low + high + 1) // 2
            middle = middle.minimum(high)
            indices = self._at(middle, ideal, widest)
            enough = self.bits(self.symbols(weights, indices), indices) <= bits
            high = torch.where(enough, middle, high)
            low = torch.where(enough, low, middle.minimum(high - 1))
        return self._at(high, ideal, widest)

    def _at(self, base: Tensor, ideal: Tensor, widest: Tensor) -> Tensor:
        """Return the indices that go with the first tensor's ``base`` (B,)."""
        factor = self.steps[base].double() / ideal[:, 0]
        steps = torch.minimum(factor[:, None] * ideal, widest)
        distance = steps.log2() * STEPS_PER_OCTAVE + 40 * STEPS_PER_OCTAVE - base[:, None]
        least = -(base // _GRAIN)[:, None]
        most = ((STEP_INDICES - 1 - base) // _GRAIN)[:, None]
        grains = torch.round(distance / _GRAIN).to(torch.int64)
        return base[:, None] + _GRAIN * grains.maximum(least).minimum(most)

    def _matrices(self, flat: Tensor) -> list[Tensor]:
        views = self.layout.views(flat)
        return [view if view.dim() == 3 else view[:, :, None] for view in views]

    def _length(self, symbols: Tensor, scales: Tensor) -> Tensor:
        """Return what :func:`nifcore.entropy.code_length` does, float64 (B,)."""
        shifts = torch.zeros_like(scales)
        for shift in range(entropy._MAX_SCALE.bit_length() - entropy._SCALE_BITS):
            shifts += scales >> shift > MAX_TABLE_SCALE
        numbers = self._numbers[scales >> shifts]
        half = torch.bitwise_left_shift(torch.ones_like(shifts), shifts) >> 1
        coarse = symbols + half >> shifts
        radius = self._radii[numbers]
        place = coarse + radius
        escaped = (place < 0) | (place > 2 * radius)
        place = torch.where(escaped, 2 * radius + 1, place)
        excess = (coarse.abs() - radius).clamp_min(1).double()
        escape = torch.where(escaped, 2 + 2 * excess.log2().floor(), 0.0)
        lengths = self._lengths[self._starts[numbers] + place]
        return (shifts + lengths + escape).sum((1, 2))


def _exponent(role: Role, indices: Tensor, rows: int = 1) -> Tensor:
    octaves = entropy._UNIT_INDEX[role] - indices + STEPS_PER_OCTAVE // 2
    octaves = octaves.div(STEPS_PER_OCTAVE, rounding_mode="floor")
    if role is Role.ORDERED_BIAS:
        octaves = octaves - entropy.closeness(rows)
    return octaves.clamp(entropy._MIN_EXPONENT, entropy._MAX_EXPONENT)


def _ascending_differences(symbols: Tensor) -> Tensor:
    """Return what is coded of an ordered bias (B, n, 1) whose units are not in order yet."""
    ascending = symbols.abs().sort(1).values
    differences = ascending.diff(dim=1, prepend=torch.zeros_like(ascending[:, :1]))
    half = differences + 1 >> 1
    return torch.where(differences & 1 == 1, -half, half)


def _scales(symbols: Tensor, exponent: Tensor, profile: Tensor) -> Tensor:
    """Return what the entropy model expects, int64 like ``symbols`` (B, out, in), in 1/32."""
    e = entropy
    unit = e._UNIT_BITS
    magnitude = symbols.abs().clamp_max(e.MAX_MAGNITUDE)
    column_sums = magnitude.cumsum(1) - magnitude
    total = column_sums.sum(2, keepdim=True)
    rows = torch.arange(symbols.shape[1], device=symbols.device)[None, :, None]
    start = torch.bitwise_left_shift(torch.full_like(exponent, e._MEAN_SYMBOLS), exponent + unit)
    mean = e._FLAT * ((total << unit) + start[:, None, None])
    mean = _floor(mean, rows * profile.sum() + e._FLAT * e._MEAN_SYMBOLS)
    sums = (column_sums << unit) + e._COLUMN_ROWS * (mean * profile >> e._PROFILE_BITS)
    expected = _floor(sums, rows + e._COLUMN_ROWS).clamp_min(1)
    weight = torch.where(rows == 0, e._FIRST_ROW_SYMBOLS, e._ROW_SYMBOLS)
    width = torch.full_like(rows, symbols.shape[2])
    start = _floor(weight * expected.sum(2, keepdim=True), width)
    observed = start + (magnitude.cumsum(2) - magnitude << unit)
    predicted = start + expected.cumsum(2) - expected
    return _floor(expected * observed, predicted).clamp(1, e._MAX_SCALE)


def _floor(a: Tensor, b: Tensor) -> Tensor:
    return a.div(b, rounding_mode="floor")
