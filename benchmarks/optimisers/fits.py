"""One fit of one picture by one method, as the codec fits, but without quantisation."""

from __future__ import annotations

import math
import os
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from skimage import data
from torch import Tensor

from benchmarks.optimisers.catalogue import Contender
from nifcore.architecture import Architecture
from nifcore.fit import TileFit
from nifcore.header import Colour
from nifcore.kernels import Kernel, make_kernel
from nifcore.losses import Objective
from nifcore.network import from_bytes
from nifcore.picture import read_picture
from nifcore.plan import plan_rate
from nifcore.presets import EFFORTS, Cosine, Moment

SAMPLES = ("astronaut", "chelsea", "coffee")
"""Pictures that scikit-image carries."""


@dataclass(frozen=True)
class Scene:
    """A picture with the network that the codec would plan for it.

    Attributes:
        target: (channels, rows, cols) float32 in [-1, 1]; of several tiles the first.
    """

    name: str
    arch: Architecture
    kernel: Kernel
    target: Tensor


@dataclass(frozen=True)
class Sample:
    """How far a fit was.

    Attributes:
        iteration: iterations done.
        seconds: processor time spent on them.
        psnr_db: over all pixels, weights not rounded.
    """

    iteration: int
    seconds: float
    psnr_db: float


@dataclass(frozen=True)
class Course:
    """What became of one fit.

    Attributes:
        samples: at the ends of passes, the last one at the end.
        kernel_ms, step_ms: processor time of loss and gradient, and of the optimiser, per
            iteration.
        diverged: the loss or a gradient was not finite, and the fit ended there.
    """

    contender: str
    picture: str
    peak: float
    iterations: int
    warmup: int
    seed: int
    samples: tuple[Sample, ...]
    kernel_ms: float
    step_ms: float
    diverged: bool

    @property
    def psnr_db(self) -> float:
        """PSNR at the end, minus infinity for a fit that diverged."""
        return -math.inf if self.diverged else self.samples[-1].psnr_db


def open_scene(picture: str | os.PathLike[str], bpp: float) -> Scene:
    """Plan a network for a picture.

    Args:
        picture: a file, or one of :data:`SAMPLES`.
        bpp: rate that the network is planned for, in bits per pixel.
    """
    sample = str(picture) in SAMPLES
    read = read_picture(np.asarray(getattr(data, str(picture))()) if sample else picture)
    size = bpp * read.width * read.height / 8
    plan = plan_rate(read.width, read.height, Colour(read.channels), size, 0)
    x, y, width, height = plan.header.tile_box(0)
    pixels = np.ascontiguousarray(read.pixels[y : y + height, x : x + width])
    name = str(picture) if sample else Path(picture).stem
    target = from_bytes(torch.from_numpy(pixels))
    return Scene(name, plan.arch, make_kernel(plan.arch), target)


def run(
    scene: Scene,
    contender: Contender,
    *,
    peak: float,
    iterations: int,
    warmup: int = 100,
    seed: int = 0,
    every: int = 2,
) -> Course:
    """Fit from the codec's start, over its lattices in its random order, with its schedule.

    Args:
        peak: of the learning rate, which falls to 0 at the end.
        every: passes between measurements of the PSNR, whose time is not counted.
    """
    fit = TileFit(scene.arch, scene.kernel, scene.target, EFFORTS[5], None, seed)
    method = contender.make(scene.arch, fit.params)
    schedule, objective = Cosine(peak, final=0.0, warmup=warmup), Objective("mse")
    kernel_seconds = step_seconds = 0.0
    samples: list[Sample] = []
    order: list[int] = []
    diverged = False
    for iteration in range(iterations):
        if not order:
            order = torch.randperm(fit.pass_length, generator=fit.generator).tolist()
        grid, target = fit.lattice_of(order.pop())
        began = time.process_time()
        _, gradients, error = scene.kernel.loss_and_gradient(fit.params, grid, target, objective)
        between = time.process_time()
        if not torch.stack([g.sum() for g in gradients]).sum().add(error).isfinite():
            diverged = True
            break
        resumed = time.process_time()
        method.step(gradients, schedule.rate(Moment(iteration, iterations, 0)))
        step_seconds += time.process_time() - resumed
        kernel_seconds += between - began
        done = iteration + 1
        if done == iterations or done % (every * fit.pass_length) == 0:
            error_db = 10.0 * math.log10(4.0 / max(fit.full_error(fit.params), 1e-12))
            samples.append(Sample(done, kernel_seconds + step_seconds, error_db))
    done = max(1, iteration)
    return Course(
        contender.name,
        scene.name,
        peak,
        iterations,
        warmup,
        seed,
        tuple(samples),
        1e3 * kernel_seconds / done,
        1e3 * step_seconds / done,
        diverged,
    )
