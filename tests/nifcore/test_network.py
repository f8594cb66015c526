import math

import numpy as np
import pytest
import torch

from nifcore.architecture import Architecture
from nifcore.header import NetShape
from nifcore.network import (
    forward,
    from_bytes,
    initialise,
    make_grid,
    pixel_grid,
    to_bytes,
)

CPU = torch.device("cpu")
SMALL = Architecture(NetShape((9, 7), 5), NetShape((6, 3), 2), 3)


def by_the_formula(arch, params, y, x):
    """The mathematics of docs/format.md for one coordinate, in plain Python and float64."""
    weights = [p.double().numpy() for p in params]

    def encode(frequencies):
        features = [y, x]
        for i in range(frequencies):
            for c in (y, x):
                phase = arch.base**i * math.pi * c
                features += [math.sin(phase), math.cos(phase)]
        return np.array(features)

    def run(tensors, frequencies, period):
        value = encode(frequencies)
        pairs = list(zip(tensors[::2], tensors[1::2], strict=True))
        for weight, bias in pairs[:-1]:
            value = np.sin(period * (weight @ value + bias))
        return pairs[-1][0] @ value + pairs[-1][1]

    split = arch.genesis_tensors
    period = arch.omega
    if arch.modulation is not None:
        period += arch.sigma * run(weights[split:], arch.modulation.frequencies, arch.omega)[0]
    return run(weights[:split], arch.genesis.frequencies, period)


@pytest.mark.parametrize("modulation", [NetShape((6, 3), 2), None])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_forward_is_the_published_formula(modulation, channels):
    arch = Architecture(NetShape((9, 7, 5), 5), modulation, channels)
    params = initialise(arch, torch.Generator().manual_seed(1), [])
    ys = torch.tensor([-1.0, -0.3, 0.77], dtype=torch.float64)
    xs = torch.tensor([-0.9, 0.0, 0.2, 1.0], dtype=torch.float64)

    output = forward(arch, params, make_grid(arch, ys, xs, CPU))

    assert output.shape == (channels, 3, 4)
    for row, y in enumerate(ys.tolist()):
        for col, x in enumerate(xs.tolist()):
            expected = by_the_formula(arch, params, y, x)
            np.testing.assert_allclose(output[:, row, col].numpy(), expected, atol=2e-4)


def test_pixel_grid_spans_minus_one_to_one_and_a_single_row_lies_at_zero():
    grid = pixel_grid(SMALL, 1, 5, CPU)

    assert grid.genesis.y[0].tolist() == [0.0]
    assert grid.genesis.x[0].tolist() == [-1.0, -0.5, 0.0, 0.5, 1.0]


def test_a_lattice_holds_the_pixels_it_names():
    params = initialise(SMALL, torch.Generator().manual_seed(2), [])
    grid = pixel_grid(SMALL, 11, 14, CPU)

    whole = forward(SMALL, params, grid)
    part = forward(SMALL, params, grid.lattice(4, 3, 1))

    torch.testing.assert_close(part, whole[:, 3::4, 1::4], rtol=0, atol=1e-5)


def test_initial_weights_stay_within_sirens_bounds_and_fill_them():
    arch = Architecture(NetShape((64, 48), 16), NetShape((16,), 4), 3)
    params = initialise(arch, torch.Generator().manual_seed(0), [0.1, -0.2, 0.3])

    bounds = [1 / 66, None, math.sqrt(6 / 64) / 30, None, math.sqrt(6 / 48) / 30, None, 1 / 18]
    for p, bound in zip(params, bounds, strict=False):
        if bound is not None:
            assert 0.95 * bound < p.abs().max() <= bound
    assert params[5].tolist() == pytest.approx([0.1, -0.2, 0.3])


def test_parameter_count_of_the_published_configuration():
    arch = Architecture(NetShape((120, 40, 28, 16), 16), NetShape((16, 8), 4), 3)

    assert arch.parameters == 14_992


def test_bytes_survive_the_way_to_network_output_and_back():
    pixels = torch.arange(256, dtype=torch.uint8).view(16, 16, 1)

    assert torch.equal(to_bytes(from_bytes(pixels)), pixels)


def test_output_is_rounded_to_the_nearest_byte_and_clamped():
    levels = torch.tensor([-40.0, 0.49, 0.51, 127.49, 127.51, 254.51, 300.0, 254.49]).double()

    found = to_bytes((levels / 127.5 - 1).view(1, 2, 4)).flatten().tolist()

    assert found == [0, 0, 1, 127, 128, 255, 255, 254]
