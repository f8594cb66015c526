"""How the tensors of one network lie in one row of a (B, N) weight matrix."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import torch
from torch import Tensor

from nifcore.architecture import Architecture
from nifcore.network import Params


@dataclass(frozen=True)
class Layout:
    """Tensors in file order, one after the other.

    Attributes:
        arch: shape of the networks.
    """

    arch: Architecture

    @cached_property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """Shape of every tensor, in file order."""
        return tuple(self.arch.shapes)

    @cached_property
    def offsets(self) -> tuple[int, ...]:
        """Where every tensor begins, and at the end where the last one ends."""
        return (0, *accumulate(math.prod(shape) for shape in self.shapes))

    @property
    def size(self) -> int:
        """N, the weights of one network."""
        return self.offsets[-1]

    def views(self, flat: Tensor) -> list[Tensor]:
        """Return the tensors inside ``flat`` (B, N), each (B, out, in) or (B, out), not copied."""
        count = len(flat)
        return [
            flat[:, start:end].view(count, *shape)
            for shape, start, end in zip(self.shapes, self.offsets, self.offsets[1:], strict=False)
        ]

    def pack(self, networks: Sequence[Params], device: torch.device) -> Tensor:
        """Return the (B, N) matrix of B parameter lists."""
        rows = [torch.cat([p.flatten() for p in params]) for params in networks]
        return torch.stack(rows).to(device)

    def unpack(self, row: Tensor) -> Params:
        """Return the parameters in one row (N,), in memory of their own."""
        return [view[0].clone() for view in self.views(row[None])]

    def owners(self, device: torch.device) -> Tensor:
        """Return the index of the tensor that every weight belongs to, int64 (N,)."""
        sizes = torch.tensor([math.prod(shape) for shape in self.shapes], device=device)
        return torch.repeat_interleave(torch.arange(len(sizes), device=device), sizes)
