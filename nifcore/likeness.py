"""Which pictures are worth encoding together, from what is known before they are decoded.

Networks go through a GPU together if they have one shape, one recipe and lattices of one stride.
All three follow from a picture's size and from what is asked for, though the tiles themselves
follow what the picture shows; nothing here needs torch, or the picture. Whether a picture turns out
to be grey or transparent is only seen when it is decoded: such a one is fitted beside the others,
not with them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nifcore.errors import NifError
from nifcore.header import Colour, LatticeKind, NetShape
from nifcore.plan import least_bytes, plan_rate
from nifcore.presets import Recipe, find_recipe
from nifcore.target import make_target


@dataclass(frozen=True)
class Likeness:
    """What pictures must share to go together; two that are equal do, if both are in colour.

    Attributes:
        recipe: what is run.
        genesis, modulation: shapes of the networks.
        lattice: whose weights are rounded how.
        tiles: how many.
        stride: of the lattices.
        rows, columns: of the largest lattice through the whole picture.
    """

    recipe: Recipe
    genesis: NetShape
    modulation: NetShape | None
    lattice: LatticeKind
    tiles: int
    stride: int
    rows: int
    columns: int


def likeness(width: int, height: int, parameters: Mapping[str, Any]) -> Likeness | None:
    """Return what an encode has in common with those that it can share launches with.

    Args:
        width, height: of the picture in pixels, 1 and more.
        parameters: keyword arguments of :func:`nifcore.encoder.encode` that say what is wanted.

    Returns:
        None where the networks depend on more than that (a PSNR is searched for, an ICC profile
        takes its share of the bytes) or where nothing can be planned: it goes alone.
    """
    asked = {name: parameters.get(name) for name in ("quality", "psnr", "bpp", "max_bytes")}
    if asked["psnr"] is not None or parameters.get("keep_icc"):
        return None
    preset = parameters.get("preset")
    try:
        recipe = find_recipe(preset, parameters.get("effort"))
        target = make_target(preset, **asked)
        genesis, modulation = recipe.genesis, recipe.modulation
        lattice, tiles = LatticeKind.PUBLISHED, 1
        if genesis is None:
            size = target.bytes_for(width * height)
            if not target.strict:
                size = max(size, least_bytes(width, height, Colour.SRGB, 0))
            header = plan_rate(width, height, Colour.SRGB, int(size), 0).header
            genesis, modulation = header.genesis, header.modulation
            lattice, tiles = header.lattice, header.tile_count
    except NifError:
        return None
    stride = recipe.sampling.stride_for(height, width, tiles)
    rows, columns = -(-height // stride), -(-width // stride)
    return Likeness(recipe, genesis, modulation, lattice, tiles, stride, rows, columns)
