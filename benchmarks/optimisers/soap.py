"""SOAP with its choices left open: what the codec's own SOAP was decided between."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor


@dataclass(frozen=True)
class SoapChoices:
    """Settings of :class:`OpenSoap`; the defaults are the codec's.

    Attributes:
        beta1: decay of the momentum.
        beta2: decay of the second moment in the eigenbasis.
        covariance_beta: decay of the covariances, None for ``beta2``.
        refresh: iterations between refreshes of the eigenbases.
        decomposition: refresh by one power iteration and QR, or by a whole eigendecomposition.
        covariances: of the plain gradient, or each of the gradient whitened on the other side:
            Lin et al., "Understanding and Improving Shampoo and SOAP via Kullback-Leibler
            Minimization", https://arxiv.org/abs/2509.03378.
        sides: which sides of a matrix are rotated; "shorter" is the paper's one-sided variant.
        corrected: divide both moments by what they lack at first.
        measures_first: the first call takes no step.
        nesterov: look one gradient ahead in the momentum, as NAdam does.
        cautious: drop the coordinates of the update whose sign is not the gradient's, and scale
            the others up (Liang et al., https://arxiv.org/abs/2411.16085), in the eigenbasis.
        vectors: plain Adam, rotated by a covariance of their own, or joined as one more column
            to the weight before them, as K-FAC does.
        eps: added to the root of the second moment.
    """

    beta1: float = 0.95
    beta2: float = 0.95
    covariance_beta: float | None = None
    refresh: int = 10
    decomposition: Literal["qr", "eigh"] = "qr"
    covariances: Literal["plain", "kl"] = "plain"
    sides: Literal["both", "left", "right", "shorter"] = "both"
    corrected: bool = True
    measures_first: bool = True
    nesterov: bool = False
    cautious: bool = True
    vectors: Literal["plain", "rotated", "joined"] = "plain"
    eps: float = 1e-8


class OpenSoap:
    """Vyas et al., "SOAP", https://arxiv.org/abs/2409.11321, algorithm 3, with other choices too.

    Args:
        params: tensors to update in place (float32); for joined vectors, weight (out, in) and bias
            (out,) in turn.
    """

    def __init__(self, params: Sequence[Tensor], choices: SoapChoices | None = None) -> None:
        self.params = list(params)
        self.choices = choices or SoapChoices()
        self.iteration = 0
        blocks = self._blocks(self.params)
        self.momentum = [torch.zeros_like(b) for b in blocks]
        self.second = [torch.zeros_like(b) for b in blocks]
        joined = self.choices.vectors == "joined"
        vectors = [not joined and self.params[i].dim() == 1 for i in range(len(blocks))]
        self.covariances = [
            [b.new_zeros(n, n) if rotated else None for n, rotated in self._sides(b, is_vector)]
            for b, is_vector in zip(blocks, vectors, strict=True)
        ]
        self.spectra: list[list[Tensor]] = [[b.new_ones(n) for n in b.shape] for b in blocks]
        self.bases: list[list[Tensor | None]] = [
            [None if c is None else torch.eye(len(c)).to(c) for c in pair]
            for pair in self.covariances
        ]

    @torch.no_grad()
    def step(self, gradients: Sequence[Tensor], rate: float) -> None:
        """Update the parameters with learning rate ``rate``."""
        choices = self.choices
        self.iteration += 1
        updates = []
        for index, g in enumerate(self._blocks(gradients)):
            self._measure(index, g)
            if self.iteration == 1:
                self._decompose(index)
                if choices.measures_first:
                    updates.append(torch.zeros_like(g))
                    continue
            updates.append(self._update(index, g))
            if self.iteration % choices.refresh == 0:
                self._refresh(index)
        for p, update in zip(self.params, self._apart(updates), strict=True):
            p.sub_(update, alpha=rate)

    # ------------------------------------------------------------------ blocks

    def _blocks(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Return what is preconditioned as one, each (m, n)."""
        if self.choices.vectors == "joined":
            pairs = zip(tensors[::2], tensors[1::2], strict=True)
            return [torch.cat([weight, bias[:, None]], 1) for weight, bias in pairs]
        return [t if t.dim() == 2 else t[:, None] for t in tensors]

    def _apart(self, blocks: Sequence[Tensor]) -> list[Tensor]:
        """Return the blocks' contents in the shapes of the parameters."""
        if self.choices.vectors == "joined":
            return [part for b in blocks for part in (b[:, :-1], b[:, -1])]
        return [b.view(p.shape) for b, p in zip(blocks, self.params, strict=True)]

    def _sides(self, block: Tensor, is_vector: bool) -> list[tuple[int, bool]]:
        """Return both sides' lengths, and whether they are rotated."""
        rows, cols = block.shape
        if is_vector:
            return [(rows, self.choices.vectors == "rotated" and rows > 1), (1, False)]
        wanted = self.choices.sides
        left = wanted in ("both", "left") or (wanted == "shorter" and rows <= cols)
        right = wanted in ("both", "right") or (wanted == "shorter" and rows > cols)
        return [(rows, left and rows > 1), (cols, right and cols > 1)]

    # ------------------------------------------------------------------ one block

    def _update(self, index: int, g: Tensor) -> Tensor:
        choices = self.choices
        count = self.iteration - choices.measures_first
        lacking1 = 1.0 - choices.beta1**count if choices.corrected else 1.0
        lacking2 = 1.0 - choices.beta2**count if choices.corrected else 1.0
        momentum, second = self.momentum[index], self.second[index]
        momentum.lerp_(g, 1.0 - choices.beta1)
        rotated = self._rotate(index, g)
        second.lerp_(rotated.square(), 1.0 - choices.beta2)
        ahead = momentum.lerp(g, 1.0 - choices.beta1) if choices.nesterov else momentum
        scale = (second / lacking2).sqrt_().add_(choices.eps)
        update = self._rotate(index, ahead).div(lacking1).div_(scale)
        if choices.cautious:
            agrees = (update * rotated > 0).to(update)
            update = update * agrees / agrees.mean().clamp_min(1e-3)
        return self._rotate_back(index, update)

    def _measure(self, index: int, g: Tensor) -> None:
        beta = self.choices.covariance_beta
        share = 1.0 - (self.choices.beta2 if beta is None else beta)
        left, right = self.covariances[index]
        seen_left = seen_right = g
        if self.choices.covariances == "kl" and left is not None and right is not None:
            seen_left, seen_right = self._whitened(index, g, share)
        if left is not None:
            left.lerp_(seen_left @ seen_left.T, share)
        if right is not None:
            right.lerp_(seen_right.T @ seen_right, share)

    def _whitened(self, index: int, g: Tensor, share: float) -> tuple[Tensor, Tensor]:
        """Return the gradient whitened on the right and on the left, by present estimates.

        The eigenvalues follow the same fixed point as the covariances, in the present bases.
        """
        left_basis, right_basis = self.bases[index]
        assert left_basis is not None
        assert right_basis is not None
        left, right = self.spectra[index]
        rows, cols = g.shape
        if self.iteration == 1:  # the scale is shared evenly between both sides
            left.fill_(float(g.square().mean().sqrt()) + 1e-30)
            right.copy_(left[:1].expand(cols))
        power = self._rotate(index, g).square()
        found_left = (power / right).mean(1)
        found_right = (power / left[:, None]).mean(0)
        seen_left = (g @ right_basis) / (right.sqrt() * cols**0.5)
        seen_right = (left_basis.T @ g) / (left.sqrt()[:, None] * rows**0.5)
        if self.iteration > 1:
            left.lerp_(found_left, share).clamp_min_(1e-12 * float(left.max()))
            right.lerp_(found_right, share).clamp_min_(1e-12 * float(right.max()))
        return seen_left, seen_right

    def _decompose(self, index: int) -> None:
        for side, covariance in enumerate(self.covariances[index]):
            if covariance is not None:
                damped = covariance + 1e-30 * torch.eye(len(covariance)).to(covariance)
                self.bases[index][side] = torch.linalg.eigh(damped).eigenvectors.flip(1)

    def _refresh(self, index: int) -> None:
        if self.choices.decomposition == "eigh":
            self._decompose(index)
            return
        pairs = zip(self.covariances[index], self.bases[index], strict=True)
        for side, (covariance, basis) in enumerate(pairs):
            if covariance is None or basis is None:
                continue
            estimate = (basis * (covariance @ basis)).sum(0)
            order = torch.argsort(estimate, descending=True)
            self.second[index] = self.second[index].index_select(side, order)
            self.spectra[index][side] = self.spectra[index][side][order]
            self.bases[index][side] = torch.linalg.qr(covariance @ basis[:, order]).Q

    def _rotate(self, index: int, g: Tensor) -> Tensor:
        left, right = self.bases[index]
        g = left.T @ g if left is not None else g
        return g @ right if right is not None else g

    def _rotate_back(self, index: int, g: Tensor) -> Tensor:
        left, right = self.bases[index]
        g = left @ g if left is not None else g
        return g @ right.T if right is not None else g
