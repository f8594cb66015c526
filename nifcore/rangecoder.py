"""A range coder over integers below 2**53: exact everywhere, portable to JavaScript numbers.

The state is an interval [low, low + width) within 48 bits. A symbol that occupies
[start, start + frequency) of 2**bits narrows it in proportion; when the width falls below 2**32,
the upper 16 bits are settled and leave as one big-endian word. Specified in ``docs/format.md``,
section "Range coder"; the scheme is G. N. N. Martin's of 1979.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence

from nifcore.errors import CorruptBitstream

TOTAL_BITS = 20
"""Frequencies of a table add up to 2**20."""

_FULL = 1 << 48
_LEAST = 1 << 32
_MASK = _LEAST - 1
_STATE_BYTES = 6


class RangeEncoder:
    """Writes symbols into the shortest byte string that a :class:`RangeDecoder` reads back."""

    def __init__(self) -> None:
        self._low = 0
        self._width = _FULL
        self._words: list[int] = []

    def encode(self, start: int, frequency: int, bits: int = TOTAL_BITS) -> None:
        """Write one symbol that occupies [start, start + frequency) of 2**bits, bits <= 20."""
        self._encode_all(((start, frequency),), bits)

    def encode_all(self, intervals: Iterable[tuple[int, int]]) -> None:
        """Write many symbols, each a (start, frequency) of 2**20."""
        self._encode_all(intervals, TOTAL_BITS)

    def encode_bits(self, value: int, count: int) -> None:
        """Write ``count`` plain bits of ``value``, upper ones first, 20 at a time."""
        while count > 0:
            take = min(count, TOTAL_BITS)
            count -= take
            self.encode(value >> count & (1 << take) - 1, 1, take)

    def _encode_all(self, intervals: Iterable[tuple[int, int]], bits: int) -> None:
        low, width, words = self._low, self._width, self._words
        for start, frequency in intervals:
            unit = width >> bits
            low += unit * start
            width = unit * frequency
            while width < _LEAST:
                word = low >> 32
                if word > 0xFFFF:
                    _carry(words)
                words.append(word & 0xFFFF)
                low = (low & _MASK) << 16
                width <<= 16
        self._low, self._width = low, width

    def finish(self) -> bytes:
        """End the stream and return all of it; at most two bytes settle the last symbols."""
        end = self._low + self._width
        for count in range(3):
            # Bytes that are not written read as zero, so the value must be a multiple.
            grain = 8 * (_STATE_BYTES - count)
            value = -(-self._low >> grain) << grain
            if value < end:
                break
        words = list(self._words)
        if value >= _FULL:
            _carry(words)
        tail = (value & _FULL - 1).to_bytes(_STATE_BYTES, "big")[:count]
        return b"".join(word.to_bytes(2, "big") for word in words) + tail


def _carry(words: list[int]) -> None:
    """Add one to the number that ``words`` spell."""
    position = len(words) - 1
    while words[position] == 0xFFFF:
        words[position] = 0
        position -= 1
    words[position] += 1


class RangeDecoder:
    """Reads back what a :class:`RangeEncoder` wrote.

    Every method raises CorruptBitstream when the bytes cannot have come from an encoder.
    """

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._width = _FULL
        self._code = int.from_bytes(data[:_STATE_BYTES].ljust(_STATE_BYTES, b"\0"), "big")
        self._position = _STATE_BYTES

    def decode(self, cumulative: Sequence[int]) -> int:
        """Read one symbol; ``cumulative`` ascends strictly from 0 to 2**20, returns its place."""
        unit = self._width >> TOTAL_BITS
        code = self._code
        target = code // unit
        if target >> TOTAL_BITS:
            raise CorruptBitstream("weights are damaged: code value outside every symbol")
        place = bisect_right(cumulative, target) - 1
        start = cumulative[place]
        self._code = code - unit * start
        self._width = unit * (cumulative[place + 1] - start)
        if self._width < _LEAST:
            self._refill()
        return place

    def decode_bits(self, count: int) -> int:
        """Read ``count`` plain bits."""
        value = 0
        while count > 0:
            take = min(count, TOTAL_BITS)
            count -= take
            unit = self._width >> take
            part = self._code // unit
            if part >> take:
                raise CorruptBitstream("weights are damaged: code value outside every symbol")
            self._code -= unit * part
            self._width = unit
            if unit < _LEAST:
                self._refill()
            value = value << take | part
        return value

    def finish(self) -> None:
        """Check that the stream ends exactly where its last symbol does."""
        settled = self._position - _STATE_BYTES
        if not settled <= len(self._data) <= settled + 2:
            raise CorruptBitstream(
                f"weights take {settled} to {settled + 2} bytes, but {len(self._data)} are stored"
            )

    def _refill(self) -> None:
        data = self._data
        while self._width < _LEAST:
            position = self._position
            if position > len(data) + _STATE_BYTES - 2:
                raise CorruptBitstream("weights end too early")
            # Behind the end the stream reads as zero.
            word = int.from_bytes(data[position : position + 2].ljust(2, b"\0"), "big")
            self._position = position + 2
            self._code = self._code << 16 | word
            self._width <<= 16
