import numpy as np
import torch

from nifcore.soap import Soap


def test_without_matrices_it_is_cautious_adam():
    # Adam from its definition, one step behind: SOAP's first call only measures; entries whose
    # momentum points against the gradient wait, the others move farther for it
    generator = torch.Generator().manual_seed(0)
    p = torch.randn(5, generator=generator)
    gradients = [torch.randn(5, generator=generator) for _ in range(7)]
    optimiser = Soap([p], beta1=0.9, beta2=0.95)
    expected = p.clone().double().numpy()
    m, v = np.zeros(5), np.zeros(5)

    for g in gradients:
        optimiser.step([g], 0.01)
    for t, g in enumerate((g.double().numpy() for g in gradients[1:]), start=1):
        m = 0.9 * m + 0.1 * g
        v = 0.95 * v + 0.05 * g * g
        update = (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.95**t)) + 1e-8)
        agreed = np.sign(m) == np.sign(g)
        expected -= np.where(agreed, 0.01 * update / agreed.mean(), 0.0)

    np.testing.assert_allclose(p.numpy(), expected, rtol=1e-5)


def test_updates_turn_with_the_basis_of_the_gradients():
    """SOAP is Adam in the eigenbasis: rotating the problem rotates the path."""
    generator = torch.Generator().manual_seed(3)
    left, right, start, target = torch.randn(
        4, 5, 5, generator=generator, dtype=torch.float64
    ).unbind()
    left, right = torch.linalg.qr(left).Q, torch.linalg.qr(right).Q
    weights = torch.logspace(0, 2, 25, dtype=torch.float64).view(5, 5)
    plain, turned = start.clone(), left @ start @ right
    first, second = Soap([plain], refresh=3), Soap([turned], refresh=3)
    # in the basis of one gradient that gradient is diagonal: only another one has signs everywhere
    other = weights.flip(1) * target
    first.step([other], 0.05)
    second.step([left @ other @ right], 0.05)

    for _ in range(25):
        first.step([weights * (plain - target)], 0.05)
        back = left.T @ turned @ right.T
        second.step([left @ (weights * (back - target)) @ right], 0.05)

    torch.testing.assert_close(turned, left @ plain @ right, rtol=1e-6, atol=1e-6)
    assert (plain - start).norm() > 0.5


def test_bases_stay_orthogonal_and_diagonalise_the_covariance():
    generator = torch.Generator().manual_seed(5)
    p = torch.zeros(8, 5)
    scale = torch.logspace(0, 2, 8)[:, None]
    mix = torch.linalg.qr(torch.randn(8, 8, generator=generator)).Q
    optimiser = Soap([p])

    for _ in range(200):
        optimiser.step([mix @ (scale * torch.randn(8, 5, generator=generator))], 1e-3)

    covariance, basis = optimiser.covariances[0][0], optimiser.bases[0][0]
    torch.testing.assert_close(basis.T @ basis, torch.eye(8), atol=1e-5, rtol=0)
    rotated = basis.T @ covariance @ basis
    off = rotated - rotated.diag().diag()
    assert off.norm() < 0.05 * rotated.norm()


def test_beats_adam_on_an_ill_conditioned_product():
    generator = torch.Generator().manual_seed(7)
    inputs = torch.randn(200, 12, generator=generator) @ torch.randn(12, 12, generator=generator)
    truth = torch.randn(6, 12, generator=generator)
    outputs = inputs @ truth.T

    def run(step_with):
        p = torch.zeros(6, 12)
        take = step_with(p)
        for _ in range(150):
            take(2 * (inputs @ p.T - outputs).T @ inputs / len(inputs))
        return float((inputs @ p.T - outputs).square().mean())

    def soap(p):
        optimiser = Soap([p])
        return lambda g: optimiser.step([g], 0.03)

    def adam(p):
        optimiser = torch.optim.Adam([p], lr=0.03)

        def take(g):
            p.grad = g
            optimiser.step()

        return take

    assert run(soap) < 0.5 * run(adam)


def test_a_loaded_state_goes_on_exactly():
    generator = torch.Generator().manual_seed(1)
    gradients = [[torch.randn(7, 3, generator=generator), torch.randn(7)] for _ in range(30)]
    whole = [torch.ones(7, 3), torch.ones(7)]
    optimiser = Soap(whole)
    for g in gradients[:17]:
        optimiser.step(g, 0.01)
    halfway, state = [p.clone() for p in whole], optimiser.state()
    resumed = Soap(halfway)
    resumed.load({k: v if isinstance(v, int) else _copied(v) for k, v in state.items()})

    for g in gradients[17:]:
        optimiser.step(g, 0.01)
        resumed.step(g, 0.01)

    assert all(torch.equal(a, b) for a, b in zip(whole, halfway, strict=True))


def _copied(value):
    if isinstance(value, torch.Tensor):
        return value.clone()
    return None if value is None else [_copied(item) for item in value]


def test_long_sides_stay_unrotated():
    p = torch.zeros(40, 5)
    g = torch.randn(40, 5, generator=torch.Generator().manual_seed(2))
    optimiser = Soap([p], max_side=16)
    optimiser.step([g], 0.1)
    optimiser.step([g], 0.1)

    # with equal moments Adam's first step is the sign, here along the short side's eigenvectors
    basis = np.linalg.eigh((g.T @ g).double().numpy())[1]
    expected = -0.1 * np.sign(g.double().numpy() @ basis) @ basis.T
    np.testing.assert_allclose(p.numpy(), expected, atol=1e-5)
