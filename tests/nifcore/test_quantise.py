import numpy as np
import pytest
import torch

from nifcore.architecture import Architecture
from nifcore.flat import in_a_row
from nifcore.header import NetShape
from nifcore.kernels import make_kernel
from nifcore.network import forward, initialise, pixel_grid
from nifcore.quantise import (
    PublishedLattice,
    Rounding,
    UniformLattice,
    coarser,
    lattice_for_rate,
    sensitivities,
)
from nifcore.tensors import nearest_step_index, step_size

ARCH = Architecture(NetShape((20, 12), 5), NetShape((5,), 2), 3)


def weights(seed=0):
    return initialise(ARCH, torch.Generator().manual_seed(seed), [0.1, 0.0, -0.1])


def entropy(tensors):
    """Bits by the empirical distribution of each tensor's symbols, an independent yardstick."""
    bits = 0.0
    for tensor in tensors:
        _, counts = np.unique(tensor.symbols, return_counts=True)
        bits -= float((counts * np.log2(counts / counts.sum())).sum())
    return bits


def test_uniform_rounding_moves_no_weight_by_more_than_half_a_step():
    params = weights()
    index = nearest_step_index(0.003)
    lattice = UniformLattice((index,) * len(params))

    rounded = lattice.round(params)

    for p, value, seen in zip(params, rounded.values, lattice.values(params), strict=True):
        assert (p - value).abs().max() <= step_size(index) / 2 + 1e-7
        assert torch.equal(value, seen)


def test_published_rounding_is_the_published_rule():
    """Against the rule in NumPy's half precision: truncate p / bound * 127, times bound / 127."""
    params = weights(1)
    lattice = PublishedLattice(8)

    rounded = lattice.round(params)

    for p, value, seen, tensor in zip(
        params, rounded.values, lattice.values(params), rounded.tensors, strict=True
    ):
        bound = np.float16(np.abs(p.numpy()).max())
        unit = (np.clip(p.numpy(), -bound, bound) / np.float32(bound)).astype(np.float16)
        symbols = np.trunc(unit * np.float16(127)).astype(np.int8)
        expected = (symbols.astype(np.float16) / np.float16(127) * bound).astype(np.float32)
        np.testing.assert_array_equal(tensor.symbols, symbols)
        np.testing.assert_array_equal(value.numpy(), expected)
        assert torch.equal(value, seen)


def test_an_all_zero_tensor_stays_zero_on_both_lattices():
    params = [torch.zeros(3, 2)]

    for lattice in (PublishedLattice(8), UniformLattice((100,))):
        assert lattice.values(params)[0].abs().max() == 0
        assert lattice.round(params).values[0].abs().max() == 0


def test_sensitivity_predicts_the_error_that_rounding_adds():
    params = weights(2)
    kernel = make_kernel(ARCH)
    grid = pixel_grid(ARCH, 48, 40, torch.device("cpu"))
    target = forward(ARCH, params, grid)  # a perfect fit: all error comes from rounding

    h = sensitivities(kernel, params, [(grid, target)], torch.Generator().manual_seed(0))

    for index, p in enumerate(params):
        if p.numel() < 60:
            continue  # few weights round to one draw of the noise, not to its mean
        step = float(p.std()) / 12
        moved = [*params[:index], torch.round(p / step) * step, *params[index + 1 :]]
        added = float((forward(ARCH, moved, grid) - target).square().mean())
        assert added == pytest.approx(h[index] * p.numel() * step**2 / 12, rel=0.6)


@pytest.mark.parametrize("bits_per_weight", [3.0, 5.0, 7.5])
def test_the_rate_is_met_from_below_and_sensitive_tensors_get_finer_steps(bits_per_weight):
    params = weights(3)
    h = [10.0 ** (i % 3) for i in range(len(params))]
    bits = bits_per_weight * ARCH.parameters

    lattice = lattice_for_rate(params, h, bits, entropy)

    assert 0.93 * bits < entropy(lattice.round(params).tensors) <= bits
    if bits_per_weight > 4:
        assert step_size(lattice.indices[0]) == pytest.approx(
            10**0.5 * step_size(lattice.indices[1]), rel=0.1
        )


@pytest.mark.parametrize("in_row", [True, False])
def test_rounding_again_and_again_follows_the_weights_and_slopes_as_autograd_says(in_row):
    generator = torch.Generator().manual_seed(6)
    params = in_a_row(weights(5)) if in_row else weights(5)
    lattice = UniformLattice(tuple(1200 + 8 * (i % 3) for i in range(len(params))))
    widths = [torch.rand(p.shape, generator=generator) * 9 + 1 for p in params]
    rounding = Rounding(params, lattice, widths)
    rounding.weights()
    for p in params:
        p.add_(torch.randn(p.shape, generator=generator))
    expected = lattice.values(params)
    drawn = [torch.randn(p.shape, generator=generator) for p in params]
    gradients = in_a_row(drawn) if in_row else [g.clone() for g in drawn]

    found = rounding.weights()
    rounding.add_rate_gradient(gradients, 0.3)

    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    for g, before, w, c, index in zip(
        gradients, drawn, expected, widths, lattice.indices, strict=True
    ):
        w = w.double().requires_grad_(True)
        price = 0.15 * torch.log1p((w / step_size(index)).square() / c).sum()
        (slope,) = torch.autograd.grad(price, w)
        torch.testing.assert_close(g.double() - before, slope, rtol=1e-5, atol=1e-5)


def test_a_search_that_begins_nearby_finds_the_same_with_fewer_counts():
    params, h = weights(3), [10.0 ** (i % 3) for i in range(len(weights(3)))]
    counts = []

    def counted(tensors):
        counts.append(1)
        return entropy(tensors)

    lattice = lattice_for_rate(params, h, 5.0 * ARCH.parameters, counted)
    from_afar = len(counts)
    moved = [p * 1.01 for p in params]
    again = lattice_for_rate(moved, h, 5.0 * ARCH.parameters, counted, near=lattice)

    assert again == lattice_for_rate(moved, h, 5.0 * ARCH.parameters, entropy)
    assert len(counts) - from_afar < from_afar


def test_coarsening_spends_fewer_bits_each_time():
    params = weights(4)
    lattice = UniformLattice(
        tuple(nearest_step_index(float(p.abs().mean()) / 10 + 1e-4) for p in params)
    )

    spent = [entropy(coarser(lattice, n).round(params).tensors) for n in (0, 10, 30, 100)]

    assert spent == sorted(spent, reverse=True)
    assert len(set(spent)) == 4


def test_sensitivities_are_the_gauss_newton_part_of_the_curvature_whatever_the_error_is():
    params = weights(4)
    grid = pixel_grid(ARCH, 24, 20, torch.device("cpu"))
    target = torch.rand((ARCH.channels, 24, 20), generator=torch.Generator().manual_seed(1))
    generator = torch.Generator().manual_seed(0)

    found = sensitivities(make_kernel(ARCH), params, [(grid, target)] * 200, generator)

    slopes = torch.autograd.functional.jacobian(
        lambda *ps: forward(ARCH, list(ps), grid).flatten(), tuple(params)
    )
    for h, slope in zip(found, slopes, strict=True):
        assert h == pytest.approx(float(slope.square().mean(0).mean()), rel=0.3)
