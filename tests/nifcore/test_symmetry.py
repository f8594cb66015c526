"""Networks in order: the same pictures, ascending biases, fewer bytes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from nifcore.architecture import Architecture
from nifcore.bitstream import code_length, pack, unpack
from nifcore.errors import CorruptBitstream, UsageError
from nifcore.header import CRC_BYTES, Colour, EntropyModel, Header, NetShape, header_bytes
from nifcore.network import forward, pixel_grid
from nifcore.symmetry import in_order
from nifcore.tensors import QuantisedTensor, UniformStep
from tests.golden.synthetic import HEADERS, tiles_of

PLAIN = replace(HEADERS["synthetic-ordered"], entropy_model=EntropyModel.ADAPTIVE)
ORDERED = HEADERS["synthetic-ordered"]
HIDDEN_BIASES = (1, 3, 5, 7, 9, 13, 15)


def rendered(header: Header, tensors: list[QuantisedTensor]) -> torch.Tensor:
    """Render in double precision, where the order of sums does not show."""
    arch = Architecture.of(header)
    grid = pixel_grid(arch, 7, 9, torch.device("cpu"))
    tables = replace(grid.genesis, y=grid.genesis.y.double(), x=grid.genesis.x.double())
    modulation = grid.modulation and replace(
        grid.modulation, y=grid.modulation.y.double(), x=grid.modulation.x.double()
    )
    weights = [torch.from_numpy(t.values()).double() for t in tensors]
    return forward(arch, weights, replace(grid, genesis=tables, modulation=modulation))


def test_the_picture_stays_the_same() -> None:
    (tensors,) = tiles_of("any", PLAIN)
    ordered = in_order(ORDERED, tensors)
    found, expected = rendered(ORDERED, ordered), rendered(PLAIN, tensors)
    assert expected.std() > 0.05, "a picture that shows something"
    assert torch.allclose(found, expected, rtol=0, atol=1e-9)
    assert any((a.symbols != b.symbols).any() for a, b in zip(tensors, ordered, strict=True))


def test_biases_of_hidden_layers_ascend_from_0_and_others_do_not_change() -> None:
    (tensors,) = tiles_of("any", PLAIN)
    ordered = in_order(ORDERED, tensors)
    for index, (before, after) in enumerate(zip(tensors, ordered, strict=True)):
        assert after.step == before.step
        if index in HIDDEN_BIASES:
            assert after.symbols.tolist() == sorted(np.abs(before.symbols).tolist())
    assert ordered[-1].symbols.tolist() == tensors[-1].symbols.tolist()
    assert in_order(PLAIN, tensors) == tensors


def test_order_saves_what_there_are_orders_and_signs() -> None:
    """log2(n!) + n bits per layer, up to what equal biases and the simple model leave."""
    (tensors,) = tiles_of("any", PLAIN)
    ordered = in_order(ORDERED, tensors)
    saved = 8 * (len(pack(PLAIN, [tensors])) - len(pack(ORDERED, [ordered])))
    sizes = [*ORDERED.genesis.hidden, *(ORDERED.modulation or ORDERED.genesis).hidden]
    ideal = sum(float(np.log2(np.arange(1, n + 1)).sum()) + n for n in sizes)
    assert 0.8 * ideal < saved < 1.1 * ideal


def test_the_account_of_what_is_not_in_order_is_that_of_what_is() -> None:
    (tensors,) = tiles_of("any", PLAIN)
    data = pack(ORDERED, [in_order(ORDERED, tensors)])
    bits = 8 * (len(data) - len(header_bytes(ORDERED)) - CRC_BYTES)
    assert code_length(ORDERED, tensors) == pytest.approx(bits, rel=2e-3)


def test_what_is_not_in_order_is_not_coded() -> None:
    (tensors,) = tiles_of("any", PLAIN)
    with pytest.raises(UsageError, match="must ascend"):
        pack(ORDERED, [tensors])


def small(bias: list[int]) -> tuple[Header, list[QuantisedTensor]]:
    header = Header(
        3, 2, Colour.GREY, NetShape((len(bias),), 1), entropy_model=EntropyModel.ORDERED
    )
    tensors = [
        QuantisedTensor(np.arange(int(np.prod(shape)), dtype=np.int32).reshape(shape), STEP)
        for shape in header.tensor_shapes()
    ]
    tensors[1] = QuantisedTensor(np.array(bias, dtype=np.int32), STEP)
    return header, tensors


STEP = UniformStep(960)


@pytest.mark.parametrize(
    "bias", [[0], [0, 0, 0], [5, 5, 6], [0, 2**31 - 1], [2**31 - 1, 2**31 - 1], [1, 300, 70_000]]
)
def test_extreme_biases_round_trip(bias: list[int]) -> None:
    header, tensors = small(bias)
    _, (found,) = unpack(pack(header, [tensors]))
    assert [t.symbols.tolist() for t in found] == [t.symbols.tolist() for t in tensors]


def test_biases_that_leave_32_bits_are_corrupt(monkeypatch: pytest.MonkeyPatch) -> None:
    header, tensors = small([2**31 - 1, 2**31 - 1])
    # differences of 0 that become large ones
    monkeypatch.setattr(
        "nifcore.entropy.ascending_differences",
        lambda symbols: np.full_like(symbols, 2**30 - 1),
    )
    data = pack(header, [tensors])
    with pytest.raises(CorruptBitstream, match="beyond 32 bits"):
        unpack(data)


def test_a_symbol_without_an_opposite_is_refused() -> None:
    header, tensors = small([1, 2])
    tensors[0] = QuantisedTensor(np.full((2, 6), -(2**31), dtype=np.int32), STEP)
    with pytest.raises(UsageError, match=r"-2\*\*31"):
        in_order(header, tensors)
