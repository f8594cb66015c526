"""What the API knows of the codec's presets and efforts without loading torch.

A test compares every number here with ``nifcore``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True)
class Work:
    """What a published preset runs.

    Attributes:
        parameters: of its networks, for a colour picture.
        passes: over every pixel.
    """

    parameters: int
    passes: int


PRESETS: Mapping[str, Work] = MappingProxyType(
    {
        "paper-120": Work(14992, 1700),
        "paper-0_31": Work(17034, 1700),
        "paper-200": Work(32148, 1700),
        "paper-280": Work(54944, 1700),
        "paper-360": Work(93612, 1700),
        "paper-450": Work(153407, 1700),
        "paper-680": Work(244059, 1700),
        "paper-celeba-0_65": Work(3004, 3200),
        "paper-celeba-0_78": Work(3764, 3200),
        "paper-celeba-1_33": Work(6994, 3200),
        "paper-celeba-1_63": Work(8628, 3200),
        "paper-celeba-2_97": Work(16180, 3200),
        "paper-icb-360": Work(93612, 175),
        "paper-icb-680": Work(248763, 175),
        "paper-x2-120": Work(17454, 1700),
        "paper-x4-120": Work(17454, 1700),
        "paper-x4-280": Work(54944, 1700),
    }
)
"""The published recipes."""

EFFORT_ITERATIONS: Mapping[int, int] = MappingProxyType(
    {1: 130, 2: 240, 3: 400, 4: 640, 5: 960, 6: 1600, 7: 3200, 8: 6400, 9: 12800}
)
"""Optimiser iterations of each effort level, both stages together."""

DEFAULT_EFFORT = 5
DEFAULT_QUALITY = 75
QUALITIES = (1, 100)
PSNRS = (5, 100)
BPPS = (1e-4, 16.0)

QUALITY_RATES: tuple[tuple[int, float], ...] = (
    (1, 0.05),
    (25, 0.1),
    (50, 0.2),
    (75, 0.45),
    (90, 1.2),
    (100, 4.0),
)
"""Anchors of the quality scale: (quality, bits per pixel), log-linear between them."""

BITS_PER_PARAMETER = 5.9
BATCH_PIXELS = 24_576
MAX_TILE_PARAMETERS = 260_000
MAX_TILE_PIXELS = 1 << 21
