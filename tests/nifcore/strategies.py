"""Hypothesis strategies for headers and the tensors that fit them."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from nifcore.header import MAX_TILES, Colour, EntropyModel, Extension, Header, LatticeKind, NetShape
from nifcore.symmetry import in_order
from nifcore.tensors import PublishedStep, QuantisedTensor, Step, UniformStep
from nifcore.tiling import Box, Cuts, cuts_into


def nets(layers: int, size: int, frequencies: int) -> st.SearchStrategy[NetShape]:
    """Nets of up to ``layers`` hidden layers of up to ``size``, and so many frequencies."""
    return st.builds(
        NetShape,
        st.lists(st.integers(1, size), min_size=1, max_size=layers).map(tuple),
        st.integers(0, frequencies),
    )


extensions = st.builds(Extension, st.integers(1, 127), st.binary(max_size=40))


@st.composite
def cuts(draw: st.DrawFn, width: int, height: int, most: int) -> Cuts:
    """Cuts of a picture into at most so many tiles."""

    def divide(box: Box, tiles: int, share: float) -> tuple[int, bool]:
        down = draw(st.booleans())
        return draw(st.integers(1, max(1, box[3 if down else 2] - 1))), down

    return cuts_into(width, height, draw(st.integers(1, most)), divide)


@st.composite
def headers(draw: st.DrawFn, *, small: bool = False) -> Header:
    """Any header; if ``small``, one whose tensors are few and small enough to fill."""
    width = draw(st.integers(1, 2**31 - 1))
    height = draw(st.integers(1, 2**31 - 1))
    most = 2 if small else 300
    model = draw(st.sampled_from(EntropyModel))
    grid = st.tuples(st.integers(1, min(width, most)), st.integers(1, min(height, most))).filter(
        lambda sides: sides[0] * sides[1] <= MAX_TILES
    )
    cut = draw(cuts(width, height, 3 if small else 12))
    new = bool(model or cut)
    net = nets(2, 5, 2) if small else nets(16, 4096, 32)
    return Header(
        width=width,
        height=height,
        colour=draw(st.sampled_from(Colour)),
        genesis=draw(net),
        modulation=draw(st.none() | net),
        base=draw(st.just(1.4) | st.integers(1, 16_000).map(lambda n: n / 1000)),
        omega=draw(st.just(30.0) | st.integers(1, 10_000_000).map(lambda n: n / 1000)),
        sigma=draw(st.just(10.0) | st.integers(0, 10_000_000).map(lambda n: n / 1000)),
        tiles=(1, 1) if new else draw(grid | st.just((1, 1))),
        lattice=draw(st.sampled_from(LatticeKind)),
        entropy_model=model,
        extensions=draw(st.lists(extensions, max_size=3).map(tuple)),
        cuts=cut,
    )


def steps(lattice: LatticeKind) -> st.SearchStrategy[Step]:
    """Any step of a lattice."""
    if lattice is LatticeKind.UNIFORM:
        return st.builds(UniformStep, st.integers(0, 2047) | st.integers(940, 980))
    return st.builds(PublishedStep, st.integers(2, 8), st.integers(0, 0x7BFF))


@st.composite
def tensors(
    draw: st.DrawFn, shape: tuple[int, ...], lattice: LatticeKind, *, ordered: bool = False
) -> QuantisedTensor:
    """A tensor of a shape: small, large and extreme symbols in any mixture.

    If it is to be ``ordered``, none without an opposite.
    """
    step = draw(steps(lattice))
    if isinstance(step, PublishedStep):
        most = 2 ** (step.bits - 1) - 1
        elements = st.integers(-most, most)
    else:
        reach = draw(st.sampled_from((0, 3, 40, 5000, 2**20, 2**31 - 1)))
        elements = st.integers(-reach - (reach == 2**31 - 1 and not ordered), reach)
    return QuantisedTensor(draw(npst.arrays(np.int32, shape, elements=elements)), step)


@st.composite
def files(draw: st.DrawFn) -> tuple[Header, list[list[QuantisedTensor]]]:
    """A header and tensors for all its tiles."""
    header = draw(headers(small=True))
    ordered = header.entropy_model is EntropyModel.ORDERED
    tiles = [
        [draw(tensors(shape, header.lattice, ordered=ordered)) for shape in header.tensor_shapes()]
        for _ in range(header.tile_count)
    ]
    return header, [in_order(header, tile) for tile in tiles]
