"""What an encode amounts to, in numbers that time goes with. Known without torch.

An encode has five parts. Two of them, ``fit`` and ``quantise``, are iterations, ``turn`` is what
lies between them (measuring sensitivities), ``open`` comes before the first iteration and ``close``
after the last: choosing the rounding, coding, decoding again, measuring. The seconds of a part are
a sum over its features below, with coefficients that a machine measures on itself
(:mod:`nifcore.timing`)::

    open      1, pixels
    fit       1, lattice x weights, lattice x units, lattice, rotation      per iteration
    turn      1, lattice x weights, lattice x units, weights                per tile
    quantise  as fit, and weights                                           per iteration
    close     1, weights of all tiles, pixels x weights of one, pixels
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from nifcore.architecture import Architecture
from nifcore.header import Colour, Header
from nifcore.plan import least_bytes, plan_rate
from nifcore.presets import Recipe

Part = Literal["open", "fit", "turn", "quantise", "close"]
PARTS: tuple[Part, ...] = ("open", "fit", "turn", "quantise", "close")

_REFRESH_SHARE = 0.1
"""Bases are refreshed every tenth iteration."""


@dataclass(frozen=True)
class Workload:
    """What one encode, or one round of it where a PSNR is searched for, amounts to.

    Attributes:
        family: optimiser of the recipe; what was measured with one says little about another.
        tiles: networks.
        fit, quantise: iterations of every tile before and after weights are rounded.
        lattice: pixels of one iteration, in the mean over tiles.
        pixels: of the whole picture.
        weights: of one network.
        units: hidden units of one network, each a sine per pixel.
        rotation: multiplications that the optimiser's matrices ask for in an iteration.
    """

    family: str
    tiles: int
    fit: int
    quantise: int
    lattice: int
    pixels: int
    weights: int
    units: int
    rotation: float

    @classmethod
    def of(cls, recipe: Recipe, header: Header) -> Workload:
        """Return what a recipe does with the networks that a header describes."""
        arch = Architecture.of(header)
        stride = recipe.sampling.stride_for(header.height, header.width, header.tile_count)
        lattices = [_lattice(stride, *header.tile_box(i)[2:]) for i in range(header.tile_count)]
        counts = {"fit": 0, "quantise": 0}
        recipe = recipe.suited_to(len(arch.genesis.hidden))
        for stage in recipe.stages:
            counts[stage.phase] += stage.steps * stage.iterations(stride**2)
        optimiser = next(stage.optimiser for stage in recipe.stages if stage.optimiser)
        nets = [arch.genesis] if arch.modulation is None else [arch.genesis, arch.modulation]
        return cls(
            family=optimiser.name,
            tiles=header.tile_count,
            fit=counts["fit"],
            quantise=counts["quantise"],
            lattice=round(sum(lattices) / len(lattices)),
            pixels=header.width * header.height,
            weights=arch.parameters,
            units=sum(sum(net.hidden) for net in nets),
            rotation=sum(_rotation(*shape) for shape in arch.shapes if len(shape) == 2),
        )

    @classmethod
    def planned(
        cls, recipe: Recipe, width: int, height: int, colour: Colour, size: float
    ) -> Workload:
        """Return what encoding a picture into ``size`` bytes amounts to.

        A published recipe has a size of its own; too few bytes become the least that are possible.
        """
        if recipe.genesis is not None:
            header = Header(width, height, colour, recipe.genesis, recipe.modulation)
        else:
            least = least_bytes(width, height, colour, 0)
            header = plan_rate(width, height, colour, max(size, least), 0).header
        return cls.of(recipe, header)

    def features(self, part: Part) -> tuple[float, ...]:
        """Return the numbers that the seconds of a part are a sum over."""
        lattice, weights, units = float(self.lattice), float(self.weights), float(self.units)
        iteration = (1.0, lattice * weights, lattice * units, lattice, self.rotation)
        match part:
            case "open":
                return (1.0, float(self.pixels))
            case "fit":
                return iteration
            case "turn":
                return (1.0, lattice * weights, lattice * units, weights)
            case "quantise":
                return (*iteration, weights)
            case "close":
                pixels = float(self.pixels)
                return (1.0, self.tiles * weights, pixels * weights, pixels)

    @property
    def iterations(self) -> int:
        """Iterations of one tile."""
        return self.fit + self.quantise


def _lattice(stride: int, columns: int, rows: int) -> int:
    """Return the pixels of the largest lattice of a tile."""
    stride = min(stride, columns, rows)
    return math.ceil(columns / stride) * math.ceil(rows / stride)


def _rotation(rows: int, columns: int) -> float:
    """Return the multiplications of rotating a gradient, and of refreshing its two bases."""
    refresh = 3.0 * (rows**3 + columns**3) * _REFRESH_SHARE
    return 3.0 * rows * columns * (rows + columns) + refresh
