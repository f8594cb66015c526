"""What is said of a picture before it is decoded, against the fits that it really leads to."""

from __future__ import annotations

import itertools
import time
from dataclasses import replace

import numpy as np
import pytest
import torch

from nifcore.gpu.batch_encode import BatchSession, Gathering
from nifcore.gpu.batch_fit import Company, company_of
from nifcore.gpu.stacked import StackedKernel
from nifcore.likeness import likeness
from nifcore.limits import Limits
from nifcore.picture import read_picture
from nifcore.presets import find_recipe
from nifcore.target import make_target


class Seen(Exception):
    """What the fits of an encode are, instead of the fits."""


class Looking(Gathering):
    """Looks at the fits that it is brought and ends the encode."""

    def fit(self, header, seats, monitors, settled):
        raise Seen([company_of(seat) for seat in seats])


def companies(width: int, height: int, parameters: dict) -> list[Company]:
    """Return the company of every tile's fit."""
    y, x = np.mgrid[0:height, 0:width]
    pixels = np.stack([x % 256, y % 256, (x * y) % 256], -1).astype(np.uint8)
    # busy on one side, which nobody who sees only the sizes could know
    pixels[:, width // 3 :] //= 16
    asked = {name: parameters.get(name) for name in ("quality", "psnr", "bpp", "max_bytes")}
    session = BatchSession(
        read_picture(pixels, Limits(), False),
        find_recipe(parameters.get("preset"), parameters.get("effort")),
        torch.device("cpu"),
        "stacked",  # asked for by name: nothing else is tried
        0,
        None,
        None,
        None,
        make_target(parameters.get("preset"), **asked),
        time.monotonic(),
    )
    session.gathering = Looking(StackedKernel)
    with pytest.raises(Exception, match="Seen") as raised:
        session.run()
    (found,) = raised.value.__cause__.args
    return found


CASES = [
    (96, 64, {"bpp": 2.0, "effort": 1}),
    (96, 64, {"bpp": 2.0, "effort": 1, "seed": 9}),
    (96, 63, {"bpp": 2.0, "effort": 1}),
    (64, 96, {"bpp": 2.0, "effort": 1}),
    (96, 64, {"bpp": 2.0, "effort": 2}),
    (96, 64, {"bpp": 3.0, "effort": 1}),
    (96, 64, {"max_bytes": 1536, "effort": 1}),
    (96, 64, {"quality": 75}),
    (96, 64, {}),
    (96, 64, {"preset": "paper-120"}),
    (90, 64, {"preset": "paper-120"}),
    (400, 300, {"quality": 90}),
    (401, 300, {"quality": 90}),
    (640, 480, {"quality": 90}),
    (641, 480, {"quality": 90}),
    (768, 512, {"quality": 90}),
]


def test_pictures_are_alike_where_their_fits_go_together() -> None:
    kinds = [(likeness(w, h, wanted), companies(w, h, wanted)) for w, h, wanted in CASES]
    assert all(known is not None and len(set(fits)) == 1 for known, fits in kinds)
    assert [len(fits) for _, fits in kinds[-3:]] == [2, 2, 2]
    pairs = list(itertools.combinations(range(len(CASES)), 2))
    alike = [(a, b) for a, b in pairs if kinds[a][0] == kinds[b][0]]
    together = [(a, b) for a, b in pairs if kinds[a][1][0] == kinds[b][1][0]]
    assert set(alike) <= set(together)
    assert (0, 1) in alike
    assert (7, 8) in alike
    assert (0, 3) not in alike
    # what may share a launch, but had better not, has lattices of other shapes
    kept = {"rows": 0, "columns": 0, "tiles": 0}
    shapeless = [replace(known, **kept) for known, _ in kinds if known is not None]
    assert together == [(a, b) for a, b in pairs if shapeless[a] == shapeless[b]]


@pytest.mark.parametrize(
    "wanted",
    [
        {"psnr": 30.0},  # the rate depends on the picture
        {"quality": 75, "keep_icc": True},  # and here on its profile
        {"max_bytes": 10},
        {"preset": "paper-0"},
        {"bpp": 0.5, "quality": 50},
        {"effort": 10},
    ],
)
def test_what_cannot_be_foreseen_goes_alone(wanted: dict) -> None:
    assert likeness(96, 64, wanted) is None
