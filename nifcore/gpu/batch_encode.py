"""Several pictures in, each its own file or its own error; their fits go through the GPU together.

::

    job ─► session (thread): plan ─► fits ─┐                      ┌─► results ─► pack ─► measure
    job ─► session (thread): plan ─► fits ─┼─► Gathering ─► batch ┼─► results ─► ...
    job ─► session (thread): plan ─► fits ─┘   (per company)      └─► results ─► another try?

Every picture has a session of its own, in a thread of its own, which waits whenever it needs fits.
When all that still run wait, what they need is sorted by company (equal architecture, recipe and
stride) and each company fitted as one batch. So the tiles of one picture are one batch, like
pictures are one batch, and a session that tries several rates comes back with its next fits.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

import torch

from nifcore.architecture import Architecture
from nifcore.devices import describe_device, resolve_device, single_threaded
from nifcore.errors import DeviceError, UsageError
from nifcore.events import Checkpoint, Control, ControlFunction
from nifcore.events import ProgressFunction as Progress
from nifcore.fit import Budget, FitResult, Monitor, TileFit
from nifcore.gpu.account import Account
from nifcore.gpu.base import BatchKernel, BatchKernelFactory
from nifcore.gpu.batch_fit import BatchFit, Company, Outcome, Seat, company_of
from nifcore.gpu.stacked import StackedKernel
from nifcore.header import Header
from nifcore.kernels import Kernel, make_kernel
from nifcore.limits import Limits
from nifcore.picture import PictureSource, read_picture
from nifcore.plan import Plan
from nifcore.presets import DEFAULT_EFFORT, find_recipe
from nifcore.report import Encoded
from nifcore.session import Session, TileMonitor
from nifcore.target import make_target

MOST_TOGETHER = 64
"""More networks in one launch gain nothing: the device is full."""


@dataclass(frozen=True)
class Job:
    """One picture to encode; the fields are arguments of :func:`nifcore.encoder.encode`."""

    image: PictureSource
    preset: str | None = None
    effort: int | None = None
    quality: float | None = None
    psnr: float | None = None
    bpp: float | None = None
    max_bytes: int | None = None
    seed: int = 0
    progress: Progress | None = None
    checkpoint: Checkpoint | None = None
    control: ControlFunction | None = None
    keep_icc: bool = False
    limits: Limits = field(default_factory=Limits)


def encode_many(
    jobs: Sequence[Job],
    *,
    device: str = "auto",
    kernel: BatchKernelFactory | None = None,
    together: int = MOST_TOGETHER,
    on_result: Callable[[int, Encoded | Exception], None] | None = None,
) -> list[Encoded | Exception]:
    """Encode several pictures; fits that go together run as one batch.

    Callbacks of the jobs are called from this thread and from one thread per job, never two of one
    job at once. What a batch cannot do, a job tries alone, one after the other.

    Args:
        device: "auto", "cpu", "cuda" or "cuda:N".
        kernel: batched implementation, or None for the device's own.
        together: most networks in one batch.
        on_result: called with a job's place and its result as soon as it is there, while others
            may still be at work; from the job's own thread. It must not raise.

    Returns:
        Per job its result, or the exception that :func:`nifcore.encoder.encode` would have raised.

    Raises:
        UsageError: ``together`` is below 1.
        DeviceError: the device is not there.
    """
    if together < 1:
        raise UsageError(f"together is {together}; 1 and more is accepted")
    where = resolve_device(device)
    gathering = Gathering(kernel or kernel_for(where), together)
    results: list[Encoded | Exception | None] = [None] * len(jobs)

    def work(index: int) -> None:
        try:
            results[index] = _encode(jobs[index], where, gathering)
        except Exception as error:
            # Whatever it is, it is this picture's: the others go on.
            results[index] = error
        finally:
            gathering.leave()
        if on_result is not None:
            on_result(index, _present(results[index]))

    threads = [threading.Thread(target=work, args=(i,), daemon=True) for i in range(len(jobs))]
    gathering.expect(len(threads))
    for thread in threads:
        thread.start()
    with single_threaded():
        gathering.serve()
    for thread in threads:
        thread.join()
    return [_present(result) for result in results]


def kernel_for(device: torch.device) -> BatchKernelFactory:
    """Return the batched implementation for a device: Triton on CUDA, batched torch on a CPU."""
    return _triton if device.type == "cuda" else StackedKernel


def _triton(arch: Architecture) -> BatchKernel:
    # loaded only when used: Triton is not everywhere, and what lacks it encodes otherwise
    from nifcore.gpu.fused import batch_kernel

    return batch_kernel(arch)


def _kernel_alone(arch: Architecture, device: torch.device) -> Kernel:
    """Return what renders, and fits what goes on alone."""
    if device.type == "cuda":
        from nifcore.gpu.fused import single_kernel

        return single_kernel(arch)
    return make_kernel(arch)


class Gathering:
    """Where sessions bring their fits, and one thread runs them together.

    Args:
        kernel: makes the batched implementation for an architecture.
        together: most networks in one batch.
    """

    def __init__(self, kernel: BatchKernelFactory, together: int = MOST_TOGETHER) -> None:
        self._kernel, self._together = kernel, together
        self.alone = threading.Lock()
        """Held by a session that fits by itself what the batch could not."""
        self._kernels: dict[Architecture, BatchKernel] = {}
        self._news = threading.Condition()
        self._running = 0
        self._waiting: list[_Errand] = []

    def kernel_of(self, arch: Architecture) -> BatchKernel:
        """Return the batched implementation for an architecture."""
        if arch not in self._kernels:
            self._kernels[arch] = self._kernel(arch)
        return self._kernels[arch]

    def expect(self, sessions: int) -> None:
        """Announce sessions: nothing is run before all of them wait or have left."""
        with self._news:
            self._running += sessions

    def leave(self) -> None:
        """A session is done and will bring no more."""
        with self._news:
            self._running -= 1
            self._news.notify_all()

    def fit(
        self,
        header: Header,
        seats: Sequence[Seat],
        monitors: Sequence[Monitor],
        settled: Callable[[Seat, Outcome], None],
    ) -> list[Outcome]:
        """Bring fits, wait, and return what became of them; called by sessions.

        Args:
            settled: told what became of each as soon as that is known, in another thread; what it
                raises is that fit's outcome.
        """
        errand = _Errand(header, list(seats), list(monitors), settled)
        if not self._running:
            self._run_all([errand])  # nobody serves: one session by itself
            return [errand.outcomes[id(seat)] for seat in seats]
        with self._news:
            self._waiting.append(errand)
            self._news.notify_all()
        errand.done.wait()
        return [errand.outcomes[id(seat)] for seat in seats]

    def serve(self) -> None:
        """Run what is brought until every session has left."""
        while True:
            with self._news:
                self._news.wait_for(lambda: len(self._waiting) == self._running)
                if not self._waiting:
                    return
                errands, self._waiting = self._waiting, []
            self._run_all(errands)

    def _run_all(self, errands: Sequence[_Errand]) -> None:
        """Sort fits by company and run each company, in as many batches as it takes.

        The largest goes first, and a session goes on as soon as its own fits are done: none waits
        for one that is unlike the others, and one that is done early does not wait for them.
        """
        companies: dict[tuple[Company, int], list[tuple[Seat, Monitor, _Errand]]] = {}
        for errand in errands:
            for seat, monitor in zip(errand.seats, errand.monitors, strict=True):
                # one that an earlier run began keeps no step with the others
                key = company_of(seat), id(seat) if seat.cursor.done else 0
                companies.setdefault(key, []).append((seat, monitor, errand))
        for company in sorted(companies.values(), key=len, reverse=True):
            for start in range(0, len(company), self._together):
                self._run(company[start : start + self._together])

    def _run(self, members: Sequence[tuple[Seat, Monitor, _Errand]]) -> None:
        seats = [seat for seat, _, _ in members]
        monitors = [monitor for _, monitor, _ in members]
        errands = {id(seat): errand for seat, _, errand in members}

        def settled(seat: Seat, outcome: Outcome) -> None:
            errands.pop(id(seat)).settle(seat, outcome)

        try:
            if seats[0].cursor.done or (len(seats) == 1 and not _worth_it(seats[0])):
                for seat, monitor in zip(seats, monitors, strict=True):
                    settled(seat, _alone(seat, monitor))
                return
            account = None
            if seats[0].target.device.type == "cuda" and seats[0].budget is not None:
                account = Account(members[0][2].header, seats[0].target.device)
            kernel = self.kernel_of(seats[0].arch)
            BatchFit(seats, kernel, monitors, account, settled).run()
        except Exception as error:
            # The sessions wait: each must hear of it.
            for seat in seats:
                if id(seat) in errands:
                    settled(seat, error)


def _worth_it(seat: Seat) -> bool:
    """Tell whether one fit alone is to run as a batch: only there are iterations recorded."""
    return seat.target.device.type == "cuda"


def _alone(seat: Seat, monitor: Monitor) -> Outcome:
    try:
        return seat.run(monitor)
    except Exception as error:
        # As in a batch: one item's trouble.
        return error


@dataclass
class _Errand:
    """Fits that one session waits for."""

    header: Header
    seats: list[Seat]
    monitors: list[Monitor]
    told: Callable[[Seat, Outcome], None]
    outcomes: dict[int, Outcome] = field(default_factory=dict)
    done: threading.Event = field(default_factory=threading.Event)

    def settle(self, seat: Seat, outcome: Outcome) -> None:
        """Note what became of a fit; with the last one the session goes on."""
        try:
            self.told(seat, outcome)
        except Exception as error:
            outcome = error
        self.outcomes[id(seat)] = outcome
        if len(self.outcomes) == len(self.seats):
            self.done.set()


class BatchSession(Session):
    """A session whose tiles are fitted together, and with those of other sessions.

    Where that fails, they are fitted as anywhere else, and the report says so: what is there for
    speed must not cost a picture.
    """

    gathering: Gathering | None = None
    """Where the fits of several sessions meet; one by itself needs none."""
    _together = False
    """Whether the tiles are fitted in step, so that one speaks for all."""
    _raised: Exception | None = None
    """What a callback of the caller raised: no failure of the batch."""

    def _fit_tiles(self, plan: Plan, budget: Budget | None, todo: Collection[int]) -> None:
        saved = dict(self.saved_fits)
        try:
            self._fit_together(plan, budget, todo)
            return
        except Exception as error:
            if error is self._raised:
                raise
            if self.kernel_name is not None:
                raise DeviceError(
                    f"the kernel {self.kernel_name!r} failed: {_first_line(error)}"
                ) from error
            reason = _first_line(error)
        finally:
            self._together = False
        # outside of the handler, which would keep the batch's tensors alive
        self.saved_fits = {index: state for index, state in saved.items() if index not in self.done}
        self._working, self._states = {}, {}
        assert self.gathering is not None
        with self.gathering.alone:
            self.say(f"the batched kernel failed ({reason}): tiles fitted by another instead")
            super()._fit_tiles(plan, budget, [index for index in todo if index not in self.done])

    def _fit_together(self, plan: Plan, budget: Budget | None, todo: Collection[int]) -> None:
        if self.gathering is None:
            self.gathering = Gathering(kernel_for(self.device))
        kernel = _kernel_alone(plan.arch, self.device)
        self._begin_canvas(plan.header, kernel)
        seats = [self._new_fit(Seat, plan, kernel, budget, index) for index in todo]
        self.kernel_used = self.gathering.kernel_of(plan.arch).name
        for index, seat in zip(todo, seats, strict=True):
            self._set_to_work(index, seat)
        self._together = True
        monitors = [TileMonitor(self, index) for index in todo]
        places = {id(seat): index for index, seat in zip(todo, seats, strict=True)}

        def settled(seat: Seat, outcome: Outcome) -> None:
            if isinstance(outcome, FitResult):
                self._take(places[id(seat)], seat, outcome)

        for outcome in self.gathering.fit(plan.header, seats, monitors, settled) if seats else []:
            if isinstance(outcome, Exception):
                raise outcome

    def tick(self, index: int, fit: TileFit) -> Control:
        if self._raised is not None:
            raise self._raised
        if self._together and not self._has_news(index):
            # tiles move in step: all hear what the first one hears
            return Control.CONTINUE
        try:
            return super().tick(index, fit)
        except Exception as error:
            self._raised = error
            raise

    def _has_news(self, index: int) -> bool:
        """Tell whether a tile is the first of those in step, or has something to do besides."""
        with self._lock:
            if index == next((i for i, seat in self._working.items() if _is_seated(seat)), index):
                return True
            now = time.monotonic()
            if self._saving.due(index, now, self._save_pause) or self._cancelled or self._finish:
                return True
            return self.progress is not None and self._drawing.due(index, now, self._preview_pause)

    def say(self, message: str) -> None:
        try:
            super().say(message)
        except Exception as error:
            # Raised at the next tick: from here it would end the fits of others, too.
            self._raised = error


def _is_seated(fit: TileFit) -> bool:
    return isinstance(fit, Seat) and fit.batch is not None


def _first_line(error: Exception) -> str:
    """Return what happened in one line: compilers tell whole stories."""
    text = next(iter(str(error).strip().splitlines()), "")
    return f"{type(error).__name__}: {text[:200]}" if text else type(error).__name__


def _encode(job: Job, device: torch.device, gathering: Gathering) -> Encoded:
    """Do what :func:`nifcore.encoder.encode` does, with the fits brought to ``gathering``."""
    began = time.monotonic()
    recipe = find_recipe(job.preset, job.effort)
    target = make_target(job.preset, job.quality, job.psnr, job.bpp, job.max_bytes)
    picture = read_picture(job.image, job.limits, job.keep_icc)
    session = BatchSession(
        picture,
        recipe,
        device,
        None,
        job.seed,
        job.progress,
        job.control,
        job.checkpoint,
        target,
        began,
    )
    session.gathering = gathering
    try:
        data = session.run()
    except torch.cuda.OutOfMemoryError as error:
        raise DeviceError(f"{describe_device(device)} ran out of memory: {error}") from error
    except MemoryError as error:
        raise DeviceError("not enough memory for this picture and rate") from error
    return Encoded(data, session.report(data, job.preset, job.effort or DEFAULT_EFFORT))


def _present(result: Encoded | Exception | None) -> Encoded | Exception:
    assert result is not None
    return result
