import pytest
import torch

from nifcore.architecture import Architecture
from nifcore.devices import single_threaded
from nifcore.errors import UsageError
from nifcore.header import NetShape
from nifcore.kernels import choices, make_kernel
from nifcore.kernels.chunked import ChunkedKernel
from nifcore.losses import Objective
from nifcore.network import forward, initialise, pixel_grid

CPU = torch.device("cpu")
TOLERANCE = {torch.float32: 2e-4, torch.float64: 1e-10}
SHAPES = [
    Architecture(NetShape((120, 40, 28, 16), 16), NetShape((16, 8), 4), 3),
    Architecture(NetShape((11,), 3), NetShape((5,), 1), 1),
    Architecture(NetShape((24, 20, 18, 18, 7), 6), None, 4),
    Architecture(NetShape((17, 9), 0), NetShape((6, 5, 4), 2), 2),
]
OBJECTIVES = [
    Objective("mse"),
    Objective("l1"),
    Objective("log_cosh"),
    Objective("log_cosh", "dssim", 0.01),
]


def relative(found, expected):
    return float((found - expected).norm() / expected.norm().clamp_min(1e-30))


def problem(arch, rows, cols, dtype):
    generator = torch.Generator().manual_seed(rows * cols)
    params = [p.to(dtype) for p in initialise(arch, generator, [])]
    grid = pixel_grid(arch, rows, cols, CPU)
    for tables in filter(None, (grid.genesis, grid.modulation)):
        object.__setattr__(tables, "y", tables.y.to(dtype))
        object.__setattr__(tables, "x", tables.x.to(dtype))
    target = torch.rand(arch.channels, rows, cols, generator=generator).to(dtype) * 2 - 1
    return params, grid, target


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda o: f"{o.pixel}-{o.structural}")
@pytest.mark.parametrize("arch", SHAPES, ids=lambda a: "x".join(map(str, a.genesis.hidden)))
def test_gradients_of_the_chunked_kernel_are_autograds(arch, objective, dtype):
    params, grid, target = problem(arch, 23, 37, dtype)
    leaves = [p.clone().requires_grad_(True) for p in params]
    expected = objective.value(forward(arch, leaves, grid), target)
    expected.backward()

    # bands of 2 rows and 3 threads: a tail band, and workers with unequal shares
    kernel = ChunkedKernel(arch, band=80, threads=3)
    loss, gradients, error = kernel.loss_and_gradient(params, grid, target, objective)

    tolerance = TOLERANCE[dtype]
    assert float(loss) == pytest.approx(expected.item(), rel=tolerance)
    square = (forward(arch, params, grid) - target).square().mean()
    assert float(error) == pytest.approx(float(square), rel=tolerance)
    for leaf, gradient in zip(leaves, gradients, strict=True):
        assert relative(gradient, leaf.grad) < tolerance


@pytest.mark.parametrize("name", ["fused", "chunked", "reference"])
@pytest.mark.parametrize("size", [(1, 1), (1, 9), (8, 8), (33, 65)])
def test_forward_of_every_kernel_is_the_reference(name, size):
    arch = SHAPES[1]
    params, grid, _ = problem(arch, *size, torch.float32)

    output = make_kernel(arch, name).forward(params, grid)

    torch.testing.assert_close(output, forward(arch, params, grid), rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method.*:DeprecationWarning")
def test_the_compiled_kernel_agrees_with_the_reference():
    from torch._inductor import config

    arch = SHAPES[1]
    params, grid, target = problem(arch, 12, 16, torch.float32)
    expected = make_kernel(arch, "reference").loss_and_gradient(
        params, grid, target, Objective("mse")
    )

    # its processes for compiling load torch each; there is one thing to compile
    with config.patch(compile_threads=1):
        kernel = make_kernel(arch, "compiled")
        found = kernel.loss_and_gradient(params, grid, target, Objective("mse"))

    assert float(found[0]) == pytest.approx(float(expected[0]), rel=1e-4)
    for ours, truth in zip(found[1], expected[1], strict=True):
        assert relative(ours, truth) < 1e-3


def test_any_number_of_threads_gives_the_same_bits():
    arch = SHAPES[0]
    params, grid, target = problem(arch, 90, 70, torch.float32)

    with single_threaded():
        first, *others = (
            ChunkedKernel(arch, threads=n).loss_and_gradient(params, grid, target, Objective("mse"))
            for n in (1, 2, 5)
        )

    for other in others:
        assert all(torch.equal(a, b) for a, b in zip(first[1], other[1], strict=True))
        assert torch.equal(first[0], other[0])


def test_choice_of_kernel_says_which_and_why():
    listed = choices("reference")

    assert [c.name for c in listed if c.chosen] == ["reference"]
    assert "asked for" in next(c.reason for c in listed if c.chosen)
    best = next(c for c in choices() if c.chosen)
    assert best == next(c for c in choices() if c.available)
    assert "fastest available" in best.reason


def test_an_unknown_kernel_is_refused_with_the_known_ones():
    with pytest.raises(UsageError, match=r"'cuda9'.*fused, chunked, compiled, reference"):
        make_kernel(SHAPES[0], "cuda9")
    with pytest.raises(UsageError, match=r"'chunked:avx2'"):
        make_kernel(SHAPES[0], "chunked:avx2")
