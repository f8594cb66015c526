"""Setting torch up as the settings ask, and timing kernels."""

from __future__ import annotations

import time

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
    """Return the names of the kernels, best first."""
    from nifcore import kernels

    return [choice.name for choice in kernels.choices()]


def pass_seconds(name: str, size: tuple[int, int], repeat: int, device: str) -> list[float]:
    """Time passes of a kernel over every pixel of a random picture.

    Args:
        name: of the kernel.
        size: (width, height) in pixels.
        repeat: how many passes.
        device: torch's name of the device.

    Returns:
        Seconds of each pass; the first includes compiling and allocating.

    Raises:
        UsageError: no kernel has that name.
    """
    import torch

    from nifcore.kernels import make_kernel
    from nifcore.losses import Objective
    from nifcore.network import Architecture, initialise, pixel_grid
    from nifcore.presets import PRESETS

    recipe = PRESETS["paper-120"]
    assert recipe.genesis is not None
    where = torch.device(device)
    arch = Architecture(recipe.genesis, recipe.modulation, channels=3)
    measured = make_kernel(arch, name)
    width, height = size
    grid = pixel_grid(arch, height, width, where)
    generator = torch.Generator().manual_seed(0)
    params = [p.to(where) for p in initialise(arch, generator, [])]
    target = (torch.rand(3, height, width, generator=generator) * 2 - 1).to(where)
    seconds = []
    for _ in range(repeat):
        started = time.perf_counter()
        loss, _, _ = measured.loss_and_gradient(params, grid, target, Objective("mse"))
        loss.item()  # waits for a GPU
        seconds.append(time.perf_counter() - started)
    return seconds
