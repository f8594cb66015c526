"""SOAP in C++ (``native/soap.cpp``, ``soap.h``): all tensors of a network in one call.

What is computed is :class:`nifcore.soap.Soap`'s, up to the rounding of float32, and either goes on
from the other's state. The momentum is kept in the eigenbases as well, moved there by every
gradient instead of being rotated anew each time, which saves a quarter of the products. The number
of threads changes no bit.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from nifcore.kernels.base import Kernel
from nifcore.kernels.fused import FusedKernel, load_library
from nifcore.soap import Soap

_LINE = 16
"""Rows of matrices are padded to this many floats: one vector of the widest kind."""
_NO_MEMORY, _NOT_FINITE = 2, 3


class NativeSoap(Soap):
    """See the module's text; the attributes are views of padded memory.

    Args:
        params: contiguous float32 tensors on the CPU, each a vector or a matrix.
        instruction_set: one of :attr:`nifcore.kernels.fused.Library.instruction_sets`, or None for
            the best.
        threads: tells how many threads to use; None for as many as torch uses now.
        options: as :class:`~nifcore.soap.Soap` has them.

    Raises:
        LibraryMissing: the library is not compiled and cannot be.
        ValueError: a parameter is of another kind, or this machine cannot run the instruction set.
    """

    def __init__(
        self,
        params: Sequence[Tensor],
        *,
        instruction_set: str | None = None,
        threads: Callable[[], int] | None = None,
        **options: Any,
    ) -> None:
        library = load_library()
        chosen = instruction_set or library.instruction_sets[0]
        for p in params:
            if not _is_taken(p):
                raise ValueError(
                    f"a parameter is {p.dtype}, on {p.device}, of shape {tuple(p.shape)}; "
                    "contiguous float32 vectors and matrices on the CPU are accepted"
                )
        super().__init__(params, **options)
        self.momentum = [_padded(t) for t in self.momentum]
        self.second = [_padded(t) for t in self.second]
        self.covariances = _padded_sides(self.covariances)
        self.bases = _padded_sides(self.bases)
        self._rotated = [_padded(torch.zeros_like(p)) for p in self.params]
        self._turned = _padded_sides(self.bases)
        self._stale = False
        now = torch.get_num_threads()
        self._threads = threads or (lambda: now)
        self._count = len(self.params)
        self._step = library.handle.nif_soap_step
        self._free = library.handle.nif_soap_free
        self._native: int | None = None
        sizes, memory = self._layout()
        self._native = library.handle.nif_soap_new(
            chosen.encode(),
            self._count,
            (ctypes.c_int64 * len(sizes))(*sizes),
            (ctypes.c_void_p * len(memory))(*memory),
        )
        if self._native is None:
            raise ValueError(
                f"instruction set is {chosen!r}; this machine runs "
                f"{', '.join(library.instruction_sets)}"
            )

    def __del__(self) -> None:
        if getattr(self, "_native", None) is not None:
            self._free(self._native)

    def _layout(self) -> tuple[list[int], list[int | None]]:
        """Return what ``nif_soap_new`` wants to know: sizes and addresses."""
        sizes: list[int] = []
        memory: list[int | None] = []
        for index, p in enumerate(self.params):
            sizes += p.shape if p.dim() == 2 else (1, p.numel())
            kept = (p, self.momentum[index], self.second[index], self._rotated[index])
            memory += [t.data_ptr() for t in kept]
            sides = zip(
                self.covariances[index], self.bases[index], self._turned[index], strict=True
            )
            arrays = [t for side in sides for t in side] or [None] * 6
            memory += [None if t is None else t.data_ptr() for t in arrays]
        return sizes, memory

    @torch.no_grad()
    def step(self, gradients: Sequence[Tensor], rate: float) -> bool:
        given = self._checked(gradients)
        addresses = (ctypes.c_void_p * self._count)(*[g.data_ptr() for g in given])
        count = self.iteration
        constants = (ctypes.c_double * 6)(
            rate,
            self.eps,
            1.0 - self.beta1,
            1.0 - self.beta2,
            1.0 / (1.0 - self.beta1**count) if count else 1.0,
            1.0 / (1.0 - self.beta2**count) if count else 1.0,
        )
        turn = count > 0 and (count + 1) % self.refresh == 0
        status = self._step(
            self._native, addresses, constants, not count, self._stale, turn, self._threads()
        )
        if status == _NO_MEMORY:
            raise MemoryError("no memory for a step of the optimiser")
        if status == _NOT_FINITE:
            return False
        self.iteration += 1
        self._stale = turn
        if not count:
            for index in range(self._count):
                self._decompose(index)
        return True

    def _checked(self, gradients: Sequence[Tensor]) -> list[Tensor]:
        """Return gradients as the native code can read them."""
        if len(gradients) != self._count:
            raise ValueError(f"{len(gradients)} gradients came for {self._count} parameters")
        for index, (g, p) in enumerate(zip(gradients, self.params, strict=True)):
            if g.shape != p.shape:
                raise ValueError(
                    f"gradient {index} is of shape {tuple(g.shape)}; {tuple(p.shape)} is expected"
                )
        return [g if _is_taken(g) else g.float().cpu().contiguous() for g in gradients]

    def _decompose(self, index: int) -> None:
        mine = self.bases[index]
        self.bases[index] = list(mine)
        super()._decompose(index)
        found, self.bases[index] = self.bases[index], mine
        self._set_bases(index, found)

    def _set_bases(self, index: int, bases: Sequence[Tensor | None]) -> None:
        _copy(self.bases[index], bases)
        _copy(self._turned[index], [None if t is None else t.T for t in bases])

    def state(self) -> dict[str, Any]:
        """Return what :class:`~nifcore.soap.Soap` does, and the momentum in the eigenbases."""
        return {**super().state(), "rotated": None if self._stale else self._rotated}

    @torch.no_grad()
    def load(self, state: dict[str, Any]) -> None:
        """Take over a state that :meth:`state` returned, here or in the other class."""
        self.iteration = int(state["iteration"])
        _copy(self.momentum, state["momentum"])
        _copy(self.second, state["second"])
        for index in range(self._count):
            _copy(self.covariances[index], state["covariances"][index])
            self._set_bases(index, state["bases"][index])
        rotated = state.get("rotated")
        self._stale = rotated is None
        if rotated is not None:
            _copy(self._rotated, rotated)


def make_soap(params: Sequence[Tensor], kernel: Kernel) -> Soap:
    """Return the optimiser that goes with a kernel: in C++ where the kernel is and takes these."""
    if isinstance(kernel, FusedKernel) and all(map(_is_taken, params)):
        # the kernel is given other numbers of threads as other fits come and go
        isa = kernel.instruction_set
        return NativeSoap(params, instruction_set=isa, threads=lambda: kernel.threads)
    return Soap(params)


def _is_taken(tensor: Tensor) -> bool:
    return (
        tensor.dtype == torch.float32
        and tensor.device.type == "cpu"
        and tensor.dim() in (1, 2)
        and tensor.is_contiguous()
    )


def _padded(tensor: Tensor, rows: int | None = None) -> Tensor:
    """Return a copy whose rows lie a multiple of ``_LINE`` apart, zeros between and behind them."""
    tensor_rows = len(tensor) if tensor.dim() == 2 else 1
    length = _line(tensor.shape[-1])
    room = torch.zeros(rows or tensor_rows, length)
    view = room[:tensor_rows, : tensor.shape[-1]]
    return (view if tensor.dim() == 2 else view[0]).copy_(tensor)


def _padded_sides(pairs: Sequence[Sequence[Tensor | None]]) -> list[list[Tensor | None]]:
    """Return copies of square matrices, padded in both directions."""
    return [[None if t is None else _padded(t, _line(len(t))) for t in pair] for pair in pairs]


def _line(length: int) -> int:
    return -(-length // _LINE) * _LINE


def _copy(mine: Sequence[Tensor | None], theirs: Sequence[Tensor | None]) -> None:
    for to, value in zip(mine, theirs, strict=True):
        if to is not None and value is not None:
            to.copy_(value)
