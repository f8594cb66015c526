import pytest
import torch

pytest.importorskip("triton", reason="Triton has no build for this machine")

from nifcore.gpu.orthogonal import gram_schmidt, orthonormal

N = 20


def random(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def tiny_columns():
    return torch.linalg.qr(random(1, N, N)).Q * torch.logspace(0, -30, N)


def of_low_rank():
    factor = random(1, N, 3)
    return factor @ factor.mT


def twins():
    matrix = random(1, N, N)
    matrix[:, :, 11] = matrix[:, :, 4]
    return matrix


@pytest.mark.parametrize(
    "matrix",
    [
        random(2, N, N),
        random(1, 37, 37),
        tiny_columns(),
        of_low_rank(),
        twins(),
        torch.zeros(1, 5, 5),
    ],
    ids=["random", "two panels", "tiny columns", "low rank", "equal columns", "zero"],
)
def test_bases_are_orthonormal_in_float32_whatever_comes(matrix, device):
    basis = gram_schmidt(matrix.to(device))

    eye = torch.eye(matrix.shape[1], device=device).expand_as(basis)
    torch.testing.assert_close(basis.mT @ basis, eye, rtol=0, atol=2e-6)


def test_it_is_a_qr_decomposition_up_to_signs(device):
    matrix = random(2, 34, 34)
    expected = torch.linalg.qr(matrix.double()).Q

    basis = gram_schmidt(matrix.to(device)).double().cpu()

    cosines = (basis * expected).sum(1).abs()
    torch.testing.assert_close(cosines, torch.ones_like(cosines), rtol=0, atol=1e-4)


def test_on_a_cpu_it_is_torchs():
    matrix = random(2, 6, 6)
    assert torch.equal(orthonormal(matrix), torch.linalg.qr(matrix).Q)


def test_power_iterations_find_the_eigenvectors(device):
    turned = torch.linalg.qr(random(1, 4, 4)).Q
    covariance = (turned * torch.logspace(0, -3, 4)) @ turned.mT
    basis = torch.eye(4)[None].to(device)

    # each makes what is left of the others ten times smaller
    for _ in range(10):
        basis = gram_schmidt(covariance.to(device) @ basis)

    rotated = basis.mT.cpu() @ covariance @ basis.cpu()
    off = rotated - torch.diag_embed(rotated.diagonal(dim1=1, dim2=2))
    assert off.norm() < 1e-3 * rotated.norm()
