"""The range coder against exact arithmetic, a library, and the entropy itself."""

from __future__ import annotations

import math
from itertools import accumulate

import constriction
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nifcore.errors import CorruptBitstream
from nifcore.rangecoder import TOTAL_BITS, RangeDecoder, RangeEncoder
from tests.nifcore.reference_decoder import ReferenceDecoder, ReferenceEncoder

TOTAL = 1 << TOTAL_BITS


def cumulative_of(weights: list[int]) -> list[int]:
    """Frequencies of at least 1 in proportion to ``weights``, as partial sums up to 2**20."""
    spare, total = TOTAL - len(weights), sum(weights)
    sums = [0, *accumulate(weights)]
    return [i + s * spare // total for i, s in enumerate(sums)]


def encode(symbols: list[int], tables: list[list[int]]) -> bytes:
    encoder = RangeEncoder()
    for symbol, cumulative in zip(symbols, tables, strict=True):
        encoder.encode(cumulative[symbol], cumulative[symbol + 1] - cumulative[symbol])
    return encoder.finish()


@st.composite
def messages(draw: st.DrawFn) -> tuple[list[int], list[list[int]]]:
    """Symbols and the table of each; tables from nearly certain to nearly flat."""
    weights = st.lists(st.integers(0, 2**30), min_size=1, max_size=40)
    tables = [cumulative_of([*draw(weights), 1]) for _ in range(draw(st.integers(1, 3)))]
    chosen = draw(st.lists(st.sampled_from(tables), max_size=150))
    symbols = [draw(st.integers(0, len(table) - 2)) for table in chosen]
    return symbols, chosen


@given(messages())
def test_bytes_equal_those_of_exact_arithmetic(message: tuple[list[int], list[list[int]]]) -> None:
    symbols, tables = message
    exact = ReferenceEncoder()
    for symbol, cumulative in zip(symbols, tables, strict=True):
        exact.narrow(cumulative[symbol], cumulative[symbol + 1] - cumulative[symbol], TOTAL_BITS)
    data = encode(symbols, tables)
    assert data == exact.finish()
    # The bytes spell a number inside the exact interval, and no shorter string does.
    value = int.from_bytes(data, "big") << exact.digits - 8 * len(data)
    assert exact.low <= value < exact.low + exact.width
    decoder, second = RangeDecoder(data), ReferenceDecoder(data)
    for symbol, cumulative in zip(symbols, tables, strict=True):
        assert decoder.decode(cumulative) == symbol
        assert second.symbol(cumulative) == symbol
    decoder.finish()


numbers_with_sizes = st.integers(0, 70).flatmap(
    lambda count: st.tuples(st.integers(0, 2**count - 1), st.just(count))
)


@given(st.lists(numbers_with_sizes))
def test_plain_bits_round_trip(numbers: list[tuple[int, int]]) -> None:
    encoder = RangeEncoder()
    for value, count in numbers:
        encoder.encode_bits(value, count)
    data = encoder.finish()
    assert len(data) <= -(-sum(count for _, count in numbers) // 8) + 1
    decoder, second = RangeDecoder(data), ReferenceDecoder(data)
    for value, count in numbers:
        assert decoder.decode_bits(count) == value
        assert second.bits(count) == value
    decoder.finish()


@pytest.mark.parametrize("symbol", [0, 1])
@pytest.mark.parametrize("rare", [1, 2, 15, 16, 17])
def test_long_runs_at_the_edges_of_the_interval(symbol: int, rare: int) -> None:
    """Runs of the last symbol keep the interval's end at a carry; of the first, its start."""
    for cumulative in ([0, rare, TOTAL], [0, TOTAL - rare, TOTAL]):
        for count in (0, 1, 7, 1000):
            symbols = [symbol] * count + [1 - symbol, symbol]
            data = encode(symbols, [cumulative] * len(symbols))
            decoder = RangeDecoder(data)
            assert [decoder.decode(cumulative) for _ in symbols] == symbols
            decoder.finish()


def test_a_carry_runs_through_many_words() -> None:
    """Hold the interval across a boundary for long, then settle it below and above."""
    for last in (0, 1):
        encoder, exact = RangeEncoder(), ReferenceEncoder()
        # Halves leave the boundary at 1/2 of the whole in the middle of every later interval.
        for start, frequency in [(TOTAL // 4, TOTAL // 2)] * 400 + [(TOTAL // 2 * last, 1)]:
            encoder.encode(start, frequency)
            exact.narrow(start, frequency, TOTAL_BITS)
        data = encoder.finish()
        assert data == exact.finish()
        run = b"\x7f" + b"\xff" * 45 if last == 0 else b"\x80" + b"\x00" * 45
        assert data.startswith(run)


def test_the_empty_message_takes_no_bytes() -> None:
    assert RangeEncoder().finish() == b""
    RangeDecoder(b"").finish()


@pytest.mark.parametrize("spread", [0.4, 3.0, 25.0])
def test_length_is_that_of_a_library_and_of_the_entropy(spread: float) -> None:
    reach = int(12 * spread) + 2
    weights = [math.ceil(2**30 * math.exp(-abs(x) / spread)) for x in range(-reach, reach + 1)]
    cumulative = cumulative_of(weights)
    p = np.diff(cumulative) / TOTAL
    symbols = np.random.default_rng(1).choice(len(p), size=20_000, p=p)
    data = encode(symbols.tolist(), [cumulative] * len(symbols))
    ideal = float(-np.log2(p)[symbols].sum()) / 8
    model = constriction.stream.model.Categorical(p, perfect=True)
    other = constriction.stream.queue.RangeEncoder()
    other.encode(symbols.astype(np.int32), model)
    assert ideal <= len(data) <= ideal * 1.0001 + 2
    assert len(data) == pytest.approx(other.num_bits() / 8, rel=1e-3, abs=6)


def test_short_messages_waste_less_than_two_bytes() -> None:
    rng = np.random.default_rng(2)
    cumulative = cumulative_of([1, 5, 20, 5, 1])
    p = np.diff(cumulative) / TOTAL
    waste = []
    for _ in range(500):
        symbols = rng.choice(5, size=int(rng.integers(1, 30)), p=p)
        data = encode(symbols.tolist(), [cumulative] * len(symbols))
        waste.append(len(data) + np.log2(p[symbols]).sum() / 8)
    assert max(waste) < 2
    assert np.mean(waste) < 1


def test_a_stream_of_the_wrong_length_is_refused() -> None:
    cumulative = cumulative_of([3, 1, 4, 1, 5, 9, 2, 6])
    symbols = [int(s) for s in np.random.default_rng(3).integers(0, 8, 500)]
    data = encode(symbols, [cumulative] * len(symbols))

    def read(stream: bytes) -> list[int]:
        decoder = RangeDecoder(stream)
        found = [decoder.decode(cumulative) for _ in symbols]
        decoder.finish()
        return found

    assert read(data) == symbols
    for stream in (data + bytes(3), data[:-4], data[: len(data) // 2], b""):
        with pytest.raises(CorruptBitstream):
            read(stream)


@settings(max_examples=300)
@given(st.binary(max_size=30))
def test_any_bytes_decode_or_are_refused_soon(data: bytes) -> None:
    cumulative = cumulative_of([3, 1, 4, 1, 5])
    decoder = RangeDecoder(data)

    def read() -> None:
        for _ in range(8 * (len(data) + 8)):
            decoder.decode(cumulative)

    # Each symbol takes at least a bit here, so the bytes must run out.
    with pytest.raises(CorruptBitstream):
        read()
