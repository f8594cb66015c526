"""Golden files whose weights come from a rule, so that their bytes can be asserted exactly.

Run this to write those that are missing; it never changes one that exists.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from PIL import Image

from nifcore.bitstream import pack
from nifcore.header import Colour, EntropyModel, Extension, Header, LatticeKind, NetShape
from nifcore.symmetry import in_order
from nifcore.tensors import PublishedStep, QuantisedTensor, UniformStep
from nifcore.tiling import horizontal, vertical
from tests.golden.catalogue import FOLDER, add
from tests.nifcore.reference_decoder import decode_file

Tiles = list[list[QuantisedTensor]]

HEADERS = {
    "synthetic-default": Header(
        768, 512, Colour.SRGB, NetShape((120, 40, 28, 16), 16), NetShape((16, 8), 4)
    ),
    "synthetic-tiles": Header(
        37,
        23,
        Colour.SRGB_ALPHA,
        NetShape((9, 5), 3),
        NetShape((4,), 1),
        base=1.5,
        omega=25.0,
        sigma=0.125,
        tiles=(3, 2),
        extensions=(Extension(2, "grün".encode()), Extension(1, bytes(range(20)))),
    ),
    "synthetic-published": Header(
        40, 30, Colour.SRGB, NetShape((12, 8), 6), NetShape((4,), 2), lattice=LatticeKind.PUBLISHED
    ),
    "synthetic-extreme": Header(5, 1, Colour.GREY, NetShape((3, 3), 0)),
    "synthetic-ordered": Header(
        768,
        512,
        Colour.SRGB,
        NetShape((117, 51, 35, 28, 23), 16),
        NetShape((16, 8), 4),
        entropy_model=EntropyModel.ORDERED,
    ),
    "synthetic-cuts": Header(
        41,
        29,
        Colour.SRGB,
        NetShape((9, 5), 3),
        NetShape((4,), 1),
        entropy_model=EntropyModel.ORDERED,
        cuts=(horizontal(11), vertical(30), 0, horizontal(4), 0, 0, vertical(7), 0, 0),
    ),
    "synthetic-plain-cuts": Header(
        23,
        31,
        Colour.GREY,
        NetShape((6, 4), 2),
        lattice=LatticeKind.PUBLISHED,
        cuts=(vertical(22), horizontal(1), 0, 0, 0),
    ),
}


RENDERED = (
    "synthetic-tiles",
    "synthetic-published",
    "synthetic-cuts",
    "synthetic-plain-cuts",
)
"""The others are too large for a slow decoder, or their weights for floats."""


def rule(seed: int) -> Iterator[int]:
    """Yield 16-bit numbers: the upper bits of a linear congruential generator."""
    state = seed
    while True:
        state = (state * 6364136223846793005 + 1442695040888963407) % 2**64
        yield state >> 48


def tiles_of(name: str, header: Header) -> Tiles:
    """Return the tensors of a golden file: bell-shaped symbols, scales by row and column."""
    numbers = rule(sum(name.encode()))
    extremes = (0, 1, -1, 2**31 - 1, -(2**31), 70_000, -300, 16_384) if "extreme" in name else ()
    tiles = [
        [
            _tensor(shape, number, header.lattice, numbers, extremes)
            for number, shape in enumerate(header.tensor_shapes())
        ]
        for _ in range(header.tile_count)
    ]
    return [in_order(header, tensors) for tensors in tiles]


def _tensor(
    shape: tuple[int, ...],
    number: int,
    lattice: LatticeKind,
    numbers: Iterator[int],
    extremes: Sequence[int],
) -> QuantisedTensor:
    rows, columns = (*shape, 1)[:2]
    widths = [20 + next(numbers) % 60 * (2 if number % 2 else 1) for _ in range(columns)]
    symbols = []
    for _ in range(rows):
        height = 50 + next(numbers) % 100
        for width in widths:
            bell = sum(next(numbers) for _ in range(4)) - 2 * 65535
            symbols.append(bell * width * height // (100 * 65536))
    symbols = [extremes[i % len(extremes)] for i in range(len(symbols))] if extremes else symbols
    if lattice is LatticeKind.PUBLISHED:
        bits = 8 - number % 3
        most = 2 ** (bits - 1) - 1
        step: UniformStep | PublishedStep = PublishedStep(bits, 0x2C00 + next(numbers) % 0x800)
        symbols = [min(max(symbol, -most), most) for symbol in symbols]
    else:
        step = UniformStep(960 + 8 * (next(numbers) % 9) - 32)
    return QuantisedTensor(np.array(symbols, dtype=np.int32).reshape(shape), step)


def main() -> None:
    """Write the files that are missing; small ones with pixels by the second decoder."""
    for name, header in HEADERS.items():
        data = pack(header, tiles_of(name, header))
        if add(name, data) and name in RENDERED:
            pixels = np.array(decode_file(data).render(), dtype=np.uint8)
            Image.fromarray(pixels.squeeze()).save(FOLDER / f"{name}.png", optimize=True)


if __name__ == "__main__":
    main()
