"""Weights trained on a lattice keep it where the budget is exceeded by a little."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from nifcore.quantise import UniformLattice
from nifcore.tensors import nearest_step_index, step_size
from nifcore.trimming import within

SIZES = (400, 40)
INDEX = nearest_step_index(0.02)
STEP = step_size(INDEX)
LATTICE = UniformLattice((INDEX, INDEX))
MAGNITUDES = [np.full((20, 20), 4.0), np.full(40, 4.0)]


def cost(tensors):
    """Bits by a formula like the entropy model's: fewer for smaller symbols."""
    symbols = [t.symbols.astype(np.float64) for t in tensors]
    return sum(float((4.0 * np.log2(1.0 + q * q / (8.69 * 16.0 + 1.0))).sum()) for q in symbols)


def weights(seed=0, scatter=0.5):
    """Weights that lie ``scatter`` steps or less away from their lattice."""
    random = np.random.default_rng(seed)
    found = []
    for shape in ((20, 20), (40,)):
        symbols = np.round(random.laplace(0.0, 5.0, shape))
        found.append(symbols * STEP + random.uniform(-scatter, scatter, shape) * STEP)
    return [torch.tensor(p, dtype=torch.float32) for p in found]


def meet(params, bits, sensitivity=(1.0, 1.0)):
    return within(params, LATTICE, sensitivity, lambda _: MAGNITUDES, bits, cost)


def test_within_the_budget_nothing_but_rounding_happens() -> None:
    params = weights()
    plain = LATTICE.round(params)

    found = meet(params, cost(plain.tensors))

    for tensor, expected in zip(found.tensors, plain.tensors, strict=True):
        np.testing.assert_array_equal(tensor.symbols, expected.symbols)


@pytest.mark.parametrize("share", [0.999, 0.99, 0.96])
def test_a_little_above_symbols_go_one_towards_zero_on_the_same_lattice(share: float) -> None:
    params = weights()
    plain = LATTICE.round(params)
    bits = share * cost(plain.tensors)

    found = meet(params, bits)

    assert cost(found.tensors) <= bits
    assert cost(found.tensors) > bits - 16.0
    for tensor, before, values in zip(found.tensors, plain.tensors, found.values, strict=True):
        assert tensor.step == before.step
        moved = np.abs(before.symbols) - np.abs(tensor.symbols)
        assert set(np.unique(moved)) <= {0, 1}
        np.testing.assert_allclose(values.numpy(), tensor.symbols * STEP, rtol=1e-6)


def test_of_equal_symbols_those_next_to_the_border_go_first() -> None:
    params = weights()
    plain = LATTICE.round(params)

    found = meet(params, 0.97 * cost(plain.tensors))

    exact = params[0].numpy() / STEP
    before, after = plain.tensors[0].symbols, found.tensors[0].symbols
    distance = np.abs(before) - np.abs(exact)  # away from zero
    checked = 0
    for size in range(1, 12):
        equal = np.abs(before) == size
        moved = distance[equal & (before != after)]
        left = distance[equal & (before == after)]
        if len(moved) and len(left):
            checked += 1
            assert moved.min() > left.max()
    assert checked > 3


def test_the_tensor_that_matters_less_gives_more() -> None:
    random = np.random.default_rng(3)
    symbols = np.round(random.laplace(0.0, 5.0, (2, 400)))
    part = (symbols + random.uniform(-0.5, 0.5, symbols.shape)) * STEP
    params = [torch.tensor(p, dtype=torch.float32) for p in part]
    lattice = UniformLattice((INDEX, INDEX))
    plain = lattice.round(params)
    magnitudes = [np.full(400, 4.0)] * 2

    found = within(
        params, lattice, (100.0, 1.0), lambda _: magnitudes, 0.99 * cost(plain.tensors), cost
    )

    moved = [
        int((a.symbols != b.symbols).sum())
        for a, b in zip(found.tensors, plain.tensors, strict=True)
    ]
    assert moved[1] > 5 * max(1, moved[0])


def test_far_above_the_steps_become_coarser() -> None:
    params = weights()
    bits = 0.5 * cost(LATTICE.round(params).tensors)

    found = meet(params, bits)

    assert cost(found.tensors) <= bits
    assert all(tensor.step.index > INDEX for tensor in found.tensors)


def test_weights_on_the_lattice_already_still_meet_it() -> None:
    params = [
        torch.round(p / STEP) * STEP for p in weights()
    ]  # rounding moved none, so that none may go back
    bits = 0.99 * cost(LATTICE.round(params).tensors)

    assert cost(meet(params, bits).tensors) <= bits
