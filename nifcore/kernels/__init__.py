"""Kernels: implementations of the network's mathematics, and which one is used."""

from __future__ import annotations

from dataclasses import dataclass

from nifcore.errors import UsageError
from nifcore.kernels.base import Kernel, KernelFactory
from nifcore.kernels.chunked import ChunkedKernel
from nifcore.kernels.reference import CompiledKernel, ReferenceKernel
from nifcore.network import Architecture

__all__ = ["Choice", "Kernel", "choices", "make_kernel"]

_KERNELS: dict[str, tuple[KernelFactory, str]] = {
    "chunked": (ChunkedKernel, "hand-written forward and backward in cache-sized chunks"),
    "compiled": (CompiledKernel, "torch.compile of the reference; slow first use"),
    "reference": (ReferenceKernel, "plain torch with autograd; slowest, the truth for the others"),
}
_DEFAULT = "chunked"


@dataclass(frozen=True)
class Choice:
    """One kernel of this installation.

    Attributes:
        name: what ``NIF_KERNEL`` accepts.
        chosen: whether it is the one in use.
        reason: what it is, and why it is or is not in use.
    """

    name: str
    chosen: bool
    reason: str


def choices(asked: str | None = None) -> list[Choice]:
    """List the kernels, best first, with the one that ``asked`` (or the default) selects."""
    name = _checked(asked)
    why = "asked for" if asked else "fastest available"
    return [
        Choice(key, key == name, f"{text} ({why})" if key == name else text)
        for key, (_, text) in _KERNELS.items()
    ]


def make_kernel(arch: Architecture, asked: str | None = None) -> Kernel:
    """Return the kernel named ``asked``, or the best one, for ``arch``.

    Raises:
        UsageError: no kernel has that name.
    """
    return _KERNELS[_checked(asked)][0](arch)


def _checked(asked: str | None) -> str:
    name = asked or _DEFAULT
    if name not in _KERNELS:
        raise UsageError(f"unknown kernel {name!r}; available: {', '.join(_KERNELS)}")
    return name
