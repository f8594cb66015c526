"""Choosing where to compute."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from nifcore.errors import DeviceError


def resolve_device(asked: str) -> torch.device:
    """Return the device named ``asked``; "auto" is the first CUDA device, else the CPU.

    Raises:
        DeviceError: the name is unknown or the device is not there.
    """
    if asked == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(asked)
    except RuntimeError as error:
        raise DeviceError(
            f"unknown device {asked!r}; auto, cpu, cuda or cuda:N is accepted"
        ) from error
    if device.type not in ("cpu", "cuda"):
        raise DeviceError(
            f"device {asked!r} is not supported; auto, cpu, cuda or cuda:N is accepted"
        )
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= count:
            raise DeviceError(
                f"device {asked!r} is not there; this machine has {count} CUDA devices"
            )
    return device


def describe_device(device: torch.device) -> str:
    """Return a short name for reports: "cpu", or "cuda:0 (NVIDIA H200)"."""
    if device.type != "cuda":
        return device.type
    return f"cuda:{device.index or 0} ({torch.cuda.get_device_name(device)})"


@contextmanager
def single_threaded() -> Iterator[None]:
    """Keep torch's own operations on the calling thread, for many small ones in a row.

    Kernels thread by themselves; splitting a 120 x 66 product over cores only waits.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
