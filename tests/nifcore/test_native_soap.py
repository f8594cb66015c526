"""SOAP in C++ against SOAP in torch, with every instruction set there is."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nifcore.architecture import Architecture
from nifcore.header import NetShape
from nifcore.kernels import make_kernel
from nifcore.kernels.fused import LibraryMissing, load_library
from nifcore.kernels.soap import NativeSoap, make_soap
from nifcore.losses import Objective
from nifcore.network import initialise, pixel_grid
from nifcore.soap import Soap

try:
    INSTRUCTION_SETS = load_library().instruction_sets
except LibraryMissing as missing:
    pytest.skip(f"no native optimiser: {missing}", allow_module_level=True)

instruction_set = pytest.mark.parametrize("isa", INSTRUCTION_SETS)
SHAPES = [(24, 17), (24,), (7, 24), (7,), (1, 7), (1,), (33, 1)]


def draw(shapes, generator, scale=1.0):
    return [scale * torch.randn(shape, generator=generator) for shape in shapes]


def orthogonal(n, generator):
    return torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64)).Q


def trained_state(shapes, generator, max_side=1024, iteration=25):
    """A state in float64 as after some training: full covariances, bases that nearly fit them.

    Their eigenvalues lie well apart, so that rounding cannot turn one eigenvector into another.
    """
    covariances, bases = [], []
    for shape in shapes:
        pair, turned = [], []
        for n in shape if len(shape) == 2 else ():
            if not 1 < n <= max_side:
                pair.append(None)
                turned.append(None)
                continue
            basis = orthogonal(n, generator)
            values = torch.logspace(0, -2, n, dtype=torch.float64)
            values = values[torch.randperm(n, generator=generator)]
            pair.append(basis * values @ basis.T)
            tilt = torch.randn(n, n, generator=generator, dtype=torch.float64)
            turned.append(torch.linalg.qr(basis + 1e-3 * tilt).Q)
        covariances.append(pair)
        bases.append(turned)
    return {
        "iteration": iteration,
        "momentum": [t.double() for t in draw(shapes, generator)],
        "second": [t.double().square() + 0.1 for t in draw(shapes, generator)],
        "covariances": covariances,
        "bases": bases,
    }


def cast(value, dtype):
    if isinstance(value, torch.Tensor):
        return value.to(dtype, copy=True)
    return [cast(v, dtype) for v in value] if isinstance(value, list) else value


def load(optimiser, state, dtype):
    optimiser.load({name: cast(value, dtype) for name, value in state.items()})


def gradients_like(state, shapes, generator):
    """Gradients whose covariances are about those of ``state``."""
    found = []
    for shape, pair in zip(shapes, state["covariances"], strict=True):
        g = torch.randn(shape, generator=generator, dtype=torch.float64)
        for side, covariance in enumerate(pair):
            if covariance is not None:
                values, basis = torch.linalg.eigh(covariance)
                root = basis * values.sqrt() @ basis.T
                g = root @ g if side == 0 else g @ root
        found.append(g)
    return found


def assert_same(native, truth, tolerance):
    for name in ("params", "momentum", "second"):
        for ours, exact in zip(getattr(native, name), getattr(truth, name), strict=True):
            assert ours.shape == exact.shape
            assert float((ours - exact).norm()) <= tolerance * float(exact.norm()) + 1e-7
    for name in ("covariances", "bases"):
        for ours, exact in zip(getattr(native, name), getattr(truth, name), strict=True):
            assert [t is None for t in ours] == [t is None for t in exact]
            for mine, right in zip(ours, exact, strict=True):
                if mine is not None:
                    assert float((mine - right).norm()) <= tolerance * float(right.norm())


@given(
    shapes=st.lists(
        st.tuples(st.integers(1, 40), st.integers(1, 40)) | st.tuples(st.integers(1, 40)),
        min_size=1,
        max_size=4,
    ),
    isa=st.sampled_from(INSTRUCTION_SETS),
    threads=st.integers(1, 3),
    max_side=st.sampled_from([16, 1024]),
    seed=st.integers(0, 1000),
)
@settings(max_examples=150, deadline=None)
def test_any_network_goes_the_way_of_torchs_in_float64(shapes, isa, threads, max_side, seed):
    """Twelve steps, two refreshes: parameters, moments, covariances and even bases' signs."""
    generator = torch.Generator().manual_seed(seed)
    start = draw(shapes, generator)
    state = trained_state(shapes, generator, max_side)
    truth = Soap([p.double() for p in start], refresh=5, max_side=max_side)
    native = NativeSoap(
        start, refresh=5, max_side=max_side, instruction_set=isa, threads=lambda: threads
    )
    load(truth, state, torch.float64)
    load(native, state, torch.float32)

    for _ in range(12):
        gradients = gradients_like(state, shapes, generator)
        assert truth.step(gradients, 0.01)
        assert native.step([g.float() for g in gradients], 0.01)

    assert_same(native, truth, 2e-3)


@instruction_set
def test_from_the_first_step_it_is_as_near_as_torch_in_float32(isa):
    """With square gradients, whose covariances have no null space, of which any basis is right."""
    shapes = [(24, 24), (24,), (17, 17)]
    generator = torch.Generator().manual_seed(2)
    start = draw(shapes, generator)
    truth, plain = Soap([p.double() for p in start]), Soap([p.clone() for p in start])
    native = NativeSoap([p.clone() for p in start], instruction_set=isa)

    for _ in range(45):
        gradients = draw(shapes, generator, 1e-5)
        truth.step([g.double() for g in gradients], 1e-3)
        plain.step(gradients, 1e-3)
        native.step(gradients, 1e-3)

    for ours, theirs, exact, old in zip(
        native.params, plain.params, truth.params, start, strict=True
    ):
        way = float((exact - old).norm())
        assert float((ours - exact).norm()) < 2 * float((theirs - exact).norm()) + 1e-4 * way


@instruction_set
@pytest.mark.parametrize("scale", [1e-12, 1e12])
def test_bases_are_orthogonal_however_small_the_gradients(isa, scale):
    generator = torch.Generator().manual_seed(4)
    native = NativeSoap(draw(SHAPES, generator), instruction_set=isa)

    for _ in range(30):
        native.step(draw(SHAPES, generator, scale), 1e-3)

    for basis in (t for pair in native.bases for t in pair if t is not None):
        torch.testing.assert_close(basis.T @ basis, torch.eye(len(basis)), atol=1e-5, rtol=0)
    assert all(p.isfinite().all() for p in native.params)


@instruction_set
def test_no_gradient_is_no_update(isa):
    params = draw(SHAPES, torch.Generator().manual_seed(5))
    native = NativeSoap(params, instruction_set=isa)
    before = [p.clone() for p in params]

    for _ in range(25):
        assert native.step([torch.zeros(s) for s in SHAPES], 0.1)

    assert all(torch.equal(a, b) for a, b in zip(params, before, strict=True))


@instruction_set
def test_any_number_of_threads_gives_the_same_bits(isa):
    shapes = [(360, 66), (360,), (150, 360), (150,)]  # large enough to be shared out
    ends = []
    for threads in (1, 2, 5):
        generator = torch.Generator().manual_seed(6)
        native = NativeSoap(
            draw(shapes, generator), instruction_set=isa, threads=lambda n=threads: n
        )
        for _ in range(12):
            native.step(draw(shapes, generator), 0.01)
        ends.append(native)

    for other in ends[1:]:
        assert _same_bits(ends[0], other)


@instruction_set
@pytest.mark.parametrize("stop", [1, 10, 14, 20])
def test_a_loaded_state_goes_on_exactly(isa, stop):
    """Also right after a refresh, whose consequences are drawn by the next step."""
    generator = torch.Generator().manual_seed(7)
    start = draw(SHAPES, generator)
    gradients = [draw(SHAPES, generator) for _ in range(30)]
    whole = NativeSoap([p.clone() for p in start], instruction_set=isa)
    for g in gradients[:stop]:
        whole.step(g, 0.01)
    resumed = NativeSoap([p.clone() for p in whole.params], instruction_set=isa)
    resumed.load(copy.deepcopy(whole.state()))

    for g in gradients[stop:]:
        whole.step(g, 0.01)
        resumed.step(g, 0.01)

    assert _same_bits(whole, resumed)


@pytest.mark.parametrize("there", [0, 1])
def test_each_goes_on_from_the_others_state(there):
    shapes = [(24, 17), (24,), (7, 24)]
    generator = torch.Generator().manual_seed(8)
    start = draw(shapes, generator)
    state = trained_state(shapes, generator)
    kinds = (Soap, NativeSoap)
    stay, leave = (kinds[there]([p.clone() for p in start]) for _ in range(2))
    load(stay, state, torch.float32)
    load(leave, state, torch.float32)

    for step in range(40):
        if step == 17:
            other = kinds[1 - there](leave.params)
            other.load(copy.deepcopy(leave.state()))
            leave = other
        gradients = [g.float() for g in gradients_like(state, shapes, generator)]
        stay.step(gradients, 0.01)
        leave.step(gradients, 0.01)

    assert_same(leave, stay, 1e-3)


@pytest.mark.parametrize("kind", [Soap, NativeSoap])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_gradients_that_are_not_finite_change_nothing(kind, bad):
    generator = torch.Generator().manual_seed(9)
    optimiser = kind(draw(SHAPES, generator))
    for _ in range(12):
        optimiser.step(draw(SHAPES, generator), 0.01)
    before = copy.deepcopy((optimiser.params, optimiser.state()))
    gradients = draw(SHAPES, generator)
    gradients[2][3, 5] = bad

    assert not optimiser.step(gradients, 0.01)

    after = (optimiser.params, optimiser.state())
    torch.testing.assert_close(after, before, rtol=0, atol=0)


@instruction_set
def test_a_small_picture_is_learned_as_well(isa):
    arch = Architecture(NetShape((20, 16), 4), None, 3)
    grid = pixel_grid(arch, 40, 36, torch.device("cpu"))
    y, x = torch.linspace(-1, 1, 40)[:, None], torch.linspace(-1, 1, 36)[None]
    target = torch.stack([torch.sin(5 * x * y), x - y, torch.cos(4 * x) * y])
    kernel = make_kernel(arch, "reference")

    def error(make):
        total = 0.0
        for seed in range(4):
            params = initialise(arch, torch.Generator().manual_seed(seed), [])
            optimiser = make(params)
            for step in range(150):
                _, gradients, found = kernel.loss_and_gradient(
                    params, grid, target, Objective("mse")
                )
                optimiser.step(gradients, 5e-3 * (1 - step / 150))
            total += float(found) / 4
        return total

    theirs = error(Soap)
    assert theirs < 2e-3
    assert error(lambda params: NativeSoap(params, instruction_set=isa)) < 1.3 * theirs


def test_the_kernel_decides_which_runs():
    arch = Architecture(NetShape((5,), 1), None, 3)
    params = initialise(arch, torch.Generator(), [])
    slowest = INSTRUCTION_SETS[-1]

    assert isinstance(make_soap(params, make_kernel(arch, f"fused:{slowest}")), NativeSoap)
    assert type(make_soap(params, make_kernel(arch, "chunked"))) is Soap
    wide = [p.double() for p in params]
    assert type(make_soap(wide, make_kernel(arch, "fused"))) is Soap


def test_what_it_does_not_take_is_refused():
    with pytest.raises(ValueError, match=r"torch.float64, on cpu, of shape \(3, 2\)"):
        NativeSoap([torch.zeros(3, 2, dtype=torch.float64)])
    with pytest.raises(ValueError, match="instruction set is 'mmx'"):
        NativeSoap([torch.zeros(3)], instruction_set="mmx")
    with pytest.raises(ValueError, match="1 gradients came for 2 parameters"):
        NativeSoap([torch.zeros(3), torch.zeros(2)]).step([torch.zeros(3)], 0.1)
    with pytest.raises(ValueError, match=r"gradient 0 is of shape \(4,\); \(3,\) is expected"):
        NativeSoap([torch.zeros(3)]).step([torch.zeros(4)], 0.1)


def _same_bits(one, other):
    pairs = [
        *zip(one.params, other.params, strict=True),
        *zip(one.momentum, other.momentum, strict=True),
        *zip(one.second, other.second, strict=True),
        *(p for a, b in zip(one.bases, other.bases, strict=True) for p in zip(a, b, strict=True)),
    ]
    return all(a is b is None or torch.equal(a, b) for a, b in pairs)
