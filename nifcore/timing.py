"""Measuring how long the parts of an encode take on this machine.

Very short encodes of synthetic pictures run through the same code as real ones, with networks and
lattices of several sizes; the clock is read before every iteration. The seconds of every part are
then explained by its features (:mod:`nifcore.workload`), least squares of relative errors with no
coefficient below zero. One more encode, of a picture that becomes two tiles, tells how much of what
they take passes at the same time.
"""

from __future__ import annotations

import functools
import io
import itertools
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from nifcore.calibration import Calibration, identity_of
from nifcore.devices import describe_device
from nifcore.encoder import session_kind
from nifcore.errors import FitDiverged
from nifcore.events import Control, ProgressEvent, ProgressFunction
from nifcore.gpu.batch_encode import MOST_TOGETHER
from nifcore.limits import Limits
from nifcore.picture import read_picture
from nifcore.presets import DEFAULT_EFFORT, PRESETS, Recipe, find_recipe
from nifcore.session import Session
from nifcore.target import Target
from nifcore.workload import PARTS, Part, Workload


@dataclass(frozen=True)
class _Probe:
    """One short encode: a picture's size, a rate (which makes the network), or a preset."""

    width: int
    height: int
    bpp: float | None = None
    preset: str | None = None


# The larger pictures have lattices as real ones do, and are large enough for MS-SSIM; the small
# ones tell what goes with pixels from what goes with weights.
_PROBES = (
    _Probe(512, 384, 0.45),
    _Probe(512, 384, 0.12),
    _Probe(128, 96, 2.0),
    _Probe(96, 64, 14.0),
    _Probe(512, 384, 1.1),
    _Probe(256, 192, preset="paper-120"),
    _Probe(128, 96, preset="paper-120"),
    _Probe(128, 96, preset="paper-360"),
)
_TILED = _Probe(1024, 384, 0.45)
"""Two tiles, each like the first of the others."""
_FIT, _QUANTISE = 21, 28
"""Iterations of a probe: bases are refreshed twice after the first iteration, and the steps
adjusted once after the first, as often per iteration as in a real encode."""
_PRESET_ITERATIONS = 12
_TILED_ROUNDS = 2

_WARM_UPS = (_PROBES[2], _PROBES[6])
_LONGEST_STEP = 4.0
"""Iterations longer than so many medians had to wait for a processor."""
_ENOUGH_SECONDS, _MOST_ROUNDS = 2.0, 4
"""The probes are repeated until this much time went by."""

Sample = tuple[Workload, dict[Part, float]]
"""What a probe amounted to, and the seconds of its parts."""


def calibrate(device: torch.device, kernel: str | None = None) -> Calibration:
    """Measure this machine; takes a few seconds, during which it should have nothing else to do.

    Args:
        device: where to compute.
        kernel: name of a kernel, or None for the best.

    Raises:
        DeviceError, UsageError: device or kernel cannot be used.
        FitDiverged: the short fits went astray.
    """
    began = time.monotonic()
    threads = torch.get_num_threads()
    # A first encode compiles, allocates and wakes threads; real ones hardly feel that.
    for each in _PROBES if device.type == "cuda" else _WARM_UPS:
        _run(each, device, kernel)
    rounds: list[list[_Timed]] = []
    while len(rounds) < _MOST_ROUNDS and (not rounds or time.monotonic() - began < _ENOUGH_SECONDS):
        rounds.append([_run(each, device, kernel) for each in _PROBES])
    delay = _delay([timed for probes in rounds for timed in probes])
    samples = [
        _mean([timed.seconds(delay) for timed in same]) for same in zip(*rounds, strict=True)
    ]
    works = [timed.work for timed in rounds[0]]
    families = dict.fromkeys(work.family for work in works)
    coefficients = {
        family: solve(
            [pair for pair in zip(works, samples, strict=True) if pair[0].family == family]
        )
        for family in families
    }
    name = describe_device(device)
    alone = Calibration(identity_of(name, kernel, threads), name, coefficients)
    lanes = MOST_TOGETHER if device.type == "cuda" else threads
    overlap = _overlap(alone, lanes, device, kernel)
    return replace(alone, lanes=lanes, overlap=overlap, seconds=time.monotonic() - began)


def _overlap(alone: Calibration, lanes: int, device: torch.device, kernel: str | None) -> float:
    """Return how much of a tile's seconds passes while others are at work.

    Two tiles are set beside one that is like each of them, in turns.
    """
    if lanes == 1:
        return 0.0
    if device.type == "cuda":
        _run_tiles(_TILED, device, kernel)  # compiles
    seen = expected = 0.0
    for _ in range(_TILED_ROUNDS):
        one, many = (_run_tiles(each, device, kernel) for each in (_PROBES[0], _TILED))
        seen += many[0]
        ratio = alone.durations(many[1]).tile / alone.durations(one[1]).tile
        expected += many[1].tiles * one[0] * ratio
    saved = 1.0 - seen / expected
    return min(1.0, max(0.0, saved / (1.0 - 1.0 / many[1].tiles)))


@dataclass(frozen=True)
class _Timed:
    """When the iterations of a short encode began.

    Attributes:
        work: what it amounted to.
        ticks: seconds from the beginning to every iteration.
        ended: seconds to the end.
    """

    work: Workload
    ticks: tuple[float, ...]
    ended: float

    @property
    def stages(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Seconds of the iterations of both stages, without the first of each."""
        steps = np.diff(self.ticks)
        return steps[1 : self.work.fit], steps[self.work.fit + 1 :]

    def seconds(self, delay: float) -> dict[Part, float]:
        """Return the seconds of the parts, where waiting makes iterations longer by a factor."""
        fit, quantise = (delay * float(_capped(each).mean()) for each in self.stages)
        steps = np.diff(self.ticks)
        return {
            "open": self.ticks[0] + max(0.0, float(steps[0]) - fit),
            "fit": fit,
            "turn": max(0.0, float(steps[self.work.fit]) - quantise),
            "quantise": quantise,
            "close": max(0.0, self.ended - self.ticks[-1] - quantise),
        }


def _capped(steps: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.minimum(steps, _LONGEST_STEP * np.median(steps))


def _delay(probes: Sequence[_Timed]) -> float:
    """Return how much longer iterations are for those that had to wait for a processor.

    One that waited says nothing about its probe; how much is waited altogether does, about the
    machine.
    """
    steps = [each for timed in probes for each in timed.stages]
    return sum(float(e.sum()) for e in steps) / sum(float(_capped(e).sum()) for e in steps)


def _mean(rounds: Sequence[dict[Part, float]]) -> dict[Part, float]:
    return {part: statistics.fmean(each[part] for each in rounds) for part in PARTS}


def _run(what: _Probe, device: torch.device, kernel: str | None) -> _Timed:
    """Run one short encode of a PNG."""

    def ignore(event: ProgressEvent) -> None:
        """Have the encode do all that it does for an audience."""

    session, data, began, ticks = _encode(what, device, kernel, ignore)
    session.report(data, what.preset, None)
    ended = time.monotonic() - began
    work = _work_of(session)
    if len(ticks) != work.iterations:
        raise FitDiverged(
            f"{len(ticks)} iterations of a calibration took place, {work.iterations} were planned"
        )
    return _Timed(work, tuple(tick - began for tick in ticks), ended)


def _run_tiles(what: _Probe, device: torch.device, kernel: str | None) -> tuple[float, Workload]:
    """Run one short encode; return the seconds of all iterations."""
    session, _, _, ticks = _encode(what, device, kernel, None)
    return ticks[-1] - ticks[0], _work_of(session)


def _encode(
    what: _Probe, device: torch.device, kernel: str | None, progress: ProgressFunction | None
) -> tuple[Session, bytes, float, list[float]]:
    """Encode as an encoder does; return also when it began, and when every iteration did."""
    recipe = _shortened(what.preset)
    target = Target() if what.preset is not None else Target(bpp=what.bpp, strict=False)
    data = _synthetic(what.width, what.height)
    ticks: list[float] = []

    def control() -> Control:
        ticks.append(time.monotonic())
        return Control.CONTINUE

    began = time.monotonic()
    picture = read_picture(data, Limits(), False)
    session = session_kind(device, kernel)(
        picture, recipe, device, kernel, 0, progress, control, None, target, began
    )
    return session, session.run(), began, ticks


def _work_of(session: Session) -> Workload:
    assert session.header is not None
    return Workload.of(session.recipe, session.header)


def solve(samples: Sequence[Sample]) -> dict[Part, tuple[float, ...]]:
    """Explain the seconds of every part by its features."""
    return {
        part: _explained(
            np.array([work.features(part) for work, _ in samples]),
            np.array([seconds[part] for _, seconds in samples]),
        )
        for part in PARTS
    }


def _explained(features: NDArray[np.float64], seconds: NDArray[np.float64]) -> tuple[float, ...]:
    """Return the non-negative coefficients with the least squared relative error.

    With so few features every choice of those that count can be tried.
    """
    count = features.shape[1]
    floor = max(1e-6, 0.01 * statistics.median(seconds.tolist()))
    weighted = features / np.maximum(seconds, floor)[:, None]
    wanted = seconds / np.maximum(seconds, floor)
    scale = np.abs(weighted).max(0)
    weighted = weighted / scale
    best, least = np.zeros(count), float((wanted**2).sum())
    for size in range(1, count + 1):
        for chosen in itertools.combinations(range(count), size):
            found = np.linalg.lstsq(weighted[:, chosen], wanted, rcond=None)[0]
            error = float(((weighted[:, chosen] @ found - wanted) ** 2).sum())
            # one more feature must be worth it
            if (found >= 0.0).all() and error < least * 0.98 - 1e-9:
                best, least = np.zeros(count), error
                best[list(chosen)] = found
    return tuple((best / scale).tolist())


def _shortened(preset: str | None) -> Recipe:
    """Return a recipe of the family with a handful of iterations."""
    if preset is None:
        recipe, lengths = find_recipe(None, DEFAULT_EFFORT), {"fit": _FIT, "quantise": _QUANTISE}
    else:
        recipe = PRESETS[preset]
        lengths = dict.fromkeys(("fit", "quantise"), _PRESET_ITERATIONS)
    stages = tuple(
        replace(stage.lasting(lengths[stage.phase]), steps=1, unit="iterations")
        for stage in recipe.stages
    )
    return replace(recipe, stages=stages, shallow=None)


@functools.cache
def _synthetic(width: int, height: int) -> bytes:
    """Return a PNG with patches of all sizes, the larger the stronger, and a little noise."""
    random = np.random.default_rng(0)
    picture = np.full((height, width, 3), 0.5) + random.normal(size=(height, width, 3)) * 0.01
    for octave in range(1, 8):
        tile = random.normal(size=(2**octave, 2**octave, 3)) * 0.2 / octave
        rows = np.linspace(0, 2**octave - 1, height).astype(int)
        columns = np.linspace(0, 2**octave - 1, width).astype(int)
        picture += tile[rows][:, columns]
    buffer = io.BytesIO()
    Image.fromarray((picture.clip(0, 1) * 255).astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()
