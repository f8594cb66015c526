"""Muon: the momentum of every matrix, its singular values made equal."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from benchmarks.optimisers.adamw import AdamW

_QUINTIC = (3.4445, -4.7750, 2.0315)
"""Coefficients of Jordan et al.: steep at 0, so that five rounds lift small singular values."""
_ROUNDS = 5


def orthogonalise(matrix: Tensor) -> Tensor:
    """Return nearly ``U V^T`` of ``matrix = U S V^T``, (m, n), singular values in about 0.7..1.2.

    Each Newton-Schulz round maps every singular value s to ``a s + b s^3 + c s^5``.
    """
    a, b, c = _QUINTIC
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix
    x = x.div(x.norm() + 1e-30)
    for _ in range(_ROUNDS):
        gram = x.mm(x.T)
        x = torch.addmm(x, b * gram + c * gram.mm(gram), x, beta=a)
    return x.T if tall else x


class Muon:
    """Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024.

    https://kellerjordan.github.io/posts/muon/. Vectors, and the matrices that are named, get AdamW;
    that both can share one learning rate, updates of (m, n) are scaled by ``0.2 sqrt(max(m, n))``:
    Liu et al., "Muon is Scalable for LLM Training", https://arxiv.org/abs/2502.16982, section 2.2.

    Args:
        params: tensors to update in place (float32).
        adam: indices of matrices that are left to AdamW (Jordan et al.: first and last layers).
        momentum: decay of the momentum, which is Nesterov's.
    """

    def __init__(
        self, params: Sequence[Tensor], *, adam: Collection[int] = (), momentum: float = 0.95
    ) -> None:
        self.params = list(params)
        self.momentum = momentum
        self._chosen = [i for i, p in enumerate(params) if p.dim() == 2 and i not in adam]
        self._rest = [i for i in range(len(self.params)) if i not in self._chosen]
        self._buffers = {i: torch.zeros_like(self.params[i]) for i in self._chosen}
        self._adam = AdamW([self.params[i] for i in self._rest], beta1=0.9, beta2=0.95)

    @torch.no_grad()
    def step(self, gradients: Sequence[Tensor], rate: float) -> None:
        """Update the parameters with learning rate ``rate``."""
        for i in self._chosen:
            buffer = self._buffers[i].lerp_(gradients[i], 1.0 - self.momentum)
            ahead = gradients[i].lerp(buffer, self.momentum)
            scale = 0.2 * math.sqrt(max(ahead.shape))
            self.params[i].sub_(orthogonalise(ahead), alpha=rate * scale)
        self._adam.step([gradients[i] for i in self._rest], rate)
