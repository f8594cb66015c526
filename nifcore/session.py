"""One encode from picture to bytes: what it plans, fits, codes, saves and measures.

::

    picture ─► Plan ─► per tile: fit ─► quantise ─► symbols ─► pack ─► bytes ─► decode ─► measure
                 ▲                                                                  │
                 └────────── with a PSNR target: another rate, a few times ◄────────┘

Tiles are fitted several at a time (:mod:`nifcore.crew`). What the caller hears and asks goes
through one lock, from whichever fit is about to iterate.
"""

from __future__ import annotations

import hashlib
import math
import threading
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from nifcore import metrics
from nifcore.architecture import Architecture
from nifcore.bitstream import code_length, expected_magnitudes, pack
from nifcore.calibration import ASSUMED
from nifcore.calibration import stored as stored_calibration
from nifcore.complexity import Complexity
from nifcore.config import cache_folder
from nifcore.crew import Crew
from nifcore.decoder import decode_pixels
from nifcore.devices import describe_device, single_threaded
from nifcore.errors import Cancelled, ImpossibleTarget
from nifcore.eta import Eta
from nifcore.events import (
    Checkpoint,
    Control,
    ControlFunction,
    Phase,
    ProgressEvent,
    ProgressFunction,
)
from nifcore.fit import Budget, FitResult, TileFit
from nifcore.header import (
    CRC_BYTES,
    EXTENSION_ICC_PROFILE,
    Colour,
    Extension,
    Header,
    LatticeKind,
    header_bytes,
)
from nifcore.kernels import Kernel
from nifcore.limits import Limits
from nifcore.network import from_bytes, pixel_grid
from nifcore.picture import Picture
from nifcore.plan import Plan, least_bytes, plan_rate
from nifcore.presets import Recipe
from nifcore.preview import Canvas
from nifcore.quantise import as_weights
from nifcore.rateguess import guess_bpp
from nifcore.report import Report
from nifcore.snapshot import Snapshot, SnapshotUnreadable
from nifcore.symmetry import in_order
from nifcore.target import DB_PER_DOUBLING, MOST_BPP, Target
from nifcore.tensors import QuantisedTensor
from nifcore.tiling import Box
from nifcore.turns import Turns
from nifcore.workload import Workload

AnyFit = TypeVar("AnyFit", bound=TileFit)

_EVENT_SECONDS = 0.1
_PREVIEW_SECONDS = 0.5
_PREVIEW_SHARE = 0.1
"""A preview is made every half second, later every tenth of the time that the encode has taken."""
_CHECKPOINT_SECONDS = 5.0

_PSNR_ROUNDS = 5
_PSNR_SLACK = 0.4
"""A result this many dB above the asked PSNR is near enough."""


class Session:
    """One encode from picture to bytes; also the monitor of its fits."""

    def __init__(
        self,
        picture: Picture,
        recipe: Recipe,
        device: torch.device,
        kernel: str | None,
        seed: int,
        progress: ProgressFunction | None,
        control: ControlFunction | None,
        checkpoint: Checkpoint | None,
        target: Target,
        began: float,
    ) -> None:
        self.picture, self.recipe, self.device = picture, recipe, device
        self.kernel_name, self.seed, self.target = kernel, seed, target
        self.progress, self.control, self.checkpoint = progress, control, checkpoint
        self.began = began
        self.earlier = 0.0  # seconds of the run that left the checkpoint
        self.notes: list[str] = list(picture.notes)
        self.complete = True
        self.passes = 0.0
        self.kernel_used = ""
        self.header: Header | None = None
        # what a checkpoint carries besides the fits at work
        self.tried: list[tuple[float, float, bytes]] = []  # (bytes asked, PSNR, file)
        self.asked_bytes = 0.0
        self.done: dict[int, list[QuantisedTensor]] = {}  # tiles
        self.saved_fits: dict[int, dict[str, Any]] = {}  # of tiles that an earlier run began
        self._saved_header: bytes | None = None
        # the fits at work, and what they do in turn
        self._lock = threading.RLock()
        self._working: dict[int, TileFit] = {}
        self._states: dict[int, dict[str, Any]] = {}
        self._saving, self._drawing = Turns(time.monotonic()), Turns()
        self._cancelled = self._finish = False
        self._crew: Crew | None = None
        self._eta: Eta | None = None
        self._last_event = -math.inf
        self._last_phase: Phase = "prepare"
        # of finished tiles and of those at work, once their weights are trained for the rate
        self._bits: dict[int, float] = {}
        self._psnrs: dict[int, float | None] = {}
        self._plan: Plan | None = None
        self._canvas: Canvas | None = None

    @property
    def pixels(self) -> int:
        return self.picture.width * self.picture.height

    # ------------------------------------------------------------------ the whole encode

    def run(self) -> bytes:
        self._emit(ProgressEvent("prepare", seconds=self.seconds))
        self._resume()
        extensions: tuple[Extension, ...] = ()
        if self.picture.icc is not None:
            extensions = (Extension(EXTENSION_ICC_PROFILE, self.picture.icc),)
        if self.recipe.genesis is not None:
            return self._encode_plan(self._fixed_plan(), extensions)
        if self.target.psnr is not None:
            return self._search(self.target.psnr, extensions)
        size = self.target.bytes_for(self.pixels)
        if not self.target.strict:
            size = max(size, self._least_bytes(extensions))
        return self._encode_plan(self._rate_plan(size, extensions), extensions)

    def _search(self, wanted: float, extensions: tuple[Extension, ...]) -> bytes:
        """Try rates until the measured PSNR is just above the wanted one."""
        if not self.tried and not self.asked_bytes:
            self.asked_bytes = guess_bpp(self.picture.pixels, wanted) * self.pixels / 8
        while len(self.tried) < _PSNR_ROUNDS:
            least = self._least_bytes(extensions)
            most = max(least, MOST_BPP * self.pixels / 8)
            self.asked_bytes = min(max(self.asked_bytes, least), most)
            data = self._encode_plan(self._rate_plan(self.asked_bytes, extensions), extensions)
            reached = self._measure(data)
            self.tried.append((self.asked_bytes, reached, data))
            good = wanted <= reached <= wanted + _PSNR_SLACK
            at_end = self.asked_bytes == (most if reached < wanted else least)
            if good or at_end or self._finish:
                break
            self.say(
                f"{len(data)} bytes give {reached:.2f} dB, {wanted:.2f} dB asked: trying another"
            )
            self.asked_bytes = self._next_size(wanted)
            self.done, self.saved_fits = {}, {}
        enough = [entry for entry in self.tried if entry[1] >= wanted]
        if enough:
            return min((entry[2] for entry in enough), key=len)
        best = max(self.tried, key=lambda entry: entry[1])
        if self._finish:
            return best[2]
        raise ImpossibleTarget(
            f"{wanted:.2f} dB asked; the best of {len(self.tried)} attempts reached "
            f"{best[1]:.2f} dB with {len(best[2])} bytes (more effort may reach further)"
        )

    def _next_size(self, wanted: float) -> float:
        """Interpolate between tries on both sides, or extrapolate along the usual slope."""
        # a fit scatters by a few tenths of a dB: aim higher each time
        aim = wanted + _PSNR_SLACK / 4 * len(self.tried)
        below = [t for t in self.tried if t[1] < wanted]
        above = [t for t in self.tried if t[1] >= wanted]
        if below and above:
            low, high = max(below, key=lambda t: t[1]), min(above, key=lambda t: t[1])
            share = (aim - low[1]) / max(high[1] - low[1], 1e-6)
            return low[0] * math.pow(high[0] / low[0], min(0.95, max(0.05, share)))
        near = self.tried[-1]
        return near[0] * math.pow(2.0, (aim - near[1]) / DB_PER_DOUBLING)

    def _least_bytes(self, extensions: tuple[Extension, ...]) -> int:
        return least_bytes(
            self.picture.width,
            self.picture.height,
            Colour(self.picture.channels),
            _overhead(extensions),
        )

    def _rate_plan(self, size: float, extensions: tuple[Extension, ...]) -> Plan:
        found: list[Complexity] = []  # most pictures are one tile, and need none

        def divide(box: Box, tiles: int, share: float) -> tuple[int, bool]:
            if not found:
                found.append(Complexity(self.picture.pixels, 8.0 * size))
            return found[0].divide(box, tiles, share)

        return plan_rate(
            self.picture.width,
            self.picture.height,
            Colour(self.picture.channels),
            math.floor(size),
            _overhead(extensions),
            divide,
        )

    def _fixed_plan(self) -> Plan:
        assert self.recipe.genesis is not None
        header = Header(
            width=self.picture.width,
            height=self.picture.height,
            colour=Colour(self.picture.channels),
            genesis=self.recipe.genesis,
            modulation=self.recipe.modulation,
            lattice=LatticeKind.PUBLISHED,
        )
        return Plan(header, math.inf)

    def _encode_plan(self, plan: Plan, extensions: tuple[Extension, ...]) -> bytes:
        """Fit every tile that is not done yet, and pack."""
        header = plan.header
        budget = self._begin(plan)
        todo = [index for index in range(header.tile_count) if index not in self.done]
        self._fit_tiles(plan, budget, todo)
        if self._cancelled:
            self._save()
            raise Cancelled("cancelled by the caller")
        self._emit(self._event("code"))
        tiles = [self.done[index] for index in range(header.tile_count)]
        return pack(replace(header, extensions=extensions), tiles)

    def _fit_tiles(self, plan: Plan, budget: Budget | None, todo: Collection[int]) -> None:
        """Fit tiles, as many at once as there are cores, until all are done or one is cancelled."""
        crew = Crew(plan.arch, self.kernel_name, self.device.type, len(todo))
        self.kernel_used = crew.kernels[0].name
        self._begin_canvas(plan.header, crew.kernels[0])

        def fit_tile(index: int, kernel: Kernel) -> bool:
            fit = self._new_fit(TileFit, plan, kernel, budget, index)
            self._set_to_work(index, fit)
            result = fit.run(TileMonitor(self, index))
            if result is not None:
                self._take(index, fit, result)
            return result is not None

        self._crew = crew
        crew.work(todo, fit_tile)

    def _set_to_work(self, index: int, fit: TileFit) -> None:
        with self._lock:
            state = self.saved_fits.pop(index, None)
            if state is not None:
                fit.load(state)
                self._states[index] = state
            self._working[index] = fit
            if self._eta is not None:
                self._eta.begin(time.monotonic(), self._iterations_done())

    def _begin(self, plan: Plan) -> Budget | None:
        """Make a plan the one at work; return what each of its tiles may cost."""
        self._plan = plan
        self.header = header = plan.header
        under_way = self.saved_fits or self.done
        if under_way and self._saved_header not in (None, header_bytes(header)):
            self.notes.append("the checkpoint's networks have other sizes: starting afresh")
            self.done, self.saved_fits = {}, {}
        self._working, self._states, self._psnrs = {}, {}, {}
        self._saving.forget()
        self._drawing.forget()
        self._bits = {index: code_length(header, tile) for index, tile in self.done.items()}
        self._eta = None if self.progress is None else self._new_eta(header)
        if self.recipe.published_bits is not None:
            return None
        return Budget(
            plan.budget_bits,
            lambda tensors: code_length(header, tensors),
            _exact(header),
            lambda tensors: expected_magnitudes(header, tensors),
        )

    def _new_fit(
        self,
        kind: type[AnyFit],
        plan: Plan,
        kernel: Kernel,
        budget: Budget | None,
        index: int,
    ) -> AnyFit:
        """Return the fit of a tile, not begun."""
        x, y, w, h = plan.header.tile_box(index)
        part = torch.from_numpy(np.ascontiguousarray(self.picture.pixels[y : y + h, x : x + w]))
        target = from_bytes(part).to(self.device)
        stride = self._stride(plan.header)
        with single_threaded():  # sums, too, are the same for any number of threads
            return kind(plan.arch, kernel, target, self.recipe, budget, self.seed + index, stride)

    def _stride(self, header: Header) -> int:
        """Return the lattice stride, the same for all tiles that are not narrower."""
        return self.recipe.sampling.stride_for(header.height, header.width, header.tile_count)

    def _take(self, index: int, fit: TileFit, result: FitResult) -> None:
        """Keep what became of a tile."""
        assert self.header is not None
        tensors = in_order(self.header, result.rounded.tensors)
        with self._lock:
            self.passes += result.passes / self.header.tile_count
            self.complete = self.complete and result.complete
            self.done[index] = tensors
            self._bits[index] = code_length(self.header, tensors)
            self._psnrs[index] = fit.cursor.psnr_db
            self._working.pop(index, None)
            self._states.pop(index, None)
            self._draw_done(index, fit.kernel)

    # ------------------------------------------------------------------ monitor of the fits

    def tick(self, index: int, fit: TileFit) -> Control:
        """Called by every fit before each of its iterations; returns what it is to do."""
        with self._lock:
            now = time.monotonic()
            if self._saving.due(index, now, self._save_pause):
                self._states[index] = fit.state()
                if self._saving.taken(index, now, self._save_pause, self._working):
                    self._save()
            if self.progress is not None:
                self._tell(now, index, fit)
            wish = self.control() if self.control is not None else None
            self._cancelled = self._cancelled or wish is Control.CANCEL
            if self._cancelled or (self._crew is not None and self._crew.stopped):
                if self.checkpoint is not None:
                    self._states[index] = fit.state()
                return Control.CANCEL
            self._finish = self._finish or wish is Control.FINISH
            return Control.FINISH if self._finish else Control.CONTINUE

    def say(self, message: str) -> None:
        with self._lock:
            self.notes.append(message)
            self._emit(replace(self._event("fit"), message=message))

    def _tell(self, now: float, index: int, fit: TileFit) -> None:
        """Let the caller know how far the fits are, where there is news."""
        phase = self._phase
        preview = None
        due = fit.cursor.done > 0 and self._drawing.due(index, now, self._preview_pause)
        if due and self._canvas is not None:
            self._canvas.draw(index, fit.kernel, fit.params, fit.grid)
            if fit.lattice is not None:
                # counting takes about as long as a few iterations: not for every event
                assert self.header is not None
                self._bits[index] = code_length(self.header, fit.lattice.round(fit.params).tensors)
            if self._drawing.taken(index, now, self._preview_pause, self._working):
                preview = self._canvas.pixels
        due = phase != self._last_phase or now - self._last_event >= _EVENT_SECONDS
        if due or preview is not None:
            self._last_phase = phase
            self._emit(replace(self._event(phase, fit), preview=preview))

    @property
    def _save_pause(self) -> float:
        """Seconds between checkpoints."""
        if self.checkpoint is None:
            return math.inf
        return getattr(self.checkpoint, "interval_seconds", _CHECKPOINT_SECONDS)

    @property
    def _preview_pause(self) -> float:
        """Seconds between previews."""
        return max(_PREVIEW_SECONDS, _PREVIEW_SHARE * self.seconds)

    @property
    def seconds(self) -> float:
        return self.earlier + time.monotonic() - self.began

    @property
    def _phase(self) -> Phase:
        """What the fits at work do: "quantise" once all of them see rounded weights."""
        phases = {fit.phase for fit in self._working.values()}
        return "quantise" if phases == {"quantise"} else "fit"

    def _iterations_done(self) -> list[int]:
        """Return the iterations of every tile that was begun, as far as it has come."""
        assert self.header is not None
        counts = [fit.cursor.done for fit in self._working.values()]
        counts += [int(state["cursor"]["done"]) for state in self.saved_fits.values()]
        whole = self.recipe.suited_to(len(self.header.genesis.hidden))
        for index in self.done:
            _, _, columns, rows = self.header.tile_box(index)
            counts.append(whole.iterations(min(self._stride(self.header), columns, rows) ** 2))
        return counts

    def _event(self, phase: Phase, fit: TileFit | None = None) -> ProgressEvent:
        now = time.monotonic()
        assert self._plan is not None
        header = self._plan.header
        event = ProgressEvent(
            phase,
            tile=len(self.done),
            tiles=header.tile_count,
            seconds=self.seconds,
            bpp=None if self.progress is None else self._bpp(),
        )
        if fit is None:
            left = self._eta.closing(now) if self._eta and phase in ("code", "verify") else None
            return replace(event, eta_seconds=left)
        done = self._iterations_done()
        eta = None
        if self._eta is not None:
            short = [each.remaining for each in self._working.values() if each.cursor.finishing]
            eta = self._eta.fitting(now, done, sum(short) if short else None)
        return replace(
            event,
            step=fit.cursor.step + 1,
            steps=fit.stage.steps,
            iteration=sum(done),
            iterations=fit.iterations * header.tile_count,
            loss=fit.cursor.loss,
            psnr_db=self._psnr(),
            eta_seconds=eta,
        )

    def _psnr(self) -> float | None:
        """Return the PSNR of the tiles that were begun, as far as it is known."""
        assert self.header is not None
        known = dict(self._psnrs)
        known |= {index: fit.cursor.psnr_db for index, fit in self._working.items()}
        errors, pixels = 0.0, 0
        for index, found in known.items():
            if found is not None:
                _, _, width, height = self.header.tile_box(index)
                errors += width * height * 10.0 ** (-found / 10.0)
                pixels += width * height
        return -10.0 * math.log10(errors / pixels) if pixels else None

    def _bpp(self) -> float | None:
        """Return the file's rate: what is rounded as the coder counts it, the rest as planned."""
        assert self._plan is not None
        header, planned = self._plan.header, self._plan.budget_bits
        bits = 8.0 * (len(header_bytes(header)) + CRC_BYTES) + sum(self._bits.values())
        left = header.tile_count - len(self._bits)
        if left:
            bits += left * planned
        return bits / self.pixels if math.isfinite(bits) else None

    def _new_eta(self, header: Header) -> Eta:
        """Return what tells the time left, with this machine's calibration if it has one."""
        kernel, threads = self.kernel_name, torch.get_num_threads()
        device = describe_device(self.device)
        found = stored_calibration(cache_folder(), device, kernel, threads)
        durations = (found or ASSUMED).durations(Workload.of(self.recipe, header))
        return Eta(durations, calibrated=found is not None)

    def _begin_canvas(self, header: Header, kernel: Kernel) -> None:
        """Draw the tiles that an earlier run finished."""
        self._canvas = None if self.progress is None else Canvas(header, self.picture.pixels)
        for index in self.done:
            self._draw_done(index, kernel)

    def _draw_done(self, index: int, kernel: Kernel) -> None:
        """Draw a finished tile, if anyone looks."""
        if self._canvas is None:
            return
        assert self.header is not None
        _, _, width, height = self.header.tile_box(index)
        weights = [as_weights(tensor, self.device) for tensor in self.done[index]]
        grid = pixel_grid(Architecture.of(self.header), height, width, self.device)
        self._canvas.draw(index, kernel, weights, grid)

    def _emit(self, event: ProgressEvent) -> None:
        if self.progress is not None:
            self._last_event = time.monotonic()
            self.progress(event)

    # ------------------------------------------------------------------ checkpoints

    @cached_property
    def _fingerprint(self) -> str:
        """Identify picture and parameters: a checkpoint of others is of no use."""
        digest = hashlib.sha256(self.picture.pixels.tobytes())
        digest.update(
            repr((self.picture.pixels.shape, self.recipe, self.target, self.seed)).encode()
        )
        return digest.hexdigest()

    def _save(self) -> None:
        """Keep everything that a run which goes on from here needs."""
        if self.checkpoint is None:
            return
        snapshot = Snapshot(
            self._fingerprint,
            self.seconds,
            self.passes,
            self.tried,
            self.asked_bytes,
            None if self.header is None else header_bytes(self.header),
            self.done,
            {**self.saved_fits, **self._states},
        )
        self.checkpoint.save(snapshot.to_bytes())

    def _resume(self) -> None:
        data = self.checkpoint.load() if self.checkpoint is not None else None
        if data is None:
            return
        try:
            found = Snapshot.read(data, self._fingerprint)
        except SnapshotUnreadable:
            self.notes.append("the checkpoint cannot be read: starting afresh")
            return
        if found is None:
            self.notes.append(
                "the checkpoint is of another picture, preset, target or seed: starting afresh"
            )
            return
        self.earlier, self.passes = found.seconds, found.passes
        self.tried, self.asked_bytes = found.tried, found.asked_bytes
        self.done, self.saved_fits = found.tiles, found.fits
        self._saved_header = found.header
        self.notes.append(f"resumed from a checkpoint {self.earlier:.0f} s into the encode")

    # ------------------------------------------------------------------ measuring

    def _measure(self, data: bytes) -> float:
        self._emit(self._event("verify"))
        return metrics.psnr(self.picture.pixels, self._decoded(data))

    def _decoded(self, data: bytes) -> NDArray[np.uint8]:
        big = Limits(max_pixels=self.pixels, max_side=1 << 31, max_file_bytes=1 << 40)
        return decode_pixels(data, device=self.device, kernel=self.kernel_name, limits=big)

    def report(self, data: bytes, preset: str | None, effort: int | None) -> Report:
        """Decode ``data`` and measure it."""
        self._emit(self._event("verify"))
        decoded = self._decoded(data)
        assert self.header is not None
        return Report(
            width=self.picture.width,
            height=self.picture.height,
            channels=self.picture.channels,
            bytes=len(data),
            bpp=len(data) * 8 / self.pixels,
            psnr_db=metrics.psnr(self.picture.pixels, decoded),
            ms_ssim=metrics.ms_ssim_pictures(self.picture.pixels, decoded),
            seconds=self.seconds,
            preset=preset,
            effort=None if preset is not None else effort,
            device=describe_device(self.device),
            kernel=self.kernel_used,
            seed=self.seed,
            parameters=self.header.parameters * self.header.tile_count,
            passes=self.passes,
            tiles=self.header.tile_count,
            complete=self.complete,
            notes=tuple(self.notes),
        )


@dataclass(frozen=True)
class TileMonitor:
    """What the fit of one tile reports to, and is steered by."""

    session: Session
    index: int

    def tick(self, fit: TileFit) -> Control:
        return self.session.tick(self.index, fit)

    def say(self, message: str) -> None:
        self.session.say(message)


def _overhead(extensions: tuple[Extension, ...]) -> int:
    """Return at most the bytes that the blocks take, with their ids, lengths and end mark."""
    return sum(len(block.data) + 8 for block in extensions) + bool(extensions)


def _exact(header: Header) -> Any:
    """Return a function that gives the bits one tile's weights really take in the file."""
    single = replace(header, tiles=(1, 1), cuts=())
    fixed = len(header_bytes(single)) + CRC_BYTES

    def bits(tensors: Sequence[QuantisedTensor]) -> float:
        return 8.0 * (len(pack(single, [in_order(single, tensors)])) - fixed)

    return bits
