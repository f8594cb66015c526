"""PSGD-Kron: a Kronecker-factored preconditioner, learned so that it whitens the momentum."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

_BALANCE = 100
"""Iterations between balancings of the two factors."""
_MOST_RMS = 1.1
"""A whitened update has a root mean square of 1; longer ones are cut to this."""


def update_share(
    iteration: int, flat: int = 500, decay: float = 0.001, least: float = 0.03
) -> float:
    """Return how often the preconditioner is updated: always at first, then ever more rarely."""
    return min(1.0, max(least, math.exp(-decay * (iteration - flat))))


class Kron:
    """Li, "Preconditioned Stochastic Gradient Descent", https://arxiv.org/abs/1512.04202.

    With triangular factors updated on their Lie group: Pooladzandi & Li,
    https://arxiv.org/abs/2402.04553. For a matrix G the preconditioned gradient is
    ``P G = Ql^T Ql G Qr^T Qr``; the factors descend the criterion
    ``E[g^T P g + v^T P^-1 v]`` with v normal, whose minimum has E[(P g)(P g)^T] = P E[v v^T] P^-1
    = I, by ``Q -= rate / |.| * triu(A A^T - B B^T) Q`` with ``A = Ql G Qr^T`` and
    ``B = Ql^-T V Qr^-1``. Vectors have a diagonal Q. The settings are those of the authors'
    programs (psgd_torch, kron_torch): the first scale of Q from the first gradient's fourth moment,
    P learned on the gradient and applied to its momentum (learned on the momentum, kron_torch's
    default, these fits lose several dB), and the update's root mean square limited.

    Args:
        params: tensors to update in place (float32).
        beta: decay of the momentum.
        factor_rate: learning rate of the factors.
        seed: of the vectors v, and of the iterations without an update of the factors.
    """

    def __init__(
        self,
        params: Sequence[Tensor],
        *,
        beta: float = 0.9,
        factor_rate: float = 0.1,
        seed: int = 0,
    ) -> None:
        self.params = list(params)
        self.beta, self.factor_rate = beta, factor_rate
        self.iteration = 0
        self.momentum = [torch.zeros_like(p) for p in self.params]
        self.factors: list[list[Tensor]] = []
        self._generator = torch.Generator().manual_seed(seed)

    @torch.no_grad()
    def step(self, gradients: Sequence[Tensor], rate: float) -> None:
        """Update the parameters with learning rate ``rate``."""
        if not self.factors:
            self.factors = [_first_factors(g) for g in gradients]
        draw = float(torch.rand((), generator=self._generator))
        learns = draw < update_share(self.iteration)
        self.iteration += 1
        correction = 1.0 - self.beta**self.iteration
        for p, g, momentum, factors in zip(
            self.params, gradients, self.momentum, self.factors, strict=True
        ):
            mean = momentum.lerp_(g, 1.0 - self.beta) / correction
            if learns:
                if len(factors) == 2 and self.iteration % _BALANCE == 0:
                    _balance(factors)
                noise = torch.randn(g.shape, generator=self._generator).to(g)
                learn(factors, g, noise, self.factor_rate)
            update = precondition(factors, mean)
            rms = float(update.square().mean().sqrt())
            p.sub_(update, alpha=rate * min(1.0, _MOST_RMS / max(rms, 1e-30)))


def precondition(factors: Sequence[Tensor], g: Tensor) -> Tensor:
    """Return ``P g`` for a gradient of the shape that the factors were made for."""
    if g.dim() == 1:
        return factors[0].square() * g
    left, right = factors
    return left.T @ (left @ g @ right.T) @ right


def learn(factors: list[Tensor], g: Tensor, noise: Tensor, rate: float) -> None:
    """Move the factors one step towards whitening ``g``, in place.

    Args:
        noise: normal, of the shape of ``g``.
        rate: relative length of the step.
    """
    if g.dim() == 1:
        (q,) = factors
        up, down = (q * g).square(), (noise / q).square()
        q.sub_(rate / ((up + down).max() + 1e-30) * (up - down) * q)
        return
    left, right = factors
    a = left @ g @ right.T
    b = torch.linalg.solve_triangular(right, noise, upper=True, left=False)
    b = torch.linalg.solve_triangular(left.T, b, upper=False)
    for q, up, down in ((left, a @ a.T, b @ b.T), (right, a.T @ a, b.T @ b)):
        length = _spectral_norm_bound(up + down) + 1e-30
        q.sub_(torch.triu(up - down) @ q, alpha=rate / length)


def _first_factors(g: Tensor) -> list[Tensor]:
    scale = float(g.square().square().mean()) + 1e-30
    if g.dim() == 1:
        return [torch.full_like(g, scale**-0.125)]
    return [torch.eye(n).to(g) * scale**-0.0625 for n in g.shape]


def _balance(factors: list[Tensor]) -> None:
    """Give both factors the same largest element; their product stays."""
    left, right = factors
    ratio = float((right.abs().max() / left.abs().max()).sqrt())
    left.mul_(ratio)
    right.div_(ratio)


def _spectral_norm_bound(matrix: Tensor) -> float:
    """Return a tight lower bound of the norm of a symmetric matrix: one power iteration."""
    row = matrix[matrix.square().sum(1).argmax()]
    start = matrix @ row
    return float((matrix @ (start / (start.norm() + 1e-30))).norm())
