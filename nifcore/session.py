"""One encode from picture to bytes: what it plans, fits, codes, saves and measures.

::

    picture ─► Plan ─► per tile: fit ─► quantise ─► symbols ─► pack ─► bytes ─► decode ─► measure
                 ▲                                                                  │
                 └────────── with a PSNR target: another rate, a few times ◄────────┘
"""

from __future__ import annotations

import hashlib
import io
import math
import pickle
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nifcore import metrics
from nifcore.architecture import Architecture
from nifcore.bitstream import code_length, expected_magnitudes, pack
from nifcore.calibration import ASSUMED
from nifcore.calibration import stored as stored_calibration
from nifcore.complexity import Complexity
from nifcore.config import cache_folder
from nifcore.decoder import decode_pixels
from nifcore.devices import describe_device
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
from nifcore.kernels import Kernel, make_kernel
from nifcore.limits import Limits
from nifcore.network import from_bytes, pixel_grid
from nifcore.picture import Picture
from nifcore.plan import Plan, least_bytes, plan_rate
from nifcore.presets import Recipe
from nifcore.preview import Canvas
from nifcore.quantise import as_weights
from nifcore.rateguess import guess_bpp
from nifcore.report import Report
from nifcore.symmetry import in_order
from nifcore.target import DB_PER_DOUBLING, MOST_BPP, Target
from nifcore.tensors import PublishedStep, QuantisedTensor, UniformStep
from nifcore.tiling import Box
from nifcore.workload import Workload

_EVENT_SECONDS = 0.1
_PREVIEW_SECONDS = 0.5
_PREVIEW_SHARE = 0.1
"""A preview is made every half second, later every tenth of the time that the encode has taken."""
_CHECKPOINT_SECONDS = 5.0
_CHECKPOINT_VERSION = 1

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
        # what a checkpoint carries besides the fit at work
        self.tried: list[tuple[float, float, bytes]] = []  # (bytes asked, PSNR, file)
        self.asked_bytes = 0.0
        self.done_tiles: list[list[QuantisedTensor]] = []
        self.saved_fit: dict[str, Any] | None = None
        self._saved_header: bytes | None = None
        # pace, for the ETA
        self._eta: Eta | None = None
        self._last_event = self._last_preview = -math.inf
        self._last_phase: Phase = "prepare"
        self._last_save = time.monotonic()
        # coded size, of finished tiles and of the one at work once its weights are rounded
        self._done_bits: list[float] = []
        self._tile_bits: float | None = None
        self._plan: Plan | None = None
        self._canvas: Canvas | None = None
        self._finish = False

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
            self.done_tiles, self.saved_fit = [], None
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
        kernel = make_kernel(plan.arch, self.kernel_name, self.device.type)
        self.kernel_used = kernel.name
        budget = self._begin(plan, kernel)
        for index in range(len(self.done_tiles), header.tile_count):
            target = self._tile_target(header, index)
            fit = TileFit(plan.arch, kernel, target, self.recipe, budget, self.seed + index)
            if self.saved_fit is not None:
                fit.load(self.saved_fit)
                self.saved_fit = None
            if self._eta is not None:
                self._eta.begin_tile()
            result = fit.run(self)
            if result is None:
                self._save(fit)
                raise Cancelled("cancelled by the caller")
            if self._canvas is not None:
                weights = [as_weights(tensor, self.device) for tensor in result.rounded.tensors]
                self._canvas.draw(index, kernel, weights, fit.grid)
            self._take(result, header)
        self._emit(self._event("code", None))
        return pack(replace(header, extensions=extensions), self.done_tiles)

    def _begin(self, plan: Plan, kernel: Kernel) -> Budget | None:
        """Make a plan the one at work; return what each of its tiles may cost."""
        self._plan = plan
        self.header = header = plan.header
        under_way = self.saved_fit is not None or self.done_tiles
        if under_way and self._saved_header not in (None, header_bytes(header)):
            self.notes.append("the checkpoint's networks have other sizes: starting afresh")
            self.done_tiles, self.saved_fit = [], None
        self._done_bits, self._tile_bits = [], None
        self._canvas = None if self.progress is None else self._new_canvas(header, kernel)
        self._eta = None if self.progress is None else self._new_eta(header)
        if self.recipe.published_bits is not None:
            return None
        return Budget(
            plan.budget_bits,
            lambda tensors: code_length(header, tensors),
            _exact(header),
            lambda tensors: expected_magnitudes(header, tensors),
        )

    def _tile_target(self, header: Header, index: int) -> Tensor:
        """Return what a tile's networks are to show, (channels, rows, cols) in [-1, 1]."""
        x, y, w, h = header.tile_box(index)
        part = torch.from_numpy(np.ascontiguousarray(self.picture.pixels[y : y + h, x : x + w]))
        return from_bytes(part).to(self.device)

    def _take(self, result: FitResult, header: Header) -> None:
        """Keep what became of a tile."""
        self.passes += result.passes / header.tile_count
        self.complete = self.complete and result.complete
        self.done_tiles.append(in_order(header, result.rounded.tensors))
        self._tile_bits = None

    # ------------------------------------------------------------------ monitor of the fits

    def tick(self, fit: TileFit) -> Control:
        now = time.monotonic()
        if self.checkpoint is not None:
            pause = getattr(self.checkpoint, "interval_seconds", _CHECKPOINT_SECONDS)
            if now - self._last_save >= pause:
                self._save(fit)
        news = fit.phase != self._last_phase or now - self._last_event >= _EVENT_SECONDS
        if self.progress is not None and news:
            self._last_phase = fit.phase
            self._emit(self._event(fit.phase, fit))
        wish = self.control() if self.control is not None else None
        if wish is Control.CANCEL:
            return Control.CANCEL
        self._finish = self._finish or wish is Control.FINISH
        return Control.FINISH if self._finish else Control.CONTINUE

    def say(self, message: str) -> None:
        self.notes.append(message)
        self._emit(replace(self._event("fit", None), message=message))

    @property
    def seconds(self) -> float:
        return self.earlier + time.monotonic() - self.began

    def _event(self, phase: Phase, fit: TileFit | None) -> ProgressEvent:
        now = time.monotonic()
        assert self._plan is not None
        header = self._plan.header
        tile = min(len(self.done_tiles), header.tile_count - 1)
        event = ProgressEvent(
            phase,
            tile=tile,
            tiles=header.tile_count,
            seconds=self.seconds,
            bpp=None if self.progress is None else self._bpp(),
        )
        if fit is None:
            left = self._eta.closing(now) if self._eta and phase in ("code", "verify") else None
            return replace(event, eta_seconds=left)
        cursor = fit.cursor
        eta = None
        if self._eta is not None:
            eta = self._eta.fitting(now, tile, cursor.done, fit.remaining)
        preview = None
        pause = max(_PREVIEW_SECONDS, _PREVIEW_SHARE * self.seconds)
        if now - self._last_preview >= pause and cursor.done:
            if self._canvas is not None:
                self._canvas.draw(tile, fit.kernel, fit.params, fit.grid)
                preview = self._canvas.pixels
            self._last_preview = now
            if fit.lattice is not None:
                # counting takes about as long as a few iterations: not for every event
                self._tile_bits = code_length(header, fit.lattice.round(fit.params).tensors)
                event = replace(event, bpp=self._bpp())
        total = fit.iterations * header.tile_count
        return replace(
            event,
            step=cursor.step + 1,
            steps=fit.stage.steps,
            iteration=tile * fit.iterations + cursor.done,
            iterations=total,
            loss=cursor.loss,
            psnr_db=cursor.psnr_db,
            eta_seconds=eta,
            preview=preview,
        )

    def _bpp(self) -> float | None:
        """Return the file's rate: what is rounded as the coder counts it, the rest as planned."""
        assert self._plan is not None
        header, planned = self._plan.header, self._plan.budget_bits
        for tensors in self.done_tiles[len(self._done_bits) :]:
            self._done_bits.append(code_length(header, tensors))
        bits = 8.0 * (len(header_bytes(header)) + CRC_BYTES) + sum(self._done_bits)
        left = header.tile_count - len(self._done_bits)
        if self._tile_bits is not None:
            bits, left = bits + self._tile_bits, left - 1
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

    def _new_canvas(self, header: Header, kernel: Kernel) -> Canvas:
        """Return a canvas with the tiles that an earlier run finished."""
        canvas = Canvas(header, self.picture.pixels)
        arch = Architecture.of(header)
        for index, tensors in enumerate(self.done_tiles):
            _, _, width, height = header.tile_box(index)
            weights = [as_weights(tensor, self.device) for tensor in tensors]
            canvas.draw(index, kernel, weights, pixel_grid(arch, height, width, self.device))
        return canvas

    def _emit(self, event: ProgressEvent) -> None:
        if self.progress is not None:
            self._last_event = time.monotonic()
            self.progress(event)

    # ------------------------------------------------------------------ checkpoints

    def _fingerprint(self) -> str:
        """Identify picture and parameters: a checkpoint of others is of no use."""
        digest = hashlib.sha256(self.picture.pixels.tobytes())
        digest.update(
            repr((self.picture.pixels.shape, self.recipe, self.target, self.seed)).encode()
        )
        return digest.hexdigest()

    def _save(self, fit: TileFit) -> None:
        if self.checkpoint is None:
            return
        state = {
            "version": _CHECKPOINT_VERSION,
            "fingerprint": self._fingerprint(),
            "seconds": self.seconds,
            "passes": self.passes,
            "tried": [(size, db, _as_tensor(data)) for size, db, data in self.tried],
            "asked_bytes": self.asked_bytes,
            "header": None if self.header is None else _as_tensor(header_bytes(self.header)),
            "tiles": [[_saved(t) for t in tile] for tile in self.done_tiles],
            "fit": self._fit_state(fit),
        }
        buffer = io.BytesIO()
        torch.save(state, buffer)
        self.checkpoint.save(buffer.getvalue())
        self._last_save = time.monotonic()

    def _fit_state(self, fit: TileFit) -> dict[str, Any]:
        """Return what a run that goes on from here needs of the fits at work."""
        return fit.state()

    def _resume(self) -> None:
        data = self.checkpoint.load() if self.checkpoint is not None else None
        if data is None:
            return
        try:
            state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
            version, fingerprint = state["version"], state["fingerprint"]
        except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError, ValueError, TypeError):
            self.notes.append("the checkpoint cannot be read: starting afresh")
            return
        if version != _CHECKPOINT_VERSION or fingerprint != self._fingerprint():
            self.notes.append(
                "the checkpoint is of another picture, preset, target or seed: starting afresh"
            )
            return
        self.earlier = state["seconds"]
        self.passes = state["passes"]
        self.tried = [(size, db, t.numpy().tobytes()) for size, db, t in state["tried"]]
        self.asked_bytes = state["asked_bytes"]
        self.done_tiles = [[_restored(t) for t in tile] for tile in state["tiles"]]
        self.saved_fit = state["fit"]
        header = state.get("header")
        self._saved_header = None if header is None else header.numpy().tobytes()
        self.notes.append(f"resumed from a checkpoint {self.earlier:.0f} s into the encode")

    # ------------------------------------------------------------------ measuring

    def _measure(self, data: bytes) -> float:
        self._emit(self._event("verify", None))
        return metrics.psnr(self.picture.pixels, self._decoded(data))

    def _decoded(self, data: bytes) -> NDArray[np.uint8]:
        big = Limits(max_pixels=self.pixels, max_side=1 << 31, max_file_bytes=1 << 40)
        return decode_pixels(data, device=self.device, kernel=self.kernel_name, limits=big)

    def report(self, data: bytes, preset: str | None, effort: int | None) -> Report:
        """Decode ``data`` and measure it."""
        self._emit(self._event("verify", None))
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


def _as_tensor(data: bytes) -> Tensor:
    return torch.from_numpy(np.frombuffer(data, np.uint8).copy())


def _saved(tensor: QuantisedTensor) -> tuple[Tensor, list[int]]:
    step = tensor.step
    code = [step.index] if isinstance(step, UniformStep) else [step.bits, step.bound_bits]
    return torch.from_numpy(tensor.symbols), code


def _restored(saved: tuple[Tensor, list[int]]) -> QuantisedTensor:
    symbols, code = saved
    step = UniformStep(code[0]) if len(code) == 1 else PublishedStep(code[0], code[1])
    return QuantisedTensor(symbols.numpy(), step)
