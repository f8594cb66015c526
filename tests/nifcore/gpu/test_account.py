import pytest
import torch

from nifcore.architecture import Architecture
from nifcore.bitstream import code_length, expected_magnitudes
from nifcore.gpu.account import Account
from nifcore.header import Colour, Header, NetShape
from nifcore.network import initialise
from nifcore.quantise import UniformLattice, lattice_for_rate

HEADER = Header(
    width=64,
    height=48,
    colour=Colour.SRGB,
    genesis=NetShape((20, 11, 7), 5),
    modulation=NetShape((6, 3), 2),
)
ARCH = Architecture.of(HEADER)


def networks(count=3):
    """Return weights of different spread, so that symbols reach from zeros to escapes."""
    generator = torch.Generator().manual_seed(1)
    found = []
    for scale in (1.0, 30.0, 0.02)[:count]:
        params = initialise(ARCH, generator, [0.1, -0.2, 0.3])
        found.append([p * scale * (1 + 9 * (torch.rand(p.shape) > 0.98)) for p in params])
    return found


@pytest.mark.parametrize("base", [600, 900, 1100, 1300])
def test_bits_and_magnitudes_are_the_coders(base, device):
    torch.manual_seed(base)
    many = networks()
    grains = torch.randint(-6, 7, (len(many), len(ARCH.shapes))).cumsum(1).clamp(-30, 30)
    indices = base + 8 * (grains - grains[:, :1])
    account = Account(HEADER, device)
    weights = account.layout.pack(many, device)

    symbols = account.symbols(weights, indices.to(device))
    bits = account.bits(symbols, indices.to(device))
    magnitudes = account.magnitudes(symbols, indices.to(device))

    for item, params in enumerate(many):
        tensors = UniformLattice(tuple(indices[item].tolist())).round(params).tensors
        assert float(bits[item]) == pytest.approx(code_length(HEADER, tensors), abs=10)
        expected = [torch.from_numpy(m).flatten() for m in expected_magnitudes(HEADER, tensors)]
        torch.testing.assert_close(magnitudes[item].cpu(), torch.cat(expected))


@pytest.mark.parametrize("bits_per_weight", [2.5, 6.0])
def test_steps_are_those_that_the_host_would_choose(bits_per_weight, device):
    many = networks()
    sensitivity = torch.rand(len(many), len(ARCH.shapes)) + 0.01
    account = Account(HEADER, device)
    weights = account.layout.pack(many, device)
    wanted = torch.full((len(many),), bits_per_weight * ARCH.parameters, device=device)

    indices = account.choose(weights, sensitivity.to(device), wanted)

    spent = account.bits(account.symbols(weights, indices), indices)
    for item, params in enumerate(many):
        expected = lattice_for_rate(
            params,
            sensitivity[item].tolist(),
            float(wanted[item]),
            lambda tensors: code_length(HEADER, tensors),
        )
        # a rate below what the widest steps take is met by neither
        reached = code_length(HEADER, expected.round(params).tensors)
        assert float(spent[item]) <= max(float(wanted[item]), reached + 10)
        found = indices[item].tolist()
        assert max(abs(a - b) for a, b in zip(found, expected.indices, strict=True)) <= 8
