"""The adaptive model: round trips, the page's rule, and how near it comes to the entropy."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from nifcore import entropy
from nifcore.entropy import Prior, Role
from nifcore.errors import CorruptBitstream
from nifcore.probability import SCALE_INDEX, table
from nifcore.rangecoder import RangeDecoder, RangeEncoder
from nifcore.tensors import PublishedStep, UniformStep


def flat(exponent: int, columns: int) -> Prior:
    return Prior(exponent, np.full(columns, 64, dtype=np.int64))


def encode(symbols: entropy.Symbols, prior: Prior) -> bytes:
    encoder = RangeEncoder()
    entropy.encode_symbols(encoder, symbols, prior)
    return encoder.finish()


def decode(data: bytes, rows: int, prior: Prior) -> entropy.Symbols:
    decoder = RangeDecoder(data)
    symbols = entropy.decode_symbols(decoder, rows, prior)
    decoder.finish()
    return symbols


@st.composite
def matrices(draw: st.DrawFn) -> entropy.Symbols:
    shape = draw(npst.array_shapes(min_dims=2, max_dims=2, max_side=12))
    reach = draw(st.sampled_from((0, 2, 100, 2**15, 2**31 - 1)))
    return draw(npst.arrays(np.int32, shape, elements=st.integers(-reach - 1, reach)))


@given(matrices(), st.integers(-2, 13), st.data())
def test_any_symbols_round_trip(
    symbols: entropy.Symbols, exponent: int, data: st.DataObject
) -> None:
    columns = symbols.shape[1]
    profile = data.draw(npst.arrays(np.int64, columns, elements=st.integers(1, 64)))
    prior = Prior(exponent, profile)
    stream = encode(symbols, prior)
    assert np.array_equal(decode(stream, len(symbols), prior), symbols)
    estimate = entropy.code_length(symbols, prior)
    assert len(stream) == pytest.approx(estimate / 8, rel=1e-3, abs=2)


def test_extreme_symbols_round_trip() -> None:
    symbols = np.array(
        [[2**31 - 1, -(2**31), 0, 1], [-1, 2**30, -(2**31), 5], [0, 0, 0, 0]], dtype=np.int32
    )
    for exponent in (-2, 5, 13):
        prior = flat(exponent, 4)
        assert np.array_equal(decode(encode(symbols, prior), 3, prior), symbols)


def gaussian(rng: np.random.Generator, scales: np.ndarray) -> entropy.Symbols:
    symbols: entropy.Symbols = np.rint(rng.normal(size=scales.shape) * scales).astype(np.int32)
    return symbols


def ideal_bits(scales: np.ndarray) -> float:
    """Entropy of rounded Gaussians of known scale, for scales of several steps."""
    return float(np.log2(scales * np.sqrt(2 * np.pi * np.e)).sum())


def test_scales_of_rows_and_columns_are_learned() -> None:
    """Within 2 % of a coder that was told every row's and column's scale; one scale costs 13 %."""
    rng = np.random.default_rng(0)
    rows, columns = 2 ** rng.normal(size=(120, 1)), 2 ** rng.normal(size=(1, 66))
    scales = 16 * rows * columns + 2
    symbols = gaussian(rng, scales)
    found = 8 * len(encode(symbols, flat(4, 66)))
    ideal = ideal_bits(scales)
    one_scale = ideal_bits(np.full_like(scales, symbols.std()))
    assert ideal < found < 1.02 * ideal
    assert one_scale > 1.13 * ideal


def test_equal_scales_cost_little_more_than_the_entropy() -> None:
    rng = np.random.default_rng(1)
    scales = np.full((100, 60), 14.0)
    symbols = gaussian(rng, scales)
    for exponent, most in ((-2, 1.01), (3, 1.01), (8, 1.01), (13, 1.03)):  # 3 is right
        assert 8 * len(encode(symbols, flat(exponent, 60))) < most * ideal_bits(scales)


def test_the_prior_of_a_first_layer_falls_with_frequency() -> None:
    prior = entropy.prior_of(Role.FIRST, 2 + 4 * 32, UniformStep(1136))
    assert prior.exponent == 0
    assert prior.profile[:6].tolist() == [64] * 6
    exact = [64 * 2 ** (-f / 4) for f in range(32) for _ in range(4)]
    assert prior.profile[2:].tolist() == [max(1, int(p)) for p in exact]
    assert set(entropy.prior_of(Role.HIDDEN, 130, UniformStep(960)).profile) == {64}


def test_the_prior_follows_the_step() -> None:
    # One octave finer doubles the symbols; between, the nearest octave; clamped at both ends.
    for role in Role:
        at = [entropy.prior_of(role, 6, UniformStep(index)).exponent for index in range(2048)]
        assert all(a - b in (0, 1) for a, b in pairwise(at))
        assert at[0] == 13
        assert at[-1] == -2
    assert entropy.prior_of(Role.BIAS, 1, UniformStep(1168 - 96)).exponent == 3
    assert entropy.prior_of(Role.BIAS, 1, UniformStep(1168 - 96 - 17)).exponent == 4
    assert [entropy.prior_of(r, 1, PublishedStep(8, 0)).exponent for r in Role] == [5, 4, 6, 6, 6]


def test_expected_magnitudes_follow_the_symbols() -> None:
    rng = np.random.default_rng(2)
    scales = np.outer(np.ones(200), 2.0 ** np.arange(1, 7))
    symbols = gaussian(rng, scales)
    expected = entropy.expected_magnitudes(symbols, flat(4, 6))
    late = np.median(expected[100:], axis=0)
    assert late == pytest.approx(scales[0] * np.sqrt(2 / np.pi), rel=0.25)
    # The rate term of its docstring, against the code length itself.
    q, c = symbols.astype(float), 8.69 * expected**2 + 1
    rate = (4 * np.log2(1 + q * q / c) + np.log2(c) / 2).sum()
    assert rate == pytest.approx(entropy.code_length(symbols, flat(4, 6)), rel=0.01)


def test_escapes_beyond_32_bits_are_refused() -> None:
    prior = flat(-2, 1)

    def escaped(*bits: tuple[int, int]) -> bytes:
        encoder = RangeEncoder()
        start, end = table(SCALE_INDEX[8]).cumulative[-2:]
        encoder.encode(start, end - start)
        for value, count in bits:
            encoder.encode_bits(value, count)
        return encoder.finish()

    # negative, 31 ones and a zero, 31 more bits: magnitudes up to radius + 2**32 - 1
    fits = escaped((1, 1), *[(1, 1)] * 30, (0, 1), (2**30 - 10, 30))
    assert decode(fits, 1, prior)[0, 0] < -(2**30)
    for stream in (
        escaped((0, 1), *[(1, 1)] * 31, (0, 1), (0, 31)),
        escaped((1, 1), *[(1, 1)] * 31, (0, 1), (2**31 - 1, 31)),
        escaped((0, 1), *[(1, 1)] * 32, (0, 1), (0, 32)),
        escaped((0, 1), *[(1, 1)] * 500),
    ):
        with pytest.raises(CorruptBitstream, match="32 bits"):
            decode(stream, 1, prior)
