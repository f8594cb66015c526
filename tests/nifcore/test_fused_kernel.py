"""The fused kernel against autograd in double precision, with every instruction set there is."""

import math
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nifcore.architecture import Architecture
from nifcore.errors import UsageError
from nifcore.header import NetShape
from nifcore.kernels import build, choices, make_kernel
from nifcore.kernels.fused import FusedKernel, LibraryMissing, load_library
from nifcore.losses import Objective
from nifcore.network import forward, initialise, pixel_grid

CPU = torch.device("cpu")
KODAK = Architecture(NetShape((120, 40, 28, 16), 16), NetShape((16, 8), 4), 3)
SMALL = Architecture(NetShape((17, 9), 3), NetShape((6, 5, 4), 2), 2)
OBJECTIVES = [
    Objective("mse"),
    Objective("l1"),
    Objective("log_cosh"),
    Objective("log_cosh", "dssim", 0.01),
]

try:
    INSTRUCTION_SETS = load_library().instruction_sets
except LibraryMissing as missing:
    pytest.skip(f"no fused kernel: {missing}", allow_module_level=True)

instruction_set = pytest.mark.parametrize("isa", INSTRUCTION_SETS)


def problem(arch, rows, cols, seed=0):
    """Random parameters, the grid of a picture, and a target that is nowhere exactly met."""
    generator = torch.Generator().manual_seed(seed)
    params = initialise(arch, generator, [])
    target = torch.rand(arch.channels, rows, cols, generator=generator) * 2 - 1
    return params, pixel_grid(arch, rows, cols, CPU), target


def doubled(grid):
    for tables in filter(None, (grid.genesis, grid.modulation)):
        object.__setattr__(tables, "y", tables.y.double())
        object.__setattr__(tables, "x", tables.x.double())
    return grid


def truth(arch, params, rows, cols, target, objective):
    """Loss, gradients and squared error by autograd in float64."""
    leaves = [p.double().requires_grad_(True) for p in params]
    output = forward(arch, leaves, doubled(pixel_grid(arch, rows, cols, CPU)))
    loss = objective.value(output, target.double())
    gradients = torch.autograd.grad(loss, leaves)
    error = (output.detach() - target).square().mean()
    return float(loss.detach()), gradients, float(error)


# relative errors of the loss, of a tensor's gradient, and of its entries beside all gradients'
# root mean square: rounding is relative to what was added up, and a bias' gradient may cancel.
# In float32 phases of tens of radians are off by 1e-6, and deep networks magnify that.
# AMX multiplies bfloat16, whose 8 bits of significand round by up to 2^-9 = 2e-3; the loss, a
# difference squared, may be off by a few times that.
TOLERANCES = {"amx": (1e-2, 5e-2, 2e-2)}
EXACT = (2e-5, 4e-5, 4e-6)


def slack(isa, pixels, error):
    """How much more the gradients of little pictures may be off.

    The rounding of N pixels averages out, to 1 / sqrt(N) of one's. And that of products shifts the
    output by about 2^-8, however near that is to the target: a gradient, the difference times
    slopes, is then off by as large a part of the difference.
    """
    few = 1 + 8 / math.sqrt(pixels)
    return few + 2**-8 / math.sqrt(error) if isa in TOLERANCES else few


def assert_agrees(found, expected, isa, pixels):
    of_loss, of_tensor, of_entry = TOLERANCES.get(isa, EXACT)
    loss, gradients, error = found
    assert float(loss) == pytest.approx(expected[0], rel=of_loss, abs=1e-2 * of_loss)
    assert float(error) == pytest.approx(expected[2], rel=of_loss, abs=1e-2 * of_loss)
    scale = max(float(g.norm()) / math.sqrt(g.numel()) for g in expected[1])
    for ours, exact in zip(gradients, expected[1], strict=True):
        assert ours.shape == exact.shape
        allowed = of_tensor * float(exact.norm()) + of_entry * scale * math.sqrt(exact.numel())
        assert float((ours - exact).norm()) <= allowed * slack(isa, pixels, expected[2])


@instruction_set
@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda o: f"{o.pixel}-{o.structural}")
@pytest.mark.parametrize("size", [(45, 83), (1, 1), (3, 200)], ids=str)
def test_gradients_are_autograds(size, objective, isa):
    params, grid, target = problem(KODAK, *size)

    found = FusedKernel(KODAK, 2, isa).loss_and_gradient(params, grid, target, objective)

    assert_agrees(found, truth(KODAK, params, *size, target, objective), isa, math.prod(size))


sizes = st.lists(st.integers(1, 40), min_size=1, max_size=5).map(tuple)
shapes = st.builds(NetShape, sizes, st.integers(0, 6))


@given(
    arch=st.builds(Architecture, shapes, st.none() | shapes, st.integers(1, 4)),
    rows=st.integers(1, 70),
    cols=st.integers(1, 70),
    objective=st.sampled_from([OBJECTIVES[0], OBJECTIVES[2]]),
    isa=st.sampled_from(INSTRUCTION_SETS),
    threads=st.integers(1, 3),
    seed=st.integers(0, 1000),
)
@settings(max_examples=100, deadline=None)
def test_any_network_on_any_picture(arch, rows, cols, objective, isa, threads, seed):
    params, grid, target = problem(arch, rows, cols, seed)
    kernel = FusedKernel(arch, threads, isa)

    found = kernel.loss_and_gradient(params, grid, target, objective)

    assert_agrees(found, truth(arch, params, rows, cols, target, objective), isa, rows * cols)
    exact = forward(arch, [p.double() for p in params], doubled(pixel_grid(arch, rows, cols, CPU)))
    assert float((kernel.forward(params, grid) - exact).abs().max()) < 1e-4


@instruction_set
def test_wide_layers(isa):
    arch = Architecture(NetShape((360, 150, 70), 16), NetShape((64, 16, 8), 4), 3)
    params, grid, target = problem(arch, 20, 50)

    found = FusedKernel(arch, 2, isa).loss_and_gradient(params, grid, target, OBJECTIVES[0])

    assert_agrees(found, truth(arch, params, 20, 50, target, OBJECTIVES[0]), isa, 20 * 50)


@instruction_set
def test_a_lattice_is_a_sub_grid(isa):
    params, grid, _ = problem(SMALL, 61, 90)
    kernel = FusedKernel(SMALL, 2, isa)
    whole = kernel.forward(params, grid)

    for row, col in [(0, 0), (3, 1), (1, 3)]:
        part = kernel.forward(params, grid.lattice(4, row, col))
        torch.testing.assert_close(part, whole[:, row::4, col::4], rtol=0, atol=1e-5)


@instruction_set
def test_any_number_of_threads_gives_the_same_bits(isa):
    params, grid, target = problem(KODAK, 130, 170)
    first, *others = (
        FusedKernel(KODAK, threads, isa).loss_and_gradient(params, grid, target, OBJECTIVES[0])
        for threads in (1, 2, 5, 16)
    )

    for other in others:
        assert torch.equal(first[0], other[0])
        assert all(torch.equal(a, b) for a, b in zip(first[1], other[1], strict=True))


@instruction_set
@pytest.mark.parametrize("gain", [1.0, 30.0, 1000.0])
def test_large_phases_keep_their_precision(isa, gain):
    """Phases up to the limit and beyond it: at 1000 times the weights another kernel steps in."""
    arch = Architecture(NetShape((16, 12), 2), None, 3)
    params, grid, _ = problem(arch, 9, 33)
    params = [p * gain if i < 2 else p for i, p in enumerate(params)]
    exact = forward(arch, [p.double() for p in params], doubled(pixel_grid(arch, 9, 33, CPU)))

    found = FusedKernel(arch, 1, isa).forward(params, grid)

    # the float32 phases themselves are as coarse as this
    assert float((found - exact).abs().max()) < 1e-6 + gain * 30 * 4 * 2**-22


@instruction_set
def test_weights_that_are_not_finite_show(isa):
    params, grid, target = problem(SMALL, 8, 8)
    params[2][0, 0] = float("nan")

    _, gradients, error = FusedKernel(SMALL, 1, isa).loss_and_gradient(
        params, grid, target, OBJECTIVES[0]
    )

    assert error.isnan()
    assert any(g.isnan().any() for g in gradients)


def test_double_precision_is_computed_in_double_precision():
    params, _, target = problem(SMALL, 12, 14)
    grid = doubled(pixel_grid(SMALL, 12, 14, CPU))
    wide = [p.double() for p in params]

    _, gradients, _ = FusedKernel(SMALL).loss_and_gradient(
        wide, grid, target.double(), OBJECTIVES[0]
    )

    for ours, exact in zip(
        gradients, truth(SMALL, params, 12, 14, target, OBJECTIVES[0])[1], strict=True
    ):
        torch.testing.assert_close(ours, exact, rtol=1e-10, atol=1e-14)


def test_views_with_strides_are_taken_as_they_look():
    params, grid, target = problem(SMALL, 20, 24)
    expected = FusedKernel(SMALL, 1).loss_and_gradient(params, grid, target, OBJECTIVES[0])
    strided = [torch.stack([p, p], -1)[..., 0] for p in params]
    turned = target.transpose(1, 2).contiguous().transpose(1, 2)

    found = FusedKernel(SMALL, 1).loss_and_gradient(strided, grid, turned, OBJECTIVES[0])

    assert all(torch.equal(a, b) for a, b in zip(found[1], expected[1], strict=True))


def test_callers_at_the_same_time_do_not_disturb_each_other():
    kernel, other = FusedKernel(SMALL, 2), FusedKernel(SMALL, 2)
    problems = [problem(SMALL, 60, 64, seed) for seed in range(8)]

    def bits(kernel, params, grid, target):
        return kernel.loss_and_gradient(params, grid, target, OBJECTIVES[0])[1]

    expected = [bits(kernel, *each) for each in problems]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            shared = pool.map(lambda each: bits(kernel, *each), problems)
            apart = pool.map(lambda each: bits(other, *each), problems)
            for truth_, one, two in zip(expected, shared, apart, strict=True):
                assert all(torch.equal(a, b) for a, b in zip(truth_, one, strict=True))
                assert all(torch.equal(a, b) for a, b in zip(truth_, two, strict=True))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_process_has_threads_of_its_own():
    script = """
import os, sys, torch
from tests.nifcore.test_fused_kernel import KODAK, OBJECTIVES, FusedKernel, problem
torch.set_num_threads(1)
params, grid, target = problem(KODAK, 64, 64)
kernel = FusedKernel(KODAK, 3)
before = kernel.loss_and_gradient(params, grid, target, OBJECTIVES[0])[1]
child = os.fork()
after = kernel.loss_and_gradient(params, grid, target, OBJECTIVES[0])[1]
same = all(torch.equal(a, b) for a, b in zip(before, after))
if child == 0:
    os._exit(0 if same else 9)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) or (0 if same else 8))
"""
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    done = subprocess.run([sys.executable, "-c", script], cwd=root, timeout=120, check=False)

    assert done.returncode == 0


def test_an_instruction_set_can_be_asked_for():
    for isa in INSTRUCTION_SETS:
        assert make_kernel(SMALL, f"fused:{isa}").instruction_set == isa
    assert INSTRUCTION_SETS[-1] in next(c.reason for c in choices() if c.name == "fused")
    with pytest.raises(UsageError, match=rf"'fused:mmx'.*fused:{INSTRUCTION_SETS[0]}"):
        make_kernel(SMALL, "fused:mmx")
    with pytest.raises(ValueError, match="instruction set is 'mmx'"):
        FusedKernel(SMALL, instruction_set="mmx")


_CHOOSE = """
from nifcore.kernels import build
build.LIBRARY = "elsewhere.so"  # not where the installation put it
from nifcore.kernels import choices
for choice in choices():
    print(choice.name, choice.available, choice.chosen, choice.reason, sep="|")
"""


def chosen_in(home, path):
    environment = os.environ | {"HOME": str(home), "PATH": path}
    run = subprocess.run(
        [sys.executable, "-c", _CHOOSE], env=environment, capture_output=True, text=True, check=True
    )
    return {line.split("|")[0]: line.split("|")[1:] for line in run.stdout.splitlines()}


def test_without_a_compiler_another_kernel_computes_and_the_reason_is_told(tmp_path):
    found = chosen_in(tmp_path, "")

    available, chosen, reason = found["fused"]
    assert (available, chosen) == ("False", "False")
    assert "no C++ compiler found" in reason
    assert found["chunked"][:2] == ["True", "True"]


@pytest.mark.slow
def test_a_compiler_that_appears_later_is_used_once(tmp_path, hasty_compiler):
    first = chosen_in(tmp_path, f"{hasty_compiler}:{os.environ['PATH']}")
    assert first["fused"][:2] == ["True", "True"]

    kept = list((tmp_path / ".cache" / "nif").rglob("elsewhere.so"))
    assert len(kept) == 1
    made = kept[0].stat().st_mtime_ns
    again = chosen_in(tmp_path, "")  # needs no compiler any more
    assert again["fused"][:2] == ["True", "True"]
    assert kept[0].stat().st_mtime_ns == made


def test_a_compiler_that_refuses_is_reported_in_its_own_words(tmp_path):
    refusing = tmp_path / "c++"
    refusing.write_text("#!/bin/sh\necho 'tile.h:1: error: no such luck' >&2\nexit 1\n")
    refusing.chmod(0o755)

    with pytest.raises(build.BuildFailed, match="no such luck"):
        build.compile_library(tmp_path / "out" / build.LIBRARY, [str(refusing)])

    assert list((tmp_path / "out").iterdir()) == []
