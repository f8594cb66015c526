"""Fits at work at the same time, one thread each, that share the cores.

A kernel shares out each of its calls to several threads, but what lies between the calls is one
thread's work. Where there are several tiles to fit, every core has a fit of its own instead, and
what cores are left over serve the kernels. Kernels give the same bits for any number of threads, so
how many fits go together changes no file.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator

import torch

from nifcore.architecture import Architecture
from nifcore.devices import single_threaded
from nifcore.kernels import Kernel, make_kernel
from nifcore.kernels.fused import FusedKernel


class Crew:
    """A kernel for each of the fits that go together.

    Args:
        arch: of the networks.
        name: of the kernel, None for the best.
        device: type of the device.
        tasks: how many fits there are.
    """

    def __init__(self, arch: Architecture, name: str | None, device: str, tasks: int) -> None:
        self._threads = torch.get_num_threads()
        first = make_kernel(arch, name, device)
        # the others' kernels thread in ways of their own
        count = min(tasks, self._threads) if isinstance(first, FusedKernel) else 1
        self.kernels: list[Kernel] = [
            first,
            *(make_kernel(arch, name, device) for _ in range(count - 1)),
        ]
        self._lock = threading.Lock()
        self._busy: list[Kernel] = []
        self._serving = 0
        self._gone = threading.Condition(self._lock)
        self._failure: BaseException | None = None
        self.stopped = False
        """Whether no more tasks are begun: one asked for the end, or failed."""

    def work(self, tasks: Iterable[int], do: Callable[[int, Kernel], bool]) -> None:
        """Call ``do(task, kernel)`` for all tasks, as many at once as there are kernels.

        No more are begun once a call has returned False, or raised; then the first exception is
        raised here when all have come back.
        """
        waiting = iter(tasks)
        if len(self.kernels) == 1:
            for task in waiting:
                if not do(task, self.kernels[0]):
                    self.stopped = True
                    return
            return
        with single_threaded():
            try:
                for kernel in self.kernels:
                    self._start(kernel, waiting, do)
                self._wait()
            except BaseException:
                # an interrupt, or no more threads: those at work end before it goes on
                self.stopped = True
                self._wait()
                raise
        if self._failure is not None:
            raise self._failure

    def _start(
        self, kernel: Kernel, waiting: Iterator[int], do: Callable[[int, Kernel], bool]
    ) -> None:
        thread = threading.Thread(target=self._serve, args=(kernel, waiting, do), daemon=True)
        with self._lock:
            thread.start()
            self._serving += 1

    def _wait(self) -> None:
        # an interrupted join() of a thread takes it for dead
        with self._gone:
            self._gone.wait_for(lambda: self._serving == 0)

    def _serve(
        self, kernel: Kernel, waiting: Iterator[int], do: Callable[[int, Kernel], bool]
    ) -> None:
        torch.set_num_threads(1)
        while True:
            with self._lock:
                task = None if self.stopped else next(waiting, None)
                self._share(kernel, busy=task is not None)
                if task is None:
                    self._serving -= 1
                    self._gone.notify_all()
                    return
            try:
                if not do(task, kernel):
                    self.stopped = True
            except BaseException as failure:  # whatever it is, it is the caller's
                with self._lock:
                    self._failure = self._failure or failure
                    self.stopped = True

    def _share(self, kernel: Kernel, *, busy: bool) -> None:
        """Give the kernels at work all cores."""
        if busy and kernel not in self._busy:
            self._busy.append(kernel)
        elif not busy and kernel in self._busy:
            self._busy.remove(kernel)
        for place, each in enumerate(self._busy):
            assert isinstance(each, FusedKernel)
            over = place < self._threads % len(self._busy)
            each.threads = self._threads // len(self._busy) + over
