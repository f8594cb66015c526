"""Work recorded once as a CUDA graph and replayed: one launch instead of hundreds."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import torch

_EAGER = 2
"""Runs before recording: kernels are compiled and libraries set up by then."""


class Recorder:
    """Runs pieces of work by name; on a CUDA device records each after a few runs.

    A piece may touch only tensors that stay where they are, and must not wait for the host.

    Args:
        device: where the work is done; on a CPU every run is an ordinary call.
    """

    def __init__(self, device: torch.device) -> None:
        self._records = device.type == "cuda"
        self._pool: Any = None  # an opaque handle
        self._runs: dict[Hashable, int] = {}
        self._graphs: dict[Hashable, torch.cuda.CUDAGraph] = {}

    def run(self, name: Hashable, work: Callable[[], None]) -> None:
        """Do the work that ``name`` stands for."""
        if not self._records:
            work()
            return
        graph = self._graphs.get(name)
        if graph is None:
            runs = self._runs[name] = self._runs.get(name, 0) + 1
            if runs <= _EAGER:
                work()
                return
            graph = self._graphs[name] = torch.cuda.CUDAGraph()
            if self._pool is None:
                # shared, as replays never overlap and leave nothing behind in it
                self._pool = torch.cuda.graph_pool_handle()
            # other threads may allocate meanwhile: pictures of the same call that are measured
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                work()
        graph.replay()

    def forget(self) -> None:
        """Drop all records: tensors have moved."""
        self._runs.clear()
        self._graphs.clear()
        self._pool = None
