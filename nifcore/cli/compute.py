"""Setting torch up as the settings ask, and timing kernels."""

from __future__ import annotations

import time
from collections.abc import Sequence

from nifcore.config import Settings


def prepare(settings: Settings) -> None:
    """Give torch the number of CPU threads that the settings ask for."""
    if settings.threads:
        import torch

        torch.set_num_threads(settings.threads)


def kernel(settings: Settings) -> str | None:
    """Return the name of the kernel asked for, or None where the choice is free."""
    return None if settings.kernel == "auto" else settings.kernel


def kernel_names() -> list[str]:
    """Return the names of the kernels that can be used here, best first."""
    from nifcore import kernels

    return [choice.name for choice in kernels.choices() if choice.available]


def pass_seconds(
    names: Sequence[str], size: tuple[int, int], repeat: int, device: str
) -> dict[str, list[float]]:
    """Time passes of kernels over every pixel of a random picture, the kernels taking turns.

    Args:
        names: of the kernels.
        size: (width, height) in pixels.
        repeat: how many passes of each, after one that compiles and allocates.
        device: torch's name of the device.

    Returns:
        Seconds of each pass by kernel, the one that compiles and allocates first.

    Raises:
        UsageError: no kernel has that name.
    """
    import torch

    from nifcore.architecture import Architecture
    from nifcore.kernels import make_kernel
    from nifcore.losses import Objective
    from nifcore.network import initialise, pixel_grid
    from nifcore.presets import PRESETS

    recipe = PRESETS["paper-120"]
    assert recipe.genesis is not None
    where = torch.device(device)
    arch = Architecture(recipe.genesis, recipe.modulation, channels=3)
    measured = {name: make_kernel(arch, name) for name in names}
    width, height = size
    grid = pixel_grid(arch, height, width, where)
    generator = torch.Generator().manual_seed(0)
    params = [p.to(where) for p in initialise(arch, generator, [])]
    target = (torch.rand(3, height, width, generator=generator) * 2 - 1).to(where)
    seconds: dict[str, list[float]] = {name: [] for name in measured}
    for _ in range(repeat + 1):
        for name, kernel in measured.items():
            started = time.perf_counter()
            loss, _, _ = kernel.loss_and_gradient(params, grid, target, Objective("mse"))
            loss.item()  # waits for a GPU
            seconds[name].append(time.perf_counter() - started)
    return seconds
