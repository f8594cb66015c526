"""The compared optimisers do what their papers say, and the harness reports what it ran."""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch
from PIL import Image
from skimage import data

from benchmarks.optimisers.__main__ import measure, table
from benchmarks.optimisers.adamw import AdamW
from benchmarks.optimisers.catalogue import CONTENDERS, VARIANTS, Contender
from benchmarks.optimisers.chart import Curve, Panel, above, draw, ticks
from benchmarks.optimisers.fits import open_scene, run
from benchmarks.optimisers.kron import Kron, learn, precondition, update_share
from benchmarks.optimisers.muon import Muon, orthogonalise
from benchmarks.optimisers.shampoo import Shampoo, inverse_root
from benchmarks.optimisers.soap import OpenSoap, SoapChoices
from nifcore.network import forward, pixel_grid
from nifcore.soap import Soap

ROOT = Path(__file__).parents[2]


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def follow(optimiser, gradients, rate: float = 0.01) -> None:
    for g in gradients:
        optimiser.step(g, rate)


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("photo") / "face.png"
    Image.fromarray(data.astronaut()[40:136, 180:276]).save(path)
    return path


# ---------------------------------------------------------------------- methods


def test_adamw_is_torchs() -> None:
    mine, theirs = [random(4, 3), random(5, seed=1)], [random(4, 3), random(5, seed=1)]
    truth = torch.optim.AdamW(theirs, lr=0.01, betas=(0.9, 0.97), eps=1e-8, weight_decay=0.1)
    gradients = [[random(4, 3, seed=s), random(5, seed=s)] for s in range(20)]

    follow(AdamW(mine, beta2=0.97, weight_decay=0.1), gradients)
    for pair in gradients:
        for p, g in zip(theirs, pair, strict=True):
            p.grad = g
        truth.step()

    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [(12, 30), (30, 12), (9, 9)])
def test_newton_schulz_makes_singular_values_equal(shape: tuple[int, int]) -> None:
    u, _, vt = np.linalg.svd(random(*shape).double().numpy(), full_matrices=False)
    # far from orthogonal: the singular values span a factor of 50
    values = np.geomspace(1.0, 0.02, len(vt))

    found = orthogonalise(torch.from_numpy((u * values) @ vt)).numpy()

    inner = u.T @ found @ vt.T
    assert np.abs(inner - np.diag(np.diag(inner))).max() < 1e-9
    assert np.linalg.norm(found) == pytest.approx(np.linalg.norm(inner))
    assert np.diag(inner).min() > 0.6
    assert np.diag(inner).max() < 1.25


def test_muon_orthogonalises_some_matrices_and_leaves_the_rest_to_adamw() -> None:
    gradients = [random(8, 5, seed=1), random(8, seed=2), random(4, 8, seed=3)]
    params = [torch.zeros_like(g) for g in gradients]
    rest = [torch.zeros(8), torch.zeros(4, 8)]

    Muon(params, adam={2}).step(gradients, 0.01)
    AdamW(rest, beta1=0.9, beta2=0.95).step(gradients[1:], 0.01)

    # the first momentum points along the gradient
    expected = -0.01 * 0.2 * math.sqrt(8) * orthogonalise(gradients[0])
    torch.testing.assert_close(params[0], expected)
    assert torch.equal(params[1], rest[0])
    assert torch.equal(params[2], rest[1])


def test_muon_s_momentum_is_nesterov_s() -> None:
    p, first, second = torch.zeros(3, 3), random(3, 3, seed=1), random(3, 3, seed=2)
    optimiser = Muon([p])
    optimiser.step([first], 0.0)
    optimiser.step([second], 1.0)

    # 0.05 g2 + 0.95 m2, m2 = 0.95 (0.05 g1) + 0.05 g2; only its direction matters
    ahead = 0.05 * second + 0.95 * (0.95 * 0.05 * first + 0.05 * second)
    torch.testing.assert_close(p, -0.2 * math.sqrt(3) * orthogonalise(ahead))


@pytest.mark.parametrize("root", [2, 4])
def test_inverse_roots_are_scipy_s(root: int) -> None:
    a = random(6, 6).double()
    covariance = a @ a.T + torch.eye(6)
    truth = scipy.linalg.fractional_matrix_power(covariance.numpy(), -1.0 / root)
    np.testing.assert_allclose(inverse_root(covariance, root).numpy(), truth, rtol=1e-4, atol=1e-5)


def test_shampoo_s_first_step_is_the_polar_factor_with_adam_s_length() -> None:
    # (G G^T)^(-1/4) G (G^T G)^(-1/4) = U V^T, and Adam's first step is a sign per coordinate
    u, _, vt = np.linalg.svd(random(5, 5).double().numpy())
    g = torch.from_numpy((u * np.array([3.0, 2.5, 2.0, 1.5, 1.0])) @ vt)
    p = torch.zeros_like(g)

    Shampoo([p]).step([g], 0.1)

    expected = -0.1 * (u @ vt) * 5.0 / math.sqrt(5.0)
    np.testing.assert_allclose(p.numpy(), expected, rtol=1e-4, atol=1e-5)


def test_shampoo_solves_an_ill_conditioned_quadratic() -> None:
    scales = torch.logspace(0, 3, 8)[:, None]
    target, p = random(8, 5), torch.zeros(8, 5)
    optimiser = Shampoo([p])
    for step in range(300):
        optimiser.step([scales * (p - target)], 0.05 * (1 - step / 300))
    assert (p - target).abs().max() < 0.02


def test_kron_learns_to_whiten_a_matrix_s_gradients() -> None:
    generator = torch.Generator().manual_seed(4)
    left = torch.linalg.qr(random(6, 6, seed=1)).Q * torch.logspace(-1.5, 0.5, 6)
    right = torch.linalg.qr(random(4, 4, seed=2)).Q * torch.logspace(-1, 1, 4)

    def draw() -> torch.Tensor:
        return left @ torch.randn(6, 4, generator=generator) @ right.T

    factors = [torch.eye(6), torch.eye(4)]
    for step in range(3000):
        noise = torch.randn(6, 4, generator=generator)
        learn(factors, draw(), noise, 0.1 * (1 - step / 3000))
    seen = torch.stack([precondition(factors, draw()).flatten() for _ in range(4000)])

    spectrum = torch.linalg.eigvalsh(seen.T @ seen / len(seen))
    assert spectrum.max() < 2.0  # unwhitened they span a factor of 10^8
    assert spectrum.min() > 0.5


def test_kron_learns_the_spread_of_a_vector_s_gradients() -> None:
    generator = torch.Generator().manual_seed(5)
    spread = torch.logspace(-1, 1, 7)
    factors = [torch.ones(7)]
    for step in range(3000):
        g, noise = torch.randn(2, 7, generator=generator).unbind()
        learn(factors, spread * g, noise, 0.1 * (1 - step / 3000))
    # P = q^2 whitens where it is one over the spread
    torch.testing.assert_close(factors[0].square() * spread, torch.ones(7), rtol=0.3, atol=0)


def test_kron_solves_an_ill_conditioned_quadratic() -> None:
    scales = torch.logspace(0, 3, 8)[:, None]
    target = random(8, 5)
    params = [torch.zeros(8, 5), torch.zeros(5)]
    optimiser = Kron(params)
    for step in range(600):
        gradients = [scales * (params[0] - target), params[1] - target[0]]
        optimiser.step(gradients, 0.03 * (1 - step / 600))
    assert (params[0] - target).abs().max() < 0.05
    assert (params[1] - target[0]).abs().max() < 0.05


def test_kron_learns_always_at_first_and_rarely_later() -> None:
    assert update_share(0) == update_share(500) == 1.0
    assert update_share(1500) == pytest.approx(math.exp(-1.0))
    assert update_share(10_000) == 0.03


# ---------------------------------------------------------------------- SOAP's choices


def test_the_default_choices_are_the_codec_s_soap() -> None:
    shapes = ((7, 5), (7,), (3, 7), (3,), (1, 4))
    gradients = [[random(*s, seed=100 * t + i) for i, s in enumerate(shapes)] for t in range(45)]
    mine, theirs = ([torch.ones(s) for s in shapes] for _ in range(2))
    follow(OpenSoap(mine), gradients)
    follow(Soap(theirs), gradients)
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("sides", "shape"), [("right", (9, 4)), ("shorter", (9, 4))])
def test_one_side_is_what_soap_does_with_one_long_side(sides, shape) -> None:
    gradients = [[random(*shape, seed=t)] for t in range(30)]
    mine, theirs = [torch.zeros(shape)], [torch.zeros(shape)]
    follow(OpenSoap(mine, SoapChoices(sides=sides)), gradients)
    follow(Soap(theirs, max_side=6), gradients)
    torch.testing.assert_close(mine[0], theirs[0], rtol=1e-4, atol=1e-5)


def test_left_is_right_of_the_transposed() -> None:
    gradients = [random(5, 6, seed=t) for t in range(30)]
    left, right = torch.zeros(5, 6), torch.zeros(6, 5)
    follow(OpenSoap([left], SoapChoices(sides="left")), [[g] for g in gradients])
    follow(OpenSoap([right], SoapChoices(sides="right")), [[g.T] for g in gradients])
    torch.testing.assert_close(left, right.T, rtol=1e-4, atol=1e-5)


def test_joined_biases_are_a_column_of_the_weight() -> None:
    gradients = [[random(5, 4, seed=t), random(5, seed=100 + t)] for t in range(25)]
    apart, whole = [torch.zeros(5, 4), torch.zeros(5)], torch.zeros(5, 5)
    follow(OpenSoap(apart, SoapChoices(vectors="joined")), gradients)
    follow(OpenSoap([whole]), [[torch.cat([w, b[:, None]], 1)] for w, b in gradients])
    torch.testing.assert_close(torch.cat([apart[0], apart[1][:, None]], 1), whole)


def test_rotated_vectors_have_the_eigenvectors_of_their_gradients() -> None:
    generator = torch.Generator().manual_seed(2)
    truth = torch.linalg.qr(random(5, 5)).Q
    spread = torch.tensor([9.0, 3.0, 1.0, 0.3, 0.1])
    optimiser = OpenSoap(
        [torch.zeros(5)], SoapChoices(vectors="rotated", beta2=0.99, covariance_beta=0.99)
    )
    for _ in range(800):
        optimiser.step([truth @ (spread * torch.randn(5, generator=generator))], 0.0)

    basis = optimiser.bases[0][0]
    assert basis is not None
    assert (basis.T @ truth).abs().diag().min() > 0.95
    torch.testing.assert_close(optimiser.second[0][:, 0], spread.square(), rtol=0.5, atol=0)


def test_kl_finds_both_factors_of_a_kronecker_covariance() -> None:
    generator = torch.Generator().manual_seed(6)
    left = torch.linalg.qr(random(5, 5, seed=1).double()).Q
    right = torch.linalg.qr(random(3, 3, seed=2).double()).Q
    rows, cols = torch.tensor([8.0, 4, 2, 1, 0.5]).double(), torch.tensor([9.0, 3, 1]).double()
    optimiser = OpenSoap(
        [torch.zeros(5, 3).double()], SoapChoices(covariances="kl", covariance_beta=0.995)
    )
    for _ in range(2000):
        noise = torch.randn(5, 3, generator=generator, dtype=torch.float64)
        optimiser.step([left @ (rows.sqrt()[:, None] * noise * cols.sqrt()) @ right.T], 0.0)

    found_left, found_right = optimiser.spectra[0]
    # the scale is common to both factors, so that only the products are determined
    torch.testing.assert_close(
        torch.outer(found_left, found_right), torch.outer(rows, cols), rtol=0.4, atol=0
    )
    for basis, truth in zip(optimiser.bases[0], (left, right), strict=True):
        assert basis is not None
        assert (basis.T @ truth).abs().diag().min() > 0.95


def test_bias_correction_is_what_makes_the_first_steps_whole() -> None:
    g = torch.tensor([2.0, -0.5])
    found = {}
    for corrected in (True, False):
        p = torch.zeros(2)
        choices = SoapChoices(corrected=corrected, measures_first=False)
        OpenSoap([p], choices).step([g], 1.0)
        found[corrected] = p
    torch.testing.assert_close(found[True], -g.sign())
    torch.testing.assert_close(found[False], -g.sign() * 0.05 / math.sqrt(0.05))


def test_nesterov_looks_one_gradient_ahead() -> None:
    p, first, second = torch.zeros(3), random(3, seed=1), random(3, seed=2)
    optimiser = OpenSoap([p], SoapChoices(nesterov=True, cautious=False, measures_first=False))
    optimiser.step([first], 0.0)
    optimiser.step([second], 1.0)
    momentum = 0.95 * 0.05 * first + 0.05 * second
    ahead = (0.95 * momentum + 0.05 * second) / (1 - 0.95**2)
    scale = ((0.95 * 0.05 * first**2 + 0.05 * second**2) / (1 - 0.95**2)).sqrt()
    torch.testing.assert_close(p, -ahead / scale)


def test_cautious_steps_never_go_against_the_gradient() -> None:
    p, plain = torch.zeros(40), torch.zeros(40)
    careful, usual = OpenSoap([p]), OpenSoap([plain], SoapChoices(cautious=False))
    against = 0
    for step in range(30):
        before, plain_before, g = p.clone(), plain.clone(), random(40, seed=step)
        careful.step([g], 0.1)
        usual.step([g], 0.1)
        assert ((p - before) * g).max() <= 0.0
        against += int((((plain - plain_before) * g) > 0).sum())
    assert against > 100  # plain momentum does


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: v.name)
def test_every_variant_solves_a_quadratic(variant) -> None:
    target = [random(6, 4), random(6, seed=1)]
    params = [torch.zeros_like(t) for t in target]
    optimiser = OpenSoap(params, variant.choices)
    for step in range(400):
        gradients = [p - t for p, t in zip(params, target, strict=True)]
        optimiser.step(gradients, 0.05 * (1 - step / 400))
    # a momentum that remembers longer than the second moment overshoots, here and in fits
    most = 0.4 if variant.choices.beta1 > variant.choices.beta2 else 0.02
    for p, t in zip(params, target, strict=True):
        assert (p - t).norm() < most * t.norm()


# ---------------------------------------------------------------------- the harness


class Recorder:
    """A method that follows plain gradients, and keeps what it was given."""

    def __init__(self, params: list[torch.Tensor], poison: bool = False) -> None:
        self.params, self.poison = params, poison
        self.rates: list[float] = []

    def step(self, gradients, rate: float) -> None:
        self.rates.append(rate)
        for p, g in zip(self.params, gradients, strict=True):
            p.sub_(g, alpha=1e-3)
        if self.poison and len(self.rates) == 3:
            self.params[0].fill_(math.nan)


def test_the_psnr_is_that_of_the_final_weights(photo: Path) -> None:
    scene = open_scene(photo, 0.8)
    made: list[Recorder] = []

    def make(_arch, params):
        made.append(Recorder(params))
        return made[0]

    course = run(scene, Contender("plain", make), peak=0.01, iterations=50, warmup=10)

    _, rows, cols = scene.target.shape
    grid = pixel_grid(scene.arch, rows, cols, torch.device("cpu"))
    output = forward(scene.arch, made[0].params, grid).clamp(-1, 1).double()
    error = float((output - scene.target.double()).square().mean())
    assert course.psnr_db == pytest.approx(10 * math.log10(4 / error), abs=0.01)
    assert [s.iteration for s in course.samples][-1] == 50
    assert made[0].rates[:10] == pytest.approx([0.001 * k for k in range(1, 11)])
    assert all(a > b for a, b in zip(made[0].rates[10:], made[0].rates[11:], strict=False))
    assert made[0].rates[-1] < 1e-4


def test_a_fit_that_diverges_is_reported_as_such(photo: Path) -> None:
    poisoned = Contender("poisoned", lambda _, params: Recorder(params, poison=True))
    course = run(open_scene(photo, 0.8), poisoned, peak=0.01, iterations=20)
    assert course.diverged
    assert course.psnr_db == -math.inf


@pytest.mark.parametrize("contender", CONTENDERS, ids=lambda c: c.name)
def test_every_method_fits_a_picture(photo: Path, contender: Contender) -> None:
    scene = open_scene(photo, 0.8)
    flat = float((scene.target - scene.target.mean((1, 2), keepdim=True)).square().mean())
    peak = contender.peaks[-1]
    course = run(scene, contender, peak=peak, iterations=80, warmup=10)
    assert course.psnr_db > 10 * math.log10(4 / flat) + 4.0
    assert run(scene, contender, peak=peak, iterations=80, warmup=10).psnr_db == course.psnr_db


def test_the_command_writes_what_it_prints(photo: Path, tmp_path: Path) -> None:
    output = tmp_path / "found.json"
    done = subprocess.run(
        [
            *(sys.executable, "-m", "benchmarks.optimisers", "--pictures", str(photo)),
            *("--bpp", "0.8", "--iterations", "12", "--output", str(output)),
            *("--only", "SOAP", "AdamW", "refresh 1"),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    found = json.loads(output.read_text(encoding="utf-8"))

    assert list(found["equal_iterations"]) == ["SOAP", "AdamW"]
    assert [row["peak"] for row in found["rates"]] == [
        peak for c in CONTENDERS[:2] for peak in c.peaks
    ]
    for name, row in found["equal_iterations"].items():
        best = max(
            (r for r in found["rates"] if r["method"] == name), key=lambda r: r["mean_psnr_db"]
        )
        assert best["best"]
        assert row["peak"] == best["peak"]
        timed = found["equal_seconds"][name]
        each = (row["kernel_ms"] + row["step_ms"]) / 1000
        # whole iterations fit into the time, to one more or less
        budget = found["equal_seconds"]["budget_seconds"]
        assert timed["iterations"] * each == pytest.approx(budget, abs=1.01 * each)
        assert f"| {name} | {row['peak']:g} | 12 | {row['psnr_db']['face']:.2f} |" in done.stdout
    assert list(found["choices"]) == ["peak", "seeds", "refresh 1"]
    lines = ET.fromstring(output.with_suffix(".svg").read_text(encoding="utf-8")).iter(
        "{http://www.w3.org/2000/svg}polyline"
    )
    assert len(list(lines)) == 4


def test_pieces_of_a_comparison_come_together(photo: Path, tmp_path: Path) -> None:
    output = tmp_path / "found.json"
    scenes = [open_scene(photo, 0.8)]

    def asked(*only: str, iterations: int = 6) -> dict:
        arguments = argparse.Namespace(
            only=only, bpp=0.8, iterations=iterations, seeds=1, peak=0.005, part="all"
        )
        arguments.output = output
        measure(scenes, arguments)
        return json.loads(output.read_text(encoding="utf-8"))

    first = asked("AdamW")
    second = asked("refresh 50")
    third = asked("refresh 1")
    assert second["equal_iterations"] == third["equal_iterations"] == first["equal_iterations"]
    assert list(third["choices"]) == ["peak", "seeds", "refresh 1", "refresh 50"]
    assert third["choices"]["refresh 50"] == second["choices"]["refresh 50"]

    other = asked("refresh 1", iterations=7)
    assert "equal_iterations" not in other
    assert list(other["choices"]) == ["peak", "seeds", "refresh 1"]


def test_an_unknown_name_is_refused_with_those_there_are() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.optimisers", "--only", "Newton"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert "'Newton'" in done.stderr
    assert "'Muon'" in done.stderr


def test_the_table_s_gains_are_means_over_the_pictures_that_did_not_diverge() -> None:
    row = {"peak": 0.005, "iterations": 10, "kernel_ms": 1.0, "step_ms": 0.5}
    text = table(
        {
            "budget_seconds": 3.0,
            "first": {**row, "psnr_db": {"a": 30.0, "b": 20.0}},
            "second": {**row, "psnr_db": {"a": 30.5, "b": 20.1}},
            "third": {**row, "psnr_db": {"a": 29.0, "b": None}},
        }
    )
    assert "| second | 0.005 | 10 | 30.50 | 20.10 | +0.300 | 1.00 | 0.50 |" in text
    assert "| third | 0.005 | 10 | 29.00 | diverged | -1.000 | 1.00 | 0.50 |" in text


def test_ticks_are_round_numbers_within_the_range() -> None:
    assert ticks(0.0, 400.0) == [0, 100, 200, 300, 400]
    assert ticks(19.72, 21.6) == [20.0, 20.5, 21.0, 21.5]


def test_a_line_begins_where_it_last_rises_above_the_cut() -> None:
    points = [(0.0, 0.0), (1.0, 10.0), (2.0, 4.0), (3.0, 8.0), (4.0, 9.0)]
    assert above(points, 6.0) == [(2.5, 6.0), (3.0, 8.0), (4.0, 9.0)]
    assert above(points, -1.0) == points
    assert above(points, 9.5) == []


def test_the_chart_keeps_every_line_within_its_axes() -> None:
    curve = Curve("a < b", tuple((float(x), -100.0 / (x + 1)) for x in range(30)))
    svg = draw([Panel("first", "x", "y", (curve,))] * 3, columns=2)
    root = ET.fromstring(svg)
    lines = list(root.iter("{http://www.w3.org/2000/svg}polyline"))
    assert len(lines) == 3
    for line in lines:
        for point in line.attrib["points"].split():
            x, y = map(float, point.split(","))
            assert 50 < x < 450
            assert 25 < y < 260
    assert "a < b" in {text.text for text in root.iter("{http://www.w3.org/2000/svg}text")}
