"""Forward and backward written out by hand over cache-sized bands of rows.

Autograd on a whole picture streams every activation through main memory a dozen times; here a
band's activations stay in the second-level cache, buffers are allocated once, and the gradient of
the separable first layer is row sums and column sums followed by two small products.

On a CPU the bands are shared out to plain threads that each compute alone. They meet once per call
instead of once per operation, so a busy machine slows the kernel in proportion and no more, while
torch's own operation-by-operation threading stalls at every barrier (run ``nif bench kernels``).
Bands do not depend on the number of threads and their gradients are added up in order, so the same
seed gives the same bits on one core and on many.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeVar

import torch
from torch import Tensor

from nifcore.architecture import Architecture
from nifcore.losses import Objective
from nifcore.network import AxisTables, Grid

_CPU_BAND = 2048
"""Pixels per band on a CPU: 120 features of them are 1 MB, half of a second-level cache."""
_GPU_BAND = 1 << 18

_Result = TypeVar("_Result")


@lru_cache(maxsize=4)
def _pool(threads: int) -> ThreadPoolExecutor:
    """Return the worker threads, in which torch itself does not thread."""
    return ThreadPoolExecutor(
        threads, thread_name_prefix="nif-kernel", initializer=lambda: torch.set_num_threads(1)
    )


class _Workspace:
    """Named scratch buffers of one worker, grown when needed and kept."""

    def __init__(self, like: Tensor) -> None:
        self.device, self.dtype = like.device, like.dtype
        self._buffers: dict[tuple[str, int], Tensor] = {}

    def __call__(self, name: str, layer: int, *shape: int) -> Tensor:
        size = math.prod(shape)
        buffer = self._buffers.get((name, layer))
        if buffer is None or buffer.numel() < size:
            buffer = torch.empty(size, device=self.device, dtype=self.dtype)
            self._buffers[name, layer] = buffer
        return buffer[:size].view(shape)


@dataclass(frozen=True)
class _FirstLayer:
    """A network's first layer on the whole grid, as the two terms of its separable sum.

    Attributes:
        rows: (out, rows). cols: (out, cols), bias included.
    """

    rows: Tensor
    cols: Tensor

    @classmethod
    def of(cls, layers: Sequence[Tensor], tables: AxisTables) -> _FirstLayer:
        weight, bias = layers[:2]
        rows = weight[:, tables.y_columns] @ tables.y
        return cls(rows, torch.addmm(bias[:, None], weight[:, tables.x_columns], tables.x))


class _Gradient:
    """One band's share of a network's gradient.

    Attributes:
        layers: like the network's tensors; the first layer's two are filled in at the end.
        cols: (out, cols) sums over rows of the first layer's gradient.
    """

    def __init__(self, layers: Sequence[Tensor], first: _FirstLayer) -> None:
        self.layers = [torch.zeros_like(p) for p in layers]
        self.cols = torch.zeros_like(first.cols)

    def add(self, other: _Gradient) -> None:
        for mine, theirs in zip(self.layers, other.layers, strict=True):
            mine += theirs
        self.cols += other.cols


class _Net:
    """One network's activations on one band, kept for the backward pass."""

    def __init__(self, tag: str, ws: _Workspace) -> None:
        self.tag, self.ws = tag, ws
        self.sums: list[Tensor] = []  # z_i, (out_i, pixels)
        self.sines: list[Tensor] = []
        self.cosines: list[Tensor] = []

    def forward(
        self,
        layers: Sequence[Tensor],
        first: _FirstLayer,
        band: slice,
        period: Tensor | float,
        keep: bool,
    ) -> Tensor:
        """Evaluate the rows ``band``; with ``keep``, remember what the backward pass needs."""
        rows = first.rows[:, band]
        out, count = rows.shape
        pixels = count * first.cols.shape[1]
        z = self.ws(self.tag + "z", 0, out, pixels)
        torch.add(rows[:, :, None], first.cols[:, None, :], out=z.view(out, count, -1))
        self.sums, self.sines, self.cosines = [z], [], []
        pairs = zip(layers[2::2], layers[3::2], strict=True)
        for layer, (weight, bias) in enumerate(pairs):
            sine = self.ws(self.tag + "s", layer, *z.shape)
            if keep:
                cosine = self.ws(self.tag + "c", layer, *z.shape)
                torch.mul(z, period, out=cosine)
                torch.sin(cosine, out=sine)
                self.cosines.append(cosine.cos_())
                self.sines.append(sine)
            else:
                torch.sin(torch.mul(z, period, out=sine), out=sine)
            z = self.ws(self.tag + "z", layer + 1, weight.shape[0], pixels)
            torch.addmm(bias[:, None], weight, sine, out=z)
            self.sums.append(z)
        return z

    def backward(
        self,
        layers: Sequence[Tensor],
        gradient: _Gradient,
        d_rows: Tensor,
        d_out: Tensor,
        band: slice,
        period: Tensor | float,
    ) -> Tensor | None:
        """Add this band's gradients; return that of ``period`` (pixels,) if it is a tensor.

        Args:
            d_rows: (out, rows) gradient of the first layer's row term; ``band`` is filled in.
            d_out: (channels, pixels) gradient of the output; overwritten.
        """
        d_period: Tensor | None = None
        dz = d_out
        for layer in range(len(self.sines) - 1, -1, -1):
            gradient.layers[2 * layer + 2].addmm_(dz, self.sines[layer].T)
            gradient.layers[2 * layer + 3].add_(dz.sum(1))
            dy = self.ws(self.tag + "d", layer, *self.sines[layer].shape)
            torch.mm(layers[2 * layer + 2].T, dz, out=dy)
            dy.mul_(self.cosines[layer])
            if isinstance(period, Tensor):
                part = self.sums[layer].mul_(dy).sum(0)
                d_period = part if d_period is None else d_period.add_(part)
            dz = dy.mul_(period)
        cube = dz.view(dz.shape[0], -1, gradient.cols.shape[1])
        d_rows[:, band] = cube.sum(2)
        gradient.cols.add_(cube.sum(1))
        return d_period


class _Worker:
    """One thread's networks and buffers."""

    def __init__(self, like: Tensor) -> None:
        ws = self.ws = _Workspace(like)
        self.genesis, self.modulation = _Net("g", ws), _Net("m", ws)


@dataclass(frozen=True)
class _Job:
    """What all workers share in one call."""

    arch: Architecture
    genesis: Sequence[Tensor]
    modulation: Sequence[Tensor]
    first: _FirstLayer
    first_modulation: _FirstLayer | None

    def colour(self, worker: _Worker, band: slice, keep: bool) -> tuple[Tensor, Tensor | float]:
        """Return colour (channels, pixels) of a band and the period of its sines."""
        period: Tensor | float = self.arch.omega
        if self.first_modulation is not None:
            shift = worker.modulation.forward(
                self.modulation, self.first_modulation, band, self.arch.omega, keep
            )
            period = shift.mul_(self.arch.sigma).add_(self.arch.omega)
        return worker.genesis.forward(self.genesis, self.first, band, period, keep), period


class ChunkedKernel:
    """See the module's text. Exact: gradients agree with autograd to rounding.

    Args:
        arch: shape of the networks.
        band: pixels per band, or None for the device's default.
        threads: worker threads on a CPU, or None for as many as torch uses.
    """

    name = "chunked"

    def __init__(
        self, arch: Architecture, band: int | None = None, threads: int | None = None
    ) -> None:
        self.arch = arch
        self._band = band
        self._threads = threads or torch.get_num_threads()
        self._workers: list[_Worker] = []

    def _begin(self, params: Sequence[Tensor], grid: Grid) -> tuple[_Job, list[_Worker]]:
        like, split = params[0], self.arch.genesis_tensors
        threads = self._threads if like.device.type == "cpu" else 1
        ws = self._workers[0].ws if self._workers else None
        if ws is None or ws.device != like.device or ws.dtype != like.dtype:
            self._workers = [_Worker(like) for _ in range(threads)]
        genesis, modulation = params[:split], params[split:]
        job = _Job(
            self.arch,
            genesis,
            modulation,
            _FirstLayer.of(genesis, grid.genesis),
            _FirstLayer.of(modulation, grid.modulation) if grid.modulation is not None else None,
        )
        return job, self._workers

    def _bands(self, grid: Grid, on_cpu: bool) -> list[slice]:
        """Cut the rows into bands."""
        rows = max(1, (self._band or (_CPU_BAND if on_cpu else _GPU_BAND)) // grid.cols)
        return [slice(r, min(r + rows, grid.rows)) for r in range(0, grid.rows, rows)]

    def forward(self, params: Sequence[Tensor], grid: Grid) -> Tensor:
        with torch.no_grad():
            job, workers = self._begin(params, grid)
            output = params[0].new_empty(self.arch.channels, grid.rows, grid.cols)

        def work(worker: _Worker, band: slice) -> None:
            colour, _ = job.colour(worker, band, keep=False)
            output[:, band] = colour.view(self.arch.channels, -1, grid.cols)

        _share_out(work, workers, self._bands(grid, output.device.type == "cpu"))
        return output

    @torch.no_grad()
    def loss_and_gradient(
        self, params: Sequence[Tensor], grid: Grid, target: Tensor, objective: Objective
    ) -> tuple[Tensor, list[Tensor], Tensor]:
        structural: tuple[Tensor, Tensor] | None = None
        if objective.applies_structure(grid.rows, grid.cols):
            # a window spans bands: render all, differentiate on the picture, render again
            structural = objective.value_and_gradient(self.forward(params, grid), target)
        job, workers = self._begin(params, grid)
        d_rows = torch.empty_like(job.first.rows)
        second = job.first_modulation
        d_rows_modulation = None if second is None else torch.empty_like(second.rows)

        def work(
            worker: _Worker, band: slice
        ) -> tuple[_Gradient, _Gradient | None, Tensor, Tensor]:
            gradient = _Gradient(job.genesis, job.first)
            shift_gradient = None if second is None else _Gradient(job.modulation, second)
            colour, period = job.colour(worker, band, keep=True)
            difference = colour.sub_(target[:, band].flatten(1))
            error = difference.square().sum()
            if structural is None:
                loss, d_out = objective.pixel_sum_and_gradient(difference)
                d_out.div_(target.numel())
            else:
                loss, d_out = structural[0], structural[1][:, band].flatten(1)
            d_period = worker.genesis.backward(job.genesis, gradient, d_rows, d_out, band, period)
            if d_period is not None and shift_gradient and d_rows_modulation is not None:
                worker.modulation.backward(
                    job.modulation,
                    shift_gradient,
                    d_rows_modulation,
                    d_period.mul_(self.arch.sigma)[None],
                    band,
                    self.arch.omega,
                )
            return gradient, shift_gradient, loss, error

        parts = _share_out(work, workers, self._bands(grid, target.device.type == "cpu"))
        gradient, shift_gradient, loss, error = parts[0]
        for more, more_shift, more_loss, more_error in parts[1:]:
            gradient.add(more)
            if shift_gradient is not None and more_shift is not None:
                shift_gradient.add(more_shift)
            loss, error = loss + more_loss, error + more_error
        gradients = _finished(gradient, d_rows, grid.genesis)
        if shift_gradient is not None and d_rows_modulation is not None and grid.modulation:
            gradients += _finished(shift_gradient, d_rows_modulation, grid.modulation)
        value = structural[0] if structural is not None else loss / target.numel()
        return value, gradients, error / target.numel()


def _share_out(
    work: Callable[[_Worker, slice], _Result], workers: Sequence[_Worker], bands: Sequence[slice]
) -> list[_Result]:
    """Run ``work`` on every band, each worker on every so-manyth; return results in band order."""
    count = min(len(workers), len(bands))

    @torch.no_grad()
    def run(index: int) -> list[_Result]:
        return [work(workers[index], band) for band in bands[index::count]]

    shares = [run(0)] if count == 1 else list(_pool(len(workers)).map(run, range(count)))
    return [shares[i % count][i // count] for i in range(len(bands))]


def _finished(gradient: _Gradient, d_rows: Tensor, tables: AxisTables) -> list[Tensor]:
    """Turn the row and column sums into the first layer's gradient; return all layers'."""
    weight, bias = gradient.layers[:2]
    weight.index_copy_(1, tables.y_columns, d_rows @ tables.y.T)
    weight.index_copy_(1, tables.x_columns, gradient.cols @ tables.x.T)
    bias.copy_(gradient.cols.sum(1))
    return gradient.layers
