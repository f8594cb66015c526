"""AdamW: a step per coordinate, and weights that decay beside it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class AdamW:
    """Loshchilov & Hutter, "Decoupled Weight Decay Regularization", ICLR 2019, algorithm 2.

    https://arxiv.org/abs/1711.05101

    Args:
        params: tensors to update in place (float32).
        beta1, beta2: decay of the first and of the second moment.
        eps: added to the root of the second moment.
        weight_decay: share of the weights that a learning rate of 1 would take away.
    """

    def __init__(
        self,
        params: Sequence[Tensor],
        *,
        beta1: float = 0.9,
        beta2: float = 0.999,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        self.params = list(params)
        self.beta1, self.beta2 = beta1, beta2
        self.eps, self.weight_decay = eps, weight_decay
        self.iteration = 0
        self.first = [torch.zeros_like(p) for p in self.params]
        self.second = [torch.zeros_like(p) for p in self.params]

    @torch.no_grad()
    def step(self, gradients: Sequence[Tensor], rate: float) -> None:
        """Update the parameters with learning rate ``rate``."""
        self.iteration += 1
        correction1 = 1.0 - self.beta1**self.iteration
        correction2 = 1.0 - self.beta2**self.iteration
        for p, g, first, second in zip(
            self.params, gradients, self.first, self.second, strict=True
        ):
            first.lerp_(g, 1.0 - self.beta1)
            second.lerp_(g.square(), 1.0 - self.beta2)
            scale = (second / correction2).sqrt_().add_(self.eps)
            p.mul_(1.0 - rate * self.weight_decay)
            p.addcdiv_(first, scale, value=-rate / correction1)
