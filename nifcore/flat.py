"""Many small tensors as one row of numbers: one operation on all costs what it costs on one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def joined(tensors: Sequence[Tensor]) -> Tensor | None:
    """Return a view of all tensors' memory as one row (N,), or None if they do not lie in a row."""
    first, numbers = tensors[0], 0
    start, size = first.data_ptr(), first.element_size()
    for t in tensors:
        if t.data_ptr() != start + numbers * size or not t.is_contiguous():
            return None
        numbers += t.numel()
    held = first.untyped_storage().nbytes() - first.storage_offset() * size
    if held < numbers * size or any(t.dtype != first.dtype for t in tensors):
        return None  # neighbours by chance
    return first.as_strided((numbers,), (1,))


def flattened(tensors: Sequence[Tensor]) -> Tensor:
    """Return the tensors' numbers one behind another, (N,): a view of their memory, or a copy."""
    row = joined(tensors)
    return torch.cat([t.reshape(-1) for t in tensors]) if row is None else row


def parts(row: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """Return views of ``row`` (N,) with the shapes of ``like``, one behind another."""
    pieces = torch.split_with_sizes(row, [t.numel() for t in like])
    return [piece.view_as(t) for piece, t in zip(pieces, like, strict=True)]


def in_a_row(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return copies of the tensors that lie one behind another in memory."""
    return parts(torch.cat([t.reshape(-1) for t in tensors]), tensors)


def spread(numbers: Sequence[float], like: Sequence[Tensor]) -> Tensor:
    """Return a row (N,) that holds one of ``numbers`` for every entry of each tensor."""
    sizes = torch.tensor([t.numel() for t in like])
    row = torch.tensor(numbers, dtype=like[0].dtype).repeat_interleave(sizes)
    return row.to(like[0].device)


def all_finite(tensors: Sequence[Tensor]) -> bool:
    """Tell whether no number is infinite or not a number."""
    return bool(flattened(tensors).isfinite().all())
