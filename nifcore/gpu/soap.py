"""SOAP and AdamW for B networks at once, over (B, N) weights; see :mod:`nifcore.soap`.

Everything element by element is one launch over (B, N); only the rotations are products per tensor.
Learning rates are tensors, state is changed in place and nothing waits for the host, so that a step
can be part of a recorded graph; except :meth:`BatchSoap.begin`, which decomposes covariances.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from nifcore.gpu.layout import Layout
from nifcore.gpu.orthogonal import orthonormal
from nifcore.soap import LEAST_AGREEMENT


class BatchOptimiser(Protocol):
    """What :class:`~nifcore.gpu.batch_fit.BatchFit` asks of an optimiser."""

    fresh: list[int]
    """Items whose next step must be begun by :meth:`begin`."""

    @property
    def due(self) -> bool:
        """Whether the next step does more than the others, and must be recorded by itself."""

    def begin(self, gradient: Tensor, rate: Tensor) -> None:
        """Make a step where some items are fresh; may wait for the host."""

    def step(self, gradient: Tensor, rate: Tensor, *, due: bool) -> None:
        """Make a step with ``gradient`` (B, N) and learning rates ``rate`` (B,)."""

    def advance(self) -> None:
        """Count a step on the host, after it was made or replayed."""

    def restart(self, items: Sequence[int]) -> None:
        """Forget everything about these items."""

    def keep(self, items: Tensor, weights: Tensor) -> None:
        """Drop all items but ``items``, int64 indices; ``weights`` are the remaining (B, N)."""

    def state_of(self, item: int) -> dict[Any, Any]:
        """Return one item's state in the form of the single optimiser's ``load``."""


class BatchSoap:
    """B times :class:`nifcore.soap.Soap`, in lockstep.

    An item that begins anew later keeps its own count of steps, but its basis turns with the
    others'.

    Args:
        layout: of the weights.
        weights: (B, N) float32, changed in place.
        beta1, beta2, refresh, max_side, eps: as for the single one.
    """

    def __init__(
        self,
        layout: Layout,
        weights: Tensor,
        *,
        beta1: float = 0.95,
        beta2: float = 0.95,
        refresh: int = 10,
        max_side: int = 1024,
        eps: float = 1e-8,
    ) -> None:
        self.layout, self.weights = layout, weights
        self.beta1, self.beta2, self.refresh, self.eps = beta1, beta2, refresh, eps
        self.iteration = 0
        self.fresh = list(range(len(weights)))
        self.counts = weights.new_zeros(len(weights), 1)
        self.momentum = torch.zeros_like(weights)
        self.second = torch.zeros_like(weights)
        self._owners = layout.owners(weights.device)
        sizes = [math.prod(shape) for shape in layout.shapes]
        self._sizes = torch.tensor(sizes, dtype=weights.dtype, device=weights.device)
        self.matrices = [i for i, shape in enumerate(layout.shapes) if len(shape) == 2]
        # per matrix and side, None where a side is unrotated
        self.covariances: list[list[Tensor | None]] = []
        self.bases: list[list[Tensor | None]] = []
        for index in self.matrices:
            sides = [n if 1 < n <= max_side else None for n in layout.shapes[index]]
            zeros = [None if n is None else weights.new_zeros(len(weights), n, n) for n in sides]
            self.covariances.append(zeros)
            self.bases.append([None if z is None else _identities(z) for z in zeros])

    @property
    def due(self) -> bool:
        return (self.iteration + 1) % self.refresh == 0

    @torch.no_grad()
    def begin(self, gradient: Tensor, rate: Tensor) -> None:
        at = torch.tensor(self.fresh, device=self.weights.device)
        live = torch.ones_like(self.counts).index_fill_(0, at, 0.0)
        self._measure(gradient)
        for covariances, bases in zip(self.covariances, self.bases, strict=True):
            for covariance, basis in zip(covariances, bases, strict=True):
                if covariance is not None and basis is not None:
                    part = covariance.index_select(0, at)
                    damped = part + 1e-30 * torch.eye(part.shape[1]).to(part)
                    vectors = torch.linalg.eigh(damped).eigenvectors.flip(2)
                    basis.index_copy_(0, at, vectors)
        if len(self.fresh) < len(self.weights):
            self._update(gradient, rate, live)
            if self.due:
                self._turn()
        self.fresh = []

    @torch.no_grad()
    def step(self, gradient: Tensor, rate: Tensor, *, due: bool) -> None:
        self._measure(gradient)
        self._update(gradient, rate, None)
        if due:
            self._turn()

    def advance(self) -> None:
        self.iteration += 1

    def _measure(self, gradient: Tensor) -> None:
        views, share = self.layout.views(gradient), 1.0 - self.beta2
        for index, (left, right) in zip(self.matrices, self.covariances, strict=True):
            g = views[index]
            if left is not None:
                left.baddbmm_(g, g.mT, beta=self.beta2, alpha=share)
            if right is not None:
                right.baddbmm_(g.mT, g, beta=self.beta2, alpha=share)

    def _update(self, gradient: Tensor, rate: Tensor, live: Tensor | None) -> None:
        """Adam in the eigenbases; items that are not ``live`` (B, 1) stay as they are."""
        one = 1.0 if live is None else live
        self.counts += one
        rotated = self._rotated(gradient)
        self.momentum += (gradient - self.momentum) * ((1.0 - self.beta1) * one)
        self.second += (rotated.square() - self.second) * ((1.0 - self.beta2) * one)
        counts = self.counts.clamp_min(1.0)
        scale = (self.second / (1.0 - self.beta2**counts)).sqrt_().add_(self.eps)
        update = self._rotated(self.momentum)
        update.div_(1.0 - self.beta1**counts).div_(scale)
        agreed = (update * rotated > 0).to(update)
        shares = self._sizes.new_zeros(len(update), len(self._sizes))
        shares.index_add_(1, self._owners, agreed).div_(self._sizes).clamp_min_(LEAST_AGREEMENT)
        update.mul_(agreed).div_(shares.index_select(1, self._owners))
        self._rotate_back(update)
        self.weights -= update * (rate[:, None] * one)

    def _turn(self) -> None:
        """Follow the covariances by one power iteration and an orthonormalisation per side."""
        seconds = self.layout.views(self.second)
        for index, covariances, bases in zip(
            self.matrices, self.covariances, self.bases, strict=True
        ):
            for side, (covariance, basis) in enumerate(zip(covariances, bases, strict=True)):
                if covariance is None or basis is None:
                    continue
                turned = covariance @ basis
                order = torch.argsort((basis * turned).sum(1), dim=1, descending=True)
                second = seconds[index]
                places = (order[:, :, None] if side == 0 else order[:, None]).expand_as(second)
                second.copy_(second.gather(side + 1, places))
                turned = turned.gather(2, order[:, None].expand_as(turned))
                basis.copy_(orthonormal(turned))

    def _rotated(self, flat: Tensor) -> Tensor:
        result = flat.clone()
        views = self.layout.views(result)
        for index, (left, right) in zip(self.matrices, self.bases, strict=True):
            g = views[index]
            turned = left.mT @ g if left is not None else g
            g.copy_(turned @ right if right is not None else turned)
        return result

    def _rotate_back(self, flat: Tensor) -> None:
        views = self.layout.views(flat)
        for index, (left, right) in zip(self.matrices, self.bases, strict=True):
            g = views[index]
            turned = left @ g if left is not None else g
            g.copy_(turned @ right.mT if right is not None else turned)

    def restart(self, items: Sequence[int]) -> None:
        at = torch.tensor(list(items), device=self.weights.device)
        for state in (self.counts, self.momentum, self.second):
            state.index_fill_(0, at, 0.0)
        for covariance in (c for pair in self.covariances for c in pair if c is not None):
            covariance.index_fill_(0, at, 0.0)
        self.fresh = sorted({*self.fresh, *items})

    def keep(self, items: Tensor, weights: Tensor) -> None:
        places = {old: new for new, old in enumerate(items.tolist())}
        self.fresh = [places[item] for item in self.fresh if item in places]
        self.weights = weights
        self.counts, self.momentum, self.second = (
            state.index_select(0, items) for state in (self.counts, self.momentum, self.second)
        )
        for pairs in (self.covariances, self.bases):
            for pair in pairs:
                pair[:] = [None if each is None else each.index_select(0, items) for each in pair]

    def state_of(self, item: int) -> dict[str, Any]:
        row = slice(item, item + 1)
        pairs: dict[str, list[list[Tensor | None]]] = {"covariances": [], "bases": []}
        for name, mine in (("covariances", self.covariances), ("bases", self.bases)):
            by_matrix = dict(zip(self.matrices, mine, strict=True))
            for index in range(len(self.layout.shapes)):
                pair = by_matrix.get(index, [])
                pairs[name].append([None if each is None else each[item].clone() for each in pair])
        return {
            "iteration": 0 if item in self.fresh else int(self.counts[item]) + 1,
            "momentum": self.layout.unpack(self.momentum[row][0]),
            "second": self.layout.unpack(self.second[row][0]),
            **pairs,
        }


class BatchAdamW:
    """B times torch's AdamW with its default betas.

    Args:
        layout: of the weights.
        weights: (B, N) float32, changed in place.
        weight_decay: as torch's.
    """

    beta1, beta2, eps = 0.9, 0.999, 1e-8
    due = False

    def __init__(self, layout: Layout, weights: Tensor, weight_decay: float) -> None:
        self.layout, self.weights, self.weight_decay = layout, weights, weight_decay
        self.fresh: list[int] = []
        self.counts = weights.new_zeros(len(weights), 1)
        self.momentum = torch.zeros_like(weights)
        self.second = torch.zeros_like(weights)

    def begin(self, gradient: Tensor, rate: Tensor) -> None:
        self.step(gradient, rate, due=False)

    @torch.no_grad()
    def step(self, gradient: Tensor, rate: Tensor, *, due: bool) -> None:
        rate = rate[:, None]
        self.counts += 1.0
        self.weights *= 1.0 - rate * self.weight_decay
        self.momentum.lerp_(gradient, 1.0 - self.beta1)
        self.second.mul_(self.beta2).addcmul_(gradient, gradient, value=1.0 - self.beta2)
        root = (self.second.sqrt() / (1.0 - self.beta2**self.counts).sqrt()).add_(self.eps)
        self.weights -= rate / (1.0 - self.beta1**self.counts) * self.momentum / root

    def advance(self) -> None:
        """Nothing is counted on the host."""

    def restart(self, items: Sequence[int]) -> None:
        at = torch.tensor(list(items), device=self.weights.device)
        for state in (self.counts, self.momentum, self.second):
            state.index_fill_(0, at, 0.0)

    def keep(self, items: Tensor, weights: Tensor) -> None:
        self.weights = weights
        self.counts, self.momentum, self.second = (
            state.index_select(0, items) for state in (self.counts, self.momentum, self.second)
        )

    def state_of(self, item: int) -> dict[Any, Any]:
        momentum = self.layout.unpack(self.momentum[item])
        second = self.layout.unpack(self.second[item])
        return {
            # a tensor of its own each: torch counts in it
            index: {"step": self.counts[item, 0].cpu().clone(), "exp_avg": m, "exp_avg_sq": v}
            for index, (m, v) in enumerate(zip(momentum, second, strict=True))
        }


def _identities(like: Tensor) -> Tensor:
    return torch.eye(like.shape[1]).to(like).expand_as(like).contiguous()
