"""The fused kernel: forward, loss and backward of a tile of pixels without leaving the caches.

Written in C++ (``native/``) for AVX-512, AVX2 and whatever four-lane vectors the machine has
otherwise (SSE2, NEON); the best set that the machine can run is chosen when a plan is made. Blocks
of pixels do not depend on the number of threads and their gradients are added up in order, so the
same seed gives the same bits on one core and on many, as long as the instruction set is the same.

On processors with AMX the products of loss and gradient take bfloat16 factors and float32 sums;
phases, sines and rendering stay float32. The others are float32 throughout.

What it does not take (another device or precision, phases beyond 200,000 radians) is passed on to
:class:`~nifcore.kernels.chunked.ChunkedKernel`.
"""

from __future__ import annotations

import ctypes
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nifcore.architecture import Architecture
from nifcore.kernels import build
from nifcore.kernels.chunked import ChunkedKernel
from nifcore.losses import Objective
from nifcore.network import Grid

_LOSSES = {"mse": 0, "l1": 1, "log_cosh": 2}
_GIVEN = 3
_PHASE_TOO_LARGE, _NO_MEMORY = 1, 2


@dataclass(frozen=True)
class Library:
    """The compiled kernel.

    Attributes:
        handle: its functions.
        instruction_sets: those that this machine can run, best first.
    """

    handle: ctypes.CDLL
    instruction_sets: tuple[str, ...]


class LibraryMissing(Exception):
    """The compiled kernel is not there and could not be made; the message says why."""


def load_library() -> Library:
    """Return the compiled kernel, compiling it first where the installation could not.

    Raises:
        LibraryMissing: it can be neither found nor made.
    """
    found = _library()
    if isinstance(found, str):
        raise LibraryMissing(found)
    return found


@lru_cache(maxsize=1)
def _library() -> Library | str:
    mark = build.fingerprint()
    installed = Path(__file__).parent / build.LIBRARY
    cached = Path("~/.cache/nif").expanduser() / mark / build.LIBRARY
    for path in (installed, cached):
        library = _open(path, mark)
        if library is not None:
            return library
    try:
        build.compile_library(cached)
    except (build.BuildFailed, OSError) as error:
        return str(error)
    return _open(cached, mark) or f"{cached} was compiled but cannot be loaded"


def _open(path: Path, mark: str) -> Library | None:
    """Load a library; None where it is missing, for another machine or of other sources."""
    if not path.is_file():
        return None
    try:
        handle = ctypes.CDLL(os.fspath(path))
        handle.nif_fingerprint.restype = ctypes.c_char_p
        if handle.nif_fingerprint() != mark.encode():
            return None
    except (OSError, AttributeError):
        return None
    net: list[Any] = [ctypes.c_void_p, ctypes.c_int32, ctypes.c_int32]
    constants: list[Any] = [ctypes.c_int32, ctypes.c_float, ctypes.c_float]
    grid: list[Any] = [*[ctypes.c_void_p] * 3, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p]
    loss: list[Any] = [ctypes.c_int32, ctypes.c_void_p, ctypes.c_float]
    results: list[Any] = [ctypes.c_void_p, ctypes.c_void_p]
    handle.nif_isas.restype = ctypes.c_char_p
    handle.nif_plan_new.restype = ctypes.c_void_p
    handle.nif_plan_new.argtypes = [ctypes.c_char_p, *net, *net, *constants]
    handle.nif_plan_free.restype = None
    handle.nif_plan_free.argtypes = [ctypes.c_void_p]
    handle.nif_forward.argtypes = [*grid, ctypes.c_int32]
    handle.nif_gradient.argtypes = [*grid, *loss, *results, ctypes.c_int32]
    handle.nif_soap_new.restype = ctypes.c_void_p
    handle.nif_soap_new.argtypes = [ctypes.c_char_p, ctypes.c_int32, *[ctypes.c_void_p] * 2]
    handle.nif_soap_free.restype = None
    handle.nif_soap_free.argtypes = [ctypes.c_void_p]
    handle.nif_soap_step.argtypes = [*[ctypes.c_void_p] * 3, *[ctypes.c_int32] * 4]
    return Library(handle, tuple(handle.nif_isas().decode().split(",")))


class _Plan:
    """A native plan, freed with this object."""

    def __init__(self, library: Library, arch: Architecture, instruction_set: str) -> None:
        self._free = library.handle.nif_plan_free
        self.pointer: int | None = None
        shapes = []
        for net in (arch.genesis, arch.modulation):
            hidden = net.hidden if net else ()
            sizes = (ctypes.c_int32 * len(hidden))(*hidden)
            shapes += [sizes, len(hidden), net.frequencies if net else 0]
        self.pointer = library.handle.nif_plan_new(
            instruction_set.encode(), *shapes, arch.channels, arch.omega, arch.sigma
        )
        if not self.pointer:
            raise MemoryError("no memory for a plan of the fused kernel")

    def __del__(self) -> None:
        if self.pointer:
            self._free(self.pointer)


class FusedKernel:
    """See the module's text. Gradients agree with autograd to the rounding of their factors.

    Args:
        arch: shape of the networks.
        threads: threads to use, or None for as many as torch uses.
        instruction_set: one of :attr:`Library.instruction_sets`, or None for the best.

    Raises:
        LibraryMissing: the kernel is not compiled and cannot be.
        ValueError: this machine cannot run the instruction set.
    """

    name = "fused"

    def __init__(
        self,
        arch: Architecture,
        threads: int | None = None,
        instruction_set: str | None = None,
    ) -> None:
        library = load_library()
        chosen = instruction_set or library.instruction_sets[0]
        if chosen not in library.instruction_sets:
            raise ValueError(
                f"instruction set is {chosen!r}; this machine runs "
                f"{', '.join(library.instruction_sets)}"
            )
        self.arch = arch
        self.instruction_set = chosen
        self.threads = threads or torch.get_num_threads()
        self._plan = _Plan(library, arch, chosen)
        self._forward = library.handle.nif_forward
        self._gradient = library.handle.nif_gradient
        self._sizes = [math.prod(shape) for shape in arch.shapes]
        self._ends = list(accumulate(self._sizes))
        self._others: ChunkedKernel | None = None

    @property
    def _substitute(self) -> ChunkedKernel:
        """What computes the calls that this kernel does not take."""
        if self._others is None:
            self._others = ChunkedKernel(self.arch, threads=self.threads)
        return self._others

    def _takes(self, params: Sequence[Tensor], grid: Grid) -> bool:
        like = params[0]
        return like.device.type == "cpu" and like.dtype == grid.genesis.y.dtype == torch.float32

    def forward(self, params: Sequence[Tensor], grid: Grid) -> Tensor:
        if not self._takes(params, grid):
            return self._substitute.forward(params, grid)
        weights, tables = _contiguous(params), _tables(grid)
        output = torch.empty(self.arch.channels, grid.rows, grid.cols)
        status = self._forward(
            self._plan.pointer,
            _pointers(weights),
            _pointers(tables),
            grid.rows,
            grid.cols,
            output.data_ptr(),
            self.threads,
        )
        return output if _succeeded(status) else self._substitute.forward(params, grid)

    @torch.no_grad()
    def loss_and_gradient(
        self, params: Sequence[Tensor], grid: Grid, target: Tensor, objective: Objective
    ) -> tuple[Tensor, list[Tensor], Tensor]:
        if not self._takes(params, grid):
            return self._substitute.loss_and_gradient(params, grid, target, objective)
        value: Tensor | None = None
        slope: Tensor | None = None
        if objective.applies_structure(grid.rows, grid.cols):
            # a window spans blocks: render all, differentiate on the picture, render again
            value, slope = objective.value_and_gradient(self.forward(params, grid), target)
            slope = slope.contiguous()
        weights, tables, target = _contiguous(params), _tables(grid), target.contiguous()
        flat = torch.empty(self._ends[-1])
        sums = (ctypes.c_double * 2)()
        status = self._gradient(
            self._plan.pointer,
            _pointers(weights),
            _pointers(tables),
            grid.rows,
            grid.cols,
            target.data_ptr(),
            _LOSSES[objective.pixel] if slope is None else _GIVEN,
            None if slope is None else slope.data_ptr(),
            1.0 / target.numel(),
            flat.data_ptr(),
            sums,
            self.threads,
        )
        if not _succeeded(status):
            return self._substitute.loss_and_gradient(params, grid, target, objective)
        parts = torch.split_with_sizes(flat, self._sizes)
        gradients = [part.view_as(w) for part, w in zip(parts, weights, strict=True)]
        if value is None:
            value = torch.tensor(sums[1] / target.numel())
        return value, gradients, torch.tensor(sums[0] / target.numel())


def _contiguous(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [t.contiguous() for t in tensors]


def _tables(grid: Grid) -> list[Tensor]:
    second = grid.modulation or grid.genesis
    return _contiguous([grid.genesis.y, grid.genesis.x, second.y, second.x])


def _pointers(tensors: Sequence[Tensor]) -> ctypes.Array[ctypes.c_void_p]:
    return (ctypes.c_void_p * len(tensors))(*[t.data_ptr() for t in tensors])


def _succeeded(status: int) -> bool:
    """Tell whether a native call worked; False where another kernel must take it."""
    if status == _NO_MEMORY:
        raise MemoryError("no memory for the fused kernel's buffers")
    return status != _PHASE_TOO_LARGE
