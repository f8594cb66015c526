"""Kernels: implementations of the network's mathematics, and which one is used."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from nifcore.architecture import Architecture
from nifcore.errors import UsageError
from nifcore.kernels.base import Kernel, KernelFactory
from nifcore.kernels.chunked import ChunkedKernel
from nifcore.kernels.fused import FusedKernel, LibraryMissing, load_library
from nifcore.kernels.reference import CompiledKernel, ReferenceKernel

__all__ = ["Choice", "Kernel", "choices", "make_kernel"]


def _triton(arch: Architecture) -> Kernel:
    # loaded only when asked for: Triton takes its time, and is not everywhere
    from nifcore.gpu.fused import single_kernel

    return single_kernel(arch)


_KERNELS: dict[str, tuple[KernelFactory, str]] = {
    "fused": (FusedKernel, "C++, forward, loss and backward of a tile in the caches"),
    "chunked": (ChunkedKernel, "hand-written forward and backward in cache-sized chunks"),
    "compiled": (CompiledKernel, "torch.compile of the reference; slow first use"),
    "reference": (ReferenceKernel, "plain torch with autograd; slowest, the truth for the others"),
    "triton": (_triton, "Triton programs; fit on a CUDA device unless another kernel is asked for"),
}
"""Every kernel by name, best first: the first that this installation has is the default."""


@dataclass(frozen=True)
class Choice:
    """One kernel of this installation.

    Attributes:
        name: what ``NIF_KERNEL`` accepts.
        chosen: whether it is the one in use.
        available: whether it can be used here.
        reason: what it is, and why it is or is not in use.
    """

    name: str
    chosen: bool
    available: bool
    reason: str


def choices(asked: str | None = None) -> list[Choice]:
    """List the kernels, best first, with the one that ``asked`` (or the default) selects."""
    missing = _missing()
    name, instruction_set = _checked(asked, missing)
    why = "asked for" if asked else "fastest available"
    listed = []
    for key, (_, text) in _KERNELS.items():
        reason = text
        if key == "fused" and missing is None:
            sets = load_library().instruction_sets
            used = instruction_set or sets[0]
            others = [f"{key}:{each}" for each in sets if each != used]
            reason += f", with {used}" + (f" (or {', '.join(others)})" if others else "")
        if key == name:
            reason += f": {why}"
        elif key == "fused" and missing is not None:
            reason += f": not available, {missing}"
        available = key != "fused" or missing is None
        if key == "triton" and not torch.cuda.is_available():
            available = False
            reason += ": not available, no CUDA device"
        listed.append(Choice(key, key == name, available, reason))
    return listed


def make_kernel(arch: Architecture, asked: str | None = None, device: str = "cpu") -> Kernel:
    """Return the kernel named ``asked``, or the best one for that type of device, for ``arch``.

    ``fused:avx2`` and the like ask for one of the instruction sets that the machine can run.

    Raises:
        UsageError: no kernel has that name, or this installation cannot run it.
    """
    if asked is None and device != "cpu":
        return ChunkedKernel(arch)  # the fused one would pass all work on to it
    name, instruction_set = _checked(asked, _missing())
    if instruction_set is not None:
        return FusedKernel(arch, instruction_set=instruction_set)
    return _KERNELS[name][0](arch)


def _missing() -> str | None:
    """Return why the fused kernel cannot be used, or None where it can."""
    try:
        load_library()
    except LibraryMissing as error:
        return str(error)
    return None


def _checked(asked: str | None, missing: str | None) -> tuple[str, str | None]:
    """Return the kernel's name and, if one is asked for, its instruction set."""
    if asked is None:
        return ("fused" if missing is None else "chunked"), None
    name, colon, instruction_set = asked.partition(":")
    if name not in _KERNELS or (colon and name != "fused"):
        raise UsageError(f"unknown kernel {asked!r}; available: {', '.join(_KERNELS)}")
    if name == "fused" and missing is not None:
        raise UsageError(f"the fused kernel is not available here: {missing}")
    if colon and instruction_set not in (sets := load_library().instruction_sets):
        known = ", ".join(f"fused:{each}" for each in sets)
        raise UsageError(f"unknown kernel {asked!r}; this machine runs {known}")
    return name, instruction_set or None
