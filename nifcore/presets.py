"""Presets: what an encode runs, as data.

Two families share one shape, :class:`Recipe`. The ``paper-*`` presets are the published recipe with
its published constants (Catania & Allegra 2023; configurations of https://github.com/aegroto/nif).
The effort levels 1 to 9 are ours: the network's sizes come from the asked rate
(:mod:`nifcore.plan`), and the level says how long to work on it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Literal

from nifcore.errors import UnknownPreset, UsageError
from nifcore.header import NetShape
from nifcore.losses import Objective

DEFAULT_EFFORT = 5
_RATE_EXPONENT = 0.5


@dataclass(frozen=True)
class Moment:
    """Where in an encode an optimiser iteration lies.

    Attributes:
        iteration, iterations: of the whole tile, all stages together.
        stage_pass: passes over the picture done before in this stage.
    """

    iteration: int
    iterations: int
    stage_pass: int


@dataclass(frozen=True)
class Sawtooth:
    """The published schedule: linear warm-up, then linear decay, again every ``period`` passes.

    Attributes:
        peak, floor: highest and lowest learning rate.
        warmup: passes of each period that rise from the floor to the peak.
        period: passes per tooth.
        decay: factor on the peak after every tooth.
    """

    peak: float
    floor: float
    warmup: int
    period: int
    decay: float = 1.0

    def rate(self, moment: Moment) -> float:
        tooth, at = divmod(moment.stage_pass, self.period)
        up = at / max(1, self.warmup - 1) if at < self.warmup else 1.0 - at / self.period
        return self.floor + (self.peak * self.decay**tooth - self.floor) * up


@dataclass(frozen=True)
class Cosine:
    """Linear warm-up over ``warmup`` iterations, then half a cosine over all stages together.

    Attributes:
        peak: highest learning rate.
        final: last learning rate as a fraction of the peak.
        warmup: iterations of warm-up.
    """

    peak: float
    final: float = 0.01
    warmup: int = 100

    def rate(self, moment: Moment) -> float:
        warmup = min(self.warmup, moment.iterations // 5)
        if moment.iteration < warmup:
            return self.peak * (moment.iteration + 1) / warmup
        done = (moment.iteration - warmup) / max(1, moment.iterations - warmup)
        half_wave = 0.5 * (1 + math.cos(math.pi * done))
        return self.peak * (self.final + (1 - self.final) * half_wave)


@dataclass(frozen=True)
class Ramp:
    """A value moving from ``start`` to ``end`` as progress**smoothing goes from 0 to 1."""

    start: float
    end: float
    smoothing: float

    def at(self, progress: float) -> float:
        return self.start + (self.end - self.start) * math.pow(progress, self.smoothing)


@dataclass(frozen=True)
class Restart:
    """Weight restarts between steps: part of the weights is disturbed.

    Each weight outside the first layers gets, with probability ``amount``, uniform noise within
    ``span`` times the tensor's mean magnitude, divided by ``amount``.
    """

    amount: Ramp
    span: Ramp


@dataclass(frozen=True)
class Optimiser:
    """Which optimiser a stage starts afresh, with its weight decay (AdamW only)."""

    name: Literal["adamw", "soap"]
    weight_decay: float = 0.0


@dataclass(frozen=True)
class Stage:
    """One phase of fitting.

    Attributes:
        phase: "fit" trains the weights, "quantise" trains them towards few bits and through
            rounding.
        steps: rounds with a restart between them.
        length: of each step, in passes over every pixel or in optimiser iterations.
        unit: which of the two. Iterations cost the same on pictures of any size, as their
            lattices hold about equally many pixels.
        optimiser: started afresh at the stage's beginning; None goes on with the last stage's.
        restart: how weights are disturbed between steps, or None.
        rounded: iterations at the end of a quantising step that see rounded weights, or None for
            all. Those before feel the rate term only.
    """

    phase: Literal["fit", "quantise"]
    steps: int
    length: int
    unit: Literal["passes", "iterations"]
    optimiser: Optimiser | None
    schedule: Sawtooth | Cosine
    objective: Objective
    restart: Restart | None = None
    rounded: int | None = None

    def iterations(self, pass_length: int) -> int:
        """Return the iterations of one step where a pass takes ``pass_length``."""
        return self.length * (pass_length if self.unit == "passes" else 1)

    def lasting(self, length: int) -> Stage:
        """Return the stage with steps of another length, as great a share of them rounded."""
        rounded = self.rounded and max(1, round(self.rounded * length / self.length))
        return replace(self, length=length, rounded=rounded)


@dataclass(frozen=True)
class Sampling:
    """Which pixels one optimiser iteration sees: a lattice of the picture.

    Attributes:
        stride: fixed lattice stride, or None to choose it from ``batch_pixels``.
        batch_pixels: wanted pixels per iteration where ``stride`` is None.
        shuffled: visit the lattices of a pass in random order rather than in raster order.
    """

    stride: int | None
    batch_pixels: int = 12_288
    shuffled: bool = True

    def stride_for(self, rows: int, cols: int, tiles: int = 1) -> int:
        """Return the lattice stride for a picture of so many tiles, one for all of them.

        Where it exceeds a tile's shorter side, that side is its stride.
        """
        wanted = round(math.sqrt(rows * cols / tiles / self.batch_pixels))
        return min(self.stride or max(1, wanted), rows, cols)


@dataclass(frozen=True)
class Recipe:
    """Everything that decides how a tile is fitted and quantised.

    Attributes:
        name: preset's name, or ``effort-N``.
        summary: one line for people.
        genesis, modulation: fixed network shapes, or None to plan them from the rate.
        published_bits: bits of the published 8-bit lattice, or None for our uniform lattice with
            steps by sensitivity.
        rate_weight: weight of the rate term while quantising, in units of the slope of the
            published rate-distortion curve (1 trades as that curve does).
        mean_start: start the last bias at the mean colour.
        bias_scale: factor on the first biases of Genesis's hidden layers.
        weights_at_peak: weights of the largest network that learns at the schedules' full rates;
            n weights learn at ``(weights_at_peak / n) ** 0.5`` of them. None for any.
        shallow: what runs instead, for as many iterations, where the network has four hidden
            layers or fewer: it is small, or has many weights for its pixels
            (:func:`nifcore.plan.is_deep`). None for the same.
    """

    name: str
    summary: str
    sampling: Sampling
    stages: tuple[Stage, ...]
    genesis: NetShape | None = None
    modulation: NetShape | None = None
    published_bits: int | None = None
    rate_weight: float = 0.0
    mean_start: bool = True
    bias_scale: float = 1.0
    weights_at_peak: int | None = None
    shallow: Recipe | None = None

    def suited_to(self, hidden_layers: int) -> Recipe:
        """Return what to run for a Genesis network of so many hidden layers."""
        return self if self.shallow is None or hidden_layers > 4 else self.shallow

    def rate_scale(self, weights: int) -> float:
        """Return the factor on all learning rates of a network of that many weights."""
        if self.weights_at_peak is None:
            return 1.0
        return min(1.0, math.pow(self.weights_at_peak / weights, _RATE_EXPONENT))

    def iterations(self, pass_length: int) -> int:
        """Return the iterations of all stages where a pass takes ``pass_length``."""
        return sum(stage.steps * stage.iterations(pass_length) for stage in self.stages)


_PAPER_OBJECTIVE = Objective("log_cosh", "dssim", 0.01)


def _paper(
    name: str,
    genesis: tuple[int, ...],
    modulation: tuple[int, ...],
    *,
    summary: str,
    frequencies: int = 16,
    stride: int = 2,
    fit: tuple[int, int, int] = (10, 150, 20),
    quantise: tuple[int, int, int] = (5, 40, 5),
    period: int | None = None,
) -> Recipe:
    """Build a published configuration; the tuples are steps, passes per step, warm-up passes."""
    return Recipe(
        name=name,
        summary=summary,
        sampling=Sampling(stride=stride, shuffled=False),
        stages=(
            Stage(
                "fit",
                fit[0],
                fit[1],
                "passes",
                Optimiser("adamw", weight_decay=1e-4),
                Sawtooth(1e-3, 6e-4, warmup=fit[2], period=period or fit[1], decay=0.99),
                _PAPER_OBJECTIVE,
                Restart(Ramp(0.125, 0.7, 0.05), Ramp(0.9, 0.2, 0.2)),
            ),
            Stage(
                "quantise",
                quantise[0],
                quantise[1],
                "passes",
                # the published configuration sets only the rate here, so torch's default decay
                Optimiser("adamw", weight_decay=1e-2),
                Sawtooth(5e-5, 2e-5, warmup=quantise[2], period=quantise[1]),
                _PAPER_OBJECTIVE,
                Restart(Ramp(0.005, 0.005, 1.0), Ramp(0.0, 0.005, 1.0)),
            ),
        ),
        genesis=NetShape(genesis, frequencies),
        modulation=NetShape(modulation, 4),
        published_bits=8,
        mean_start=False,
    )


def _celeba(name: str, genesis: tuple[int, ...], modulation: tuple[int, ...], f: int) -> Recipe:
    return _paper(
        name,
        genesis,
        modulation,
        frequencies=f,
        stride=1,
        fit=(10, 300, 20),
        summary=f"published CelebA configuration at {name.removeprefix('paper-celeba-')} bpp",
    )


def _icb(name: str, genesis: tuple[int, ...], modulation: tuple[int, ...]) -> Recipe:
    return _paper(
        name,
        genesis,
        modulation,
        stride=16,
        fit=(5, 30, 3),
        quantise=(5, 5, 2),
        summary=f"published ICB (large picture) configuration {name.removeprefix('paper-icb-')}",
    )


def _kodak(name: str, genesis: tuple[int, ...], modulation: tuple[int, ...], rate: str) -> Recipe:
    return _paper(name, genesis, modulation, summary=f"published Kodak configuration, {rate}")


_WIDE = (64, 16, 8)
_PUBLISHED = (
    _kodak("paper-120", (120, 40, 28, 16), (16, 8), "0.28 bpp"),
    _kodak("paper-0_31", (120, 50, 28, 16), (24, 16, 8), "0.32 bpp"),
    _kodak("paper-200", (200, 64, 40, 20), _WIDE, "0.58 bpp"),
    _kodak("paper-280", (280, 100, 48, 16), _WIDE, "0.97 bpp"),
    _kodak("paper-360", (360, 150, 70, 32), _WIDE, "1.63 bpp"),
    _kodak("paper-450", (450, 220, 85, 32), _WIDE, "2.61 bpp"),
    _kodak("paper-680", (680, 260, 65, 30), _WIDE, "4.03 bpp"),
    _celeba("paper-celeba-0_65", (24, 20, 18, 18), (20, 18, 16), 6),
    _celeba("paper-celeba-0_78", (28, 24, 20, 18), (22, 18, 16), 8),
    _celeba("paper-celeba-1_33", (50, 28, 24, 24), (28, 24, 16), 12),
    _celeba("paper-celeba-1_63", (64, 32, 24, 24), (32, 24, 16), 12),
    _celeba("paper-celeba-2_97", (120, 48, 32, 24), (32, 24, 16), 12),
    _icb("paper-icb-360", (360, 150, 70, 32), _WIDE),
    _icb("paper-icb-680", (680, 260, 65, 30), (128, 32, 16)),
    _kodak("paper-x2-120", (120, 50, 32, 24), (16, 16, 16), "speed test on halved pictures"),
    _kodak("paper-x4-120", (120, 50, 32, 24), (16, 16, 16), "speed test on quartered pictures"),
    _kodak("paper-x4-280", (280, 100, 48, 16), _WIDE, "speed test on quartered pictures"),
)
PRESETS: Mapping[str, Recipe] = MappingProxyType({recipe.name: recipe for recipe in _PUBLISHED})
"""The published recipes by name."""


def _effort(
    level: int, fit: int, quantise: int, peak: float, rate_weight: float, summary: str
) -> Recipe:
    """Build a level; the longer a fit, the lower its learning rate and the more bits may cost."""
    schedule = Cosine(peak, final=0.0)
    objective = Objective("mse")
    soap = Optimiser("soap")

    def stages(first: int, rounded: int | None) -> tuple[Stage, ...]:
        rest = fit + quantise - first
        return (
            Stage("fit", 1, first, "iterations", soap, schedule, objective),
            Stage("quantise", 1, rest, "iterations", None, schedule, objective, rounded=rounded),
        )

    shallow = Recipe(
        name=f"effort-{level}",
        summary=summary,
        sampling=Sampling(stride=None),
        stages=stages((fit + quantise) * 3 // 5, None),
        rate_weight=1.0,
        bias_scale=0.25,
        weights_at_peak=16_000,
    )
    # fewer rounded iterations than this do not make good for the rounding
    trained = stages(fit, max(60, quantise // 10))
    return replace(shallow, stages=trained, rate_weight=rate_weight, shallow=shallow)


EFFORTS: Mapping[int, Recipe] = MappingProxyType(
    {
        1: _effort(1, 80, 170, 5e-3, 1.0, "a first look"),
        2: _effort(2, 120, 290, 5e-3, 1.1, "quick"),
        3: _effort(3, 200, 500, 5e-3, 1.2, "quick, better"),
        4: _effort(4, 200, 1100, 5e-3, 1.3, "balanced, fast"),
        5: _effort(5, 200, 1800, 5e-3, 1.4, "balanced (default)"),
        6: _effort(6, 200, 3100, 4e-3, 1.5, "thorough"),
        7: _effort(7, 200, 5200, 3e-3, 1.5, "slow"),
        8: _effort(8, 200, 6800, 3e-3, 1.5, "slower"),
        9: _effort(9, 200, 8800, 3e-3, 1.5, "as good as it gets"),
    }
)
"""The effort ladder."""


def find_recipe(preset: str | None, effort: int | None) -> Recipe:
    """Return the recipe of a preset or of an effort level (default 5).

    Raises:
        UnknownPreset: no preset has that name.
        UsageError: both are given, or the level is not 1 to 9.
    """
    if preset is not None and effort is not None:
        raise UsageError(f"preset {preset!r} and effort {effort} exclude each other; give one")
    if preset is not None:
        if preset not in PRESETS:
            raise UnknownPreset(f"unknown preset {preset!r}; there are {', '.join(PRESETS)}")
        return PRESETS[preset]
    level = DEFAULT_EFFORT if effort is None else effort
    if isinstance(level, bool) or level not in EFFORTS:
        raise UsageError(
            f"effort is {effort!r}; whole numbers from 1 to {len(EFFORTS)} are accepted"
        )
    return EFFORTS[level]


def shortened(recipe: Recipe, factor: float) -> Recipe:
    """Return the recipe with every step's length scaled by ``factor``, at least 1."""
    stages = tuple(stage.lasting(max(1, round(stage.length * factor))) for stage in recipe.stages)
    shallow = None if recipe.shallow is None else shortened(recipe.shallow, factor)
    return replace(recipe, stages=stages, shallow=shallow)
