import pytest
import torch

from nifcore.errors import UsageError
from nifcore.gpu.base import SingleKernel
from nifcore.gpu.lattices import LatticeStore
from nifcore.gpu.layout import Layout
from nifcore.gpu.stacked import StackedKernel
from nifcore.header import NetShape
from nifcore.losses import Objective
from nifcore.network import Architecture, forward, initialise, pixel_grid

triton = pytest.importorskip("triton", reason="Triton has no build for this machine")

from nifcore.gpu.fused import FusedKernel, Tuning, batch_kernel, padded, single_kernel  # noqa: E402

SHAPES = [
    Architecture(NetShape((19, 11, 7), 3), NetShape((9, 5), 2), 3),
    Architecture(NetShape((33, 9), 0), None, 4, omega=20.0),
    Architecture(NetShape((11,), 3), NetShape((5,), 1), 1, sigma=4.0),
]
MSE = Objective("mse")
SMALL = Tuning(strip=2, warps=4, chunk=16, programs=4)
TOLERANCE = {"tf32x3": 1e-4, "tf32": 2e-2, "bf16": 6e-2}
"""Relative error of gradients; the interpreter multiplies in float32 whatever TF32 is asked.

In float32 a phase of a hundred radians is 4e-6 off, whatever computes it, and every layer
multiplies that by its slope: the gradients of any two kernels are up to 6e-5 from autograd's in
float64, and half as far from each other.
"""


def name(arch):
    return "x".join(map(str, arch.genesis.hidden))


def problem(arch, device, sizes=((11, 20), (10, 19), (11, 19)), stride=2, indices=(0, 3, 1)):
    """Return weights, tiles and what they see, of sizes that leave tails in every direction."""
    generator = torch.Generator().manual_seed(sum(map(sum, sizes)))
    targets = [torch.rand(arch.channels, *size, generator=generator) * 2 - 1 for size in sizes]
    networks = [initialise(arch, generator, []) for _ in sizes]
    # beyond the first phases, so that the range reduction works
    networks = [[3.0 * p for p in params] for params in networks]
    weights = Layout(arch).pack(networks, device)
    store = LatticeStore(arch, [t.to(device) for t in targets], stride, device)
    return networks, targets, weights, store.gather(torch.tensor(indices, device=device))


def truth(arch, params, target, stride, index, objective):
    """Return loss, gradient and error of one network in float64 by autograd."""
    row, col = divmod(index, stride)
    grid = pixel_grid(arch, *target.shape[1:], torch.device("cpu")).lattice(stride, row, col)
    for tables in filter(None, (grid.genesis, grid.modulation)):
        object.__setattr__(tables, "y", tables.y.double())
        object.__setattr__(tables, "x", tables.x.double())
    part = target[:, row::stride, col::stride].double()
    leaves = [p.double().requires_grad_(True) for p in params]
    output = forward(arch, leaves, grid)
    loss = objective.value(output, part)
    loss.backward()
    gradient = torch.cat([leaf.grad.flatten() for leaf in leaves])
    return loss.item(), gradient, (output - part).square().mean().item()


def check(kernel, arch, device, objective, tolerance, **sizes):
    stride = sizes.get("stride", 2)
    indices = sizes.get("indices", (0, 3, 1))
    networks, targets, weights, batch = problem(arch, device, **sizes)

    losses, gradients, errors = kernel.loss_and_gradient(weights, batch, objective)

    for item, (params, target) in enumerate(zip(networks, targets, strict=True)):
        loss, gradient, error = truth(arch, params, target, stride, indices[item], objective)
        assert float(losses[item]) == pytest.approx(loss, rel=tolerance)
        assert float(errors[item]) == pytest.approx(error, rel=tolerance)
        found = gradients[item].double().cpu()
        assert float((found - gradient).norm() / gradient.norm()) < tolerance


@pytest.mark.parametrize("objective", [MSE, Objective("l1"), Objective("log_cosh")], ids=str)
@pytest.mark.parametrize("arch", SHAPES, ids=name)
def test_stacked_gradients_are_autograds(arch, objective, device):
    check(StackedKernel(arch), arch, device, objective, TOLERANCE["tf32x3"])


@pytest.mark.parametrize("arch", SHAPES, ids=name)
def test_fused_gradients_are_autograds(arch, device):
    check(FusedKernel(arch, "tf32x3", SMALL), arch, device, MSE, TOLERANCE["tf32x3"])


@pytest.mark.parametrize("pixel", ["l1", "log_cosh"])
def test_fused_losses_are_the_references(pixel, device):
    arch = SHAPES[2]
    check(FusedKernel(arch, "tf32x3", SMALL), arch, device, Objective(pixel), TOLERANCE["tf32x3"])


@pytest.mark.parametrize("kind", ["stacked", "fused"])
def test_the_structural_term_leaves_padding_out(kind, device):
    arch = SHAPES[2]
    kernel = StackedKernel(arch) if kind == "stacked" else FusedKernel(arch, "tf32x3", SMALL)
    sizes = {"sizes": ((13, 15), (12, 14)), "stride": 1, "indices": (0, 0)}
    check(kernel, arch, device, Objective("log_cosh", "dssim", 0.1), TOLERANCE["tf32x3"], **sizes)


def coarse(precision, device):
    """Return the relative error of the gradient with products of a precision."""
    arch = Architecture(NetShape((18, 8), 2), NetShape((6,), 1), 3)
    _, _, weights, batch = problem(arch, device)
    weights = weights / 3.0  # as initialised: phases of a few radians
    exact = StackedKernel(arch).loss_and_gradient(weights, batch, MSE)[1]
    found = FusedKernel(arch, precision, SMALL).loss_and_gradient(weights, batch, MSE)[1]
    return float((found - exact).norm() / exact.norm())


def test_tf32_products_stay_within_their_precision(device):
    assert coarse("tf32", device) < TOLERANCE["tf32"]


@pytest.mark.gpu
def test_bfloat16_products_stay_within_their_precision(cuda):
    # the interpreter has no matrix product of bfloat16
    assert coarse("bf16", cuda) < TOLERANCE["bf16"]


@pytest.mark.parametrize(
    ("arch", "tuning"),
    [(SHAPES[2], Tuning(1, 4, 16, 1)), (SHAPES[0], Tuning(4, 4, 64, 1000))],
    ids=["finely", "coarsely"],
)
def test_how_the_work_is_cut_changes_nothing_but_rounding(arch, tuning, device):
    _, _, weights, batch = problem(arch, device)
    exact = StackedKernel(arch).loss_and_gradient(weights, batch, MSE)[1]

    found = FusedKernel(arch, "tf32x3", tuning).loss_and_gradient(weights, batch, MSE)[1]

    assert float((found - exact).norm() / exact.norm()) < TOLERANCE["tf32x3"]


def test_the_same_input_gives_the_same_bits(device):
    arch = SHAPES[2]
    _, _, weights, batch = problem(arch, device, sizes=((9, 12), (8, 11), (9, 11)))
    kernel = FusedKernel(arch, "tf32", SMALL)

    first, second = (kernel.loss_and_gradient(weights, batch, MSE)[1] for _ in range(2))

    assert torch.equal(first, second)


@pytest.mark.parametrize("size", [(1, 1), (3, 17)])
def test_rendering_is_the_reference(size, device):
    arch = SHAPES[0]
    params = initialise(arch, torch.Generator().manual_seed(1), [])
    grid = pixel_grid(arch, *size, device)
    kernel = SingleKernel(arch, FusedKernel(arch, tuning=SMALL))
    weights = [p.to(device) for p in params]

    output = kernel.forward(weights, grid)

    torch.testing.assert_close(output, forward(arch, weights, grid), rtol=0, atol=1e-5)


def test_one_network_fits_the_interface_of_the_other_kernels(device):
    arch = SHAPES[2]
    params = [p.to(device) for p in initialise(arch, torch.Generator().manual_seed(2), [])]
    grid = pixel_grid(arch, 5, 18, device)
    target = torch.rand(1, 5, 18, generator=torch.Generator().manual_seed(3)).to(device)
    kernel = single_kernel(arch)

    loss, gradients, error = kernel.loss_and_gradient(params, grid, target, MSE)

    assert kernel.name == "triton"
    assert [g.shape for g in gradients] == [p.shape for p in params]
    expected = (forward(arch, params, grid) - target).square().mean()
    assert float(loss) == pytest.approx(float(expected), rel=2e-3)
    assert float(error) == pytest.approx(float(expected), rel=2e-3)


def test_widths_are_padded_to_powers_of_two():
    assert [padded(width) for width in (1, 16, 17, 120, 260)] == [16, 16, 32, 128, 512]


def test_what_the_programs_cannot_hold_is_refused():
    with pytest.raises(UsageError, match="precision is 'fp4'; accepted are tf32, tf32x3, bf16"):
        FusedKernel(SHAPES[0], "fp4")
    with pytest.raises(UsageError, match="600 features; at most 128"):
        FusedKernel(Architecture(NetShape((600, 600), 2), None, 3))
    assert batch_kernel(Architecture(NetShape((600, 600), 2), None, 3)).name == "stacked"
    assert batch_kernel(SHAPES[0]).name == "triton"
