"""The mathematics of B networks in one launch: the host's side of :mod:`network_programs`.

::

    weights, axes ─► terms of the first layers ─► programs ─► partial gradients ─► their sums
                     (batched products)                       (one writer each)    (in order)
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, get_args

import torch
import triton
from torch import Tensor

from nifcore.architecture import Architecture
from nifcore.errors import DeviceError, UsageError
from nifcore.gpu.base import BatchKernel, SingleKernel, first_gradient, first_terms
from nifcore.gpu.lattices import Axes, Batch
from nifcore.gpu.layout import Layout
from nifcore.gpu.network_programs import COLUMNS, LOSS_GIVEN, RENDER, network
from nifcore.gpu.stacked import StackedKernel
from nifcore.gpu.structure import Structure
from nifcore.losses import Objective

Precision = Literal["tf32", "tf32x3", "bf16"]
"""Products in TF32, in three TF32 products that add up to nearly float32, or in bfloat16."""

_LOSSES = {"mse": 0, "l1": 1, "log_cosh": 2}
_PROGRAMS = 528
"""Programs that keep a large GPU busy: four for each of 132 multiprocessors."""
_LEAST_WIDTH = 16
_WIDEST = 128
"""A wider layer after the first needs more shared memory than a program can have."""


@dataclass(frozen=True)
class Tuning:
    """How the work is cut.

    Attributes:
        strip: rows of 16 pixels that a program takes at a time.
        warps: warps of a program.
        chunk: features of the first layer at a time, a power of two of at least 16.
        programs: programs to aim at.
    """

    strip: int = 2
    warps: int = 8
    chunk: int = 64
    programs: int = _PROGRAMS


def padded(width: int) -> int:
    """Return the power of two of at least 16 that holds ``width`` features."""
    return max(_LEAST_WIDTH, 1 << (width - 1).bit_length())


class _Programs:
    """Launches the programs of one of the two networks.

    Args:
        layout: of the weights.
        first: index of the network's first tensor.
        widths: of its hidden layers and its output.
        shifted: whether its sines have a period per pixel.
    """

    def __init__(
        self, layout: Layout, first: int, widths: tuple[int, ...], shifted: bool, tuning: Tuning
    ) -> None:
        arch, offsets = layout.arch, layout.offsets
        self.first, self.tuning, self.layout = first, tuning, layout
        self.inner = slice(offsets[first + 2], offsets[first + 2 * len(widths)])
        places, at = [], 0
        for before, after in pairwise(widths):
            places.append((at, at + before * after))
            at += (before + 1) * after
        pads = [padded(width) for width in widths]
        self.constants: dict[str, Any] = {
            "WIDTHS": widths,
            "PADS": (min(pads[0], tuning.chunk), *pads[1:]),
            "PLACES": tuple(places),
            "AT": self.inner.start,
            "SIZE": layout.size,
            "INNER": at,
            "SHIFTED": shifted,
            "OMEGA": arch.omega,
            "SIGMA": arch.sigma,
            "STRIP": tuning.strip,
            "COLUMNS": COLUMNS,
        }

    def render(
        self, flat: Tensor, axes: Axes, batch: Batch, shift: Tensor | None, precision: Precision
    ) -> Tensor:
        """Return the network's output (B, outputs, rows, columns); padding is zero."""
        rows, cols = batch.target.shape[2:]
        output = flat.new_zeros(len(flat), self.constants["WIDTHS"][-1], rows, cols)
        self._launch(RENDER, flat, axes, batch, shift, output, precision, None)
        return output

    def learn(
        self,
        task: int,
        flat: Tensor,
        axes: Axes,
        batch: Batch,
        shift: Tensor | None,
        picture: Tensor,
        precision: Precision,
        gradient: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Fill this network's part of ``gradient`` (B, N).

        Returns:
            sums of loss and squared error (B, 2); gradient of ``shift`` (B, 1, rows, columns).
        """
        count, _, rows, cols = picture.shape
        across, down, _ = self._cut(count, rows, cols)
        width = self.constants["WIDTHS"][0]
        parts = flat.new_empty(count, across * down, self.constants["INNER"])
        d_y = flat.new_empty(count, across, rows, width)
        d_x = flat.new_empty(count, down, cols, width)
        d_shift = flat.new_empty((count, 1, rows, cols) if shift is not None else (1,))
        account = flat.new_empty(count, across * down, 2)
        results = (parts, d_y, d_x, d_shift, account)
        self._launch(task, flat, axes, batch, shift, picture, precision, results)
        views = self.layout.views(gradient)
        first_gradient(d_y.sum(1), d_x.sum(1), axes, views[self.first], views[self.first + 1])
        gradient[:, self.inner] = parts.sum(1)
        return account.sum(1), d_shift

    def _cut(self, count: int, rows: int, cols: int) -> tuple[int, int, int]:
        """Return blocks across, blocks down, and strips of a block."""
        across = triton.cdiv(cols, COLUMNS)
        high = triton.cdiv(rows, self.tuning.strip)
        strips = max(1, min(high, count * across * high // self.tuning.programs))
        return across, triton.cdiv(high, strips), strips

    def _launch(
        self,
        task: int,
        flat: Tensor,
        axes: Axes,
        batch: Batch,
        shift: Tensor | None,
        picture: Tensor,
        precision: Precision,
        results: tuple[Tensor, ...] | None,
    ) -> None:
        count, _, rows, cols = picture.shape
        across, down, strips = self._cut(count, rows, cols)
        views = self.layout.views(flat)
        network[(across * down, count)](
            flat,
            *first_terms(views[self.first], views[self.first + 1], axes),
            flat if shift is None else shift,
            picture,
            batch.rows,
            batch.cols,
            1.0 / batch.samples,
            *(results or (flat,) * 5),  # not touched when rendering
            rows,
            cols,
            across,
            strips,
            **self.constants,
            TASK=task,
            PRECISION=precision,
            num_warps=self.tuning.warps,
            num_stages=1,  # more would not fit in shared memory
            enable_fp_fusion=True,
        )


class FusedKernel:
    """Forward, loss and backward of B networks as Triton programs.

    Args:
        arch: shape of the networks.
        precision: of products in training. Rendering always uses "tf32x3", which is what the
            decoder will see.
        tuning: how the work is cut.

    Raises:
        UsageError: unknown precision, or a layer wider than the programs can hold.
    """

    name = "triton"

    def __init__(
        self, arch: Architecture, precision: Precision = "tf32", tuning: Tuning | None = None
    ) -> None:
        if precision not in get_args(Precision):
            raise UsageError(
                f"precision is {precision!r}; accepted are {', '.join(get_args(Precision))}"
            )
        widest = max(arch.genesis.hidden[1:], default=0)
        if widest > _WIDEST:
            raise UsageError(f"a layer of {widest} features; at most {_WIDEST} are accepted")
        self.arch, self.precision = arch, precision
        layout, cut = Layout(arch), tuning or Tuning()
        self._genesis = _Programs(
            layout, 0, (*arch.genesis.hidden, arch.channels), arch.modulation is not None, cut
        )
        self._modulation: _Programs | None = None
        if arch.modulation is not None:
            widths = (*arch.modulation.hidden, 1)
            self._modulation = _Programs(layout, arch.genesis_tensors, widths, False, cut)
        self._structure: Structure | None = None

    @torch.no_grad()
    def forward(self, flat: Tensor, batch: Batch) -> Tensor:
        shift = self._shift(flat, batch, "tf32x3")
        return self._genesis.render(flat, batch.genesis, batch, shift, "tf32x3")

    @torch.no_grad()
    def loss_and_gradient(
        self, flat: Tensor, batch: Batch, objective: Objective
    ) -> tuple[Tensor, Tensor, Tensor]:
        precision = self.precision
        shift = self._shift(flat, batch, precision)
        gradient = torch.empty_like(flat)
        task, picture = _LOSSES[objective.pixel], batch.target.contiguous()
        structural: tuple[Tensor, Tensor] | None = None
        if objective.applies_structure(*batch.target.shape[2:]):
            # a window spans blocks: render all, differentiate on the pictures, go back from there
            output = self._genesis.render(flat, batch.genesis, batch, shift, precision)
            error = (output - batch.target).square().sum((1, 2, 3)) / batch.samples
            if self._structure is None:
                self._structure = Structure(flat.device)
            loss, slope = self._structure.objective_and_gradient(
                output, batch.target, batch.rows, batch.cols, objective
            )
            structural = loss, error
            task, picture = LOSS_GIVEN, slope.contiguous()
        account, d_shift = self._genesis.learn(
            task, flat, batch.genesis, batch, shift, picture, precision, gradient
        )
        if self._modulation is not None and batch.modulation is not None:
            self._modulation.learn(
                LOSS_GIVEN, flat, batch.modulation, batch, None, d_shift, precision, gradient
            )
        loss, error = structural or (account / batch.samples[:, None]).unbind(1)
        return loss, gradient, error

    def _shift(self, flat: Tensor, batch: Batch, precision: Precision) -> Tensor | None:
        """Return the Modulation networks' output (B, 1, rows, columns), if there are any."""
        if self._modulation is None or batch.modulation is None:
            return None
        return self._modulation.render(flat, batch.modulation, batch, None, precision)


def batch_kernel(arch: Architecture) -> BatchKernel:
    """Return the programs, or batched torch for layers that are too wide for them."""
    if max(arch.genesis.hidden[1:], default=0) > _WIDEST:
        return StackedKernel(arch)
    return FusedKernel(arch)


def single_kernel(arch: Architecture) -> SingleKernel:
    """Return the programs as an ordinary kernel, for one network.

    Raises:
        DeviceError: there is no CUDA device, and Triton's interpreter is not switched on.
    """
    if not torch.cuda.is_available() and not triton.knobs.runtime.interpret:
        raise DeviceError("the kernel 'triton' needs a CUDA device; this machine has none")
    return SingleKernel(arch, batch_kernel(arch))
