"""Lattices: steps against real powers of two, weights against exact rationals."""

from __future__ import annotations

import math
from decimal import Decimal, localcontext
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nifcore.errors import UsageError
from nifcore.header import LatticeKind
from nifcore.tensors import (
    PublishedStep,
    QuantisedTensor,
    UniformStep,
    nearest_step_index,
    step_size,
)


def test_every_step_is_the_float_nearest_to_its_power_of_two() -> None:
    with localcontext(prec=60):
        for index in range(2048):
            exact = Decimal(2) ** (Decimal(index) / 32 - 40)
            step = step_size(index)
            spacing = Decimal(math.ulp(step)) * 2**29  # of 32-bit floats
            assert np.float32(step) == step
            assert abs(Decimal(step) - exact) <= spacing / 2
    assert step_size(1280) == 1.0


@given(st.floats(2.0**-39, 2.0**23))
def test_nearest_index_is_nearest_in_ratio(step: float) -> None:
    index = nearest_step_index(step)
    error = abs(math.log2(step_size(index) / step))
    for other in (index - 1, index + 1):
        assert error <= abs(math.log2(step_size(other) / step)) + 1e-6


@given(st.floats(2.0**-50, 2.0**30), st.integers(0, 2047), st.sampled_from((1, 2, 4, 8, 32)))
def test_nearest_index_keeps_to_the_grain(step: float, base: int, grain: int) -> None:
    index = nearest_step_index(step, base=base, grain=grain)
    assert 0 <= index <= 2047
    assert (index - base) % grain == 0
    wanted = 32 * math.log2(step) + 1280
    for other in (index - grain, index + grain):
        if 0 <= other <= 2047:
            assert abs(index - wanted) <= abs(other - wanted) + 1e-6


@pytest.mark.parametrize("step", [0.0, -1.0, math.nan, math.inf])
def test_nearest_index_refuses_what_is_no_step(step: float) -> None:
    with pytest.raises(UsageError):
        nearest_step_index(step)


def round_to_bits(value: Fraction, bits: int, least: int) -> Fraction:
    """Round to ``bits`` significant bits, to nearest even, no finer than 2**least."""
    if value == 0:
        return value
    exponent = math.floor(math.log2(abs(value)))
    while Fraction(2) ** exponent > abs(value):
        exponent -= 1
    while Fraction(2) ** (exponent + 1) <= abs(value):
        exponent += 1
    unit = Fraction(2) ** max(exponent - bits + 1, least)
    return round(value / unit) * unit


@given(st.lists(st.integers(-(2**31), 2**31 - 1), min_size=1), st.integers(0, 2047))
def test_uniform_weights_are_two_exact_roundings(symbols: list[int], index: int) -> None:
    tensor = QuantisedTensor(np.array(symbols, dtype=np.int32), UniformStep(index))
    values = tensor.values()
    assert values.dtype == np.float32
    for symbol, value in zip(symbols, values.tolist(), strict=True):
        rounded = round_to_bits(Fraction(symbol), 24, 0)
        assert Fraction(value) == round_to_bits(rounded * Fraction(step_size(index)), 24, -149)


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("bound_bits", [0, 1, 0x03FF, 0x0400, 0x2ED3, 0x3C00, 0x5BFF, 0x7BFF])
def test_published_weights_are_two_roundings_to_half(bits: int, bound_bits: int) -> None:
    most = 2 ** (bits - 1) - 1
    symbols = np.arange(-most, most + 1, dtype=np.int32)
    step = PublishedStep(bits, bound_bits)
    values = QuantisedTensor(symbols, step).values()
    assert values.dtype == np.float32
    for symbol, value in zip(symbols.tolist(), values.tolist(), strict=True):
        unit = round_to_bits(Fraction(symbol, most), 11, -24)
        assert Fraction(value) == round_to_bits(unit * Fraction(step.bound), 11, -24)


def test_bad_steps_and_symbols_are_refused() -> None:
    for index in (-1, 2048):
        with pytest.raises(UsageError, match="2047"):
            UniformStep(index)
    for bits, bound_bits in ((1, 0), (9, 0), (8, 0x7C00), (8, 0xBC00), (8, -1)):
        with pytest.raises(UsageError):
            PublishedStep(bits, bound_bits)
    step = UniformStep(0)
    for symbols in (
        np.zeros((2, 2, 2), dtype=np.int32),
        np.zeros(0, dtype=np.int32),
        np.zeros(3, dtype=np.float32),
        np.array([2**31]),
        np.array([-(2**31) - 1]),
    ):
        with pytest.raises(UsageError):
            QuantisedTensor(symbols, step)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="from -8 to 1"):
        QuantisedTensor(np.array([1, -8]), PublishedStep(4, 0))


def test_wider_integers_become_int32() -> None:
    tensor = QuantisedTensor(np.array([[1, -2]], dtype=np.int64), UniformStep(1280))
    assert tensor.symbols.dtype == np.int32
    assert tensor.lattice is LatticeKind.UNIFORM
    assert tensor.values().tolist() == [[1.0, -2.0]]
