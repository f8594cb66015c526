"""Shampoo: gradients multiplied by roots of their own covariances, one per side."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_RIDGE = 1e-6
"""Added to a covariance, in units of its largest eigenvalue (Anil et al., appendix)."""


def inverse_root(covariance: Tensor, root: int) -> Tensor:
    """Return ``(C + ridge)^(-1/root)`` of a symmetric positive semidefinite (n, n) matrix."""
    values, vectors = torch.linalg.eigh(covariance)
    largest = values[-1].clamp_min(1e-30)
    powers = (values.clamp_min(0.0) + _RIDGE * largest).pow(-1.0 / root)
    root_of: Tensor = (vectors * powers) @ vectors.T
    return root_of


class Shampoo:
    """Gupta, Koren & Singer, "Shampoo", ICML 2018, https://arxiv.org/abs/1802.09568, algorithm 1.

    With what made it practical: running means in place of sums, momentum before the preconditioner,
    roots refreshed now and then, and the length of every tensor's update taken from Adam (grafting)
    -- Anil et al., https://arxiv.org/abs/2002.09018; Shi et al., https://arxiv.org/abs/2309.06497,
    section 3. A vector is a tensor of order one: one full covariance, inverse square root.

    Args:
        params: tensors to update in place (float32).
        beta1, beta2: decay of the momentum, and of the covariances and Adam's second moment.
        refresh: iterations between computations of the roots.
    """

    def __init__(
        self,
        params: Sequence[Tensor],
        *,
        beta1: float = 0.9,
        beta2: float = 0.95,
        refresh: int = 10,
        eps: float = 1e-8,
    ) -> None:
        self.params = list(params)
        self.beta1, self.beta2 = beta1, beta2
        self.refresh, self.eps = refresh, eps
        self.iteration = 0
        self.first = [torch.zeros_like(p) for p in self.params]
        self.second = [torch.zeros_like(p) for p in self.params]
        self.covariances = [[p.new_zeros(n, n) for n in p.shape] for p in self.params]
        self.roots = [[torch.eye(n).to(p) for n in p.shape] for p in self.params]

    @torch.no_grad()
    def step(self, gradients: Sequence[Tensor], rate: float) -> None:
        """Update the parameters with learning rate ``rate``."""
        self.iteration += 1
        correction1 = 1.0 - self.beta1**self.iteration
        correction2 = 1.0 - self.beta2**self.iteration
        for index, (p, g) in enumerate(zip(self.params, gradients, strict=True)):
            self._measure(index, g)
            if self.iteration == 1 or self.iteration % self.refresh == 0:
                self.roots[index] = [
                    inverse_root(c / correction2, 2 * p.dim()) for c in self.covariances[index]
                ]
            self.first[index].lerp_(g, 1.0 - self.beta1)
            self.second[index].lerp_(g.square(), 1.0 - self.beta2)
            mean = self.first[index] / correction1
            adam = mean / (self.second[index] / correction2).sqrt_().add_(self.eps)
            turned = self._precondition(index, mean)
            p.sub_(turned * (adam.norm() / (turned.norm() + 1e-30)), alpha=rate)

    def _measure(self, index: int, g: Tensor) -> None:
        products = [torch.outer(g, g)] if g.dim() == 1 else [g @ g.T, g.T @ g]
        for covariance, product in zip(self.covariances[index], products, strict=True):
            covariance.lerp_(product, 1.0 - self.beta2)

    def _precondition(self, index: int, g: Tensor) -> Tensor:
        roots = self.roots[index]
        return roots[0] @ g if g.dim() == 1 else roots[0] @ g @ roots[1]
