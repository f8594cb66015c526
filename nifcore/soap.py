"""SOAP: Adam run in the slowly rotating eigenbasis of Shampoo's preconditioner, cautiously.

For a weight matrix with gradient G (m, n), keep running means of ``G G^T`` (m, m) and ``G^T G``
(n, n), rotate every gradient into their eigenvectors, and let Adam work there. Vyas et al., "SOAP:
Improving and Stabilizing Shampoo using Adam", https://arxiv.org/abs/2409.11321, algorithm 3. The
matrices of NIF are small, so every side is preconditioned and refreshing costs little.

Where the momentum and the present gradient disagree in sign, in the eigenbasis, nothing moves; what
does move is scaled up to make up for it: Liang et al., "Cautious Optimizers: Improving Training
with One Line of Code", https://arxiv.org/abs/2411.16085.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from nifcore.flat import all_finite

LEAST_AGREEMENT = 1e-3
"""An update is scaled up as if at least this share of a tensor's entries agreed."""


class Soap:
    """Optimises a list of tensors in place; vectors get plain Adam.

    Args:
        params: tensors to update (float32).
        beta1, beta2: decay of the momentum, and of both second moments.
        refresh: iterations between refreshes of the eigenbases.
        max_side: longer sides of a matrix are left unrotated.
        eps: added to the root of the second moment.
    """

    def __init__(
        self,
        params: Sequence[Tensor],
        *,
        beta1: float = 0.95,
        beta2: float = 0.95,
        refresh: int = 10,
        max_side: int = 1024,
        eps: float = 1e-8,
    ) -> None:
        self.params = list(params)
        self.beta1, self.beta2 = beta1, beta2
        self.refresh, self.eps = refresh, eps
        self.iteration = 0
        self.momentum = [torch.zeros_like(p) for p in self.params]
        self.second = [torch.zeros_like(p) for p in self.params]
        # per matrix: the two covariances and their eigenbases, None where a side is unrotated
        self.covariances: list[list[Tensor | None]] = []
        self.bases: list[list[Tensor | None]] = []
        for p in self.params:
            sides = p.shape if p.dim() == 2 else ()
            zeros = [p.new_zeros(n, n) if 1 < n <= max_side else None for n in sides]
            self.covariances.append(zeros)
            self.bases.append([None if z is None else torch.eye(len(z)).to(z) for z in zeros])

    @torch.no_grad()
    def step(self, gradients: Sequence[Tensor], rate: float) -> bool:
        """Update the parameters with learning rate ``rate``.

        The first call only measures the covariances, as the paper's implementation does.

        Returns:
            False where a gradient is not finite; then nothing has changed.
        """
        if not all_finite(gradients):
            return False
        self.iteration += 1
        count = self.iteration - 1
        for index, (p, g) in enumerate(zip(self.params, gradients, strict=True)):
            if p.dim() == 2:
                self._measure(index, g)
            if count == 0:
                if p.dim() == 2:
                    self._decompose(index)
                continue
            momentum, second = self.momentum[index], self.second[index]
            momentum.lerp_(g, 1.0 - self.beta1)
            rotated = self._rotate(index, g)
            second.lerp_(rotated.square(), 1.0 - self.beta2)
            scale = (second / (1.0 - self.beta2**count)).sqrt_().add_(self.eps)
            update = self._rotate(index, momentum).div_(1.0 - self.beta1**count).div_(scale)
            agreed = (update * rotated > 0).to(update)
            update.mul_(agreed).div_(agreed.mean().clamp_min(LEAST_AGREEMENT))
            p.sub_(self._rotate_back(index, update), alpha=rate)
            if p.dim() == 2 and self.iteration % self.refresh == 0:
                self._turn(index)
        return True

    def _measure(self, index: int, g: Tensor) -> None:
        left, right = self.covariances[index]
        if left is not None:
            left.lerp_(g @ g.T, 1.0 - self.beta2)
        if right is not None:
            right.lerp_(g.T @ g, 1.0 - self.beta2)

    def _decompose(self, index: int) -> None:
        for side, covariance in enumerate(self.covariances[index]):
            if covariance is not None:
                damped = covariance + 1e-30 * torch.eye(len(covariance)).to(covariance)
                self.bases[index][side] = torch.linalg.eigh(damped).eigenvectors.flip(1)

    def _turn(self, index: int) -> None:
        """Follow the covariances by one power iteration and a QR decomposition per side."""
        for side, (covariance, basis) in enumerate(
            zip(self.covariances[index], self.bases[index], strict=True)
        ):
            if covariance is None or basis is None:
                continue
            estimate = (basis * (covariance @ basis)).sum(0)
            order = torch.argsort(estimate, descending=True, stable=True)
            self.second[index] = self.second[index].index_select(side, order)
            self.bases[index][side] = torch.linalg.qr(covariance @ basis[:, order]).Q

    def _rotate(self, index: int, g: Tensor) -> Tensor:
        if g.dim() != 2:
            return g.clone()
        left, right = self.bases[index]
        g = left.T @ g if left is not None else g
        return g @ right if right is not None else g.clone()

    def _rotate_back(self, index: int, g: Tensor) -> Tensor:
        if g.dim() != 2:
            return g
        left, right = self.bases[index]
        g = left @ g if left is not None else g
        return g @ right.T if right is not None else g

    def state(self) -> dict[str, Any]:
        """Return everything needed to go on from here, as tensors and numbers."""
        return {
            "iteration": self.iteration,
            "momentum": self.momentum,
            "second": self.second,
            "covariances": self.covariances,
            "bases": self.bases,
        }

    def load(self, state: dict[str, Any]) -> None:
        """Take over a state that :meth:`state` returned."""
        self.iteration = int(state["iteration"])
        self.momentum = list(state["momentum"])
        self.second = list(state["second"])
        self.covariances = [list(pair) for pair in state["covariances"]]
        self.bases = [list(pair) for pair in state["bases"]]
